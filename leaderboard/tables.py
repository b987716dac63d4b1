"""From cells to the rows of a board. Every number comes from bench.statistics; wording is left to the templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench import statistics
from bench.protocol import Protocol
from bench.record import Card, Cell
from leaderboard.gather import known, slug

Array = NDArray[np.float64]
BASELINE = "identity"  # the defense that does nothing: what every gain is measured against
State = Literal["complete", "incomplete", "other_version", "mixed"]


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` images with its 95 % interval; `by_seed` holds one mean a seed where there are several."""

    value: float
    low: float
    high: float
    n: int
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of a board: one defense on one classifier, over all its seeds (averaged by image, never joined)."""

    defense: str
    classifier: str
    seeds: tuple[int, ...]
    card: Card
    cells: tuple[Cell, ...]
    state: State
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    curves: Array | None = None  # (1 + R, n) robust accuracy of each image at 0 and at every Linf radius
    radius: Array | None = None  # (n,) each image's share of the mean robust radius
    mrr: Estimate | None = None
    l2_mrr: Estimate | None = None
    gain: Estimate | None = None
    clean: Estimate | None = None
    robust: tuple[Estimate, ...] = ()
    tracks: Mapping[str, Estimate] = field(default_factory=dict)
    rank: int | None = None

    @property
    def failed(self) -> tuple[Cell, ...]:
        """The cells in which the defense failed on some image."""
        return tuple(cell for cell in self.cells if cell.record.status == "failed")

    @property
    def milliseconds(self) -> float:
        """The median over cells of the scoring time per image and draw, as it happened to run."""
        return median(
            1000 * cell.record.run.scoring_seconds / (cell.record.n_examples * cell.record.draws) for cell in self.cells
        )

    @property
    def accuracy(self) -> tuple[float, ...]:
        """The mean robust accuracy at 0 and at every Linf radius; empty where it is not known."""
        return () if self.curves is None else tuple(float(mean) for mean in self.curves.mean(axis=1))


@dataclass(frozen=True)
class Board:
    """All that was measured under one protocol id: `rows` in the order of the board, `others` not comparable with them.

    `protocol` is None where this version of the harness does not know the id; then every row is among `others`.
    """

    id: str
    protocol: Protocol | None
    rows: tuple[Row, ...]
    others: tuple[Row, ...]

    @property
    def unranked(self) -> str:
        """Why nobody has a rank here, in one word; empty where the protocol ranks."""
        if self.protocol is None:
            return "unknown"
        for mark, word in (("+limit", "limited"), ("-quick", "quick")):
            if mark in self.id:
                return word
        if self.protocol.is_draft:
            return "draft"
        return "" if self.protocol.ranked else "unranked"

    @property
    def baseline(self) -> Row | None:
        """The row of `identity` on the first classifier, if it was measured completely."""
        found = (row for row in self.rows if row.defense == BASELINE and row.radius is not None)
        return next((row for row in found if self.protocol and row.classifier == self.protocol.classifiers[0]), None)

    def baseline_of(self, row: Row) -> Row | None:
        """The row of `identity` that `row` may be compared with: the same images and the same classifier weights."""
        return _baseline(row, self.rows)


def board(protocol_id: str, cells: Iterable[Cell]) -> Board:
    """The board of one protocol id: rows measured, compared with `identity`, ranked, sorted."""
    protocol = known(protocol_id)
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_belongs_to(cell), []).append(cell)
    rows = [_row(groups[key], protocol) for key in sorted(groups, key=repr)]
    own = [row for row in rows if row.state != "other_version"]
    others = tuple(row for row in rows if row.state == "other_version")
    if protocol is None:
        return Board(protocol_id, None, (), others)
    own = [replace(row, gain=_gain(row, own)) for row in own]
    bare = Board(protocol_id, protocol, tuple(own), others)
    ranks = {} if bare.unranked else _ranks(own, protocol.classifiers[0])
    own = [replace(row, rank=ranks.get(str(index))) for index, row in enumerate(own)]
    order = protocol.classifiers
    return replace(bare, rows=tuple(sorted(own, key=lambda row: _place(row, order))))


def _belongs_to(cell: Cell) -> tuple[object, ...]:
    """What two cells must share to stand in one row; seeds are kept apart inside it."""
    record = cell.record
    settings = json.dumps(dict(record.settings), sort_keys=True, default=str)
    return (
        record.defense, record.classifier, record.protocol_hash, record.n_examples, record.dataset,
        record.classifier_weights, record.recipe, settings,
    )  # fmt: skip


def _row(cells: Sequence[Cell], protocol: Protocol | None) -> Row:
    first = cells[0].record
    seeds = tuple(sorted({cell.record.seed for cell in cells}))
    row = Row(first.defense, first.classifier, seeds, first.card, tuple(cells), "complete")
    if protocol is None or (first.protocol_hash, first.n_examples) != (protocol.hash, protocol.n_examples):
        return replace(row, state="other_version")
    wanted = {spec.slug for spec in protocol.attacks}
    by_seed = {seed: [cell for cell in cells if cell.record.seed == seed] for seed in seeds}
    counted = {seed: [cell for cell in found if slug(cell.record) in wanted] for seed, found in by_seed.items()}
    row = replace(
        row,
        missing=_missing(protocol, by_seed),
        extra=tuple(cell.record.cell for cell in cells if slug(cell.record) not in wanted),
    )
    if any(_is_mixed(found) for found in by_seed.values()):
        return replace(row, state="mixed")
    return _measured(row, list(counted.values()), protocol)


def _missing(protocol: Protocol, by_seed: Mapping[int, Sequence[Cell]]) -> tuple[str, ...]:
    names = []
    for seed, cells in by_seed.items():
        present = {slug(cell.record) for cell in cells}
        suffix = f" (seed {seed})" if len(by_seed) > 1 else ""
        names += [f"{spec.slug}{suffix}" for spec in protocol.attacks if spec.slug not in present]
    return tuple(names)


def _is_mixed(cells: Sequence[Cell]) -> bool:
    """Whether cells of one seed come from different weights, or do not even hold the same images."""
    weights = {cell.record.weights for cell in cells}
    labels = cells[0].outcomes.label
    return len(weights) > 1 or any(not np.array_equal(cell.outcomes.label, labels) for cell in cells)


def _measured(row: Row, seeds: Sequence[Sequence[Cell]], protocol: Protocol) -> Row:
    """The row with what its cells allow: everything where it is complete, else only what needs no missing cell."""
    has_clean = all(any(cell.record.attack == "none" for cell in cells) for cells in seeds)
    if row.missing:
        clean = _accuracy([statistics.robustness(cells, "linf", ())[0] for cells in seeds]) if has_clean else None
        return replace(row, state="incomplete", clean=clean)
    radii = protocol.linf_radii
    curves = [statistics.robustness(cells, "linf", radii) for cells in seeds]
    together = np.mean(curves, axis=0)  # (1 + R, n)
    return replace(
        row,
        curves=together,
        radius=statistics.robust_radius(together, radii),
        mrr=_mrr(seeds, "linf", radii),
        l2_mrr=_mrr(seeds, "l2", protocol.l2_radii) if _attacks_in(protocol, "l2") else None,
        clean=_accuracy([curve[0] for curve in curves]),
        robust=tuple(_accuracy([curve[1 + k] for curve in curves]) for k in range(len(radii))),
        tracks={track: _mrr(seeds, "linf", radii, track) for track in protocol.tracks},
    )


def _attacks_in(protocol: Protocol, norm: str) -> bool:
    return bool(protocol.l2_radii) and any(spec.norm == norm for spec in protocol.attacks)


def _mrr(seeds: Sequence[Sequence[Cell]], norm: str, radii: Sequence[float], track: str | None = None) -> Estimate:
    """The mean robust radius with its bootstrap interval, over all cells or the clean images and those of one track."""
    shares = []
    for cells in seeds:
        counted = [cell for cell in cells if track in (None, cell.record.track) or cell.record.attack == "none"]
        shares.append(statistics.robust_radius(statistics.robustness(counted, norm, radii), radii))
    return _estimate(shares, statistics.bootstrap)


def _accuracy(seeds: Sequence[Array]) -> Estimate:
    return _estimate(seeds, statistics.accuracy_interval)


def _estimate(seeds: Sequence[Array], interval: Callable[[Array], tuple[float, float]]) -> Estimate:
    values = np.mean(np.asarray(seeds, dtype=np.float64), axis=0)  # (n,)
    low, high = interval(values)
    several = tuple(float(seed.mean()) for seed in seeds) if len(seeds) > 1 else ()
    return Estimate(float(values.mean()), low, high, len(values), several)


def cell_accuracy(cell: Cell) -> Estimate:
    """The accuracy of one cell by itself: on the images that its attack made, whatever their realised distance."""
    return _accuracy([cell.outcomes.correct.astype(np.float64)])


def _baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """The complete row of `identity` on the same images and the same classifier weights; None for `identity` itself."""
    if row.defense == BASELINE or row.radius is None:
        return None
    for other in rows:
        if (
            other.defense == BASELINE
            and other.radius is not None
            and _same_net(row, other)
            and _same_images(row, other)
        ):
            return other
    return None


def _gain(row: Row, rows: Sequence[Row]) -> Estimate | None:
    """MRR minus that of `identity`, paired by image."""
    other = _baseline(row, rows)
    if other is None or row.radius is None or other.radius is None:
        return None
    return _estimate([row.radius - other.radius], statistics.bootstrap)


def _same_net(row: Row, other: Row) -> bool:
    first, second = row.cells[0].record, other.cells[0].record
    return (first.classifier, first.classifier_weights) == (second.classifier, second.classifier_weights)


def _same_images(row: Row, other: Row) -> bool:
    return np.array_equal(row.cells[0].outcomes.label, other.cells[0].outcomes.label)


def _ranks(rows: Sequence[Row], classifier: str) -> dict[str, int]:
    """Ranks by index among complete rows on the ranked classifier."""
    entries = {
        str(index): row.radius
        for index, row in enumerate(rows)
        if row.radius is not None and row.classifier == classifier
    }
    return statistics.ranks(entries)


def _place(row: Row, classifiers: Sequence[str]) -> tuple[object, ...]:
    """The sort key of a board: ranked classifier first, then rank, then MRR; rows without an MRR come last."""
    position = classifiers.index(row.classifier) if row.classifier in classifiers else len(classifiers)
    mrr = -1.0 if row.mrr is None else row.mrr.value
    rank = 10**9 if row.rank is None else row.rank
    return (row.mrr is None, position, rank, -mrr, row.defense, row.classifier, row.seeds)
