"""The user that root's child runs as: which folders it must be shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.isolation import stranger


@pytest.fixture
def top(tmp_path):
    """A folder that everybody may enter up to here, as far as these tests are concerned."""
    if any(not stranger._open(one, stranger.OTHERS_ENTER) for one in tmp_path.parents):
        for one in (tmp_path, *tmp_path.parents):
            if one.stat().st_uid == os.geteuid() and not stranger._open(one, stranger.OTHERS_ENTER):
                one.chmod(0o711)
    tmp_path.chmod(0o755)
    return tmp_path


def folder(path: Path, mode: int = 0o755) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path


def test_only_what_lies_in_a_private_folder_is_shown_and_under_the_outermost(top):
    public = folder(top / "public")
    private = folder(top / "private", 0o700)
    tree = folder(private / "inner" / "tree")
    folder(private / "inner", 0o700)
    assert stranger.shown([public, tree]) == [(private, tree)]
    assert stranger.shown([tree, folder(tree / "packages")]) == [(private, tree)], "what is in it comes with it"


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o754])
def test_a_folder_that_is_private_itself_cannot_be_shown(top, mode):
    tree = folder(top / "tree", mode)
    assert stranger.hindrance([tree]) == f"{tree} is private"


def test_a_private_folder_inside_one_that_is_shown_cannot_be_passed(top):
    outer = folder(top / "private" / "checkout")
    tree = folder(outer / "inner" / "tree")
    folder(outer / "inner", 0o700)
    folder(top / "private", 0o700)
    assert stranger.hindrance([outer]) == stranger.hindrance([tree]) == ""
    assert stranger.hindrance([outer, tree]) == f"{outer / 'inner'} is private"


def test_a_folder_to_work_in_must_be_reachable(top):
    private = folder(top / "private", 0o700)
    assert stranger.hindrance([], top / "work") == ""
    assert stranger.hindrance([], private / "work") == f"{private} is private"


def test_a_name_that_would_break_a_line_is_refused(top):
    assert "strange name" in stranger.hindrance([folder(top / "a\nb")])


def test_an_interpreter_is_shown_its_environment_what_links_lead_to_and_what_pth_files_name(top):
    real = folder(top / "pythons" / "3.12" / "bin") / "python3.12"
    real.write_text("")
    (top / "latest").symlink_to(top / "pythons" / "3.12")
    place, host = folder(top / "environment"), folder(top / "host")
    python = folder(place / "bin") / "python"
    python.symlink_to(top / "latest" / "bin" / "python3.12")
    packages = folder(place / "lib" / "python3.12" / "site-packages")
    (packages / "host.pth").write_text(f"# a comment\nimport os; os.abort()\n{host}\n{top / 'gone'}\n")
    found = stranger.imported_from(python, [top])
    assert found == [top, place, top / "latest", top / "pythons" / "3.12", host]


def test_users_who_come_and_go_are_nobody_s():
    options = dict(word[2:].split("=") for word in stranger.words() if "=" in word)
    assert options["reuid"] == options["regid"]
    assert 61184 <= int(options["reuid"]) <= 65519
