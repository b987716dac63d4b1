"""Each defense against every other of its board: paired differences on the images that both have, with a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench import statistics
from bench.statistics import Array
from leaderboard.tables import Board, Row, comparable, radius_by_seed

LEVEL = 0.05  # below which p says that two rows differ; a single test, unlike the ranks, which are Holm-corrected


@dataclass(frozen=True)
class Difference:
    """A mean of one row minus that of another, paired by image, with its 95 % bootstrap interval and its p-value.

    From three training seeds on both are over seeds, too.
    """

    value: float
    low: float
    high: float
    p: float

    @property
    def word(self) -> str:
        """What the test says of the first: "better", "worse" or "tied"."""
        return "tied" if self.p > LEVEL else "better" if self.value > 0 else "worse"

    @property
    def turned(self) -> Difference:
        """The second minus the first."""
        return Difference(-self.value, -self.high, -self.low, self.p)


@dataclass(frozen=True)
class Counts:
    """At one radius: the images that both have right on most draws, only the first, only the second, neither."""

    both: int
    first: int
    second: int
    neither: int

    @property
    def turned(self) -> Counts:
        """The same with the two exchanged."""
        return Counts(self.both, self.second, self.first, self.neither)


@dataclass(frozen=True)
class Against:
    """One row against another, on the first `n` images, which both have: at radius 0 and at each Linf radius.

    `is_doubtful` where the one that comes out ahead is known as an upper bound only: it may be ahead by that alone.
    """

    other: Row
    n: int
    mrr: Difference
    accuracy: tuple[Difference, ...]
    counts: tuple[Counts, ...]  # at the headline radii
    is_doubtful: bool = False

    def turned(self, other: Row) -> Against:
        """The comparison as the second sees it; `other` is what was the first."""
        accuracy, counts = tuple(one.turned for one in self.accuracy), tuple(one.turned for one in self.counts)
        return Against(other, self.n, self.mrr.turned, accuracy, counts, self.is_doubtful)


@dataclass(frozen=True)
class Comparison:
    """One row, and all rows that it may be compared with, in the board's order."""

    row: Row
    others: tuple[Against, ...]

    def against(self, other: Row) -> Against | None:
        """The comparison with one of the others; None where there is none."""
        return next((one for one in self.others if one.other is other), None)


def comparisons(board: Board) -> list[Comparison]:
    """Every row of a board that has numbers, in the board's order, against all rows that share the classifier's weights
    and the images."""
    rows = [row for row in board.rows if row.curves is not None]
    known: dict[tuple[int, int], _Resampled] = {}

    def resampled(index: int, n: int) -> _Resampled:
        """A row on its first `n` images: computed once, used for all pairs."""
        if (index, n) not in known:
            known[index, n] = _resampled(rows[index], n)
        return known[index, n]

    pairs: dict[tuple[int, int], Against] = {}
    for k, row in enumerate(rows):
        for m, other in enumerate(rows[:k]):
            if comparable(row, other):
                n = min(row.n, other.n)
                gaps = (_values(row)[:, :n] - _values(other)[:, :n]).mean(axis=1)
                pairs[k, m] = _against(row, other, n, gaps, resampled(k, n), resampled(m, n))
                pairs[m, k] = pairs[k, m].turned(row)
    everyone = range(len(rows))
    return [Comparison(rows[k], tuple(pairs[k, m] for m in everyone if (k, m) in pairs)) for k in everyone]


def _values(row: Row) -> Array:
    """What is compared of each image, (1 + 1 + R, n): its share of the mean robust radius, then its accuracies."""
    assert row.radius is not None and row.curves is not None
    return np.vstack([row.radius, row.curves])


@dataclass(frozen=True)
class _Resampled:
    """The means of a row's values on each resample of the images, the luck of its trainings beside them (both
    (RESAMPLES, 2 + R)), and its means by training seed, (S, 2 + R)."""

    means: Array
    luck: Array
    by_seed: Array


def _resampled(row: Row, n: int) -> _Resampled:
    assert row.curves_by_seed is not None
    values = np.concatenate([radius_by_seed(row)[:, None], row.curves_by_seed], axis=1)[:, :, :n]  # (S, 2 + R, n)
    by_seed = values.mean(axis=2)
    means = statistics.resampled_means(_values(row)[:, :n])
    return _Resampled(means, statistics.training_luck(by_seed, row.name), by_seed)


def _against(row: Row, other: Row, n: int, gaps: Array, ours: _Resampled, theirs: _Resampled) -> Against:
    means = ours.means - theirs.means
    lows, highs = np.quantile(means + (ours.luck - theirs.luck), [0.025, 0.975], axis=0)
    found = []
    for k, gap in enumerate(gaps):
        p = statistics.p_value(float(gap), means[:, k], (ours.by_seed[:, k], theirs.by_seed[:, k]))
        found.append(Difference(float(gap), float(lows[k]), float(highs[k]), p))
    ahead = row if found[0].value > 0 else other
    return Against(other, n, found[0], tuple(found[1:]), _counts(row, other, n), ahead.state != "complete")


def _counts(row: Row, other: Row, n: int) -> tuple[Counts, ...]:
    assert row.effort is not None and row.curves is not None and other.curves is not None
    counts = []
    for eps in row.effort.headline_radii:
        place = 1 + row.effort.linf_radii.index(eps)
        ours, theirs = row.curves[place, :n] > 0.5, other.curves[place, :n] > 0.5
        split = ((ours & theirs), (ours & ~theirs), (~ours & theirs), (~ours & ~theirs))
        counts.append(Counts(*(int(part.sum()) for part in split)))
    return tuple(counts)


def matrix(found: Sequence[Comparison], most: int = 12) -> list[Comparison]:
    """The comparisons for a table of all pairs; empty where there are too many for one to be read, or only one."""
    return list(found) if 2 <= len(found) <= most else []
