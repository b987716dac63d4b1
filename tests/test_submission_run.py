"""From a submission to records that hold when measured again: environment, child process, steps, verification."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import submitted
import torch
from safetensors.torch import save
from submitted import NAME, PROTOCOL, TINY

from bench import protocols, seal
from bench.breaks import schema as breaks
from bench.cache import ChunkCache
from bench.errors import BenchError
from bench.isolation import Isolated, channel
from bench.places import home
from bench.record import Cell, ImagesHash, Store
from bench.submissions import add, environment, places, rules, run, scaffold, schema, verify, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def _measured(_trained_home, tmp_path_factory):
    """A submission taken through every step once: its root, the records, what was said, and the summary."""
    from typer.testing import CliRunner

    from bench import classifiers, cli

    top = tmp_path_factory.mktemp("measured")
    shutil.copytree(_trained_home[0], top / "home")
    root = submitted.make(top)
    claim = (
        '[[claims]]\ndataset = "digits"\nnorm = "linf"\neps = 0.1\naccuracy = 0.99\nattack = "FGSM"\nwhere = "p. 1"\n'
    )
    with (root / NAME / places.FILE).open("a") as file:
        file.write(claim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURIFYBENCH_HOME", str(top / "home"))
        patch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, TINY.id: TINY})
        patch.setattr(classifiers, "RECIPE", _trained_home[1])
        patch.chdir(top)
        words = [
            "submission",
            "run",
            "soft-focus",
            "-p",
            PROTOCOL,
            "--verify",
            "0",
            "--summary",
            str(top / "summary.md"),
        ]
        told = CliRunner().invoke(cli.app, words)
        assert told.exit_code == 0, (told.output, told.exception)
        yield root, told.output, (top / "summary.md").read_text()


@pytest.fixture
def measured(_measured, monkeypatch):
    """The same, with the home that it was measured in."""
    monkeypatch.setenv("PURIFYBENCH_HOME", str(_measured[0].parent / "home"))
    return _measured


def test_every_step_is_told_and_the_records_keep_the_rules(measured):
    root, said, summary = measured
    for step in ("1. rules", "2. environment", "3. contract", f"4. protocol {PROTOCOL}", "5. rules of", "7. preview"):
        assert f"{step}" in said
    assert said.count(": passed") == 6 and "4 cells in" in said and "0 failed" in said
    assert "in a process of its own" in said and "seen through the seam" in said
    assert "claimed: 99.0% under FGSM, linf 0.1, digits (p. 1); worst case measured here" in said
    assert summary.startswith("## soft-focus\n\n| | step | outcome | time |") and summary.count("\n| ") == 7
    assert rules.examine([NAME], root)[NAME] == []
    assert "soft_focus" not in sys.modules, "the parent never imports the plugin"
    assert (root.parent / "site-preview" / "index.html").exists()


def test_records_of_the_child_are_those_of_the_same_class_in_this_process(measured, tmp_path, monkeypatch):
    from bench import campaign, planning

    root, _, _ = measured
    monkeypatch.syspath_prepend(root / NAME / "plugin")
    try:
        from soft_focus import SoftFocus

        cells = campaign.run(planning.plan([SoftFocus], TINY), Store(tmp_path / "records"))
    finally:
        sys.modules.pop("soft_focus", None)
    theirs = {cell.record.cell: cell.record.lasting() for cell in Store(root / NAME / "records").cells()}
    assert {cell.record.cell: cell.record.lasting() for cell in cells} == theirs


AT_ONCE = """
import sys
from bench import classifiers, cli, protocols
from submitted import TINY
protocols.PROTOCOLS = {**protocols.PROTOCOLS, TINY.id: TINY}
classifiers.RECIPE = %r
cli.main()
"""


def test_two_submissions_at_once_do_not_disturb_each_other(measured, _trained_home, tmp_path):
    root, _, _ = measured
    both = tmp_path / "submissions"
    shutil.copytree(root, both, ignore=shutil.ignore_patterns("records"))
    package = scaffold.new("sudden-end", tmp_path)
    submitted.edit(package / "sudden_end.py", "https://example.org/paper", submitted.PAPER)
    submitted.edit(
        package / "sudden_end.py", "        mean = nn", "        __import__('os')._exit(3)\n        mean = nn"
    )
    add.add(str(package), both, authors=["Bert"])
    shutil.copytree(_trained_home[0], tmp_path / "home")
    variables = os.environ | {"PURIFYBENCH_HOME": str(tmp_path / "home")}
    variables["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )

    def start(name: str) -> subprocess.Popen[str]:
        words = [
            "submission",
            "run",
            name,
            "-p",
            PROTOCOL,
            "--verify",
            "0",
            "--root",
            str(both),
            "--site",
            f"site-{name}",
        ]
        script = [sys.executable, "-c", AT_ONCE % _trained_home[1], *words]
        return subprocess.Popen(
            script, env=variables, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    running = {name: start(name) for name in (NAME, "sudden_end")}
    said = {name: process.communicate(timeout=600)[0] for name, process in running.items()}
    assert running[NAME].returncode == 0, said[NAME]
    assert running["sudden_end"].returncode == 2 and "ended itself with status 3" in said["sudden_end"], said
    alone = {cell.record.cell: cell.record.lasting() for cell in Store(root / NAME / "records").cells()}
    beside = {cell.record.cell: cell.record.lasting() for cell in Store(both / NAME / "records").cells()}
    assert alone == beside and len(alone) == 4
    chains = {seal.chain(top / NAME / "records" / PROTOCOL / NAME) for top in (root, both)}
    assert len(chains) == 1 and "" not in chains
    assert not (both / "sudden_end" / "records").exists()


def test_cells_measured_again_confirm_the_records(measured, command):
    root, _, _ = measured
    words = ("submission", "verify", NAME, "--root", str(root), "--seed", "1", "--cells", "3")
    status, out, err = command(*words)
    assert (status, out.count(": confirmed")) == (0, 3), (out, err)
    images = str(root.parent / "home")
    status, out, _ = command(*words, "--images", images)
    assert (status, out.count(": confirmed")) == (0, 3)


def test_images_of_others_are_shown_to_the_child(measured, tmp_path, command, digits, monkeypatch):
    root = tmp_path / "submissions"
    shutil.copytree(measured[0], root)
    clean, _ = digits.examples(24, 0)
    moved = np.clip(clean.images.numpy() + np.float32(0.3) * np.sign(0.5 - clean.images.numpy()), 0, 1)
    np.savez_compressed(tmp_path / "found.npz", images=moved, indices=np.arange(24))
    status, out, err = command(
        "break", "add", str(tmp_path / "found.npz"), "--against", NAME, "--dataset", "digits", "--norm", "linf",
        "--eps", "0.3", "--author", "Eve", "--root", str(root),
    )  # fmt: skip
    assert status == 0 and f"{PROTOCOL}: 24 of the images" in out, err
    assert "soft_focus" not in sys.modules, "the parent never imports the plugin"
    found = breaks.read_result(root / "breaks" / NAME / "eve_linf_0_3" / breaks.RESULT)
    monkeypatch.syspath_prepend(root / NAME / "plugin")
    try:
        from soft_focus import SoftFocus

        from bench import classifiers
        from bench.progress import Progress

        net, _ = classifiers.trained("A", digits, Progress())
        with torch.no_grad():
            logits = SoftFocus(net).eval().logits(torch.from_numpy(moved), torch.Generator())
    finally:
        sys.modules.pop("soft_focus", None)
    assert list(found.scores[0].predicted) == logits.argmax(dim=1).tolist()
    assert command("break", "verify", "--root", str(root))[:2] == (0, f"{NAME}/eve_linf_0_3: confirmed\n")


def _forged(root: Path, tmp_path: Path, **changes) -> Path:
    """A copy of the records in which one cell says something else, checksums and all."""
    copy = tmp_path / "records"
    shutil.copytree(root / NAME / "records", copy)
    store = Store(copy)
    cell = next(cell for cell in store.cells() if cell.record.spec.slug == "gray_box.fgsm.linf-0.1")
    arrays = {name: value(cell.outcomes) for name, value in changes.items() if callable(value)}
    outcomes = type(cell.outcomes)(**(cell.outcomes.arrays() | arrays))
    fields = {name: value for name, value in changes.items() if not callable(value)}
    fields["outcomes_sha256"] = outcomes.sha256()
    store.save(type(cell)(cell.record.model_copy(update=fields), outcomes))
    return copy


FORGED = "A.gray_box.fgsm.linf-0.1.seed0"


def _kept(cache: ChunkCache, cell: Cell) -> tuple[str, dict[str, np.ndarray]]:
    """The key and the arrays of the one chunk of images that a cell has among those that its run kept."""
    rows = np.flatnonzero(cell.outcomes.attacked).tolist()
    for path in cache.folder.glob("??/*.npz"):
        arrays, state = cache.read(path.stem), ImagesHash()
        if len(arrays.get("images", ())) == len(rows):  # a run that was stopped leaves scores, too
            state.add(rows, arrays["images"])
        if state.sha256() == cell.record.images_sha256:
            return path.stem, arrays
    raise AssertionError("the run kept no such images")


def test_images_are_hashed_as_the_run_kept_them_and_a_changed_one_is_found(measured, tmp_path, command):
    root, _, _ = measured
    cells = {cell.record.cell: cell for cell in Store(root / NAME / "records").cells()}
    shutil.copytree(root.parent / "home" / "chunks", tmp_path / "chunks")
    cache = ChunkCache(tmp_path / "chunks")
    assert len({_kept(cache, cell)[0] for cell in cells.values()}) == 4
    key, arrays = _kept(cache, cells[FORGED])
    milder = arrays["images"].copy()
    milder[0] = (milder[0] + _kept(cache, cells["A.clean.none.seed0"])[1]["images"][0]) / 2  # inside the ball
    cache.write(key, {**arrays, "images": milder})  # checksum and all
    words = ("submission", "verify", NAME, "--root", str(root), "--images", str(tmp_path), "--cell", FORGED)
    status, out, _ = command(*words, "--cell", "A.clean.none.seed0")
    assert status == 1 and "A.clean.none.seed0: confirmed" in out
    assert f"{FORGED}: the images that were given are not those that the record was scored on" in out


def test_an_embellished_record_is_found(measured, tmp_path, command):
    root, _, _ = measured
    right = {"correct": lambda o: np.ones_like(o.correct), "predicted": lambda o: o.label.copy()}
    records = _forged(root, tmp_path, **right, margin=lambda o: np.ones_like(o.margin))
    status, out, _ = command(
        "submission", "verify", NAME, "--root", str(root), "--records", str(records), "--cell", FORGED
    )
    assert status == 1
    assert "images come out otherwise; outcomes_sha256 differ" in out and "on the same machine" in out


def test_a_record_of_other_code_is_found_even_where_another_cell_is_looked_at(measured, tmp_path, command):
    root, _, _ = measured
    records = _forged(root, tmp_path, key="0" * 64)
    clean = "A.clean.none.seed0"
    words = ("submission", "verify", NAME, "--root", str(root), "--records", str(records), "--cell")
    status, _, err = command(*words, clean)
    assert status == 2 and f"the record {FORGED} of {NAME} is not of this code" in err
    status, _, err = command(*words, "A.nothing.seed0")
    assert status == 2 and "there is no sound record A.nothing.seed0" in err


def test_small_differences_between_machines_are_borne_and_large_ones_are_not(measured, tmp_path):
    root, _, _ = measured
    (cell,) = (c for c in Store(root / NAME / "records").cells() if c.record.cell == FORGED)
    far = cell.record.run.model_copy(update={"device": "another"})
    margin = type(cell.outcomes)(**(cell.outcomes.arrays() | {"margin": cell.outcomes.margin + np.float32(1e-6)}))
    other = type(cell)(cell.record.model_copy(update={"outcomes_sha256": margin.sha256()}), margin)
    assert "on the same machine" in verify.Comparison(cell, other).problem
    elsewhere = type(cell)(other.record.model_copy(update={"run": far}), margin)
    assert verify.Comparison(cell, elsewhere).problem == ""
    assert "weights" not in verify.Comparison(cell, elsewhere).problem
    turned = type(cell.outcomes)(**(cell.outcomes.arrays() | {"correct": 1 - cell.outcomes.correct}))
    worse = type(cell)(cell.record.model_copy(update={"run": far, "outcomes_sha256": turned.sha256()}), turned)
    assert "24 of 24 images come out otherwise" in verify.Comparison(cell, worse).problem


def test_other_images_are_borne_only_from_another_machine_that_made_them_itself(measured):
    root, _, _ = measured
    (cell,) = (c for c in Store(root / NAME / "records").cells() if c.record.cell == FORGED)

    def again(images_sha256, device=cell.record.run.device):
        run = cell.record.run.model_copy(update={"device": device})
        return type(cell)(cell.record.model_copy(update={"images_sha256": images_sha256, "run": run}), cell.outcomes)

    assert "images_sha256 differ, on the same machine" in verify.Comparison(cell, again("0" * 64)).problem
    assert verify.Comparison(cell, again("0" * 64, "another")).problem == ""
    assert "are not those" in verify.Comparison(cell, again("0" * 64, "another"), found=True).problem
    assert verify.Comparison(again(""), cell).problem == "", "a record of a harness that did not hash images"


def test_facts_may_differ_a_little_between_machines(measured):
    root, _, _ = measured
    (cell,) = (c for c in Store(root / NAME / "records").cells() if c.record.cell == FORGED)

    def telling(facts, device):
        run = cell.record.run.model_copy(update={"device": device})
        return type(cell)(cell.record.model_copy(update={"facts": facts, "run": run}), cell.outcomes)

    first = telling({"flips": 0.5, "images": (900.0, 100.0)}, "one")
    for facts, is_borne in (
        ({"flips": 0.505, "images": (904.0, 96.0)}, True), ({"flips": 0.52, "images": (900.0, 100.0)}, False),
        ({"flips": 0.5, "images": (880.0, 120.0)}, False), ({"flips": 0.5}, False),
        ({"flips": 0.5, "images": (900.0,)}, False), ({"flips": 0.5, "images": (900.0, 100.0), "x": 0.0}, False),
    ):  # fmt: skip
        assert (verify.Comparison(first, telling(facts, "another")).problem == "") == is_borne, facts
    near = telling({"flips": 0.505, "images": (904.0, 96.0)}, "one")
    assert "facts differ, on the same machine" in verify.Comparison(first, near).problem


def test_nothing_is_verified_without_records(measured, tmp_path, command):
    root, _, _ = measured
    status, _, err = command("submission", "verify", NAME, "--root", str(root), "--records", str(tmp_path))
    assert status == 2 and "there are no records of soft_focus" in err
    with pytest.raises(BenchError, match="holds no attacked images"):
        verify._copy_images(tmp_path, tmp_path / "into")


# ---------------------------------------------------------------------------------------------- steps that stop


@pytest.fixture
def root(tmp_path):
    return submitted.make(tmp_path)


def test_a_submission_that_breaks_a_rule_stops_at_the_first_step(root, command, tmp_path):
    (root / NAME / "plugin" / "setup.py").write_text("raise AssertionError('run')")
    summary = tmp_path / "summary.md"
    status, out, err = command("submission", "run", NAME, "--root", str(root), "--summary", str(summary))
    assert status == 2
    assert "1. rules of files, description and code: FAILED: 1 findings: S307" in out
    assert "error: step 1" in err and "2." not in out
    assert "FAILED: 1 findings: S307" in summary.read_text()
    assert not (home() / "environments").exists()


def test_a_package_that_does_not_install_says_why(root):
    submitted.edit(
        root / NAME / "plugin" / "pyproject.toml", '["purifybench"]', '["purifybench", "no-such-thing-x==9"]'
    )
    described = schema.read(root / NAME / places.FILE)
    os.environ["PIP_NO_INDEX"] = "1"
    try:
        with pytest.raises(BenchError, match=r"soft_focus does not install: .*no-such-thing-x.*; try pip install"):
            environment.prepare(described, root / NAME)
    finally:
        del os.environ["PIP_NO_INDEX"]


def test_a_defense_that_breaks_the_contract_is_not_measured(root, command):
    submitted.edit(root / NAME / "plugin" / "soft_focus.py", "return (1 -", "return 2 + (1 -")
    status, out, _ = command("submission", "run", NAME, "--root", str(root), "-p", "digits-v1-quick", "--limit", "4")
    assert status == 2
    assert "3. contract: FAILED" in out and "expected [0, 1]" in out and "4." not in out


def test_a_defense_that_takes_too_long_is_ended_at_the_limit_that_was_given(root, command):
    module = root / NAME / "plugin" / "soft_focus.py"
    submitted.edit(module, "        mean = nn", "        __import__('time').sleep(600)\n        mean = nn")
    status, out, _ = command("submission", "run", NAME, "--root", str(root), "--limit", "4", "--call-seconds", "3")
    assert status == 2
    assert "3. contract: FAILED" in out and "gave no answer within 3 s and was ended" in out
    assert "not started again after 4 ends" in out


def test_an_overlay_is_small_and_its_own(tmp_path):
    environment.overlay(tmp_path / "env")
    size = sum(path.lstat().st_size for path in (tmp_path / "env").rglob("*") if not path.is_symlink())
    assert size < 200_000
    script = "import bench, numpy, sys; print(bench.__file__, sys.prefix)"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-c", script], capture_output=True, text=True, check=True, env=kept
    )
    assert done.stdout.split() == [sys.modules["bench"].__file__, str(tmp_path / "env")]


def test_a_run_that_was_stopped_goes_on(measured, tmp_path, monkeypatch, command):
    root, _, _ = measured
    shutil.copytree(root, tmp_path / "submissions")
    folder = tmp_path / "submissions" / NAME
    for path in sorted((folder / "records").rglob("*.json"))[2:]:
        path.unlink()
    assert [found.number for found in rules.examine([NAME], tmp_path / "submissions")[NAME]] == [408, 422]
    monkeypatch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, TINY.id: TINY})
    status, out, err = command("submission", "run", NAME, "--root", str(folder.parent), "-p", PROTOCOL, "--verify", "0")
    assert (status, out.count(": passed")) == (0, 6), (out, err)


# ---------------------------------------------------------------------------------------------- a full environment


@pytest.fixture
def without_dependencies(monkeypatch):
    """pip as it is, but for what it would download: 6 GB of torch and the rest."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_DEPS", "1")


