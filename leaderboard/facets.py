"""By what a reader may filter a board: the facets in which its rows differ, and the value of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leaderboard.tables import Board, Row

_NAMES: Mapping[str, str] = {
    "kind": "Kind", "training": "Trained on", "random": "Random", "classifier": "Classifier", "doubt": "Verdict",
}  # fmt: skip
_DOUBTS = {
    "complete": "no warning", "reduced": "upper bound, reduced budget", "unverified": "upper bound, unverified",
    "incomplete": "incomplete", "mixed": "mixed records", "not_evaluated": "not evaluated",
}  # fmt: skip


@dataclass(frozen=True)
class Facet:
    """One question that a reader may ask of every row, and the answers that occur, in alphabetical order."""

    key: str
    name: str
    values: tuple[str, ...]


def answers(row: Row) -> dict[str, str]:
    """The answer of a row to every facet."""
    return {
        "kind": row.card.kind,
        "training": "attacked images" if row.card.has_seen_attacks else "clean images or nothing",
        "random": "yes" if row.card.stochastic else "no",
        "classifier": row.classifier,
        "doubt": _DOUBTS.get(row.state, row.state),
    }


def facets(board: Board) -> list[Facet]:
    """The facets in which the rows of a board differ; the others would filter nothing."""
    found = [answers(row) for row in board.rows]
    all_values = {key: tuple(sorted({one[key] for one in found})) for key in _NAMES}
    return [Facet(key, _NAMES[key], values) for key, values in all_values.items() if len(values) > 1]
