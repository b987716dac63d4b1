"""Where a submission and its parts lie, and which files of a folder are its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench import plugins
from bench.errors import BenchError, unknown

ROOT = Path("submissions")
FILE = "submission.toml"
PLUGIN = "plugin"
BREAKS = "breaks"  # the folder beside the submissions that holds what others broke of them: bench.breaks
MACHINES = "machines"  # and the one that holds runs of the timing track, each of one machine: bench.timing_record
RESERVED = {BREAKS: "breaks", MACHINES: "times of machines"}
GENERATED = ("__pycache__", ".egg-info", ".pyc", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".git", ".lock")
IGNORED = tuple(f"*{ending}" for ending in GENERATED)


def names(root: Path = ROOT) -> list[str]:
    """The folders of submissions under `root`, in order: those with a submission.toml or records."""
    found = (path for path in root.glob("*") if path.name not in RESERVED)
    return sorted(path.name for path in found if (path / FILE).exists() or (path / "records").is_dir())


def folder(name: str, root: Path = ROOT) -> Path:
    """The folder of a submission. Raises BenchError for a name that is no slug or has no folder."""
    found = plugins.slug(name)
    if not plugins.SLUG.fullmatch(found) or found not in names(root):
        raise unknown("submission", name, names(root), see=f"ls {root}")
    return root / found


def own_files(folder: Path) -> Iterator[Path]:
    """The files under a folder, in order, without what tools leave behind; symbolic links are named, not followed."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.endswith(GENERATED):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from own_files(path)
        else:
            yield path


def root_of(path: Path) -> Path:
    """`path` if it is a folder of submissions. Raises BenchError."""
    if not path.is_dir():
        raise BenchError(
            f"{path} is no folder; run this in a clone of PurifyBench, or name its submissions with --root"
        )
    return path
