"""Defenses that may refuse: where they refuse, what their answers add up to, and that neither refusing everything nor
failing makes one robust."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Generator, Tensor

from bench import evaluate, planning, protocols, rejection, report, selective, statistics
from bench.defense import Defense
from bench.errors import BenchError
from bench.protocol import THRESHOLDS, AttackSpec
from bench.record import Store
from leaderboard import refusals, tables, views

_WHOLE = protocols.get("digits-selective-v1-quick-draft")
_STEPS = (("eot", 4), ("steps", 20))
ASKED = dataclasses.replace(
    _WHOLE,
    id="tiny-selective",
    n_examples=24,
    linf_radii=(0.3,),
    headline_radii=(0.3,),
    efforts=(),
    attacks=(
        *(spec for spec in _WHOLE.attacks if spec.slug in ("clean.none", "gray_box.pgd.linf-0.3")),
        *(
            AttackSpec(
                "lagrangian_pgd", "rejection", "linf", 0.3, (*_STEPS, ("threshold", one)), "autograd", variant=one
            )
            for one in THRESHOLDS
        ),
        AttackSpec("orthogonal_pgd", "rejection", "linf", 0.3, _STEPS, "autograd"),
        AttackSpec("lagrangian_pgd", "rejection", "linf", 0.5, _STEPS, "autograd", variant="wide"),
    ),
)
THRESHOLDS = {"published": 1.0, "1%": 0.5, "5%": 0.25}


class Unsure(Defense):
    """Refuses images that the classifier is unsure of: a detector that every attacker may climb past."""

    title, paper, year, kind, differentiable = "Unsure", "https://example.org", 2020, "selective", True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return 1 - self.classifier(images).softmax(dim=1).amax(dim=1)


class SeesRoughness(Unsure):
    """Refuses images that are rough: noise is seen, and an attacker who knows it paints smoothly."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        smooth = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
        return (images - smooth).square().flatten(1).mean(dim=1)


class Misleads(SeesRoughness):
    """The same, with a gradient that points the wrong way."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return super().rejection_score(2 * images.detach() - images, generator)


class RefusesAll(Unsure):
    """A score beyond every published threshold, but for the gradient's sake not constant."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return 5 + images.flatten(1).mean(dim=1)


