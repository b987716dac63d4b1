"""The user that a child runs as where its parent is root, and the folders that this user has to be shown.

A child with root's number reads what is root's alone, and the kernel's limit on processes does not hold for it. So it
gets the number of a user that does not exist. Such a stranger does not come past a private folder, /root for one,
though its interpreter may lie there: inside the child's own mount namespace the private folder is covered by an empty
one, in which only the folders that it imports from appear.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

FIRST, LAST = 61184, 65519  # the numbers that systemd keeps for users who come and go
OTHERS_ENTER, OTHERS_READ = 0o001, 0o005

# In a shell, inside new namespaces, with lines of "private folder, tab, folder to show in it" in $shown.
SHOW = """
each() { printf '%s\\n' "$shown" | { n=0; while IFS='\t' read -r private tree; do
  [ -z "$tree" ] || { n=$((n + 1)); at=$folder/.shown/$n; "$1" || exit 97; }; done; }; }
keep() { mkdir -p "$at" && mount --rbind "$tree" "$at"; }
cover() { [ -e "$private/.covered" ] || { mount -t tmpfs -o size=1m,mode=755 tmpfs "$private" && : > "$private/.covered"
} }
show() { mkdir -p "$tree" && mount --rbind "$at" "$tree" && umount -l "$at" && rmdir "$at"; }
close() { rm -f "$private/.covered"; mount -o remount,bind,ro "$private"; }
each keep && each cover && each show && each close || exit 97
rmdir "$folder/.shown" 2>/dev/null
"""


def words() -> tuple[str, ...]:
    """How setpriv is told to make a program a user that does not exist; most likely another one for each child."""
    number = FIRST + secrets.randbelow(LAST - FIRST + 1)
    return ("--clear-groups", f"--regid={number}", f"--reuid={number}")


def imported_from(python: Path, path: Sequence[Path]) -> list[Path]:
    """The folders that `python` needs in order to run and to import, with `path` as its PYTHONPATH. Nothing is run."""
    found = [*path, *_homes(python)]
    for packages in python.parent.parent.glob("lib/python*/site-packages"):
        for file in sorted(packages.glob("*.pth")):
            lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
            found += [packages / line for line in lines if line and not line.startswith(("#", "import"))]
    found += [Path(one) for one in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if one]
    named = (Path(os.path.abspath(one)) for one in found)  # noqa: PTH100 - links are kept: both names are used
    return [one for one in dict.fromkeys(way for one in named for way in (one, one.resolve())) if one.is_dir()]


def _homes(python: Path) -> Iterator[Path]:
    """The environment of an interpreter, and those that its links lead to."""
    for _ in range(40):  # as many as the kernel follows
        yield python.parent.parent
        if not python.is_symlink():
            return
        python = python.parent / python.readlink()


def shown(trees: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Which of the folders `trees` a stranger cannot reach: pairs of the outermost private folder and the tree."""
    pairs: list[tuple[Path, Path]] = []
    for tree in sorted(set(trees)):
        private = next((one for one in reversed(tree.parents) if not _open(one, OTHERS_ENTER)), None)
        if private is not None and not any(tree.is_relative_to(other) for _, other in pairs):
            pairs.append((private, tree))
    return pairs


def hindrance(trees: Sequence[Path], folder: Path | None = None) -> str:
    """Why a stranger cannot be shown these folders, or work in `folder`; "" if it can."""
    for tree in trees:
        if not _open(tree, OTHERS_READ):
            return f"{tree} is private"
        if "\n" in str(tree) or "\t" in str(tree):
            return f"{str(tree)!r} has a strange name"
        for one in tree.parents:
            if not _open(one, OTHERS_ENTER) and any(one.is_relative_to(other) for other in trees):
                return f"{one} is private"  # inside a folder that is shown as it is
    if folder is not None and any(not _open(one, OTHERS_ENTER) for one in folder.parents):
        return f"{folder.parent} is private"
    return ""


def _open(folder: Path, bits: int) -> bool:
    return folder.stat().st_mode & bits == bits
