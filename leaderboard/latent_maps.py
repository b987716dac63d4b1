"""The maps of a defense's codes that its records hold: where clean and attacked images lie, and what is read off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.protocol import AttackSpec
from bench.record import MAP, Cell, Record
from bench.statistics import ordered
from leaderboard.figures import Map, Mark
from leaderboard.formats import attack_name, knowledge, radius
from leaderboard.tables import Row


@dataclass(frozen=True)
class Neighbours:
    """How many images have a clean image of another class as the nearest code, and the pair of classes for which that
    is so most often, with its count and the images of the first class."""

    total: int
    astray: int
    label: int = -1
    other: int = -1
    count: int = 0
    of_label: int = 0


@dataclass(frozen=True)
class LatentMap:
    """One cell's map, and the numbers beside it: None where the record has none."""

    spec: AttackSpec
    images: int
    is_attacked: bool
    chart: Map
    near: Neighbours | None
    moved: float | None
    silhouette: float | None


def latent_maps(row: Row, name: str) -> tuple[LatentMap, ...]:
    """The maps in the records of a row's first seed, in the protocol's order; `name` is unique on the page."""
    cells = [cell for cell in row.cells if cell.record.seed == row.seeds[0] and cell.record.status == "ok"]
    cells = ordered(cells, row.effort) if row.effort else cells
    found: list[LatentMap] = []
    for cell in cells:
        clean, attacked = _marks(cell, "clean"), _marks(cell, "attacked")
        if clean and (not attacked or len(attacked) == len(clean)):
            record, near = cell.record, cell.record.facts.get(f"{MAP}neighbour")
            read = neighbours([mark.label for mark in clean], near) if isinstance(near, tuple) else None
            chart = Map(f"{name}{len(found)}", _title(record, len(clean), bool(attacked)), clean, attacked)
            numbers = [_number(record, fact) for fact in ("codes_moved", "silhouette")]
            found.append(LatentMap(record.spec, len(clean), bool(attacked), chart, read, *numbers))
    return tuple(found)


def neighbours(labels: Sequence[int], near: Sequence[float]) -> Neighbours | None:
    """Counts images of the classes `labels` by the class that each lies `near` to; None where these do not fit."""
    if len(labels) != len(near) or not labels or not all(0 <= other < 1000 for other in near):
        return None
    astray = Counter((label, int(other)) for label, other in zip(labels, near, strict=True) if label != int(other))
    if not astray:
        return Neighbours(len(labels), 0)
    (label, other), count = min(astray.items(), key=lambda item: (-item[1], item[0]))
    return Neighbours(len(labels), astray.total(), label, other, count, list(labels).count(label))


def _marks(cell: Cell, part: str) -> tuple[Mark, ...]:
    """The points of one part of a cell's map; none where it has no map, or numbers that are none."""
    xs, ys = (cell.record.facts.get(f"{MAP}{part}.{axis}") for axis in "xy")
    labels = cell.outcomes.label[cell.outcomes.attacked].tolist()
    if not isinstance(xs, tuple) or not isinstance(ys, tuple) or not len(xs) == len(ys) <= len(labels):
        return ()
    if any(not abs(value) <= 1 for value in (*xs, *ys)):
        return ()
    return tuple(Mark(x, y, label) for x, y, label in zip(xs, ys, labels, strict=False))


def _title(record: Record, images: int, is_attacked: bool) -> str:
    if not is_attacked:
        return f"Map of the codes of {images} clean images, by class"
    at = f" at ε = {radius(record.eps)}" if record.eps is not None else ""
    attack = f"{attack_name(record.attack)} ({knowledge(record)})"
    return f"Map of the codes of {images} images, clean and under {attack}{at}, by class"


def _number(record: Record, name: str) -> float | None:
    value = record.facts.get(name)
    return value if isinstance(value, float | int) else None
