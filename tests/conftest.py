"""What every test gets: its own home folder, no data set from the environment, and small makers of data and cells."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread each, before torch counts them
    os.environ["OMP_NUM_THREADS"] = "1"

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.data import Dataset
from bench.record import Card, Cell, Outcomes, Record, Run

_NAMED = os.environ.get("PURIFYBENCH_DATA")
DATA = Path(_NAMED).expanduser().resolve() if _NAMED else None  # tests change the working folder


def _missing_data() -> str:
    """Why tests marked `data` cannot run, or an empty string."""
    from bench import data

    mend = "set PURIFYBENCH_DATA to a folder that holds MNIST/raw and FashionMNIST/raw (`purifybench data fetch mnist`)"
    if DATA is None:
        return f"needs real MNIST; {mend}"
    missing = [name for name in ("mnist", "fmnist") if data.find_idx(name, "train-images-idx3", DATA) is None]
    return f"PURIFYBENCH_DATA={DATA} holds no {' and no '.join(missing)}; {mend}" if missing else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("data")]
    reason = _missing_data() if wanting else ""
    for item in wanting if reason else []:
        item.add_marker(pytest.mark.skip(reason=reason))
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)  # long files first: no process is left with one at the end


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Session fixtures, too, write into a temporary home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURIFYBENCH_HOME", str(tmp_path_factory.mktemp("session-home")))
        patch.delenv("PURIFYBENCH_DATA", raising=False)
        yield


@pytest.fixture(autouse=True)
def _a_place_of_its_own(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own home and working folder; only tests marked `data` see PURIFYBENCH_DATA."""
    monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / "home"))
    if request.node.get_closest_marker("data") and DATA is not None:
        monkeypatch.setenv("PURIFYBENCH_DATA", str(DATA))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """scikit-learn's digits as the benchmark cuts them."""
    from bench import data

    return data.load("digits")


SHORT_RECIPE = {"epochs": 5, "minimum_steps": 1, "batch_size": 64, "learning_rate": 2e-3}  # seconds, 95 % right


@pytest.fixture(scope="session")
def _trained_home(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    from bench import classifiers
    from bench.progress import Progress

    home = tmp_path_factory.mktemp("trained-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURIFYBENCH_HOME", str(home))
        patch.setattr(classifiers, "RECIPE", SHORT_RECIPE)
        classifiers.trained("A", digits, Progress())
    return home, SHORT_RECIPE


@pytest.fixture
def trained_home(_trained_home: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that holds classifier A, trained briefly on digits once a session; mark tests that use it `slow`."""
    from bench import classifiers

    home, recipe = _trained_home
    monkeypatch.setenv("PURIFYBENCH_HOME", str(home))
    monkeypatch.setattr(classifiers, "RECIPE", recipe)
    return home


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `purifybench` with the given arguments in this process: exit status, standard output, standard error."""
    from bench import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["purifybench", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def make_cell() -> Callable[..., Cell]:
    """Makes a cell of 4 images unless `arrays` say otherwise; every other argument replaces a field of the record."""

    def make(arrays: Mapping[str, Any] | None = None, **changes: Any) -> Cell:
        types = {name: kind for name, kind in _TYPES.items() if name != "exhibits"}
        given = {name: np.asarray(value, types[name]) for name, value in (arrays or {}).items()}
        n = len(next(iter(given.values()))) if given else 4
        blank = {name: np.zeros(n, kind) for name, kind in types.items()}
        blank |= {"correct": np.ones(n, np.float32), "accepted": np.ones(n, np.float32)}
        blank["attacked"] = np.ones(n, np.bool_)
        given.setdefault("selection", given.get("correct", blank["correct"]))
        outcomes = Outcomes(**(blank | given), exhibits=np.zeros((3, min(n, 8), 1, 2, 2), np.uint8))
        facts: dict[str, Any] = {
            "harness": 1, "key": "key", "protocol": "tiny-v1", "protocol_hash": "hash", "dataset": "digits",
            "n_examples": n,
            "defense": "identity", "recipe": "paper", "settings": {}, "weights": "", "classifier": "A",
            "card": Card(title="No defense", paper="https://arxiv.org/abs/1312.6199", year=2013, summary="Nothing."),
            "classifier_weights": "weights", "track": "clean", "attack": "none", "attack_version": 1, "norm": None,
            "eps": None, "params": {}, "seed": 0, "draws": 1, "status": "ok", "forward_rows": 0, "backward_rows": 0,
            "outcomes_sha256": outcomes.sha256(),
            "run": Run(
                attack_seconds=1, scoring_seconds=2, device="cpu", threads=2, peak_memory_mb=3, versions={"numpy": "2"}
            ),
        }  # fmt: skip
        return Cell(Record(**(facts | changes)), outcomes)

    return make


_TYPES = {
    "attacked": np.bool_, "label": np.int16, "predicted": np.int16, "margin": np.float32, "correct": np.float32,
    "selection": np.float32, "selection_margin": np.float32, "accepted": np.float32, "rejection_score": np.float32,
    "linf": np.float32, "l2": np.float32, "step_of_success": np.int16, "exhibits": np.uint8,
}  # fmt: skip
