"""The printed numbers: every row fits the schema, and what can be recomputed from them is."""

from __future__ import annotations

import csv
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from leaderboard import reported
from leaderboard.reported import FILE, PAPERS, Reported

ROWS = reported.reported()
GOOD = {
    "source": "lq-vae", "table": "lq-vae/bpda", "dataset": "MNIST", "setting": "bpda", "classifier": "",
    "substitute": "", "attack": "BPDA", "epsilon": "", "defense": "LQ-VAE", "metric": "accuracy",
    "value_percent": "83.70",
}  # fmt: skip


def test_there_are_472_rows_of_four_papers_each_of_another_key():
    assert len(ROWS) == 472
    assert {row.source for row in ROWS} == set(PAPERS)
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert reported.names() == (*PAPERS, *dict.fromkeys(row.table for row in ROWS))


def test_printed_averages_are_the_means_of_their_parts_but_for_one_that_was_cut_off():
    averages = [row for row in ROWS if row.is_average]
    assert len(averages) == 30
    differ = []
    for row in averages:
        values = [part.value_percent for part in reported.parts(row)]
        assert len(values) in (3, 6, 9, 15)
        if (sum(values) / len(values)).quantize(Decimal("0.01")) != row.value_percent:
            differ.append((row.table, row.defense, row.value_percent, round(sum(values) / len(values), 4)))
    assert differ == [
        ("lq-vae/white-box/FMNIST", "madry-adversarial-training", Decimal("59.15"), Decimal("59.1556"))
    ]  # fmt: skip


def test_accuracy_error_and_rejection_of_gm_vae_add_up_to_100():
    groups: dict[tuple[str, str], dict[str, Decimal]] = {}
    for row in ROWS:
        if row.table == "gm-vae/table1":
            groups.setdefault((row.dataset, row.defense), {})[row.metric] = row.value_percent
    whole = [values for values in groups.values() if len(values) == 3]
    assert len(whole) == 5
    assert all(sum(values.values()) == 100 for values in whole)


def test_a_number_keeps_the_digits_that_were_printed():
    with FILE.open(newline="") as file:
        assert [row["value_percent"] for row in csv.DictReader(file)] == [str(row.value_percent) for row in ROWS]


@pytest.mark.parametrize(
    "change",
    [
        {"source": "ours"}, {"table": "mad-vae/table1"}, {"dataset": "mnist"}, {"setting": "gray-box"},
        {"setting": "clean"}, {"attack": "none"}, {"epsilon": "1.5"}, {"epsilon": "-1"}, {"metric": "acc"},
        {"value_percent": "100.1"}, {"value_percent": "-1"}, {"value_percent": "high"}, {"defense": ""}, {"extra": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_row_outside_the_schema_is_refused(change):
    assert Reported.model_validate(GOOD).epsilon is None
    with pytest.raises(ValidationError):
        Reported.model_validate(GOOD | change)


def test_a_bad_row_is_named_by_its_line_and_twins_are_refused(tmp_path: Path):
    def write(*rows: dict[str, str]) -> Path:
        path = tmp_path / "rows.csv"
        path.write_text("\n".join(",".join(cells) for cells in (GOOD, *(row.values() for row in rows))) + "\n")
        return path

    assert len(reported.read(write(GOOD))) == 1
    with pytest.raises(ValueError, match=r"rows.csv, line 3: .*\n?value_percent"):
        reported.read(write(GOOD, GOOD | {"value_percent": "101"}))
    with pytest.raises(ValueError, match="2 rows for"):
        reported.read(write(GOOD, GOOD | {"value_percent": "1"}))


def test_the_readme_beside_the_file_tells_of_every_column_and_source():
    text = (FILE.parent / "README.md").read_text()
    assert all(f"`{name}`" in text for name in (*Reported.model_fields, *PAPERS))
    assert all(paper.link in text for paper in PAPERS.values())


def test_the_numbers_and_the_comparison_are_free_of_torch():
    code = "import leaderboard.terminal, leaderboard.paper_tables, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
