"""submission.toml: what it may say, errors that name field and fix, and a description made from a package."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

from bench.errors import BenchError
from bench.submissions import add, places, rules, scaffold, schema
from bench.submissions.rules.base import Case
from bench.submissions.schema import SubmissionError

CHECKOUT = Path(__file__).parent.parent
SOUND = """
name = "soft_focus"
title = "Soft focus"
authors = ["Ada Example", "Bert Ünlü"]
paper = "https://example.org/paper"
year = 2026
kind = "purifier"
licence = "MIT"
datasets = ["digits"]
classifiers = ["A"]

[facts]
stochastic = false
differentiable = true

[install]
folder = "plugin"

[[weights]]
file = "soft_focus-0123456789abcdef.safetensors"
url = "https://example.org/weights.safetensors"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"

[[claims]]
dataset = "digits"
norm = "linf"
eps = 0.3
accuracy = 0.9
attack = "PGD-40"
where = "Table 2"
"""


def problems(text: str) -> list[str]:
    with pytest.raises(SubmissionError) as caught:
        schema.parse(text.encode(), "here/submission.toml")
    assert all(
        line.startswith("here/submission.toml: ") for line in str(caught.value).split("; here/submission.toml: ")[:1]
    )
    return caught.value.problems


def test_a_sound_file_is_read_and_written_back_the_same():
    found = schema.parse(SOUND.encode())
    assert found.authors == ("Ada Example", "Bert Ünlü") and found.claims[0].accuracy == 0.9
    assert found.facts.trained_on == "nothing"
    assert schema.parse(schema.as_toml(found).encode()) == found


MISTAKES = {
    ("year = 2026", 'year = "2026"'): "year: found '2026', expected the year of publication.*write year = 2026",
    ("year = 2026", "year = 1800"): "year: found 1800",
    ("year = 2026", "yaer = 2026"): "yaer: no such field; the fields here are name, title",
    ("year = 2026\n", ""): "year: missing, expected the year",
    ('name = "soft_focus"', 'name = "../../etc"'): "name: found '../../etc', expected entry point",
    ('"https://example.org/paper"', '"http://example.org/paper"'): "paper: .*expected an https link",
    ('"https://example.org/paper"', '"https://a b"'): "paper: ",
    ("stochastic = false", "stochastic = 0"): r"facts.stochastic: found 0, expected whether.*write stochastic = false",
    ('folder = "plugin"', 'folder = "../plugin"'): "install.folder: ",
    ('folder = "plugin"', ""): "install: nothing given, expected one of included, folder, requirement",
    ('folder = "plugin"', 'folder = "plugin"\nincluded = true'): "install: included and folder given, expected one",
    ('folder = "plugin"', 'requirement = "soft-focus"'): "install: requirement 'soft-focus' is not pinned",
    ('folder = "plugin"', 'requirement = "soft-focus>=1"'): "is not pinned",
    ('folder = "plugin"', 'requirement = "-r evil.txt"'): "is not pinned",
    ('folder = "plugin"', 'requirement = "x @ git+https://example.org/x@main"'): "is not pinned",
    ('folder = "plugin"', 'requirement = "x @ http://example.org/x.whl"'): "is not pinned",
    ("weights.safetensors", "weights safetensors"): r"weights\[0\].url: ",
    ("soft_focus-0123456789abcdef.safetensors", "soft_focus-0123456789abcdef.pkl"): r"weights\[0\].file: .*train",
    ("soft_focus-0123456789abcdef.safetensors", "../soft_focus-0123456789abcdef.safetensors"): r"weights\[0\].file: ",
    ('sha256 = "0', 'sha256 = "x'): r"weights\[0\].sha256: .*64 hex digits",
    ("accuracy = 0.9", "accuracy = 90"): r"claims\[0\].accuracy: found 90, expected a fraction in \[0, 1\]",
    ('norm = "linf"', 'norm = "Linf"'): r"claims\[0\].norm: found 'Linf'",
    ('title = "Soft focus"', 'title = "Soft\\nfocus"'): "title: ",
    ("authors = [", "authors = [] # ["): "authors: found .*at least one name",
    ("[facts]", "[facts"): "is not TOML .*line",
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), MISTAKES.items(), ids=lambda value: str(value)[:50])
def test_a_mistake_names_the_field_and_the_fix(edit, message):
    assert edit[0] in SOUND
    found = problems(SOUND.replace(*edit))
    assert any(re.search(message, line) for line in found), found


@pytest.mark.parametrize(
    "requirement",
    [
        "soft-focus==0.1.0",
        "soft_focus @ https://example.org/soft_focus-1-py3-none-any.whl#sha256=" + "a" * 64,
        "soft-focus @ git+https://example.org/soft.git@" + "0" * 40,
    ],
)
def test_a_pinned_requirement_is_taken(requirement):
    text = SOUND.replace('folder = "plugin"', f"requirement = {schema.toml_value(requirement)}")
    assert schema.parse(text.encode()).install.requirement == requirement


def test_every_mistake_of_a_file_is_told_at_once():
    assert len(problems("name = 3\ntitle = 3\n")) >= 10


def test_a_file_that_is_too_large_or_a_link_or_absent_is_refused(tmp_path):
    with pytest.raises(SubmissionError, match="more than 65536 bytes"):
        schema.parse(b"#" * 70_000)
    (tmp_path / "link.toml").symlink_to("/etc/passwd")
    with pytest.raises(SubmissionError, match="symbolic link"):
        schema.read(tmp_path / "link.toml")
    with pytest.raises(SubmissionError, match="cannot be read"):
        schema.read(tmp_path / "none.toml")


LINES = SOUND.encode().splitlines(keepends=True)
VALUES = (
    b"", b"[]", b"{}", b"1e999", b"nan", b"-1", b"true", b'"x"', b"[[[]]]", b"1979-05-27", b'"\\u0000"', b"'''",
)  # fmt: skip
Edit = Callable[[list[bytes]], None]


def _repeats(at: int, of: int) -> Edit:
    return lambda lines: lines.insert(at % (len(lines) + 1), LINES[of])


def _deletes(at: int) -> Edit:
    def edit(lines: list[bytes]) -> None:
        if len(lines) > 1:
            del lines[at % len(lines)]

    return edit


def _gives(at: int, value: bytes) -> Edit:
    def edit(lines: list[bytes]) -> None:
        lines[at % len(lines)] = lines[at % len(lines)].partition(b"=")[0] + b"= " + value + b"\n"

    return edit


def _spoils(at: int, place: int, byte: bytes) -> Edit:
    def edit(lines: list[bytes]) -> None:
        line = lines[at % len(lines)]
        where = place % len(line) if line else 0
        lines[at % len(lines)] = line[:where] + byte + line[where + 1 :]

    return edit


def _replaces(at: int, line: bytes) -> Edit:
    def edit(lines: list[bytes]) -> None:
        lines[at % len(lines)] = line

    return edit


POSITION = strategies.integers(0, 40)
EDITS = strategies.lists(
    strategies.one_of(
        strategies.builds(_repeats, POSITION, strategies.integers(0, len(LINES) - 1)),
        strategies.builds(_deletes, POSITION),
        strategies.builds(_gives, POSITION, strategies.sampled_from(VALUES)),
        strategies.builds(_gives, POSITION, strategies.text(max_size=20).map(str.encode)),
        strategies.builds(_spoils, POSITION, POSITION, strategies.binary(min_size=1, max_size=1)),
        strategies.builds(_replaces, POSITION, strategies.binary(max_size=12)),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow
def test_thousands_of_spoiled_files_give_an_error_or_a_submission_and_never_a_traceback(tmp_path):
    about_it = [rule for rule in rules.ALL if rule.number // 100 == 2]
    outcomes = {"read": 0, "refused": 0}

    @settings(max_examples=4_000, deadline=None, derandomize=True, database=None)
    @given(edits=EDITS)
    def spoiled(edits: list[Edit]) -> None:
        lines = list(LINES)
        for edit in edits:
            edit(lines)
        try:
            found = schema.parse(b"".join(lines))
            outcomes["read"] += 1
            assert schema.parse(schema.as_toml(found).encode()) == found
            case = Case(tmp_path / "soft_focus", {})
            case.__dict__["parsed"] = found  # as if it had been read
            assert not any("no rule foresaw" in one.found for rule in about_it for one in rule.findings(case))
        except SubmissionError as problem:
            outcomes["refused"] += 1
            assert problem.problems and all("\n" not in line for line in problem.problems)

    spoiled()
    assert sum(outcomes.values()) >= 3_500 and min(outcomes.values()) > 40, outcomes


# ---------------------------------------------------------------------------------------------- committed files


def test_the_committed_json_schema_is_the_models(command):
    status, out, _ = command("submission", "schema")
    assert status == 0
    assert json.loads(out)["title"] == "Submission"
    assert (CHECKOUT / "submissions" / "submission.schema.json").read_text() == out, (
        "run `purifybench submission schema > submissions/submission.schema.json`"
    )


@pytest.mark.parametrize("name", places.names(CHECKOUT / "submissions"))
def test_every_committed_submission_can_be_read(name):
    assert schema.read(CHECKOUT / "submissions" / name / places.FILE).name == name


# ---------------------------------------------------------------------------------------------- add


@pytest.fixture
def root(tmp_path):
    (tmp_path / "submissions").mkdir()
    return tmp_path / "submissions"


def test_a_folder_is_described_from_its_own_files_and_copied(root, tmp_path, command):
    package = scaffold.new("soft-focus", tmp_path)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"x")
    status, _, err = command("submission", "add", str(package), "--root", str(root), "--author", "Ada")
    assert (status, err) == (0, "")
    found = schema.read(root / "soft_focus" / places.FILE)
    assert (found.title, found.year, found.licence) == ("Soft focus", 2026, "MIT")
    assert found.authors == ("Ada",) and found.facts.differentiable and not found.facts.stochastic
    assert found.install.folder == "plugin"
    copied = {
        str(path.relative_to(root / "soft_focus" / "plugin"))
        for path in places.own_files(root / "soft_focus" / "plugin")
    }
    assert copied == {"pyproject.toml", "README.md", "soft_focus.py", "tests/test_contract.py"}
    status, _, err = command("submission", "add", str(package), "--root", str(root), "--author", "Ada")
    assert status == 2 and "exists already; edit it, or delete it first" in err


def test_an_installed_package_is_described_from_its_metadata(root, tmp_path, monkeypatch):
    info = tmp_path / "site" / "soft_focus-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: soft-focus\nVersion: 1.2\nAuthor: Ada\nLicense: MIT\n")
    (info / "entry_points.txt").write_text("[purifybench.defenses]\nsoft_focus = soft_focus:SoftFocus\n")
    shutil.copy(scaffold.new("soft-focus", tmp_path) / "soft_focus.py", tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    path = add.add("soft-focus==1.2", root)
    assert tomllib.loads(path.read_text())["install"] == {"requirement": "soft-focus==1.2"}
    shutil.rmtree(path.parent)
    with pytest.raises(BenchError, match=r"soft-focus 1.2 is installed, but soft-focus==1.3 is to be added"):
        add.add("soft-focus==1.3", root)
    with pytest.raises(BenchError, match="sure-not-there is not installed"):
        add.add("sure-not-there==1.3", root)


def test_what_a_package_does_not_say_is_asked_for(root, tmp_path):
    package = scaffold.new("soft-focus", tmp_path)
    with pytest.raises(BenchError, match="add --author NAME"):
        add.add(str(package), root)
    with pytest.raises(BenchError, match="neither a folder nor pinned"):
        add.add("other-thing", root)
    module = package / "soft_focus.py"
    module.write_text(module.read_text().replace("title, paper, year =", "title, paper, yeer ="))
    with pytest.raises(BenchError, match="class SoftFocus does not set year; write"):
        add.add(str(package), root, authors=["Ada"])
    module.write_text(module.read_text().replace("class SoftFocus", "class Other"))
    with pytest.raises(BenchError, match="defines no class SoftFocus"):
        add.add(str(package), root, authors=["Ada"])
    module.write_text("def broken(:")
    with pytest.raises(BenchError, match="cannot be read"):
        add.add(str(package), root, authors=["Ada"])
    (package / "pyproject.toml").write_text('[project]\nname = "x"\n')
    with pytest.raises(BenchError, match="registers no defense under"):
        add.add(str(package), root, authors=["Ada"])
    assert list(root.iterdir()) == []


def test_a_package_of_several_defenses_wants_a_choice(root, tmp_path):
    package = scaffold.new("soft-focus", tmp_path)
    described = package / "pyproject.toml"
    described.write_text(
        described.read_text().replace("soft_focus = ", 'other = "soft_focus:SoftFocus"\nsoft_focus = ')
    )
    with pytest.raises(BenchError, match="registers other, soft_focus; choose one with --name"):
        add.add(str(package), root, authors=["Ada"])
    assert add.add(str(package), root, authors=["Ada"], name="soft-focus").parent.name == "soft_focus"
    with pytest.raises(BenchError, match="registers other, soft_focus .*expected 'third'"):
        add.add(str(package), root, authors=["Ada"], name="third")


def test_the_code_of_a_package_is_not_run(root, tmp_path):
    package = scaffold.new("soft-focus", tmp_path)
    module = package / "soft_focus.py"
    module.write_text(module.read_text() + "\nraise AssertionError('imported')\n")
    assert add.add(str(package), root, authors=["Ada"]).exists()


def test_links_in_a_folder_are_refused(root, tmp_path):
    package = scaffold.new("soft-focus", tmp_path)
    (package / "data").symlink_to("/etc")
    with pytest.raises(BenchError, match="is a symbolic link"):
        add.add(str(package), root, authors=["Ada"])
