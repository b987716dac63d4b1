"""What everybody's images together left of a defense: the harness's worst case, lowered by the breaks that count.

Ranks and mean robust radii stay the protocol's: nobody's entry is attacked harder than another's for a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench import statistics
from bench.breaks import effect
from bench.breaks.effect import Effect
from bench.breaks.schema import Break, Kept
from bench.record import Cell
from leaderboard.formats import listing, radius
from leaderboard.tables import Board, Estimate, Row, counted_cells, mean_accuracy


@dataclass(frozen=True)
class BreakLine:
    """A break of a row's defense. `verdict` says why it does not count, and is empty where it does; `effect` is None
    where it does not count or the row has no numbers."""

    description: Break
    images: int
    verdict: str
    effect: Effect | None


@dataclass(frozen=True)
class BestKnown:
    """The accuracy at one radius by all attacks and breaks, and how many images fell to each break, over all seeds."""

    accuracy: Estimate
    taken: tuple[tuple[Break, int], ...]

    @property
    def lost(self) -> int:
        """The images that fell to breaks."""
        return sum(count for _, count in self.taken)


def with_breaks(board: Board, breaks: Sequence[Kept]) -> Board:
    """The board with each row's breaks, and its best known accuracy at the Linf radii of breaks that count.

    These are the smallest radius that holds an image, for every image, and those at which images lower the accuracy.
    """
    return replace(board, rows=tuple(_with_breaks(row, breaks) for row in board.rows))


def _with_breaks(row: Row, breaks: Sequence[Kept]) -> Row:
    first = row.cells[0].record
    about = (row.defense, first.dataset, row.classifier)
    mine = [
        one for one in breaks if (one.description.entry, one.description.dataset, one.description.classifier) == about
    ]
    if not mine:
        return row
    seeds = [counted_cells(row, seed) for seed in row.seeds] if row.curves is not None else []
    lines, sound = [], []
    for one in mine:
        verdict = effect.mismatch(one.result, [cell for cells in seeds for cell in cells] or row.cells)
        done = effect.effect(one.result, seeds) if seeds and not verdict else None
        lines.append(BreakLine(one.description, len(one.result.indices), verdict, done))
        if done is not None:
            sound.append(one)
    known: dict[float, BestKnown] = {}
    before = 0.0
    for k, eps in enumerate(row.effort.linf_radii if sound and row.effort else ()):
        found = _best_known(row, seeds, sound, eps)
        if any(_is_first(one, row.n, before, eps) for one in sound) or found.accuracy.value < row.robust[k].value:
            known[eps] = found
        before = eps
    return replace(row, breaks=tuple(lines), best_known=known)


def _is_first(one: Kept, n: int, before: float, eps: float) -> bool:
    """Whether a break has one of the first `n` images within the Linf ball of `eps` and not within that `before`."""
    distance = one.result.distance("linf")[np.array(one.result.indices) < n] - statistics.TOLERANCE
    return bool(((distance > before) & (distance <= eps)).any())


def _best_known(row: Row, seeds: Sequence[Sequence[Cell]], breaks: Sequence[Kept], eps: float) -> BestKnown:
    values, taken = [], np.zeros(len(breaks), dtype=int)
    for cells in seeds:
        others = [effect.tried(one.result, cells) for one in breaks]
        found, by = statistics.best_known(cells, others, "linf", (eps,))
        worst = statistics.robustness(cells, "linf", (eps,))[1]
        values.append(found[1])
        fallen = by[1][(worst > 0.5) & (found[1] <= 0.5)]
        taken += np.bincount(fallen[fallen >= 0], minlength=len(breaks))
    whose = ((one.description, int(count)) for one, count in zip(breaks, taken, strict=True) if count)
    return BestKnown(mean_accuracy(values), tuple(whose))


def known_radii(board: Board) -> tuple[float, ...]:
    """The Linf radii at which some row of a board has a best known accuracy, in order."""
    return tuple(sorted({eps for row in board.rows for eps in row.best_known}))


def taken_words(row: Row) -> str:
    """How many images fell to whose breaks at each radius, in a sentence for the reason behind a number."""
    parts = []
    for eps, known in row.best_known.items():
        whose = listing(f"{count} to “{one.name}” by {isolated(one.author)}" for one, count in known.taken)
        fallen = f"of the images that the protocol's attacks left, {known.lost} fell: {whose}"
        parts.append(f"At ε = {radius(eps)}, {fallen if whose else 'no image more than to the protocol’s attacks'}.")
    return " ".join(parts)


def isolated(text: str) -> str:
    """Text of others in a line of ours: whatever direction it runs in, the rest of the line keeps its own."""
    return f"\u2068{''.join(c for c in text if c not in _DIRECTIONS)}\u2069"


_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