def _asked(python: Path, code: str) -> str:
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_fresh_environment_holds_the_harness_and_the_submission_and_sees_nothing_of_this_one(
    root, without_dependencies
):
    described = schema.read(root / NAME / places.FILE)
    python = environment.prepare(described, root / NAME, fresh=True)
    place = python.parent.parent
    assert not list(place.rglob("host.pth")) and python != environment.prepare(described, root / NAME)
    assert environment.entry_point(python, described, root / NAME) == "soft_focus:SoftFocus"
    where = "import importlib.util as i; print(i.find_spec('bench').origin)"
    assert Path(_asked(python, where)).is_relative_to(place)
    packages = "from importlib.metadata import distributions as d; print(*sorted(x.name for x in d()))"
    assert set(_asked(python, packages).split()) <= {"pip", "purifybench", "setuptools", "soft-focus"}
    for ours in ("bench/isolation/child.py", "bench/defense.py"):
        (theirs,) = place.glob(f"lib/python*/site-packages/{ours}")
        assert theirs.read_bytes() == (Path(run.__file__).parents[2] / ours).read_bytes()
    (place / "kept").touch()
    environment.prepare(described, root / NAME, fresh=True)
    assert (place / "kept").exists(), "it is made once"


def test_pip_is_asked_for_the_harness_and_the_submission_at_once(root, monkeypatch):
    """Together, so that it finds versions that suit both; a folder is asked for as a wheel built here."""
    asked = []
    monkeypatch.setattr(environment, "_pip", lambda name, words: asked.append(words))
    monkeypatch.setattr(environment, "_built", lambda source, into, name: into / f"{source.name}.whl")
    described = schema.read(root / NAME / places.FILE)
    environment.prepare(described, root / NAME, fresh=True)
    install = schema.Install(requirement="soft-focus==1.0")
    environment.prepare(described.model_copy(update={"install": install}), root / NAME, fresh=True)
    folder, requirement = asked
    checkout = Path(run.__file__).parents[2].name
    assert folder[0] == "--python" and [Path(word).name for word in folder[-2:]] == [f"{checkout}.whl", "source.whl"]
    assert requirement[-1] == "soft-focus==1.0" and Path(requirement[-2]).name == f"{checkout}.whl"
    assert requirement[3:-2] == ["--no-warn-script-location", "--only-binary", ":all:"]


