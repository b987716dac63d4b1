"""From per-image outcomes of a defense that may refuse to accuracy, errors and refusals, which sum to 1. No torch here.

A selective defense is held to three thresholds (bench.protocol.THRESHOLDS). Of a deterministic one the answers at all
of them follow from the stored scores, so that images made at one threshold count at the others too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.record import Cell
from bench.statistics import TOLERANCE

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Shares:
    """The share of draws in which each image was accepted and right, accepted and wrong, or refused, each (..., n)."""

    right: Array
    wrong: Array
    refused: Array


def answers(cell: Cell, threshold: str) -> Shares | None:
    """How a cell's images come out at a threshold, each (n,); None where its records cannot tell: of a random defense
    only the cell's own threshold is known."""
    outcomes, record = cell.outcomes, cell.record
    if record.card.stochastic:
        if record.spec.threshold != threshold:
            return None
        right = np.nan_to_num(outcomes.correct.astype(np.float64))
        accepted = outcomes.accepted.astype(np.float64)
        return Shares(right, accepted - right, 1 - accepted)
    failed: NDArray[np.bool_] = outcomes.predicted < 0  # a failure is no refusal
    beyond = record.thresholds.get(threshold, np.inf)  # one that could not be built or trained has none
    refused = (outcomes.rejection_score > beyond) & ~failed
    right = ~refused & (outcomes.predicted == outcomes.label)
    wrong = ~refused & ~right
    return Shares(*(part.astype(np.float64) for part in (right, wrong, refused)))


def worst(cells: Sequence[Cell], norm: str, radii: Sequence[float], threshold: str) -> Shares:
    """How each image comes out at radius 0, by itself, and within each of `radii` at its worst version, (1 + R, n).

    An error is worse than a refusal, which is worse than a right answer: they count 1, a half and 0, and the version of
    the highest sum decides, of equals the first. Of a random defense the selection draws choose, and the scoring draws
    are reported (`bench.statistics.worst_versions`, which also says which versions count). Raises ValueError without a
    clean cell.
    """
    known = [(cell, found) for cell in cells if (found := answers(cell, threshold)) is not None]
    clean = np.array([cell.record.attack == "none" and not cell.record.variant for cell, _ in known], dtype=bool)
    if not clean.any():
        raise ValueError("a selective defense's answers need the clean cell (attack 'none')")
    right, wrong, refused = (np.stack([getattr(found, name) for _, found in known]) for name in _NAMES)
    distance = np.stack([cell.outcomes.distance(norm) for cell, _ in known])
    severity = wrong + refused / 2
    if known[0][0].record.card.stochastic:
        selection = np.stack([cell.outcomes.selection for cell, _ in known]).astype(np.float64)
        severity = 1 - np.nan_to_num(selection, nan=1.0)
    counted = [clean[:, None] | (distance <= eps + TOLERANCE) for eps in (-np.inf, *radii)]
    chosen = np.stack([np.where(counts, severity, -1).argmax(axis=0) for counts in counted])
    return Shares(*(np.take_along_axis(part, chosen, axis=0) for part in (right, wrong, refused)))


_NAMES = ("right", "wrong", "refused")


def as_held(cells: Iterable[Cell], threshold: str) -> list[Cell]:
    """The cells with robust accuracy in the place of accuracy, so that `bench.statistics` and the verdicts apply.

    At `threshold` the clean images count as right where they are accepted and right, attacked ones unless they are
    accepted and wrong. Images of a random defense that were made at another threshold count nowhere: they lie
    infinitely far away.
    """
    return [_held(cell, threshold) for cell in cells]


def _held(cell: Cell, threshold: str) -> Cell:
    found, outcomes = answers(cell, threshold), cell.outcomes
    if found is None:
        away = np.full_like(outcomes.linf, np.inf)
        return Cell(cell.record, replace(outcomes, linf=away, l2=away))
    is_clean = cell.record.attack == "none"
    value = np.where(outcomes.attacked, found.right if is_clean else 1 - found.wrong, np.nan).astype(np.float32)
    selection = outcomes.selection if cell.record.card.stochastic else value
    return Cell(cell.record, replace(outcomes, correct=value, selection=selection))


def held(found: Shares) -> Array:
    """The probability that each image is right when clean and never accepted and wrong within each radius, (1 + R, n):
    robust accuracy with a detector (Tramer 2022, arXiv:2107.11630). By the same paper, such robustness at a radius is
    as hard to come by as a classifier's at half of it.
    """
    return np.minimum(found.right[:1], 1 - found.wrong)


@dataclass(frozen=True)
class RiskCoverage:
    """Errors among the images that are kept, as more and more are refused: `coverage` and `risk`, each (n,), from the
    surest image alone to all of them; `area` under the curve, 0 at best."""

    coverage: Array
    risk: Array
    area: float


def risk_coverage(cell: Cell) -> RiskCoverage:
    """The curve over all thresholds of a cell's attacked images (El-Yaniv and Wiener 2010, JMLR 11)."""
    mask = cell.outcomes.attacked
    score, wrong = cell.outcomes.rejection_score[mask], (cell.outcomes.predicted != cell.outcomes.label)[mask]
    order = np.argsort(score, kind="stable")
    count = np.arange(1, len(order) + 1)
    risk = np.cumsum(wrong[order]) / count
    return RiskCoverage(count / len(order), risk.astype(np.float64), float(risk.mean()) if len(order) else 0.0)