class NoNumber(Unsure):
    """A score that is not a number wherever a corner is not black, as it is in every digit."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return torch.where(images[:, 0, 0, 0] < 0.05, super().rejection_score(images, generator), torch.nan)


class RefusesAtRandom(Unsure):
    """Refuses by lot, whatever the image."""

    stochastic = True

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        drawn = torch.rand(len(images), generator=generator)
        return drawn + 1e-6 * super().rejection_score(images, generator)


@pytest.fixture
def cell(make_cell):
    """Makes a cell of a selective defense; label 0, so that a predicted 0 is right."""

    def make(predicted, scores, eps: float | None = None, **changes):
        arrays = {"predicted": predicted, "rejection_score": scores, "linf": [eps or 0.0] * len(predicted)}
        attack = {"track": "rejection", "attack": "lagrangian_pgd", "norm": "linf", "eps": eps, "route": "autograd"}
        return make_cell(arrays, thresholds=THRESHOLDS, **(attack if eps else {}), **changes)

    return make


def test_thresholds_refuse_at_most_their_share_of_validation_images():
    class Ordered(Unsure):
        def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
            return images.flatten(1)[:, 0]

    images = torch.linspace(0, 1, 400)[torch.randperm(400)].view(400, 1, 1, 1).expand(-1, 1, 28, 28)
    found = rejection.thresholds(Ordered(torch.nn.Flatten()), images)
    assert found["published"] == 1
    assert [int((images[:, 0, 0, 0] > found[name]).sum()) for name in ("1%", "5%")] == [4, 20]
    with pytest.raises(ValueError, match="all finite"):
        rejection.thresholds(NoNumber(torch.nn.Flatten()), images)


def test_shares_sum_to_one_and_wrong_is_worse_than_refused_is_worse_than_right(cell):
    clean = cell([0, 0, 0, 1], [0, 0, 0.3, 0])
    attacked = cell([0, 1, 1, 1], [0.4, 0.4, 0.6, 0.4], eps=0.1)
    found = selective.worst([clean, attacked], "linf", [0.05, 0.1], "1%")
    assert np.array_equal(found.right + found.wrong + found.refused, np.ones((3, 4)))
    assert found.right[0].tolist() == found.right[1].tolist() == [1, 1, 1, 0]  # not attacked within .05
    assert found.wrong[2].tolist() == [0, 1, 0, 1] and found.refused[2].tolist() == [0, 0, 1, 0]
    stricter = selective.worst([clean, attacked], "linf", [0.1], "5%")  # from the same records
    assert stricter.refused.tolist() == [[0, 0, 1, 0], [1, 1, 1, 0]]  # the clean error is accepted, whatever follows
    assert selective.worst([clean, attacked], "linf", [0.1], "published").wrong[1].tolist() == [0, 1, 1, 1]


def test_pictures_show_each_image_at_its_worst_answer():
    """MagNet's committed records: an accepted error is worse than a refusal, which is worse than a right answer."""
    records = Store(Path(__file__).parents[1] / "submissions" / "magnet" / "records")
    board = tables.board("mnist-selective-v1-quick-draft", records.cells())
    (row,) = board.rows
    shown = {showcase.eps: [one.answer for one in showcase.exhibits] for showcase in views.showcases(row)}
    bound = row.recorded[0].record.thresholds["1%"]
    near = [cell for cell in row.recorded if cell.record.norm in (None, "linf")]
    for eps, told in shown.items():
        for image, answer in enumerate(told):
            found = [
                "failed" if one.predicted[image] < 0
                else "refused" if one.rejection_score[image] > bound
                else "right" if one.predicted[image] == one.label[image] else "wrong"
                for cell in near
                for one in [cell.outcomes]
                if (one.linf[image] <= eps + 1e-6 if eps else cell.record.attack == "none")
            ]  # fmt: skip
            assert answer == next(worst for worst in ("wrong", "refused", "right") if worst in found), (eps, image)
    assert {answer for told in shown.values() for answer in told} == {"right", "refused", "wrong"}


def test_robust_is_what_is_right_when_clean_and_never_accepted_and_wrong(cell):
    cells = [cell([0, 0, 0, 1], [0, 0, 0.6, 0]), cell([0, 1, 0, 0], [0.6, 0.4, 0, 0.6], eps=0.1)]
    held = statistics.robustness(selective.as_held(cells, "1%"), "linf", [0.1])
    assert held.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    found = selective.worst(cells, "linf", [0.1], "1%")
    assert np.array_equal(held, np.minimum(found.right[:1], 1 - found.wrong))


def test_an_image_that_a_defense_failed_on_is_not_refused(cell):
    found = selective.answers(cell([-1, -1], [np.nan, 9.0]), "1%")
    assert found.wrong.tolist() == [1, 1] and found.refused.tolist() == [0, 0]


def test_of_a_random_defense_only_the_cells_own_threshold_is_known(cell, make_cell):
    card = {"card": make_cell().record.card.model_copy(update={"stochastic": True, "kind": "selective"})}
    clean = cell([0, 0], [0, 0], **card)
    assert selective.answers(clean, "5%") is None
    with pytest.raises(ValueError, match="clean cell"):
        selective.worst([clean], "linf", [0.1], "5%")
    elsewhere = cell([1, 1], [0, 0], eps=0.1, params={"threshold": "5%"}, **card)
    held = statistics.robustness(selective.as_held([clean, elsewhere], "1%"), "linf", [0.1])
    assert held[1].tolist() == [1, 1]  # images made for another threshold count nowhere


