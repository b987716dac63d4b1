"""What the page of one attack is given: what it is, how each protocol runs it, and what it did to every defense."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np

import bench
from bench.catalog import ATTACKS, AttackInfo
from bench.protocol import AttackSpec
from bench.record import Cell
from leaderboard.tables import Board, Estimate, Row, cell_accuracy


@dataclass(frozen=True)
class Setting:
    """One setting of an attack over all defenses that met it: what it left of each, how far it went, what it cost.

    A cascade attacks only what still stood, so it has the share of those that it broke, and no accuracy.
    """

    spec: AttackSpec
    defenses: int
    images: tuple[int, int]  # the fewest and the most that were attacked of one defense
    left: tuple[Estimate, Estimate, Estimate] | None  # least, median (the lower of two) and largest accuracy
    broke: tuple[int, int] | None  # of a cascade: images broken and attacked, over all defenses
    linf: float | None  # medians over defenses of the median realised distance
    l2: float | None
    forward: float  # median rows for each attacked image
    backward: float
    seconds: float  # median time of making the images, as run


@dataclass(frozen=True)
class OnDefense:
    """What each independent kind of the attack left of one defense, at that kind's largest radius."""

    row: Row
    left: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class OnBoard:
    """The attack under one protocol: its settings in the protocol's order, and its independent kinds by defense."""

    board: Board
    settings: tuple[Setting, ...]
    kinds: tuple[AttackSpec, ...]
    rows: tuple[OnDefense, ...]


@dataclass(frozen=True)
class AttackPage:
    """An attack by its name; `info` is None where this version of the harness does not have it. `defaults` are the
    parameters that it has where a protocol sets none."""

    name: str
    info: AttackInfo | None
    defaults: Mapping[str, object]
    boards: tuple[OnBoard, ...]


def attack_pages(boards: Sequence[Board]) -> list[AttackPage]:
    """One page for every attack that has records, in the catalogue's order, then by name."""
    names = {cell.record.attack for board in boards for row in _measured(board) for cell in row.cells}
    order = {name: place for place, name in enumerate(ATTACKS)}
    found = sorted(names, key=lambda name: (order.get(name, len(order)), name))
    return [
        AttackPage(name, ATTACKS.get(name), defaults(ATTACKS.get(name)), _on_boards(name, boards)) for name in found
    ]


@lru_cache(maxsize=256)
def _read(function: str) -> Mapping[str, object]:
    module, _, name = function.partition(":")
    source = Path(bench.__file__).parent.parent / f"{module.replace('.', '/')}.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body if source.is_file() else ():
        if isinstance(node, ast.FunctionDef) and node.name == name:
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            found = {one.arg: _literal(value) for one, value in pairs if value is not None}
            return {key: value for key, value in found.items() if value is not None}
    return {}


def defaults(info: AttackInfo | None) -> Mapping[str, object]:
    """The keyword arguments of an attack's function that have a default, and those that make this attack out of it.

    Read from the source, a sum as it is written there: an import would wait for torch."""
    return {**_read(info.function), **info.fixed} if info else {}


def _literal(value: ast.expr) -> object:
    return value.value if isinstance(value, ast.Constant) else ast.unparse(value)


def _measured(board: Board) -> list[Row]:
    return [row for row in board.rows if row.state not in ("not_evaluated", "mixed")]


def _on_boards(name: str, boards: Sequence[Board]) -> tuple[OnBoard, ...]:
    found = (_on_board(name, board) for board in boards if board.protocol)
    return tuple(one for one in found if one.settings)


def _on_board(name: str, board: Board) -> OnBoard:
    rows = _measured(board)
    by_spec: dict[AttackSpec, list[Cell]] = {}
    for row in rows:
        for cell in _counted(row, name):
            by_spec.setdefault(cell.record.spec, []).append(cell)
    assert board.protocol is not None
    place = {spec.slug: k for k, spec in enumerate(board.protocol.every_attack)}
    specs = sorted(by_spec, key=lambda spec: (place.get(spec.slug, len(place)), spec.slug, spec.cascade, spec.params))
    kinds = _largest(specs)
    on = (OnDefense(row, tuple(_left(row, kind) for kind in kinds)) for row in rows)
    settings = tuple(_setting(spec, by_spec[spec]) for spec in specs)
    return OnBoard(board, settings, kinds, tuple(one for one in on if any(one.left)))


def _counted(row: Row, name: str) -> list[Cell]:
    return [cell for cell in row.cells if cell.record.attack == name and cell.record.cell not in row.extra]


def _setting(spec: AttackSpec, cells: Sequence[Cell]) -> Setting:
    met = [cell for cell in cells if cell.outcomes.attacked.any()]
    masks = [cell.outcomes.attacked for cell in met]
    left = sorted(filter(None, map(cell_accuracy, met)), key=lambda one: one.value)
    broken = sum(int((cell.outcomes.correct[mask] <= 0.5).sum()) for cell, mask in zip(met, masks, strict=True))
    counts = [int(mask.sum()) for mask in masks]
    distances = [
        [float(np.median(getattr(cell.outcomes, norm)[mask])) for cell, mask in zip(met, masks, strict=True)]
        for norm in ("linf", "l2")
    ]
    timed = [cell.record.run.attack_seconds for cell in met if cell.record.run.attack_seconds]  # 0: not told
    per_image = [
        (cell.record.forward_rows, cell.record.backward_rows, int(cell.outcomes.attacked.sum())) for cell in met
    ]
    return Setting(
        spec=spec,
        defenses=len({cell.record.defense for cell in cells}),
        images=(min(counts, default=0), max(counts, default=0)),
        left=(left[0], left[(len(left) - 1) // 2], left[-1]) if left and not spec.cascade else None,
        broke=(broken, sum(counts)) if spec.cascade and cells else None,
        linf=median(distances[0]) if met else None,
        l2=median(distances[1]) if met else None,
        forward=median(forward / n for forward, _, n in per_image) if met else 0.0,
        backward=median(backward / n for _, backward, n in per_image) if met else 0.0,
        seconds=median(timed) if timed else 0.0,
    )


def _largest(specs: Sequence[AttackSpec]) -> tuple[AttackSpec, ...]:
    """Of the independent specs that differ in their strength alone the one of largest radius, as a kind: without
    parameters or a variant."""
    largest: dict[AttackSpec, AttackSpec] = {}
    for spec in specs:
        if not spec.cascade and spec.variant in ("", "cold"):
            kind = replace(spec, params=(), variant="")
            without = replace(kind, eps=None)
            if without not in largest or (spec.eps or 0) > (largest[without].eps or 0):
                largest[without] = kind
    return tuple(largest.values())


def _left(row: Row, kind: AttackSpec) -> Estimate | None:
    """The accuracy of the cell of that kind on most images; of several seeds the first."""
    found = []
    for cell in _counted(row, kind.attack):
        spec = cell.record.spec
        is_usual = not spec.cascade and spec.variant in ("", "cold") and cell.record.seed == row.seeds[0]
        if is_usual and replace(spec, params=(), variant="") == kind:
            found.append(cell)
    return cell_accuracy(max(found, key=lambda cell: int(cell.outcomes.attacked.sum()))) if found else None
