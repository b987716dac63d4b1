"""From stores to sound cells by protocol, with what submissions claim and who broke them, and everything that was wrong
with the rest. No numbers are computed here."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench import protocols, seal, timing_record
from bench.breaks import rules
from bench.breaks.schema import Kept
from bench.errors import BenchError
from bench.protocol import Protocol
from bench.record import SEAL, Cell, Store
from bench.submissions import places, schema
from bench.submissions.schema import Submission
from bench.timing_record import Timing


@dataclass(frozen=True)
class Gathered:
    """The cells of each protocol, ids in alphabetical order, and one line for each file that was left out; what
    submissions say of themselves, by name, the breaks that keep their rules, and the runs of the timing track."""

    cells: dict[str, tuple[Cell, ...]]
    problems: tuple[str, ...]
    submissions: Mapping[str, Submission] = field(default_factory=dict)
    breaks: tuple[Kept, ...] = ()
    timings: tuple[Timing, ...] = ()


def known(protocol_id: str) -> Protocol | None:
    """The protocol of that id, limited ones included; None where this version of the harness does not know it."""
    try:
        found = protocols.get(protocol_id)
    except BenchError:
        return None
    return found if found.id == protocol_id else None


def gather(stores: Sequence[Store] | Sequence[Path], submissions: Sequence[Path] = ()) -> Gathered:
    """All sound cells of all stores, and what the folders of `submissions` say: those given, and those whose `records`
    are among the stores.

    A cell that two stores hold is taken from the first; where the two differ, that is listed as a problem. Paths in
    problems are relative to their store, so that the same records give the same text wherever they lie.
    """
    stores = [store if isinstance(store, Store) else Store(store) for store in stores]
    chosen: dict[tuple[str, str, str], Cell] = {}
    problems: set[str] = set()
    for store in stores:
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
        for path in sorted(store.root.glob(f"*/*/{SEAL}")):
            where = path.relative_to(store.root).as_posix()
            problems |= {f"{where}: {problem}; run the protocol again" for problem in seal.problems(path.parent)}
    cells: dict[str, tuple[Cell, ...]] = {}
    for name in sorted(chosen):
        cells[name[0]] = (*cells.get(name[0], ()), chosen[name])
    found = [*submissions, *(store.root.parent for store in stores if store.root.name == "records")]
    folders = [path for path in dict.fromkeys(path.resolve() for path in found) if (path / places.FILE).is_file()]
    described, complaints = _described(folders)
    breaks, findings = _breaks(folders)
    timings, torn = _timings(stores)
    return Gathered(cells, tuple(sorted({*problems, *complaints, *findings, *torn})), described, breaks, timings)


def _timings(stores: Sequence[Store]) -> tuple[tuple[Timing, ...], list[str]]:
    """The runs of the timing track in all stores, and the files that hold none."""
    sound, problems = list[Timing](), list[str]()
    for one in timing_record.found([store.root for store in stores]):
        if isinstance(one, Timing):
            sound.append(one)
        else:
            problems.append(functools.reduce(lambda text, store: text.replace(f"{store.root}/", ""), stores, str(one)))
    return tuple(sound), problems


def _described(folders: Iterable[Path]) -> tuple[dict[str, Submission], list[str]]:
    """What submissions say of themselves, by name, and the descriptions that cannot be read."""
    described, problems = dict[str, Submission](), list[str]()
    for folder in folders:
        try:
            described.setdefault(folder.name, schema.read(folder / places.FILE))
        except BenchError as problem:
            problems.append(str(problem).replace(f"{folder.parent}/", ""))
    return described, problems


def _breaks(folders: Sequence[Path]) -> tuple[tuple[Kept, ...], list[str]]:
    """The breaks of submissions that keep their rules, and what was found in the others."""
    sound, problems = list[Kept](), list[str]()
    for root in dict.fromkeys(folder.parent for folder in folders):
        kept, findings = rules.kept(root, [folder.name for folder in folders if folder.parent == root])
        sound += kept
        problems += [f"{finding}; the break is left out" for finding in findings]
    return tuple(sound), problems


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
