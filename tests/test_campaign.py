"""From a plan to records: the same twice, resumed after a kill, and never better for a defense that fails."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from bench import (
    attacking,
    campaign,
    classifiers,
    data,
    evaluate,
    planning,
    plugins,
    protocols,
    seal,
    statistics,
    subjects,
)
from bench.cache import ChunkCache
from bench.data import Dataset
from bench.defense import Defense
from bench.errors import BenchError
from bench.places import home
from bench.progress import Progress
from bench.record import Cell, Store
from bench.work import Examples, Work, wanted

# digits-v1-quick on 80 images (two chunks) with PGD of 10 longer steps
TINY = replace(
    protocols.get("digits-v1-quick"),
    id="tiny",
    n_examples=80,
    efforts=(),
    attacks=tuple(
        replace(spec, params=(("step_size", 0.05), ("steps", 10)) if spec.params else ())
        for spec in protocols.get("digits-v1-quick").attacks
        if spec.attack in ("none", "uniform_noise", "fgsm", "pgd") and spec.track in ("clean", "gray_box")
    ),
)


class Listening(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


pytestmark = pytest.mark.usefixtures("trained_home")


def measure(cls: type[Defense] | str, records: Path, **options) -> list[Cell]:
    return evaluate(cls, TINY, records=records, **{"contract": False, **options})


def clean(cells: list[Cell]) -> Cell:
    return next(cell for cell in cells if cell.record.attack == "none")


class Fake(Defense):
    """The base of the fakes below: passes images through."""

    title, paper, year = "Fake", "https://example.org", 2020
    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images


class Crashes(Fake):
    """Raises on images that were attacked (any grey level off digits' own grid of shades)."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        raise RuntimeError("out of luck")


class CrashesLater(Fake):
    """Raises in the second chunk of 64 only."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        if len(images) != 64:
            raise RuntimeError("out of luck")
        return images


class ReturnsNaN(Fake):
    """NaN for the first image of every batch."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return torch.cat([images[:1] * torch.nan, images[1:]])


class Brightens(Fake):
    """Leaves [0, 1] wherever the image is white."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images * 1.5


class WrongShape(Fake):
    """Flattens."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images.flatten(1)


class WrongLogits(Fake):
    """One score for each image."""

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return images.mean(dim=(1, 2, 3))


class TampersWithClassifier(Fake):
    """Zeroes the shared classifier's last layer."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        with torch.no_grad():
            list(self.classifier.parameters())[-1].zero_().add_(torch.arange(10.0))
        return images


class CannotBeBuilt(Fake):
    """Fails in __init__."""

    def __init__(self, classifier: nn.Module) -> None:
        raise RuntimeError("no such file")


class CannotBeTrained(Fake):
    """Fails in fit."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.layer = nn.Linear(1, 1)

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        raise RuntimeError("diverged")


class SeesTest(Fake):
    """Counts the test images that fit is shown."""

    seen: int | None = None

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.layer = nn.Linear(1, 1)

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        SeesTest.seen = len(data.test)


class CoinFlip(Fake):
    """Blanks each image with probability one half."""

    stochastic = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        heads = torch.rand(len(images), generator=generator, device=images.device) < 0.5
        return images * heads[:, None, None, None]


def test_the_undefended_classifier_falls_to_pgd_and_not_to_noise(tmp_path):
    cells = {cell.record.cell: cell for cell in measure("identity", tmp_path)}
    accuracy = {name: float(cell.outcomes.correct.mean()) for name, cell in cells.items()}
    assert accuracy["A.clean.none.seed0"] > 0.75
    assert accuracy["A.clean.uniform_noise.linf-0.1.seed0"] > accuracy["A.clean.none.seed0"] - 0.1
    assert accuracy["A.gray_box.pgd.linf-0.3.seed0"] < 0.05
    assert accuracy["A.gray_box.pgd.linf-0.1.seed0"] <= accuracy["A.gray_box.fgsm.linf-0.1.seed0"]


def test_outcomes_are_what_a_second_look_at_the_images_gives(tmp_path):
    """Labels, distances, margins and costs of a stored cell, recomputed from the cached images by hand."""
    asked = planning.plan(["identity"], TINY, attacks=["pgd"])
    cell = campaign.run(asked, Store(tmp_path))[0]
    dataset = data.load("digits")
    split, indices = dataset.examples(80, seed=0)
    net, weights = classifiers.trained("A", dataset, Progress())
    subject = subjects.trained_subject(asked.defenses[0], "A", net, weights, dataset, None, Progress())
    examples = Examples("digits", dataset.split, split, indices, dataset.validation)
    cache = ChunkCache(home() / "chunks")
    spec = asked.specs(subject)[0]
    work = Work(subject, asked.protocol, spec, wanted(subject, asked.protocol, spec, ()))
    keys = [attacking.images_key(work, examples, rows) for rows in examples.chunks()]
    images = torch.from_numpy(np.concatenate([cache.read(key)["images"] for key in keys]))
    logits = net(images)
    outcomes = cell.outcomes
    assert outcomes.label.tolist() == split.labels.tolist()
    assert outcomes.predicted.tolist() == logits.argmax(1).tolist()
    assert outcomes.correct.tolist() == (logits.argmax(1) == split.labels).float().tolist()
    assert np.allclose(outcomes.linf, (images - split.images).abs().flatten(1).amax(1))
    assert np.allclose(outcomes.l2, (images - split.images).flatten(1).norm(dim=1), atol=1e-5)
    true = logits[torch.arange(80), split.labels]
    others = logits.masked_fill(nn.functional.one_hot(split.labels, 10).bool(), -torch.inf).amax(1)
    assert np.allclose(outcomes.margin, true - others, atol=1e-4)
    assert (cell.record.forward_rows, cell.record.backward_rows) == (80 * 11, 80 * 10)
    assert np.array_equal(outcomes.exhibits[0], (split.images[:8] * 255).round().byte())
    assert len(cell.record.loss_curve) == 11 and cell.record.loss_curve[-1] > cell.record.loss_curve[0]
    assert float(outcomes.linf.max()) <= cell.record.eps + statistics.TOLERANCE


def test_two_runs_write_the_same_bytes_outside_the_run_block(tmp_path, monkeypatch):
    contents = []
    for name in ("first", "second"):
        monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / name / "home"))  # nothing shared, trainings neither
        measure(CoinFlip, tmp_path / name / "records", limit=40)
        files = sorted((tmp_path / name / "records").rglob("*.seed*.json"))
        records = [json.loads(file.read_text()) for file in files]
        for record in records:
            del record["run"], record["checksum"]
        arrays = (tmp_path / name / "records" / "tiny+limit40+unchecked" / "coin_flip" / "outcomes.npz").read_bytes()
        contents.append((records, arrays, seal.chain(files[0].parent)))
    assert len(contents[0][0]) == 10 and len(contents[0][2]) == 64
    assert contents[0] == contents[1]