def test_refusing_attacked_images_alone_gains_a_random_defense_nothing_over_its_clean_ones(cell, make_cell):
    card = {"card": make_cell().record.card.model_copy(update={"stochastic": True, "kind": "selective"})}

    def shown(one, **shares):
        arrays = {name: np.full(2, share, np.float32) for name, share in shares.items()}
        return dataclasses.replace(one, outcomes=dataclasses.replace(one.outcomes, **arrays))

    clean = shown(cell([0, 0], [0, 0], **card), correct=0.5, accepted=0.5, selection=0.75)
    refused = shown(cell([0, 0], [0, 0], eps=0.1, **card), correct=0, accepted=0, selection=0.5)
    held = statistics.robustness(selective.as_held([clean, refused], "1%"), "linf", [0.1])
    assert held.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_the_risk_coverage_curve_in_closed_form(cell):
    curve = selective.risk_coverage(cell([0, 1, 0, 0], [0.1, 0.9, 0.2, 0.3]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1] and curve.risk.tolist() == [0, 0, 0, 0.25]
    assert curve.area == pytest.approx(1 / 16)


def test_a_failure_is_no_refusal_to_the_risk_coverage_curve(cell):
    """Its score is no number, or as high as it likes: it is kept first, and wrong."""
    failed = cell([0, -1, 0, -1], [0.1, np.nan, 0.2, 9.0])
    assert selective.risk_coverage(failed).risk.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])


@pytest.mark.parametrize(("attack", "right"), [("fooling", [0, 0, 0]), ("lagrangian_pgd", [1, 0, 0])])
def test_an_image_made_anew_has_no_true_class_to_be_right_about(cell, attack, right):
    """Label 0: the first is accepted as it, the second as another class, the third is refused."""
    made = cell([0, 1, 0], [0, 0, 0.9], eps=0.1)
    made = dataclasses.replace(made, record=made.record.model_copy(update={"attack": attack}))
    found = selective.answers(made, "1%")
    assert found.right.tolist() == right and found.refused.tolist() == [0, 0, 1]
    assert found.wrong.tolist() == [1 - right[0], 1, 0]
    assert selective.risk_coverage(made).risk[0] == 1 - right[0]
    (held,) = selective.as_held([made], "1%")
    assert held.outcomes.correct.tolist() == [right[0], 0, 1]
    random = {"card": made.record.card.model_copy(update={"stochastic": True})}
    drawn = dataclasses.replace(
        made,
        record=made.record.model_copy(update=random),
        outcomes=dataclasses.replace(
            made.outcomes, correct=np.array([0.5, 0, 0], np.float32), accepted=np.array([0.75, 1, 0], np.float32)
        ),
    )
    found = selective.answers(drawn, "1%")
    assert found.right.tolist() == [right[0] / 2, 0, 0] and found.wrong.tolist() == [0.75 - right[0] / 2, 1, 0]


def test_every_radius_that_the_mean_counts_is_attacked_along_both_routes():
    for asked in (one for one in protocols.PROTOCOLS.values() if one.is_selective):
        for attacks in (asked.attacks, *(effort.attacks for effort in asked.efforts)):
            for norm, radii in (("linf", asked.linf_radii), ("l2", asked.l2_radii)):
                plain = {
                    (spec.attack, spec.eps, spec.route)
                    for spec in attacks
                    if spec.track == "rejection" and spec.norm == norm and not spec.variant
                }
                rules, routes = ("lagrangian_pgd", "orthogonal_pgd"), ("autograd", "bpda")
                assert plain == set(itertools.product(rules, radii, routes)), (asked.id, norm)


def test_defenses_go_to_the_protocols_of_their_kind():
    with pytest.raises(BenchError, match="may refuse images.*digits-selective-v1"):
        planning.plan([Unsure], "digits-v1-quick")
    with pytest.raises(BenchError, match="never refuses.*digits-v1"):
        planning.plan(["identity"], "digits-selective-v1-quick-draft")


