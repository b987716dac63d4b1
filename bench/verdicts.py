"""Is this robustness or masked gradients? Numeric rules over the cells of one defense; nothing here imports torch.

A breach says that a defense was not evaluated, a warning that its accuracy under attack may be an upper bound only, a
note is for information. The rules are those of Athalye et al. (2018, arXiv:1802.00420) and Carlini et al. (2019,
arXiv:1902.06705), each with its numbers in `bench.protocol.Thresholds`. A rule whose cells are missing says nothing.
Cells of a cascade attack only what others left over: they enter the worst case and no comparison.

A cell in which the defense failed is evidence, too, for failure never helps: an answer that is not a number, or a
purified image out of [0, 1], is a wrong answer here as in every score (else a defense would hide what an attack without
gradients breaks behind answers that are not numbers). Only in the wide ball, where failure costs no accuracy, it is
left out. Where the defense or its gradient raised there is no answer at all: those images are left out, for they tell
neither that an attack is strong nor that it is weak. No evidence are void cells and those of a breach.
"""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special, stats

from bench import statistics
from bench.protocol import Protocol, Thresholds
from bench.record import Cell

Level = Literal["breach", "warning", "note"]
Array = NDArray[np.float64]
LEVELS = 10  # of 255, by which an attacked image certainly is another
NEAR = 3  # of 255, within which a purified image is the clean one
NOT_FINITE = "purified images or logits were not finite, or left [0, 1]"  # all that such a cell's record says
VOID = "it is not one function"
SLACK = 1e-6  # on differences of accuracies, whose shares are float32

_T = Thresholds()
_PAIRED = f"by at least {_T.gap:.0%} of the same images with p < {_T.p:g} (paired, one-sided, Holm over the rule)"
RULES: Mapping[str, str] = MappingProxyType(
    {
        "contract": "Breach: the defense breaks the contract, so it is not evaluated.",
        "unusable": "Breach: the defense could not be built or trained.",
        "blocked_gradient": (
            f"Warning: along autograd more than {_T.blocked:.0%} of the looks at unbroken images give a gradient that "
            "is zero, missing or not finite, under every loss, and the worst case stays more than "
            f"{_T.claim:.0%} of all images above the classifier alone: at the largest cold radius, or at any where the "
            "other routes are blocked, too. A note where the defense is broken all the same."
        ),
        "black_box_beats_white_box": (
            "Warning: an attack without the defense's gradient (gray box, transfer or query) leaves fewer images right "
            f"than every cold white-box attack of the same radius, {_PAIRED}."
        ),
        "single_step_beats_many": (
            "Warning: one white-box step leaves fewer images right than many with the same loss and route, "
            f"{_PAIRED}. A note where another cold white-box attack does as well as the one step."
        ),
        "more_steps_gain": (
            f"Warning: twice the steps leave fewer images right, {_PAIRED}. A note where another cold white-box attack "
            "does as well as twice the steps."
        ),
        "smaller_ball_beats_larger": (
            "Warning: a white-box attack of many steps leaves fewer images right than in the next larger ball, "
            f"{_PAIRED}. A note where another cold white-box attack does as well in the larger ball."
        ),
        "wide_ball_survivors": (
            "Warning: in a ball in which every image can become any other, the accuracy exceeds 1 / classes by more "
            f"than {_T.chance:.0%} with p < {_T.p:g} (binomial on the sum of the images' shares), whatever the route."
        ),
        "jitter": (
            "Warning: a shift by one pixel or a rotation by five degrees costs more than "
            f"{_T.jitter:.0%} beyond what it costs the classifier alone, p < {_T.p:g} (paired, one-sided, Holm)."
        ),
        "gives_back_clean_images": (
            f"Warning: of a cell's exhibits, attacked by {LEVELS} of 255 levels or more, over half are purified to the "
            f"clean image but for {NEAR} levels in any pixel, in a Linf ball a quarter of what the attack changed: no "
            "reconstruction is so good, the defense has the image in store."
        ),
        "hardly_random": (
            "Warning: the defense is said to be random, but in every cold cell of "
            f"{_T.random_images} images or more, one of them white-box, its draws disagree on less than "
            f"{_T.random:.0%} of the images: it was measured with the reduced effort of a random defense for nothing."
        ),
        "drift": (
            "Warning, for random defenses: the same clean images, scored again, give an accuracy that differs by at "
            f"least {_T.gap:.0%} with p < {_T.p:g} (paired, two-sided)."
        ),
        "two_functions": (
            "Warning: in a cell of a deterministic defense more than 0.5% of the images are wrong under attack and "
            "right when scored; the cell is void."
        ),
        "failed_cells": "Note: the defense failed in a cell; the images on which it did count as wrong.",
        "convergence": (
            "Note: how many more images twice the steps break, with a 95 % interval (paired, normal, half an "
            "image added to each of four counts); the test of `more_steps_gain` sees only large gains on few images."
        ),
        "bpda_is_weaker": (
            f"Note: BPDA with the identity or the defense's stand-in leaves more images right than autograd, {_PAIRED}."
        ),
        "noise_is_as_strong": (
            f"Note: uniform noise costs at least {_T.noise:.0%} and leaves at most {_T.gap:.0%} more images right than "
            "the strongest cold white-box attack of the same radius."
        ),
        "random": "Note: the defense is random; attacks and scores average over draws.",
        "reduced_budget": (
            "Note: a purification costs more than 20 forward and backward passes of the classifier, so the protocol "
            "attacks with less effort: the accuracy is an upper bound."
        ),
        "trained_on_attacks": "Note: by its card the defense was trained on more than clean images.",
    }
)


