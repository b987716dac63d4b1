"""What the README says is what the project does: its table comes from the committed records, its example keeps the
contract, the files that it names exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from bench import catalog, checks, protocols, selective, statistics, timing_record
from bench.protocol import Protocol
from bench.record import Cell, Store
from leaderboard import reported, reproduce

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text()
QUICK, FULL = (protocols.get(name) for name in ("mnist-v1-quick", "mnist-v1"))  # a table each
STORES = {
    (protocol.id, path.parent.parent.name): Store(path.parent)
    for protocol in (QUICK, FULL)
    for path in CHECKOUT.glob(f"submissions/*/records/{protocol.id}/")
}


def row(cells: list[Cell], protocol: Protocol) -> str:
    """The README's line about one defense, from its records."""
    by_slug = {cell.record.spec.slug: cell for cell in cells}
    record = cells[0].record
    values = [by_slug["clean.none"].outcomes.accuracy]
    values += [by_slug[f"gray_box.pgd.linf-{eps}"].outcomes.accuracy for eps in (0.1, 0.2, 0.3)]
    curve = statistics.robustness(cells, "linf", protocol.linf_radii)
    worst = dict(zip(protocol.linf_radii, curve[1:].mean(axis=1), strict=True))
    values += [worst[eps] for eps in (0.1, 0.2, 0.3)]
    radius = statistics.robust_radius(curve, protocol.linf_radii)
    low, high = statistics.bootstrap(radius)
    title = f"{record.card.title} (n = {record.n_examples})" if record.card.stochastic else record.card.title
    percents = " | ".join(f"{100 * value:.1f} %" for value in values)
    return f"| {title} | {percents} | {radius.mean():.3f} [{low:.3f}, {high:.3f}] |"


def test_the_times_are_those_of_the_record():
    (timing,) = timing_record.found([CHECKOUT / "submissions" / "machines"])
    vae, search = timing.entrant("identity_vae"), timing.entrant(timing_record.REFERENCE)
    assert timing.machine.device == "cpu" and timing.machine.cores == 2
    told = (
        f"Identity VAE {1000 * vae.at(1).median:.1f} ms, Defense-GAN's published search {search.at(1).median:.1f} s, "
    )
    assert f"{told}{timing.ratio(search, vae.name, 1):.0f} times as long" in README


@pytest.mark.parametrize("eps", [0.2, 0.3])
def test_the_reproduced_numbers_are_those_of_the_records(eps):
    rows = [row for row in reported.reported() if row.table == "vq-vae/fig10-fgsm" and row.epsilon == eps]
    chosen = {row.defense: row for row in rows if row.defense in ("none", "VQVAE_0")}
    cells = [cell for name in ("identity", "vq_vae")
             for cell in reproduce.stored(Store(CHECKOUT / "submissions" / name / "records"))]  # fmt: skip
    bare, defended = reproduce.lines([chosen["none"], chosen["VQVAE_0"]], cells)
    assert bare.measured is not None and defended.measured is not None and bare.measured.n == 1000
    told = f"{bare.row.value_percent} % without a defense and {defended.row.value_percent} % with one, and the records "
    told += f"say {100 * bare.measured.value:.1f} % and {100 * defended.measured.value:.1f} %"
    assert told in README.replace("\n", " ")


GRAY = ("fgsm.linf-0.3", "deepfool", "cw_l2")
MOVED = (("fgsm", ".linf-0.3"), ("pgd", ".linf-0.3"), ("deepfool", ""), ("cw_l2", ""))


@pytest.mark.parametrize(
    "path", sorted(CHECKOUT.glob("submissions/*/records/papers-v1-lq-vae-mnist")), ids=lambda p: p.parts[-3]
)
def test_the_table_of_the_repeated_slides_comes_from_the_committed_records(path):
    cells = {c.record.spec.slug: c for c in Store(path.parent).cells(path.name) if c.record.classifier == "A"}
    slugs = ["clean.none", *(f"gray_box.{name}" for name in GRAY)]
    slugs += [f"transfer.{attack}.from-substitute-B{radius}" for attack, radius in MOVED]
    values = [cells[slug].outcomes.accuracy for slug in (*slugs, "white_box.unclipped_step.bpda")]
    title = cells["clean.none"].record.card.title
    assert f"| {title} | {' | '.join(f'{100 * value:.1f} %' for value in values)} |" in README


def test_what_the_slides_print_is_what_the_file_of_printed_numbers_holds():
    printed = {
        (row.defense, row.attack): row.value_percent
        for row in reported.reported()
        if row.table in ("lq-vae/white-box/MNIST", "lq-vae/bpda")
        and row.classifier in ("A", "")
        and row.dataset == "MNIST"
    }
    for defense in ("none", "LQ-VAE"):
        attacks = ("none", "FGSM", "DeepFool", "CW") if defense == "none" else ("FGSM", "DeepFool", "CW", "BPDA")
        for attack in attacks:
            assert str(printed[defense, attack]) in README, (defense, attack)


def test_there_are_records():
    assert set(STORES) >= {(one.id, name) for one in (QUICK, FULL) for name in ("identity", "kmeans", "identity_vae")}


@pytest.mark.parametrize(("protocol_id", "name"), sorted(STORES))
def test_the_tables_come_from_the_committed_records(protocol_id, name):
    protocol, store = protocols.get(protocol_id), STORES[protocol_id, name]
    cells = list(store.cells(protocol_id, name))
    first = cells[0].record
    view = protocol.effort(first.budget, stochastic=first.card.stochastic)
    assert not store.problems
    assert {cell.record.spec.slug for cell in cells} == {spec.slug for spec in view.attacks}
    assert {cell.record.protocol_hash for cell in cells} == {protocol.hash}
    assert row(cells, protocol) in README


def test_the_figures_that_were_promised_of_the_undefended_classifier():
    accuracy = {c.record.spec.slug: c.outcomes.accuracy for c in STORES[QUICK.id, "identity"].cells(QUICK.id)}
    assert accuracy["clean.none"] >= 0.985
    assert accuracy["gray_box.fgsm.linf-0.3"] < 0.25
    assert accuracy["gray_box.pgd.linf-0.3"] < 0.01


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
        protocols.get(protocol_id)
    assert catalog.DATASETS  # names used in the README's data section


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("magnet", "leaves {} right or refused under attackers who do not know its detectors, and {} at 0.3"),
        ("gm_vae", "GM-VAE leaves {} and {}."),
    ],
)
def test_what_is_said_of_a_defense_that_may_refuse_is_what_its_records_say(name, said):
    asked = protocols.get("mnist-selective-v1-quick-draft")
    cells = list(Store(CHECKOUT / "submissions" / name / "records").cells(asked.id, name))
    applicable = asked.effort("cheap", stochastic=False, doors=cells[0].record.card.doors).attacks
    assert {cell.record.spec.slug for cell in cells} == {spec.slug for spec in applicable}
    ignorant = [cell for cell in cells if cell.record.track != "rejection"]
    blind, knowing = (
        statistics.robustness(selective.as_held(some, "1%"), "linf", [0.3])[1].mean() for some in (ignorant, cells)
    )
    text = " ".join(README.split())
    assert said.format(*(f"{100 * share:.1f} %" for share in (blind, knowing))) in text
