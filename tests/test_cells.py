"""How cells depend on one another: cascades, cells on fewer images, images made on another defense, training seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import Noise
from torch import Generator, Tensor, nn

from bench import campaign, classifiers, data, evaluate, planning, plugins, statistics, subjects
from bench.data import Dataset
from bench.defense import Defense
from bench.errors import BenchError
from bench.progress import Progress
from bench.protocol import AttackSpec, Effort, Protocol
from bench.record import Cell, Store
from bench.work import Work, wanted

pytestmark = [pytest.mark.usefixtures("trained_home"), pytest.mark.slow]

STEPS = (("steps", 10),)
RADII = (0.05, 0.1, 0.2)


def white(eps: float, *, cascade: bool = False, **other: object) -> AttackSpec:
    return AttackSpec("apgd_margin", "white_box", "linf", eps, STEPS, "autograd", cascade=cascade, **other)


def tiny(*attacks: AttackSpec, n: int = 48, **other: object) -> Protocol:
    return Protocol("tiny", "digits", n, (AttackSpec("none", "clean"), *attacks), RADII, **other)


def measure(defense: str | type[Defense], chosen: Protocol, records: Path, **options) -> dict[str, Cell]:
    cells = evaluate(defense, chosen, records=records, **{"contract": False, **options})
    return {cell.record.spec.slug: cell for cell in cells}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The slugs of the cells that are evaluated from now on."""
    ran: list[str] = []
    real = campaign.evaluate_cell
    monkeypatch.setattr(campaign, "evaluate_cell", lambda work, *rest: ran.append(work.spec.slug) or real(work, *rest))
    return ran


class Fake(Defense):
    """Passes images through."""

    title, paper, year = "Fake", "https://example.org", 2020
    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images


