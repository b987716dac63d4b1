"""The warnings of bench.verdicts: signs that an accuracy under attack is an upper bound. Nothing here imports torch.

Each rule yields at most one verdict of a name; their numbers are in `bench.protocol.Thresholds`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy import stats

from bench import statistics
from bench.evidence import (
    SLACK,
    Case,
    Pair,
    Verdict,
    at_radius,
    compared,
    gaps_of,
    has_facts,
    in_words,
    judged_by,
    named_attack,
    names_of,
    paired,
    radii_of,
    striking_pairs,
    unanswered,
)
from bench.paired_tests import Array, holm, sign_flip
from bench.record import Cell

LEVELS = 10  # of 255, by which an attacked image certainly is another
MANY_STEPS = ("apgd_ce", "hurried_apgd_ce")  # that raise the loss of FGSM's one step
NEAR = 3  # of 255, within which a purified image is the clean one


def _blocked_gradient(case: Case) -> Iterator[Verdict]:
    shares: dict[str, float] = {}
    evidence: list[Cell] = []
    cold = [cell for cell in case.white(norm="linf") if cell.record.blocked is not None]
    for route in dict.fromkeys(cell.record.route for cell in cold):
        mine = [cell for cell in cold if cell.record.route == route]
        least = [min(at_radius(mine, eps), key=lambda cell: cell.record.blocked or 0) for eps in radii_of(mine)]
        worst = max(least, key=lambda cell: cell.record.blocked or 0)  # over radii, of the least blocked loss
        shares[route] = worst.record.blocked or 0.0
        evidence.append(worst)
    if not shares.get("autograd", 0) > case.t.blocked:
        return
    everywhere = all(share > case.t.blocked for share in shares.values())
    gains = _gains(case, radii_of(cold))  # with a route that has gradients, what holds in the largest ball decides
    radius, claim = max(gains if everywhere else gains[-1:], key=lambda one: one[1], default=(0.0, None))
    warns = everywhere if claim is None else claim > case.t.claim
    text = (
        f"Along autograd {shares['autograd']:.0%} of the gradients taken at images not yet broken are of no use"
        f"{', and every other route is blocked, too' if everywhere and len(shares) > 1 else ''}; "
    )
    if claim is None:
        text += "how the classifier alone fares is not in the records."
    else:
        text += f"in the worst case {claim:+.1%} of the images hold against the classifier alone at Linf {radius:g}."
    numbers = {f"blocked_{route}": share for route, share in shares.items()} | {"blocked_threshold": case.t.blocked}
    numbers |= {} if claim is None else {"claim": claim, "claim_threshold": case.t.claim}
    yield Verdict("blocked_gradient", "warning" if warns else "note", text, numbers, names_of(evidence))


def _gains(case: Case, radii: Sequence[float]) -> list[tuple[float, float]]:
    """What the defense claims: each Linf radius, and there its worst-case accuracy less that of the classifier alone.

    Empty where a clean cell is missing.
    """
    if case.clean("none") is None or case.clean("none", baseline=True) is None:
        return []
    ours = statistics.robustness(case.cells, "linf", radii)[1:]
    bare = statistics.robustness(case.baseline, "linf", radii)[1:]
    n = min(ours.shape[1], bare.shape[1])
    return [(eps, float(gain)) for eps, gain in zip(radii, (ours[:, :n] - bare[:, :n]).mean(axis=1), strict=True)]


def _black_box(case: Case) -> Iterator[Verdict]:
    nearest = []
    for cell in case.cells:
        record = cell.record
        ignores = record.track == "white_box" != case.knowing  # the detector
        if (ignores or record.track in ("gray_box", "transfer", "query")) and record.eps is not None:
            pairs = [paired(cell, white) for white in case.white(norm=record.norm, eps=record.eps)]
            present = [pair for pair in pairs if pair is not None]
            if present:  # it must beat all of them: the largest p decides
                nearest.append(max(present, key=lambda pair: (pair.p, -pair.gap)))
    striking = striking_pairs(nearest, case.t)
    if striking:
        yield compared("black_box_beats_white_box", striking, case.t, "white-box gradients lead nowhere near it")


def _single_step(case: Case) -> Iterator[Verdict]:
    pairs = []
    for one in case.white(attack="fgsm"):
        same = {name: getattr(one.record, name) for name in ("route", "norm", "eps")}
        for attack in MANY_STEPS:
            pairs += [paired(one, many) for many in case.white(attack=attack, **same)]
    yield from _unless_reached("single_step_beats_many", pairs, case, "more steps go astray")


def _more_steps(case: Case) -> Iterator[Verdict]:
    pairs = []
    for twice in (cell for cell in case.cells if has_facts(cell, {"track": case.knowing, "variant": "twice"})):
        same = {name: getattr(twice.record, name) for name in ("attack", "route", "norm", "eps")}
        half = int(twice.record.params.get("steps", 0)) // 2
        for once in (cell for cell in case.white(**same) if cell.record.params.get("steps") == half):
            pairs.append(paired(twice, once))
    yield from _unless_reached("more_steps_gain", pairs, case, "the attack has not converged")
    present = [pair for pair in pairs if pair is not None]
    if present:
        pair = max(present, key=lambda pair: pair.gap)
        more, (low, high) = pair.gap * pair.images, _interval(gaps_of(pair.low, pair.high))
        text = (
            f"Twice the steps break {abs(more):.3g} {'more' if more > -SLACK else 'fewer'} of {pair.images} images "
            f"({pair.gap:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}) under {named_attack(pair.high)}"
            f"{f', the most of {len(present)} such pairs' if len(present) > 1 else ''}."
        )
        evidence = {"gap": pair.gap, "low": low, "high": high, "images": pair.images, "pairs": len(present)}
        yield Verdict("convergence", "note", text, evidence, names_of((pair.low, pair.high)))


def _interval(gaps: Array) -> tuple[float, float]:
    """95 % of the mean of `gaps` (n,) in [-1, 1]: Agresti and Min's, who add half an image to each of four cells."""
    n, total = len(gaps) + 2, float(gaps.sum())
    half = float(stats.norm.ppf(0.975)) * math.sqrt(float((gaps**2).sum()) + 1 - total**2 / n) / n
    return max(-1.0, total / n - half), min(1.0, total / n + half)


