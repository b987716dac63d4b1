"""The built site in a real browser, from file://, with and without JavaScript."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken
import fake_records
import fake_timing
import pytest
from sites import TINY

from bench import protocols, timing_record, verdicts
from bench.evidence import Verdict
from bench.record import Store
from bench.timing_record import Score
from leaderboard.build import build

pytestmark = pytest.mark.browser
QUICK = protocols.get("digits-v1-quick")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with three complete defenses, an incomplete one, a warned one, a long title and a limited board, which
    also has a costly random defense that fails. One defense has maps of its codes, one has claims, and a break of an
    author with a long name."""
    folder = tmp_path_factory.mktemp("site")
    store = Store(folder / "records")
    own = folder / "submissions" / "identity_vae"
    fake_records.save(Store(own / "records"), QUICK, ["identity_vae"])
    described = (Path(__file__).parent.parent / "submissions" / "identity_vae" / "submission.toml").read_text()
    claim = 'dataset = "digits"\nnorm = "linf"\neps = 0.1\naccuracy = 0.9\nattack = "PGD"\nwhere = "Table 1"\n'
    (own / "submission.toml").write_text(f"{described}\n[[claims]]\n{claim}")
    said = broken.description(entry="identity_vae", author="Ada" * 60, note="note " * 150, code="https://example.org/c")
    broken.save(own.parent, said, list(Store(own / "records").cells()), range(100))
    fake_records.save(store, QUICK, ["identity", "identity_vae"])
    long = fake_records.card("kmeans", title="Averyverylongtitlewithoutanyplacetobreak" * 2, summary="word " * 60)
    fake_records.save(store, QUICK, ["kmeans"], card=long)
    by_slug = {spec.slug: spec for spec in QUICK.attacks}
    for slug, attacked in (("clean.none", False), ("gray_box.pgd.linf-0.3", True)):
        spec, drawn = by_slug[slug], fake_records.map_facts(30, attacked=attacked)
        store.save(fake_records.cell(QUICK, "identity", spec, facts=drawn))
    fake_records.save(store, QUICK, ["torn"], skip=["gray_box.fgsm.linf-0.1"])
    fake_records.save(store, QUICK.limited(20), ["identity"])
    costly = {"card": fake_records.card("slow", stochastic=True), "budget": "search", "units": 5000.0}
    fake_records.save(store, QUICK.limited(20), ["slow"], status="failed", error="ValueError: nothing", **costly)
    fake_records.save(store, QUICK, ["masked"])
    scores = [Score(n=10, clean=0.9, fgsm=share, eps=0.3) for share in (0.2, 0.6)]
    lengths = [fake_timing.times(f"l{k}", "variant", seconds=k + 1, score=one) for k, one in enumerate(scores)]
    timing_record.save(fake_timing.run(*lengths), store.root)
    warned = (Verdict("jitter", "warning", "A small shift costs too much.", {"loss": 0.3}, ()),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "verdicts", lambda cells, *_: warned if cells[0].record.defense == "masked" else ())
        return build([store, own / "records"], folder / "out").parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "no chromium on the path: install it to run the browser tests"
        )
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Any]:
    """A function that opens a page of the site; whatever the page complains about fails the test."""
    contexts, complaints = [], []

    def open_page(path: str = "index.html", *, enhanced: bool = True, width: int = 1280, **options: Any) -> Any:
        options.setdefault("java_script_enabled", enhanced)
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda problem: complaints.append(str(problem)))
        page.on("requestfailed", lambda request: complaints.append(f"not loaded: {request.url}"))
        name, _, query = path.partition("?")
        page.goto(f"{(site / name).as_uri()}{query and '?'}{query}")
        if enhanced and page.locator("table[data-enhance]").count():
            page.wait_for_selector(".enhanced .dt-search input")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def names(page: Any) -> list[str]:
    return [name.strip() for name in page.locator("#board tbody .sub > code").all_inner_texts()]


def every_page(site: Path) -> list[str]:
    return [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]


PROSE = ("papers.html", "about.html", "warnings.html", "dispute.html", "downloads.html", "index.html")


