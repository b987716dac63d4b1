"""The terminal's tables: each number on the images that it was measured on, each verdict with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from bench import report, verdicts
from bench.errors import BenchError
from bench.evidence import Verdict
from bench.protocol import AttackSpec, Effort, Protocol
from bench.record import Card, Cell

PGD = AttackSpec("pgd", "gray_box", "linf", 0.1)
CASCADE = AttackSpec("apgd_ce", "white_box", "linf", 0.1, (), "bpda", cascade=True)
TINY = Protocol(
    id="tiny-v1", dataset="digits", n_examples=4, linf_radii=(0.1,), headline_radii=(0.1,), ranked=True,
    attacks=(AttackSpec("none", "clean"), PGD, CASCADE),
    efforts=(Effort("cheap", True, 2, (AttackSpec("none", "clean"), PGD)),),
)  # fmt: skip


@pytest.fixture
def cells(make_cell: Callable[..., Cell]) -> Callable[..., list[Cell]]:
    def make(defense: str, *marks: str, stochastic: bool = False, **changes: Any) -> list[Cell]:
        """One cell a spec from one mark an image: 0 wrong, 1 right, - not attacked."""
        view = TINY.effort("cheap", stochastic=stochastic)
        card = Card(title=defense.title(), paper="", year=2020, summary="", stochastic=stochastic)
        made = []
        for spec, right in zip(view.attacks, marks, strict=False):
            mask = [mark != "-" for mark in right]
            distance = [(spec.eps or 0) if hit else math.inf for hit in mask]
            values = [float(mark) if mark != "-" else math.nan for mark in right]
            facts = {name: getattr(spec, name) for name in ("attack", "track", "norm", "eps", "route", "cascade")}
            arrays = {"attacked": mask, "correct": values, "linf": distance, "l2": distance}
            made.append(make_cell(arrays, defense=defense, card=card, **(facts | changes)))
        return made

    return make


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Verdict, ...]]:
    """The verdicts that a test wants, by defense."""
    wanted: dict[str, tuple[Verdict, ...]] = {}

    def answer(cells: Sequence[Cell], baseline: Sequence[Cell], protocol: Protocol) -> tuple[Verdict, ...]:
        return wanted.get(cells[0].record.defense, ())

    monkeypatch.setattr(verdicts, "verdicts", answer)
    return wanted


def text(renderable: Any) -> str:
    console = Console(width=200, file=StringIO())
    console.print(renderable, highlight=False)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def line(shown: str, name: str) -> str:
    return next(one for one in shown.splitlines() if name in one)


def test_a_summary_counts_the_cascade_and_names_what_broke_most(cells):
    shown = text(report.summary(cells("kmeans", "1111", "0111", "-001"), TINY))
    assert "worst case of all attacks" in shown
    row = line(shown, "Kmeans (kmeans)")
    assert "100.0 %" in row and "25.0 %" in row and "0.625" in row
    assert "apgd_ce (white_box bpda): 2 of 3" in shown


def test_each_row_shows_its_own_images_and_owes_its_own_cells(cells):
    shown = text(report.summary([*cells("a", "1111", "1111", "1111"), *cells("b", "11", "01", stochastic=True)], TINY))
    assert "worst case of all attacks" in shown
    assert [part.strip() for part in line(shown, "A (a)").split("│")[2:5]] == ["A", "4", "100.0 %"]
    assert [part.strip() for part in line(shown, "B (b)").split("│")[2:5]] == ["A", "2", "100.0 %"]
    assert "none fell" in shown


def test_without_all_cells_there_is_no_mean_robust_radius(cells):
    shown = text(report.summary(cells("kmeans", "1111", "0111"), TINY))
    assert "not a result" in shown
    assert "–" in line(shown, "Kmeans (kmeans)")


def test_a_cascade_that_left_out_standing_images_is_no_result(cells):
    shown = text(report.summary(cells("kmeans", "1111", "0111", "--01"), TINY))
    assert "not a result" in shown
    assert "–" in line(shown, "Kmeans (kmeans)")


def test_a_costly_defense_is_an_upper_bound(cells):
    shown = text(report.summary(cells("kmeans", "11", "01", stochastic=True, budget="search"), TINY))
    assert "upper bound, reduced budget" in line(shown, "Kmeans (kmeans)")


def test_warnings_are_told_in_full_and_breaches_withhold_the_numbers(cells, said):
    said["masked"] = (
        Verdict("jitter", "warning", "A shift costs too much.", {}, ()),
        Verdict("random", "note", "It is random.", {}, ()),
    )
    said["cheat"] = (Verdict("contract", "breach", "It writes to its input.", {}, ()),)
    both = [*cells("masked", "1111", "1111", "1111"), *cells("cheat", "1111", "1111", "1111")]
    shown = text(report.summary(both, TINY))
    assert "upper bound, unverified" in line(shown, "Masked (masked)")
    assert "warning: Masked (masked), jitter. A shift costs too much." in shown
    assert "notes: Masked (masked), random" in shown
    assert "not evaluated" in line(shown, "Cheat (cheat)") and "%" not in line(shown, "Cheat (cheat)")
    assert "breach: Cheat (cheat), contract. It writes to its input." in shown


def test_details_tell_what_a_cascade_did(cells):
    shown = text(report.details(cells("kmeans", "1111", "0111", "-001")))
    assert "attacked 3 of 4, broke 2" in line(shown, "apgd_ce")
    assert "75.0 %" in line(shown, "pgd ")
    assert "attacked 0 of 4, broke 0" in text(report.details(cells("kmeans", "1111", "0000", "----")))


def test_a_comparison_is_paired_on_the_images_that_both_have(cells):
    first, second = cells("a", "1111", "1100", "0000"), cells("b", "01", "01", stochastic=True)
    shown = text(report.comparison(first, second))
    row = [part.strip() for part in line(shown, "A.clean.none").split("│")]
    assert row[2:5] == ["2", "100.0 %", "50.0 %"] and row[5].startswith("+50.0")
    assert "apgd_ce" not in shown
    with pytest.raises(BenchError, match="share no cell"):
        report.comparison(first[2:], first[2:])


def test_attacks_without_a_budget_show_their_distortion_beside_accuracy(make_cell):
    protocol = Protocol(
        id="far-v1", dataset="digits", n_examples=4, linf_radii=(0.1,), l2_radii=(0.5, 2.0),
        attacks=(AttackSpec("none", "clean"), AttackSpec("deepfool", "gray_box", "l2", None, (("steps", 50),))),
    )  # fmt: skip
    facts: dict[str, Any] = {"attack": "deepfool", "track": "gray_box", "norm": "l2", "eps": None}
    found = make_cell({"correct": [0, 0, 0, 1], "l2": [0.25, 1, 1.5, 1]}, params={"steps": 50}, **facts)
    both = [make_cell({"correct": [1, 1, 1, 1]}), found]
    row = [part.strip() for part in line(text(report.summary(both, protocol)), "deepfool (gray_box)").split("│")[1:-1]]
    assert row == ["identity", "A", "deepfool (gray_box)", "4", "1.250", "75.0 %", "25.0 %"]
    assert "│ –" in line(text(report.details(both)), "deepfool")
    assert not list(report.distortions([found], protocol)), "without its clean cell"
