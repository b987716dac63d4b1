"""`purifybench new`: the package that it writes installs, keeps the contract as written, and is named throughout."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import checks, plugins
from bench.errors import BenchError
from bench.submissions import scaffold


@pytest.fixture
def package(tmp_path):
    return scaffold.new("soft-focus", tmp_path)


def test_every_form_of_the_name_is_replaced(package):
    assert package.name == "soft-focus"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    wanted = {"pyproject.toml", "soft_focus.py", "README.md", "tests/test_contract.py"}
    assert files >= wanted | {".github/workflows/contract.yml", ".gitignore"}
    assert not any("__pycache__" in name for name in files)
    for name in files:
        assert not re.search("my.?defense", (package / name).read_text(), re.IGNORECASE), name
    described = tomllib.loads((package / "pyproject.toml").read_text())
    assert described["project"]["entry-points"][plugins.GROUP] == {"soft_focus": "soft_focus:SoftFocus"}
    assert 'title, paper, year = "Soft focus"' in (package / "soft_focus.py").read_text()


def test_it_installs_and_keeps_the_contract_as_written(package, tmp_path, monkeypatch):
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    target = tmp_path / "installed"
    done = subprocess.run([*install, "--target", target, package], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(target)
    importlib.invalidate_caches()
    try:
        cls = plugins.load("soft-focus")
        assert Path(importlib.import_module("soft_focus").__file__).is_relative_to(target)
        assert [finding.problem for finding in checks.run(cls) if finding.problem] == []
    finally:
        sys.modules.pop("soft_focus", None)


def test_its_own_test_runs(package):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=package, capture_output=True, text=True, check=False, env={**os.environ, **_seen(package)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"{len(checks.ALL)} passed" in done.stdout


def _seen(package: Path) -> dict[str, str]:
    checkout = Path(__file__).parent.parent
    return {"PYTHONPATH": f"{package}:{checkout}", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize("name", ["My Defense", "x", "../escape", "2fast", "", "a" * 41, "späte"])
def test_a_name_that_is_no_slug_is_refused(name, tmp_path):
    with pytest.raises(BenchError, match="cannot name a defense; take 2 to 40"):
        scaffold.new(name, tmp_path / "inside")
    assert not (tmp_path / "inside").exists()


@pytest.mark.parametrize(("name", "why"), [("identity", "defense called 'identity' is installed"), ("json", "module")])
def test_a_name_that_is_taken_is_refused(name, why, tmp_path):
    with pytest.raises(BenchError, match=why):
        scaffold.new(name, tmp_path)


def test_nothing_is_overwritten(package, tmp_path, command):
    (package / "soft_focus.py").write_text("mine")
    status, _, err = command("new", "soft_focus", "--into", str(tmp_path))
    assert status == 2 and "exists already" in err
    assert (package / "soft_focus.py").read_text() == "mine"


def test_the_command_says_what_comes_next(command, tmp_path):
    status, out, _ = command("new", "my-defense", "--into", str(tmp_path))
    assert status == 0
    assert "pip install -e" in out and "purifybench check my-defense" in out
