"""What the pages show beyond the rows: charts, sparklines, exhibits, the table of cells, facts about a protocol."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.protocol import TRACKS, AttackSpec, Protocol
from bench.record import Cell
from bench.statistics import accuracy_interval
from leaderboard.figures import BASELINE_COLOUR, SERIES, Chart, Line, accuracy_chart, loss_chart
from leaderboard.formats import attack_name, radius, words
from leaderboard.gather import knowledge, slug
from leaderboard.pictures import data_uri
from leaderboard.tables import BASELINE, Board, Estimate, Row, cell_accuracy

PLANNED: Mapping[str, str] = {
    "transfer": "an attacker who trains a substitute for the classifier",
    "white_box": "an attacker who knows the defense",
    "latent": "an attacker who searches the defense's latent space",
    "rejection": "an attacker who also has to pass the defense's detector",
    "query": "an attacker who sees only scores",
}
_BLIND = {"clean", "gray_box", "transfer"}  # tracks whose attacker does not know that a defense exists


@dataclass(frozen=True)
class Facts:
    """Which tracks a protocol measures and which planned ones it lacks; `blind` if no attacker knows the defense."""

    measured: tuple[str, ...]
    absent: tuple[str, ...]
    blind: bool


@dataclass(frozen=True)
class CellLine:
    """One line of a defense's table of cells; every number may be None where the cell is missing."""

    name: str
    track: str
    attack: str
    norm: str
    eps: float | None
    params: Mapping[str, object]
    seed: int | None
    accuracy: Estimate | None
    linf: float | None
    l2: float | None
    forward: float | None
    backward: float | None
    status: str  # "ok", "failed", "missing" or "not counted"
    error: str = ""


@dataclass(frozen=True)
class Exhibit:
    """One image of a cell: three pictures as data URIs, its label, and what was predicted on the last of them."""

    pictures: tuple[str, str, str]
    label: int
    predicted: int
    share: float  # of the scoring draws that were right

    @property
    def is_right(self) -> bool:
        """Whether most draws classified the attacked image correctly."""
        return self.share > 0.5


@dataclass(frozen=True)
class Showcase:
    """The exhibits of one cell under the name of its attack."""

    attack: str
    track: str
    eps: float | None
    accuracy: Estimate
    exhibits: tuple[Exhibit, ...]


def facts(protocol: Protocol) -> Facts:
    """The tracks that occur in a protocol and those that are planned and do not."""
    absent = tuple(track for track in PLANNED if track not in protocol.tracks)
    return Facts(protocol.tracks, absent, set(protocol.tracks) <= _BLIND)


def attack_groups(specs: Sequence[AttackSpec]) -> list[tuple[AttackSpec, tuple[float | None, ...]]]:
    """The specs that differ only in their radius, as one spec and all its radii, in the protocol's order."""
    groups: dict[tuple[object, ...], list[AttackSpec]] = {}
    for spec in specs:
        groups.setdefault((spec.track, spec.route, spec.attack, spec.norm, spec.params), []).append(spec)
    return [(same[0], tuple(spec.eps for spec in same)) for same in groups.values()]


def track_meaning(track: str) -> str:
    """What the attacker of a track knows, in a sentence."""
    return TRACKS.get(track) or PLANNED.get(track, "")


def board_chart(board: Board, name: str) -> Chart | None:
    """Worst-case accuracy by radius of `identity` and the best seven other rows; None where nothing is known."""
    assert board.protocol is not None
    known = [row for row in board.rows if row.accuracy]
    rows = [row for row in known if row.defense != BASELINE][:SERIES]
    x = (0.0, *board.protocol.linf_radii)
    lines = [Line(_label(row, board), x, row.accuracy, k + 1, k % 2 * 3) for k, row in enumerate(rows)]
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
    intervals = [accuracy_interval(values) for values in row.curves]
    low, high = zip(*intervals, strict=True)
    lines = [Line("worst case, with 95 % interval", x, row.accuracy, width=2.6, low=low, high=high)]
    lines += _attack_lines(row, row.accuracy[0])
    baseline = board.baseline_of(row)
    if baseline is not None:
        lines.append(Line("no defense, worst case", x, baseline.accuracy, BASELINE_COLOUR, 1, marked=False))
    return accuracy_chart(name, "Accuracy against the radius", lines)