@dataclass(frozen=True)
class Verdict:
    """What one rule of RULES found.

    `text` is a sentence for the reader of the board, `evidence` the numbers that the rule compared and its thresholds,
    `cells` the names of the cells that they come from.
    """

    rule: str
    level: Level
    text: str
    evidence: Mapping[str, float]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class _Case:
    """What the rules look at: cells of the defense and of the classifier alone that are evidence, and all `given`."""

    given: Sequence[Cell]
    cells: Sequence[Cell]
    baseline: Sequence[Cell]
    t: Thresholds

    @cached_property
    def knowing(self) -> str:
        """The track whose attackers know everything: past a detector one that ignores it counts among the blind."""
        return "rejection" if any(cell.record.track == "rejection" for cell in self.cells) else "white_box"

    def white(self, **facts: Any) -> list[Cell]:
        """Cold white-box cells whose records have these facts; wide balls and doubled steps are apart."""
        facts = {"track": self.knowing, **facts}
        return [cell for cell in self.cells if cell.record.variant in ("", "cold") and _has(cell, facts)]

    def clean(self, attack: str, variant: str = "", *, baseline: bool = False) -> Cell | None:
        """The clean cell of `attack`, of the defense or of the baseline."""
        facts = {"track": "clean", "attack": attack, "variant": variant}
        return next((cell for cell in (self.baseline if baseline else self.cells) if _has(cell, facts)), None)


def verdicts(cells: Sequence[Cell], baseline: Sequence[Cell], protocol: Protocol) -> tuple[Verdict, ...]:
    """What the rules say, breaches first; at most one verdict a rule.

    `cells` are those of one defense, one classifier, one protocol and one seed; `baseline` those of the classifier
    without a defense (`identity`), on images that start alike. Without a baseline, what needs it is not said.
    """
    ours, bare = ([cell for cell in some if _counts(cell)] for some in (cells, baseline))
    case = _Case(cells, ours, bare, protocol.thresholds)
    found = [verdict for rule in _ALL for verdict in rule(case)]
    order = list(RULES)
    levels: tuple[Level, ...] = ("breach", "warning", "note")
    return tuple(sorted(found, key=lambda verdict: (levels.index(verdict.level), order.index(verdict.rule))))


def over_seeds(pairs: Iterable[tuple[Sequence[Cell], Sequence[Cell]]], protocol: Protocol) -> tuple[Verdict, ...]:
    """The verdicts of several seeds, each given as its cells and its baseline's; what is said word for word twice is
    said once."""
    found: dict[tuple[str, str], Verdict] = {}
    for cells, baseline in pairs:
        for verdict in verdicts(cells, baseline, protocol):
            found.setdefault((verdict.rule, verdict.text), verdict)
    return tuple(found.values())


# ---------------------------------------------------------------------------------------------- paired tests


