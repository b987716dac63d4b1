"""What attacks without a small ball tell of the images that they made: how far they went, whether the class changed.

An attack that was run at several strengths is also counted over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.paper_metrics import OVER_SEVERAL, per_image
from bench.protocol import AttackSpec
from bench.record import TOLD, Cell, Record
from bench.statistics import ordered
from leaderboard.tables import Estimate, Row, cell_accuracy, mean_accuracy

WORDS = {
    "in_bound": "inside the bound",
    "fooled": "fool the bare classifier",
    "class_changed_by_net": "another class to the PGD-trained net",
    "class_changed_by_neighbours": "another class to the training images",
    "class_changed_by_both": "another class to both",
}


@dataclass(frozen=True)
class Line:
    """One cell: what is right of the images, their median L2 distance, and the numbers in the order of `Told.names`."""

    spec: AttackSpec
    seed: int
    accuracy: Estimate
    distance: float
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Told:
    """The cells of one attack; with several of one seed on the same images also `pooled`, and right under `every`."""

    attack: str
    names: tuple[str, ...]
    lines: tuple[Line, ...]
    pooled: Estimate | None
    every: Estimate | None


def told(row: Row) -> tuple[Told, ...]:
    """A table for each attack of which the records of a row tell something, in the protocol's order."""
    cells = ordered(row.cells, row.effort) if row.effort else row.cells
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if _numbers(cell.record) and cell.record.status == "ok" and cell.outcomes.attacked.any():
            groups.setdefault(cell.record.attack, []).append(cell)
    return tuple(_told(attack, same) for attack, same in groups.items())


def told_name(name: str) -> str:
    """What an attack tells, for people."""
    return WORDS.get(name, name.replace("_", " "))


def _told(attack: str, cells: Sequence[Cell]) -> Told:
    names = tuple(dict.fromkeys(name for cell in cells for name in _numbers(cell.record)))
    lines = []
    for cell in cells:
        accuracy, record = cell_accuracy(cell), cell.record
        assert accuracy is not None
        distance = float(np.median(cell.outcomes.l2[cell.outcomes.attacked]))
        lines.append(Line(record.spec, record.seed, accuracy, distance, tuple(map(_numbers(record).get, names))))
    first, several = cells[0], [cell for cell in cells if cell.record.seed == cells[0].record.seed]
    same = all(np.array_equal(cell.outcomes.attacked, first.outcomes.attacked) for cell in several)
    pooled, every = (
        mean_accuracy([combine(np.stack([per_image(metric, cell) for cell in several]))])
        if same and len(several) > 1
        else None
        for metric, combine in OVER_SEVERAL.items()
    )
    return Told(attack, names, tuple(lines), pooled, every)


def _numbers(record: Record) -> Mapping[str, float]:
    return {
        name.removeprefix(TOLD): value
        for name, value in record.facts.items()
        if name.startswith(TOLD) and isinstance(value, float | int)
    }
