"""Images made on nets of the attacker's own, end to end on digits; and attacks that are given predicted labels."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import Fake, Noise
from torch import Generator, Tensor

from bench import campaign, classifiers, data, evaluate, outline, planning, report, substitutes, threat
from bench.defense import Defense
from bench.progress import Progress
from bench.protocol import AttackSpec, Protocol
from bench.record import Cell, Store
from bench.substitutes import Recipe

pytestmark = [pytest.mark.usefixtures("fresh_home", "short"), pytest.mark.slow]

EPS = 0.2


@pytest.fixture
def fresh_home(trained_home, tmp_path, monkeypatch) -> Path:
    """A home that holds classifier A alone, for this test alone."""
    home = tmp_path / "home"
    (home / "weights").mkdir(parents=True)
    for path in (trained_home / "weights").glob("classifier_A-*.safetensors"):
        shutil.copy(path, home / "weights")
    monkeypatch.setenv("PURIFYBENCH_HOME", str(home))
    return home


@pytest.fixture
def short(monkeypatch) -> Recipe:
    """A substitute in a second: 120 labels."""
    recipe = Recipe(first_images=30, rounds=3, epochs=8)
    monkeypatch.setattr(substitutes, "PAPERNOT", recipe)
    return recipe


def made_on(source: str, **other: object) -> AttackSpec:
    return AttackSpec("fgsm", "transfer", "linf", EPS, source=source, **other)


KINDS = ("classifier-E", "substitute-E", "imitation-E")
ALL = tuple(made_on(source) for source in KINDS)


def tiny(*attacks: AttackSpec, n: int = 32, **other: object) -> Protocol:
    return Protocol("tiny", "digits", n, (AttackSpec("none", "clean"), *attacks), (EPS,), **other)


def measure(defense: str | type[Defense], chosen: Protocol, records: Path, **options) -> dict[str, Cell]:
    cells = evaluate(defense, chosen, records=records, **{"contract": False, **options})
    return {cell.record.spec.slug: cell for cell in cells}


class Blurs(Fake):
    """Halves the contrast: other answers than the bare classifier's."""

    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return 0.2 * images + 0.4


