"""The page of the timing track: one section a run, never two machines in one table; robustness against cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import statistics
from bench.seeds import digest
from bench.timing_record import CLASSIFIER, REFERENCE, Entrant, Machine, Measure, Passes, Timing
from leaderboard.tables import Board, Estimate, Row

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 44
_ROLES = {"encoder": ("encoder", "mean", "variance", "posterior"), "generator": ("decoder", "generator", "gan")}


@dataclass(frozen=True)
class Line:
    """One who was timed, as the table shows it; `measured` are the boards with its robustness and its rows there."""

    entrant: Entrant
    measures: tuple[Measure | None, ...]  # one for each of the run's sizes of batch
    to_classifier: float | None
    search_takes: float | None  # times as long
    rows: Mapping[str, Passes]  # by role: classifier, encoder, generator, other
    measured: tuple[tuple[Board, Row], ...] = ()

    @property
    def latency(self) -> Measure:
        """The times at the smallest batch."""
        return next(measure for measure in self.measures if measure is not None)


@dataclass(frozen=True)
class Spot:
    """One point of a scatter, its number in the legend, and where it is drawn."""

    number: int
    line: Line
    value: Estimate
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Scatter:
    """Points over time on a logarithmic scale; `ticks` are (x, seconds), `levels` (y, share)."""

    spots: tuple[Spot, ...]
    ticks: tuple[tuple[float, float], ...]
    levels: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Section:
    """One run: its machine, the table, a scatter of mean robust radii for each board that has some, and the curve of
    the search's lengths."""

    timing: Timing
    lines: tuple[Line, ...]
    scatters: tuple[tuple[Board, Scatter], ...]
    curve: tuple[tuple[Line, Estimate, Estimate], ...]  # with clean accuracy and that under FGSM
    curve_scatter: Scatter | None

    @property
    def machine(self) -> Machine:
        """Where the run was made."""
        return self.timing.machine


def sections(timings: Sequence[Timing], boards: Sequence[Board]) -> tuple[Section, ...]:
    """A section for each run, in the order given."""
    return tuple(_section(timing, boards) for timing in timings)


def as_json(timing: Timing) -> bytes:
    """A run for other programs: all its rounds."""
    return (json.dumps(timing.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def _section(timing: Timing, boards: Sequence[Board]) -> Section:
    ours = [board for board in boards if board.protocol is not None and board.protocol.dataset == timing.dataset]
    lines = sorted((_line(timing, one, ours) for one in timing.entrants), key=lambda line: line.latency.median)
    drawn = [(board, scatter(_radii(lines, board))) for board in ours]
    curve = [(line, *_scores(line.entrant)) for line in lines if line.entrant.score is not None]
    return Section(
        timing, tuple(lines), tuple((board, one) for board, one in drawn if one is not None), tuple(curve),
        scatter([(line, attacked) for line, _, attacked in curve]),
    )  # fmt: skip


def _radii(lines: Sequence[Line], board: Board) -> list[tuple[Line, Estimate]]:
    """Who has a mean robust radius of accuracy on a board that is no draft."""
    if board.protocol is None or board.protocol.is_selective or board.protocol.is_draft:
        return []
    rows = [(line, row) for line in lines for where, row in line.measured if where is board]
    return [(line, row.mrr) for line, row in rows if row.mrr is not None]


def _line(timing: Timing, entrant: Entrant, boards: Sequence[Board]) -> Line:
    rows = [(board, _row(timing, entrant, board)) for board in boards]
    smallest, search = timing.batches[0], timing.entrant(REFERENCE)
    return Line(
        entrant, tuple(entrant.at(batch) for batch in timing.batches), timing.ratio(entrant, CLASSIFIER, smallest),
        timing.ratio(search, entrant.name, smallest) if search else None, _by_role(entrant.passes),
        tuple((board, row) for board, row in rows if row is not None),
    )  # fmt: skip


def _row(timing: Timing, entrant: Entrant, board: Board) -> Row | None:
    """The row of a board that measures what was timed: the same defense under the same settings."""
    if entrant.kind != "defense":
        return None
    for row in board.rows:
        same = (row.defense, row.classifier) == (entrant.name, timing.classifier)
        if same and digest(row.cells[0].record.settings) == digest(entrant.settings):
            return row
    return None


def _by_role(passes: Mapping[str, Passes]) -> dict[str, Passes]:
    """Rows through the classifier, and the most through any net that its name says encodes or generates."""
    found: dict[str, Passes] = {}
    for name, rows in passes.items():
        roles = (role for role, words in _ROLES.items() if any(word in name for word in words))
        role = CLASSIFIER if name == CLASSIFIER else next(roles, "other")
        if role not in found or rows.forward > found[role].forward:
            found[role] = rows
    return found


def _scores(entrant: Entrant) -> tuple[Estimate, Estimate]:
    score = entrant.score
    assert score is not None
    clean, attacked = (
        Estimate(share, *statistics.wilson(round(share * score.n), score.n), score.n)
        for share in (score.clean, score.fgsm)
    )
    return clean, attacked


def scatter(points: Sequence[tuple[Line, Estimate]]) -> Scatter | None:
    """Shares against the time of one image, numbered from the quickest; None for fewer than two points."""
    if len(points) < 2:
        return None
    ordered = sorted(points, key=lambda point: (point[0].latency.median, point[0].entrant.name))
    powers = [math.log10(line.latency.median) for line, _ in ordered]
    first, last = math.floor(min(powers)), math.ceil(max(powers))
    last = max(last, first + 1)

    def across(power: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (power - first) / (last - first), 1)

    def up(share: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)

    spots = [
        Spot(number, line, value, across(power), up(value.value), up(value.low), up(value.high))
        for number, ((line, value), power) in enumerate(zip(ordered, powers, strict=True), start=1)
    ]
    ticks = [(across(power), 10.0**power) for power in range(first, last + 1)]
    return Scatter(tuple(spots), tuple(ticks), tuple((up(share), share) for share in (0, 0.25, 0.5, 0.75, 1)))
