"""From stores to sound cells by protocol, and everything that was wrong with the rest. No numbers are computed here."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import protocol as protocols
from bench.errors import BenchError
from bench.protocol import Protocol
from bench.record import Cell, Store


@dataclass(frozen=True)
class Gathered:
    """The cells of each protocol, ids in alphabetical order, one line for each file that was left out, and the names of
    the defenses that were submitted and do not come with PurifyBench."""

    cells: dict[str, tuple[Cell, ...]]
    problems: tuple[str, ...]
    submitted: frozenset[str] = frozenset()


def known(protocol_id: str) -> Protocol | None:
    """The protocol of that id, limited ones included; None where this version of the harness does not know it."""
    try:
        found = protocols.get(protocol_id)
    except BenchError:
        return None
    return found if found.id == protocol_id else None


def gather(stores: Sequence[Store] | Sequence[Path]) -> Gathered:
    """All sound cells of all stores.

    A cell that two stores hold is taken from the first; where the two differ, that is listed as a problem. Paths in
    problems are relative to their store, so that the same records give the same text wherever they lie.
    """
    chosen: dict[tuple[str, str, str], Cell] = {}
    problems: set[str] = set()
    opened = [store if isinstance(store, Store) else Store(store) for store in stores]
    for store in opened:
        for cell in store.cells():
            record = cell.record
            name = (record.protocol, record.defense, record.cell)
            where = "/".join(name)
            complaint = _malformed(cell)
            if complaint:
                problems.add(f"{where}.json: {complaint}; run the cell again")
                continue
            first = chosen.setdefault(name, cell)
            if first.record.outcomes_sha256 != record.outcomes_sha256 or first.record.key != record.key:
                problems.add(f"{where}.json: two stores hold different cells of this name; the first one is shown")
        problems |= {problem.replace(f"{store.root}/", "") for problem in store.problems}
    cells: dict[str, tuple[Cell, ...]] = {}
    for name in sorted(chosen):
        cells[name[0]] = (*cells.get(name[0], ()), chosen[name])
    return Gathered(cells, tuple(sorted(problems)), frozenset(filter(None, map(_submitted, opened))))


def _submitted(store: Store) -> str:
    """The name of the defense that a submission.toml beside the records describes, unless it comes with PurifyBench."""
    try:
        described = tomllib.loads((store.root.parent / "submission.toml").read_text())
        return "" if "included" in described["install"] else str(described["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _malformed(cell: Cell) -> str:
    """What is wrong with the arrays of a cell, in one sentence; empty where nothing is."""
    outcomes, n = cell.outcomes, cell.record.n_examples
    for name, array in outcomes.arrays().items():
        if name != "exhibits" and array.shape != (n,):
            return f"{name} has shape {array.shape}, expected ({n},)"
    if outcomes.attacked.dtype != np.bool_:
        return f"attacked holds {outcomes.attacked.dtype}, expected bool"
    for name in ("correct", "selection"):
        shares = getattr(outcomes, name)[outcomes.attacked]
        if not ((shares >= 0) & (shares <= 1)).all():
            return f"{name} holds values outside [0, 1]"
    exhibits = outcomes.exhibits
    if exhibits.ndim != 5 or exhibits.shape[0] != 3 or exhibits.dtype != np.uint8:
        return f"exhibits are {exhibits.dtype} {exhibits.shape}, expected uint8 (3, images, C, H, W)"
    return ""
