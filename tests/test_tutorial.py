"""docs/tutorial.md, followed to the letter: its files are written, its commands run, its outputs compared.

What stands in for something that a test cannot have is in SUBSTITUTES, and each of them must be used.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import classifiers, cli, protocols
from bench.record import Store
from bench.submissions import rules

pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).parent.parent
TUTORIAL = CHECKOUT / "docs" / "tutorial.md"
FENCES = re.compile(r"^```(\S+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = ("Ada", "ada@example.org")

SUBSTITUTES = {
    "FORK=https://github.com/you/purifybench.git": "FORK=origin.git",
    "python -m venv .venv": "",  # the test has an environment with PurifyBench in it
    ". .venv/bin/activate": "",
    "pip install . pytest": "",
    "pip install -e median-filter": "pip install --quiet --no-deps --no-index --no-build-isolation "
    "--target installed ./median-filter",
    "purifybench submission run median-filter --quick": "purifybench submission run median-filter --quick --verify 0",
}
SKIPPED = "6. 2 random cells again, in a fresh process: passed"
"""A fresh process would not know the shortened protocol, hence `--verify 0`: the next command verifies in this one."""


@pytest.fixture
def small(monkeypatch):
    """digits-v1-quick with all its attacks, on 3 images."""
    whole = protocols.get("digits-v1-quick")
    attacks = tuple(dataclasses.replace(spec, n_examples=None) for spec in whole.attacks)
    small = dataclasses.replace(whole, n_examples=3, attacks=attacks)
    monkeypatch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, whole.id: small})


@pytest.fixture
def place(tmp_path, trained_home, monkeypatch):
    """A folder with a copy of what is needed of this project in a repository, and nothing else."""
    for name, value in (("AUTHOR", NAMED), ("COMMITTER", NAMED)):
        monkeypatch.setenv(f"GIT_{name}_NAME", value[0])
        monkeypatch.setenv(f"GIT_{name}_EMAIL", value[1])
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    shutil.copytree(trained_home, tmp_path / "home")
    monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / "home"))
    made = tmp_path / "made"
    for name in (".gitignore", "submissions/README.md", "submissions/kmeans"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copyfile)(CHECKOUT / name, made / name)
    for words in ("init -q -b main", "add -A", "commit -q -m All", f"clone -q --bare . {tmp_path / 'origin.git'}"):
        subprocess.run(["git", *shlex.split(words)], cwd=made, check=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "origin.git").rename(tmp_path / "work" / "origin.git")
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    sys.modules.pop("median_filter", None)


class Reader:
    """Does what the tutorial says, one line after the other."""

    def __init__(self, place, monkeypatch, capfd):
        self.place, self.patch, self.capfd = place, monkeypatch, capfd
        self.used, self.said = set(), ""
        self.patch.setenv("PYTHONPATH", f"{place / 'installed'}:{CHECKOUT}")
        self.patch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def line(self, written):
        """Run a line; what it printed is kept."""
        line = SUBSTITUTES.get(written, written)
        self.used |= {written} & SUBSTITUTES.keys()
        words = shlex.split(os.path.expandvars(line))
        if not words:
            return
        self.capfd.readouterr()
        if "=" in words[0]:
            name, _, value = words[0].partition("=")
            self.patch.setenv(name, value)
        elif words[0] == "cd":
            self.patch.chdir(words[1])
        elif words[0] == "purifybench":
            self.patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                cli.main()
                raise SystemExit(0)
            assert not ended.value.code, (written, self.capfd.readouterr())
        else:
            python = {"pip": [sys.executable, "-m", "pip"], "python": [sys.executable]}
            found = [*python.get(words[0], words[:1]), *words[1:]]
            done = subprocess.run(found, check=False)
            assert done.returncode == 0, (written, self.capfd.readouterr())
            if words[:2] == ["pip", "install"]:
                self.patch.syspath_prepend(self.place / "installed")
                importlib.invalidate_caches()
        self.said += self.capfd.readouterr().out

    def output(self, shown, kind):
        """Hold the lines that the tutorial shows against those that were printed since the last ones that it showed."""
        printed = [plain(line, kind) for line in self.said.splitlines()]
        for line in shown.splitlines():
            if line.startswith(SKIPPED):
                self.used.add(SKIPPED)
            else:
                assert plain(line, kind) in printed, (line, self.said)
        self.said = ""


def plain(line, kind):
    """A line without what differs from run to run: times, folders, what the system allows, widths of tables, and where
    `kind` is "figures", every number."""
    line = re.sub(r"(\d+ h )?\d+ (s|min|h)\b", "TIME", line.strip())
    line = re.sub(r"\S*/(?=site-preview/)|(?<=in a process of its own: ).*|(?<=[━─])[━─]+", "", line)
    return re.sub(r"\s+", " ", re.sub(r"[\d.]+", "0", line) if kind == "figures" else line)


def test_the_tutorial_leads_from_nothing_to_a_branch_that_can_be_merged(place, small, monkeypatch, capfd):
    assert classifiers.RECIPE["epochs"] < 10, "the classifier is trained briefly"
    reader = Reader(place, monkeypatch, capfd)
    for kind, more, text in FENCES.findall(TUTORIAL.read_text()):
        if kind == "sh":
            for line in text.splitlines():
                reader.line(line)
        elif kind == "python":
            assert Path(more).is_file(), f"{more} is there to be replaced"
            Path(more).write_text(text)
        else:
            assert kind == "text"
            reader.output(text, more)
    assert reader.used == {*SUBSTITUTES, SKIPPED}

    clone = place / "purifybench"
    assert Path.cwd() == clone
    pushed = subprocess.run(
        ["git", "--git-dir", "../origin.git", "ls-tree", "-r", "--name-only", "median-filter", "submissions"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    mine = [path for path in pushed if "/median_filter/" in path]
    assert {path.split("/")[2] for path in mine} == {"submission.toml", "plugin", "records"}
    left = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert left == "", "nothing lies about that is neither committed nor ignored"
    assert rules.examine(["median_filter"], clone / "submissions")["median_filter"] == []
    cells = list(Store(clone / "submissions" / "median_filter" / "records").cells("digits-v1-quick"))
    assert len(cells) == len(protocols.get("digits-v1-quick").attacks) > 30
    site = clone / "site-preview"
    assert 'href="board/digits-v1-quick.html"' in (site / "index.html").read_text()
    assert "median_filter" in (site / "board" / "digits-v1-quick.html").read_text()


def test_every_link_of_the_tutorial_leads_somewhere():
    text = TUTORIAL.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (TUTORIAL.parent / link).exists(), link
    for path in re.findall(r"`((?:bench|tests|\.github)/[\w/.-]*)`", text):
        assert (CHECKOUT / path).exists(), path
    for page in ("README.md", "submissions/README.md"):
        assert "docs/tutorial.md" in (CHECKOUT / page).read_text(), page
