"""The command line: light until it has to compute, one line for a mistake, and the whole path on real digits."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bench import campaign, catalog, cli, plugins, protocols
from bench.commands import look
from bench.protocol import TRACKS
from bench.record import Store

PROTOCOL = "digits-v1-quick"
HEAVY = ("torch", "pandas", "matplotlib", "itables", "scipy", "sklearn")


def commands(group=None, path=()):
    """Every command of the program, as the words that one types."""
    group = group or typer.main.get_command(cli.app)
    for name, item in group.commands.items():
        yield (*path, name)
        if hasattr(item, "commands"):
            yield from commands(item, (*path, name))


COMMANDS = sorted(commands())
IN_A_FRESH_PYTHON = """
import contextlib, io, os, sys
{before}
from bench import cli
shown = io.StringIO()
with contextlib.redirect_stdout(shown):
    for words in {commands!r}:
        sys.argv = ["purifybench", *words]
        try:
            cli.main()
        except SystemExit as ended:
            assert not ended.code, (words, ended.code)
print([name for name in {heavy!r} if name in sys.modules])
print(shown.getvalue())
"""


def fresh_python(commands, before=""):
    """Runs commands in one new interpreter: the heavy modules that were imported, and what was printed."""
    code = IN_A_FRESH_PYTHON.format(commands=commands, heavy=HEAVY, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    imported, _, shown = done.stdout.partition("\n")
    return imported, shown


# ---------------------------------------------------------------------------------------------- help and completion


def test_the_walk_over_commands_finds_them():
    assert {("run",), ("list",), ("data", "fetch"), ("site", "build"), ("serve",)} <= set(COMMANDS)


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_every_command_has_help(words, command):
    status, out, err = command(*words, "--help")
    assert status == 0
    assert err == ""
    assert "Usage:" in out
    assert " ".join(words) in out
    described = [line for line in out.splitlines() if line.strip() and "Usage" not in line and "─" not in line]
    assert described, "a usage line alone helps nobody"
    assert "-h" in out


def test_help_names_and_protocols_need_no_heavy_import():
    light = [
        ["--help"],
        *([*words, "-h"] for words in COMMANDS),
        ["--version"],
        ["list", "protocols"],
        ["show", PROTOCOL],
    ]
    light += [["list", kind] for kind in look.LISTS] + [["show", "pgd"]]
    imported, shown = fresh_python(light)
    assert imported == "[]"
    assert shown.count("Usage:") == 1 + len(COMMANDS)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("purifybench run ide", ["identity", "identity_vae"]),
        ("purifybench run identity --protocol mnist-v1-q", ["mnist-v1-quick"]),
        ("purifybench run identity --attacks fg", ["fgsm"]),
        ("purifybench run identity --tracks g", ["gray_box"]),
        ("purifybench show digits-v1-q", ["digits-v1-quick"]),
        ("purifybench data fetch fm", ["fmnist"]),
        ("purifybench list proto", ["protocols"]),
        ("purifybench run identity --protocol papers-v1-mad-vae-m", ["papers-v1-mad-vae-mnist"]),
        ("purifybench reproduce vq-vae/fig1", ["vq-vae/fig10-fgsm", "vq-vae/fig11-ifgsm", "vq-vae/fig12-mifgsm"]),
        (
            "purifybench reproduce mad-vae/t",
            [
                "mad-vae/table1-white-box",
                "mad-vae/table2-black-box",
                "mad-vae/table3-overpowered",
            ],
        ),
    ],
)
def test_completion_offers_names_and_needs_no_heavy_import(typed, offered):
    words = len(typed.split())
    before = "os.environ.update(_PURIFYBENCH_COMPLETE='complete_bash', " + (
        f"COMP_WORDS={typed!r}, COMP_CWORD='{words - 1}')"
    )
    imported, shown = fresh_python([[]], before)
    assert imported == "[]"
    assert shown.split() == offered


def test_the_console_script_and_the_module_are_the_same_program():
    script = shutil.which("purifybench", path=str(Path(sys.executable).parent))
    assert script, "the package is not installed: pip install -e ."
    shown = [
        subprocess.run([*start, "--version"], capture_output=True, text=True, check=True, timeout=120).stdout
        for start in ([script], [sys.executable, "-m", "bench.cli"])
    ]
    assert shown[0] == shown[1]
    assert shown[0].startswith("purifybench 0.")


# ---------------------------------------------------------------------------------------------- lists and shows


@pytest.mark.parametrize("kind", look.LISTS)
def test_list_has_a_line_for_everything(kind, command):
    known = {
        "defenses": plugins.installed(), "attacks": catalog.ATTACKS, "classifiers": catalog.CLASSIFIERS,
        "datasets": catalog.DATASETS, "protocols": protocols.known(),
    }[kind]  # fmt: skip
    status, out, _ = command("list", kind)
    assert status == 0
    lines = [line for line in out.splitlines() if not line.endswith(":")]  # protocols stand under headings
    assert sorted(line.split()[0] for line in lines) == sorted(known)
    assert all(len(line.split()) > 1 for line in lines)


def test_protocols_are_listed_the_ranked_ones_first_and_the_papers_last(command):
    _, out, _ = command("list", "protocols")
    lines = out.splitlines()
    assert lines[0] == "Ranked:" and lines[1].split()[0] == "mnist-v1"
    heading = next(k for k, line in enumerate(lines) if line.startswith("The papers' own evaluations"))
    assert all(line.split()[0].startswith("papers-v1-") for line in lines[heading + 1 :])


@pytest.mark.parametrize("chosen", protocols.known().values(), ids=lambda p: p.id)
def test_show_prints_every_cell_of_a_protocol_and_what_its_attackers_know(chosen, command):
    _, out, _ = command("show", chosen.id)
    assert chosen.hash[:16] in out
    assert all(spec.slug in out for spec in chosen.attacks)
    assert all(TRACKS[track] in out for track in chosen.tracks)


def test_show_prints_an_attack_with_its_paper_and_cost(command):
    _, out, _ = command("show", "pgd")
    assert "arxiv.org/abs/1706.06083" in out
    assert "41 forward, 40 backward rows" in out


def test_show_prints_a_defense_with_its_paper_and_settings(command):
    status, out, _ = command("show", "kmeans")
    assert status == 0
    assert "k-means (kmeans), 2023" in out
    assert "k=20, iterations=20" in out
    assert "Nothing measured in results; purifybench run kmeans" in out


# ---------------------------------------------------------------------------------------------- mistakes

MISTAKES = [
    ("run identty", "did you mean .*identity"),
    ("run identity -p digits-v1-quik", "did you mean digits-v1-quick"),
    ("run identity --tracks grey_box", "did you mean gray_box"),
    ("run identity --attacks fgms", "did you mean fgsm"),
    ("run identity --classifier Z", "there are: A, B, B_madvae, C"),
    ("run identity --recipe papr", "did you mean paper"),
    ("run identity --device tpu", "--device must be auto, cpu or cuda, got 'tpu'"),
    ("run identity -p mnist-v1-quick", "run `purifybench data fetch mnist`"),
    ("list defnses", "did you mean defenses"),
    ("show kmean", "did you mean kmeans"),
    ("show mnist-v1-drft", "did you mean .*mnist-v1"),
    ("compare identity kmeans", "no records of identity under .* purifybench run identity -p digits-v1-quick"),
    ("check identiti", "did you mean .*identity"),
    ("train identty", "did you mean .*identity"),
    ("train identity --dataset minst", "did you mean mnist"),
    ("data fetch minst", "did you mean mnist"),
    ("data fetch digits", "nothing to fetch"),
    ("data fetch mnist --url not-an-address", "give a mirror of the four .gz with --url"),
    ("site build --records empty", "purifybench run"),
    ("reproduce lq-vae --defenses identty", "did you mean .*identity"),
    ("reproduce lqvae", "did you mean lq-vae"),
    ("reproduce mad-vae/table1", "did you mean .*mad-vae/table1-white-box"),
    ("reproduce lq-vae/white-box/MNIST --recipe papr", "did you mean paper"),
    ("serve nowhere", "nowhere holds no index.html; run `purifybench site build --out nowhere`"),
]


@pytest.mark.parametrize(("typed", "said"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_one_line_with_the_way_out_and_exit_status_2(typed, said, command):
    status, out, err = command(*typed.split())
    assert status == 2
    assert out == "" or typed.startswith("data fetch"), "a mistake is found before anything is printed"
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert re.search(said, line), line


def test_a_limit_below_one_is_refused(command):
    status, _, err = command("run", "identity", "--limit", "0")
    assert status == 2
    assert "Traceback" not in err


def test_a_mistake_shows_no_traceback_in_a_real_process():
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", "show", "identty"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_says_that_finished_work_is_kept(command, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "run", interrupted)
    status, _, err = command("run", "identity")
    assert status == 130
    assert "what was finished is kept" in err
    assert "Traceback" not in err


def test_serve_refuses_a_port_that_is_taken(command, tmp_path):
    (tmp_path / "index.html").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, err = command("serve", str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert status == 2
    assert "choose another with --port" in err


def test_serve_ends_quietly(command, tmp_path, monkeypatch):
    def interrupted(server):
        raise KeyboardInterrupt

    (tmp_path / "index.html").touch()
    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupted)
    status, out, err = command("serve", str(tmp_path), "--port", "0")
    assert (status, err) == (0, "") and "stop with Ctrl-C" in out


def test_data_list_tells_what_is_here(command):
    status, out, _ = command("data", "list")
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["digits"] == "1,000 + 297 + 500 images, sound"
    assert "purifybench data fetch mnist" in lines["mnist"]


@pytest.mark.slow
def test_a_training_ends_with_what_it_came_to_on_as_many_images_as_its_cost_allows(
    command, trained_home, digits, monkeypatch
):
    status, out, _ = command("train", "kmeans", "--dataset", "digits")
    assert status == 0 and f"clean accuracy on {len(digits.validation)} validation images of digits: " in out
    monkeypatch.setattr("bench.campaign.SHOWN", {"cheap": 7})
    _, out, _ = command("train", "kmeans", "--dataset", "digits")
    assert "clean accuracy on 7 validation images of digits: " in out and "; classifier A alone: " in out


def test_an_estimate_trains_and_writes_nothing(command, tmp_path):
    status, out, _ = command("run", "identity", "kmeans", "-p", PROTOCOL, "--limit", "32", "--estimate")
    assert status == 0
    text = " ".join(out.split())
    # on 32 images: FGSM and PGD-40 at three radii, Auto-PGD of 20 steps on another defense; R-FGSM, MI-FGSM, DeepFool
    # in at most 50 steps with 9 gradients each, CW in 3 searches of 30, 20 pixels
    forward, backward = 3 * (2 + 41) + 21, 3 * (1 + 40) + 20
    forward, backward = forward + 2 + 41 + (2 + 50) + (2 + 90) + 41, backward + 1 + 40 + 50 * 9 + (1 + 3 * 29)
    assert f"{forward * 32:,} forward, {backward * 32:,} backward rows, once" in text
    # one step, 4 cold runs of 20 steps, one of 40, 2 in a wide ball, 200 queries; a cascade of 3 attacks at 3 radii
    forward, backward = 2 + 4 * 21 + 41 + 2 * 21 + 201 + 9 * 21, 1 + 4 * 20 + 40 + 2 * 20 + 9 * 20
    assert text.count(f"at most {forward * 32:,} forward and {backward * 32:,} backward rows of attackers") == 2
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "home").exists()


# ---------------------------------------------------------------------------------------------- the whole path


RUN = ["run", "identity", "kmeans", "-p", PROTOCOL, "--limit", "32", "--device", "cpu"]
WITH_A_SHORT_TRAINING = """
import sys
from bench import classifiers, cli
classifiers.RECIPE = {recipe}
sys.argv = ["purifybench", *{words}]
cli.main()
"""


@pytest.fixture(scope="module")
def measured(_trained_home, tmp_path_factory):
    """Records of two defenses on 32 digits, made by a process of its own: (folder, status, what it said)."""
    home, recipe = _trained_home
    folder = tmp_path_factory.mktemp("measured")
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_SHORT_TRAINING.format(recipe=recipe, words=RUN)], cwd=folder,
        capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "PURIFYBENCH_HOME": str(home)},
    )  # fmt: skip
    return folder / "results", done.returncode, done.stdout + done.stderr


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("protocol_id", "is_in"), [("digits-v1-quick", False), ("digits-selective-v1-quick-draft", True)]
)
def test_all_means_every_defense_that_the_protocol_is_for(protocol_id, is_in, command):
    status, out, _ = command("run", "all", "--protocol", protocol_id, "--estimate")
    named = {line.split(":")[0].strip() for line in out.splitlines() if line.startswith("  ")}
    assert status == 0 and ("magnet" in named) == is_in and ("identity" in named) != is_in


@pytest.mark.slow
def test_run_measures_every_cell_and_prints_a_table(measured):
    folder, status, text = measured
    assert status == 0, text
    assert "Traceback" not in text
    assert "No defense (identity)" in text
    assert "mean robust radius" in text
    assert f"purifybench site build --records {folder.name}" in text
    chosen = protocols.get(PROTOCOL).limited(32)
    store = Store(folder)
    assert {(cell.record.defense, cell.record.cell) for cell in store.cells()} == {
        (defense, f"A.{spec.slug}.seed0") for defense in ("identity", "kmeans") for spec in chosen.attacks
    }
    assert store.problems == []


@pytest.mark.slow
def test_what_was_measured_is_plausible(measured):
    """Real digits, a real classifier: right almost always when clean, about never under PGD at .3."""
    accuracy = {cell.record.cell: cell.outcomes.correct.mean() for cell in Store(measured[0]).cells(defense="identity")}
    assert accuracy["A.clean.none.seed0"] >= 0.85
    assert accuracy["A.gray_box.pgd.linf-0.3.seed0"] <= 0.1
    assert accuracy["A.gray_box.pgd.linf-0.1.seed0"] <= accuracy["A.gray_box.fgsm.linf-0.1.seed0"] + 1 / 32
    assert accuracy["A.clean.uniform_noise.linf-0.1.seed0"] >= 0.8


@pytest.mark.slow
def test_a_limited_run_is_never_ranked(measured):
    for cell in Store(measured[0]).cells():
        assert cell.record.protocol == f"{PROTOCOL}+limit32"
        assert cell.record.protocol_hash == protocols.get(PROTOCOL).limited(32).hash
        assert cell.record.n_examples == 32
    assert "never ranked" in measured[2]


@pytest.mark.slow
def test_a_second_run_measures_nothing_and_changes_no_byte(measured, trained_home, command, tmp_path, monkeypatch):
    shutil.copytree(measured[0], tmp_path / "results")

    def never(*_, **__):
        raise AssertionError("measured although the record is there")

    monkeypatch.setattr(campaign, "evaluate_cell", never)
    status, out, err = command(*RUN)
    assert status == 0
    assert "No defense (identity)" in out
    assert "cells to run" not in err
    assert content(tmp_path / "results") == content(measured[0])


@pytest.mark.slow
def test_a_lost_record_is_measured_again_and_comes_out_the_same(measured, trained_home, command, tmp_path):
    shutil.copytree(measured[0], tmp_path / "results")
    lost = tmp_path / "results" / f"{PROTOCOL}+limit32" / "kmeans" / "A.gray_box.pgd.linf-0.3.seed0.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    status, _, err = command(*RUN)
    assert status == 0
    assert "1 cells to run" in err
    after = json.loads(lost.read_text())
    for payload in (before, after):
        del payload["run"], payload["checksum"]
    assert after == before


@pytest.mark.slow
def test_all_of_it_again_from_nothing_gives_the_same_outcomes(measured, trained_home, command, monkeypatch, tmp_path):
    """Another home that holds nothing but the weights: every image is attacked again."""
    shutil.copytree(trained_home / "weights", tmp_path / "fresh" / "weights")
    monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / "fresh"))
    status, _, _ = command(*RUN, "--attacks", "none,fgsm,uniform_noise", "--records", "again")
    assert status == 0
    old = {(cell.record.defense, cell.record.cell): cell.record.lasting() for cell in Store(measured[0]).cells()}
    new = {(cell.record.defense, cell.record.cell): cell.record.lasting() for cell in Store("again").cells()}
    assert len(new) == 2 * (1 + 3 + 3 + 1)
    assert new == {name: old[name] for name in new}


@pytest.mark.slow
def test_show_prints_what_was_measured(measured, command):
    status, out, _ = command("show", "identity", "--records", str(measured[0]))
    assert status == 0
    assert f"{PROTOCOL}+limit32" in out
    assert "linf 0.3" in out


@pytest.mark.slow
def test_compare_prints_the_paired_difference(measured, command):
    status, out, _ = command(
        "compare", "identity", "kmeans", "-p", f"{PROTOCOL}+limit32", "--records", str(measured[0])
    )
    assert status == 0
    assert "identity against kmeans" in out
    assert "points" in out


@pytest.mark.slow
def test_the_site_is_built_from_the_records(measured, command, tmp_path):
    status, out, err = command("site", "build", "--records", str(measured[0]), "--out", str(tmp_path / "pages"))
    assert status == 0, err
    assert str(tmp_path / "pages" / "index.html") in out
    text = "".join(path.read_text() for path in (tmp_path / "pages").rglob("*.html"))
    assert "No defense" in text
    assert "k-means" in text
    assert f"{PROTOCOL}+limit32" in text


@pytest.mark.slow
def test_an_edited_record_is_named_and_measured_again(measured, trained_home, command, tmp_path):
    shutil.copytree(measured[0], tmp_path / "results")
    edited = tmp_path / "results" / f"{PROTOCOL}+limit32" / "identity" / "A.clean.none.seed0.json"
    edited.write_text(edited.read_text().replace('"status": "ok"', '"status": "failed"'))
    status, _, err = command(*RUN)
    assert status == 0
    assert f"{Path('results') / edited.relative_to(tmp_path / 'results')}: its checksum does not match" in err
    assert json.loads(edited.read_text())["status"] == "ok"
