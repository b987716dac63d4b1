"""What the pages show beyond the rows: charts, sparklines, exhibits, the table of cells, facts about a protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench import selective
from bench.protocol import TRACKS, USUAL_THRESHOLD, AttackSpec, Protocol
from bench.record import Cell
from bench.statistics import (
    TOLERANCE,
    Strongest,
    accuracy_interval,
    distortion,
    is_unbounded,
    ordered,
    share_interval,
)
from leaderboard.figures import BASELINE_COLOUR, SERIES, Chart, Line, accuracy_chart, loss_chart, losses_chart
from leaderboard.formats import attack_name, knowledge, radius, thousands
from leaderboard.loss_names import loss_name
from leaderboard.pictures import data_uri
from leaderboard.tables import BASELINE, Board, Estimate, Row, cell_accuracy


@dataclass(frozen=True)
class Facts:
    """Which tracks a protocol measures and which it lacks; `blind` if no attacker sees the defense."""

    measured: tuple[str, ...]
    absent: tuple[str, ...]
    blind: bool


@dataclass(frozen=True)
class AttackGroup:
    """Attacks of a protocol that differ in their radius alone: one of them, all radii, and which images they attack."""

    spec: AttackSpec
    radii: tuple[float | None, ...]
    images: str


@dataclass(frozen=True)
class CellLine:
    """One line of a defense's table of cells; every number may be None where the cell is missing or attacked nothing.

    A cascade cell `attacked` only images that stood; `broken` of them fell.
    """

    name: str
    spec: AttackSpec
    status: str  # "ok", "failed", "missing" or "not counted"
    seed: int | None = None
    accuracy: Estimate | None = None
    attacked: int = 0
    broken: int = 0
    n: int = 0
    linf: float | None = None
    l2: float | None = None
    forward: float | None = None
    backward: float | None = None
    blocked: float | None = None
    error: str = ""
    source: Mapping[str, object] = field(default_factory=dict)  # what is known of the net that the images were made on


@dataclass(frozen=True)
class DistortionLine:
    """One attack without a budget: the L2 distance at which the median image breaks (None where it never does), and the
    accuracy at each of the protocol's L2 radii."""

    spec: AttackSpec
    seed: int
    n: int
    median: float | None
    accuracies: tuple[Estimate, ...]


@dataclass(frozen=True)
class Exhibit:
    """One image: clean, attacked and purified as data URIs (empty where its cell keeps no pictures), its label, and
    what was predicted on the last of them."""

    pictures: tuple[str, str, str]
    label: int
    predicted: int
    share: float  # of the scoring draws that were right
    attack: str  # what made the attacked image; empty for a clean one
    refused: float = 0.0  # share of the scoring draws

    @property
    def answer(self) -> str:
        """What most draws made of the last image: "right", "refused" or "wrong"."""
        return "right" if self.share > 0.5 else "refused" if self.refused > 0.5 else "wrong"


@dataclass(frozen=True)
class Showcase:
    """Each exhibited image at its worst within one radius."""

    eps: float
    accuracy: Estimate | None  # over all images, at this radius; of a selective defense, what is held
    exhibits: tuple[Exhibit, ...]

    @property
    def is_purified(self) -> bool:
        """Whether any image is another one after the defense."""
        return any(one.pictures[1] != one.pictures[2] for one in self.exhibits)


def facts(protocol: Protocol) -> Facts:
    """The tracks that occur in a protocol, for whatever kind of defense, and those that do not."""
    present = {spec.track for spec in protocol.every_attack}
    measured = tuple(track for track in TRACKS if track in present)
    blind = all(spec.is_shared for spec in protocol.every_attack)
    applicable = [track for track in TRACKS if track != "rejection" or protocol.is_selective]
    return Facts(measured, tuple(track for track in applicable if track not in present), blind)


def efforts(protocol: Protocol) -> list[tuple[str, Protocol]]:
    """What each kind of defense meets under a protocol, by name; the kind that the protocol itself describes first."""
    kinds = [(one.budget, one.stochastic) for one in protocol.efforts]
    names = [budget if budget != "cheap" else "cheap, random" if random else "cheap" for budget, random in kinds]
    views = [protocol.effort(budget, stochastic=random) for budget, random in kinds]
    usual = "cheap, deterministic" if kinds else "every defense"
    return [(usual, protocol.effort("cheap", stochastic=False)), *zip(names, views, strict=True)]


