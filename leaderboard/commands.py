"""The commands that make records again, as text to copy into a shell."""

from __future__ import annotations

import shlex

from bench.record import Record


def whole(protocol_id: str, defense: str = "") -> str:
    """The command for all cells of a defense; without a name, for one to fill in: `<defense>`."""
    base, _, limit = protocol_id.partition("+limit")
    name = shlex.quote(defense) if defense else "<defense>"
    return f"purifybench run {name} --protocol {shlex.quote(base)}" + (
        f" --limit {shlex.quote(limit)}" if limit else ""
    )


def of_row(record: Record, seeds: int, usual: str, *, submitted: bool = False) -> str:
    """The command for all cells like `record`, from `seeds` seeds; `usual` is the protocol's own classifier. Of a
    `submitted` defense, which is not installed here, it is the one that installs it first."""
    if submitted:
        return whole(record.protocol, record.defense).replace("purifybench run", "purifybench submission run", 1)
    more = f" --recipe {shlex.quote(record.recipe)}" if record.recipe else ""
    more += f" --classifier {shlex.quote(record.classifier)}" if record.classifier != usual else ""
    return whole(record.protocol, record.defense) + more + (f" --seeds {seeds}" if seeds > 1 else "")


def of_cell(record: Record, seeds: int, usual: str, *, submitted: bool = False) -> str:
    """The command for one cell and those that share its track and attack. A cell of a cascade attacks what earlier ones
    left over, so it needs them all. Of a `submitted` defense, the one that compares the record with the cell measured
    again."""
    if submitted:
        name, protocol, cell = (shlex.quote(text) for text in (record.defense, record.protocol, record.cell))
        return f"purifybench submission verify {name} --protocol {protocol} --cell {cell}"
    row = of_row(record, seeds, usual)
    is_free = record.cascade or not record.attack.isidentifier()
    return row if is_free else f"{row} --tracks {record.track} --attacks {record.attack}"
