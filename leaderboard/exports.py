"""The rows of a board for other programs: CSV, JSON and LaTeX, all from one table of names and values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping

from leaderboard.best_known import known_radii
from leaderboard.formats import radius
from leaderboard.tables import ATTACKED, BASELINE, Board, Estimate, Row
from leaderboard.views import strongest_name

Value = str | int | float | None
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "\r": " ",
}  # fmt: skip


def values(board: Board, row: Row) -> dict[str, Value]:
    """One row by column: fractions in [0, 1] with their intervals, None where a number is not known.

    Any-of-k and majority-of-k are of random defenses alone; k is `scoring_draws`.
    """
    assert board.protocol is not None
    radii, headlines = board.protocol.linf_radii, board.protocol.headline_radii
    found: dict[str, Value] = {
        "protocol": board.id, "rank": row.rank, "unranked": board.why(row), "defense": row.defense,
        "title": row.card.title, "classifier": row.classifier, "seeds": " ".join(map(str, row.seeds)),
        "state": row.state, "verdicts": " ".join(f"{verdict.level}:{verdict.rule}" for verdict in row.verdicts),
        "failed_cells": len(row.failed), "budget": row.budget, "units": float(f"{row.units:.6g}"), "n_examples": row.n,
        "scoring_draws": row.draws,
    }  # fmt: skip
    estimates: dict[str, Estimate | None] = {
        "mean_robust_radius": row.mrr, "gain": row.gain, "clean_accuracy": row.clean,
    }  # fmt: skip
    for k, eps in enumerate(radii):
        estimates[f"robust_accuracy_at_{radius(eps)}"] = row.robust[k] if row.robust else None
    for name, drawn in (("majority_of_k", row.majority_of_draws), ("any_of_k", row.any_of_draws)):
        estimates[f"{name}_clean_accuracy"] = drawn[0] if drawn else None
        for k, eps in enumerate(radii, start=1):
            estimates[f"{name}_accuracy_at_{radius(eps)}"] = drawn[k] if drawn else None
    estimates["l2_mean_robust_radius"] = row.l2_mrr
    for track in ATTACKED:
        for k, eps in enumerate(headlines):
            estimates[f"{track}_accuracy_at_{radius(eps)}"] = row.tracks[track][k] if track in row.tracks else None
    shown = known_radii(board)
    for eps in shown:
        estimates[f"best_known_accuracy_at_{radius(eps)}"] = (
            row.best_known[eps].accuracy if eps in row.best_known else None
        )
    for name, estimate in estimates.items():
        found |= _with_interval(name, estimate)
    for eps in shown:
        found[f"lost_to_breaks_at_{radius(eps)}"] = row.best_known[eps].lost if eps in row.best_known else None
    for k, eps in enumerate(headlines):
        found[f"broke_most_at_{radius(eps)}"] = strongest_name(row.strongest[k] if row.strongest else None)
    return {**found, "attack_rows": row.attack_rows, "attack_seconds": round(row.attack_seconds, 1)}


def _with_interval(name: str, estimate: Estimate | None) -> Mapping[str, Value]:
    ends = ("", "value"), ("_low", "low"), ("_high", "high")
    return {f"{name}{suffix}": round(getattr(estimate, end), 6) if estimate else None for suffix, end in ends}


def as_csv(board: Board) -> bytes:
    """The rows of a board as CSV; text can never start a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    lines = [values(board, row) for row in board.rows]
    writer.writerow(lines[0] if lines else [])
    writer.writerows([_cell(value) for value in line.values()] for line in lines)
    return text.getvalue().encode()


def _cell(value: Value) -> str | int:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value


def as_json(board: Board) -> bytes:
    """The rows of a board as JSON, under the protocol's id and hash."""
    assert board.protocol is not None
    about = {"protocol": board.id, "hash": board.protocol.hash, "dataset": board.protocol.dataset}
    rows = [values(board, row) for row in board.rows]
    return (json.dumps({**about, "rows": rows}, indent=1, allow_nan=False) + "\n").encode()


def as_latex(board: Board) -> bytes:
    """The rows of a board that have numbers as a LaTeX table for the package booktabs, accuracies in percent."""
    assert board.protocol is not None
    radii = board.protocol.linf_radii
    lines = [
        f"% {board.id}, sha256 {board.protocol.hash}",
        f"% {board.protocol.n_examples} images of {board.protocol.dataset}; worst case of all attacks, in percent",
        rf"\begin{{tabular}}{{lr{'r' * len(radii)}r}}",
        r"\toprule",
        " & ".join(["Defense", "Clean", *(f"$\\epsilon={radius(eps)}$" for eps in radii), "MRR"]) + r" \\",
        r"\midrule",
    ]
    for row in board.rows:
        if row.mrr is not None and row.clean is not None:
            marks = {"unverified": r"$^{\dagger}$", "reduced": r"$^{\ddagger}$"}.get(row.state, "")
            name = "No defense" if row.defense == BASELINE else latex(row.card.title)
            numbers = [_percent(one) for one in (row.clean, *row.robust)]
            mrr = f"{row.mrr.value:.3f} [{row.mrr.low:.3f}, {row.mrr.high:.3f}]"
            lines.append(" & ".join([name + marks, *numbers, mrr]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""]).encode()


def _percent(estimate: Estimate) -> str:
    """An accuracy; none of n is its upper bound, as on the pages."""
    return rf"$\leq${100 * estimate.high:.1f}" if estimate.value == 0 else f"{100 * estimate.value:.1f}"


def latex(text: str) -> str:
    """`text` with everything escaped that LaTeX would read as a command."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