def one_page_a_template(site: Path) -> list[str]:
    """The first page of each folder, and the pages of the top that are not like another or prose alone."""
    folders: dict[str, str] = {}
    for path in every_page(site):
        folders.setdefault(path.partition("/")[0] if "/" in path else path, path)
    return [path for name, path in folders.items() if name not in PROSE]


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll("main *, header *, footer *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.closest("svg") || !node.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${node.textContent.trim()}`);
  }
  return bad;
}"""


def test_every_page_is_sound_in_light_dark_and_on_a_phone(visit: Any, site: Path) -> None:
    pages = every_page(site)
    alike = {
        folder: [path for path in pages if path.startswith(folder)] for folder in ("attack/", "compare/", "protocol/")
    }
    longest = [max(some, key=lambda path: (site / path).stat().st_size) for some in alike.values()]
    for path in [path for path in pages if not path.startswith(tuple(alike))] + longest:
        page = visit(path, width=375)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
        assert page.locator("h1").count() == 1, path
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(CONTRAST) == [], (path, scheme)
        page.context.close()


def test_a_theme_is_chosen_kept_and_left_to_the_system(visit: Any) -> None:
    page = visit(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light, button = page.evaluate(background), page.get_by_role("button", name="Theme: ")
    button.click()
    assert button.inner_text() == "Theme: light" and page.evaluate(background) == light
    button.click()
    dark = page.evaluate(background)
    assert button.inner_text() == "Theme: dark" and dark != light and page.evaluate(CONTRAST) == []
    page.reload()
    assert page.evaluate(background) == dark, "the next page has it too"
    page.emulate_media(media="print")
    assert page.evaluate(background) == light, "paper is white"
    page.emulate_media(media="screen", color_scheme="dark")
    page.get_by_role("button", name="Theme: dark").click()
    assert page.get_by_role("button", name="Theme: system").count() == 1 and page.evaluate(background) == dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == light


def test_no_page_breaks_a_serious_rule_of_accessibility(visit: Any, site: Path) -> None:
    module = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    script = (Path(module.__file__).parent / "axe.min.js").read_text()
    looked_at = one_page_a_template(site)
    assert any("Where its codes lie" in (site / path).read_text() for path in looked_at)
    for path in looked_at:
        page = visit(path)
        page.evaluate(f"{script}; 0")
        found = page.evaluate(
            "axe.run({preload: false, rules: {'color-contrast': {enabled: false}}})"
        )  # ours looks at every page
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert [(path, one["id"], one["nodes"][0]["html"]) for one in serious] == []
        assert len(found["passes"]) > 10, path
        page.context.close()


def test_every_page_is_valid_html(site: Path) -> None:
    html5lib = pytest.importorskip("html5lib", reason="html5lib is not installed")
    for path in every_page(site):
        parser = html5lib.HTMLParser()
        parser.parse((site / path).read_text())
        assert parser.errors == [], path


def test_no_page_is_heavy_and_none_asks_for_another_site(site: Path, visit: Any) -> None:
    for path in every_page(site):
        assert (site / path).stat().st_size < 1_000_000, path
    page = visit("index.html")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.wait_for_selector(".enhanced .dt-search input")
    assert asked and all(url.startswith((site.as_uri(), "blob:", "data:")) for url in asked)


def test_two_defenses_are_picked_by_a_form(visit: Any) -> None:
    page = visit("compare.html")
    form = page.locator("form.pick").first
    form.locator("[name=first]").select_option("identity_vae")
    form.locator("[name=second]").select_option("kmeans")
    form.get_by_role("button").click()
    page.wait_for_url("**/compare/digits-v1-quick/identity_vae.html?against=kmeans")
    assert page.locator("tr.asked").get_attribute("data-against") == "kmeans"
    plain = visit("compare.html", enhanced=False)
    assert not plain.locator("form.pick").first.is_visible()
    plain.get_by_role("link", name="Identity vae").first.click()
    assert plain.locator("[data-against=kmeans]").is_visible()


def test_a_cell_has_its_command_behind_a_word(visit: Any) -> None:
    page = visit("defense/digits-v1-quick/identity_vae.html")
    command = page.locator("td.command code", has_text="--tracks gray_box --attacks pgd").first
    assert not command.is_visible()
    page.locator("td.command", has_text="--tracks gray_box --attacks pgd").first.locator("summary").click()
    assert command.is_visible()


def test_a_phone_folds_the_links_of_the_site(visit: Any) -> None:
    wide = visit()
    assert wide.get_by_role("navigation", name="Site", exact=True).is_visible()
    assert not wide.get_by_text("Menu", exact=True).is_visible()
    page = visit(width=390)
    link = page.get_by_role("navigation", name="Site menu").get_by_role("link", name="Timing")
    assert not page.get_by_role("navigation", name="Site", exact=True).is_visible() and link.count() == 0
    page.get_by_text("Menu", exact=True).click()
    link.click()
    assert page.url.endswith("timing.html")


def test_an_odd_name_widens_no_page(browser: Any, tmp_path: Path) -> None:
    name = "<script>document.title='no'</script>" + "\u202e\u05de\u05d2\u05df" + "w" * 240 + " longer name" * 2
    store = Store(tmp_path / "records")
    fake_records.save(store, QUICK, ["identity"])
    odd = fake_records.card("kmeans", title=name[:300], summary=name * 2)
    fake_records.save(store, QUICK, ["kmeans"], card=odd)
    out = build([store.root], tmp_path / "site").parent
    page = browser.new_page()
    try:
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            for path in ("index.html", "defense/digits-v1-quick/kmeans.html"):
                page.goto((out / path).as_uri())
                page.wait_for_selector(".enhanced .dt-search input")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, path
                assert page.title() != "no" and page.locator("h1").first.bounding_box()["width"] <= width
            page.goto((out / "index.html").as_uri())
            named = page.locator("tr", has=page.locator("code", has_text="kmeans")).locator(".who")
            assert named.bounding_box()["width"] < 320, "the name wraps inside its column"
    finally:
        page.close()


def test_the_rest_of_a_long_board_follows_when_it_can_be_sorted(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "PROTOCOLS", {TINY.id: TINY})
    monkeypatch.setattr(verdicts, "verdicts", lambda *_: ())
    store = Store(tmp_path / "records")
    fake_records.save(store, TINY, [f"entry_{k}" for k in range(50)])
    page = build([store], tmp_path / "site").as_uri()
    for scripts, held_up in ((True, False), (True, True), (False, False)):
        context = browser.new_context(java_script_enabled=scripts)
        shown = context.new_page()
        if held_up:  # site.js never comes
            shown.route("**/site.js", lambda route: route.abort())
        shown.goto(page)
        if scripts:
            shown.wait_for_function("!document.documentElement.classList.contains('arriving')")
        rows = shown.locator("#board tbody tr")
        assert rows.count() == 50 and rows.last.is_visible()
        context.close()


def test_the_board_sorts_by_a_click_on_a_column(visit: Any) -> None:
    page = visit()
    assert names(page) == ["identity_vae", "kmeans", "identity", "masked", "torn"]
    for column, order, best in (
        ("defense", "ascending", "kmeans"),  # its title starts with A
        ("defense", "descending", "torn"),
        ("robust accuracy at 0.1", "descending", "identity_vae"),
        ("robust accuracy at 0.1", "ascending", "torn"),  # a number that is not known is below all others
    ):
        page.locator(f"#board thead th[data-name='{column}']").click()
        page.wait_for_selector(f"#board thead th[data-name='{column}'][aria-sort={order}]")
        assert names(page)[0] == best


def test_the_board_sorts_by_keyboard(visit: Any) -> None:
    page = visit()
    header = page.locator("#board thead th[data-name='clean accuracy']")
    page.locator(".dt-search input").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if header.evaluate("header => header.contains(document.activeElement)"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#board thead th[data-name='clean accuracy'][aria-sort=descending]")


def test_the_search_box_filters_rows(visit: Any) -> None:
    page = visit()
    page.locator(".dt-search input").fill("identity_vae")
    assert names(page) == ["identity_vae"]
    page.locator(".dt-search input").fill("no such defense")
    assert page.locator("#board tbody").inner_text() == "No row matches."


def test_columns_can_be_hidden(visit: Any) -> None:
    page = visit()
    page.get_by_role("button", name="Columns").click()
    page.get_by_text("clean accuracy", exact=True).click()
    assert not page.locator("#board thead th[data-name='clean accuracy']").is_visible()


def test_the_csv_button_gives_what_is_shown(visit: Any, tmp_path: Path) -> None:
    page = visit()
    page.locator(".dt-search input").fill("identity_vae")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    download.value.save_as(tmp_path / "board.csv")
    with (tmp_path / "board.csv").open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["defense"] == "identity_vae"
    assert 0 < float(row["robust accuracy at 0.1"]) < float(row["clean accuracy"]) < 1
    assert None not in row and "accuracy over radius" not in row


def test_without_javascript_the_board_is_complete(visit: Any) -> None:
    page = visit(enhanced=False)
    assert names(page) == ["identity_vae", "kmeans", "identity", "masked", "torn"]
    assert page.locator(".dt-search").count() == 0
    assert page.get_by_role("link", name="All numbers as CSV").is_visible()
    page.get_by_role("link", name="Identity vae").first.click()
    assert page.locator("h1").inner_text() == "Identity vae"


def test_the_keyboard_is_seen_and_skips_to_the_content(visit: Any) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Tab")
    style = "getComputedStyle(document.activeElement)"
    assert page.evaluate(f"{style}.outlineStyle") == "solid"
    assert float(page.evaluate(f"{style}.outlineWidth").removesuffix("px")) >= 2
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_narrow_window_starts_with_fewer_columns_and_can_show_all(visit: Any) -> None:
    heading = "#board thead th[data-name='robust accuracy at {}']"
    page = visit(width=390)
    assert page.locator(heading.format("0.3")).is_visible()
    assert not page.locator(heading.format("0.2")).is_visible()
    page.get_by_role("button", name="Columns").click()
    page.get_by_text("robust accuracy at 0.2", exact=True).click()
    assert page.locator(heading.format("0.2")).is_visible()
    assert visit(width=1400).locator("#board thead th[data-name='units per purification']").is_visible()
    assert visit(width=390, enhanced=False).locator(heading.format("0.2")).count() == 1


def test_a_reason_opens_without_javascript(visit: Any) -> None:
    page = visit(enhanced=False)
    page.get_by_role("button", name="jitter").click()
    assert page.get_by_text("A small shift costs too much.").is_visible()
    assert not page.locator(".filters").is_visible()


def test_the_view_lives_in_the_address(visit: Any) -> None:
    page = visit()
    page.get_by_label("Verdict").select_option("no warning")
    page.locator("#board thead th[data-name='clean accuracy']").click()
    page.locator(".dt-search input").fill("identity")
    page.get_by_role("button", name="Columns").click()
    page.get_by_text("gain over no defense", exact=True).click()
    page.wait_for_function("location.search.includes('hide')")
    assert names(page) == ["identity", "identity_vae"]
    again = visit(page.url.rsplit("/", 1)[1])
    assert again.url == page.url and names(again) == names(page)
    assert again.locator("#board th[data-name='clean accuracy']").get_attribute("aria-sort") == "descending"
    assert not again.locator("#board th[data-name='gain over no defense']").is_visible()
    assert again.get_by_label("Verdict").input_value() == "no warning"
    assert again.locator("[data-rows]").inner_text() == "2 of 5 rows"
    again.get_by_role("button", name="Clear").click()
    again.wait_for_function("document.querySelectorAll('#board tbody tr').length === 5")
    assert "doubt" not in again.url and "search" not in again.url


def test_an_address_with_nonsense_shows_the_plain_board(visit: Any) -> None:
    page = visit("index.html?sort=nothing:up&kind=%3Cscript%3E&hide=defense,x&doubt=never")
    assert names(page) == ["identity_vae", "kmeans", "identity", "masked", "torn"]


def test_a_warning_is_seen_on_the_board_and_told_on_the_page(visit: Any) -> None:
    page = visit()
    row = page.locator("#board tbody tr", has=page.locator("code", has_text="masked"))
    assert "upper bound, unverified" in row.inner_text() and "jitter" in row.inner_text()
    why = row.get_by_text("A small shift costs too much.")
    assert not why.is_visible()
    row.get_by_role("button", name="jitter").hover()
    assert why.is_visible()
    page.mouse.move(0, 0)
    why.wait_for(state="hidden")
    row.get_by_role("button", name="jitter").focus()
    assert why.is_visible()
    page.keyboard.press("Escape")
    assert not why.is_visible()
    row.get_by_role("link", name="Masked").click()
    assert page.locator(".verdicts .is-warning").inner_text().count("A small shift costs too much.") == 1


def test_a_break_is_on_the_board_with_whose_it_is_behind_it(visit: Any) -> None:
    page = visit()
    page.get_by_role("button", name="lost to breaks").click()
    box = page.locator(".why-box:popover-open")
    assert "AdaAda" in box.inner_text() and box.bounding_box()["width"] <= 450
    page = visit("defense/digits-v1-quick/identity_vae.html")
    assert page.get_by_role("heading", name="Breaks").is_visible()
    assert page.get_by_role("heading", name="Claimed and measured").is_visible()
    assert page.locator("td.said").first.bounding_box()["width"] <= 450, "a long name wraps"
