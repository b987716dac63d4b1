"""From per-image outcomes of a defense that may refuse to accuracy, errors and refusals, which sum to 1. No torch here.

A selective defense is held to three thresholds (bench.protocol.THRESHOLDS). Of a deterministic one the answers at all
of them follow from the stored scores, so that images made at one threshold count at the others too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from bench import statistics
from bench.catalog import ATTACKS
from bench.record import Cell
from bench.statistics import Array


@dataclass(frozen=True)
class Shares:
    """The share of draws in which each image was accepted and right, accepted and wrong, or refused, each (..., n)."""

    right: Array
    wrong: Array
    refused: Array


def answers(cell: Cell, threshold: str) -> Shares | None:
    """How a cell's images come out at a threshold, each (n,); None where its records cannot tell: of a random defense
    only the cell's own threshold is known.

    An image that an attack made anew has no true class (AttackInfo.new_images): no answer to it is right, not even the
    label of the image that it was given."""
    outcomes, record = cell.outcomes, cell.record
    if record.card.stochastic:
        if record.spec.threshold != threshold:
            return None
        sure = np.nan_to_num(outcomes.correct.astype(np.float64)) * _has_class(cell)
        accepted = outcomes.accepted.astype(np.float64)
        return Shares(sure, accepted - sure, 1 - accepted)
    failed: NDArray[np.bool_] = outcomes.predicted < 0  # a failure is no refusal
    beyond = record.thresholds.get(threshold, np.inf)  # one that could not be built or trained has none
    refused = (outcomes.rejection_score > beyond) & ~failed
    right = ~refused & _is_named(cell)
    wrong = ~refused & ~right
    return Shares(*(part.astype(np.float64) for part in (right, wrong, refused)))


def _has_class(cell: Cell) -> bool:
    """Whether the images of a cell show their label: those that an attack made anew show nothing."""
    info = ATTACKS.get(cell.record.attack)
    return info is None or not info.new_images


def _is_named(cell: Cell) -> NDArray[np.bool_]:
    """Which images (n,) a deterministic defense gives their true class, accepted or not."""
    return np.asarray((cell.outcomes.predicted == cell.outcomes.label) & _has_class(cell), dtype=np.bool_)


def worst(cells: Sequence[Cell], norm: str, radii: Sequence[float], threshold: str) -> Shares:
    """How each image comes out at radius 0, by itself, and within each of `radii` at its worst version, (1 + R, n).

    The worst is chosen as in `bench.statistics.worst_versions`, by the share of right answers plus half the share of
    refusals: an error is worse than a refusal, which is worse than a right answer. Of a random defense the selection
    draws choose so, and the scoring draws are reported. Raises ValueError without a clean cell.
    """
    known = [(cell, found) for cell in cells if (found := answers(cell, threshold)) is not None]
    if not known:
        raise ValueError("no cell tells of this threshold, not even the clean cell (attack 'none')")
    judged = [_selected(cell, found.right + found.refused / 2) for cell, found in known]
    chosen = statistics.worst_versions(judged, norm, radii)
    parts = (np.stack([getattr(found, part.name) for _, found in known]) for part in fields(Shares))
    return Shares(*(np.take_along_axis(part, chosen, axis=0) for part in parts))


def _selected(cell: Cell, by: Array) -> Cell:
    """The cell with `by` (n,) in place of what chooses the worst version; a random defense's draws choose already."""
    if cell.record.card.stochastic:
        return cell
    return Cell(cell.record, replace(cell.outcomes, selection=by.astype(np.float32)))


def as_answered(cells: Iterable[Cell], threshold: str) -> list[Cell]:
    """The cells that tell of a threshold, with the shares of right and of accepted answers at it, and selection by the
    order of `worst`: an error is worse than a refusal, which is worse than a right answer."""
    known = ((cell, answers(cell, threshold)) for cell in cells)
    return [_answered(cell, found) for cell, found in known if found is not None]


def _answered(cell: Cell, found: Shares) -> Cell:
    right, accepted = found.right.astype(np.float32), (found.right + found.wrong).astype(np.float32)
    shown = Cell(cell.record, replace(cell.outcomes, correct=right, accepted=accepted))
    return _selected(shown, found.right + found.refused / 2)


def as_held(cells: Iterable[Cell], threshold: str) -> list[Cell]:
    """The cells with robust accuracy in the place of accuracy, so that `bench.statistics` and the verdicts apply.

    At `threshold` the clean images count as right where they are accepted and right, attacked ones unless they are
    accepted and wrong: robust accuracy with a detector (Tramer 2022, arXiv:2107.11630). By the same paper, such
    robustness at a radius is as hard to come by as a classifier's at half of it. To refuse is no gain over the clean
    image: where a random defense is right on some of its draws only, an attacked version counts no more than that.
    Images of a random defense that were made at another threshold count nowhere: they lie infinitely far away.
    """
    cells = list(cells)
    clean = {_whose(cell): answers(cell, threshold) for cell in cells if cell.record.spec.slug == "clean.none"}
    return [_held(cell, threshold, clean.get(_whose(cell))) for cell in cells]


def _whose(cell: Cell) -> tuple[str, str, str, int]:
    return cell.record.protocol, cell.record.defense, cell.record.classifier, cell.record.seed


def _held(cell: Cell, threshold: str, clean: Shares | None) -> Cell:
    found, outcomes = answers(cell, threshold), cell.outcomes
    if found is None:
        away = np.full_like(outcomes.linf, np.inf)
        return Cell(cell.record, replace(outcomes, linf=away, l2=away))
    value = found.right if cell.record.attack == "none" else 1 - found.wrong
    if cell.record.card.stochastic and clean is not None:
        value = np.minimum(value, clean.right)
    value = np.where(outcomes.attacked, value, np.nan)
    return _selected(Cell(cell.record, replace(outcomes, correct=value.astype(np.float32))), value)


@dataclass(frozen=True)
class RiskCoverage:
    """Errors among the images that are kept, as more and more are refused: `coverage` and `risk`, each (n,), from the
    surest image alone to all of them; `area` under the curve, 0 at best."""

    coverage: Array
    risk: Array
    area: float


def risk_coverage(cell: Cell) -> RiskCoverage:
    """The curve over all thresholds of a cell's attacked images (El-Yaniv and Wiener 2010, JMLR 11).

    An image that the defense failed on is an error that no threshold refuses."""
    mask = cell.outcomes.attacked
    score = np.where(cell.outcomes.predicted < 0, -np.inf, cell.outcomes.rejection_score)[mask]
    wrong = ~_is_named(cell)[mask]
    order = np.argsort(score, kind="stable")
    count = np.arange(1, len(order) + 1)
    risk = np.cumsum(wrong[order]) / count
    return RiskCoverage(count / len(order), risk.astype(np.float64), float(risk.mean()) if len(order) else 0.0)
