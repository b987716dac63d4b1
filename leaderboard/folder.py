"""The folder that a site is written to: ours or empty; every file atomic, none stale, nothing foreign touched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.errors import BenchError
from bench.places import write_atomically

MARKER = ".purifybench-site.json"


def publish(files: Mapping[str, bytes], out: Path) -> None:
    """Make `out` hold exactly `files` (relative path to content), plus a marker that lists them.

    Raises BenchError if `out` is a file, or a folder with content that an earlier build did not write.
    """
    old = _earlier(out)
    _write_marker(out, old | set(files))  # before the files: an interrupted build can still be cleaned up
    for name in sorted(files):
        path = out / name
        if not path.is_file() or path.read_bytes() != files[name]:
            write_atomically(path, lambda file, content=files[name]: file.write(content))  # type: ignore[misc]
    for name in sorted(old - set(files)):
        _remove(out, name)
    _write_marker(out, files)


def _earlier(out: Path) -> set[str]:
    """The files that an earlier build wrote into `out`."""
    if out.exists() and not out.is_dir():
        raise BenchError(f"{out} is a file, expected a folder for the site; choose another with --out")
    if not out.exists() or not any(out.iterdir()):
        return set()
    try:
        return {str(name) for name in json.loads((out / MARKER).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise BenchError(
            f"{out} is not empty and was not made by PurifyBench (no sound {MARKER} in it), so nothing was written; "
            "choose an empty folder with --out"
        ) from problem


def _remove(out: Path, name: str) -> None:
    path = out / name
    if not path.resolve().is_relative_to(out.resolve()):
        raise BenchError(f"{out / MARKER} lists {name!r}, which lies outside the site; delete the marker by hand")
    path.unlink(missing_ok=True)
    for folder in list(path.parents)[: len(Path(name).parts) - 1]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_marker(out: Path, names: Iterable[str]) -> None:
    text = json.dumps({"about": "files of a site built by purifybench", "files": sorted(names)}, indent=1) + "\n"
    write_atomically(out / MARKER, lambda file: file.write(text.encode()))