def test_a_second_run_computes_nothing_and_changes_no_byte(tmp_path, monkeypatch):
    measure("kmeans", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(campaign, "evaluate_cell", lambda *_: pytest.fail("a stored cell was run again"))
    measure("kmeans", tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_defenses_share_the_images_attacked_on_the_bare_classifier(tmp_path, monkeypatch):
    measure("identity", tmp_path)
    monkeypatch.setattr(attacking.attacks, "get", lambda name: pytest.fail(f"{name} was run again"))
    measure("kmeans", tmp_path)
    seconds: dict[str, set[float]] = {}
    for cell in Store(tmp_path).cells():
        seconds.setdefault(cell.record.cell, set()).add(cell.record.run.attack_seconds)
    assert all(len(both) == 1 and min(both) > 0 for both in seconds.values()), "what making them took is told with each"


def test_an_edited_record_is_computed_again(tmp_path):
    measure("identity", tmp_path, attacks=["fgsm"])
    path = next(tmp_path.rglob("A.gray_box.fgsm.linf-0.1.seed0.json"))
    honest = path.read_bytes()
    path.write_text(path.read_text().replace('"forward_rows": 160', '"forward_rows": 1'))
    assert path.read_bytes() != honest
    measure("identity", tmp_path, attacks=["fgsm"])
    assert json.loads(path.read_text())["forward_rows"] == 160


def test_a_record_that_was_taken_away_is_said_and_measured_and_the_seal_renewed(tmp_path):
    measure("identity", tmp_path, attacks=["fgsm"])
    path = next(tmp_path.rglob("A.gray_box.fgsm.linf-0.1.seed0.json"))
    before = seal.chain(path.parent)
    path.unlink()
    heard = Listening()
    measure("identity", tmp_path, attacks=["fgsm"], progress=heard)
    said = f"the records of identity are not those that were sealed: removed after the run: {path.stem}"
    assert said in heard.said
    assert path.exists() and list(seal.problems(path.parent)) == [] and seal.chain(path.parent) == before != ""


def test_changed_settings_make_another_cell(tmp_path):
    first = measure("kmeans", tmp_path, attacks=["none"])[0].record
    changed = type("KMeans", (plugins.load("kmeans"),), {"recipes": {"paper": {"k": 2}}})
    second = measure(changed, tmp_path, attacks=["none"])[0].record
    assert first.key != second.key and second.settings["k"] == 2


@pytest.mark.parametrize(
    "cls, says",
    [
        (Crashes, "RuntimeError: out of luck"),
        (CrashesLater, "RuntimeError: out of luck"),
        (ReturnsNaN, "not finite, or left"),
        (Brightens, "not finite, or left"),
        (WrongShape, r"purify returned torch.float32 \(64, 784\)"),
        (WrongLogits, "logits are"),
        (TampersWithClassifier, "changed the shared classifier's weights"),
        (CannotBeBuilt, "not built: RuntimeError: no such file"),
        (CannotBeTrained, "not trained: RuntimeError: diverged"),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "",
)
def test_a_defense_that_fails_is_recorded_and_never_gains(cls, says, tmp_path):
    undefended = {cell.record.cell: cell for cell in measure("identity", tmp_path / "identity")}
    listening = Listening()
    cells = measure(cls, tmp_path / "records", progress=listening)
    assert len(cells) == 10
    failed = [cell for cell in cells if cell.record.status == "failed"]
    assert failed and re.search(says, failed[0].record.error)
    assert any("failed under" in line for line in listening.said)
    for cell in cells:
        assert bool((cell.outcomes.correct <= undefended[cell.record.cell].outcomes.correct).all())
        assert len(cell.outcomes.correct) == 80
    assert [cell.record.cell for cell in Store(tmp_path / "records").cells()]  # written, so the site can show it


def test_only_the_images_that_failed_count_as_wrong(tmp_path):
    undefended = clean(measure("identity", tmp_path / "identity", attacks=["none"])).outcomes.correct
    later = clean(measure(CrashesLater, tmp_path, attacks=["none"])).outcomes
    assert np.array_equal(later.correct[:64], undefended[:64]) and not later.correct[64:].any()
    assert bool((later.predicted[64:] == -1).all())
    nan = clean(measure(ReturnsNaN, tmp_path, attacks=["none"])).outcomes
    assert nan.correct[0] == nan.correct[64] == 0 and np.array_equal(nan.correct[1:64], undefended[1:64])
    assert np.isnan(nan.margin[0]) and not np.isnan(nan.margin[1])


def test_a_tampered_classifier_is_mended_for_the_next_defense(tmp_path):
    asked = planning.plan([TampersWithClassifier, "identity"], TINY, attacks=["none"], contract=False)
    tampered, identity = campaign.run(asked, Store(tmp_path))
    alone = clean(measure("identity", tmp_path / "alone", attacks=["none"]))
    assert tampered.record.status == "failed"
    assert np.array_equal(identity.outcomes.correct, alone.outcomes.correct)


def test_a_failed_cell_is_tried_again(tmp_path, monkeypatch):
    assert clean(measure(Crashes, tmp_path, attacks=["none"])).record.status == "failed"
    monkeypatch.setattr(Crashes, "purify", Fake.purify)
    assert clean(measure(Crashes, tmp_path, attacks=["none"])).record.status == "ok"


def test_fit_never_sees_a_test_image(tmp_path):
    measure(SeesTest, tmp_path, attacks=["none"])
    assert SeesTest.seen == 0


def test_a_random_defense_is_averaged_over_draws(tmp_path):
    """A coin per image and draw: each image is right in about half of twenty draws, far from the 0 or 1 of one draw."""
    undefended = clean(measure("identity", tmp_path, attacks=["none"])).outcomes.correct
    cell = clean(measure(CoinFlip, tmp_path, attacks=["none"]))
    right = cell.outcomes.correct[undefended == 1]
    blank_class = cell.outcomes.label[undefended == 1] == np.bincount(cell.outcomes.predicted).argmax()
    assert cell.record.draws == TINY.scoring_draws == 20
    assert 0.4 < float(right[~blank_class].mean()) < 0.6
    assert float(((right > 0) & (right < 1))[~blank_class].mean()) > 0.9


def test_a_limited_run_is_kept_apart_and_never_ranked(tmp_path):
    record = measure("identity", tmp_path, limit=40, attacks=["none"])[0].record
    assert record.protocol == "tiny+limit40+unchecked" and record.n_examples == 40
    assert not protocols.get("mnist-v1").limited(40).ranked


def test_a_selective_defense_is_refused_until_rejection_is_scored(tmp_path):
    refuses = type("Refuses", (Fake,), {"kind": "selective", "rejection_score": lambda self, images, generator: images})
    with pytest.raises(BenchError, match="may refuse"):
        measure(refuses, tmp_path)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"classifier": "AA"}, "no classifier"),
        ({"tracks": ["graybox"]}, "did you mean gray_box"),
        ({"attacks": ["pdg"]}, "did you mean pgd"),
        ({"recipe": "slow"}, "no recipe"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
    ],
    ids=str,
)
def test_wrong_names_stop_the_run_before_any_work(wrong, says, tmp_path):
    with pytest.raises(BenchError, match=says):
        measure("identity", tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_the_expected_time_is_said_first(tmp_path):
    listening = Listening()
    measure("identity", tmp_path, progress=listening)
    assert any("10 cells to run, about" in line for line in listening.said)


RUN = """
import sys, bench.classifiers as c
c.RECIPE = {"epochs": 2, "minimum_steps": 0, "batch_size": 64, "learning_rate": 1e-3}
from bench import evaluate
from bench.progress import LineProgress
chosen = {"tracks": ["clean", "gray_box"], "attacks": ["none", "uniform_noise", "shift", "rotate", "fgsm", "pgd"]}
shown = LineProgress(every=0.0)
evaluate("identity", "digits-v1-quick", limit=66, **chosen, records=sys.argv[1], progress=shown)
"""


@pytest.mark.slow
def test_a_run_killed_twice_resumes_and_writes_the_same_records(tmp_path):
    """SIGKILL in a training, then in an attack, then the same command again: at most one epoch or one chunk is done
    twice each time, and the records are those of an undisturbed run."""

    def start(name: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PURIFYBENCH_HOME": str(tmp_path / name / "home")}
        with (tmp_path / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-c", RUN, str(tmp_path / name / "records")]
            return subprocess.Popen(command, env=environment, stderr=log)

    def said(name: str) -> str:
        return (tmp_path / f"{name}.log").read_text()

    def finished(pattern: str) -> list[Path]:
        return [path for path in (tmp_path / "killed").rglob(pattern) if not path.name.startswith(".")]

    def kill_once_there_are(count: int, pattern: str) -> str:
        """What the run said until it had written so many files and was killed."""
        before, killed, deadline = len(said("killed")), start("killed"), time.monotonic() + 120
        while len(finished(pattern)) < count and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert killed.poll() is None, "the run ended before it could be killed"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        return said("killed")[before:]

    assert start("undisturbed").wait(300) == 0, said("undisturbed")
    (tmp_path / "killed.log").touch()
    kill_once_there_are(1, "*.checkpoint")
    assert "resumes after epoch" in kill_once_there_are(17, "chunks/*/*.npz")
    written = {path: path.stat().st_mtime_ns for path in finished("chunks/*/*.npz")}
    before = said("killed")
    assert start("killed").wait(300) == 0, said("killed")
    assert "training" not in said("killed").removeprefix(before)
    kept = [path for path in written if path.exists()]
    assert kept and all(path.stat().st_mtime_ns == written[path] for path in kept)
    ours, theirs = (
        {c.record.cell: (c.record.lasting(), c.outcomes.sha256()) for c in Store(tmp_path / name / "records").cells()}
        for name in ("undisturbed", "killed")
    )
    assert len(ours) == 12 and ours == theirs


def test_a_selection_that_holds_no_cell_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="no cell of tiny.unchecked is in tracks clean and attacks pgd"):
        measure("identity", tmp_path, tracks=["clean"], attacks=["pgd"])


# ------------------------------------------------------------------------------------- one defense, another's numbers


class WritesToItsInput(Fake):
    """Darkens the images in place."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images.mul_(0.5)


class HooksTheClassifier(Fake):
    """Rounds whatever reaches the classifier that it was given."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        classifier.register_forward_pre_hook(lambda module, inputs: (inputs[0].round(),))


class RoundedClassifier(nn.Module):
    """A net with the weights of another and another forward pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def state_dict(self, *args, **kwargs):
        return self.net.state_dict(*args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.round())


class OwnClassifier(Fake):
    """Brings its own classifier with the same weights."""

    kind = "hardened"

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        object.__setattr__(self, "classifier", RoundedClassifier(copy.deepcopy(classifier)))


class Exits(Fake):
    """Ends the program, as argparse does."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        raise SystemExit(0)


class WipesTrainingData(Fake):
    """Writes to the images that it is given to learn from."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.layer = nn.Linear(1, 1)

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        data.train.images.zero_()


class RemembersTrainingData(WipesTrainingData):
    """Keeps the mean of its training images."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.register_buffer("mean", torch.zeros(()))

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        self.mean.copy_(data.train.images.mean())

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        assert self.mean > 0.1, "trained on black images"
        return images


@pytest.mark.parametrize(
    "cls", [WritesToItsInput, HooksTheClassifier, OwnClassifier, Exits, TampersWithClassifier], ids=lambda c: c.__name__
)
def test_nothing_that_one_defense_does_changes_anothers_numbers(cls, tmp_path, monkeypatch):
    """In the same run, and in a later one that finds the images that the first one cached."""
    alone = [cell.outcomes.sha256() for cell in measure("identity", tmp_path / "alone")]
    monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / "home"))
    asked = planning.plan([cls, "identity"], TINY, contract=False)
    together = campaign.run(asked, Store(tmp_path / "together"))[len(TINY.attacks) :]
    later = measure("identity", tmp_path / "later")
    assert [cell.outcomes.sha256() for cell in together] == alone
    assert [cell.outcomes.sha256() for cell in later] == alone