def test_an_installed_harness_is_packed_again(tmp_path, monkeypatch):
    """Where there is no checkout, the wheel is put together from what is installed; pip takes it like any other."""
    wheel = environment.harness(tmp_path / "built")
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, target, wheel], check=True, capture_output=True)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "from bench.submissions import environment\nprint(environment.harness(Path(sys.argv[2])))"
    )
    words = [sys.executable, "-c", script, target, tmp_path / "again"]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=kept, cwd=tmp_path)
    again = zipfile.ZipFile(done.stdout.strip())
    with zipfile.ZipFile(wheel) as first:
        names = {name for name in first.namelist() if not name.endswith("RECORD")}
        assert {name for name in again.namelist() if not name.endswith("RECORD")} == names
        assert all(first.read(name) == again.read(name) for name in names)
    subprocess.run([*install, tmp_path / "third", done.stdout.strip()], check=True, capture_output=True)
    assert (tmp_path / "third" / "bench" / "cli.py").exists()


def test_the_childs_own_copy_of_the_digits_is_hidden(tmp_path):
    data = tmp_path / "lib" / "python3.11" / "site-packages" / "sklearn" / "datasets" / "data" / "digits.csv.gz"
    data.parent.mkdir(parents=True)
    data.touch()
    assert data in channel.hidden(None, tmp_path / "bin" / "python")
    assert data not in channel.hidden(None, tmp_path / "other" / "bin" / "python")


