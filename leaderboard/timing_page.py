"""The page of the timing track: one section a run, never two machines in one table; robustness against cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench import statistics
from bench.timing_record import CLASSIFIER, REFERENCE, Entrant, Machine, Measure, Passes, Timing
from leaderboard.latency import is_timed_as
from leaderboard.tables import Board, Estimate, Row

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 34, 58
_LABEL = (28, 22)  # the room of a number, in the larger letters of a phone
_BESIDE = tuple(  # where a number may stand, from its point's centre to its own: near before far, right before left
    (side * (24 + reach), shift)
    for reach in (0, 26, 52, 78, 104)
    for shift in (0, -24, 24, -48, 48, -72, 72)
    for side in (1, -1)
)
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
    """One point of a scatter, its number in the legend, where it is drawn, and where its number stands."""

    number: int
    line: Line
    value: Estimate
    x: float
    y: float
    low: float
    high: float
    label: tuple[float, float] = (0.0, 0.0)

    @property
    def is_led(self) -> bool:
        """Whether a line has to lead from the point to its number."""
        return (abs(self.label[0] - self.x), self.label[1]) != (_BESIDE[0][0], self.y)


@dataclass(frozen=True)
class Scatter:
    """Points over time on a logarithmic scale; `ticks` are (x, seconds), `levels` (y, share). `absent` are the titles
    of defenses that were timed and have no number to be drawn at."""

    spots: tuple[Spot, ...]
    ticks: tuple[tuple[float, float], ...]
    levels: tuple[tuple[float, float], ...]
    absent: tuple[str, ...] = ()


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

    @property
    def noisy(self) -> tuple[int, int]:
        """How many times have quartiles far apart, and how many there are."""
        measures = [measure for line in self.lines for measure in line.measures if measure is not None]
        return sum(measure.is_noisy for measure in measures), len(measures)

    @property
    def is_busy(self) -> bool:
        """Whether most times have quartiles far apart: then a mark at each would say nothing."""
        noisy, times = self.noisy
        return 2 * noisy > times

    @property
    def left_out(self) -> tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]:
        """Why defenses were not timed: each reason with their names, and the commands that mend it."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        for name, why in sorted(self.timing.left_out.items()):
            reason, _, command = why.partition("; ")
            names, commands = found.setdefault(reason, ([], []))
            names.append(name)
            commands += [command] if command else []
        return tuple((reason, tuple(names), tuple(commands)) for reason, (names, commands) in found.items())


def sections(timings: Sequence[Timing], boards: Sequence[Board]) -> tuple[Section, ...]:
    """A section for each run, in the order given."""
    return tuple(_section(timing, boards) for timing in timings)


def as_json(timing: Timing) -> bytes:
    """A run for other programs: all its rounds."""
    return (json.dumps(timing.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def _section(timing: Timing, boards: Sequence[Board]) -> Section:
    ours = [board for board in boards if board.protocol is not None and board.protocol.dataset == timing.dataset]
    lines = sorted((_line(timing, one, ours) for one in timing.entrants), key=lambda line: line.latency.median)
    drawn = [(board, scatter(_radii(lines, board), lines)) for board in ours]
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
    rows = [(board, next((row for row in board.rows if is_timed_as(row, entrant, timing)), None)) for board in boards]
    smallest, search = timing.batches[0], timing.entrant(REFERENCE)
    return Line(
        entrant, tuple(entrant.at(batch) for batch in timing.batches), timing.ratio(entrant, CLASSIFIER, smallest),
        timing.ratio(search, entrant.name, smallest) if search else None, _by_role(entrant.passes),
        tuple((board, row) for board, row in rows if row is not None),
    )  # fmt: skip


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


def scatter(points: Sequence[tuple[Line, Estimate]], timed: Sequence[Line] = ()) -> Scatter | None:
    """Shares against the time of one image, numbered from the quickest; None for fewer than two points. Of the defenses
    that were `timed`, those without a point are named."""
    if len(points) < 2:
        return None
    ordered = sorted(points, key=lambda point: (point[0].latency.median, point[0].entrant.name))
    times = [line.latency.median for line, _ in ordered]
    ticks = _ticks(times[0], times[-1])
    first, last = math.log10(ticks[0]), math.log10(ticks[-1])

    def across(seconds: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(seconds) - first) / (last - first), 1)

    def up(share: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)

    spots = [
        Spot(number, line, value, across(seconds), up(value.value), up(value.low), up(value.high))
        for number, ((line, value), seconds) in enumerate(zip(ordered, times, strict=True), start=1)
    ]
    drawn = {line.entrant.name for line, _ in points}
    absent = [one.entrant for one in timed if one.entrant.kind == "defense" and one.entrant.name not in drawn]
    levels = tuple((up(share), share) for share in (0, 0.25, 0.5, 0.75, 1))
    return Scatter(
        _labelled(spots), tuple((across(seconds), seconds) for seconds in ticks), levels,
        tuple(sorted({one.title for one in absent})),
    )  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Times from at most `low` to at least `high`: 1, 2 and 5 of each power of ten, or the powers alone over more than
    two of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    below = max(time for time in every if time <= low * (1 + 1e-9))
    above = min(time for time in (*every, 10.0 * every[-1]) if time >= high * (1 - 1e-9) and time > below)
    return [time for time in (*every, 10.0 * every[-1]) if below <= time <= above]


def _labelled(spots: Sequence[Spot]) -> tuple[Spot, ...]:
    """The spots with a place for each number that no point, whisker or other number has, as near as there is one."""
    taken = [(spot.x - 6, min(spot.high, spot.y - 6), spot.x + 6, max(spot.low, spot.y + 6)) for spot in spots]
    placed = []
    for spot in spots:
        boxes = [(_box(spot.x + right, spot.y + down), (spot.x + right, spot.y + down)) for right, down in _BESIDE]
        inside = [(box, at) for box, at in boxes if box[0] > LEFT and box[2] < WIDTH and 0 < box[1] < HEIGHT - BOTTOM]
        free = (one for one in inside if not any(_meet(one[0], other) for other in taken))
        box, (x, y) = next(free, (inside or boxes)[0])
        taken.append(box)
        placed.append(replace(spot, label=(round(x, 1), round(y, 1))))
    return tuple(placed)


def _box(x: float, y: float) -> tuple[float, float, float, float]:
    width, height = _LABEL
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
