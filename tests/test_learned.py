"""Attacks that learn before they attack: once a cell, from known images only, counted, found again, shared."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from bench import attack_cost, attacking, attacks, classifiers, data, evaluate, planning, subjects
from bench.attacks import universal
from bench.cache import ChunkCache
from bench.catalog import ATTACKS
from bench.data import Split
from bench.defense import Defense
from bench.places import home
from bench.progress import Progress
from bench.protocol import AttackSpec, Protocol
from bench.record import Cell
from bench.substitutes import SourceNet
from bench.work import Examples, Work

pytestmark = [pytest.mark.usefixtures("trained_home"), pytest.mark.slow]

N = 70  # two chunks
SHORT = (("batch_size", 20), ("epochs", 2), ("known", 60))
WHITE = AttackSpec("universal", "white_box", "linf", 0.3, SHORT, "autograd")
BLIND = AttackSpec("universal", "gray_box", "linf", 0.3, SHORT)
SHOWN = AttackSpec("universal", "transfer", "linf", 0.3, SHORT, source="identity")
CODES = AttackSpec("latent_classifier", "latent", "linf", 0.3, (("epochs", 30), ("known", 200), ("steps", 5)), "bpda")


class Fake(Defense):
    """Passes images through."""

    title, paper, year, differentiable = "Fake", "https://example.org", 2020, True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images.clone()


class Coded(Fake):
    """Its codes are the means of squares of four by four pixels."""

    title = "Coded"

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4).flatten(1)


def measure(defense: str | type[Defense], records: Path, *specs: AttackSpec, n: int = N) -> dict[str, Cell]:
    chosen = Protocol("tiny", "digits", n, (AttackSpec("none", "clean"), *specs), (0.3,))
    return {cell.record.spec.slug: cell for cell in evaluate(defense, chosen, records=records, contract=False)}


def learns_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing may be learned again."""
    again = functools.wraps(universal.learn)(lambda *_, **__: pytest.fail("it learned again"))
    monkeypatch.setattr(universal, "learn", again)


def test_what_is_learned_is_counted_once_and_found_again(tmp_path, monkeypatch):
    cell = measure(Fake, tmp_path / "first", WHITE)[WHITE.slug]
    ahead, back = ATTACKS["universal"].learning_cost(**WHITE.settings)
    assert (cell.record.forward_rows, cell.record.backward_rows) == (2 * N + ahead, back)
    assert cell.record.status == "ok" and cell.record.run.attack_seconds > 0
    assert float(cell.outcomes.linf.max()) <= 0.3 + 1e-6

    learns_no_more(monkeypatch)
    again = measure(Fake, tmp_path / "second", WHITE)[WHITE.slug]
    bare = [json.loads(one.record.model_dump_json(exclude={"run"})) for one in (cell, again)]
    assert bare[0] == bare[1] and cell.record.run.attack_seconds == again.record.run.attack_seconds

    for path in sorted((home() / "chunks").rglob("*.npz")):  # a killed run loses images, not what was learned
        with np.load(path) as file:
            if "images" in file.files:
                path.unlink()
    resumed = measure(Fake, tmp_path / "third", WHITE)[WHITE.slug]
    assert json.loads(resumed.record.model_dump_json(exclude={"run"})) == bare[0]


def test_what_is_learned_on_the_classifier_is_shared_by_all_defenses(tmp_path, monkeypatch):
    first = measure("identity", tmp_path, BLIND)[BLIND.slug]
    learns_no_more(monkeypatch)
    second = measure("kmeans", tmp_path, BLIND)[BLIND.slug]
    assert first.record.images_sha256 == second.record.images_sha256
    assert first.record.forward_rows == second.record.forward_rows == 2 * N + 60 * 5
    assert first.record.run.attack_seconds == second.record.run.attack_seconds
    longer = measure("identity", tmp_path / "longer", BLIND, n=N + 10)[BLIND.slug]
    assert np.array_equal(longer.outcomes.linf[:N], first.outcomes.linf)


def test_images_of_another_model_carry_what_was_learned_on_it(tmp_path):
    cells = measure("identity", tmp_path, SHOWN, WHITE, BLIND)
    assert len({cells[spec.slug].record.images_sha256 for spec in (SHOWN, WHITE, BLIND)}) == 1
    assert cells[WHITE.slug].outcomes.accuracy < cells["clean.none"].outcomes.accuracy - 0.05


def work(spec: AttackSpec, cls: type[Defense] = Fake) -> tuple[Work, Examples]:
    dataset = data.load("digits")
    clean, indices = dataset.examples(8, seed=0)
    chosen = Protocol("tiny", "digits", 8, (AttackSpec("none", "clean"), spec), (0.3,))
    asked = planning.plan([cls], chosen, contract=False)
    net, weights = classifiers.trained("A", dataset, Progress())
    subject = subjects.trained_subject(asked.defenses[0], "A", net, weights, dataset, None, Progress())
    wanted = np.ones(8, dtype=np.bool_)
    examples = Examples("digits", dataset.split, clean, indices, dataset.validation)
    return Work(subject, chosen, spec, wanted), examples