def test_what_comes_along_gets_no_fresh_environment(command):
    root = Path(__file__).parent.parent / "submissions"
    status, _, err = command("submission", "run", "kmeans", "--root", str(root), "--limit", "2", "--fresh")
    assert status == 2 and "kmeans comes with PurifyBench: no environment is made for it; leave --fresh out" in err


def test_an_overlay_sees_the_systems_packages_too(monkeypatch, tmp_path):
    system = tmp_path / "dist-packages"
    monkeypatch.syspath_prepend(system)
    assert str(system) in environment.host_folders()


def test_a_defense_that_comes_along_needs_no_environment(tmp_path):
    checkout = Path(__file__).parent.parent
    with run.opened("kmeans", checkout / "submissions") as (described, defense):
        assert (described.name, defense) == ("kmeans", "kmeans")
        assert environment.prepare(described, checkout) == Path(sys.executable)
        assert not isinstance(defense, type) or not issubclass(defense, Isolated)


# ---------------------------------------------------------------------------------------------- weights


def _weights(path: Path, content: bytes, sha256: str | None = None) -> weights.Weights:
    path.write_bytes(content)
    return weights.Weights.model_construct(
        file="soft_focus-0123456789abcdef.safetensors", url=path.as_uri(),
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
    )  # fmt: skip


