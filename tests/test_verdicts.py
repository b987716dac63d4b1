"""Verdicts on hand-made cells just above and just below each threshold, and on simulated honest and masking runs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bench import evaluation, evidence, masked_gradients, paired_tests, protocols, scoring, verdicts
from bench.protocol import ROUTES, Protocol
from bench.record import Card, Cell

TINY = replace(protocols.get("digits-v1-quick"), id="tiny-v1")
T = TINY.thresholds
N = 200
CARD = {"title": "Made up", "paper": "https://example.org", "year": 2020, "summary": "Nothing."}


@pytest.fixture
def cell(make_cell) -> Callable[..., Cell]:
    """A cell of N images of which the first `right` are right, or whose shares are `right`; all attacked."""

    def make(right=N, *, n=N, attacked=None, card=(), **changes) -> Cell:
        correct = (np.arange(n) < right).astype(float) if np.isscalar(right) else np.asarray(right, float)
        n, eps = len(correct), changes.get("eps")
        arrays = {"correct": correct, "attacked": np.ones(n, bool) if attacked is None else attacked}
        arrays |= {"label": np.arange(n) % 10, "linf": np.full(n, eps or 0.0), "l2": np.full(n, np.inf)}
        if attacked is not None:
            arrays["correct"] = np.where(attacked, correct, np.nan)
            arrays["linf"] = np.where(attacked, eps or 0.0, np.inf)
        if eps is not None:
            changes.setdefault("norm", "linf")
        return make_cell(arrays, card=Card(**(CARD | dict(card))), **changes)

    return make


@pytest.fixture
def white(cell):
    """A cold white-box cell at Linf .3."""

    def make(right, attack="apgd_margin", route="autograd", **changes) -> Cell:
        facts = {"track": "white_box", "eps": 0.3, "variant": "" if attack == "fgsm" else "cold", "blocked": 0.0}
        return cell(right, attack=attack, route=route, **(facts | changes))

    return make


def judge(cells, baseline=(), asked: Protocol = TINY) -> dict[str, evidence.Verdict]:
    found = verdicts.verdicts(cells, baseline, asked)
    assert {verdict.rule for verdict in found} <= set(verdicts.RULES)
    assert len({verdict.rule for verdict in found}) == len(found)
    names = {one.record.cell for one in cells}
    for verdict in found:
        assert set(verdict.cells) <= names
        assert all(isinstance(number, float | int) for number in verdict.evidence.values())
        assert verdict.text and verdict.text[0].isupper() and "nan" not in verdict.text
    return {verdict.rule: verdict for verdict in found}


def levels(*given, **kept) -> dict[str, str]:
    return {rule: verdict.level for rule, verdict in judge(*given, **kept).items()}


# ---------------------------------------------------------------------------------------------- paired tests


def test_on_right_and_wrong_the_sign_flip_is_mcnemars_exact_test():
    for better, worse in ((7, 0), (6, 0), (9, 2), (2, 9), (0, 0), (30, 30)):
        gaps = np.concatenate([np.ones(better), -np.ones(worse), np.zeros(50)])
        assert paired_tests.sign_flip(gaps) == pytest.approx(stats.binom.sf(better - 1, better + worse, 0.5), abs=1e-9)


def test_on_shares_the_sign_flip_counts_all_signs():
    gaps = np.array([0.3, 0.25, -0.05, 0.0, 0.6, 0.15])
    sums = [np.dot(signs, gaps) for signs in itertools.product((-1, 1), repeat=len(gaps))]
    assert paired_tests.sign_flip(gaps) == pytest.approx(np.mean(np.array(sums) >= gaps.sum() - 1e-9))


def test_holm_lowers_the_bar_step_by_step():
    assert paired_tests.holm([0.02, 0.001, 0.9], 0.05) == [True, True, False]
    assert paired_tests.holm([0.03, 0.03, 0.03], 0.05) == [False, False, False]
    assert paired_tests.holm([], 0.05) == []


def test_without_cells_there_is_nothing_to_say():
    assert verdicts.verdicts([], [], TINY) == ()


def test_the_thresholds_are_part_of_the_protocols_hash():
    assert replace(TINY, thresholds=replace(T, gap=0.02)).hash != TINY.hash


# ---------------------------------------------------------------------------------------------- breaches, failures


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        ("RuntimeError: breaks the contract: it keeps state", "contract"),
        ("under attack: RuntimeError: breaks the contract: it keeps state", "contract"),
        ("RuntimeError: not built: ValueError: k", "unusable"),
        ("not trained: ValueError: loss", "unusable"),
    ],
)
def test_a_defense_that_is_not_evaluated(error, rule, cell):
    found = judge([cell(0, status="failed", error=error), cell(0, eps=0.1, attack="fgsm")])
    assert found[rule].level == "breach" and error.split(": ")[-1] in found[rule].text
    assert found["failed_cells"].evidence == {"cells": 1, "all": 2}


def test_other_failures_are_notes(cell):
    assert levels([cell(0, status="failed", error="ValueError: not trained: x, breaks the contract")]) == {
        "failed_cells": "note"
    }


def test_a_voided_cell_is_a_warning(cell):
    why = "3.1% of the images were misclassified under attack and score as right: it is not one function"
    found = levels([cell(0, status="failed", error=why)])
    assert found == {"two_functions": "warning", "failed_cells": "note"}


NAN = evidence.NOT_FINITE
RAISED, IN_ATTACK = "ValueError: x", "under attack: ValueError: x"
VOID = "3.1% of the images were misclassified under attack and score as right: it is not one function"


def failing(one: Cell, where, error: str) -> Cell:
    """The cell, had the defense failed on the images `where`, (n,) or how many of the last."""
    n = len(one.outcomes.correct)
    rows = np.arange(n) >= n - where if np.isscalar(where) else where
    arrays = {name: getattr(one.outcomes, name).copy() for name in ("correct", "selection", "margin", "predicted")}
    for name, value in (("correct", 0), ("selection", 0), ("margin", np.nan), ("predicted", -1)):
        arrays[name][rows] = value
    record = one.record.model_copy(update={"status": "failed", "error": error})
    return Cell(record, replace(one.outcomes, **arrays))


def test_the_sentence_of_a_cell_with_answers_that_are_not_numbers_is_the_evaluations():
    assert f'"{NAN}"' in inspect.getsource(scoring) and verdicts.VOID in inspect.getsource(evaluation)


@pytest.mark.parametrize("error", [NAN, RAISED, IN_ATTACK])
@pytest.mark.parametrize("side", [0, 1])
def test_one_failed_image_silences_no_comparison(error, side, white, cell):
    cells = [white(100), cell(80, track="query", attack="square", eps=0.3)]
    cells[side] = failing(cells[side], 1, error)
    assert levels(cells) == {"failed_cells": "note", "black_box_beats_white_box": "warning"}


@pytest.mark.parametrize("error", [NAN, RAISED])
def test_one_failed_image_silences_no_other_rule(error, cell, white):
    undefended_cells = [cell(N), cell(N - 20, attack="shift"), white(0)]
    cells = [cell(N), cell(N - 60, attack="shift"), white(190, blocked=1.0), white(N, eps=0.5, variant="wide")]
    found = levels([failing(one, 1, error) for one in cells], undefended_cells)
    assert {"jitter", "blocked_gradient", "wide_ball_survivors"} == {k for k, v in found.items() if v == "warning"}


def test_an_exception_makes_no_attack_strong(white, cell):
    """Where something raised there is no answer: neither side of a comparison gains by it."""
    strong = [white(100, "fgsm"), white(100, eps=0.1), cell(100, track="query", attack="square", eps=0.3)]
    weak = [white(100, "apgd_ce"), white(100)]
    for error in (RAISED, IN_ATTACK):
        broken = [failing(one, np.arange(N) < 60, error) for one in strong]
        assert levels([*broken, *weak]) == {"failed_cells": "note"}


@pytest.mark.parametrize("error", [RAISED, IN_ATTACK])
@pytest.mark.parametrize("failed", [N, 150])
def test_a_white_box_attack_that_raised_hides_no_warning(error, failed, white, cell):
    cells = [white(100), cell(80, track="query", attack="square", eps=0.3)]
    crashed = failing(white(100, "apgd_ce", "bpda"), failed, error)
    assert "black_box_beats_white_box" in judge([*cells, crashed])
    cells = [white(80, "fgsm"), white(100, "apgd_ce")]
    assert levels([*cells, crashed])["single_step_beats_many"] == "warning"


def test_failure_behind_which_a_gradient_hides_is_a_wrong_answer(white, cell):
    """All that the black box breaks is not a number: the text says so."""
    black = failing(cell(100, track="query", attack="square", eps=0.3), np.arange(N) // 20 == 0, NAN)
    found = judge([white(100), black])["black_box_beats_white_box"]
    assert found.evidence["failed"] == 20 and "on 20 the defense failed" in found.text


@pytest.mark.parametrize("error", [VOID, "RuntimeError: not built: x", "breaks the contract: x"])
def test_void_cells_and_those_of_a_breach_are_no_evidence(error, white, cell):
    black = cell(0, track="query", attack="square", eps=0.3, status="failed", error=error)
    assert "black_box_beats_white_box" not in judge([white(150), black])


# ---------------------------------------------------------------------------------------------- blocked gradients


def undefended(cell, white, under=0.0):
    return [cell(N), white(under * N)]


@pytest.mark.parametrize(("share", "says"), [(T.blocked, False), (T.blocked + 0.01, True)])
def test_blocked_gradients_are_told_above_the_threshold(share, says, cell, white):
    cells = [cell(N), white(150, blocked=share), white(150, "apgd_ce", blocked=1.0)]
    assert ("blocked_gradient" in levels(cells, undefended(cell, white))) == says


@pytest.mark.parametrize(("right", "level"), [(20, "note"), (22, "warning")])
def test_they_are_a_warning_while_a_claim_rests_on_them(right, level, cell, white):
    """A tenth of 200 images above the classifier alone is no claim yet."""
    cells = [cell(N), white(150, blocked=1.0), white(right, route="bpda")]
    found = judge(cells, undefended(cell, white))["blocked_gradient"]
    assert found.level == level
    assert found.evidence == {
        "blocked_autograd": 1, "blocked_bpda": 0, "blocked_threshold": T.blocked,
        "claim": pytest.approx(right / N), "claim_threshold": T.claim,
    }  # fmt: skip


def test_the_largest_cold_radius_decides_where_another_route_has_gradients(cell, white):
    """Rounding is robust in small balls; the other route breaks it in large ones, and so works in the small, too."""
    cells = [cell(N), white(190, blocked=1.0), white(0, route="bpda")]
    small = [white(190, blocked=1.0, eps=0.1), white(180, route="bpda", eps=0.1)]
    assert levels(cells + small, undefended(cell, white))["blocked_gradient"] == "note"


def test_every_radius_counts_where_no_route_has_gradients(cell, white):
    cells = [cell(N)]
    for eps, right in ((0.1, 180), (0.3, 0)):
        cells += [white(190, blocked=1.0, eps=eps, route=route) for route in ROUTES]
        cells += [cell(right, track="query", attack="square", eps=eps)]
    baseline = [*undefended(cell, white), white(0, eps=0.1)]
    assert levels(cells, baseline)["blocked_gradient"] == "warning"
    assert levels([one for one in cells if one.record.eps != 0.1], baseline)["blocked_gradient"] == "note"


@pytest.mark.parametrize(("bpda", "level"), [(0.0, "note"), (1.0, "warning")])
def test_without_a_baseline_every_route_must_be_blocked(bpda, level, cell, white):
    cells = [cell(N), white(190, blocked=1.0), white(190, route="bpda", blocked=bpda)]
    assert levels(cells)["blocked_gradient"] == level


# ---------------------------------------------------------------------------------------------- comparisons


@pytest.mark.parametrize("track", ["query", "transfer", "gray_box"])
@pytest.mark.parametrize(("fewer", "warns"), [(6, False), (7, True)])
def test_a_black_box_that_beats_every_white_box(track, fewer, warns, white, cell):
    """7 images one way and none the other: p = 1/128 < .01; 6: p = 1/64."""
    black = cell(100 - fewer, track=track, attack="square", eps=0.3)
    cells = [white(150), white(100, "apgd_ce", "bpda"), black]
    found = judge(cells)
    assert ("black_box_beats_white_box" in found) == warns
    if warns:
        assert found["black_box_beats_white_box"].evidence["gap"] == pytest.approx(fewer / N)
        assert found["black_box_beats_white_box"].cells == (black.record.cell, cells[1].record.cell)


def test_a_significant_gap_below_a_point_is_none(white, cell):
    black = cell(950, n=1000, track="query", attack="square", eps=0.3)
    assert "black_box_beats_white_box" not in judge([white(959, n=1000), black])
    assert "black_box_beats_white_box" in judge([white(960, n=1000), black])


def test_past_a_detector_an_attacker_who_ignores_it_is_blind(white, cell):
    knowing = [white(150, "lagrangian_pgd", track="rejection"), white(150, "orthogonal_pgd", track="rejection")]
    found = judge([*knowing, white(100)])["black_box_beats_white_box"]
    assert found.cells == (white(100).record.cell, knowing[0].record.cell)
    assert "black_box_beats_white_box" not in judge([*knowing, white(160)])


@pytest.mark.parametrize("change", [{"eps": 0.1}, {"norm": "l2"}])
def test_other_balls_are_not_compared(change, white, cell):
    black = cell(50, track="query", attack="square", eps=0.3)
    assert judge([white(150, **change), black]) == {}


@pytest.mark.parametrize("change", [{"cascade": True}, {"variant": "twice"}, {"variant": "wide"}])
def test_cascades_and_special_cells_are_not_compared(change, white, cell):
    black = cell(150, track="query", attack="square", eps=0.3)
    assert "black_box_beats_white_box" not in judge([white(190, **change), black])
    assert "black_box_beats_white_box" in judge([white(190, **change), white(190), black])


def test_only_images_that_both_attacked_are_compared(white, cell):
    """On the first hundred the two are alike; on the others only the black box was run."""
    first = np.arange(N) < 100
    black = cell(90, track="query", attack="square", eps=0.3)
    assert judge([white(90, attacked=first), black]) == {}
    assert "black_box_beats_white_box" in judge([white(100, attacked=first), black])


def test_of_many_pairs_each_needs_a_smaller_p(white, cell):
    """One black box that wins by 7 is enough alone, and not among twelve."""
    winner = cell(93, track="transfer", attack="apgd_margin", source="x0", eps=0.3)
    others = [cell(100, track="transfer", attack="apgd_margin", source=f"x{i}", eps=0.3) for i in range(1, 12)]
    assert "black_box_beats_white_box" in judge([white(100), winner])
    assert judge([white(100), winner, *others]) == {}


def test_one_step_that_beats_many(white):
    one, many = white(93, "fgsm"), white(100, "apgd_ce")
    assert levels([one, many]) == {"single_step_beats_many": "warning"}
    assert levels([white(94, "fgsm"), many]) == {}
    assert levels([white(93, "fgsm", route="bpda"), many]) == {}  # another route
    assert levels([one, white(100)]) == {}  # another loss
    assert levels([one, many, white(93, route="bpda")]) == {"single_step_beats_many": "note"}  # as good, elsewhere


def test_twice_the_steps_that_gain(white):
    once, twice = {"params": {"steps": 20}}, {"params": {"steps": 40}, "variant": "twice"}
    also = {"convergence": "note"}
    assert levels([white(100, **once), white(93, **twice)]) == {"more_steps_gain": "warning"} | also
    assert levels([white(100, **once), white(94, **twice)]) == also
    assert levels([white(100), white(93, **twice)]) == {}  # not half the steps
    other = white(90, route="surrogate")
    assert levels([white(100, **once), white(93, **twice), other]) == {"more_steps_gain": "note"} | also


@pytest.mark.parametrize(("right", "words"), [(97, "break 3 more of 200"), (100, "break 0 more"), (101, "1 fewer of")])
def test_what_twice_the_steps_gain_is_always_told(right, words, white):
    cells = [white(100, params={"steps": 20}), white(right, params={"steps": 40}, variant="twice")]
    found = judge(cells)["convergence"]
    assert words in found.text and "95 % interval" in found.text
    assert found.evidence["gap"] == pytest.approx((100 - right) / N)
    assert found.evidence["low"] < found.evidence["gap"] < found.evidence["high"]
    assert found.cells == (cells[1].record.cell, cells[0].record.cell)


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.1])
def test_the_interval_of_the_gain_covers_the_truth(gain):
    rng = np.random.default_rng(0)
    drawn = rng.choice([-1.0, 0.0, 1.0], p=[0.01, 0.98 - gain, 0.01 + gain], size=(1000, N))
    covered = [low <= gain <= high for low, high in map(masked_gradients._interval, drawn)]
    assert np.mean(covered) > 0.93


def test_a_smaller_ball_that_does_better(white):
    assert levels([white(93, eps=0.1), white(100)]) == {"smaller_ball_beats_larger": "warning"}
    assert levels([white(94, eps=0.1), white(100)]) == {}
    assert levels([white(93, eps=0.1), white(100), white(80, route="bpda")]) == {"smaller_ball_beats_larger": "note"}
    assert levels([white(93, "fgsm", eps=0.1), white(100, "fgsm")]) == {}


def test_shares_of_random_defenses_are_compared_too(white, cell):
    rng = np.random.default_rng(0)
    right = rng.binomial(20, 0.7, N) / 20
    black = {"track": "query", "attack": "square", "eps": 0.3, "draws": 20}
    assert "black_box_beats_white_box" not in judge([white(right), cell(rng.binomial(20, 0.7, N) / 20, **black)])
    assert "black_box_beats_white_box" in judge([white(right), cell(rng.binomial(20, 0.6, N) / 20, **black)])


# ---------------------------------------------------------------------------------------------- wide, jitter, drift


def test_survivors_in_a_wide_ball(white):
    """Chance .1 and a margin of .05: 42 of 200 or more have p < .01."""
    wide = {"eps": 0.5, "variant": "wide"}
    least = int(stats.binom.isf(T.p, N, 0.1 + T.chance)) + 1
    assert levels([white(least + 1, **wide)]) == {"wide_ball_survivors": "warning"}
    assert levels([white(least - 1, **wide)]) == {}
    assert levels([white(N, **wide), white(0, route="bpda", **wide)]) == {}


def test_survivors_of_a_random_defense_in_a_wide_ball(white):
    """Shares add up: 42 whole images, in tenths, are as good as 42 right ones."""
    wide = {"eps": 0.5, "variant": "wide", "card": {"stochastic": True}, "draws": 20}
    least = int(stats.binom.isf(T.p, N, 0.1 + T.chance)) + 1
    for sum_of_shares, warns in ((least + 0.5, True), (least - 0.5, False)):
        shares = np.full(N, sum_of_shares / N)
        assert ("wide_ball_survivors" in levels([white(shares, **wide)])) == warns
        assert "wide_ball_survivors" not in levels([white(shares, **wide), white(0, route="bpda", **wide)])


def test_in_a_wide_ball_failure_hides_no_survivors(white):
    wide = {"eps": 0.5, "variant": "wide"}
    through = [white(N, **wide), white(N, route="bpda", **wide)]
    for error in (RAISED, IN_ATTACK):  # the other route has an answer
        assert "wide_ball_survivors" in levels([through[0], failing(through[1], N, error)])
    assert "wide_ball_survivors" in levels([failing(one, 150, NAN) for one in through])
    assert "wide_ball_survivors" not in levels([failing(white(0, **wide), 150, NAN)])
    assert levels([failing(white(N, **wide), N, RAISED)]) == {"failed_cells": "note"}


@pytest.mark.parametrize(("attack", "lost", "warns"), [("shift", 10, False), ("shift", 30, True), ("rotate", 30, True)])
def test_jitter_that_hurts_the_defense_alone(attack, lost, warns, cell):
    cells, baseline = [cell(N), cell(N - 20 - lost, attack=attack)], [cell(N), cell(N - 20, attack=attack)]
    assert levels(cells, baseline) == ({"jitter": "warning"} if warns else {})
    assert levels(cells) == levels(cells, baseline[:1]) == {}


def test_jitter_is_compared_on_the_images_that_both_have(cell):
    cells, baseline = [cell(50, n=50), cell(30, n=50, attack="shift")], [cell(N), cell(N - 10, attack="shift")]
    assert levels(cells, baseline) == {"jitter": "warning"}


def shown(one: Cell, away: int, left, given_back: int = 8) -> Cell:
    """The cell with eight exhibits, attacked by `away` levels; the first ones are purified but for `left` levels."""
    clean = np.full((8, 1, 2, 2), 100, np.uint8)
    purified = clean + np.where(np.arange(8) < given_back, left, 90).astype(np.uint8)[:, None, None, None]
    return replace(one, outcomes=replace(one.outcomes, exhibits=np.stack([clean, clean + np.uint8(away), purified])))


@pytest.mark.parametrize(("given_back", "warns"), [(4, False), (5, True)])
def test_clean_images_given_back(given_back, warns, cell):
    noise = cell(N, attack="uniform_noise", eps=0.1)
    assert levels([shown(noise, 10, 0, given_back)]) == ({"gives_back_clean_images": "warning"} if warns else {})
    assert levels([shown(noise, 9, 0, given_back)]) == {}


@pytest.mark.parametrize(
    ("away", "left", "warns"), [(10, 3, True), (10, 4, False), (76, 19, True), (76, 20, False), (76, 76, False)]
)
def test_clean_images_given_back_with_noise(away, left, warns, cell):
    noise = cell(N, attack="uniform_noise", eps=0.3)
    assert ("gives_back_clean_images" in levels([shown(noise, away, left)])) == warns
    moved = cell(N, attack="shift")  # of any size: there only the levels count
    assert ("gives_back_clean_images" in levels([shown(moved, away, left)])) == (left <= masked_gradients.NEAR)


def test_one_large_error_in_an_image_is_a_reconstruction(cell):
    noise = shown(cell(N, attack="uniform_noise", eps=0.3), 76, 0)
    noise.outcomes.exhibits[2, :, 0, 0, 0] += 30  # a mean of 7 levels
    assert levels([noise]) == {}


@pytest.mark.parametrize(("disagree", "warns"), [(1, True), (2, False)])
def test_a_defense_whose_draws_agree_is_hardly_random(disagree, warns, white, cell):
    random = {"card": {"stochastic": True}, "draws": 20}
    shares = np.where(np.arange(N) < disagree, 0.95, np.arange(N) < 100)
    cells = [cell(N, **random), white(shares, **random)]
    assert levels(cells) == {"random": "note"} | ({"hardly_random": "warning"} if warns else {})
    assert levels(cells[:1]) == {"random": "note"}  # nobody attacked it yet
    few = np.arange(N) < T.random_images - 1
    assert levels([cells[0], white(shares, attacked=few, **random)]) == {"random": "note"}
    assert "hardly_random" not in levels([cell(N), white(100)])


def test_draws_that_fail_do_not_make_a_defense_random(white):
    one = white(np.full(N, 0.9), card={"stochastic": True}, draws=20)
    assert "hardly_random" not in levels([one])
    one.outcomes.margin[:] = np.nan
    assert "hardly_random" in levels(
        [replace(one, record=one.record.model_copy(update={"status": "failed", "error": NAN}))]
    )


def test_a_random_defense_that_drifts(cell):
    rng = np.random.default_rng(0)
    chance = rng.beta(8, 1, N)
    first, same, worse = (rng.binomial(20, p) / 20 for p in (chance, chance, chance - 0.08 * (chance > 0.1)))
    card = {"card": {"stochastic": True}, "draws": 20}
    assert levels([cell(first, **card), cell(same, variant="again", **card)]) == {"random": "note"}
    assert levels([cell(first, **card), cell(worse, variant="again", **card)])["drift"] == "warning"
    assert levels([cell(worse, **card), cell(first, variant="again", **card)])["drift"] == "warning"


# ---------------------------------------------------------------------------------------------- notes


def test_bpda_that_is_weaker_is_a_note(white):
    assert levels([white(93), white(100, route="bpda")]) == {"bpda_is_weaker": "note"}
    assert levels([white(94), white(100, route="bpda")]) == {}


def test_noise_that_hurts_as_much_as_the_attack_is_a_note(white, cell):
    def noise(right):
        return cell(right, attack="uniform_noise", eps=0.3)

    assert levels([cell(N), noise(152), white(150)]) == {"noise_is_as_strong": "note"}
    assert levels([cell(N), noise(153), white(150)]) == {}
    assert levels([cell(N), noise(191), white(191)]) == {}  # neither costs 5 points


def test_facts_from_the_card_and_the_budget(cell, white):
    card = {"stochastic": True, "trained_on": "PGD"}
    cells = [cell(N, card=card, budget="search", units=5200.0, draws=20), white(150, card=card, params={"eot": 4})]
    found = judge(cells)
    assert {rule: verdict.level for rule, verdict in found.items()} == dict.fromkeys(
        ("random", "reduced_budget", "trained_on_attacks"), "note"
    )
    assert found["random"].evidence == {"eot": 4, "draws": 20}
    assert "5,200" in found["reduced_budget"].text and "PGD" in found["trained_on_attacks"].text


@pytest.mark.parametrize("trained_on", ["nothing", "clean images", "clean images with noise"])
def test_training_on_clean_images_is_worth_no_word(trained_on, cell):
    assert levels([cell(N, card={"trained_on": trained_on})]) == {}


def test_breaches_come_first_and_notes_last(cell, white):
    cells = [cell(N, status="failed", error="not built: x"), white(93, "fgsm"), white(100, "apgd_ce")]
    found = verdicts.verdicts(cells, [], TINY)
    assert [verdict.level for verdict in found] == ["breach", "warning", "note"]


# ---------------------------------------------------------------------------------------------- calibration


class Simulated:
    """A run of the quick protocol's cells: images of common difficulty, attacks whose strength decides alone.

    Image i is right under an attack with probability sigmoid(hardness_i - strength), each attack with its own luck; a
    random defense's shares are binomial over 20 draws. All white-box attacks and all black-box attacks of one radius
    are equally strong: the hardest honest case, as every difference is luck.
    """

    def __init__(self, rng, cell, white, *, n=N, random=False, spread=1.5) -> None:
        self.rng, self.cell, self.white, self.random = rng, cell, white, random
        self.hardness = rng.normal(0, spread, n)
        self.card = {"card": {"stochastic": True}, "draws": 20} if random else {}

    def right(self, strength: float, first: int | None = None):
        chance = 1 / (1 + np.exp(strength - self.hardness))
        drawn = self.rng.binomial(20, chance) / 20 if self.random else self.rng.random(len(chance)) < chance
        if first is None:
            return {"right": drawn.astype(float), **self.card}
        return {"right": drawn.astype(float), "attacked": np.arange(len(chance)) < first, **self.card}

    def cells(self, *, query=0.0, transfer=0.0, single=0.0, twice=0.0, blocked=0.0, wide=-9.0, jitter=0.0, gain=0.0):
        n = len(self.hardness)
        clean = -6.0
        cells = [self.cell(**self.right(clean))]
        moved = cells[0].outcomes.correct * (self.rng.random(n) >= jitter)
        for attack in ("shift", "rotate"):
            cells.append(self.cell(moved, attack=attack, **self.card))
        if self.random:
            cells.append(self.cell(variant="again", **self.right(clean)))
        for eps, strength in ((0.1, -1.0 - gain), (0.3, 1.0 - gain)):
            steps = {"eps": eps, "params": {"steps": 20}, "blocked": blocked}
            cells.append(self.white(attack="fgsm", **self.right(strength + single), **(steps | {"params": {}})))
            for route in ROUTES:
                for attack in ("apgd_ce", "apgd_margin"):
                    cells.append(self.white(attack=attack, route=route, **self.right(strength), **steps))
            doubled = steps | {"variant": "twice", "params": {"steps": 40}}
            cells.append(self.white(**self.right(strength + twice), **doubled))
            cells.append(self.cell(track="query", attack="square", eps=eps, **self.right(strength + query)))
            for source in ("identity", "identity_vae", "pgd_training"):
                facts = {"track": "transfer", "attack": "apgd_margin", "eps": eps, "source": source}
                cells.append(self.cell(**facts, **self.right(strength + transfer)))
        for route in ROUTES[:2]:
            chance = 1 / (1 + np.exp(-wide - self.rng.normal(0, 1, n)))
            survives = self.rng.binomial(20, chance) / 20 if self.random else self.rng.random(n) < chance
            cells.append(self.white(survives, eps=0.5, variant="wide", route=route, **self.card))
        return cells


def with_failures(rng, cells: list[Cell]) -> list[Cell]:
    """The cells, had the defense failed on a chunk of images in one of three, and on single images in another third."""
    found = []
    for one in cells:
        n, kind = len(one.outcomes.correct), rng.integers(3)
        first = rng.integers(n)
        chunk = (np.arange(n) >= first) & (np.arange(n) < first + 64)
        where, error = ((rng.random(n) < 0.01, NAN), (chunk, rng.choice([RAISED, IN_ATTACK])))[kind % 2]
        found.append(failing(one, where, str(error)) if kind < 2 else one)
    return found


def warnings(cells, baseline) -> set[str]:
    return {verdict.rule for verdict in verdicts.verdicts(cells, baseline, TINY) if verdict.level == "warning"}


def alone(rng, cell, white):
    """The classifier without a defense: broken at .3, and jitter costs it 2 points."""
    world = Simulated(rng, cell, white)
    return world.cells(gain=-8.0, jitter=0.02)


@pytest.mark.parametrize(
    ("random", "n", "fails"), [(False, 200, False), (False, 200, True), (False, 100, False), (True, 64, False)]
)
def test_honest_runs_raise_a_warning_in_at_most_one_of_twenty(random, n, fails, cell, white):
    """Every comparison is between equals, and the jitter's true cost lies just below its threshold."""
    rng = np.random.default_rng(n + random)
    baseline, alarms, runs = alone(rng, cell, white), 0, 60
    for _ in range(runs):
        spread = rng.choice([0.5, 1.5, 4.0])
        world = Simulated(rng, cell, white, n=n, random=random, spread=spread)
        cells = world.cells(jitter=0.04, gain=rng.normal(), wide=-3.0)
        alarms += bool(warnings(with_failures(rng, cells) if fails else cells, baseline))
    assert alarms <= 0.05 * runs


