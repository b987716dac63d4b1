"""Files are whole or absent, and a full disk or a locked folder is the user's to mend: one line, no traceback."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from bench import places
from bench.errors import BenchError


def test_home_is_the_folder_that_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / "elsewhere"))
    assert places.home() == tmp_path / "elsewhere"


def test_home_understands_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PURIFYBENCH_HOME", "~/bench")
    assert places.home() == tmp_path / "bench"


def test_home_is_below_the_users_cache_folder_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("PURIFYBENCH_HOME")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    assert places.home() == tmp_path / "cache" / "purifybench"


def test_a_write_makes_missing_folders_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    places.write_atomically(path, lambda file: file.write(b"old"))
    places.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_the_file_is_readable_by_others(tmp_path):
    path = tmp_path / "file"
    places.write_atomically(path, lambda file: file.write(b"shared"))
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_writer_that_raises_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half(file):
        file.write(b"ne")
        raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        places.write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["writing", "flushing"])
def test_a_full_disk_is_one_line_that_names_the_file_and_the_way_out(moment, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    if moment == "flushing":
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match=r"No space left.*PURIFYBENCH_HOME.*--records") as caught:
        places.write_atomically(path, full if moment == "writing" else lambda file: file.write(b"new"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_folder_that_may_not_be_written_is_one_line_too(number, tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(BenchError, match=os.strerror(number)) as caught:
        places.write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize("path", ["taken/file", "taken/folder/file", "folder"])
def test_a_file_where_a_folder_is_needed_and_the_reverse_are_one_line_too(path, tmp_path):
    (tmp_path / "taken").write_bytes(b"a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BenchError, match="cannot write"):
        places.write_atomically(tmp_path / path, lambda file: file.write(b"new"))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", tmp_path / "taken"]


def test_other_errors_of_a_writer_pass_unchanged(tmp_path):
    def not_found(file):
        Path(tmp_path / "absent").read_bytes()

    with pytest.raises(FileNotFoundError):
        places.write_atomically(tmp_path / "file", not_found)