def reductions(row: Row, protocol: Protocol) -> str:
    """What a row was attacked with less of than a cheap deterministic one: "4 images instead of 10, …"; else empty."""
    usual, own = protocol.effort("cheap", stochastic=False, doors=row.card.doors), row.effort
    if own is None:
        return ""
    counts = (
        ("{} images", usual.n_examples, own.n_examples),
        ("{} cells", len(usual.attacks), len(own.attacks)),
        ("at most {} steps", _most(usual, "steps"), _most(own, "steps")),
        ("at most {} queries", _most(usual, "queries"), _most(own, "queries")),
    )
    said = [
        f"{what.format(thousands(less))} instead of {thousands(more)}" if less else f"no {what.split()[-1]}"
        for what, more, less in counts
        if less < more
    ]
    no_cascade = any(spec.cascade for spec in usual.attacks) and not any(spec.cascade for spec in own.attacks)
    return ", ".join([*said, "no cascade"] if no_cascade else said)


def _most(protocol: Protocol, name: str) -> int:
    """The most of a parameter that an attacker who knows the defense spends in one run."""
    return max((int(dict(spec.params).get(name, 0)) for spec in protocol.attacks if spec.knows_defense), default=0)


def attack_groups(specs: Sequence[AttackSpec]) -> list[AttackGroup]:
    """The specs that differ only in their radius in one group, in the protocol's order."""
    groups: dict[AttackSpec, list[AttackSpec]] = {}
    for spec in specs:
        groups.setdefault(replace(spec, eps=None), []).append(spec)
    return [AttackGroup(same[0], tuple(spec.eps for spec in same), _images(same[0])) for same in groups.values()]


def _images(spec: AttackSpec) -> str:
    if spec.cascade:
        return "what still stands"
    return f"the first {spec.n_examples}" if spec.n_examples else "all"


def track_meaning(track: str) -> str:
    """What the attacker of a track knows, in a sentence."""
    return TRACKS[track]


def board_chart(board: Board, name: str) -> Chart | None:
    """Worst-case accuracy by radius of `identity`, the best seven other rows, and all others as faint lines under one
    name; None where nothing is known."""
    assert board.protocol is not None
    known = [row for row in board.rows if row.accuracy]
    rows = [row for row in known if row.defense != BASELINE]
    rows, others = rows[:SERIES], rows[SERIES:]
    x = (0.0, *board.protocol.linf_radii)
    faint = f"{len(others)} more, faint: the table names them"
    lines = [
        Line(faint, x, row.accuracy, BASELINE_COLOUR, 0, 1.0, 0.45, marked=False, is_named=row is others[0])
        for row in others
    ]
    lines += [Line(_label(row, board), x, row.accuracy, k + 1, k % 2 * 3) for k, row in enumerate(rows)]
    lines += [
        Line("no defense", x, row.accuracy, BASELINE_COLOUR, dash=1, marked=False)
        for row in known
        if row is board.baseline
    ]
    return accuracy_chart(name, "Worst-case accuracy against the radius", lines) if lines else None


def _label(row: Row, board: Board) -> str:
    assert board.protocol is not None
    is_usual = row.classifier == board.protocol.classifiers[0]
    return row.card.title if is_usual else f"{row.card.title}, classifier {row.classifier}"


def defense_chart(row: Row, board: Board, name: str) -> Chart | None:
    """The worst case of one row with its interval, each attack by itself, and `identity` for comparison."""
    if row.curves is None or board.protocol is None:
        return None
    x = (0.0, *board.protocol.linf_radii)
    assert row.curves_by_seed is not None
    intervals = [share_interval(values, is_proportion=True) for values in row.curves_by_seed.swapaxes(0, 1)]
    low, high = zip(*intervals, strict=True)
    lines = [Line("worst case, with 95 % interval", x, row.accuracy, width=2.6, low=low, high=high)]
    lines += _attack_lines(row, row.accuracy[0])
    baseline = board.baseline_of(row)
    if baseline is not None:
        lines.append(Line("no defense, worst case", x, baseline.accuracy, BASELINE_COLOUR, 1, marked=False))
    return accuracy_chart(name, "Accuracy against the radius", lines)