def _smaller_ball(case: Case) -> Iterator[Verdict]:
    series: dict[object, list[Cell]] = defaultdict(list)
    for cell in case.white():
        if cell.record.eps is not None and cell.record.attack != "fgsm":  # one large step may well overshoot
            r = cell.record
            series[r.attack, r.route, r.norm, r.variant, tuple(sorted(r.params.items()))].append(cell)
    pairs = []
    for cells in series.values():
        pairs += [
            paired(small, large) for small, large in pairwise(sorted(cells, key=lambda cell: cell.record.eps or 0))
        ]
    yield from _unless_reached("smaller_ball_beats_larger", pairs, case, "a larger ball contains the smaller one")


def _unless_reached(rule: str, pairs: Iterable[Pair | None], case: Case, meaning: str) -> Iterator[Verdict]:
    """A warning for striking pairs; a note if at every one some cold white-box attack does as well as the stronger."""
    striking = striking_pairs(pairs, case.t)

    def reached(pair: Pair) -> bool:
        others = case.white(norm=pair.high.record.norm, eps=pair.high.record.eps)
        rivals = [paired(other, pair.low) for other in others if other is not pair.low]
        return any(rival is not None and rival.low_accuracy <= rival.high_accuracy for rival in rivals)

    unmatched = [pair for pair in striking if not reached(pair)]
    if unmatched:
        yield compared(rule, unmatched, case.t, meaning)
    elif striking:
        yield compared(rule, striking, case.t, "but another white-box attack does as well", level="note")


def _wide_ball(case: Case) -> Iterator[Verdict]:
    wide = [cell for cell in case.cells if has_facts(cell, {"track": case.knowing, "variant": "wide"})]
    judged = [judged_by(cell) for cell in wide]
    if not wide or not any(mask.any() for mask in judged):
        return
    shares = [np.where(mask, cell.outcomes.correct, np.inf) for cell, mask in zip(wide, judged, strict=True)]
    least = np.min(shares, axis=0).astype(np.float64)  # where one route has no answer, another may have
    failed = np.logical_or.reduce([unanswered(cell) & judged_by(cell) for cell in wide])  # at no cost, so far away
    right = least[(least <= 1) & ~failed & np.logical_and.reduce([cell.outcomes.attacked for cell in wide])]
    if not len(right):
        return
    n, accuracy = len(right), float(right.mean())
    chance = 1 / (1 + int(wide[0].outcomes.label.max()))
    p = float(stats.binom.sf(math.floor(right.sum() + SLACK) - 1, n, chance + case.t.chance))  # shares vary less
    if p < case.t.p:
        text = (
            f"In a Linf ball of {wide[0].record.eps:g}, where every image can become any other, {accuracy:.1%} of "
            f"{n} images stay right; chance is {chance:.1%}."
        )
        evidence = {"accuracy": accuracy, "chance": chance, "margin_threshold": case.t.chance, "p": p,
                    "p_threshold": case.t.p, "images": n}  # fmt: skip
        yield Verdict("wide_ball_survivors", "warning", text, evidence, names_of(wide))


