"""Figures that an earlier build drew, by what they show: an equal figure is not drawn again.

A drawing is found by a hash of all that goes into it (the figure's data, the code that draws, matplotlib's version),
and the file that keeps drawings begins with a hash of itself: what does not fit is drawn anew, so that no torn file and
no change of the code can show an old number. The same figures give the same file, drawn or found.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import metadata
from pathlib import Path

from leaderboard.figures import Chart, Map

FILE = ".purifybench-drawings"  # in the folder of a site
_CODE = ("figures.py", "drawing.py")


class Drawings:
    """The drawings of one build; those that `kept` holds from an earlier one are taken from there."""

    def __init__(self, kept: bytes = b"") -> None:
        self._old = _unpacked(kept)
        self._used: dict[str, str] = {}

    def svg(self, what: Chart | Map) -> str:
        """The `<svg>` element of a figure."""
        key = hashlib.sha256(f"{_code()} {what!r}".encode()).hexdigest()
        if key not in self._used:
            self._used[key] = self._old.get(key) or _draw(what)
        return self._used[key]

    def packed(self) -> bytes:
        """All drawings that were asked for, as a file for the next build."""
        content = zlib.compress(json.dumps(self._used, sort_keys=True).encode(), level=6)
        return hashlib.sha256(content).digest() + content


def kept_in(folder: Path) -> bytes:
    """What an earlier build left in the folder of a site; empty where there is nothing to be read."""
    try:
        return (folder / FILE).read_bytes()
    except OSError:
        return b""


_current: ContextVar[Drawings | None] = ContextVar("drawings", default=None)


@contextmanager
def drawing_into(drawings: Drawings) -> Iterator[None]:
    """Inside, `svg` takes its drawings from there."""
    token = _current.set(drawings)
    try:
        yield
    finally:
        _current.reset(token)


def svg(what: Chart | Map) -> str:
    """The `<svg>` element of a figure, from the drawings of this build where one is under way."""
    return (_current.get() or Drawings()).svg(what)


def _draw(what: Chart | Map) -> str:
    from leaderboard import drawing  # waits for matplotlib

    return drawing.draw(what)


def _unpacked(file: bytes) -> Mapping[str, str]:
    digest, content = file[:32], file[32:]
    if hashlib.sha256(content).digest() != digest:
        return {}
    found: dict[str, str] = json.loads(zlib.decompress(content))
    return found


@cache
def _code() -> str:
    """What else decides a drawing: the files that draw it, and the library."""
    files = b"".join((Path(__file__).parent / name).read_bytes() for name in _CODE)
    return hashlib.sha256(files + metadata.version("matplotlib").encode()).hexdigest()