class RefusesAugmented(Fake):
    """Raises for images that are not scanned digits."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        if len(images) == 60:  # the second round of queries
            raise RuntimeError("asked too much")
        return images


class NaNWhenAsked(Fake):
    """Not a number for the points of the second round."""

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.classifier(images) * (torch.nan if len(images) == 30 else 1)


def test_a_cell_of_each_kind_runs_and_says_what_it_was_made_on(tmp_path, short):
    cells = measure("identity", tiny(*ALL), tmp_path)
    clean = cells["clean.none"].outcomes.accuracy
    for source, queries in zip(KINDS, (0, short.queries, short.queries), strict=True):
        cell = cells[made_on(source).slug]
        record = cell.record
        assert (record.status, record.source, record.source_queries) == ("ok", source, queries)
        assert record.source_weights and 0.4 < record.source_agreement <= 1
        assert (cell.outcomes.linf <= EPS + 1e-6).all() and cell.outcomes.accuracy <= clean
        assert (record.forward_rows, record.backward_rows) == (2 * 32, 32)
    assert cells[ALL[0].slug].outcomes.accuracy < clean
    assert not Store(tmp_path).problems and len(list(Store(tmp_path).cells())) == len(ALL) + 1
    table = report.details(list(cells.values()))
    told = [text for column in table.columns for text in column.cells]
    assert any(f"{short.queries} queries" in text for text in told)


def test_an_imitation_of_no_defense_is_the_substitute(tmp_path):
    cells = measure("identity", tiny(*ALL[1:]), tmp_path)
    bare, own = (cells[spec.slug] for spec in ALL[1:])
    assert bare.record.source_weights == own.record.source_weights
    assert np.array_equal(bare.outcomes.l2, own.outcomes.l2)


def test_only_imitations_belong_to_one_defense(tmp_path):
    identity, blurs = (measure(defense, tiny(*ALL), tmp_path) for defense in ("identity", Blurs))
    for spec in ALL:
        one, other = identity[spec.slug], blurs[spec.slug]
        shared = np.array_equal(one.outcomes.l2, other.outcomes.l2)
        assert shared == spec.is_shared == (one.record.source_weights == other.record.source_weights), spec.source


def test_shared_sources_are_trained_once_and_stored_cells_train_nothing(tmp_path, monkeypatch):
    trained = []
    usual = substitutes.imitate
    monkeypatch.setattr(substitutes, "imitate", lambda *a: trained.append(a) or usual(*a))
    chosen = tiny(*ALL)
    asked = planning.plan(["identity", Blurs], chosen, contract=False)
    first = campaign.run(asked, Store(tmp_path))
    assert len(trained) == 3, "one of the bare classifier, one of each defense"
    monkeypatch.setattr(campaign, "evaluate_cell", lambda *_: pytest.fail("a cell was run again"))
    assert [c.record for c in campaign.run(asked, Store(tmp_path))] == [c.record for c in first]
    assert len(trained) == 3


def test_two_runs_reach_the_same_numbers(tmp_path, fresh_home):
    first = measure(Noise, tiny(made_on("imitation-E"), n=8), tmp_path / "one")
    (weights,) = fresh_home.rglob("substitute_E*")
    weights.unlink()
    shutil.rmtree(fresh_home / "chunks")
    again = measure(Noise, tiny(made_on("imitation-E"), n=8), tmp_path / "two")
    slug = made_on("imitation-E").slug
    assert first[slug].record.status == "ok" and first[slug].record.source_queries == 120
    assert first[slug].record.lasting() == again[slug].record.lasting()


@pytest.mark.parametrize(
    ("cls", "says"), [(RefusesAugmented, "RuntimeError: asked too much"), (NaNWhenAsked, "ValueError: .* not finite")]
)
def test_a_defense_that_fails_when_it_is_asked_fails_those_cells_alone(cls, says, tmp_path):
    cells = measure(cls, tiny(made_on("substitute-E"), made_on("imitation-E"), n=16), tmp_path)
    failed = cells[made_on("imitation-E").slug]
    assert failed.record.status == "failed" and not failed.outcomes.correct.any()
    assert re.match(f"asked for labels: {says}", failed.record.error)
    assert failed.record.source_weights == "" and failed.record.source_agreement is None
    assert cells[made_on("substitute-E").slug].record.status == "ok"
    assert not Store(tmp_path).problems and len(list(Store(tmp_path).cells())) == 3


def test_the_estimate_counts_queries_and_time(tmp_path, monkeypatch):
    asked = planning.plan(["identity", "kmeans"], tiny(*ALL), contract=False)
    bare, *own = outline.outline(asked, Store(tmp_path))[1:]
    assert "120 labels asked of it" in bare
    assert all("120 labels asked of it" in line and "at most 64 forward" in line for line in own)

    def expected(*given):
        found = usual(*given)
        seconds.append(found["identity", 0, made_on("imitation-E").slug])
        return found

    seconds: list[float] = []
    usual = campaign.expected_seconds
    monkeypatch.setattr(campaign, "expected_seconds", expected)
    for name in ("one", "other"):
        measure("identity", tiny(*ALL), tmp_path / name)
    assert seconds[0] > 2 * seconds[1], "the second time the net is there"


def test_predicted_labels_change_images_only_where_the_clean_image_is_wrong(tmp_path):
    dataset = data.load("digits")
    net, _ = classifiers.trained("A", dataset, Progress())
    clean, _ = dataset.examples(200, 0)
    wrong = (threat.predictions(net, clean.images) != clean.labels).numpy()
    assert 0 < wrong.sum() < 40
    for track, route in (("gray_box", ""), ("white_box", "autograd")):
        true = AttackSpec("apgd_margin", track, "linf", 0.05, (("steps", 5),), route)
        guessed = replace(true, params=(("labels", "predicted"), ("steps", 5)), variant="predicted")
        cells = measure("identity", tiny(true, guessed, n=200), tmp_path / track)
        one, other = cells[true.slug].outcomes, cells[guessed.slug].outcomes
        assert cells[guessed.slug].record.status == "ok", cells[guessed.slug].record.error
        assert (other.correct[wrong] > one.correct[wrong]).any(), (
            "pushed away from its wrong class, towards the true one"
        )
        assert np.array_equal(one.correct[~wrong], other.correct[~wrong])
        assert (other.step_of_success[wrong] == 0).all()
        assert cells[guessed.slug].record.forward_rows >= 200 + 1


def test_predicted_labels_leave_the_other_images_as_they_were(tmp_path):
    dataset = data.load("digits")
    net, _ = classifiers.trained("A", dataset, Progress())
    clean, _ = dataset.examples(200, 0)
    wrong = (threat.predictions(net, clean.images) != clean.labels).numpy()
    true = AttackSpec("fgsm", "gray_box", "linf", EPS)
    guessed = replace(true, params=(("labels", "predicted"),), variant="predicted")
    cells = measure("identity", tiny(true, guessed, n=200), tmp_path)
    one, other = cells[true.slug].outcomes, cells[guessed.slug].outcomes
    assert np.array_equal(one.predicted[~wrong], other.predicted[~wrong])
    assert np.array_equal(one.l2[~wrong], other.l2[~wrong])
    assert (one.margin[wrong] != other.margin[wrong]).all()
    assert cells[guessed.slug].record.forward_rows == cells[true.slug].record.forward_rows + 200