class Learns(Fake):
    """A gain that is trained, so that every seed has weights of its own."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.gain = nn.Parameter(torch.zeros(()))

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        with torch.no_grad():
            self.gain.copy_(torch.rand((), generator=generator) * 0.1)

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images * (1 - self.gain)


# ---------------------------------------------------------------------------------------------- cascades


def test_a_cascade_reaches_what_cold_runs_reach_and_attacks_only_what_is_left(tmp_path):
    cold = measure("identity", tiny(*(white(eps) for eps in RADII)), tmp_path / "cold")
    cascade = measure("identity", tiny(*(white(eps, cascade=True) for eps in RADII)), tmp_path / "cascade")
    worst = [statistics.robustness(list(cells.values()), "linf", RADII) for cells in (cold, cascade)]
    assert np.abs(worst[0].mean(axis=1) - worst[1].mean(axis=1)).max() <= 1 / 48
    assert worst[1][-1].mean() < 0.1 < worst[1][1].mean() < 1

    broken = cascade["clean.none"].outcomes.correct == 0
    for eps in RADII:
        outcomes = cascade[white(eps).slug].outcomes
        assert np.array_equal(outcomes.attacked, ~broken), eps
        assert np.isnan(outcomes.correct[broken]).all() and np.isinf(outcomes.linf[broken]).all()
        assert np.isfinite(outcomes.correct[~broken]).all() and (outcomes.linf[~broken] <= eps + 1e-6).all()
        broken |= outcomes.correct == 0
    rows = [sum(cell.record.backward_rows for cell in cells.values()) for cells in (cold, cascade)]
    assert rows[1] < rows[0]


def test_a_cascade_with_nothing_left_is_a_sound_cell(tmp_path):
    attacks = (white(0.2), AttackSpec("pgd", "white_box", "linf", 0.2, (("steps", 5),), "autograd", cascade=True))
    whole = tiny(white(0.4, variant="far"), white(0.4, cascade=True), *attacks)
    cell = measure("identity", whole, tmp_path)[white(0.4).slug]
    assert cell.record.status == "ok" and not cell.outcomes.attacked.any()
    assert np.isnan(cell.outcomes.accuracy)
    assert (cell.record.forward_rows, cell.record.loss_curve, cell.record.blocked) == (0, (), None)
    assert not Store(tmp_path).problems and len(list(Store(tmp_path).cells())) == len(whole.attacks)


def test_norms_are_not_joined_in_a_cascade(tmp_path):
    far = AttackSpec("apgd_margin", "white_box", "l2", 1.0, STEPS, "autograd", cascade=True)
    cells = measure("identity", tiny(white(0.2), far, l2_radii=(1.0,)), tmp_path)
    broken = (cells["clean.none"].outcomes.correct == 0) | (
        (cells[white(0.2).slug].outcomes.correct == 0) & (cells[white(0.2).slug].outcomes.l2 <= 1 + 1e-6)
    )
    assert np.array_equal(cells[far.slug].outcomes.attacked, ~broken)


def test_nothing_leaves_a_cascade_on_a_random_defense(tmp_path):
    cells = measure(Noise, tiny(white(0.1, cascade=True), white(0.2, cascade=True), n=16), tmp_path)
    assert all(cell.outcomes.attacked.all() for cell in cells.values())


def test_a_cascade_is_run_again_when_the_cells_before_it_change(tmp_path):
    one = measure("identity", tiny(white(0.1, cascade=True), n=16), tmp_path)
    before = AttackSpec("fgsm", "gray_box", "linf", 0.1)
    two = measure("identity", tiny(before, white(0.1, cascade=True), n=16), tmp_path)
    name = white(0.1).slug
    assert one[name].record.key != two[name].record.key
    assert two[name].outcomes.attacked.sum() < one[name].outcomes.attacked.sum()


def test_a_new_version_of_a_protocol_takes_over_the_cells_that_stay(tmp_path, monkeypatch):
    one = tiny(white(0.1), n=16)
    before = measure("identity", one, tmp_path, contract=True)
    ran = watched(monkeypatch)
    two = replace(one, id="tiny-v2", attacks=(*one.attacks, white(0.2)))
    after = measure("identity", two, tmp_path, contract=True)
    assert ran == [white(0.2).slug]
    assert {cell.record.protocol_hash for cell in after.values()} == {two.hash} != {one.hash}
    for name, cell in before.items():
        assert cell.record.outcomes_sha256 == after[name].record.outcomes_sha256
    assert len(list(Store(tmp_path).cells("tiny"))) == 2 and len(list(Store(tmp_path).cells("tiny-v2"))) == 3


@pytest.mark.parametrize("changes", [{"n_examples": 8}, {"seed": 1}], ids=["fewer images", "another seed"])
def test_a_cell_on_other_images_is_not_taken_over(changes, tmp_path, monkeypatch):
    one = tiny(n=16)
    measure("identity", one, tmp_path, contract=True)
    ran = watched(monkeypatch)
    measure("identity", replace(one, id="tiny-v2", **changes), tmp_path, contract=True)
    assert ran == ["clean.none"]


def test_a_cell_that_was_not_held_to_the_contract_is_not_taken_over(tmp_path, monkeypatch):
    measure("identity", tiny(n=16), tmp_path)
    ran = watched(monkeypatch)
    measure("identity", tiny(n=16), tmp_path, contract=True)
    assert ran == ["clean.none"]


def test_other_draws_are_another_cell_of_a_random_defense_only(tmp_path):
    keys = [
        [cell.record.key for cell in measure(defense, tiny(n=8, scoring_draws=count), tmp_path).values()]
        for defense in ("identity", Noise)
        for count in (2, 3)
    ]
    assert keys[0] == keys[1] and keys[2] != keys[3]


def test_a_finished_cascade_is_not_run_again(tmp_path, monkeypatch):
    chosen = tiny(white(0.1, cascade=True), white(0.2, cascade=True), n=16)
    first = measure("identity", chosen, tmp_path)
    monkeypatch.setattr(campaign, "evaluate_cell", lambda *_: pytest.fail("a cell was run again"))
    again = measure("identity", chosen, tmp_path)
    assert [c.record for c in first.values()] == [c.record for c in again.values()]


# ---------------------------------------------------------------------------------------------- fewer images


def test_a_cell_on_fewer_images_attacks_the_first_ones(tmp_path):
    few = white(0.2, n_examples=10, variant="cold")
    cells = measure("identity", tiny(few, white(0.2, cascade=True), n=16), tmp_path)
    outcomes = cells[few.slug].outcomes
    assert outcomes.attacked.tolist() == [True] * 10 + [False] * 6
    assert outcomes.accuracy == outcomes.correct[:10].mean()
    left = ~((outcomes.correct == 0) | (cells["clean.none"].outcomes.correct == 0))
    assert np.array_equal(cells[white(0.2).slug].outcomes.attacked, left)


def test_a_random_defense_meets_its_own_effort(tmp_path):
    chosen = tiny(white(0.1), white(0.2), efforts=(Effort("cheap", True, 8, (AttackSpec("none", "clean"),), 2, 3),))
    (cell,) = measure(Noise, chosen, tmp_path).values()
    assert (cell.record.n_examples, cell.record.draws, len(cell.outcomes.label)) == (8, 3, 8)
    assert cell.record.protocol_hash == replace(chosen, id="tiny+unchecked", ranked=False).hash
    assert len(measure("identity", chosen, tmp_path)) == 3


# ---------------------------------------------------------------------------------------------- transfer


def test_transferred_images_are_white_box_images_of_their_source(tmp_path):
    shown = AttackSpec("apgd_margin", "transfer", "linf", 0.2, STEPS, source="identity")
    chosen = tiny(shown, white(0.2), n=32)
    identity = measure("identity", chosen, tmp_path)
    other = measure("kmeans", chosen, tmp_path)
    there, own = identity[shown.slug], identity[white(0.2).slug]
    assert (there.outcomes.correct <= own.outcomes.correct).mean() > 0.9 and there.outcomes.accuracy < 0.2
    assert np.array_equal(there.outcomes.linf, other[shown.slug].outcomes.linf), "the same images for every defense"
    assert other[shown.slug].record.source == "identity"
    assert other[shown.slug].record.backward_rows == there.record.backward_rows == 10 * 32, (
        "every step, no image leaves"
    )


def test_a_defense_cannot_spoil_the_images_of_a_source(tmp_path):
    class Breaks(Fake):
        """Raises."""

        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            raise RuntimeError("out of luck")

    shown = AttackSpec("apgd_margin", "transfer", "linf", 0.2, STEPS, source="identity")
    failed = measure(Breaks, tiny(shown, n=16), tmp_path)[shown.slug]
    assert failed.record.status == "failed" and not failed.outcomes.correct.any()
    assert measure("identity", tiny(shown, n=16), tmp_path)[shown.slug].record.status == "ok"


def test_other_weights_of_the_source_are_another_cell(tmp_path):
    shown = AttackSpec("apgd_margin", "transfer", "linf", 0.2, STEPS, source="identity")
    chosen = tiny(shown, n=8)
    dataset = data.load("digits")
    net, weights = classifiers.trained("A", dataset, Progress())
    subject = subjects.trained_subject(
        ("identity", plugins.load("identity")), "A", net, weights, dataset, None, Progress()
    )
    mask = wanted(subject, chosen, shown, ())
    keys = {Work(subject, chosen, shown, mask, replace(subject, weights=other)).key for other in ("one", "other")}
    assert len(keys) == 2
    assert measure("identity", chosen, tmp_path)[shown.slug].record.source_weights == subject.weights


def test_a_source_that_cannot_be_trained_is_said_before_any_cell(tmp_path, monkeypatch):
    class Broken(Fake):
        """Cannot be built."""

        def __init__(self, classifier: nn.Module) -> None:
            raise ValueError("out of luck")

    monkeypatch.setattr(plugins, "load", lambda name: Broken)
    shown = AttackSpec("apgd_margin", "transfer", "linf", 0.2, STEPS, source="identity")
    with pytest.raises(
        BenchError, match="identity, whose images .* is not built: ValueError: out of luck; .*--tracks clean"
    ):
        measure(Fake, tiny(shown, n=8), tmp_path)


# ---------------------------------------------------------------------------------------------- selections


def test_a_selection_that_one_kind_of_defense_has_no_cell_of_is_no_mistake(tmp_path):
    chosen = tiny(
        white(0.1), white(0.2), n=8, efforts=(Effort("cheap", True, 8, (AttackSpec("none", "clean"),), 2, 3),)
    )
    assert not measure(Noise, chosen, tmp_path, tracks=["white_box"])
    assert len(measure("identity", chosen, tmp_path, tracks=["white_box"])) == 2
    with pytest.raises(BenchError, match="no track of"):
        measure("identity", chosen, tmp_path, tracks=["latent"])


def test_a_surrogate_cell_that_must_be_done_again_gets_its_surrogate(tmp_path):
    third = AttackSpec("apgd_margin", "white_box", "linf", 0.1, STEPS, "surrogate", cascade=True)
    chosen = tiny(AttackSpec("fgsm", "gray_box", "linf", 0.1), third, n=16)
    alone = measure("identity", chosen, tmp_path, tracks=["white_box"])[third.slug]
    after = measure("identity", chosen, tmp_path)[third.slug]
    assert alone.record.status == after.record.status == "ok"
    assert after.outcomes.attacked.sum() < alone.outcomes.attacked.sum() == 16


def test_the_harness_s_own_error_from_inside_a_defense_ends_nobody_elses_run(tmp_path):
    class Asks(Learns):
        """Asks the harness for what is not there."""

        def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
            raise BenchError("no such thing")

    cells = campaign.run(planning.plan([Asks, Fake], tiny(n=8), contract=False), Store(tmp_path))
    assert [cell.record.status for cell in cells] == ["failed", "ok"]
    assert "not trained: RuntimeError: no such thing" in cells[0].record.error


# ---------------------------------------------------------------------------------------------- training seeds


def test_each_training_seed_has_weights_and_cells_of_its_own(tmp_path):
    chosen = tiny(n=16)
    cells = evaluate(Learns, chosen, records=tmp_path, contract=False, seeds=3)
    assert [cell.record.cell for cell in cells] == [f"A.clean.none.seed{seed}" for seed in range(3)]
    assert len({cell.record.weights for cell in cells}) == len({cell.record.key for cell in cells}) == 3
    assert [c.record for c in evaluate(Learns, chosen, records=tmp_path, contract=False)] == [cells[0].record]
    assert len(evaluate("identity", chosen, records=tmp_path, contract=False, seeds=3)) == 1, "nothing to train"
    with pytest.raises(BenchError, match="--seeds must be at least 1, got 0"):
        planning.plan(["identity"], chosen, seeds=0)


# ---------------------------------------------------------------------------------------------- the first cases


def test_pgd_training_is_attacked_on_its_own_net_and_holds_where_the_bare_net_falls(tmp_path, monkeypatch):
    cls = plugins.load("pgd_training")
    short = {**cls.recipes["fast"], "epochs": 1, "minimum_steps": 80, "steps": 3, "eps": 0.15}
    monkeypatch.setattr(cls, "recipes", {"short": short})
    blind = AttackSpec("pgd", "gray_box", "linf", 0.1, STEPS)
    chosen = tiny(blind, white(0.1), n=48)
    bare, hard = measure("identity", chosen, tmp_path), measure("pgd_training", chosen, tmp_path)
    name = white(0.1).slug
    assert hard[name].outcomes.accuracy > bare[name].outcomes.accuracy + 0.2
    assert hard["clean.none"].outcomes.accuracy > 0.8
    (losses,) = hard["clean.none"].record.training.values()
    assert len(losses) > 1 and hard[name].record.training == bare["clean.none"].record.training == {}
    assert not np.array_equal(hard[blind.slug].outcomes.l2, bare[blind.slug].outcomes.l2)
    assert hard[name].record.weights != bare[name].record.weights


def test_what_the_source_saw_broken_voids_no_cell_of_another_defense(tmp_path):
    class Blanks(Fake):
        """Sees nothing of the attack: every image becomes the same one."""

        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            return torch.zeros_like(images)

    shown = AttackSpec("apgd_margin", "transfer", "linf", 0.2, STEPS, source="identity")
    cell = measure(Blanks, tiny(shown, n=32), tmp_path)[shown.slug]
    assert cell.record.status == "ok" and 0 < cell.outcomes.accuracy < 0.4, "one class of ten is right"