@pytest.mark.slow
@pytest.mark.usefixtures("trained_home")
class TestMeasured:
    """On real digits, through the whole harness."""

    def measure(self, cls: type[Defense], tmp_path, monkeypatch, **given):
        monkeypatch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, ASKED.id: ASKED})
        return evaluate(cls, ASKED, records=tmp_path, **given)

    def at_the_largest_radius(self, cells, threshold: str) -> selective.Shares:
        found = selective.worst(cells, "linf", [0.3], threshold)
        return selective.Shares(*(part[-1].mean() for part in (found.right, found.wrong, found.refused)))

    def test_a_detector_that_can_be_climbed_past_falls_and_the_site_says_so(self, tmp_path, monkeypatch):
        cells = self.measure(Unsure, tmp_path, monkeypatch)
        assert {cell.record.status for cell in cells} == {"ok"}
        assert self.at_the_largest_radius(cells, "1%").wrong > 0.9
        blind = [cell for cell in cells if cell.record.track in ("clean", "gray_box")]
        assert self.at_the_largest_radius(blind, "5%").wrong < self.at_the_largest_radius(cells, "5%").wrong
        console = Console(width=200, record=True)
        console.print(report.summary(cells, ASKED))
        assert "accepted and wrong" in (said := console.export_text()).lower() and "published" in said
        board = tables.board(cells[0].record.protocol, cells)
        (row,) = board.rows
        shown = refusals.refusals(board)
        assert [one.threshold for one in shown] == ["1%", "5%", "published"]
        for answer in (answer for one in shown for answer in one.answers):
            assert answer.right.value + answer.wrong.value + answer.refused.value == pytest.approx(1)
        assert shown[0].held[0].value == pytest.approx(row.robust[0].value)  # the board's own threshold
        assert all(one.held[0].value <= 1 - one.answers[1].wrong.value for one in shown)
        assert row.recorded == tuple(cells) and row.mrr.value < 0.5
        assert refusals.risk_coverage(row, "x") is not None

    @pytest.mark.parametrize("cls", [SeesRoughness, Misleads])
    def test_a_detector_falls_to_its_gradient_or_is_warned_of_for_hiding_it(self, cls, tmp_path, monkeypatch):
        cells = self.measure(cls, tmp_path, monkeypatch)
        (row,) = tables.board(ASKED.id, cells).rows
        held = row.robust[0].value
        if cls is Misleads:
            assert held > 0.2 and row.state == "unverified" and row.rank is None
            assert "wide_ball_survivors" in {verdict.rule for verdict in row.verdicts}
        else:
            assert held < 0.2 and not row.found("warning")

    def test_refusing_everything_is_not_robust(self, tmp_path, monkeypatch):
        cells = self.measure(RefusesAll, tmp_path, monkeypatch, tracks=["clean", "rejection"])
        published = selective.worst(cells, "linf", [0.3], "published")
        assert published.refused.all()
        held = statistics.robustness(selective.as_held(cells, "published"), "linf", [0.3])
        assert not held.any()  # nothing was right to begin with
        assert selective.worst(cells, "linf", [], "1%").right.mean() > 0.6  # the harness's threshold lets images in

    def test_a_score_that_is_no_number_counts_as_an_error(self, tmp_path, monkeypatch):
        clean, attacked = self.measure(NoNumber, tmp_path, monkeypatch, tracks=["clean", "gray_box"])
        assert clean.record.status == "ok" and attacked.record.status == "failed"
        lost = attacked.outcomes.predicted == -1
        assert lost.any() and not np.isfinite(attacked.outcomes.rejection_score[lost]).any()
        for threshold in THRESHOLDS:
            found = selective.answers(attacked, threshold)
            assert found.wrong[lost].all() and not found.refused[lost].any()
        assert (attacked.outcomes.correct[lost] == 0).all() and (attacked.outcomes.accepted[lost] == 1).all()

    def test_a_defense_that_cannot_be_built_is_wrong_and_not_evaluated(self, tmp_path, monkeypatch):
        class Crashes(Unsure):
            """Has no score."""

            def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
                raise RuntimeError("no score today")

        cells = self.measure(Crashes, tmp_path, monkeypatch)
        assert len(cells) == len(ASKED.attacks)
        assert {cell.record.status for cell in cells} == {"failed"} and "no score today" in cells[0].record.error
        assert self.at_the_largest_radius(cells, "1%").wrong == 1
        assert refusals.refusals(tables.board(ASKED.id, cells)) == []

    def test_refusing_at_random_gains_nothing(self, tmp_path, monkeypatch):
        cells = self.measure(RefusesAtRandom, tmp_path, monkeypatch, attacks=["none", "lagrangian_pgd"])
        found = self.at_the_largest_radius(cells, "1%")
        assert found.wrong > 0.9 and found.refused < 0.1
