"""How long the defenses of a board take for one image: from one run of the timing track, never from two machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.seeds import digest
from bench.timing_record import Entrant, Machine, Measure, Timing
from leaderboard.tables import BASELINE, Board, Row


@dataclass(frozen=True)
class Times:
    """The run that the times of a board are from."""

    timing: Timing

    @property
    def machine(self) -> Machine:
        """Where it was made."""
        return self.timing.machine

    def of(self, row: Row) -> Measure | None:
        """The times of a row at the smallest batch; None where it was not timed under the same settings."""
        entrant = next((one for one in self.timing.entrants if is_timed_as(row, one, self.timing)), None)
        return entrant.at(self.timing.batches[0]) if entrant else None


def times(timings: Sequence[Timing], board: Board) -> Times | None:
    """The run that knows the most rows of a board, the first of equals; None where no run knows a purifier of it."""
    if board.protocol is None:
        return None
    rows = [row for row in board.rows if row.defense != BASELINE]
    known = [
        (sum(one.of(row) is not None for row in rows), one)
        for one in map(Times, timings)
        if one.timing.dataset == board.protocol.dataset
    ]
    count, best = max(known, key=lambda found: found[0], default=(0, None))
    return best if count else None


def is_timed_as(row: Row, entrant: Entrant, timing: Timing) -> bool:
    """Whether a row measures what was timed: the same defense under the same settings, before the same classifier."""
    if entrant.kind != "defense" or (row.defense, row.classifier) != (entrant.name, timing.classifier):
        return False
    return digest(row.cells[0].record.settings) == digest(entrant.settings)