def sign_flip(gaps: Array) -> float:
    """The one-sided p-value of a mean above 0, were each of `gaps` (n,) as likely to have the other sign.

    Exact, up to rounding of the gaps to thousandths: for differences of right and wrong it is McNemar's exact test, for
    differences of shares the permutation test of pairs.
    """
    units = np.rint(1000 * gaps).astype(np.int64)
    better, worse, largest = int((units > 0).sum()), int((units < 0).sum()), np.abs(units).max(initial=0)
    if (better + worse) * largest == np.abs(units).sum():  # all differ by as much: coins
        return float(special.bdtrc(better - 1, better + worse, 0.5)) if better else 1.0
    units //= max(1, int(np.gcd.reduce(np.abs(units), initial=0)))
    sizes, counts = np.unique(np.abs(units[units != 0]), return_counts=True)
    return _sign_flip(int(units.sum()), tuple(zip(sizes.tolist(), counts.tolist(), strict=True)))


@functools.lru_cache(maxsize=4096)
def _sign_flip(observed: int, sizes: tuple[tuple[int, int], ...]) -> float:
    """The chance of a sum of `observed` or more, were the signs of gaps of these (size, count) thrown like coins."""
    total = sum(size * count for size, count in sizes)
    length = fft.next_fast_len(2 * total + 1, real=True)
    angles = 2 * np.pi * np.arange(length // 2 + 1) / length
    characteristic = np.ones(len(angles))
    for size, count in sizes:
        characteristic *= np.cos(size * angles) ** count
    chances = fft.irfft(characteristic, length)  # of the sums 0, 1, ..., total, and the negative ones from the end
    upper = float(chances[abs(observed) + (observed <= 0) : total + 1].sum())  # symmetric: the shorter tail is summed
    return float(np.clip(upper if observed > 0 else 1 - upper, 1e-12, 1))  # rounding errors lie below


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses fall at `level` over the whole family (Holm 1979)."""
    fallen = [False] * len(p_values)
    for k, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] >= level / (len(p_values) - k):
            break
        fallen[index] = True
    return fallen


@dataclass(frozen=True)
class _Pair:
    """Two cells on the images that both judge; `p` is that of `low` leaving fewer right than `high` by chance."""

    low: Cell
    high: Cell
    images: int
    failed: int  # those on which the defense gave no sound answer under `low`
    low_accuracy: float
    high_accuracy: float
    p: float

    @property
    def gap(self) -> float:
        return self.high_accuracy - self.low_accuracy


def _pair(low: Cell, high: Cell) -> _Pair | None:
    """None where the two have no image in common, or where on over half of those one of them has no answer."""
    attacked, both = low.outcomes.attacked & high.outcomes.attacked, _judged(low) & _judged(high)
    if not both.any() or 2 * both.sum() < attacked.sum():
        return None
    failed, gaps = int((both & _failed(low)).sum()), _gaps(low, high)
    left, right = (float(cell.outcomes.correct[both].mean(dtype=np.float64)) for cell in (low, high))
    return _Pair(low, high, int(both.sum()), failed, left, right, sign_flip(gaps))


def _gaps(low: Cell, high: Cell) -> Array:
    """By how much more of its draws each image that both judge is right under `high`."""
    both = _judged(low) & _judged(high)
    return high.outcomes.correct[both].astype(np.float64) - low.outcomes.correct[both]


def _striking(pairs: Iterable[_Pair | None], t: Thresholds) -> list[_Pair]:
    """The pairs whose gap is large and significant, the largest gap first."""
    present = [pair for pair in pairs if pair is not None]
    fallen = holm([pair.p for pair in present], t.p)
    kept = [pair for pair, falls in zip(present, fallen, strict=True) if falls and pair.gap >= t.gap - SLACK]
    return sorted(kept, key=lambda pair: -pair.gap)


# ---------------------------------------------------------------------------------------------- breaches and failures


_TOLD = r"(?:under attack: )?(?:RuntimeError: )?((?:{}): .*)"
_BREACHES = {"contract": "breaks the contract", "unusable": "not built|not trained|not measured"}
_BREACH = re.compile(_TOLD.format("|".join(_BREACHES.values())), re.DOTALL)


def _contract(case: _Case) -> Iterator[Verdict]:
    for rule, pattern in _BREACHES.items():
        told = re.compile(_TOLD.format(pattern), re.DOTALL)
        matches = [(cell, told.match(cell.record.error)) for cell in case.given if cell.record.status == "failed"]
        reasons = [(cell, match[1]) for cell, match in matches if match]
        if reasons:
            text = f"Not evaluated: the defense {'is ' if rule == 'unusable' else ''}{reasons[0][1]}"
            yield Verdict(rule, "breach", text, {"cells": len(reasons)}, _names(cell for cell, _ in reasons))


def _failures(case: _Case) -> Iterator[Verdict]:
    failed = [cell for cell in case.given if cell.record.status == "failed"]
    void = [cell for cell in failed if VOID in cell.record.error]
    if void:
        text = (
            f"In {len(void)} of {len(case.given)} cells the defense is wrong under attack and right when scored, "
            f"although it says to be deterministic: {void[0].record.error}."
        )
        yield Verdict("two_functions", "warning", text, {"cells": len(void)}, _names(void))
    if failed:
        text = (
            f"The defense failed in {len(failed)} of {len(case.given)} cells, where those images count as wrong: "
            f"{failed[0].record.error}."
        )
        yield Verdict("failed_cells", "note", text, {"cells": len(failed), "all": len(case.given)}, _names(failed))


# ---------------------------------------------------------------------------------------------- warnings


def _blocked_gradient(case: _Case) -> Iterator[Verdict]:
    shares: dict[str, float] = {}
    evidence: list[Cell] = []
    cold = [cell for cell in case.white(norm="linf") if cell.record.blocked is not None]
    for route in dict.fromkeys(cell.record.route for cell in cold):
        mine = [cell for cell in cold if cell.record.route == route]
        least = [min(_at(mine, eps), key=lambda cell: cell.record.blocked or 0) for eps in _radii(mine)]
        worst = max(least, key=lambda cell: cell.record.blocked or 0)  # over radii, of the least blocked loss
        shares[route] = worst.record.blocked or 0.0
        evidence.append(worst)
    if not shares.get("autograd", 0) > case.t.blocked:
        return
    everywhere = all(share > case.t.blocked for share in shares.values())
    gains = _gains(case, _radii(cold))  # with a route that has gradients, what holds in the largest ball decides
    radius, claim = max(gains if everywhere else gains[-1:], key=lambda one: one[1], default=(0.0, None))
    warns = everywhere if claim is None else claim > case.t.claim
    text = (
        f"Along autograd {shares['autograd']:.0%} of the looks at unbroken images give no usable gradient"
        f"{', and every other route is blocked, too' if everywhere and len(shares) > 1 else ''}; "
    )
    if claim is None:
        text += "how the classifier alone fares is not in the records."
    else:
        text += f"in the worst case {claim:+.1%} of the images hold against the classifier alone at Linf {radius:g}."
    numbers = {f"blocked_{route}": share for route, share in shares.items()} | {"blocked_threshold": case.t.blocked}
    numbers |= {} if claim is None else {"claim": claim, "claim_threshold": case.t.claim}
    yield Verdict("blocked_gradient", "warning" if warns else "note", text, numbers, _names(evidence))


def _gains(case: _Case, radii: Sequence[float]) -> list[tuple[float, float]]:
    """What the defense claims: each Linf radius, and there its worst-case accuracy less that of the classifier alone.

    Empty where a clean cell is missing.
    """
    if case.clean("none") is None or case.clean("none", baseline=True) is None:
        return []
    ours = statistics.robustness(case.cells, "linf", radii)[1:]
    bare = statistics.robustness(case.baseline, "linf", radii)[1:]
    n = min(ours.shape[1], bare.shape[1])
    return [(eps, float(gain)) for eps, gain in zip(radii, (ours[:, :n] - bare[:, :n]).mean(axis=1), strict=True)]


def _black_box(case: _Case) -> Iterator[Verdict]:
    nearest = []
    for cell in case.cells:
        record = cell.record
        ignores = record.track == "white_box" != case.knowing  # the detector
        if (ignores or record.track in ("gray_box", "transfer", "query")) and record.eps is not None:
            pairs = [_pair(cell, white) for white in case.white(norm=record.norm, eps=record.eps)]
            present = [pair for pair in pairs if pair is not None]
            if present:  # it must beat all of them: the largest p decides
                nearest.append(max(present, key=lambda pair: (pair.p, -pair.gap)))
    striking = _striking(nearest, case.t)
    if striking:
        yield _compared("black_box_beats_white_box", striking, case.t, "white-box gradients lead nowhere near it")


def _single_step(case: _Case) -> Iterator[Verdict]:
    pairs = []
    for one in case.white(attack="fgsm"):
        for many in case.white(attack="apgd_ce", route=one.record.route, norm=one.record.norm, eps=one.record.eps):
            pairs.append(_pair(one, many))
    yield from _unless_reached("single_step_beats_many", pairs, case, "more steps go astray")


def _more_steps(case: _Case) -> Iterator[Verdict]:
    pairs = []
    for twice in (cell for cell in case.cells if _has(cell, {"track": case.knowing, "variant": "twice"})):
        same = {name: getattr(twice.record, name) for name in ("attack", "route", "norm", "eps")}
        half = int(twice.record.params.get("steps", 0)) // 2
        for once in (cell for cell in case.white(**same) if cell.record.params.get("steps") == half):
            pairs.append(_pair(twice, once))
    yield from _unless_reached("more_steps_gain", pairs, case, "the attack has not converged")
    present = [pair for pair in pairs if pair is not None]
    if present:
        pair = max(present, key=lambda pair: pair.gap)
        more, (low, high) = pair.gap * pair.images, _interval(_gaps(pair.low, pair.high))
        text = (
            f"Twice the steps break {abs(more):.3g} {'more' if more > -SLACK else 'fewer'} of {pair.images} images "
            f"({pair.gap:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}) under {_called(pair.high)}"
            f"{f', the most of {len(present)} such pairs' if len(present) > 1 else ''}."
        )
        evidence = {"gap": pair.gap, "low": low, "high": high, "images": pair.images, "pairs": len(present)}
        yield Verdict("convergence", "note", text, evidence, _names((pair.low, pair.high)))


def _interval(gaps: Array) -> tuple[float, float]:
    """95 % of the mean of `gaps` (n,) in [-1, 1]: Agresti and Min's, who add half an image to each of four cells."""
    n, total = len(gaps) + 2, float(gaps.sum())
    half = float(stats.norm.ppf(0.975)) * math.sqrt(float((gaps**2).sum()) + 1 - total**2 / n) / n
    return max(-1.0, total / n - half), min(1.0, total / n + half)


def _smaller_ball(case: _Case) -> Iterator[Verdict]:
    series: dict[object, list[Cell]] = defaultdict(list)
    for cell in case.white():
        if cell.record.eps is not None and cell.record.attack != "fgsm":  # one large step may well overshoot
            r = cell.record
            series[r.attack, r.route, r.norm, r.variant, tuple(sorted(r.params.items()))].append(cell)
    pairs = []
    for cells in series.values():
        pairs += [
            _pair(small, large) for small, large in pairwise(sorted(cells, key=lambda cell: cell.record.eps or 0))
        ]
    yield from _unless_reached("smaller_ball_beats_larger", pairs, case, "a larger ball contains the smaller one")


def _unless_reached(rule: str, pairs: Iterable[_Pair | None], case: _Case, meaning: str) -> Iterator[Verdict]:
    """A warning for striking pairs; a note if at every one some cold white-box attack does as well as the stronger."""
    striking = _striking(pairs, case.t)

    def reached(pair: _Pair) -> bool:
        others = case.white(norm=pair.high.record.norm, eps=pair.high.record.eps)
        rivals = [_pair(other, pair.low) for other in others if other is not pair.low]
        return any(rival is not None and rival.low_accuracy <= rival.high_accuracy for rival in rivals)

    unmatched = [pair for pair in striking if not reached(pair)]
    if unmatched:
        yield _compared(rule, unmatched, case.t, meaning)
    elif striking:
        yield _compared(rule, striking, case.t, "but another white-box attack does as well", level="note")


def _compared(rule: str, pairs: Sequence[_Pair], t: Thresholds, meaning: str, level: Level = "warning") -> Verdict:
    pair = pairs[0]
    low, high = pair.low.record, pair.high.record
    text = (
        f"Under {_called(pair.low)} {pair.low_accuracy:.1%} of {pair.images} images stay right, under "
        f"{_called(pair.high)} {pair.high_accuracy:.1%} ({_called_p(pair.p)}"
        f"{f'; on {pair.failed} the defense failed' if pair.failed else ''}"
        f"{f', and {len(pairs) - 1} more such pairs' if len(pairs) > 1 else ''}): {meaning}."
    )
    evidence = {
        "low_accuracy": pair.low_accuracy, "high_accuracy": pair.high_accuracy, "gap": pair.gap, "p": pair.p,
        "images": pair.images, "failed": pair.failed, "pairs": len(pairs), "gap_threshold": t.gap, "p_threshold": t.p,
    }  # fmt: skip
    return Verdict(rule, level, text, evidence, (low.cell, high.cell))


def _wide_ball(case: _Case) -> Iterator[Verdict]:
    wide = [cell for cell in case.cells if _has(cell, {"track": case.knowing, "variant": "wide"})]
    judged = [_judged(cell) for cell in wide]
    if not wide or not any(mask.any() for mask in judged):
        return
    shares = [np.where(mask, cell.outcomes.correct, np.inf) for cell, mask in zip(wide, judged, strict=True)]
    least = np.min(shares, axis=0).astype(np.float64)  # where one route has no answer, another may have
    failed = np.logical_or.reduce([_failed(cell) & _judged(cell) for cell in wide])  # at no cost, so far away
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
        yield Verdict("wide_ball_survivors", "warning", text, evidence, _names(wide))


def _jitter(case: _Case) -> Iterator[Verdict]:
    found = []
    for name in ("shift", "rotate"):
        four = [case.clean(attack, baseline=bare) for bare in (False, True) for attack in ("none", name)]
        if any(cell is None for cell in four):
            continue
        present = [cell for cell in four if cell is not None]
        n = min(len(cell.outcomes.correct) for cell in present)
        judged = np.logical_and.reduce([_judged(cell)[:n] for cell in present])
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
        yield Verdict("jitter", "warning", text, evidence, _names(present[:2]))


def _given_back(case: _Case) -> Iterator[Verdict]:
    found = []
    for cell in case.cells:
        clean, attacked, purified = cell.outcomes.exhibits.astype(np.int16)  # (E, C, H, W)
        moved, left = (np.abs(images - clean).max(axis=(1, 2, 3), initial=0) for images in (attacked, purified))
        other = (moved >= LEVELS) & ~_failed(cell)[: len(moved)]
        same = left <= (np.maximum(NEAR, moved / 4) if cell.record.norm == "linf" else NEAR)
        if other.sum() >= 4:
            found.append((float(same[other].mean()), int(other.sum()), int(left[other & same].max(initial=0)), cell))
    if found:
        share, n, left_over, cell = max(found, key=lambda one: one[0])
        if share > 0.5:
            text = (
                f"Under {_called(cell)} {share:.0%} of {n} exhibits are purified to the clean image, "
                f"{f'but for {left_over} of 255 levels' if left_over else 'to the last bit'}."
            )
            evidence = {"share": share, "share_threshold": 0.5, "images": n, "levels": left_over}
            yield Verdict("gives_back_clean_images", "warning", text, evidence, _names([cell]))


def _hardly_random(case: _Case) -> Iterator[Verdict]:
    shares: list[tuple[float, int, Cell]] = []
    for cell in case.cells:
        judged = _judged(cell)
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
        yield Verdict("hardly_random", "warning", text, evidence, _names([cell]))


def _drift(case: _Case) -> Iterator[Verdict]:
    first, again = case.clean("none"), case.clean("none", "again")
    if first is None or again is None or not first.record.card.stochastic:
        return
    gaps = _gaps(again, first)
    if not len(gaps):
        return
    gap, p = float(gaps.mean()), min(1.0, 2 * min(sign_flip(gaps), sign_flip(-gaps)))
    if abs(gap) >= case.t.gap - SLACK and p < case.t.p:
        often = f"{abs(gap):.1%} {'less' if gap > 0 else 'more'} often"
        text = (
            f"The same {len(gaps)} clean images, scored again, are right {often} ({_called_p(p)}): the defense is not "
            "the same from look to look."
        )
        evidence = {"gap": gap, "p": p, "gap_threshold": case.t.gap, "p_threshold": case.t.p, "images": len(gaps)}
        yield Verdict("drift", "warning", text, evidence, _names((first, again)))


# ---------------------------------------------------------------------------------------------- notes


def _weaker_bpda(case: _Case) -> Iterator[Verdict]:
    pairs = []
    for bpda in case.white(route="bpda"):
        same = {name: getattr(bpda.record, name) for name in ("attack", "norm", "eps", "variant")}
        pairs += [_pair(autograd, bpda) for autograd in case.white(route="autograd", **same)]
    striking = _striking(pairs, case.t)
    if striking:
        yield _compared("bpda_is_weaker", striking, case.t, "the true gradient is the better guide", level="note")


def _noise(case: _Case) -> Iterator[Verdict]:
    clean = case.clean("none")
    for noise in (cell for cell in case.cells if cell.record.attack == "uniform_noise"):
        pairs = [_pair(noise, white) for white in case.white(norm="linf", eps=noise.record.eps)]
        best = min((pair for pair in pairs if pair), key=lambda pair: pair.high_accuracy, default=None)
        if clean is None or best is None or best.gap < -case.t.gap - SLACK:
            continue
        if clean.outcomes.accuracy - noise.outcomes.accuracy >= case.t.noise:
            text = (
                f"Uniform noise in the Linf ball of {noise.record.eps:g} leaves {best.low_accuracy:.1%} of "
                f"{best.images} images right, the strongest white-box attack {best.high_accuracy:.1%}."
            )
            evidence = {
                "noise_accuracy": best.low_accuracy, "attack_accuracy": best.high_accuracy,
                "clean_accuracy": clean.outcomes.accuracy, "gap_threshold": case.t.gap, "loss_threshold": case.t.noise,
            }  # fmt: skip
            yield Verdict("noise_is_as_strong", "note", text, evidence, _names((noise, best.high)))
            return


def _facts(case: _Case) -> Iterator[Verdict]:
    if not case.cells:
        return
    record, card = case.cells[0].record, case.cells[0].record.card
    if card.stochastic:
        eot = max((int(cell.record.params.get("eot", 1)) for cell in case.white()), default=1)
        text = f"The defense is random: each step of an attack averages {eot} draws, each score {record.draws} others."
        yield Verdict("random", "note", text, {"eot": eot, "draws": record.draws}, ())
    if record.budget != "cheap":
        text = (
            f"Upper bound, reduced budget: a purification costs {record.units:,.0f} forward and backward passes of the "
            f"classifier (budget class {record.budget}), so attacks are shorter."
        )
        yield Verdict("reduced_budget", "note", text, {"units": record.units}, ())
    if card.has_seen_attacks:
        yield Verdict("trained_on_attacks", "note", f"Trained on {card.trained_on}, not on clean images alone.", {}, ())


# ---------------------------------------------------------------------------------------------- helpers

_ALL: tuple[Callable[[_Case], Iterator[Verdict]], ...] = (
    _contract, _failures, _blocked_gradient, _black_box, _single_step, _more_steps, _smaller_ball, _wide_ball, _jitter,
    _given_back, _hardly_random, _drift, _weaker_bpda, _noise, _facts,
)  # fmt: skip


def _counts(cell: Cell) -> bool:
    """Whether a cell is evidence: not void, and not one of a breach."""
    failed, error = cell.record.status == "failed", cell.record.error
    return not (failed and (VOID in error or _BREACH.match(error)))


def _failed(cell: Cell) -> NDArray[np.bool_]:
    """The attacked images on which the defense gave no sound answer on the first draw, nor a right one ever, (n,)."""
    outcomes = cell.outcomes
    nothing = np.isnan(outcomes.margin) & (outcomes.predicted < 0) & (outcomes.correct == 0)
    return outcomes.attacked & nothing if cell.record.status == "failed" else np.zeros_like(outcomes.attacked)


def _judged(cell: Cell) -> NDArray[np.bool_]:
    """The attacked images with an answer, sound or not, (n,); where something raised, a failed one may be none."""
    return cell.outcomes.attacked if cell.record.error in ("", NOT_FINITE) else cell.outcomes.attacked & ~_failed(cell)


def _has(cell: Cell, facts: Mapping[str, Any]) -> bool:
    return not cell.record.cascade and all(getattr(cell.record, name) == value for name, value in facts.items())


def _radii(cells: Iterable[Cell]) -> list[float]:
    return sorted({cell.record.eps for cell in cells if cell.record.eps is not None})


def _at(cells: Iterable[Cell], eps: float) -> list[Cell]:
    return [cell for cell in cells if cell.record.eps == eps]


def _names(cells: Iterable[Cell]) -> tuple[str, ...]:
    return tuple(cell.record.cell for cell in cells)


def _called(cell: Cell) -> str:
    """An attack in a sentence: `apgd_margin (white box, bpda, Linf 0.3)`."""
    record = cell.record
    ball = f"{(record.norm or '').capitalize()} {record.eps:g}" if record.eps is not None else ""
    about = (record.track.replace("_", " "), record.route, f"from {record.source}" * bool(record.source), ball)
    return f"{record.attack} ({', '.join(filter(None, (*about, record.variant)))})"


def _called_p(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
