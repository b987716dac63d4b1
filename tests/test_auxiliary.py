"""The nets beside a subject: what is said before one is trained that nobody asked for."""

from __future__ import annotations

import pytest
from torch import nn

from bench import auxiliary, plugins, training
from bench.defense import settings
from bench.errors import BenchError
from bench.progress import Progress
from bench.subjects import weights_key


class Heard(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_why_the_judges_net_is_trained_is_said_before_and_not_where_it_is_kept(digits, monkeypatch):
    net, heard = nn.Identity(), Heard()

    def stop(*given: object) -> None:
        raise BenchError(f"after {len(heard.lines)}")

    monkeypatch.setattr(auxiliary, "source_of", stop)
    with pytest.raises(BenchError, match="after 1"):
        auxiliary.judge_of("A", net, "hash", digits, heard)
    assert "class-change judge of the latent track" in heard.lines[0]

    cls = plugins.load(auxiliary.JUDGE)
    key = weights_key(cls, settings(cls, None, digits.shape)[1], digits, "hash")
    path = training.weights_path(auxiliary.JUDGE, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    heard.lines.clear()
    with pytest.raises(BenchError, match="after 0"):
        auxiliary.judge_of("A", net, "hash", digits, heard)