def _attack_lines(row: Row, clean: float) -> list[Line]:
    """Each attack's own accuracy by radius, from independent runs, over all seeds: those with cells at every radius;
    of a track and route that has none the strongest, at the radii that it has.

    An attack with cells at some radii only gets markers: a line would claim what lies between.
    """
    radii = row.effort.linf_radii if row.effort else ()
    by_attack: dict[tuple[str, str, str], dict[float, list[Cell]]] = {}
    for cell in row.cells:
        record = cell.record
        if _is_plain(cell) and record.eps in radii:
            points = by_attack.setdefault(
                (knowledge(replace(record.spec, source="")), record.source, record.attack), {}
            )
            points.setdefault(record.eps or 0, []).append(cell)
    found: dict[str, list[tuple[bool, float, Line]]] = {}  # by track and route: whether whole, the last mean, the line
    for (kind, _, attack), points in sorted(by_attack.items()):
        largest = [_on_most_images(points[eps]) for eps in sorted(points)]
        means = [float(np.mean([cell.outcomes.accuracy for cell in cells])) for cells in largest]
        attacked = min(int(cells[0].outcomes.attacked.sum()) for cells in largest)
        few = f", first {attacked}" if attacked < row.n else ""
        known = knowledge(largest[0][0].record)
        whole = len(points) == len(radii)
        x, y = (0.0, *sorted(points)), (clean, *means)
        alone = "" if whole else f", at ε = {', '.join(map(radius, sorted(points)))} alone"
        label = f"{attack_name(attack)} ({known}{few}){alone}"
        line = Line(label, x[not whole :], y[not whole :], width=1.3, joined=whole)
        found.setdefault(kind, []).append((whole, means[-1], line))
    colours = {kind: 2 + k % (SERIES - 1) for k, kind in enumerate(sorted(set(found) - {"clean"}))}
    lines = []
    for kind, some in sorted(found.items()):
        shown = [line for whole, _, line in some if whole] or [min(some, key=lambda one: one[1])[2]]
        dashes = range(len(shown)) if kind in colours else [2]
        lines += [replace(line, colour=colours.get(kind, BASELINE_COLOUR), dash=dash % 4)
                  for line, dash in zip(shown, dashes, strict=False)]  # fmt: skip
    return lines


def _on_most_images(cells: Sequence[Cell]) -> list[Cell]:
    most = max(int(cell.outcomes.attacked.sum()) for cell in cells)
    return [cell for cell in cells if cell.outcomes.attacked.sum() == most]


def _is_plain(cell: Cell) -> bool:
    """Whether a cell is an independent run at a radius, and neither a repetition with more steps nor a wide one."""
    record = cell.record
    is_usual = record.variant in ("", "cold") and not record.cascade
    return is_usual and record.norm == "linf" and bool(record.eps) and bool(cell.outcomes.attacked.any())


def curves_chart(row: Row, name: str) -> Chart | None:
    """The loss of every independent gradient attack at each step, at its largest radius, each kind of loss in a panel
    of its own; None without any."""
    largest: dict[str, Cell] = {}
    for cell in row.cells:
        record = cell.record
        has_gradient = record.track in (
            "gray_box",
            "white_box",
            "rejection",
        )  # losses of transfer are another defense's
        if _is_plain(cell) and has_gradient and len(record.loss_curve) > 2 and record.seed == row.seeds[0]:
            label = f"{attack_name(record.attack)} ({knowledge(record)})"
            if label not in largest or (record.eps or 0) > (largest[label].record.eps or 0):
                largest[label] = cell
    names = {label: loss_name(cell.record) for label, cell in largest.items()}
    panels = sorted(set(names.values()))
    lines = []
    for kind, label in enumerate(sorted(largest, key=lambda label: (names[label], label))):
        losses = largest[label].record.loss_curve
        curve = tuple(math.nan if loss is None else loss for loss in losses)
        x = tuple(float(step) for step in range(len(losses)))
        lines.append(
            Line(
                label,
                x,
                curve,
                1 + kind % SERIES,
                kind // SERIES % 4,
                1.6,
                marked=False,
                panel=panels.index(names[label]),
            )
        )
    title = "Loss at each step, at each attack's largest radius; higher is stronger"
    return loss_chart(name, title, lines, panels) if lines else None


