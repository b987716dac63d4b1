"""Where things live on disk, and how a file is written so that it is either whole or absent."""

from __future__ import annotations

import errno
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

from bench.errors import BenchError

TORN_NPZ = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what reading one may raise


def home() -> Path:
    """The folder for weights and attacked images: $PURIFYBENCH_HOME, else the user's cache folder."""
    named = os.environ.get("PURIFYBENCH_HOME")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("purifybench"))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk, then rename it to `path`.

    Raises BenchError when the disk is full or the folder may not be written; the old file is then untouched.
    """
    temporary: str | None = None
    try:
        with one_line(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp's 0600 would hide shared records from others
            os.replace(temporary, path)  # noqa: PTH105 - the atomic rename
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Inside, what keeps us from writing `path` (a full disk, a locked folder, a file in the way) raises BenchError."""
    try:
        yield
    except OSError as problem:
        if problem.errno in _MENDABLE:
            raise BenchError(
                f"cannot write {path}: {problem.strerror}; what was finished before is kept. Free space or choose "
                "another folder (PURIFYBENCH_HOME for weights and images, --records for results), then run again"
            ) from problem
        raise


_MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
}  # fmt: skip