def _attack_lines(row: Row, clean: float) -> list[Line]:
    """Each attack's own accuracy by radius, averaged over seeds, starting from the clean accuracy."""
    by_attack: dict[tuple[str, str], dict[float, list[float]]] = {}
    for cell in row.cells:
        record = cell.record
        if record.norm == "linf" and record.eps:
            points = by_attack.setdefault((knowledge(record), record.attack), {})
            points.setdefault(record.eps, []).append(float(cell.outcomes.correct.mean()))
    lines = []
    for k, ((track, attack), points) in enumerate(sorted(by_attack.items())):
        x = (0.0, *sorted(points))
        y = (clean, *(float(np.mean(points[eps])) for eps in sorted(points)))
        label = f"{attack_name(attack)} ({words(track)})"
        lines.append(Line(label, x, y, 2 + k % (SERIES - 1), k // (SERIES - 1) % 2 * 2, width=1.3))
    return lines


def curves_chart(row: Row, name: str) -> Chart | None:
    """The loss of every iterative Linf attack at each step, at its largest radius, one seed; None without any."""
    largest: dict[str, Cell] = {}
    for cell in row.cells:
        record = cell.record
        if len(record.loss_curve) > 2 and record.norm == "linf" and record.seed == row.seeds[0]:
            label = f"{attack_name(record.attack)} ({words(knowledge(record))})"
            if label not in largest or (record.eps or 0) > (largest[label].record.eps or 0):
                largest[label] = cell
    lines = []
    for kind, label in enumerate(sorted(largest)):
        losses = largest[label].record.loss_curve
        curve = tuple(math.nan if loss is None else loss for loss in losses)
        x = tuple(float(step) for step in range(len(losses)))
        lines.append(Line(label, x, curve, 1 + kind % SERIES, kind % 4, 1.6, marked=False))
    return loss_chart(name, "Loss at each step, at each attack's largest radius", lines) if lines else None


def showcases(row: Row) -> tuple[Showcase, ...]:
    """The exhibits of the clean images and of the strongest cell at each radius, from the first seed."""
    chosen: dict[float, Cell] = {}
    for cell in row.cells:
        eps = cell.record.eps or 0.0
        is_counted = cell.record.seed == row.seeds[0] and cell.record.norm != "l2" and cell.outcomes.exhibits.shape[1]
        if is_counted and (eps not in chosen or _accuracy(cell) < _accuracy(chosen[eps])):
            chosen[eps] = cell
    return tuple(_showcase(chosen[eps]) for eps in sorted(chosen))


def _accuracy(cell: Cell) -> float:
    return float(cell.outcomes.correct.mean())


def _showcase(cell: Cell) -> Showcase:
    outcomes = cell.outcomes
    exhibits = []
    for k in range(min(outcomes.exhibits.shape[1], cell.record.n_examples)):
        clean, attacked, purified = (data_uri(outcomes.exhibits[stage, k]) for stage in range(3))
        label, predicted = int(outcomes.label[k]), int(outcomes.predicted[k])
        exhibits.append(Exhibit((clean, attacked, purified), label, predicted, float(outcomes.correct[k])))
    record = cell.record
    return Showcase(record.attack, knowledge(record), record.eps, cell_accuracy(cell), tuple(exhibits))


def cell_lines(row: Row, protocol: Protocol | None) -> tuple[CellLine, ...]:
    """Every cell of a row in the protocol's order, then cells outside the protocol, then the missing ones by name."""
    order = {spec.slug: k for k, spec in enumerate(protocol.attacks)} if protocol else {}
    cells = sorted(row.cells, key=lambda cell: (order.get(slug(cell.record), len(order)), cell.record.cell))
    lines = [_cell_line(cell, is_extra=cell.record.cell in row.extra) for cell in cells]
    for missing in row.missing:
        specs = [spec for spec in (protocol.attacks if protocol else ()) if spec.slug == missing.split(" ")[0]]
        lines += [
            CellLine(
                missing, knowledge(spec), spec.attack, spec.norm or "", spec.eps, dict(spec.params),
                None, None, None, None, None, None, "missing",
            )
            for spec in specs
        ]  # fmt: skip
    return tuple(lines)


def _cell_line(cell: Cell, *, is_extra: bool) -> CellLine:
    record, outcomes = cell.record, cell.outcomes
    status = "not counted" if is_extra and record.status == "ok" else record.status
    return CellLine(
        record.cell, knowledge(record), record.attack, record.norm or "", record.eps, record.params, record.seed,
        cell_accuracy(cell), float(np.median(outcomes.linf)), float(np.median(outcomes.l2)),
        record.forward_rows / record.n_examples, record.backward_rows / record.n_examples, status, record.error,
    )  # fmt: skip


def as_csv(board: Board) -> bytes:
    """The rows of a board as CSV with full precision, fractions in [0, 1]; text can never start a formula."""
    assert board.protocol is not None
    radii = board.protocol.linf_radii
    names = [f"robust_accuracy_at_{radius(eps)}" for eps in radii]
    measures = ["mean_robust_radius", "gain", "clean_accuracy", *names]
    header = ["protocol", "rank", "defense", "title", "classifier", "seeds", "state"]
    for name in measures:
        header += [name, f"{name}_low", f"{name}_high"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in board.rows:
        seeds = " ".join(map(str, row.seeds))
        line = (board.id, row.rank or "", row.defense, row.card.title, row.classifier, seeds, row.state)
        cells: list[object] = [_plain(part) for part in line]
        for estimate in (row.mrr, row.gain, row.clean, *(row.robust or (None,) * len(radii))):
            cells += [f"{v:.6f}" for v in (estimate.value, estimate.low, estimate.high)] if estimate else ["", "", ""]
        writer.writerow(cells)
    return text.getvalue().encode()


def _plain(part: object) -> object:
    return f"'{part}" if isinstance(part, str) and part[:1] in ("=", "+", "-", "@", "\t", "\r") else part


def sparkline(accuracy: Sequence[float], radii: Sequence[float]) -> str:
    """The `points` of a polyline in a box of 100 x 30: accuracy 1 at the top, radius 0 at the left."""
    xs = [0.0, *radii]
    return " ".join(f"{100 * x / xs[-1]:.1f},{30 - 30 * y:.1f}" for x, y in zip(xs, accuracy, strict=True))