def test_weights_are_fetched_once_and_land_where_the_harness_looks(tmp_path):
    content = save({"w": torch.ones(3)})
    one = _weights(tmp_path / "w", content)
    path = weights._fetch(one)
    assert path == home() / "weights" / one.file and path.read_bytes() == content
    (tmp_path / "w").unlink()
    assert weights._fetch(one) == path, "what is there is not fetched again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04K\x01.", "is no safetensors file"),
        (save({"w": torch.ones(3)})[:-1], "of another length"),
        (len(b"{}").to_bytes(8, "little") + b"{}" + b"x", "of another length"),
        ((2**60).to_bytes(8, "little") + b"{}", "is no safetensors file"),
        (len(b"[1]").to_bytes(8, "little") + b"[1]", "is no safetensors file"),
    ],
)
def test_what_is_no_safetensors_is_refused_without_loading(content, message, tmp_path):
    with pytest.raises(BenchError, match=message):
        weights._fetch(_weights(tmp_path / "w", content))
    assert not (home() / "weights").exists()


def test_another_checksum_or_address_is_refused(tmp_path):
    one = _weights(tmp_path / "w", save({"w": torch.ones(3)}), "0" * 64)
    with pytest.raises(BenchError, match=r"has the sha256 .*, expected 0000"):
        weights._fetch(one)
    (tmp_path / "w").unlink()
    with pytest.raises(BenchError, match="cannot be read"):
        weights._fetch(one)


def test_the_summary_is_plain_json_free_text(measured):
    assert json.dumps(measured[2]) and "\x1b" not in measured[2]
