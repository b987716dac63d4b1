"""What a break does to an entry's numbers, from records alone. No torch here.

The cells of an entry that may refuse are held (bench.selective.as_held): to refuse an attacked image counts as right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench import statistics
from bench.breaks.schema import Result, Score
from bench.record import Cell
from bench.seeds import digest
from bench.statistics import Tried


@dataclass(frozen=True)
class Effect:
    """What images did within their radius: of `images` that the cells hold, `right` were still right on most draws in
    the worst case of the harness's attacks, and `broken` of these are wrong on most. Over all seeds."""

    images: int
    right: int
    broken: int


def mismatch(result: Result, cells: Sequence[Cell]) -> str:
    """Why a result does not count for cells of one row and all its seeds, in a few words; "" where it does.

    It counts where the same code, of the same weights, in front of the same classifier, was shown the same images.
    """
    first = cells[0].record
    if result.code != first.code:
        return "of other code"
    if (result.classifier, result.classifier_weights) != (first.classifier, first.classifier_weights):
        return "of another classifier net"
    if result.harness != first.harness:
        return "scored by another version of the harness"
    if any(_score(result, cell) is None for cell in cells):
        return "of other weights"
    labels = cells[0].outcomes.label
    same = all(
        labels[index] == label
        for index, label in zip(result.indices, result.labels, strict=True)
        if index < len(labels)
    )
    return "" if same else "of other images"


def _score(result: Result, cell: Cell) -> Score | None:
    """The score of the net that a cell measured; None where the result has none."""
    record = cell.record
    mine = (record.recipe, digest(record.settings), record.seed, record.weights)
    return next(
        (one for one in result.scores if (one.recipe, digest(one.settings), one.seed, one.weights) == mine), None
    )


def tried(result: Result, cells: Sequence[Cell]) -> Tried:
    """The images of a result in the order and number of those of `cells`, all of one seed, that it counts for."""
    score, n = _score(result, cells[0]), cells[0].record.n_examples
    assert score is not None
    indices = np.array(result.indices, dtype=np.intp)
    here = indices < n

    def spread(values: Sequence[float | None], blank: float, failed: float = 0.0) -> NDArray[np.float64]:
        found = np.full(n, blank)
        found[indices[here]] = np.array([failed if value is None else value for value in values])[here]
        return found

    correct, selection = score.correct, score.selection
    if score.accepted:  # all that is not accepted and wrong
        correct = tuple(1 - (kept - right) for kept, right in zip(score.accepted, correct, strict=True))
        selection = selection if result.stochastic else correct
    return Tried(
        correct=spread(correct, 1.0),
        selection=spread(selection, 1.0),
        selection_margin=spread(score.selection_margin, np.inf, -np.inf),
        linf=spread(result.linf, np.inf),
        l2=spread(result.l2, np.inf),
    )


def effect(result: Result, seeds: Sequence[Sequence[Cell]]) -> Effect:
    """What a result that counts did within its own radius, to the cells of each seed."""
    images = right = broken = 0
    for cells in seeds:
        one = tried(result, cells)
        held = one.linf < np.inf
        worst = statistics.robustness(cells, result.norm, (result.eps,))[1]
        known = statistics.best_known(cells, [one], result.norm, (result.eps,))[0][1]
        images += int(held.sum())
        right += int((held & (worst > 0.5)).sum())
        broken += int(((worst > 0.5) & (known <= 0.5)).sum())
    return Effect(images, right, broken)


def standing(cells: Sequence[Cell], norm: str, eps: float, n: int) -> NDArray[np.bool_]:
    """Which of the first `n` images are right on most draws in the worst case of every protocol that measured them, and
    for some net; those that no protocol measured are not. `cells` are of one classifier."""
    found, held = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
    for protocol in sorted({cell.record.protocol for cell in cells}):
        mine = [cell for cell in cells if cell.record.protocol == protocol]
        right = np.zeros(mine[0].record.n_examples, dtype=bool)
        for net in sorted({(cell.record.recipe, cell.record.seed) for cell in mine}):
            own = [cell for cell in mine if (cell.record.recipe, cell.record.seed) == net]
            if any(cell.record.spec.slug == "clean.none" for cell in own):
                right |= statistics.robustness(own, norm, (eps,))[1] > 0.5
        found[: len(right)] = True
        held[: len(right)] &= right[:n]
    return found & held
