"""How long a site of 50 defenses under 20 attacks takes, drawn for the first time and built again: pytest tests/timing
-n0 --benchmark-only. The aim is a minute on two cores for the first build; nothing here fails for being slow."""

from __future__ import annotations

import shutil
from pathlib import Path

import fake_records
import pytest

from bench import protocols
from bench.protocol import AttackSpec, Protocol
from bench.record import Store
from leaderboard.build import build

DEFENSES, RADII = 50, (0.05, 0.1, 0.2, 0.3)
STEPS = (("steps", 40),)
PROTOCOL = Protocol(
    id="large-v1", dataset="digits", n_examples=200, linf_radii=RADII, ranked=True, headline_radii=(0.1, 0.3),
    attacks=(
        AttackSpec("none", "clean"),
        *(AttackSpec("fgsm", "gray_box", "linf", eps) for eps in RADII),
        *(AttackSpec("pgd", "gray_box", "linf", eps, STEPS) for eps in RADII),
        *(AttackSpec("apgd_ce", "white_box", "linf", eps, STEPS, "bpda") for eps in RADII),
        *(AttackSpec("apgd_margin", "white_box", "linf", eps, STEPS, "autograd") for eps in RADII),
        *(AttackSpec("square", "query", "linf", eps, (("queries", 500),)) for eps in (0.1, 0.2, 0.3)),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Made-up records: each defense a little stronger than the one before."""
    made = Store(tmp_path_factory.mktemp("large") / "records")
    fake_records.save(made, PROTOCOL, ["identity"])
    for place in range(DEFENSES - 1):
        fake_records.save(made, PROTOCOL, [f"defense_{place:02d}"], strength=0.06 + place / 200)
    return made


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, PROTOCOL.id: PROTOCOL})


@pytest.mark.benchmark(group="a site of 50 defenses and 20 attacks")
@pytest.mark.parametrize("which", ["the first build", "a second build"])
def test_build(benchmark, which: str, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "site"
    if which == "a second build":
        build([store], out)
    else:
        benchmark.extra_info.update(defenses=DEFENSES, attacks=len(PROTOCOL.attacks))

    def clear() -> None:
        if which == "the first build":
            shutil.rmtree(out, ignore_errors=True)

    benchmark.pedantic(lambda: build([store], out), setup=clear, rounds=1, warmup_rounds=0, iterations=1)
    assert len(list(out.glob("defense/*/*.html"))) == DEFENSES
