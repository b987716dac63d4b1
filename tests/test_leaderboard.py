from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import fake_records
import numpy as np
import pytest

from bench import protocol as protocols
from bench import statistics
from bench.errors import BenchError
from bench.protocol import AttackSpec, Protocol
from bench.record import Store
from leaderboard import bundle, formats, gather, pictures, tables
from leaderboard.build import build
from leaderboard.tables import Estimate

QUICK = protocols.get("digits-v1-quick-draft")
TINY = Protocol(
    id="tiny-v1", dataset="digits", n_examples=10, linf_radii=(0.1, 0.2), ranked=True, purpose="For tests.",
    attacks=(
        AttackSpec("none", "clean"),
        AttackSpec("pgd", "gray_box", "linf", 0.1, (("steps", 3),)),
        AttackSpec("pgd", "gray_box", "linf", 0.2, (("steps", 3),)),
    ),
)  # fmt: skip
VOID = {"meta", "link", "img", "br", "input", "path", "rect", "circle"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Protocol:
    monkeypatch.setattr(protocols, "PROTOCOLS", {TINY.id: TINY})
    return TINY


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "records")


def tiny_cells(store: Store, defense: str, rights: list[list[int]], **changes: object) -> None:
    """Save the three cells of TINY with the given outcome of each image."""
    for spec, right in zip(TINY.attacks, rights, strict=True):
        arrays = {"correct": np.array(right, np.float32)}
        store.save(fake_records.cell(TINY, defense, spec, arrays=arrays, **changes))


def pages(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): path.read_text() for path in sorted(out.rglob("*.html"))}


def text_of(html: str) -> str:
    """The visible words of a page, with single spaces."""
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", html))


def row_of(html: str, defense: str) -> str:
    """The board's row of a defense, as text."""
    rows = re.findall(r"<tr class=.*?</tr>", html, flags=re.DOTALL)
    return text_of(next(row for row in rows if f"<code>{defense}</code>" in row))


class Tags(HTMLParser):
    """Collects elements and their attributes, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()


def tags_of(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser.found


def test_same_records_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    sites = []
    for place in ("here", "elsewhere/deeper"):
        store = Store(tmp_path / place / "records")
        fake_records.save(store, QUICK, ["kmeans", "identity"])
        (store.root / QUICK.id / "kmeans" / "torn.json").write_text("{")
        out = tmp_path / place / "site"
        build([store], out)
        first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        build([store], out)
        assert first == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        sites.append({path.relative_to(out): data for path, data in first.items()})
    assert sites[0] == sites[1]


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


def test_seeds_are_averaged_and_classifiers_are_kept_apart(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    good, bad = [[1] * 10] * 3, [[0] * 10] * 3
    tiny_cells(store, "kmeans", good, seed=0)
    tiny_cells(store, "kmeans", bad, seed=1)
    tiny_cells(store, "kmeans", good, classifier="B")
    board = tables.board(TINY.id, store.cells())
    assert [(row.classifier, row.seeds, row.rank) for row in board.rows] == [("A", (0, 1), 1), ("B", (0,), None)]
    # an AND over seeds would give 0
    assert board.rows[0].mrr is not None
    assert board.rows[0].mrr.value == pytest.approx(0.5)
    assert board.rows[0].mrr.by_seed == (1.0, 0.0)
    html = build([store], tmp_path / "site").read_text()
    assert "classifier B" in html and "2 seeds, 0.000 to 1.000" in html


def test_the_gain_needs_the_same_classifier_weights(tiny: Protocol, store: Store) -> None:
    tiny_cells(store, "identity", [[1] * 10, [0] * 10, [0] * 10])
    tiny_cells(store, "kmeans", [[1] * 10] * 3)
    tiny_cells(store, "other", [[1] * 10] * 3, classifier_weights="another net")
    gains = {row.defense: row.gain for row in tables.board(TINY.id, store.cells()).rows}
    assert gains["kmeans"] is not None and gains["kmeans"].value == pytest.approx(0.75)
    assert gains["other"] is None and gains["identity"] is None
    board = tables.board(TINY.id, store.cells())
    assert {row.defense for row in board.rows if board.baseline_of(row)} == {"kmeans"}


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
        if name != "about.html":
            shown = text_of(html)
            assert "no attacker on this board knows that a defense exists" in shown
            assert tiny.purpose in shown
            assert "white box" in shown


def test_a_draft_says_so_and_names_what_it_does_not_measure(store: Store, tmp_path: Path) -> None:
    fake_records.save(store, QUICK, ["identity"])
    out = build([store], tmp_path / "site").parent
    for name, html in pages(out).items():
        if name != "about.html":
            shown = text_of(html)
            assert "no attacker on this board knows that a defense exists" not in shown
            assert QUICK.purpose in shown
            assert "query" in shown
    assert "white box, BPDA" in text_of(pages(out)["defense/digits-v1-quick-draft/identity.html"])
    assert "smoke test" in row_of(pages(out)["index.html"], "identity")


def test_limited_runs_are_recognised(store: Store, tmp_path: Path) -> None:
    limited = QUICK.limited(20)
    fake_records.save(store, limited, ["identity"])
    assert gather.known(limited.id) == limited
    assert gather.known("digits-v1-quick-draft+limit5000") is None
    out = build([store], tmp_path / "site").parent
    html = pages(out)["board/digits-v1-quick-draft.limit20.html"]
    assert "limited" in row_of(html, "identity")
    assert "--protocol digits-v1-quick-draft --limit 20" in html


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
    for name, html in pages(out).items():
        ids = [attributes["id"] for _, attributes in tags_of(html) if "id" in attributes]
        assert len(ids) == len(set(ids)), name
        for tag, attributes in tags_of(html):
            for address in filter(None, (attributes.get("src"), attributes.get("href"), attributes.get("xlink:href"))):
                if address.startswith("#"):
                    assert address[1:] in ids
                elif not address.startswith("data:image/png;") and not (
                    tag == "a" and address.startswith("https://arxiv")
                ):
                    assert re.match(r"[a-z.]", address) and ":" not in address
                    assert (out / name).parent.joinpath(address).resolve().is_file(), (name, address)
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
    with pytest.raises(BenchError, match="purifybench run identity --protocol digits-v1-quick-draft"):
        build([store], tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_problems_are_listed_without_paths_of_this_machine(tiny: Protocol, store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity", "kmeans"])
    (store.root / TINY.id / "kmeans" / "A.clean.none.seed0.json").write_text("{}")
    html = build([store], tmp_path / "site").read_text()
    assert "1 file could not be used" in html
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


def test_a_protocol_with_l2_attacks_gets_a_radius_for_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(TINY, l2_radii=(1.0, 4.0), attacks=(*TINY.attacks, AttackSpec("pgd", "gray_box", "l2", 1.0)))
    monkeypatch.setattr(protocols, "PROTOCOLS", {wide.id: wide})
    fake_records.save(store, wide, ["kmeans"])
    (row,) = tables.board(wide.id, store.cells()).rows
    assert row.l2_mrr is not None and 0 <= row.l2_mrr.value <= 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pgd", "PGD"),
        ("r_fgsm", "R-FGSM"),
        ("none", "no attack"),
        ("uniform_noise", "uniform noise"),
        ("cw_l2", "CW-L2"),
    ],
)
def test_attacks_are_named_as_published(name: str, shown: str) -> None:
    assert formats.attack_name(name) == shown