def _jitter(case: Case) -> Iterator[Verdict]:
    found = []
    for name in ("shift", "rotate"):
        four = [case.clean(attack, baseline=bare) for bare in (False, True) for attack in ("none", name)]
        if any(cell is None for cell in four):
            continue
        present = [cell for cell in four if cell is not None]
        n = min(len(cell.outcomes.correct) for cell in present)
        judged = np.logical_and.reduce([judged_by(cell)[:n] for cell in present])
        if not (n := int(judged.sum())):
            continue
        ours, ours_moved, bare, bare_moved = (
            cell.outcomes.correct[: len(judged)][judged].astype(np.float64) for cell in present
        )
        extra = (ours - ours_moved) - (bare - bare_moved)
        loses = (float((ours - ours_moved).mean()), float((bare - bare_moved).mean()))
        found.append((sign_flip(extra - case.t.jitter), name, loses, n, present))
    fallen = holm([p for p, *_ in found], case.t.p)
    striking = [one for one, falls in zip(found, fallen, strict=True) if falls]
    if striking:
        p, name, (lost, bare_lost), n, present = min(striking, key=lambda one: one[0])
        text = (
            f"A small {'rotation' if name == 'rotate' else name} of clean images costs the defense {lost:.1%} of {n} "
            f"images and the classifier alone {bare_lost:.1%}: it may know its images by heart."
        )
        evidence = {"loss": lost, "loss_alone": bare_lost, "loss_threshold": case.t.jitter, "p": p,
                    "p_threshold": case.t.p, "images": n}  # fmt: skip
        yield Verdict("jitter", "warning", text, evidence, names_of(present[:2]))


def _given_back(case: Case) -> Iterator[Verdict]:
    found = []
    for cell in case.cells:
        clean, attacked, purified = cell.outcomes.exhibits.astype(np.int16)  # (E, C, H, W)
        moved, left = (np.abs(images - clean).max(axis=(1, 2, 3), initial=0) for images in (attacked, purified))
        other = (moved >= LEVELS) & ~unanswered(cell)[: len(moved)]
        same = left <= (np.maximum(NEAR, moved / 4) if cell.record.norm == "linf" else NEAR)
        if other.sum() >= 4:
            found.append((float(same[other].mean()), int(other.sum()), int(left[other & same].max(initial=0)), cell))
    if found:
        share, n, left_over, cell = max(found, key=lambda one: one[0])
        if share > 0.5:
            text = (
                f"Under {named_attack(cell)} {share:.0%} of {n} exhibits are purified to the clean image, "
                f"{f'but for {left_over} of 255 levels' if left_over else 'to the last bit'}."
            )
            evidence = {"share": share, "share_threshold": 0.5, "images": n, "levels": left_over}
            yield Verdict("gives_back_clean_images", "warning", text, evidence, names_of([cell]))


def _hardly_random(case: Case) -> Iterator[Verdict]:
    shares: list[tuple[float, int, Cell]] = []
    for cell in case.cells:
        judged = judged_by(cell)
        if cell.record.card.stochastic and cell.record.draws > 1 and not cell.record.cascade:
            right, sound = cell.outcomes.correct, ~np.isnan(cell.outcomes.margin)  # a failed draw is no disagreement
            if (n := int(judged.sum())) >= case.t.random_images:
                shares.append((float(((right > 0) & (right < 1) & sound)[judged].mean()), n, cell))
    if not any(cell.record.track == case.knowing for *_, cell in shares):
        return
    share, n, cell = max(shares, key=lambda one: one[0])
    if share < case.t.random - SLACK:
        text = (
            f"Measured with the reduced effort of a random defense although its draws agree: in none of {len(shares)} "
            f"cells do they differ on more than {share:.1%} of the images."
        )
        evidence = {"share": share, "share_threshold": case.t.random, "images": n, "cells": len(shares)}
        yield Verdict("hardly_random", "warning", text, evidence, names_of([cell]))


def _drift(case: Case) -> Iterator[Verdict]:
    first, again = case.clean("none"), case.clean("none", "again")
    if first is None or again is None or not first.record.card.stochastic:
        return
    gaps = gaps_of(again, first)
    if not len(gaps):
        return
    gap, p = float(gaps.mean()), min(1.0, 2 * min(sign_flip(gaps), sign_flip(-gaps)))
    if abs(gap) >= case.t.gap - SLACK and p < case.t.p:
        often = f"{abs(gap):.1%} {'less' if gap > 0 else 'more'} often"
        text = (
            f"The same {len(gaps)} clean images, scored again, are right {often} ({in_words(p)}): the defense is not "
            "the same from look to look."
        )
        evidence = {"gap": gap, "p": p, "gap_threshold": case.t.gap, "p_threshold": case.t.p, "images": len(gaps)}
        yield Verdict("drift", "warning", text, evidence, names_of((first, again)))


ALL: tuple[Callable[[Case], Iterator[Verdict]], ...] = (
    _blocked_gradient, _black_box, _single_step, _more_steps, _smaller_ball, _wide_ball, _jitter, _given_back,
    _hardly_random, _drift,
)  # fmt: skip
