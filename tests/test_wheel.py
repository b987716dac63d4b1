"""The built wheel in an environment of its own: it holds what it needs and runs without the checkout."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import fake_records
import pytest

from bench import protocols
from bench.record import Store

pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    return next(folder.glob("purifybench-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel installed, which sees this one's other packages through a .pth file.

    A path in a .pth file is searched last and its own .pth files are not read, so the checkout stays out of sight.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "host.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder


def run(environment: Path, *arguments: str | Path, cwd: Path) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [environment / "bin" / arguments[0], *map(str, arguments[1:])]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_code_pages_types_and_entry_points(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "bench/py.typed", "defenses/py.typed", "leaderboard/py.typed", "leaderboard/templates/base.html.j2",
        "leaderboard/templates/papers.html.j2", "leaderboard/data/reported.csv", "leaderboard/data/README.md",
        "leaderboard/static/site.css", "leaderboard/static/site.js", "bench/attacks/apgd.py",
    ):  # fmt: skip
        assert wanted in names
    files = {name.split("/")[0] for name in names}
    assert files == {"bench", "defenses", "leaderboard", next(f for f in files if f.endswith(".dist-info"))}
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "purifybench = bench.cli:main" in text and "[purifybench.defenses]" in text
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_wheel_runs_without_the_checkout(environment, tmp_path):
    where = run(environment, "python", "-c", "import bench, leaderboard; print(bench.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    assert "identity_vae" in run(environment, "purifybench", "list", "defenses", cwd=tmp_path)
    assert "keeps all" in run(environment, "purifybench", "check", "kmeans", cwd=tmp_path)
    store = Store(tmp_path / "results")
    fake_records.save(store, protocols.get("digits-v1-quick"), ["identity", "kmeans"])
    said = run(environment, "purifybench", "site", "build", "--records", "results", "--out", "site", cwd=tmp_path)
    assert "index.html" in said and "kmeans" in (tmp_path / "site" / "index.html").read_text()