@pytest.mark.parametrize("spec", [WHITE, BLIND, CODES], ids=lambda spec: spec.slug)
def test_only_known_images_are_learned_from(spec, tmp_path):
    asked, examples = work(spec, Coded)
    others = Split(torch.full_like(examples.clean.images, torch.nan), examples.clean.labels)
    changed = replace(examples, clean=others)
    first = attacking.lesson(asked, examples, ChunkCache(tmp_path / "one"))
    second = attacking.lesson(asked, changed, ChunkCache(tmp_path / "two"))
    assert first.learned and first.rows == second.rows
    assert all(torch.equal(first.learned[name], second.learned[name]) for name in first.learned)
    fewer = replace(examples, validation=examples.validation[:50])
    third = attacking.lesson(asked, fewer, ChunkCache(tmp_path / "one"))
    assert any(not torch.equal(first.learned[name], third.learned[name]) for name in first.learned)


def test_what_is_learned_hangs_on_its_own_settings_alone(tmp_path):
    """Radius and steps of the attack change nothing in a classifier of codes."""
    lessons = []
    for eps, steps in ((0.1, 1), (0.3, 40)):
        spec = replace(CODES, eps=eps, params=(("epochs", 3), ("known", 60), ("steps", steps)))
        lessons.append(attacking.lesson(*work(spec, Coded), ChunkCache(tmp_path)).learned)
    assert all(torch.equal(lessons[0][name], lessons[1][name]) for name in lessons[0])


def test_an_attack_that_learns_nothing_has_an_empty_lesson(tmp_path):
    asked, examples = work(AttackSpec("fgsm", "gray_box", "linf", 0.3))
    assert attacking.lesson(asked, examples, ChunkCache(tmp_path)) == attacking.Lesson()
    asked, examples = work(WHITE)
    nothing = replace(asked, wanted=np.zeros(8, dtype=np.bool_))
    assert attacking.lesson(nothing, examples, ChunkCache(tmp_path)) == attacking.Lesson()
    lost = replace(work(SHOWN)[0], source=SourceNet(asked.subject.attacked, "weights", problem="it raised"))
    assert attacking.lesson(lost, examples, ChunkCache(tmp_path)) == attacking.Lesson()


class Refuses(Fake):
    """Answers chunks of attacked images, and raises where it is asked for the size of batch that is learned from."""

    title = "Refuses"

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        if len(images) == 20:
            raise RuntimeError("not with me")
        return self.classifier(images)

    def surrogate_logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.logits(images, generator)


def test_a_defense_that_raises_while_the_attack_learns_gains_nothing(tmp_path):
    cells = measure(Refuses, tmp_path, WHITE, BLIND)
    failed = cells[WHITE.slug]
    assert failed.record.status == "failed"
    assert failed.record.error == "as an attack learned: RuntimeError: not with me"
    assert failed.outcomes.accuracy == 0.0 and (failed.record.forward_rows, failed.record.backward_rows) == (0, 0)
    assert cells[BLIND.slug].record.status == "ok", "no code of the defense is run there"


def test_a_classifier_of_codes_is_a_cell_that_tells_how_good_it_is(tmp_path):
    cell = measure(Coded, tmp_path, CODES)[CODES.slug]
    assert cell.record.status == "ok", cell.record.error
    assert 0.5 < cell.record.facts["attack.latent_classifier_accuracy"] <= 1
    assert (cell.record.forward_rows, cell.record.backward_rows) == (N * 6 + 201, N * 5)
    assert float(cell.outcomes.linf.max()) <= 0.3 + 1e-6
    assert CODES.slug not in measure(Fake, tmp_path, CODES), "it needs an encoder"


def test_settings_go_to_the_one_that_takes_them_and_unknown_ones_are_refused():
    own, learned = attacks.split_settings("universal", {"eps": 0.1, "norm": "l2", "known": 9, "knwon": 8})
    assert own == {"eps": 0.1, "norm": "l2", "knwon": 8} and learned == {"eps": 0.1, "norm": "l2", "known": 9}
    assert attacks.split_settings("pgd", {"eps": 0.1, "known": 9}) == ({"eps": 0.1, "known": 9}, {})


def test_the_plan_counts_what_is_learned():
    specs = [WHITE, replace(WHITE, params=(*SHORT, ("eot", 3)), variant="draws")]
    chosen = Protocol("tiny", "digits", 10, (AttackSpec("none", "clean"), *specs), (0.3,))
    assert attack_cost.rows(chosen.attacks[1:], chosen) == (2 * (2 * 10 + 300), 2 * 120)
    assert attack_cost.rows(chosen.attacks[2:], chosen, stochastic=True) == (3 * (2 * 10 + 300), 3 * 120)
