"""From cells to the rows of a board. Every number comes from bench.statistics; wording is left to the templates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from bench import selective, statistics
from bench.catalog import ATTACKS
from bench.evidence import Verdict
from bench.protocol import TRACKS, USUAL_THRESHOLD, Protocol
from bench.record import Card, Cell
from bench.statistics import Strongest
from bench.verdicts import over_seeds
from leaderboard.gather import known

if TYPE_CHECKING:
    from leaderboard.best_known import BestKnown, BreakLine

Array = NDArray[np.float64]
BASELINE = "identity"  # the defense that does nothing: what every gain is measured against
State = Literal["complete", "reduced", "unverified", "incomplete", "mixed", "not_evaluated", "other_version"]
"""Only complete rows are ranked. Reduced ones have numbers, but were attacked with less because purification is costly;
unverified ones have numbers and a warning that they may be too good. The others lack cells or images, mix records that
do not belong together, break the contract, or cite another version of the protocol: no numbers to compare."""
Clash = Literal["weights", "images", "code", "harness", "attack_version"]
ATTACKED = tuple(track for track in TRACKS if track != "clean")


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` images with its 95 % interval; `by_seed` holds one mean a seed where there are several.

    `is_left` says that a cascade left this share: other tracks had broken images before.
    """

    value: float
    low: float
    high: float
    n: int
    by_seed: tuple[float, ...] = ()
    is_left: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a board: one defense on one classifier, over all its seeds (averaged by image, never joined).

    `cells` are what the numbers come from, `recorded` what the records hold. They differ for defenses that may refuse:
    there robust accuracy stands in the place of accuracy (bench.selective.as_held).
    """

    defense: str
    classifier: str
    seeds: tuple[int, ...]
    card: Card
    cells: tuple[Cell, ...]
    state: State
    effort: Protocol | None = None  # the protocol as a defense of this kind meets it
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)  # images that cells should have attacked, by cell
    clashes: tuple[Clash, ...] = ()  # what keeps the cells of a mixed row apart
    curves: Array | None = None  # (1 + R, n) robust accuracy of each image at 0 and at every Linf radius
    curves_by_seed: Array | None = None  # (S, 1 + R, n)
    radius: Array | None = None  # (n,) each image's share of the mean robust radius
    mrr: Estimate | None = None
    l2_mrr: Estimate | None = None
    gain: Estimate | None = None
    clean: Estimate | None = None
    robust: tuple[Estimate, ...] = ()
    any_of_draws: tuple[Estimate, ...] = ()  # clean and at every Linf radius: right on all scoring draws
    majority_of_draws: tuple[Estimate, ...] = ()  # and on more than half of them; both of random defenses alone
    tracks: Mapping[str, tuple[Estimate | None, ...]] = field(default_factory=dict)  # one at each headline radius
    strongest: tuple[Strongest | None, ...] = ()  # one at each headline radius
    verdicts: tuple[Verdict, ...] = ()
    rank: int | None = None
    recorded: tuple[Cell, ...] = ()
    breaks: tuple[BreakLine, ...] = ()  # images of others against this defense: leaderboard.best_known
    best_known: Mapping[float, BestKnown] = field(default_factory=dict)  # by Linf radius, where a break has images

    @property
    def name(self) -> str:
        """What no other row of a board shares: it names the row's stream of random numbers."""
        return repr(_belongs_to(self.cells[0]))

    @property
    def n(self) -> int:
        """The number of images that the row was measured on."""
        return self.cells[0].record.n_examples

    @property
    def draws(self) -> int:
        """The fresh draws that score an image: 1 for a deterministic defense."""
        return max(cell.record.draws for cell in self.cells)

    @property
    def budget(self) -> str:
        """The class of the purification's cost."""
        return self.cells[0].record.budget

    @property
    def units(self) -> float:
        """The cost of one purification, in forward and backward passes of the classifier for one image."""
        return max(cell.record.units for cell in self.cells)

    @property
    def attack_rows(self) -> int:
        """The images that all attacks together sent through the attacked models, forward and backward."""
        return sum(cell.record.forward_rows + cell.record.backward_rows for cell in self.cells)

    @property
    def attack_seconds(self) -> float:
        """The time that all attacks took, as they happened to run; images made for another row before cost nothing."""
        return sum(cell.record.run.attack_seconds for cell in self.cells)

    def found(self, level: str) -> tuple[Verdict, ...]:
        """The verdicts of one level: "breach", "warning" or "note"."""
        return tuple(verdict for verdict in self.verdicts if verdict.level == level)

    @property
    def failed(self) -> tuple[Cell, ...]:
        """The cells that count and in which the defense failed on some image; such images count as wrong."""
        counted = (cell for cell in self.cells if cell.record.cell not in self.extra)
        return tuple(cell for cell in counted if cell.record.status == "failed")

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

    def why(self, row: Row) -> str:
        """Why `row` has no rank, in one word: its state, this board's reason, "classifier", or "no_baseline"; empty
        where it has one."""
        if row.rank is not None:
            return ""
        if row.state != "complete" or self.protocol is None:
            return row.state
        return self.unranked or ("classifier" if row.classifier != self.protocol.classifiers[0] else "no_baseline")

    @property
    def baseline(self) -> Row | None:
        """The row of `identity` on the first classifier, if it was measured completely."""
        found = (row for row in self.rows if row.defense == BASELINE and row.radius is not None)
        return next((row for row in found if self.protocol and row.classifier == self.protocol.classifiers[0]), None)

    def baseline_of(self, row: Row) -> Row | None:
        """The complete row of `identity` that `row` may be compared with: the same images and classifier weights."""
        return _baseline(row, self.rows)