def training_chart(row: Row, name: str) -> Chart | None:
    """The loss of each epoch of the trainings behind a row, its first seed; None where none has two epochs."""
    lines: list[Line] = []
    for cell in row.cells:
        for label, losses in cell.record.training.items() if cell.record.seed == row.seeds[0] else ():
            if len(losses) > 1:
                epochs = tuple(float(epoch) for epoch in range(1, len(losses) + 1))
                lines.append(Line(label, epochs, losses, 1 + len(lines) % SERIES, len(lines) // SERIES % 4))
    return losses_chart(name, lines) if lines else None


def showcases(row: Row) -> tuple[Showcase, ...]:
    """The first images without an attack and at their worst within each radius, from the first seed."""
    if row.effort is None:
        return ()
    every = selective.as_answered(row.recorded, USUAL_THRESHOLD) if row.effort.is_selective else row.cells
    cells = [cell for cell in every if cell.record.seed == row.seeds[0] and cell.record.norm in (None, "linf")]
    cells = [cell for cell in ordered(cells, row.effort) if cell.record.cell not in row.extra]
    clean = next((cell for cell in cells if cell.record.spec.slug == "clean.none"), None)
    if clean is None:
        return ()
    shown = []
    for k, eps in enumerate((0.0, *row.effort.linf_radii)):
        accuracy = row.clean if k == 0 else row.robust[k - 1] if row.robust else None
        count = min(clean.outcomes.exhibits.shape[1], row.n)
        shown.append(Showcase(eps, accuracy, tuple(
            _exhibit(cells, clean, image, eps, row.effort.is_selective) for image in range(count)
        )))  # fmt: skip
    return tuple(shown)


def _exhibit(cells: Sequence[Cell], clean: Cell, image: int, eps: float, may_refuse: bool) -> Exhibit:
    """One image from the first cell that broke it within the ball; where none did, from the last that came so far."""
    chosen = clean
    if eps and clean.outcomes.selection[image] > (0 if may_refuse else 0.5):
        near = [cell for cell in cells if cell.outcomes.linf[image] <= eps + TOLERANCE]
        worst = min((cell.outcomes.selection[image] for cell in near), default=1.0)
        equal = [cell for cell in near if cell.outcomes.selection[image] == worst] or [clean]
        shown = [cell for cell in equal if image < cell.outcomes.exhibits.shape[1]] or equal
        chosen = shown[0] if worst <= 0.5 else shown[-1]
    outcomes, record = chosen.outcomes, chosen.record
    has_pictures = image < outcomes.exhibits.shape[1]  # a cell that did not attack all exhibited images keeps none
    pictures = [data_uri(outcomes.exhibits[stage, image]) if has_pictures else "" for stage in range(3)]
    pictures[0] = data_uri(clean.outcomes.exhibits[0, image])
    attack = "" if record.attack == "none" else f"{attack_name(record.attack)} ({knowledge(record)})"
    return Exhibit(
        (pictures[0], pictures[1], pictures[2]), int(outcomes.label[image]), int(outcomes.predicted[image]),
        float(outcomes.correct[image]), attack, 1 - float(outcomes.accepted[image]) if may_refuse else 0.0,
    )  # fmt: skip


def distortions(row: Row) -> tuple[DistortionLine, ...]:
    """Every attack without a budget, in the protocol's order, where its seed has a clean cell."""
    if row.effort is None:
        return ()
    cells = [cell for cell in ordered(row.cells, row.effort) if cell.record.cell not in row.extra]
    clean = {cell.record.seed: cell for cell in cells if cell.record.spec.slug == "clean.none"}
    found = []
    for cell in cells:
        seed, attacked = cell.record.seed, int(cell.outcomes.attacked.sum())
        if is_unbounded(cell) and seed in clean and attacked:
            far = distortion(clean[seed], cell, row.effort.l2_radii)
            estimates = [Estimate(float(one.mean()), *accuracy_interval(one), attacked) for one in far.accuracies]
            median = far.median if math.isfinite(far.median) else None
            found.append(DistortionLine(cell.record.spec, seed, attacked, median, tuple(estimates)))
    return tuple(found)


def cell_lines(row: Row) -> tuple[CellLine, ...]:
    """Every cell of a row in the protocol's order, then cells outside the protocol, then the missing ones by name."""
    cells = ordered(row.cells, row.effort) if row.effort else row.cells
    lines = [_cell_line(cell, is_extra=cell.record.cell in row.extra) for cell in cells]
    by_slug = {spec.slug: spec for spec in row.effort.attacks} if row.effort else {}
    return (*lines, *(CellLine(name, by_slug[name.split(" ")[0]], "missing") for name in row.missing))


def _cell_line(cell: Cell, *, is_extra: bool) -> CellLine:
    record, outcomes = cell.record, cell.outcomes
    mask, attacked = outcomes.attacked, int(outcomes.attacked.sum())
    per_image = max(attacked, 1)
    return CellLine(
        record.cell, record.spec, "not counted" if is_extra and record.status == "ok" else record.status, record.seed,
        cell_accuracy(cell), attacked, int((outcomes.correct[mask] <= 0.5).sum()), record.n_examples,
        float(np.median(outcomes.linf[mask])) if attacked else None,
        float(np.median(outcomes.l2[mask])) if attacked else None,
        record.forward_rows / per_image, record.backward_rows / per_image, record.blocked, record.error,
        _about_source(cell),
    )  # fmt: skip


def _about_source(cell: Cell) -> dict[str, object]:
    record = cell.record
    known = {"source_agreement": record.source_agreement} if record.source_agreement is not None else {}
    return {**known, **({"source_queries": record.source_queries} if record.source_queries else {})}


def strongest_name(strongest: Strongest | None) -> str:
    """The attack that broke most, in words: "APGD margin (white box, BPDA)"; empty for None."""
    return f"{attack_name(strongest.kind.attack)} ({knowledge(strongest.kind)})" if strongest else ""


def sparkline(accuracy: Sequence[float], radii: Sequence[float]) -> str:
    """The `points` of a polyline in a box of 100 x 30: accuracy 1 at the top, radius 0 at the left."""
    xs = [0.0, *radii]
    return " ".join(f"{100 * x / xs[-1]:.1f},{30 - 30 * y:.1f}" for x, y in zip(xs, accuracy, strict=True))
