"""What the page of one defense under one protocol is given: a section for each of its rows, and what papers printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.submissions.schema import Submission
from leaderboard import commands, refusals, views
from leaderboard.breakers import breakers
from leaderboard.claims import claim_lines
from leaderboard.codes import codes
from leaderboard.counterparts import DEFENSES
from leaderboard.latent_maps import latent_maps
from leaderboard.paper_tables import PaperTable
from leaderboard.tables import Board, Row
from leaderboard.told import told


@dataclass(frozen=True)
class Printed:
    """How many numbers one table of a paper prints of a defense, under the paper's own name for it."""

    table: str
    defense: str
    numbers: int
    measured: int


def printed(tables: Iterable[PaperTable], defense: str) -> list[Printed]:
    """The papers' tables that print numbers of `defense`."""
    found = []
    for table in tables:
        for place, column in enumerate(table.columns):
            shown = [row.cells[place] for row in table.rows if DEFENSES.get(column.defense) == defense]
            lines = [one.line for one in shown if one is not None]
            if lines:
                measured = sum(line.measured is not None for line in lines)
                found.append(Printed(table.name, column.defense, len(lines), measured))
    return found


def values(
    board: Board, rows: Sequence[Row], tables: Iterable[PaperTable], submission: Submission | None = None
) -> dict[str, object]:
    """What the template is given for the `rows` of one defense on `board`; `submission` says what its authors claim.

    A submission that does not come with PurifyBench is measured again by other commands."""
    defense = rows[0].defense
    return {
        "defense": defense,
        "card": rows[0].card,
        "submission": submission,
        "sections": [_section(row, board, f"r{k}", submission) for k, row in enumerate(rows)],
        "printed": printed(tables, defense),
    }


def _section(row: Row, board: Board, name: str, submission: Submission | None) -> dict[str, object]:
    """What the page shows of one row; `name` is unique on the page."""
    first = row.cells[0].record
    submitted = submission is not None and not submission.install.included
    usual = board.protocol.classifiers[0] if board.protocol else first.classifier
    seeds = max(row.seeds) + 1
    return {
        "name": name,
        "row": row,
        "chart": views.defense_chart(row, board, f"{name}a"),
        "training": views.training_chart(row, f"{name}t"),
        "curves": views.curves_chart(row, f"{name}l"),
        "showcases": views.showcases(row),
        "opened": row.effort.headline_radii[0] if row.effort and row.effort.headline_radii else None,
        "breakers": breakers(row),
        "claims": claim_lines(row, submission.claims if submission else ()),
        "codes": codes(row),
        "told": told(row, f"{name}-f"),
        "maps": latent_maps(row, f"{name}m"),
        "refusals": refusals.of_row(row),
        "risk": refusals.risk_coverage(row, f"{name}r"),
        "distortions": views.distortions(row),
        "lines": views.cell_lines(row),
        "commands": {
            cell.record.cell: commands.of_cell(cell.record, seeds, usual, submitted=submitted) for cell in row.cells
        },
        "command": commands.of_row(first, seeds, usual, submitted=submitted),
        "first": first,
        "weights": _weights(row),
        "versions": _versions(row),
    }


def _weights(row: Row) -> list[tuple[int, str]]:
    """The hashes of the defense's weights by seed; empty strings where it has none."""
    return sorted({(cell.record.seed, cell.record.weights) for cell in row.cells})


def _versions(row: Row) -> list[str]:
    """The software, devices and commits that the cells cite, each once."""
    runs = [cell.record.run for cell in row.cells]
    names = {f"{name} {version}" for run in runs for name, version in run.versions.items()}
    commits = {f"commit {run.commit[:12]}" for run in runs if run.commit}
    return sorted(names) + sorted({f"on {run.device}" for run in runs}) + sorted(commits)
