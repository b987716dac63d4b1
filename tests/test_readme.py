"""What the README says is what the project does: its table comes from the committed records, its example keeps the
contract, the files that it names exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from bench import catalog, checks, protocol, statistics
from bench.record import Cell, Store

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text()
NAMES = ("identity", "kmeans", "identity_vae")


def row(cells: list[Cell]) -> str:
    """The README's line about one defense, from its records."""
    by_name = {cell.record.cell: float(cell.outcomes.correct.mean()) for cell in cells}
    chosen = protocol.get("mnist-v1-draft")
    values = [by_name["A.clean.none.seed0"], by_name["A.gray_box.fgsm.linf-0.3.seed0"]]
    values += [by_name[f"A.gray_box.pgd.linf-{eps}.seed0"] for eps in (0.1, 0.2, 0.3)]
    white = [cell for cell in cells if cell.record.track == "white_box" or cell.record.attack == "none"]
    values += list(statistics.robustness(white, "linf", (0.1, 0.2, 0.3))[1:].mean(axis=1))
    radius = statistics.robust_radius(statistics.robustness(cells, "linf", chosen.linf_radii), chosen.linf_radii)
    title = cells[0].record.card.title
    return f"| {title} | " + " | ".join(f"{100 * value:.1f} %" for value in values) + f" | {radius.mean():.3f} |"


@pytest.mark.parametrize("name", NAMES)
def test_the_table_comes_from_the_committed_records(name):
    store = Store(CHECKOUT / "submissions" / name / "records")
    cells = list(store.cells("mnist-v1-draft", name))
    assert not store.problems and len(cells) == len(protocol.get("mnist-v1-draft").attacks)
    assert {cell.record.protocol_hash for cell in cells} == {protocol.get("mnist-v1-draft").hash}
    assert row(cells) in README


def test_the_figures_that_were_promised_of_the_undefended_classifier():
    cells = {c.record.cell: c for c in Store(CHECKOUT / "submissions/identity/records").cells("mnist-v1-draft")}
    accuracy = {name: float(cell.outcomes.correct.mean()) for name, cell in cells.items()}
    assert accuracy["A.clean.none.seed0"] >= 0.985
    assert accuracy["A.gray_box.fgsm.linf-0.3.seed0"] < 0.25
    assert accuracy["A.gray_box.pgd.linf-0.3.seed0"] < 0.01


def test_the_example_of_a_defense_keeps_the_contract_word_for_word(tmp_path, monkeypatch):
    code = re.search(r"```python\n(import torch.*?)```", README, re.DOTALL).group(1)
    (tmp_path / "readme_blur.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    blur = importlib.import_module("readme_blur").Blur
    assert [finding.problem for finding in checks.run(blur) if finding.problem] == []


def test_every_name_and_link_in_the_readme_exists():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (CHECKOUT / link).exists(), link
    for path in re.findall(r"`((?:bench|defenses|leaderboard|submissions|tests)/[\w/.]*)`", README):
        assert (CHECKOUT / path).exists(), path
    for protocol_id in re.findall(r"--protocol ([\w-]+)", README):
        protocol.get(protocol_id)
    assert catalog.DATASETS  # names used in the README's data section