MASKERS = {
    "blocked_gradient": {"blocked": 0.6, "gain": 1.0},
    "black_box_beats_white_box": {"query": 1.5},
    "single_step_beats_many": {"single": 1.5},
    "more_steps_gain": {"twice": 2.0},
    "wide_ball_survivors": {"wide": 1.0},
    "jitter": {"jitter": 0.2},
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("rule", MASKERS)
def test_simulated_maskers_are_caught_in_nineteen_of_twenty_runs(rule, fails, cell, white):
    """Even those that fail on one image in every cell."""
    rng = np.random.default_rng(1)
    baseline, caught, runs = alone(rng, cell, white), 0, 40
    for _ in range(runs):
        cells = Simulated(rng, cell, white).cells(**MASKERS[rule])
        caught += rule in warnings([failing(one, 1, NAN) for one in cells] if fails else cells, baseline)
    assert caught >= 0.95 * runs


def test_survivors_in_the_wide_ball_and_draws_that_agree_catch_a_random_masker(cell, white):
    rng = np.random.default_rng(3)
    baseline, caught, runs = alone(rng, cell, white), {"wide_ball_survivors": 0, "hardly_random": 0}, 40
    for _ in range(runs):
        world = Simulated(rng, cell, white, n=64, random=True)
        survivors = warnings(world.cells(wide=1.0), baseline)
        world.random = False  # though its card says otherwise
        agreeing = warnings(world.cells(), baseline)
        for rule, found in (("wide_ball_survivors", survivors), ("hardly_random", agreeing)):
            caught[rule] += rule in found
    assert min(caught.values()) >= 0.95 * runs


def test_transferred_images_catch_a_random_masker(cell, white):
    rng = np.random.default_rng(2)
    baseline, caught, runs = alone(rng, cell, white), 0, 40
    for _ in range(runs):
        cells = Simulated(rng, cell, white, n=100, random=True).cells(transfer=1.0)
        caught += "black_box_beats_white_box" in warnings(cells, baseline)
    assert caught >= 0.95 * runs
