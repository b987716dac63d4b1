"""The tables of the page "Papers": printed numbers by attack and defense, measured ones beside them, notes below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.record import Cell
from leaderboard.counterparts import NOT_REPEATED
from leaderboard.reported import PAPERS, Paper, Reported, reported
from leaderboard.reproduce import Line, lines, shared_caveats


@dataclass(frozen=True)
class PaperColumn:
    """One defense of a paper's table; `is_measured` if any of its numbers is, which makes room for ours."""

    defense: str
    is_measured: bool


@dataclass(frozen=True)
class Shown:
    """One number of a table: its line, and the numbers of its notes."""

    line: Line
    notes: tuple[int, ...]


@dataclass(frozen=True)
class PaperRow:
    """The numbers that share everything but the defense; None where the paper prints none."""

    first: Reported
    cells: tuple[Shown | None, ...]


@dataclass(frozen=True)
class Net:
    """A net that stands for a classifier: the share of validation images on which they agree, and how many answers it
    learned from."""

    classifier: str
    source: str
    agreement: float
    queries: int


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper: what holds for all its numbers, then the notes of some, by their number from 1 on."""

    name: str
    source: str
    paper: Paper
    columns: tuple[PaperColumn, ...]
    rows: tuple[PaperRow, ...]
    shared: tuple[str, ...]
    notes: tuple[str, ...]
    why_not: str  # no protocol repeats it
    measured: int
    protocols: tuple[str, ...]  # under which its numbers were measured
    is_repeated: bool  # by some protocol
    nets: tuple[Net, ...]  # that images of measured numbers were made on

    @property
    def printed(self) -> int:
        """How many numbers the paper prints here."""
        return sum(cell is not None for row in self.rows for cell in row.cells)


def paper_tables(cells: Iterable[Cell]) -> tuple[PaperTable, ...]:
    """All tables in the order of reported.csv; papers are those of leaderboard.reported.PAPERS."""
    found = lines(reported(), cells)
    names = dict.fromkeys(line.row.table for line in found)
    return tuple(_table([line for line in found if line.row.table == name]) for name in names)


def _table(found: Sequence[Line]) -> PaperTable:
    shared, notes = shared_caveats(found), dict[str, int]()
    defenses = tuple(dict.fromkeys(line.row.defense for line in found))
    groups: dict[tuple[object, ...], dict[str, Line]] = {}
    for line in found:
        groups.setdefault(_beside(line.row), {})[line.row.defense] = line

    def shown(line: Line | None) -> Shown | None:
        if line is None:
            return None
        own = [text for text in line.caveats if text not in shared] if line.measured else []
        return Shown(line, tuple(sorted(notes.setdefault(text, len(notes) + 1) for text in own)))

    rows = [
        PaperRow(next(iter(group.values())).row, tuple(shown(group.get(name)) for name in defenses))
        for group in sorted(groups.values(), key=lambda group: next(iter(group.values())).row.attack != "none")
    ]  # clean images first
    first = found[0].row
    return PaperTable(
        name=first.table,
        source=first.source,
        paper=PAPERS[first.source],
        columns=tuple(PaperColumn(d, any(line.measured for line in found if line.row.defense == d)) for d in defenses),
        rows=tuple(rows),
        shared=shared,
        notes=tuple(notes),
        why_not=NOT_REPEATED.get(first.table, ""),
        measured=sum(line.measured is not None for line in found),
        protocols=tuple(dict.fromkeys(one.counterpart.protocol for one in found if one.counterpart and one.measured)),
        is_repeated=any(line.counterpart for line in found),
        nets=tuple(dict.fromkeys(net for line in found for net in _nets(line))),
    )


def _nets(line: Line) -> Iterable[Net]:
    """The net behind a measured number of a transfer attack, where its agreement is known; one a seed."""
    records = (cell.record for cell in line.cells)
    return [
        Net(one.classifier, one.source, one.source_agreement, one.source_queries)
        for one in records
        if one.source_agreement is not None
    ]


def _beside(row: Reported) -> tuple[object, ...]:
    return tuple(value for name, value in row if name not in ("defense", "value_percent"))