def board(protocol_id: str, cells: Iterable[Cell]) -> Board:
    """The board of one protocol id: rows measured, judged, compared with `identity`, ranked, sorted."""
    protocol = known(protocol_id)
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_belongs_to(cell), []).append(cell)
    rows = [_row(groups[key], protocol) for key in sorted(groups, key=repr)]
    own = [row for row in rows if row.state != "other_version"]
    others = tuple(row for row in rows if row.state == "other_version")
    if protocol is None:
        return Board(protocol_id, None, (), others)
    own = [_judged(row, own) for row in own]
    own = [replace(row, gain=_gain(row, own)) for row in own]
    bare = Board(protocol_id, protocol, tuple(own), others)
    ranks = {} if bare.unranked else _ranks(own, protocol)
    own = [replace(row, rank=ranks.get(str(index))) for index, row in enumerate(own)]
    order = protocol.classifiers
    return replace(bare, rows=tuple(sorted(own, key=lambda row: _place(row, order))))


def _belongs_to(cell: Cell) -> tuple[object, ...]:
    """What two cells must share to stand in one row; seeds are kept apart inside it."""
    record = cell.record
    settings = json.dumps(dict(record.settings), sort_keys=True, default=str)
    return (
        record.defense, record.classifier, record.protocol_hash, record.n_examples, record.dataset,
        record.classifier_weights, record.recipe, settings, record.budget, record.card.stochastic,
    )  # fmt: skip


def _row(cells: Sequence[Cell], protocol: Protocol | None) -> Row:
    first = cells[0].record
    recorded = tuple(cells)
    if protocol is not None and protocol.is_selective:
        cells = selective.as_held(cells, USUAL_THRESHOLD)
    row = Row(
        first.defense, first.classifier, _seeds(cells), first.card, tuple(cells), "complete", recorded=recorded
    )  # fmt: skip
    effort = _effort(protocol, first.budget, first.card.stochastic, first.card.doors) if protocol else None
    if effort is None or (first.protocol_hash, first.n_examples) != (effort.hash, effort.n_examples):
        return replace(row, state="other_version")
    wanted = {spec.slug for spec in effort.attacks}
    by_seed = {seed: _of_seed(cells, seed, effort) for seed in row.seeds}
    counted = [[cell for cell in found if cell.record.spec.slug in wanted] for found in by_seed.values()]
    row = replace(
        row,
        effort=effort,
        missing=_missing(effort, by_seed),
        extra=tuple(cell.record.cell for cell in cells if cell.record.spec.slug not in wanted),
    )
    clashes = _clashes(counted)
    return replace(row, state="mixed", clashes=clashes) if clashes else _measured(row, counted, effort)


