from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_records
import numpy as np
import pytest
from markupsafe import escape
from scipy import stats
from sites import DEEP, HOSTILE, PGD, QUICK, TINY, deep_cells, pages, row_of, tags_of, text_of, tiny_cells

from bench import protocols, statistics, verdicts
from bench.catalog import ATTACKS
from bench.errors import BenchError
from bench.evidence import Level, Verdict
from bench.protocol import AttackSpec, Effort, Protocol
from bench.record import Cell, Store
from bench.verdicts import RULES
from leaderboard import bundle, compare, drawing, drawings, facets, formats, gather, pictures, tables, views
from leaderboard.build import build
from leaderboard.reported import reported
from leaderboard.tables import Estimate


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Protocol:
    monkeypatch.setattr(protocols, "PROTOCOLS", {TINY.id: TINY})
    return TINY


@pytest.fixture(autouse=True)
def verdict(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Made-up numbers get no verdicts; the function that this fixture gives adds one for a defense."""
    said: dict[str, list[Verdict]] = {}

    def answer(cells: Sequence[Cell], baseline: Sequence[Cell], protocol: Protocol) -> tuple[Verdict, ...]:
        return tuple(said.get(cells[0].record.defense, ()))

    def add(defense: str, level: Level, text: str = "Why.", rule: str = "jitter") -> None:
        said.setdefault(defense, []).append(Verdict(rule, level, text, {"loss": 0.25}, ("A.clean.none.seed0",)))

    monkeypatch.setattr(verdicts, "verdicts", answer)
    return add


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "records")


def test_same_records_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    sites = []
    for place in ("here", "elsewhere/deeper"):
        store = Store(tmp_path / place / "records")
        fake_records.save(store, QUICK, ["kmeans", "identity"])
        (store.root / QUICK.id / "kmeans" / "torn.json").write_text("{")
        out = tmp_path / place / "site"
        build([store], out)
        first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        (out / drawings.FILE).unlink()  # draw everything again
        build([store], out)
        assert first == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        sites.append({path.relative_to(out): data for path, data in first.items()})
    assert sites[0] == sites[1]


def test_a_second_build_draws_nothing_that_did_not_change(
    tiny: Protocol, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    draw = drawing.draw
    monkeypatch.setattr(drawing, "draw", lambda what: (drawn.append(what.name), draw(what))[1])
    tiny_cells(store, "kmeans", [[1] * 10, [1] * 5 + [0] * 5, [0] * 10])
    tiny_cells(store, "identity", [[1] * 10, [0] * 10, [0] * 10])

    def built() -> dict[str, bytes]:
        drawn.clear()
        build([store], tmp_path / "site")
        return {path.name: path.read_bytes() for path in (tmp_path / "site").rglob("*") if path.is_file()}

    first = built()
    assert len(drawn) >= 3  # the board's, and one of each defense
    assert built() == first and not drawn
    torn = tmp_path / "site" / drawings.FILE
    for content in (torn.read_bytes()[:-1], b"", b"\0" * 40):
        torn.write_bytes(content)
        assert built() == first and len(drawn) >= 3
    monkeypatch.setattr(drawings, "_code", lambda: "another version")
    built()
    assert len(drawn) >= 3
    tiny_cells(store, "kmeans", [[1] * 10, [1] * 7 + [0] * 3, [0] * 10])
    changed = built()
    assert len(drawn) == 2  # the board's and that of kmeans
    assert changed["kmeans.html"] != first["kmeans.html"]


def test_numbers_equal_those_counted_by_hand(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "identity", [[1] * 8 + [0] * 2, [1] * 2 + [0] * 8, [0] * 10])
    tiny_cells(store, "kmeans", [[1] * 9 + [0], [1] * 6 + [0] * 4, [1] * 3 + [0] * 7])
    html = build([store], tmp_path / "site").read_text()
    # kmeans: (0.9 + 0.6) / 2 * 0.1 + (0.6 + 0.3) / 2 * 0.1 = 0.12, over 0.2 gives 0.6; identity: 0.05 + 0.01 over 0.2
    shown = row_of(html, "kmeans")
    low, high = statistics.wilson(6, 10)
    for part in ("0.600", "+0.300", "90.0\u202f%", "60.0\u202f%", "30.0\u202f%", f"{100 * low:.1f}–{100 * high:.1f}"):
        assert part in shown
    assert "0.300" in row_of(html, "identity")
    assert f"≤\u202f{100 * statistics.wilson(0, 10)[1]:.1f}\u202f%" in row_of(html, "identity")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "site/board/tiny-v1.csv").read_text())))
    assert [row["defense"] for row in rows] == ["kmeans", "identity"]
    assert float(rows[0]["mean_robust_radius"]) == pytest.approx(0.6)
    assert float(rows[0]["robust_accuracy_at_0.2"]) == pytest.approx(0.3)


def test_ties_share_a_rank_and_the_next_rank_is_skipped(tiny: Protocol, store: Store) -> None:
    strong, weak = [[1] * 10, [1] * 10, [1] * 10], [[1] * 10, [0] * 10, [0] * 10]
    for name, rights in {"identity": weak, "one": strong, "two": strong}.items():
        tiny_cells(store, name, rights)
    board = tables.board(TINY.id, store.cells())
    assert [(row.defense, row.rank) for row in board.rows] == [("one", 1), ("two", 1), ("identity", 3)]
    assert board.unranked == ""


def test_a_warning_takes_the_rank_and_says_why(
    tiny: Protocol, store: Store, tmp_path: Path, verdict: Callable[..., None]
) -> None:
    for name, right in {"identity": 0, "honest": 1, "masked": 1}.items():
        tiny_cells(store, name, [[1] * 10, [right] * 10, [right] * 10])
    verdict("masked", "warning", "Black box beats <white> box.", "black_box_beats_white_box")
    verdict("masked", "warning", "On another seed, too.", "black_box_beats_white_box")
    verdict("honest", "note", "It is honest.", "random")
    board = tables.board(TINY.id, store.cells())
    assert [(row.defense, row.rank, row.state) for row in board.rows] == [
        ("honest", 1, "complete"), ("identity", 2, "complete"), ("masked", None, "unverified"),
    ]  # fmt: skip
    assert board.rows[2].mrr is not None
    out = build([store], tmp_path / "site").parent
    html = pages(out)["index.html"]
    shown = row_of(html, "masked")
    assert "upper bound, unverified" in shown and shown.count("⚠ black box beats white box") == 1
    assert ">Black box beats &lt;white&gt; box.</span>" in html
    assert "It is honest." not in html
    detail = text_of(pages(out)["defense/tiny-v1/masked.html"])
    for part in ("Upper bound, unverified", "Black box beats &lt;white&gt; box.", "loss 0.25", "A.clean.none.seed0"):
        assert part in detail
    assert "It is honest." in text_of(pages(out)["defense/tiny-v1/honest.html"])
    table = csv.DictReader(io.StringIO((out / "board/tiny-v1.csv").read_text()))
    row = next(row for row in table if row["defense"] == "masked")
    assert (row["state"], row["verdicts"]) == ("unverified", " ".join(["warning:black_box_beats_white_box"] * 2))


def test_a_breach_means_not_evaluated_without_any_number(
    tiny: Protocol, store: Store, tmp_path: Path, verdict: Callable[..., None]
) -> None:
    for name in ("identity", "cheat"):
        tiny_cells(store, name, [[1] * 10] * 3)
    verdict("cheat", "breach", "It writes to its input.", "contract")
    row = tables.board(TINY.id, store.cells()).rows[-1]
    assert (row.defense, row.state, row.rank, row.mrr, row.clean) == ("cheat", "not_evaluated", None, None, None)
    out = build([store], tmp_path / "site").parent
    shown = row_of(pages(out)["index.html"], "cheat")
    assert "not evaluated" in shown and "contract" in shown and "%" not in shown
    assert "It writes to its input." in pages(out)["defense/tiny-v1/cheat.html"]


def test_verdicts_compare_with_identity_seed_by_seed(
    tiny: Protocol, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = set()

    def spy(cells: Sequence[Cell], baseline: Sequence[Cell], protocol: Protocol) -> tuple[Verdict, ...]:
        seeds = {cell.record.seed for cell in cells}, {cell.record.seed for cell in baseline}
        names = {cell.record.defense for cell in baseline}
        assert len(cells) == 3 and protocol.hash == TINY.hash
        calls.add((cells[0].record.defense, *map(tuple, seeds), *names))
        return ()

    monkeypatch.setattr(verdicts, "verdicts", spy)
    for name, seed in (("identity", 0), ("kmeans", 0), ("kmeans", 1)):
        tiny_cells(store, name, [[1] * 10] * 3, seed=seed)
    tables.board(TINY.id, store.cells())
    assert calls == {
        ("identity", (0,), (0,), "identity"), ("kmeans", (0,), (0,), "identity"), ("kmeans", (1,), (0,), "identity"),
    }  # fmt: skip


def test_a_board_is_filtered_by_what_its_rows_differ_in(
    tiny: Protocol, store: Store, tmp_path: Path, verdict: Callable[..., None]
) -> None:
    fake_records.save(store, TINY, ["identity", "masked"])
    trained = fake_records.card("trained", kind="hardened", trained_on="PGD images of itself")
    fake_records.save(store, TINY, ["trained"], card=trained)
    verdict("masked", "warning")
    board = tables.board(TINY.id, store.cells())
    assert [(facet.key, facet.values) for facet in facets.facets(board)] == [
        ("kind", ("hardened", "purifier")), ("training", ("attacked images", "clean images or nothing")),
        ("doubt", ("no warning", "upper bound, unverified")),
    ]  # fmt: skip
    html = build([store], tmp_path / "site").read_text()
    assert re.findall(r'<select name="(\w+)">', html) == ["kind", "training", "doubt"]
    (row,) = [
        attributes for tag, attributes in tags_of(html) if tag == "tr" and attributes.get("data-kind") == "hardened"
    ]
    assert (row["data-training"], row["data-random"], row["data-classifier"]) == ("attacked images", "no", "A")


def test_every_rule_is_explained(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity"])
    page = (build([store], tmp_path / "site").parent / "warnings.html").read_text()
    assert all(f'id="rule-{rule}"' in page and str(escape(text)) in page for rule, text in RULES.items())


def test_a_cascade_counts_in_the_worst_case_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: DEEP})
    deep_cells(store)
    (row,) = tables.board(DEEP.id, store.cells()).rows
    assert (row.state, row.missing) == ("complete", ())
    assert row.accuracy == pytest.approx((0.9, 0.7, 0.2))  # at .1 FGSM broke 0, the cascade 2; at .2 4 and 6 stand
    tracks = {track: [(e.value, e.n, e.is_left) if e else None for e in found] for track, found in row.tracks.items()}
    assert tracks["gray_box"] == [(pytest.approx(0.8), 10, False), (pytest.approx(0.7), 10, False)]
    assert tracks["transfer"] == [None, (pytest.approx(0.8), 10, False)]
    # at .1 there is a cascade only; at .2 the cold run on six images, without the one on three
    assert tracks["white_box"] == [(pytest.approx(0.7), 10, True), (pytest.approx(4 / 6), 6, False)]
    out = build([store], tmp_path / "site").parent
    assert "†" in row_of(pages(out)["index.html"], "kmeans")
    detail = text_of(pages(out)["defense/deep-v1/kmeans.html"])
    assert "attacked 8 of 10, broke 1" in detail and "attacked 4 of 10, broke 2" in detail
    assert "transfer, made on Identity VAE" in detail


def test_what_broke_most_is_the_first_attack_that_broke_each_image(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: DEEP})
    deep_cells(store)
    (row,) = tables.board(DEEP.id, store.cells()).rows
    # at .1: FGSM 0, the cascade 2; at .2: FGSM 0 and 1, transfer 5, cold 2 and 3, the cascade 7 and 8
    said = [(one.kind.attack, one.kind.route, one.broken, one.total) for one in row.strongest if one]
    assert said == [("fgsm", "", 1, 2), ("fgsm", "", 2, 7)]
    assert "2 of 7" in row_of(build([store], tmp_path / "site").read_text(), "kmeans")


def test_rows_of_different_efforts_are_compared_on_the_images_that_both_have(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: DEEP})
    fake_records.save(store, DEEP, ["identity"], strength=0.01)
    noisy = fake_records.card("noisy", stochastic=True)
    fake_records.save(store, DEEP, ["noisy"], card=noisy, strength=1.0)
    rows = {row.defense: row for row in tables.board(DEEP.id, store.cells()).rows}
    assert {name: (row.n, row.state, len(row.cells)) for name, row in rows.items()} == {
        "identity": (10, "complete", 8), "noisy": (6, "complete", 3),
    }  # fmt: skip
    noisy_row, bare = rows["noisy"], rows["identity"]
    assert noisy_row.radius is not None and bare.radius is not None and noisy_row.gain is not None
    assert noisy_row.gain.value == pytest.approx(float((noisy_row.radius - bare.radius[:6]).mean()))
    assert noisy_row.gain.n == 6
    assert (noisy_row.rank, bare.rank) == (1, 2)
    out = build([store], tmp_path / "site").parent
    assert "n = 6" in row_of(pages(out)["index.html"], "noisy")
    assert "n = 10" in row_of(pages(out)["index.html"], "identity")
    about = text_of((out / "protocol/deep-v1.html").read_text())
    assert "Cheap, random: 6 images, 3 cells" in about and "what still stands" in about


def test_a_costly_defense_owes_the_cells_of_its_class(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    few = (DEEP.attacks[0], DEEP.attacks[2])
    costly = replace(DEEP, efforts=(Effort("search", True, 4, few),))
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: costly})
    fake_records.save(store, costly, ["slow"], budget="search", units=5000.0)
    (row,) = tables.board(DEEP.id, store.cells()).rows
    assert row.mrr is not None
    assert (row.n, row.state, row.budget, row.units) == (4, "reduced", "search", 5000.0)


def test_a_costly_defense_is_an_upper_bound_without_a_rank(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Callable[..., None]
) -> None:
    few = (DEEP.attacks[0], DEEP.attacks[1], DEEP.attacks[2])
    costly = replace(DEEP, efforts=(*DEEP.efforts, Effort("search", True, 4, few)))
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: costly})
    fake_records.save(store, costly, ["identity", "kmeans"])
    for name in ("slow", "warned"):
        fake_records.save(store, costly, [name], budget="search", units=5000.0, strength=9.0)
    verdict("warned", "warning")
    board = tables.board(DEEP.id, store.cells())
    assert [(row.defense, row.rank, row.state, board.why(row)) for row in board.rows] == [
        ("kmeans", 1, "complete", ""), ("identity", 2, "complete", ""), ("slow", None, "reduced", "reduced"),
        ("warned", None, "unverified", "unverified"),
    ]  # fmt: skip
    assert board.rows[2].mrr is not None and board.rows[2].gain is not None
    out = build([store], tmp_path / "site").parent
    html = pages(out)["index.html"]
    slow, warned = row_of(html, "slow"), row_of(html, "warned")
    assert slow.count("upper bound, reduced budget") == 2 and f"{board.rows[2].mrr.value:.3f}" in slow
    assert "upper bound, unverified" in warned and "upper bound, reduced budget" in warned
    assert "4 images instead of 10, 3 cells instead of 8, no steps, no cascade" in html
    assert "Upper bound, reduced budget: no rank." in text_of(pages(out)["defense/deep-v1/slow.html"])
    table = {row["defense"]: row for row in csv.DictReader(io.StringIO((out / "board/deep-v1.csv").read_text()))}
    assert (table["slow"]["rank"], table["slow"]["unranked"], table["kmeans"]["unranked"]) == ("", "reduced", "")


def test_a_random_defense_keeps_its_rank_and_says_what_it_was_spared(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: DEEP})
    fake_records.save(store, DEEP, ["identity"], strength=0.01)
    fake_records.save(store, DEEP, ["noisy"], card=fake_records.card("noisy", stochastic=True), strength=1.0)
    rows = {row.defense: row for row in tables.board(DEEP.id, store.cells()).rows}
    assert (rows["noisy"].rank, rows["noisy"].state) == (1, "complete")
    html = build([store], tmp_path / "site").read_text()
    assert "reduced effort" in row_of(html, "noisy") and "reduced effort" not in row_of(html, "identity")
    assert ": 6 images instead of 10, 3 cells instead of 8, no cascade" in html


def test_costs_are_summed_over_cells(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["kmeans"])
    (row,) = tables.board(TINY.id, store.cells()).rows
    assert row.attack_rows == 10 + 2 * (4 + 3) * 10  # the clean images once, two attacks of three steps
    assert row.attack_seconds == pytest.approx(4.5)
    assert "150 rows, 4.5\u202fs" in row_of(build([store], tmp_path / "site").read_text(), "kmeans")


def test_lines_and_losses_come_from_independent_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: DEEP})
    deep_cells(store)
    board = tables.board(DEEP.id, store.cells())
    chart = views.defense_chart(board.rows[0], board, "a")
    assert chart is not None
    labels = [line.label for line in chart.lines]
    assert labels == [
        "worst case, with 95 % interval", "FGSM (gray box)",
        "APGD margin (transfer, made on Identity VAE), at ε = 0.2 alone",
        "APGD margin (white box, autograd, first 6), at ε = 0.2 alone",
    ]  # fmt: skip
    losses = views.curves_chart(board.rows[0], "l")
    assert losses is not None and not any("BPDA" in line.label for line in losses.lines)
    assert losses.panels == ("mean margin",) and {line.panel for line in losses.lines} == {0}


def test_losses_of_two_kinds_have_two_axes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    both = (TINY.attacks[0], *(AttackSpec("pgd", "gray_box", "linf", eps, PGD) for eps in (0.1, 0.2)))
    both += (AttackSpec("apgd_margin", "white_box", "linf", 0.2, PGD, "bpda"),)
    protocol = replace(TINY, id="both-v1", attacks=both)
    monkeypatch.setattr(protocols, "PROTOCOLS", {protocol.id: protocol})
    fake_records.save(store, protocol, ["kmeans"])
    (row,) = tables.board(protocol.id, store.cells()).rows
    chart = views.curves_chart(row, "l")
    assert chart is not None and chart.panels == ("mean cross-entropy", "mean margin")
    assert {line.label: line.panel for line in chart.lines} == {"PGD (gray box)": 0, "APGD margin (white box, BPDA)": 1}
    svg = drawing.draw(chart)
    assert all(name in svg for name in chart.panels) and svg.count("step of the attack") == 1


def test_the_boards_figure_draws_every_row(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    for place in range(10):
        tiny_cells(store, f"d{place}", [[1] * 10, [1] * place + [0] * (10 - place), [0] * 10])
    board = tables.board(TINY.id, store.cells())
    chart = views.board_chart(board, "board")
    assert chart is not None and len(chart.lines) == 10
    best = [f"D{place}" for place in range(9, 2, -1)]
    assert [line.label for line in chart.legend] == [*best, "3 more, faint: the table names them"]
    html = build([store], tmp_path / "site").read_text()
    assert html.count("3 more, faint: the table names them") == 2  # for those who see the figure, and for others


def test_each_exhibit_shows_the_attack_that_broke_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: DEEP})
    deep_cells(store)
    (row,) = tables.board(DEEP.id, store.cells()).rows
    shown = {showcase.eps: showcase.exhibits for showcase in views.showcases(row)}
    assert [exhibit.answer == "right" for exhibit in shown[0.2]] == [False] * 4 + [True, False, True, False]
    assert shown[0.2][0].attack == "FGSM (gray box)"
    assert shown[0.2][7].attack == "APGD margin (white box, BPDA)" and shown[0.2][7].pictures[1:] == ("", "")
    assert all(exhibit.attack == "" for exhibit in shown[0.0])


def test_a_missing_cell_means_incomplete_without_rank_or_radius(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity", "whole"])
    fake_records.save(store, TINY, ["torn"], skip=["gray_box.pgd.linf-0.2"])
    board = tables.board(TINY.id, store.cells())
    row = board.rows[-1]
    assert (row.defense, row.state, row.rank, row.mrr) == ("torn", "incomplete", None, None)
    assert row.missing == ("gray_box.pgd.linf-0.2",)
    out = build([store], tmp_path / "site").parent
    assert "incomplete" in row_of(pages(out)["index.html"], "torn")
    assert "gray_box.pgd.linf-0.2" in pages(out)["defense/tiny-v1/torn.html"]


def test_a_record_without_its_clean_cell_does_not_crash(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["torn"], skip=["clean.none"])
    assert "incomplete" in row_of(build([store], tmp_path / "site").read_text(), "torn")


def test_a_failed_cell_is_shown_with_its_reason(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    tiny_cells(
        store, "kmeans", [[1] * 10, [0] * 10, [0] * 10], status="failed", error="ValueError: purify returned NaN"
    )
    out = build([store], tmp_path / "site").parent
    assert "3 cells failed" in row_of(pages(out)["index.html"], "kmeans")
    assert "ValueError: purify returned NaN" in pages(out)["defense/tiny-v1/kmeans.html"]


def test_a_failed_cell_keeps_the_rank_and_marks_it(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "identity", [[1] * 10, [0] * 10, [0] * 10])
    tiny_cells(store, "kmeans", [[1] * 10, [1] * 10, [1] * 10])
    right = np.array([0] + [1] * 9, np.float32)
    failed = {"status": "failed", "error": "ValueError: purify returned NaN"}
    store.save(fake_records.cell(TINY, "kmeans", TINY.attacks[0], arrays={"correct": right}, **failed))
    extra = AttackSpec("pgd", "gray_box", "linf", 0.05, PGD)
    store.save(fake_records.cell(TINY, "kmeans", extra, **failed))
    row = tables.board(TINY.id, store.cells()).rows[0]
    assert (row.defense, row.rank, row.state) == ("kmeans", 1, "complete")
    assert [cell.record.attack for cell in row.failed] == ["none"]  # what does not count does not mark
    assert row.mrr is not None and row.mrr.value == pytest.approx(0.9)
    out = build([store], tmp_path / "site").parent
    shown = row_of(pages(out)["index.html"], "kmeans")
    assert "1 with failed cells" in shown and "1 cell failed: images counted as wrong" in shown
    assert "with failed cells" not in row_of(pages(out)["index.html"], "identity")
    detail = text_of(pages(out)["defense/tiny-v1/kmeans.html"])
    assert "and the rank stands" in detail and "A.clean.none.seed0" in detail
    table = csv.DictReader(io.StringIO((out / "board/tiny-v1.csv").read_text()))
    assert [row["failed_cells"] for row in table] == ["1", "0"]


@pytest.mark.parametrize("changes", [{"protocol": "mnist-v9"}, {"protocol_hash": "0" * 64}], ids=["unknown", "changed"])
def test_records_of_another_version_are_listed_not_ranked(
    changes: dict[str, str], tiny: Protocol, store: Store, tmp_path: Path
) -> None:
    for spec in TINY.attacks:
        store.save(fake_records.cell(TINY, "kmeans", spec, **changes))
    out = build([store], tmp_path / "site").parent
    html = pages(out)["index.html"]
    assert "Measured under another version of the protocol" in html
    assert 'id="board"' not in html
    name = changes.get("protocol", TINY.id)
    assert "another version of the protocol" in pages(out)[f"defense/{name}/kmeans.html"]


def test_cells_of_different_weights_are_never_joined(tiny: Protocol, store: Store) -> None:
    for k, spec in enumerate(TINY.attacks):
        store.save(fake_records.cell(TINY, "kmeans", spec, weights=str(min(k, 1))))
    (row,) = tables.board(TINY.id, store.cells()).rows
    assert (row.state, row.mrr) == ("mixed", None)


@pytest.mark.parametrize(
    ("changes", "clash", "said"),
    [
        ({"code": "another"}, "code", "mixed code"),
        ({"harness": 2}, "harness", "mixed versions of the harness"),
        ({"attack_version": 99}, "attack_version", "attacks of another version"),
        ({"weights": "another"}, "weights", "mixed weights"),
    ],
)
def test_cells_of_different_versions_are_never_joined(
    changes: dict[str, Any], clash: str, said: str, tiny: Protocol, store: Store, tmp_path: Path
) -> None:
    fake_records.save(store, TINY, ["identity", "kmeans"])
    store.save(fake_records.cell(TINY, "kmeans", TINY.attacks[-1], **changes))
    row = tables.board(TINY.id, store.cells()).rows[-1]
    assert (row.defense, row.state, row.clashes, row.mrr, row.rank) == ("kmeans", "mixed", (clash,), None, None)
    out = build([store], tmp_path / "site").parent
    assert said in row_of(pages(out)["index.html"], "kmeans") and "mixed records" in pages(out)["index.html"]
    assert said in text_of(pages(out)["defense/tiny-v1/kmeans.html"])


def test_seeds_share_the_code_and_the_harness_but_not_the_weights(tiny: Protocol, store: Store) -> None:
    for name, changes in {"one": {}, "two": {"code": "another"}, "three": {"harness": 2}}.items():
        fake_records.save(store, TINY, [name], seed=0)
        fake_records.save(store, TINY, [name], seed=1, **changes)
    rows = tables.board(TINY.id, store.cells()).rows
    assert {row.defense: (row.state, row.clashes) for row in rows} == {
        "one": ("complete", ()), "two": ("mixed", ("code",)), "three": ("mixed", ("harness",)),
    }  # fmt: skip


def test_attacks_of_an_old_version_are_refused_even_where_all_agree(
    tiny: Protocol, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_records.save(store, TINY, ["kmeans"])
    monkeypatch.setattr(tables, "ATTACKS", {**ATTACKS, "pgd": replace(ATTACKS["pgd"], version=99)})
    (row,) = tables.board(TINY.id, store.cells()).rows
    assert (row.state, row.clashes) == ("mixed", ("attack_version",))


def test_a_cascade_that_left_out_standing_images_is_incomplete(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {DEEP.id: DEEP})
    deep_cells(store)
    # a later transfer came out otherwise: nothing stored breaks image 5 now, which the cascade left out
    right = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0], np.float32)
    far = np.full(10, 0.2, np.float32)
    store.save(fake_records.cell(DEEP, "kmeans", DEEP.attacks[3], arrays={"correct": right, "linf": far, "l2": far}))
    (row,) = tables.board(DEEP.id, store.cells()).rows
    assert (row.state, row.mrr, row.rank, row.missing) == ("incomplete", None, None, ())
    name = "A.white_box.apgd_margin.bpda.linf-0.2.seed0"
    assert row.left_out == {name: 1}
    assert row.clean is not None and row.clean.value == pytest.approx(0.9)
    out = build([store], tmp_path / "site").parent
    shown = row_of(pages(out)["index.html"], "kmeans")
    assert "incomplete" in shown and "images left out in 1 cell" in shown
    detail = text_of(pages(out)["defense/deep-v1/kmeans.html"])
    assert f"{name} 1 image" in detail and "left out images that no stored cell has broken" in detail


def test_what_broke_an_image_counts_in_its_own_norm_and_ball_alone() -> None:
    clean = AttackSpec("none", "clean")
    weak = AttackSpec("fgsm", "gray_box", "linf", 0.2)
    linf = AttackSpec("apgd_margin", "white_box", "linf", 0.1, PGD, "bpda", cascade=True)
    l2 = AttackSpec("apgd_margin", "white_box", "l2", 1.0, PGD, "bpda", cascade=True)
    protocol = Protocol("t-v1", "digits", 4, (clean, weak, linf, l2), (0.1, 0.2), (1.0,))
    none, far = np.zeros(4, np.float32), np.full(4, np.inf, np.float32)
    # image 0 is wrong when clean, 1 and 2 are broken by FGSM, 3 stands
    shares = {clean: [0, 1, 1, 1], weak: [0, 0, 0, 1]}
    linf_far, l2_far = np.array([0.2, 0.1 + 5e-7, 0.11, 0.1], np.float32), np.array([3, 3, 1, 1], np.float32)
    cells = [
        fake_records.cell(protocol, "x", spec, arrays={
            "correct": np.array(shares.get(spec, [np.nan] * 4), np.float32), "attacked": np.full(4, spec in shares),
            "linf": none if spec is clean else linf_far if spec is weak else far,
            "l2": none if spec is clean else l2_far if spec is weak else far,
        })
        for spec in protocol.attacks
    ]  # fmt: skip
    assert statistics.left_out(cells, protocol) == {
        cells[2].record.cell: 2,  # 2, which FGSM broke outside the ball, and 3
        cells[3].record.cell: 2,  # 1, likewise, and 3
    }
    assert statistics.left_out(cells[:2], protocol) == {}


def test_an_independent_cell_owes_all_its_images(tiny: Protocol, store: Store) -> None:
    fake_records.save(store, TINY, ["kmeans"])
    half = np.arange(10) < 5
    correct = np.where(half, 1, np.nan).astype(np.float32)
    distance = np.where(half, 0.2, np.inf).astype(np.float32)
    arrays = {"attacked": half, "correct": correct, "linf": distance, "l2": distance}
    store.save(fake_records.cell(TINY, "kmeans", TINY.attacks[-1], arrays=arrays))
    (row,) = tables.board(TINY.id, store.cells()).rows
    assert (row.state, row.left_out) == ("incomplete", {"A.gray_box.pgd.linf-0.2.seed0": 5})


def test_seeds_are_averaged_and_classifiers_are_kept_apart(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    good, bad = [[1] * 10] * 3, [[0] * 10] * 3
    tiny_cells(store, "kmeans", good, seed=0)
    tiny_cells(store, "kmeans", bad, seed=1)
    tiny_cells(store, "kmeans", good, classifier="B")
    tiny_cells(store, "identity", bad)
    board = tables.board(TINY.id, store.cells())
    first, bare, other = board.rows
    assert bare.defense == "identity"
    assert [(row.classifier, row.seeds, row.rank) for row in (first, other)] == [("A", (0, 1), 1), ("B", (0,), None)]
    # an AND over seeds would give 0
    assert first.mrr is not None
    assert first.mrr.value == pytest.approx(0.5)
    assert first.mrr.by_seed == (1.0, 0.0)
    html = build([store], tmp_path / "site").read_text()
    assert "classifier B" in html and "2 seeds, 0.000 to 1.000" in html


def test_from_three_seeds_on_every_interval_is_over_trainings_too(tiny: Protocol, store: Store) -> None:
    """Two of three trainings hold everywhere, one nowhere: what a fourth would do is anybody's guess."""
    good, bad = [[1] * 10] * 3, [[1] * 10, [0] * 10, [0] * 10]
    tiny_cells(store, "identity", bad)
    for seed, rights in enumerate((good, good, bad)):
        tiny_cells(store, "kmeans", rights, seed=seed)
        tiny_cells(store, "vq_vae", good, seed=seed)
        board = tables.board(TINY.id, store.cells())
        rows = {row.defense: row for row in board.rows}
    lucky, sure = rows["kmeans"], rows["vq_vae"]
    assert lucky.mrr is not None and lucky.gain is not None and sure.gain is not None
    assert lucky.mrr.value == pytest.approx(0.75) and lucky.mrr.by_seed == (1, 1, 0.25)
    assert (lucky.mrr.low, lucky.mrr.high) == (0, 1)  # Student's: .75 +- 4.3 * .43 / sqrt(3), within [0, 1]
    assert lucky.gain.low < 0 < lucky.gain.high and sure.gain.low == pytest.approx(sure.gain.high)
    assert lucky.robust[-1].low < 0.4 and lucky.clean == sure.clean  # all are right when clean: Wilson's
    found = {one.row.defense: one for one in compare.comparisons(board)}
    against = found["kmeans"].against(sure)
    assert against is not None and against.mrr.word == "tied" and against.mrr.low < 0 < against.mrr.high
    assert against.mrr.p == pytest.approx(2 * stats.t.sf(1, 2))  # the gap is a standard error: a sure row adds none
    assert (sure.rank, lucky.rank) == (1, 1)


def test_the_gain_needs_the_same_classifier_weights(tiny: Protocol, store: Store) -> None:
    tiny_cells(store, "identity", [[1] * 10, [0] * 10, [0] * 10])
    tiny_cells(store, "kmeans", [[1] * 10] * 3)
    tiny_cells(store, "other", [[1] * 10] * 3, classifier_weights="another net")
    gains = {row.defense: row.gain for row in tables.board(TINY.id, store.cells()).rows}
    assert gains["kmeans"] is not None and gains["kmeans"].value == pytest.approx(0.75)
    assert gains["other"] is None and gains["identity"] is None
    board = tables.board(TINY.id, store.cells())
    assert {row.defense for row in board.rows if board.baseline_of(row)} == {"kmeans"}


def test_without_a_complete_baseline_on_its_classifier_nobody_has_a_rank(
    tiny: Protocol, store: Store, tmp_path: Path, verdict: Callable[..., None]
) -> None:
    tiny_cells(store, "identity", [[1] * 10, [0] * 10, [0] * 10])
    tiny_cells(store, "kmeans", [[1] * 10] * 3)
    tiny_cells(store, "other", [[1] * 10] * 3, classifier_weights="another net")
    hardened = fake_records.card("trained", kind="hardened")
    tiny_cells(store, "trained", [[1] * 10] * 3, card=hardened)  # its own net, on the classifier it stands for
    board = tables.board(TINY.id, store.cells())
    assert {row.defense: (row.rank, board.why(row)) for row in board.rows} == {
        "kmeans": (1, ""), "trained": (1, ""), "identity": (3, ""), "other": (None, "no_baseline"),
    }  # fmt: skip
    other = next(row for row in board.rows if row.defense == "other")
    assert other.mrr is not None and other.mrr.value == 1
    out = build([store], tmp_path / "site").parent
    shown = row_of(pages(out)["index.html"], "other")
    assert "no baseline on the same classifier" in shown and "1.000" in shown
    assert "No rank: no baseline on the same classifier." in text_of(pages(out)["defense/tiny-v1/other.html"])
    verdict("identity", "warning")
    board = tables.board(TINY.id, store.cells())
    assert {(row.rank, row.gain) for row in board.rows} == {(None, None)}


def test_cells_outside_the_protocol_are_shown_but_not_counted(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "kmeans", [[1] * 10] * 3)
    extra = AttackSpec("homemade", "gray_box", "linf", 0.1)
    store.save(fake_records.cell(TINY, "kmeans", extra, arrays={"correct": np.zeros(10, np.float32)}))
    (row,) = tables.board(TINY.id, store.cells()).rows
    assert row.mrr is not None and row.mrr.value == 1
    out = build([store], tmp_path / "site").parent
    assert "not counted" in pages(out)["defense/tiny-v1/kmeans.html"]


def test_a_board_without_an_attacker_who_knows_the_defense_says_so(
    store: Store, tiny: Protocol, tmp_path: Path
) -> None:
    fake_records.save(store, tiny, ["identity"])
    out = build([store], tmp_path / "site").parent
    for name, html in pages(out).items():
        if name.startswith(("index", "board/", "defense/", "attack/", "compare/")):
            shown = text_of(html)
            assert "no attacker on this board knows that a defense exists" in shown
            assert tiny.purpose in shown
            assert "white box" in shown or name.startswith(("attack/", "compare/"))


def test_a_smoke_test_says_so_and_names_what_it_does_not_measure(store: Store, tmp_path: Path) -> None:
    fake_records.save(store, QUICK, ["identity"])
    out = build([store], tmp_path / "site").parent
    for name, html in pages(out).items():
        if name.startswith(("index", "board/", "defense/", "attack/", "compare/")):
            shown = text_of(html)
            assert "no attacker on this board knows that a defense exists" not in shown
            assert QUICK.purpose in shown
            assert "query" in shown or name.startswith(("attack/", "compare/"))
    assert "white box, BPDA" in text_of(pages(out)["defense/digits-v1-quick/identity.html"])
    assert "Smoke test" in text_of(pages(out)["index.html"])
    assert 'data-name="rank"' not in pages(out)["index.html"], "nobody is ranked"


def test_limited_runs_are_recognised(store: Store, tmp_path: Path) -> None:
    limited = QUICK.limited(20)
    fake_records.save(store, limited, ["identity"])
    assert gather.known(limited.id) == limited
    assert gather.known("digits-v1-quick+limit5000") is None
    out = build([store], tmp_path / "site").parent
    html = pages(out)["board/digits-v1-quick.limit20.html"]
    assert "Limited run" in text_of(html) and 'data-name="rank"' not in html
    assert "--protocol digits-v1-quick --limit 20" in html


def test_hostile_strings_are_escaped_everywhere(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    card = fake_records.card("kmeans", title=HOSTILE, summary=HOSTILE, paper="javascript:alert(3)", trained_on=HOSTILE)
    hostile = {"card": card, "error": HOSTILE, "recipe": HOSTILE, "settings": {HOSTILE: HOSTILE}, "status": "failed"}
    fake_records.save(store, TINY, ["identity"])
    fake_records.save(store, TINY, ["kmeans"], **hostile)
    for eps in (0.1, 0.2):  # an attack's name reaches figures and legends
        spec = AttackSpec("a<b>&amp;$\\frac", "gray_box", "linf", eps, (("steps", 4),))
        store.save(fake_records.cell(TINY, "kmeans", spec, **hostile))
    (store.root / TINY.id / "kmeans" / "<img src=x>.json").write_text("{")
    out = build([store], tmp_path / "site").parent
    templates = (Path(tables.__file__).parent / "templates").iterdir()
    ours = {tag for path in templates for tag in re.findall(r"<([a-z]+[1-6]?)\b", path.read_text())}
    ours |= {"g", "defs", "use", "text", "clippath"}  # of matplotlib
    for name, html in pages(out).items():
        tags = tags_of(html)
        assert {tag for tag, _ in tags} <= ours, name
        for tag, attributes in tags:
            assert not any(attribute.startswith("on") for attribute in attributes), (name, tag, attributes)
            assert tag != "script" or attributes["src"].startswith(("assets/", "../")), name
            assert not (attributes.get("href") or "").startswith("javascript"), name
            if tag == "img":
                assert attributes["src"].startswith("data:image/png;base64,")
    table = (out / "board/tiny-v1.csv").read_text()
    assert next(csv.DictReader(io.StringIO(table)))["title"]


def test_a_title_cannot_become_a_formula(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["kmeans"], card=fake_records.card("kmeans", title="=HYPERLINK(1)"))
    build([store], tmp_path / "site")
    assert "'=HYPERLINK(1)" in (tmp_path / "site/board/tiny-v1.csv").read_text()


def test_pages_load_nothing_from_elsewhere_and_every_link_leads_somewhere(store: Store, tmp_path: Path) -> None:
    fake_records.save(store, QUICK, ["identity", "kmeans"])
    out = build([store], tmp_path / "site").parent
    parsed = {(out / name).resolve(): tags_of(html) for name, html in pages(out).items()}
    ids = {path: [attributes["id"] for _, attributes in tags if "id" in attributes] for path, tags in parsed.items()}
    for path, tags in parsed.items():
        assert len(ids[path]) == len(set(ids[path])), path
        for tag, attributes in tags:
            for address in filter(None, (attributes.get("src"), attributes.get("href"), attributes.get("xlink:href"))):
                is_outside = tag == "a" and address.startswith(("https://arxiv", "https://github.com/"))
                if is_outside or address.startswith("data:image/png;"):
                    continue
                assert re.match(r"[a-z.#]", address) and ":" not in address
                name, _, anchor = address.partition("#")
                target = path.parent.joinpath(name).resolve() if name else path
                assert target.is_file(), (path, address)
                assert not anchor or anchor in ids[target], (path, address)
    for path in out.rglob("*.css"):
        assert "url(" not in path.read_text() and "@import" not in path.read_text()


def test_the_site_builds_without_the_bundle(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_records.save(store, QUICK, ["identity"])
    monkeypatch.setattr(bundle, "classic_script", lambda: None)
    html = build([store], tmp_path / "site").read_text()
    assert "datatables.js" not in html and 'id="board"' in html


def test_the_bundle_is_the_installed_one() -> None:
    script = bundle.classic_script()
    assert script is not None and script.startswith(b"window.purifybenchDataTables = ") and script.isascii()


def test_without_records_the_error_says_what_to_run(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="purifybench run identity --protocol digits-v1-quick"):
        build([store], tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_problems_are_listed_without_paths_of_this_machine(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity", "kmeans"])
    (store.root / TINY.id / "kmeans" / "A.clean.none.seed0.json").write_text("{}")
    html = build([store], tmp_path / "site").read_text()
    assert "1 thing left out" in html
    assert "<code>tiny-v1/kmeans/A.clean.none.seed0.json" in html
    assert str(tmp_path) not in html


def test_two_stores_with_the_same_cell_show_it_once(tiny: Protocol, tmp_path: Path) -> None:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    tiny_cells(first, "kmeans", [[1] * 10] * 3)
    tiny_cells(second, "kmeans", [[1] * 10] * 3)
    assert gather.gather([first, second]).problems == ()
    tiny_cells(second, "kmeans", [[1] * 10, [0] * 10, [1] * 10])
    gathered = gather.gather([first.root, second.root])
    assert len(gathered.cells[TINY.id]) == 3
    assert len(gathered.problems) == 1 and "two stores" in gathered.problems[0]
    (row,) = tables.board(TINY.id, gathered.cells[TINY.id]).rows
    assert row.mrr is not None and row.mrr.value == 1


def test_malformed_arrays_are_a_problem_not_a_crash(tiny: Protocol, store: Store) -> None:
    for spec, value in zip(TINY.attacks, (2.0, float("nan"), 1.0), strict=True):
        store.save(fake_records.cell(TINY, "kmeans", spec, arrays={"correct": np.full(10, value, np.float32)}))
    gathered = gather.gather([store])
    assert len(gathered.cells[TINY.id]) == 1
    assert all("correct holds values outside [0, 1]" in problem for problem in gathered.problems)


def test_only_an_empty_folder_or_our_own_is_written_to(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity"])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("do not touch")
    with pytest.raises(BenchError, match="not made by PurifyBench"):
        build([store], foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(BenchError, match="is a file"):
        build([store], foreign / "thesis.tex")


def test_stale_pages_go_and_foreign_files_stay(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity"])
    other = fake_records.save(Store(tmp_path / "other"), TINY, ["kmeans"])
    out = tmp_path / "site"
    build([store, other], out)
    (out / "CNAME").write_text("example.org")
    build([store], out)
    assert not (out / "defense/tiny-v1/kmeans.html").exists()
    assert (out / "defense/tiny-v1/identity.html").exists() and (out / "CNAME").exists()


def test_a_forged_marker_deletes_nothing_outside(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity"])
    (tmp_path / "precious").write_text("mine")
    out = tmp_path / "site"
    out.mkdir()
    (out / ".purifybench-site.json").write_text('{"files": ["../precious"]}')
    with pytest.raises(BenchError, match="outside the site"):
        build([store], out)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    ("value", "high", "shown"),
    [
        (0.973, 0.98, "97.3\u202f%"),
        (0.0, 0.0038, "≤\u202f0.4\u202f%"),
        (1e-5, 0.1, "<\u202f0.1\u202f%"),
        (1, 1, "100.0\u202f%"),
    ],
)
def test_percentages_are_printed_as_people_read_them(value: float, high: float, shown: str) -> None:
    assert formats.percent(Estimate(value, 0, high, 1000)) == shown


@pytest.mark.parametrize("name", ["../../etc/passwd", "A", "a", "a.b", "mnist-v1+limit5", "", "é", "a b", "a" * 300])
def test_file_names_are_safe(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9_-][a-z0-9_.-]{0,100}", formats.file_name(name))


def test_file_names_never_collide() -> None:
    names = ["a", "A", "a.b", "a+b", "a b", "a/b", "a-b", "-a", ""]
    assert len({formats.file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "//evil", "https://", "http://[", " "])
def test_only_web_addresses_become_links(address: str) -> None:
    assert formats.web_link(address) == ""


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels_it_was_given(channels: int) -> None:
    from io import BytesIO

    from matplotlib.image import imread

    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    read = np.round(imread(BytesIO(pictures.png(image))) * 255).astype(np.uint8)
    expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
    assert np.array_equal(read, expected)


def test_reading_a_site_needs_no_torch() -> None:
    code = (
        "import sys, leaderboard.build; print([name for name in ('torch', 'pandas', 'itables') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("attacked", "has_radius"),
    [
        ({"track": "white_box", "eps": (1.0, 4.0)}, True),
        ({"track": "white_box", "eps": (1.0,)}, False),
        ({"track": "gray_box", "eps": (1.0, 4.0)}, False),
        ({"track": "white_box", "eps": (1.0, 4.0), "n_examples": 3}, False),
    ],
)
def test_an_l2_radius_needs_a_white_box_attack_at_every_radius(
    attacked: dict[str, Any], has_radius: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {name: value for name, value in attacked.items() if name != "eps"}
    specs = [AttackSpec("pgd", norm="l2", eps=eps, **facts) for eps in attacked["eps"]]
    wide = replace(TINY, l2_radii=(1.0, 4.0), attacks=(*TINY.attacks, *specs))
    monkeypatch.setattr(protocols, "PROTOCOLS", {wide.id: wide})
    fake_records.save(store, wide, ["kmeans"])
    (row,) = tables.board(wide.id, store.cells()).rows
    assert row.mrr is not None
    assert (row.l2_mrr is not None) == has_radius
    assert row.l2_mrr is None or 0 <= row.l2_mrr.value <= 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pgd", "PGD"),
        ("r_fgsm", "R-FGSM"),
        ("none", "no attack"),
        ("uniform_noise", "uniform noise"),
        ("cw_l2", "CW-L2"),
        ("vae_loss", "VAE loss"),
        ("latent_distance", "Latent distance"),
    ],
)
def test_attacks_are_named_as_published(name: str, shown: str) -> None:
    assert formats.attack_name(name) == shown


@pytest.mark.parametrize(
    ("form", "value", "shown"),
    [
        (formats.signed, -0.0004, "+0.000"),
        (formats.points, -0.02, "−2.0"),
        (formats.p_value, 0.0004, "<\u202f0.001"),
        (formats.p_value, 0.0421, "0.042"),
        (formats.file_size, 2_453_037, "2.5\u202fMB"),
        (formats.compact, 0, "0"),
        (formats.compact, 999, "999"),
        (formats.compact, 12345, "12.3\u202fk"),
        (formats.compact, 999_900, "1.00\u202fM"),
        (formats.compact, 123_456_789, "123\u202fM"),
        (formats.duration, 0, "0\u202fs"),
        (formats.duration, 4.5, "4.5\u202fs"),
        (formats.duration, 59.9, "1.0\u202fmin"),
        (formats.duration, 5400, "1.5\u202fh"),
        (formats.units, 1.1e-5, "<\u202f0.01"),
        (formats.units, 1.25, "1.2"),
        (formats.units, 4321.0, "4\u202f321"),
        (formats.level, "Warning, for random defenses: drift", "warning"),
    ],
)
def test_costs_are_printed_as_people_read_them(form: Callable[..., str], value: object, shown: str) -> None:
    assert form(value) == shown


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        (AttackSpec("pgd", "gray_box", "linf", 0.1), "gray box"),
        (AttackSpec("apgd_ce", "white_box", "linf", 0.1, route="bpda"), "white box, BPDA"),
        (AttackSpec("apgd_ce", "white_box", "linf", 0.1, route="surrogate"), "white box, surrogate"),
        (AttackSpec("apgd_ce", "transfer", "linf", 0.1, source="pgd_training"), "transfer, made on PGD training"),
        (AttackSpec("apgd_ce", "transfer", "linf", 0.1, source="identity"), "transfer, made on identity"),
    ],
)
def test_what_an_attacker_knows_is_said_in_words(spec: AttackSpec, shown: str) -> None:
    assert formats.knowledge(spec) == shown


def papers_cells(store: Store) -> None:
    """Four images of table 2 of MAD-VAE on classifier A: right, right, wrong, right when clean, and under FGSM."""
    view = protocols.get("papers-v1-mad-vae-black-box-mnist")
    labels = np.zeros(view.n_examples, np.int16)
    clean = (np.arange(view.n_examples) % 4 != 2).astype(np.float32)
    fallen = (np.arange(view.n_examples) % 4 == 0).astype(np.float32)
    for spec, right in zip(view.attacks, (clean, fallen), strict=True):
        predicted = np.where(right > 0, 0, 7).astype(np.int16)  # where wrong, always 7: image 2 agrees with itself
        arrays = {"correct": right, "label": labels, "predicted": predicted}
        store.save(fake_records.cell(view, "identity", spec, arrays=arrays))


def test_the_papers_page_holds_every_printed_number_and_the_measured_ones_beside(store: Store, tmp_path: Path) -> None:
    papers_cells(store)
    out = build([store], tmp_path / "site").parent
    page = (out / "papers.html").read_text()
    tags_of(page)
    printed = re.findall(r'<td class="num edge">([0-9.]+)</td>', page)
    assert len(printed) == 472 and sorted(printed) == sorted(str(row.value_percent) for row in reported())
    shown = text_of(page)
    low, high = statistics.wilson(500, 1000)
    assert f"4.87 50.0\u202f% {100 * low:.1f}–{100 * high:.1f}, n&#8239;=&#8239;1\u202f000" in shown  # agreement
    low, high = statistics.wilson(750, 1000)
    assert f"99.39 75.0\u202f% {100 * low:.1f}–{100 * high:.1f}" in shown
    assert "71 numbers, 2 measured" in shown and "40 numbers, 0 measured" in shown
    assert "Under attack the paper counts agreement" in shown
    assert 'href="board/papers-v1-mad-vae-black-box-mnist.html"' in page
    assert 'href="papers.html" aria-current="page"' in page
    board = (out / "board/papers-v1-mad-vae-black-box-mnist.html").read_text()
    assert 'The same beside what the paper printed: <a href="../papers.html">' in board


def test_the_papers_page_stands_without_any_measured_number(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity"])
    page = (build([store], tmp_path / "site").parent / "papers.html").read_text()
    assert "472" not in page and page.count("0 measured") == 4 + 16
    assert '<th scope="col" class="num">measured' not in page
    links = {value for tag, names in tags_of(page) for name, value in names.items() if name == "href" and value}
    anchors = {names["id"] for _, names in tags_of(page) if "id" in names}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors


def test_what_a_record_says_reaches_the_papers_page_escaped(store: Store, tmp_path: Path) -> None:
    view = protocols.get("papers-v1-lq-vae-mnist")
    card = fake_records.card("identity", title=HOSTILE)
    for spec in view.attacks[:2]:
        store.save(fake_records.cell(view, "identity", spec, card=card, status="failed", error=HOSTILE))
    page = (build([store], tmp_path / "site").parent / "papers.html").read_text()
    assert "failed on some images" in page
    assert "<script>alert" not in page and "<img src=x" not in page


def test_boards_of_papers_come_behind_all_others(store: Store, tmp_path: Path) -> None:
    papers_cells(store)
    fake_records.save(store, protocols.get("mnist-v1-quick").limited(10), ["identity"])
    html = build([store], tmp_path / "site").read_text()
    boards = re.findall(r'<nav class="tabs".*?</nav>', html, flags=re.DOTALL)[0]
    ids = ["mnist-v1-quick+limit10", "papers-v1-mad-vae-black-box-mnist"]
    assert re.findall(r'title="([^"]+)"', boards) == ids
    titles = ["MNIST, quick, first 10", "mad vae black box mnist, as printed"]
    assert re.findall(r">([^<>]+)</a>", boards) == titles


def test_attacks_without_a_budget_show_where_images_break(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = replace(TINY, id="far-v1", l2_radii=(0.5, 2.0), attacks=(
        *TINY.attacks, AttackSpec("fab", "gray_box", "l2", None, PGD), AttackSpec("shift", "clean"),
    ))  # fmt: skip
    monkeypatch.setattr(protocols, "PROTOCOLS", {far.id: far})
    fake_records.save(store, far, ["identity"])
    fallen = {"correct": np.array([0] * 6 + [1] * 4, np.float32), "l2": np.array([0.25] * 2 + [1] * 8, np.float32)}
    store.save(fake_records.cell(far, "identity", far.attacks[0], arrays={"correct": np.ones(10, np.float32)}))
    store.save(fake_records.cell(far, "identity", far.attacks[3], arrays=fallen))
    (row,) = tables.board(far.id, store.cells()).rows
    (line,) = views.distortions(row)
    assert (line.median, line.n, [one.value for one in line.accuracies]) == (1.0, 10, [0.8, 0.4])
    held = {"correct": np.ones(10, np.float32)}
    store.save(fake_records.cell(far, "identity", far.attacks[3], arrays=held))
    (row,) = tables.board(far.id, store.cells()).rows
    assert views.distortions(row)[0].median is None
    page = text_of((build([store], tmp_path / "site").parent / "defense/far-v1/identity.html").read_text())
    assert "Attacks without a budget" in page and "∞" in page
