"""Records as tables on a terminal, for `run`, `demo`, `show` and `compare`. Numbers come from bench.statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from bench import statistics
from bench.errors import BenchError
from bench.protocol import Protocol
from bench.record import Cell


def percent(share: float) -> str:
    """A share as people read it: 97.3 %."""
    return f"{100 * share:.1f} %"


def accuracy(cell: Cell) -> str:
    """A cell's accuracy with its 95 % interval."""
    values = cell.outcomes.correct.astype(np.float64)
    low, high = statistics.accuracy_interval(values)
    return f"{percent(float(values.mean()))} [{100 * low:.1f}, {100 * high:.1f}]"


def summary(cells: Sequence[Cell], protocol: Protocol) -> Table:
    """One row for each defense and classifier: clean accuracy, worst case at each Linf radius, mean robust radius."""
    measured = {cell.record.cell for cell in cells}
    whole = all(any(f".{spec.slug}.seed" in name for name in measured) for spec in protocol.attacks)
    what = "worst case of all attacks" if whole else "worst case of the selected attacks: not a result"
    table = Table(title=f"{protocol.id}, {what}", caption=_caveat(protocol), caption_justify="left")
    table.add_column("defense")
    for heading in (
        "classifier",
        "clean",
        *(f"Linf {eps:g}" for eps in protocol.linf_radii),
        "mean robust radius",
    ):
        table.add_column(heading, justify="right")
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.record.defense, cell.record.classifier), []).append(cell)
    for (defense, classifier), group in groups.items():
        failed = sum(cell.record.status == "failed" for cell in group)
        name = f"{group[0].record.card.title} ({defense})" + (f", {failed} cells failed" if failed else "")
        if not any(cell.record.attack == "none" for cell in group):
            table.add_row(name, classifier, *["–"] * (len(protocol.linf_radii) + 2))
            continue
        curve = statistics.robustness(group, "linf", protocol.linf_radii)
        radius = statistics.robust_radius(curve, protocol.linf_radii)
        low, high = statistics.bootstrap(radius)
        shares = [percent(float(share)) for share in curve.mean(axis=1)]
        table.add_row(name, classifier, *shares, f"{radius.mean():.3f} [{low:.3f}, {high:.3f}]" if whole else "–")
    return table


def details(cells: Sequence[Cell]) -> Table:
    """One row for each cell of one defense."""
    table = Table()
    for heading in ("track", "attack", "budget"):
        table.add_column(heading)
    for heading in (
        "accuracy, 95 % interval",
        "median Linf",
        "median L2",
        "forward rows",
        "backward rows",
        "status",
    ):
        table.add_column(heading, justify="right")
    for cell in cells:
        record, outcomes = cell.record, cell.outcomes
        budget = f"{record.norm} {record.eps:g}" if record.norm and record.eps is not None else "–"
        track = f"{record.track} {record.route}".strip()
        table.add_row(
            track, record.attack, budget, accuracy(cell), f"{np.median(outcomes.linf):.3f}",
            f"{np.median(outcomes.l2):.2f}", f"{record.forward_rows:,}", f"{record.backward_rows:,}",
            record.status if record.status == "ok" else f"failed: {record.error}",
        )  # fmt: skip
    return table


def comparison(first: Sequence[Cell], second: Sequence[Cell]) -> Table:
    """Cell by cell, two defenses on the same attacked track: the paired difference with its bootstrap interval.

    Raises BenchError if they share no cell.
    """
    theirs = {cell.record.cell: cell for cell in second}
    pairs = [(cell, theirs[cell.record.cell]) for cell in first if cell.record.cell in theirs]
    if not pairs:
        raise BenchError("the two share no cell of one protocol; run both under the same one")
    names = [pairs[0][0].record.defense, pairs[0][1].record.defense]
    table = Table(title=f"{names[0]} against {names[1]}, {pairs[0][0].record.protocol}")
    for heading in ("cell", *names, "difference, 95 % interval"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for mine, other in pairs:
        gap = mine.outcomes.correct.astype(np.float64) - other.outcomes.correct.astype(np.float64)
        low, high = statistics.bootstrap(gap)
        values = f"{100 * gap.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
        shares = [percent(float(cell.outcomes.correct.mean())) for cell in (mine, other)]
        table.add_row(mine.record.cell.removesuffix(f".seed{mine.record.seed}"), *shares, values)
    return table


def _caveat(protocol: Protocol) -> str:
    return protocol.purpose if not protocol.ranked or protocol.is_draft else ""