@cache  # a protocol's hash takes a while
def _effort(protocol: Protocol, budget: str, stochastic: bool, doors: tuple[str, ...]) -> Protocol:
    return protocol.effort(budget, stochastic=stochastic, doors=doors)


def _seeds(cells: Iterable[Cell]) -> tuple[int, ...]:
    return tuple(sorted({cell.record.seed for cell in cells}))


def _of_seed(cells: Iterable[Cell], seed: int, effort: Protocol) -> list[Cell]:
    return statistics.ordered((cell for cell in cells if cell.record.seed == seed), effort)


def _missing(effort: Protocol, by_seed: Mapping[int, Sequence[Cell]]) -> tuple[str, ...]:
    names = []
    for seed, cells in by_seed.items():
        present = {cell.record.spec.slug for cell in cells}
        suffix = f" (seed {seed})" if len(by_seed) > 1 else ""
        names += [f"{spec.slug}{suffix}" for spec in effort.attacks if spec.slug not in present]
    return tuple(names)


def _clashes(seeds: Sequence[Sequence[Cell]]) -> tuple[Clash, ...]:
    """What keeps cells from being joined. The weights may differ between seeds; images, code and harness may not, and
    every attack must be of the version that this harness has."""
    cells = [cell for found in seeds for cell in found]
    labels = {cell.outcomes.label.tobytes() for cell in cells}
    versions = {(cell.record.attack, cell.record.attack_version) for cell in cells}
    present = {(name, info.version) for name, info in ATTACKS.items()}
    found: dict[Clash, bool] = {
        "weights": any(len({cell.record.weights for cell in one}) > 1 for one in seeds),
        "images": len(labels) > 1,
        "code": len({cell.record.code for cell in cells}) > 1,
        "harness": len({cell.record.harness for cell in cells}) > 1,
        "attack_version": not versions <= present,
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _measured(row: Row, seeds: Sequence[Sequence[Cell]], effort: Protocol) -> Row:
    """The row with what its cells allow: everything where it is complete, else only what needs no missing cell."""
    left_out: dict[str, int] = {}
    for cells in seeds if not row.missing else ():  # else a missing cell may be what broke the images left out
        left_out |= statistics.left_out(cells, effort)
    if row.missing or left_out:
        has_clean = all(any(cell.outcomes.attacked.all() for cell in _clean(cells)) for cells in seeds)
        clean = mean_accuracy([statistics.robustness(cells, "linf", ())[0] for cells in seeds]) if has_clean else None
        return replace(row, state="incomplete", clean=clean, left_out=left_out)
    radii = effort.linf_radii
    curves = [statistics.robustness(cells, "linf", radii) for cells in seeds]
    together = np.mean(curves, axis=0)  # (1 + R, n)
    is_drawn = row.card.stochastic and row.draws > 1  # a single draw is its own majority
    drawn = [statistics.over_draws(curve, row.draws) for curve in curves] if is_drawn else []
    places = range(1 + len(radii)) if is_drawn else ()
    return replace(
        row,
        state="complete" if row.budget == "cheap" else "reduced",
        curves=together,
        curves_by_seed=np.stack(curves),
        radius=statistics.robust_radius(together, radii),
        mrr=_mrr(seeds, "linf", radii),
        l2_mrr=_mrr(seeds, "l2", effort.l2_radii) if _has_l2_radius(effort) else None,
        clean=mean_accuracy([curve[0] for curve in curves]),
        robust=tuple(mean_accuracy([curve[1 + k] for curve in curves]) for k in range(len(radii))),
        any_of_draws=tuple(mean_accuracy([one.every[k] for one in drawn]) for k in places),
        majority_of_draws=tuple(mean_accuracy([one.most[k] for one in drawn]) for k in places),
        tracks={track: _at_headlines(seeds, track, effort) for track in effort.tracks if track in ATTACKED},
        strongest=tuple(statistics.strongest(seeds, eps) for eps in effort.headline_radii),
    )


def _clean(cells: Iterable[Cell]) -> list[Cell]:
    """The cell without an attack, by itself in a list; an empty list where it is missing."""
    return [cell for cell in cells if cell.record.spec.slug == "clean.none"]


def _at_headlines(seeds: Sequence[Sequence[Cell]], track: str, effort: Protocol) -> tuple[Estimate | None, ...]:
    return tuple(_track_accuracy(seeds, track, eps) for eps in effort.headline_radii)


def _track_accuracy(seeds: Sequence[Sequence[Cell]], track: str, eps: float) -> Estimate | None:
    """The worst case over the independent cells of one track within the Linf ball; None where it has none at `eps`.

    Only the runs over most images count, on their images, so that each image met the same attacks. Where the track has
    nothing but a cascade at this radius, the estimate is what the cascade left. Images that were made on the defense
    itself to be shown to all are white-box images to it, and no transfer.
    """
    values, is_left = [], False
    for cells in seeds:
        records = ((cell, cell.record) for cell in cells)
        own = [cell for cell, one in records if (one.track, one.norm) == (track, "linf") and one.source != one.defense]
        if not any(cell.record.eps == eps for cell in own):
            return None
        cold = [cell for cell in own if not cell.record.cascade and (cell.record.eps or 0) <= eps]
        if any(cell.record.eps == eps for cell in cold):
            most = max(int(cell.outcomes.attacked.sum()) for cell in cold if cell.record.eps == eps)
            counted = [cell for cell in cold if cell.outcomes.attacked.sum() == most]
            mask = next(cell.outcomes.attacked for cell in counted)
            values.append(statistics.robustness([*_clean(cells), *counted], "linf", (eps,))[1, mask])
        else:
            is_left = True
            values.append(statistics.robustness(cells, "linf", (eps,))[1])
    return replace(mean_accuracy(values), is_left=is_left)


def _judged(row: Row, rows: Sequence[Row]) -> Row:
    """The row with its verdicts, seed by seed against `identity`; without numbers where it breaks the contract."""
    if row.effort is None or row.state == "mixed" or not all(_clean(counted_cells(row, seed)) for seed in row.seeds):
        return row
    bare = next((other for other in rows if other.defense == BASELINE and comparable(row, other)), None)
    pairs = (
        (counted_cells(row, seed), counted_cells(bare, seed if seed in bare.seeds else bare.seeds[0]) if bare else [])
        for seed in row.seeds
    )
    row = replace(row, verdicts=over_seeds(pairs, row.effort))
    if row.found("breach"):
        return Row(
            row.defense, row.classifier, row.seeds, row.card, row.cells, "not_evaluated", row.effort, row.missing,
            row.extra, verdicts=row.verdicts, recorded=row.recorded,
        )  # fmt: skip
    return replace(row, state="unverified") if row.found("warning") and row.state in ("complete", "reduced") else row


def counted_cells(row: Row, seed: int) -> list[Cell]:
    """The cells of one seed that count, in the protocol's order."""
    assert row.effort is not None
    return [cell for cell in _of_seed(row.cells, seed, row.effort) if cell.record.cell not in row.extra]


def _has_l2_radius(effort: Protocol) -> bool:
    """Whether an attacker who knows the defense saw all images at every L2 radius: a gap would pass for robustness."""
    attacked = {
        spec.eps
        for spec in effort.attacks
        if spec.knows_defense and spec.norm == "l2" and (spec.n_examples or effort.n_examples) >= effort.n_examples
    }
    return bool(effort.l2_radii) and attacked >= set(effort.l2_radii)


def _mrr(seeds: Sequence[Sequence[Cell]], norm: str, radii: Sequence[float]) -> Estimate:
    """The mean robust radius with its bootstrap interval."""
    shares = [statistics.robust_radius(statistics.robustness(cells, norm, radii), radii) for cells in seeds]
    return _estimate(shares, is_proportion=False)


def mean_accuracy(seeds: Sequence[Array]) -> Estimate:
    """The mean of per-image shares over seeds and images, with its interval."""
    return _estimate(seeds, is_proportion=True)


def _estimate(seeds: Sequence[Array], *, is_proportion: bool) -> Estimate:
    by_seed = np.asarray(seeds, dtype=np.float64)  # (S, n)
    low, high = statistics.share_interval(by_seed, is_proportion=is_proportion)
    several = tuple(float(seed.mean()) for seed in seeds) if len(seeds) > 1 else ()
    return Estimate(float(by_seed.mean(axis=0).mean()), low, high, by_seed.shape[1], several)


def cell_accuracy(cell: Cell) -> Estimate | None:
    """The accuracy of one cell by itself on the images that it attacked; None where it attacked none."""
    outcomes = cell.outcomes
    return mean_accuracy([outcomes.correct[outcomes.attacked].astype(np.float64)]) if outcomes.attacked.any() else None


def _baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """The complete row of `identity` on the same images and the same classifier; None for `identity` itself. A hardened
    defense brings its own net, but names the classifier that it stands for, and is compared on that one."""
    if row.defense == BASELINE or row.radius is None:
        return None
    complete = (other for other in rows if other.defense == BASELINE and other.state == "complete")
    return next((other for other in complete if comparable(row, other)), None)


def _gain(row: Row, rows: Sequence[Row]) -> Estimate | None:
    """MRR minus that of `identity`, paired by image, on the images that both have; their trainings are not paired."""
    other = _baseline(row, rows)
    if other is None or row.radius is None or other.radius is None:
        return None
    gap = statistics.paired(row.radius, other.radius)
    ours, theirs = (
        statistics.training_luck(radius_by_seed(one)[:, : len(gap)].mean(axis=1), one.name) for one in (row, other)
    )
    return Estimate(float(gap.mean()), *statistics.bootstrap(gap, luck=ours - theirs), len(gap))


def radius_by_seed(row: Row) -> Array:
    """Each image's share of the mean robust radius by seed, (S, n), of a row that has numbers."""
    assert row.curves_by_seed is not None and row.effort is not None
    return np.stack([statistics.robust_radius(curve, row.effort.linf_radii) for curve in row.curves_by_seed])


def comparable(row: Row, other: Row) -> bool:
    """Whether two rows share the classifier's weights, and their first images."""
    first, second = row.cells[0], other.cells[0]
    n = min(row.n, other.n)
    return (first.record.classifier, first.record.classifier_weights) == (
        second.record.classifier,
        second.record.classifier_weights,
    ) and np.array_equal(first.outcomes.label[:n], second.outcomes.label[:n])


def _ranks(rows: Sequence[Row], protocol: Protocol) -> dict[str, int]:
    """Ranks by index on the ranked classifier: complete rows of `identity` and of those whose gain is known; where
    defenses may refuse, there is no `identity` to gain over."""
    ranked = {
        str(index): row
        for index, row in enumerate(rows)
        if row.radius is not None
        and (row.classifier, row.state) == (protocol.classifiers[0], "complete")
        and (row.defense == BASELINE or row.gain is not None or protocol.is_selective)
    }
    entries = {index: row.radius for index, row in ranked.items() if row.radius is not None}
    return statistics.ranks(entries, trainings={index: radius_by_seed(row) for index, row in ranked.items()})


def _place(row: Row, classifiers: Sequence[str]) -> tuple[object, ...]:
    """The sort key of a board: ranked classifier first, then rank, then MRR; rows attacked with less next, then warned
    ones, those without numbers last."""
    position = classifiers.index(row.classifier) if row.classifier in classifiers else len(classifiers)
    mrr = -1.0 if row.mrr is None else row.mrr.value
    rank = 10**9 if row.rank is None else row.rank
    doubt = ("complete", "reduced", "unverified").index(row.state) if row.mrr is not None else 0
    return (row.mrr is None, position, doubt, rank, -mrr, row.defense, row.classifier, row.seeds)
