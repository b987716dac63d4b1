"""Printed beside measured: every row has a counterpart or a reason, and the numbers are those counted by hand."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_records
import numpy as np
import pytest
from rich.console import Console

from bench import campaign, catalog, planning, plugins, protocols
from bench.protocol import AttackSpec
from bench.record import Cell, Store
from bench.statistics import wilson
from leaderboard import counterparts, reproduce, terminal
from leaderboard.counterparts import Counterpart, counterpart
from leaderboard.reported import Reported, reported, tables
from leaderboard.reproduce import Installed, Line

PLAIN = [row for row in reported() if not row.is_average]
TABLE1, TABLE2 = "mad-vae/table1-white-box", "mad-vae/table2-black-box"
EVERYTHING = Installed(
    frozenset(counterparts.DEFENSES.values()), frozenset(counterparts.ATTACKS.values()),
    frozenset({"A", "B", "C", "D", "E", "B_madvae", "D_madvae", "magnet_madvae", "cnet"}), nets=True,
)  # fmt: skip


def answers(name: str) -> list[Counterpart]:
    found = [counterpart(row) for row in reproduce.chosen(name) if not row.is_average]
    return [one for one in found if isinstance(one, Counterpart)]


def row_of(table: str, **facts: object) -> Reported:
    (found,) = (row for row in reported() if row.table == table and all(getattr(row, k) == v for k, v in facts.items()))
    return found


def cell(answer: Counterpart, right: Sequence[float], predicted: Sequence[int] | None = None, **changes: Any) -> Cell:
    """The cell that answers, on images of class 0, with these outcomes on the first ones."""
    view = protocols.get(answer.protocol).limited(len(right))
    arrays: dict[str, Any] = {"correct": np.array(right, np.float32), "label": np.zeros(len(right), np.int16)}
    if predicted is not None:
        arrays["predicted"] = np.array(predicted, np.int16)
    about = {"classifier": answer.classifier} | changes
    return fake_records.cell(view, about.pop("defense", answer.defense), about.pop("spec", answer.spec),
                             arrays=arrays, **about)  # fmt: skip


def bare(answer: Counterpart, right: Sequence[float], predicted: Sequence[int]) -> Cell:
    return cell(answer, right, predicted, defense="identity", spec=AttackSpec("none", "clean"))


PARTLY = ("lq-vae/bpda", "gm-vae/table1", "gm-vae/text")  # tables of which some rows have no protocol


# ---------------------------------------------------------------------------------------------- counterparts


@pytest.mark.parametrize("table", tables())
def test_every_number_has_a_counterpart_or_a_reason(table):
    assert (table in counterparts.TABLES) != (table in counterparts.NOT_REPEATED)
    for row in PLAIN:
        if row.table == table:
            found = counterpart(row)
            if isinstance(found, str):
                assert found and table in {*counterparts.NOT_REPEATED, *PARTLY}
            else:
                chosen = protocols.get(found.protocol)
                assert found.spec in chosen.attacks and found.classifier in chosen.classifiers
                assert found.caveats and all(text.endswith(".") for text in found.caveats)


def test_no_two_numbers_of_a_table_are_answered_alike():
    for table in counterparts.TABLES:
        found = [(one.protocol, one.defense, one.classifier, one.spec, one.metric) for one in answers(table)]
        assert len(set(found)) == len(found)


def test_counterparts_follow_the_quirks_of_each_paper():
    pair = counterpart(row_of("lq-vae/black-box-deepfool/FMNIST", classifier="A", substitute="B", defense="LQ-VAE"))
    assert isinstance(pair, Counterpart)
    assert (pair.classifier, pair.spec.slug, pair.defense) == ("A", "transfer.deepfool.from-substitute-B", "lq_vae")
    itself = counterpart(row_of(TABLE2, substitute="B", attack="FGSM", defense="none"))
    assert isinstance(itself, Counterpart)
    assert (itself.classifier, itself.spec.slug, itself.metric) == (
        "B_madvae", "gray_box.fgsm.linf-0.3", "agreement",
    )  # fmt: skip
    clean = counterpart(row_of(TABLE2, substitute="B", attack="none"))
    assert isinstance(clean, Counterpart) and clean.metric == "accuracy"
    vq = counterpart(row_of("vq-vae/fig11-ifgsm", epsilon=0.2, defense="VQVAE_0.5"))
    assert isinstance(vq, Counterpart)
    assert (vq.spec.slug, vq.metric, vq.classifier) == ("gray_box.i_fgsm.linf-0.2", "joint", "cnet")
    bpda = counterpart(row_of("lq-vae/bpda", dataset="FMNIST", defense="LQ-VAE"))
    assert isinstance(bpda, Counterpart)
    assert (bpda.protocol, bpda.spec.route, bpda.classifier) == ("papers-v1-lq-vae-fmnist", "bpda", "A")


# ---------------------------------------------------------------------------------------------- measured


def test_numbers_are_counted_by_the_papers_metric():
    row = row_of(TABLE1, attack="FGSM", defense="none")
    answer = counterpart(row)
    assert isinstance(answer, Counterpart)
    attacked = cell(answer, [1, 0, 0, 0], [0, 5, 7, 3])
    clean = bare(answer, [1, 1, 0, 1], [0, 0, 7, 0])  # image 2 is 7 before and after
    (line,) = reproduce.lines([row], [attacked, clean], limit=4)
    assert line.measured is not None
    assert (line.measured.value, line.measured.n) == (0.5, 4)
    assert (line.measured.low, line.measured.high) == wilson(2, 4)
    assert line.difference == pytest.approx(50 - 13.16)
    (without,) = reproduce.lines([row], [attacked], limit=4)
    assert without.measured is None and without.difference is None
    (unlimited,) = reproduce.lines([row], [attacked, clean])
    assert unlimited.measured is None, "four images are another protocol"


def test_a_number_over_several_attacks_needs_them_all():
    pooled, every = (
        row_of("mad-vae/table3-overpowered", defense="MAD-VAE combined", metric=metric)
        for metric in ("accuracy", "original_accuracy")
    )
    answer = counterpart(pooled)
    assert isinstance(answer, Counterpart) and len(answer.also) == 3
    right = ([1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1])
    cells = [cell(answer, some, spec=spec) for some, spec in zip(right, (answer.spec, *answer.also), strict=True)]
    found = reproduce.lines([pooled, every], cells, limit=4)
    assert [line.measured and (line.measured.value, line.measured.n) for line in found] == [(11 / 16, 4), (0.25, 4)]
    for missing in range(4):
        (line,) = reproduce.lines([every], [one for i, one in enumerate(cells) if i != missing], limit=4)
        assert line.measured is None


def test_an_average_needs_all_its_parts_and_counts_the_images_that_they_share():
    row = row_of("lq-vae/white-box/MNIST", attack="none", classifier="average")
    found = answers("lq-vae/white-box/MNIST")
    parts = [one for one in found if one.spec.attack == "none"]
    cells = [cell(one, [1, 1, 0, k]) for k, one in enumerate(parts[:2])]
    assert reproduce.lines([row], cells, limit=4)[0].measured is None
    (line,) = reproduce.lines([row], [*cells, cell(parts[2], [1, 0, 0, 0])], limit=4)
    assert line.measured is not None and line.measured.value == pytest.approx((0.5 + 0.75 + 0.25) / 3)
    assert line.counterpart is None
    assert line.caveats[-1] == "The mean of 3 numbers, on the 4 images that all have."


def test_seeds_are_averaged_by_image_and_records_tell_their_own_caveats():
    row = row_of("lq-vae/white-box/MNIST", attack="FGSM", classifier="A", defense="madry-adversarial-training")
    answer = counterpart(row)
    assert isinstance(answer, Counterpart)
    card = fake_records.card("pgd_training", title="PGD training", trained_on="PGD images of itself")
    cells = [cell(answer, right, seed=seed, card=card, recipe="fast") for seed, right in enumerate(([1, 0], [1, 1]))]
    (line,) = reproduce.lines([row], cells, limit=2)
    assert line.measured is not None
    assert (line.measured.value, line.measured.by_seed) == (0.75, (0.5, 1.0))
    assert "PGD training was trained by its fast recipe." in line.caveats
    failed = cell(answer, [0, 0], card=card, recipe="paper", status="failed", error="ValueError: no")
    assert reproduce.lines([row], [failed], limit=2)[0].caveats[-1] == (
        "PGD training failed on some images, which count as wrong: ValueError: no."
    )


def test_records_of_another_version_of_the_protocol_do_not_count():
    row = row_of("lq-vae/white-box/MNIST", attack="FGSM", classifier="A", defense="none")
    answer = counterpart(row)
    assert isinstance(answer, Counterpart)
    assert reproduce.lines([row], [cell(answer, [1], protocol_hash="old")], limit=1)[0].measured is None


# ---------------------------------------------------------------------------------------------- what can be measured


def test_what_is_missing_here_is_said_and_nothing_is_dropped():
    nothing = Installed(frozenset({"identity"}), classifiers=frozenset({"A"}), attacks=frozenset({"none", "fgsm"}))
    found = reproduce.lines(reported(), [], here=nothing)
    assert len(found) == 472
    said = {line.row: line.obstacle for line in found}
    table = "lq-vae/white-box/MNIST"
    for obstacle, facts in (
        ("", {"classifier": "A", "attack": "FGSM", "defense": "none"}),
        ("no defense lq_vae is installed", {"classifier": "A", "attack": "FGSM", "defense": "LQ-VAE"}),
        ("no classifier B is installed", {"classifier": "B", "attack": "FGSM", "defense": "none"}),
        ("no attack deepfool is installed", {"classifier": "A", "attack": "DeepFool", "defense": "none"}),
        ("no classifier B is installed", {"classifier": "average", "attack": "none"}),
    ):
        assert said[row_of(table, **facts)] == obstacle
    transfer = row_of("lq-vae/black-box-deepfool/FMNIST", classifier="A", substitute="B", defense="none")
    (line,) = reproduce.lines([transfer], [], here=Installed(EVERYTHING.defenses, EVERYTHING.attacks))
    assert line.obstacle == "no source substitute-B is installed"
    assert reproduce.obstacles(found)["there is no protocol on CelebA"] == 84 + 39 + 2


def test_with_everything_installed_only_tables_without_a_protocol_are_left():
    found = reproduce.lines(reported(), [], here=EVERYTHING)
    left = {line.row.table for line in found if line.obstacle}
    assert left == {*counterparts.NOT_REPEATED, *PARTLY}


def test_installed_looks_at_this_installation():
    here = reproduce.installed()
    assert here.defenses == set(plugins.installed()) and here.attacks == set(catalog.ATTACKS)
    assert set(counterparts.DEFENSES.values()) - here.defenses == {"fgsm_training"}, (
        "every other one is known by its name"
    )


def test_what_is_asked_for_is_each_cell_once_and_the_bare_classifier_where_the_metric_needs_it():
    found = reproduce.lines(reproduce.chosen(TABLE2), [], here=EVERYTHING)
    clean, attacked = reproduce.asks(found, EVERYTHING, EVERYTHING.defenses)
    nets = ("A", "B_madvae", "C", "D_madvae", "E")
    assert (clean.track, clean.defenses, clean.classifiers, clean.attacks) == ("clean", ("identity",), nets, ("none",))
    assert (attacked.track, attacked.classifiers, attacked.attacks) == ("gray_box", nets, ("fgsm",))
    assert attacked.defenses[:2] == ("identity", "mad_vae_vanilla") and len(attacked.defenses) == 5
    nobody = Installed(frozenset())
    assert reproduce.asks(found, nobody, EVERYTHING.defenses) == ()
    clean, attacked = reproduce.asks(found, EVERYTHING, {"mad_vae_vanilla"})
    assert (clean.defenses, attacked.defenses) == (("identity",), ("mad_vae_vanilla",)), (
        "agreement needs the bare one, too"
    )


# ---------------------------------------------------------------------------------------------- on paper


@pytest.fixture
def found() -> tuple[Line, ...]:
    """Table 1 of MAD-VAE with one number measured, two of four images agreeing."""
    answer = answers(TABLE1)[1]
    cells = [cell(answer, [1, 0, 0, 0], [0, 5, 7, 3]), bare(answer, [1, 1, 0, 1], [0, 0, 7, 0])]
    here = Installed(frozenset({"identity"}), EVERYTHING.attacks, EVERYTHING.classifiers)
    return reproduce.lines(reproduce.chosen(TABLE1), cells, 4, here)


def shown(things: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    for thing in things:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_tells_both_numbers_their_difference_and_why(found):
    text = shown(terminal.comparison(found))
    low, high = wilson(2, 4)
    line = next(line for line in text.splitlines() if "13.16" in line)
    parts = [part.strip() for part in line.split("│")[1:-1]]
    assert parts == [
        "MNIST", "FGSM", "", "MagNet-like", "none", "agreement", "13.16",
        f"50.0 [{100 * low:.1f}, {100 * high:.1f}]", "+36.8", "4", "",
    ]  # fmt: skip
    assert "all  Under attack the paper counts agreement" in text
    assert "Not measured: no defense mad_vae is installed." in text
    assert all(str(row.value_percent) in text for row in reproduce.chosen(TABLE1))


def test_the_overview_counts_what_can_be_measured():
    text = shown(terminal.overview(reproduce.lines(reported(), [], here=EVERYTHING)))
    row = next(line for line in text.splitlines() if TABLE2 in line)
    assert [part.strip() for part in row.split("│")[1:-1]] == [TABLE2, "30", "30", "0", ""]
    assert "there is no protocol on CelebA (84)" in text


def test_the_csv_holds_every_line_with_its_reason(found):
    rows = list(csv.DictReader(io.StringIO(reproduce.as_csv(found))))
    assert len(rows) == len(found) == 31
    clean, measured = (row for row in rows if row["measured_percent"])
    assert (clean["attack"], clean["measured_percent"], clean["counted"]) == ("none", "75.0000", "accuracy")
    assert (measured["value_percent"], measured["measured_percent"], measured["n"]) == ("13.16", "50.0000", "4")
    assert (measured["cell"], measured["counted"]) == ("gray_box.fgsm.linf-0.3", "agreement")
    assert all(row["obstacle"] for row in rows if row["defense"] not in ("none", "MAD-VAE vanilla (Defense-VAE)"))


# ---------------------------------------------------------------------------------------------- the command


def test_without_a_name_the_command_lists_papers_and_runs_nothing(command, monkeypatch):
    monkeypatch.setattr(planning, "plan", None)
    status, out, err = command("reproduce")
    assert (status, err) == (0, "")
    assert all(table in out for table in tables())


def test_a_dry_run_says_what_would_run_and_compares_what_is_there(command, monkeypatch, tmp_path):
    monkeypatch.setattr(campaign, "run", None)
    answer = answers("lq-vae/white-box/MNIST")[0]
    Store(tmp_path / "results").save(cell(answer, [1, 1, 1, 0]))
    status, out, err = command(
        "reproduce", "lq-vae/white-box/MNIST", "--dry-run", "--limit", "4", "--csv", str(tmp_path / "out.csv")
    )
    assert (status, err) == (0, "")
    assert "papers-v1-lq-vae-mnist+limit4: 4 images of mnist" in out and "75.0 [" in out
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))) == 54


def test_who_only_looks_sees_what_is_committed_too_and_their_own_first(command, monkeypatch, tmp_path):
    monkeypatch.setattr(campaign, "run", None)
    table = "lq-vae/white-box/MNIST"
    first, second = answers(table)[:2]
    committed = Store(tmp_path / "submissions" / first.defense / "records")
    for answer in (first, second):
        committed.save(cell(answer, [1, 0, 0, 0]))
    Store(tmp_path / "results").save(cell(first, [1, 1, 1, 0]))
    _, out, _ = command("reproduce", table, "--dry-run", "--limit", "4")
    assert out.count("75.0 [") == 1 and out.count("25.0 [") == 1
    _, out, _ = command("reproduce", table, "--dry-run", "--limit", "4", "--records", "results")
    assert out.count("75.0 [") == 1 and "25.0 [" not in out


def test_the_command_runs_what_exists_then_compares(command, monkeypatch, tmp_path):
    ran = []

    def measured(plan: planning.Plan, store: Store, **_: object) -> list[Cell]:
        ran.append((plan.protocol.id, plan.tracks, plan.attacks, plan.classifiers, [name for name, _ in plan.defenses]))
        specs = plan.protocol.among(plan.tracks, plan.attacks)
        names = [(name, net, spec) for name, _ in plan.defenses for net in plan.classifiers for spec in specs]
        cells = [fake_records.cell(plan.protocol, name, spec, classifier=net) for name, net, spec in names]
        for one in cells:
            store.save(one)
        return cells

    monkeypatch.setattr(campaign, "run", measured)
    here = Installed(frozenset({"identity", "pgd_training"}), frozenset({"none", "fgsm"}))
    monkeypatch.setattr(reproduce, "installed", lambda: here)
    status, out, _ = command("reproduce", "lq-vae/white-box/MNIST", "--limit", "10", "--records", "mine")
    assert status == 0
    name = "papers-v1-lq-vae-mnist+limit10"
    assert ran == [
        (name, ("clean",), ("none",), ("A", "B", "C"), ["identity"]),
        (name, ("gray_box",), ("fgsm",), ("A", "B", "C"), ["identity", "pgd_training"]),
    ]
    assert out.count("[") >= 9 and "Not measured: no defense lq_vae is installed." in out
    assert Path("mine", name).is_dir()
