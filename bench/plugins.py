"""Finds installed defenses: the one file that knows entry points. Names cost no import; a class is imported on use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError, unknown

if TYPE_CHECKING:
    from bench.defense import Defense

GROUP = "purifybench.defenses"
SLUG = re.compile(r"[a-z][a-z0-9_]{1,39}")


def installed() -> dict[str, EntryPoint]:
    """The registered defenses by name, sorted, not imported. Raises BenchError if two packages claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        twin = found.get(point.name)
        if twin is not None and twin.value != point.value:
            raise BenchError(
                f"two installed packages register the defense {point.name!r}: {_owner(twin)} ({twin.value}) and "
                f"{_owner(point)} ({point.value}); uninstall one or rename its entry point"
            )
        found[point.name] = point
    return found


def slug(name: str) -> str:
    """The canonical form of a name as typed: `-` reads as `_`."""
    return name.replace("-", "_")


def load(name: str) -> type[Defense]:
    """The class of a registered defense.

    Raises BenchError: an unknown name (with the nearest ones), a name that is no slug, an import that fails (with its
    reason), something that is not a Defense.
    """
    known = installed()
    point = known.get(slug(name)) or known.get(name)  # the latter to say that it is no slug
    if point is None:
        raise unknown("defense", name, known, see="purifybench list defenses")
    if not SLUG.fullmatch(point.name):
        raise BenchError(f"{_owner(point)}: entry point {point.name!r} is no slug; names match [a-z][a-z0-9_]{{1,39}}")
    try:
        with settings_kept():
            loaded = point.load()
    except (Exception, SystemExit) as problem:
        raise BenchError(
            f"the defense {point.name!r} of {_owner(point)} does not import: {type(problem).__name__}: {problem}"
        ) from problem
    from bench.defense import Defense

    if not (isinstance(loaded, type) and issubclass(loaded, Defense)):
        raise BenchError(
            f"{point.value} of {_owner(point)} is {loaded!r}, expected a subclass of bench.defense.Defense"
        )
    return loaded


@contextmanager
def settings_kept() -> Iterator[None]:
    """Code of a plugin that runs inside changes neither the working folder nor torch's default type, grad mode or
    threads."""
    import torch

    folder, dtype, threads = Path.cwd(), torch.get_default_dtype(), torch.get_num_threads()
    grad = torch.is_grad_enabled()
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def load_all() -> tuple[dict[str, type[Defense]], dict[str, str]]:
    """All defenses that import, and for the others the reason; one broken plugin does not stop the rest."""
    classes: dict[str, type[Defense]] = {}
    broken: dict[str, str] = {}
    for name in installed():
        try:
            classes[name] = load(name)
        except BenchError as problem:
            broken[name] = str(problem)
    return classes, broken


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"