def test_a_fit_cannot_spoil_the_data_of_the_next_one(tmp_path):
    asked = planning.plan([WipesTrainingData, RemembersTrainingData], TINY, attacks=["none"], contract=False)
    assert campaign.run(asked, Store(tmp_path))[1].record.status == "ok"


def test_writing_to_the_input_is_a_failure_and_no_escape_from_the_ball(tmp_path):
    cells = measure(WritesToItsInput, tmp_path)
    assert {cell.record.status for cell in cells} == {"failed"}
    assert "wrote to its input" in cells[0].record.error
    assert max(float(cell.outcomes.linf.max()) for cell in cells) <= 0.3 + statistics.TOLERANCE


class KeepsWhatItLearnedToItself(Fake):
    """Learns into a plain attribute beside a module: gone when the weights are loaded."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.layer, self.scale = nn.Linear(1, 1), 0.0

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        self.scale = 1.0

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images * self.scale


def test_the_first_run_scores_what_later_runs_load(tmp_path):
    first, second = (clean(measure(KeepsWhatItLearnedToItself, tmp_path / n, attacks=["none"])) for n in "ab")
    assert first.outcomes.sha256() == second.outcomes.sha256()
    assert float(first.outcomes.correct.mean()) < 0.3


def test_a_defense_that_breaks_the_contract_is_not_evaluated(tmp_path):
    listening = Listening()
    cells = measure(WritesToItsInput, tmp_path, progress=listening, contract=True)
    assert {cell.record.status for cell in cells} == {"failed"} and not any(c.outcomes.correct.any() for c in cells)
    assert "breaks the contract" in cells[0].record.error
    assert sum("breaks the contract" in line for line in listening.said) == 2  # once as found, once as a failure


def test_weights_that_come_without_a_fit_are_part_of_the_key(tmp_path):
    keys = []
    for value in (1.0, 0.5):

        def start(self, classifier: nn.Module, value: float = value) -> None:
            Fake.__init__(self, classifier)
            self.register_buffer("scale", torch.tensor(value))

        keys.append(measure(type("Pretrained", (Fake,), {"__init__": start}), tmp_path, attacks=["none"])[0].record)
    assert keys[0].weights != keys[1].weights and keys[0].key != keys[1].key


def test_a_class_may_not_take_the_name_of_an_installed_defense(tmp_path):
    with pytest.raises(BenchError, match="is the name of an installed defense; rename the class"):
        measure(type("Identity", (Fake,), {}), tmp_path)
    with pytest.raises(BenchError, match="expected the name of a defense or a subclass"):
        measure(3, tmp_path)


def test_a_changed_chunk_of_cached_images_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / "home"))
    first = measure("identity", tmp_path / "a", attacks=["fgsm"])
    for path in (tmp_path / "home" / "chunks").rglob("*.npz"):
        with np.load(path) as file:
            arrays = {name: file[name] * 0 if name == "images" else file[name] for name in file.files}
        np.savez_compressed(path, **arrays)
    second = measure("identity", tmp_path / "b", attacks=["fgsm"])
    assert [c.outcomes.sha256() for c in first] == [c.outcomes.sha256() for c in second]


def test_records_that_cannot_be_written_stop_the_run_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(classifiers, "trained", lambda *_: pytest.fail("work was done for nothing"))
    with pytest.raises(BenchError, match="cannot write"):
        measure("identity", tmp_path / "file")
