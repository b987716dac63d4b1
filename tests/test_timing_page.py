"""The page of the timing track: a section a machine, robustness where the same settings were measured, marks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_timing import PLACE, run, times
from sites import HOSTILE, TINY, pages, tags_of, text_of, tiny_cells

from bench import protocols, statistics, timing_record, verdicts
from bench.record import Store
from bench.timing_record import CLASSIFIER, REFERENCE, Entrant, Measure, Passes, Score, Timing
from leaderboard import formats, tables, timing_page
from leaderboard.build import build
from leaderboard.watch import Watcher

ALL, NONE, HALF = [1] * 10, [0] * 10, [1] * 5 + [0] * 5


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {TINY.id: TINY})
    monkeypatch.setattr(verdicts, "verdicts", lambda *_: ())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "records")
    tiny_cells(store, "identity", [ALL, NONE, NONE], settings={})
    tiny_cells(store, "good", [ALL, ALL, HALF], settings={"width": 4})
    return store


def page(store: Store, tmp_path: Path, *runs: Timing) -> str:
    for one in runs:
        timing_record.save(one, store.root)
    return pages(build([store], tmp_path / "site").parent)["timing.html"]


def test_without_a_run_the_page_says_how_to_make_one(store: Store, tmp_path: Path) -> None:
    assert "These records hold no times yet. purifybench timing" in text_of(page(store, tmp_path))


def test_robustness_stands_beside_the_time_where_the_same_settings_were_measured(store: Store, tmp_path: Path) -> None:
    boards = [tables.board(TINY.id, store.cells())]
    one = run(times("good", settings={"width": 4}), times("identity", settings={}, seconds=0.002))
    (section,) = timing_page.sections([one], boards)
    assert [line.entrant.name for line in section.lines] == [CLASSIFIER, "identity", "good", REFERENCE]
    good = section.lines[2]
    ((board, row),) = good.measured
    assert (board.id, row.defense, row.mrr.value) == (TINY.id, "good", pytest.approx(0.875))
    assert (good.to_classifier, good.search_takes) == (pytest.approx(1000), pytest.approx(4))
    ((board, drawn),) = section.scatters
    assert board.id == TINY.id and [spot.line.entrant.name for spot in drawn.spots] == ["identity", "good"]
    other = run(times("good", settings={"width": 8}), times("identity"))
    (section,) = timing_page.sections([other], boards)
    assert section.scatters == () and section.lines[1].entrant.name == "good"
    assert section.lines[1].measured == (), "another net was timed"
    html = page(store, tmp_path, one)
    assert 'href="defense/tiny-v1/good.html"' in html
    assert "Good : 1.00\u202fs, 0.875" in text_of(html)


def test_a_scatter_lies_where_its_numbers_say(store: Store) -> None:
    line = timing_page.sections([run()], [])[0].lines[0]
    quick, slow = (
        timing_page.Line(times("a", seconds=seconds), (times("a", seconds=seconds).at(1),), None, None, {})
        for seconds in (0.01, 1.0)
    )
    share = tables.Estimate(0.5, 0.25, 1.0, 10)
    drawn = timing_page.scatter([(slow, share), (quick, share)])
    first, second = drawn.spots
    assert (first.line, first.number, second.number) == (quick, 1, 2)
    assert (first.x, second.x) == (timing_page.LEFT, timing_page.WIDTH - timing_page.RIGHT)
    middle = timing_page.TOP + (timing_page.HEIGHT - timing_page.TOP - timing_page.BOTTOM) / 2
    assert first.y == pytest.approx(middle) and first.high == timing_page.TOP
    assert [seconds for _, seconds in drawn.ticks] == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    assert timing_page.scatter([(line, share)]) is None


def test_the_axis_fits_the_times() -> None:
    for low, high, shown in (
        (0.744e-3, 3.58e-3, [0.5e-3, 1e-3, 2e-3, 5e-3]), (1e-4, 0.9, [1e-4, 1e-3, 1e-2, 0.1, 1]), (1, 1, [1, 2]),
        (0.7, 0.8, [0.5, 1]), (5e-3, 10, [1e-3, 1e-2, 0.1, 1, 10]),
    ):  # fmt: skip
        assert timing_page._ticks(low, high) == pytest.approx(shown)


def test_numbers_of_points_that_lie_together_stand_apart() -> None:
    points = []
    for place in range(12):
        entrant = times(f"a{place}", seconds=0.003 + place / 20000)
        share = 0.35 + place % 4 / 50
        line = timing_page.Line(entrant, (entrant.at(1),), None, None, {})
        points.append((line, tables.Estimate(share, share - 0.03, share + 0.03, 100)))
    far = times("far", seconds=1.0)
    points.append((timing_page.Line(far, (far.at(1),), None, None, {}), tables.Estimate(0.9, 0.8, 1.0, 100)))
    drawn = timing_page.scatter(points)
    assert drawn is not None
    boxes = [timing_page._box(*spot.label) for spot in drawn.spots]
    dots = [(spot.x - 6, spot.y - 6, spot.x + 6, spot.y + 6) for spot in drawn.spots]
    assert not [1 for k, one in enumerate(boxes) for other in boxes[:k] if timing_page._meet(one, other)]
    assert not [1 for one in boxes for dot in dots if timing_page._meet(one, dot)]
    assert all(box[0] > timing_page.LEFT and box[2] < timing_page.WIDTH for box in boxes)
    assert any(spot.is_led for spot in drawn.spots) and not (drawn.spots[-1].is_led)


def test_who_was_timed_and_has_no_number_is_named(store: Store, tmp_path: Path) -> None:
    one = run(times("good", settings={"width": 4}), times("identity", settings={}), times("other", title="Another one"))
    found = text_of(page(store, tmp_path, one))
    assert "Timed, but not drawn: Another one . They have no mean robust radius on this board" in found


def test_why_defenses_were_not_timed_is_a_list(store: Store, tmp_path: Path) -> None:
    why = {name: f"not trained; purifybench train {name} --dataset mnist" for name in ("b", "a")} | {"c": "too slow"}
    one = run(times("good"), left_out=why)
    (section,) = timing_page.sections([one], [])
    trains = tuple(f"purifybench train {name} --dataset mnist" for name in ("a", "b"))
    assert section.left_out == (("not trained", ("a", "b"), trains), ("too slow", ("c",), ()))
    assert "\n".join(trains) in page(store, tmp_path, one)


def test_where_most_times_are_noisy_that_is_said_once(store: Store, tmp_path: Path) -> None:
    def restless(name: str) -> Entrant:
        return times(name, measures=(Measure(batch=1, seconds=(1.0, 2.0, 3.0)),))

    html = page(store, tmp_path, run(*(restless(name) for name in ("good", "identity", "a", "b", "c", "d", "e"))))
    found = text_of(html)
    assert re.search(r"of \d+ times, 7 have quartiles", found) and "2.00\u202fs~" not in found


def test_two_machines_are_two_sections_and_never_one_order(store: Store, tmp_path: Path) -> None:
    other = PLACE.model_copy(update={"name": "Another processor"})
    html = page(store, tmp_path, run(times("good")), run(times("good"), machine=other))
    assert html.count('<table class="plain attackers timing"') == 2
    heads = [text_of(part) for part in html.split("<h2")[1:]]
    assert len(heads) == 2 and all(("Some processor" in head) != ("Another processor" in head) for head in heads)


def test_noise_and_what_is_derived_are_marked_and_the_rest_is_not(store: Store, tmp_path: Path) -> None:
    restless = times("good", measures=(Measure(batch=1, seconds=(1.0, 2.0, 3.0)), Measure(batch=128, seconds=(64.0,))))
    found = text_of(page(store, tmp_path, run(restless, times("identity"))))
    assert "2.00\u202fs~" in found and "1.50\u202fs–2.50\u202fs" in found and "p95 2.90\u202fs, n = 3" in found
    assert "1.00\u202fs " in found and "1.00\u202fs~" not in found
    assert "2.00* from batches of 32" in found and "2.00 n = 1" in found
    assert "1\u202f230 at 32" in found


def test_rows_stand_under_the_net_that_their_names_tell() -> None:
    passes = {
        CLASSIFIER: Passes(forward=1, backward=0), "vae.encoder": Passes(forward=1, backward=0),
        "vae.mean": Passes(forward=1, backward=0), "gan": Passes(forward=2000, backward=1990),
        "odd": Passes(forward=3, backward=0),
    }  # fmt: skip
    (section,) = timing_page.sections([run(times("good", passes=passes))], [])
    line = next(line for line in section.lines if line.entrant.name == "good")
    assert {role: (rows.forward, rows.backward) for role, rows in line.rows.items()} == {
        "classifier": (1, 0), "encoder": (1, 0), "generator": (2000, 1990), "other": (3, 0),
    }  # fmt: skip


def test_the_curve_of_the_search_has_intervals(store: Store, tmp_path: Path) -> None:
    scores = [Score(n=10, clean=0.9, fgsm=0.5, eps=0.3), Score(n=10, clean=0.8, fgsm=0.4, eps=0.3)]
    html = page(store, tmp_path, run(
        times("good", score=scores[0]), times("short", "variant", seconds=0.1, score=scores[1], title="L = 25, R = 1")
    ))  # fmt: skip
    found = text_of(html)
    low, high = statistics.wilson(5, 10)
    assert f"50.0\u202f% {100 * low:.1f}–{100 * high:.1f}, ε = 0.3" in found
    assert "How long to search" in found and "L = 25, R = 1 : 100\u202fms, 0.400" in found


def test_all_rounds_can_be_downloaded_and_torn_files_are_named(store: Store, tmp_path: Path) -> None:
    one = run(times("good"))
    (store.root / "timing").mkdir(parents=True)
    (store.root / "timing" / "torn.json").write_text("{")
    html = page(store, tmp_path, one)
    copy = json.loads((tmp_path / "site" / "timing" / one.file_name).read_text())
    assert Timing.model_validate(copy) == one and f'href="timing/{one.file_name}"' in html
    assert "timing/torn.json: Expecting property name" in text_of(html) and str(tmp_path) not in html


def test_names_from_records_do_no_harm(store: Store, tmp_path: Path) -> None:
    place = PLACE.model_copy(update={"name": HOSTILE, "system": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    score = Score(n=10, clean=1, fgsm=0, eps=0.3)
    odd = [times(f"good{k}", title=HOSTILE, recipe=HOSTILE, score=score, seconds=k) for k in (1, 2)]
    html = page(store, tmp_path, run(*odd, machine=place, left_out={HOSTILE: HOSTILE}))
    tags = tags_of(html)
    assert not [tag for tag, facts in tags if "onerror" in facts or (tag == "script" and "src" not in facts)]
    assert HOSTILE not in html


def test_same_records_give_the_same_bytes_and_new_times_are_seen(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    watcher = Watcher([store.root], tmp_path / "watched", said.append)
    assert watcher.look() and not watcher.look()
    first = page(store, tmp_path, run(times("good")))
    assert watcher.look()
    assert (tmp_path / "watched" / "timing.html").read_text() == first == page(store, tmp_path)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (0.00123456, "0.00123"), (0.5, "0.500"), (9.999, "10.0"), (12.34, "12.3"), (999.6, "1\u202f000"),
        (1e6, "1\u202f000\u202f000"),
    ],
)  # fmt: skip
def test_three_digits(number: float, text: str) -> None:
    assert formats.ratio(number) == text


def test_the_times_beside_the_submissions_are_shown_unasked_and_are_no_submission(store, tmp_path, command) -> None:
    store.root.rename(tmp_path / "results")
    one = run(times("good", settings={"width": 4}), times("identity", settings={}, seconds=0.002))
    timing_record.save(one, tmp_path / "submissions" / "machines")
    status, _, err = command("site", "build", "--out", "site")
    assert (status, err) == (0, "")
    text = text_of((tmp_path / "site" / "timing.html").read_text())
    assert "Good : 1.00\u202fs, 0.875" in text and "hold no times yet" not in text
    status, _, err = command("submission", "check", "machines")
    assert status != 0 and "no submission is called 'machines'" in err
