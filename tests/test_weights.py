"""Weights as files: listed, given away, taken in; what nothing here would use is refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Generator, nn
from typer.testing import CliRunner

from bench import classifiers, places, substitutes, surrogate, training, weights
from bench.cli import app
from bench.defense import settings
from bench.errors import BenchError
from bench.progress import Progress
from defenses.identity_vae import IdentityVAE

KEY = {"version": 1, "dataset": "digits", "split": "all", "settings": settings(IdentityVAE)[1], "seed": 0}

WIDER = {**KEY["settings"], "width": 48}


def made(name: str = "identity_vae", *, value: float = 1.0, **changes: object) -> Path:
    """A file of weights, two epochs of training behind it."""
    key = {**KEY, **changes}
    net = nn.Linear(2, 1)

    def fit(generator: Generator, progress: Progress) -> None:
        training.train(
            net, lambda x: net(x).square().mean(), (torch.full((4, 2), value),), epochs=2, batch_size=4,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1), generator=generator, progress=progress, label="made",
        )  # fmt: skip

    torch.manual_seed(0)
    training.load_or_fit(net, name, key, fit, Progress())
    return training.weights_path(name, key)


def run(*arguments: str | Path):
    return CliRunner().invoke(app, ["weights", *map(str, arguments)])


def elsewhere(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / "elsewhere"))


def test_a_list_names_what_was_trained_and_how_it_ended():
    path = made()
    found = weights.kept()
    assert [one.path for one in found] == [path] and found[0].file_name == path.name
    assert found[0].key["dataset"] == "digits" and len(found[0].losses["made"]) == 2
    shown = run("list").output
    assert "identity_vae" in shown and "digits" in shown and f"{weights.last_loss(found[0]):.4g}" in shown
    assert "no weights in" not in shown


def test_without_weights_it_says_what_makes_some():
    assert "`purifybench train` makes some" in run("list").output


def test_what_goes_out_comes_in_elsewhere(tmp_path, monkeypatch):
    path, out = made(), tmp_path / "out"
    content = path.read_bytes()
    assert run("export", out).exit_code == 0
    elsewhere(monkeypatch, tmp_path)
    assert f"{path.name}: taken" in run("import", out).output
    assert (places.home() / "weights" / path.name).read_bytes() == content
    assert "already here" in run("import", out).output


def test_only_the_named_ones_go_out(tmp_path):
    made(), made("classifier_A", version=3)
    assert [path.name[:12] for path in weights.export(tmp_path / "out", ["classifier_A"])] == ["classifier_A"]
    with pytest.raises(BenchError, match=r"no file of weights is called 'identity-vea'; did you mean identity_vae"):
        weights.export(tmp_path / "out", ["identity-vea"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 9}, "is of version 9 of identity_vae, expected 1: train it again"),
        (
            {"settings": {**KEY["settings"], "width": 48}},
            "fits no recipe of identity_vae: it differs from 'fast' in width",
        ),
    ],
)
def test_what_nothing_here_would_use_is_refused(changes, reason, tmp_path, monkeypatch):
    made(**changes)
    weights.export(tmp_path / "out")
    elsewhere(monkeypatch, tmp_path)
    answer = run("import", tmp_path / "out")
    assert answer.exit_code == 1 and reason in answer.stderr
    assert weights.kept() == []


FOR_A = classifiers.key("digits", "all", 0)
LIKE_B = substitutes.described("B", "hash of what was asked", "digits", "all")[1]
LIKE_KMEANS = surrogate.described("kmeans", "hash of what it answers", "digits", "all", 10_000)[1]


def net(name: str, module: nn.Module, key: Mapping[str, object]) -> Path:
    """A file of a net of the harness's own, untrained."""
    training.load_or_fit(module, name, key, lambda generator, progress: None, Progress())
    return training.weights_path(name, key)


@pytest.mark.parametrize(
    ("name", "module", "key"),
    [
        ("classifier_E", classifiers.build("E"), FOR_A),
        ("substitute_B", substitutes.Substitute(classifiers.build("B"), torch.device("cpu")), LIKE_B),
        ("surrogate_kmeans", surrogate.Surrogate(1), LIKE_KMEANS),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_nets_of_the_harness_come_in_as_they_are_trained_here(name, module, key, tmp_path, monkeypatch):
    path = net(name, module, key)
    weights.export(tmp_path / "out")
    elsewhere(monkeypatch, tmp_path)
    assert f"{path.name}: taken" in run("import", tmp_path / "out").output


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("classifier_Z", FOR_A, "no classifier is called 'Z'"),
        ("substitute_Z", LIKE_B, "no classifier is called 'Z'"),
        ("surrogate_kmeens", LIKE_KMEANS, "did you mean kmeans"),
        ("classifier_A", {**FOR_A, "dataset": "mnst"}, "did you mean mnist"),
        ("classifier_A", {**FOR_A, "recipe": {"epochs": 400}}, 'recipe is {"epochs": 400}, expected {"batch_size"'),
        ("classifier_A", {**FOR_A, "seed": "0"}, 'seed is "0", expected 0'),
        ("classifier_A", {**FOR_A, "trick": 1}, "trick is 1, expected nothing"),
        ("classifier_A", LIKE_B, "compared is 1000, expected nothing"),
        ("substitute_B", {**LIKE_B, "version": 0}, f"version is 0, expected {substitutes.VERSION}"),
        ("surrogate_kmeans", {**LIKE_KMEANS, "examples": 7}, "examples is 7, expected 10000; train it again"),
        ("classifier_A", FOR_A, "does not fit the module"),
        ("substitute_B", LIKE_B, "does not fit the module"),
        ("surrogate_kmeans", LIKE_KMEANS, "does not fit the module"),
    ],
)
def test_a_net_that_this_version_does_not_train_so_is_refused(name, key, reason, tmp_path, monkeypatch):
    net(name, nn.Linear(2, 1), key)
    weights.export(tmp_path / "out")
    elsewhere(monkeypatch, tmp_path)
    answer = run("import", tmp_path / "out")
    assert answer.exit_code == 1 and reason in answer.stderr
    assert weights.kept() == []


def test_a_defense_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    made("identity_vea")
    weights.export(tmp_path / "out")
    elsewhere(monkeypatch, tmp_path)
    assert "identity_vae" in run("import", tmp_path / "out").stderr


def test_damaged_renamed_and_foreign_files_are_refused(tmp_path, monkeypatch):
    path = made()
    content = bytearray(path.read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    (out / f"renamed-{path.name}").write_bytes(content)
    (out / "foreign.safetensors").write_bytes(b"nothing of ours")
    content[-1] ^= 1
    (out / path.name).write_bytes(content)
    elsewhere(monkeypatch, tmp_path)
    answer = run("import", out)
    assert answer.exit_code == 1 and weights.kept() == []
    for reason in (
        "its tensors do not match their checksum",
        "called otherwise than its key wants",
        "holds no weights",
    ):
        assert reason in answer.stderr


def test_other_weights_of_the_same_key_replace_nothing(tmp_path, monkeypatch):
    path = made()
    weights.export(tmp_path / "out")
    elsewhere(monkeypatch, tmp_path)
    mine = made(value=2.0).read_bytes()
    answer = run("import", tmp_path / "out")
    assert answer.exit_code == 1 and "trained for the same key; delete one of them" in answer.stderr
    target = places.home() / "weights" / path.name
    assert target.read_bytes() == mine
    target.write_bytes(b"torn")
    assert "taken" in run("import", tmp_path / "out").output
