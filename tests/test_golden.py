"""The tables of the site as text, held against files in tests/golden: a change of what a reader sees shows as a diff.

`PURIFYBENCH_RENEW=1 pytest -n0 tests/test_golden.py` writes the files anew; look at the diff before it is committed.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

import fake_timing
import pytest
from sites import DEEP, deep_cells, pages, text_of

from bench import protocols, timing_record, verdicts
from bench.evidence import Verdict
from bench.record import Store
from leaderboard.build import build

GOLDEN = Path(__file__).parent / "golden"
TABLES = {
    "board": ("index.html", "board"),
    "compare": ("compare.html", "matrix"),
    "defense": ("defense/deep-v1/kmeans.html", ""),
    "attacks": ("attacks.html", ""),
    "timing": ("timing.html", ""),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three defenses counted by hand, one of them with a warning, and a run of the timing track."""
    folder = tmp_path_factory.mktemp("golden")
    warned = (Verdict("jitter", "warning", "A shift by a pixel costs more than it should.", {"loss": 0.25}, ()),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "PROTOCOLS", {DEEP.id: DEEP})
        patch.setattr(verdicts, "verdicts", lambda cells, *_: warned if cells[0].record.defense == "doubted" else ())
        store = Store(folder / "records")
        for name in ("identity", "kmeans", "doubted"):
            deep_cells(store, name)
        settings = next(store.cells()).record.settings
        timing_record.save(fake_timing.run(fake_timing.times("kmeans", settings=settings)), store.root)
        return pages(build([store], folder / "site").parent)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_it_said(name: str, site: dict[str, str]) -> None:
    page, style = TABLES[name]
    shown, kept = tables(site[page], style), GOLDEN / f"{name}.txt"
    if os.environ.get("PURIFYBENCH_RENEW"):
        kept.write_text(shown)
    before = kept.read_text()
    changes = difflib.unified_diff(before.splitlines(), shown.splitlines(), "golden", "now", lineterm="", n=1)
    assert shown == before, "\n".join(changes)


def tables(html: str, style: str) -> str:
    """The tables of a page of one class (all for ""), a line a row, cells apart by bars."""
    found = re.findall(r'<table class="([^"]*)"(.*?)</table>', html, flags=re.DOTALL)
    chosen = [table for styles, table in found if not style or style in styles.split()]
    assert chosen, f"no table of class {style!r}"
    return (
        "\n\n".join("\n".join(_row(row) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)) for table in chosen)
        + "\n"
    )


def _row(html: str) -> str:
    cells = re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", html, flags=re.DOTALL)
    return " | ".join(" ".join(text_of(cell).split()) for cell in cells)
