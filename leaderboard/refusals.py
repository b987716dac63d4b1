"""What becomes of the images of a defense that may refuse: right, wrong and refused at each threshold, and how errors
and coverage trade."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench import selective, statistics
from bench.protocol import THRESHOLDS, AttackSpec
from bench.record import Cell
from bench.statistics import ordered
from leaderboard.figures import Chart, Line, risk_chart
from leaderboard.formats import attack_name, knowledge, radius
from leaderboard.tables import Board, Estimate, Row, mean_accuracy

POINTS = 60  # of a curve in a figure


@dataclass(frozen=True)
class Answers:
    """What becomes of the images at one radius: the shares sum to 1."""

    right: Estimate
    wrong: Estimate
    refused: Estimate


@dataclass(frozen=True)
class Refusals:
    """One row at one threshold: what the threshold is, `answers` clean and at each headline radius, and at each of the
    latter what is `held`: right when clean and never accepted and wrong."""

    row: Row
    threshold: str
    value: float
    answers: tuple[Answers, ...]
    held: tuple[Estimate, ...]


def refusals(board: Board) -> list[Refusals]:
    """Every row with numbers at every threshold that its records tell of; nothing where no defense may refuse."""
    return [found for row in board.rows for found in of_row(row)]


def of_row(row: Row) -> list[Refusals]:
    """The same for one row."""
    if row.mrr is None or row.effort is None or not row.effort.is_selective:
        return []
    return [found for threshold in THRESHOLDS if (found := _at(row, threshold)) is not None]


def _at(row: Row, threshold: str) -> Refusals | None:
    assert row.effort is not None
    try:
        found = [selective.worst(cells, "linf", row.effort.headline_radii, threshold) for cells in _by_seed(row)]
    except ValueError:  # of a random defense only the cells' own threshold is known
        return None
    radii = row.effort.headline_radii
    answers = [
        Answers(
            *(mean_accuracy([getattr(one, name)[place] for one in found]) for name in ("right", "wrong", "refused"))
        )
        for place in range(1 + len(radii))
    ]
    robust = [statistics.robustness(selective.as_held(cells, threshold), "linf", radii) for cells in _by_seed(row)]
    held = tuple(mean_accuracy([curve[1 + place] for curve in robust]) for place in range(len(radii)))
    return Refusals(row, threshold, row.recorded[0].record.thresholds.get(threshold, np.inf), tuple(answers), held)


def _by_seed(row: Row) -> list[list[Cell]]:
    """The recorded cells of each seed that count, in the protocol's order."""
    assert row.effort is not None
    counted = [cell for cell in ordered(row.recorded, row.effort) if cell.record.cell not in row.extra]
    return [[cell for cell in counted if cell.record.seed == seed] for seed in row.seeds]


def risk_coverage(row: Row, name: str) -> Chart | None:
    """Errors among accepted images against the share accepted, over all thresholds: clean images, and of every kind of
    attacker the cell at the largest headline radius that leaves the largest area; from the first seed."""
    if row.effort is None or not row.effort.is_selective or row.card.stochastic:
        return None
    eps = row.effort.headline_radii[-1]
    chosen: dict[AttackSpec | str, tuple[Cell, selective.RiskCoverage]] = {}
    for cell in _by_seed(row)[0] if row.mrr is not None else []:
        record = cell.record
        if record.spec.slug != "clean.none" and (record.norm, record.eps, record.track == "clean") != (
            "linf",
            eps,
            False,
        ):
            continue
        curve = selective.risk_coverage(cell)
        if record.track not in chosen or curve.area > chosen[record.track][1].area:
            chosen[record.track] = cell, curve
    lines = [_line(cell, curve, place) for place, (cell, curve) in enumerate(chosen.values())]
    return risk_chart(name, f"Errors among accepted images, attacks at ε = {radius(eps)}", lines) if lines else None


def _line(cell: Cell, curve: selective.RiskCoverage, place: int) -> Line:
    record = cell.record
    label = "no attack" if record.attack == "none" else f"{attack_name(record.attack)} ({knowledge(record)})"
    shown = np.unique(np.linspace(0, len(curve.risk) - 1, POINTS).astype(int))
    x, y = (tuple(float(value) for value in part[shown]) for part in (100 * curve.coverage, curve.risk))
    return Line(f"{label}, area {curve.area:.3f}", x, y, 1 + place, place % 4, marked=False)
