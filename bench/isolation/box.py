"""The box around a child process: what it may use, how it is started in it, and how all of it is ended.

On Linux with util-linux's `unshare` the child has no network, sees no other process, reads the file system without
writing to it, and does not find the data sets; where the parent is root it is another user. Where that is not allowed,
what remains are limits and a watchdog. `describe` says which it is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.isolation import stranger


@dataclass(frozen=True)
class Limits:
    """What a submitted defense may use."""

    memory_mb: float = 6000  # resident, of the child and all that it starts
    threads: int = 256  # of all its processes together; the kernel stops a user of its own at twice that
    file_mb: int = 64  # the largest file it may write
    call_seconds: float = 300  # for one answer: a batch of images, forward or backward
    cell_seconds: float = 4 * 3600  # for all answers of one cell together
    start_seconds: float = 300  # to import the plugin
    fit_seconds: float = 12 * 3600  # for one training
    failures: int = 4  # so many ends of the child; then it is not started again


FULL = ("--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc")
LESS = ("--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")
_KEPT = (
    "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUBLAS_WORKSPACE_CONFIG",  # the same GPU as here, in the same mode
)  # fmt: skip

# Inside new namespaces, before any submitted code: everything read-only but the child's own folder, the data hidden.
_INSIDE = (
    """
set -u
folder=$1; hidden=$2; shown=$3; shift 3
mount --make-rprivate / || exit 97
while read -r _ where _; do mount -o remount,bind,ro "$where" 2>/dev/null; done < /proc/self/mounts
printf '%s\\n' "$hidden" | while IFS= read -r path; do
  if [ -d "$path" ]; then mount -t tmpfs -o ro,size=4k tmpfs "$path" || exit 97
  elif [ -f "$path" ]; then mount --bind /dev/null "$path" || exit 97; fi
done || exit 97
mount -t tmpfs -o size=256m,mode=1777 tmpfs "$folder" || exit 97
"""
    + stranger.SHOW
    + """
cd "$folder" && exec "$@"
"""
)


@cache
def namespaces() -> tuple[str, ...]:
    """The words that start a program in namespaces of its own, the strongest that this system allows; () for none."""
    unshare = shutil.which("unshare")
    if sys.platform != "linux" or unshare is None:
        return ()
    users = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    for options in (FULL, LESS):
        words = (unshare, *users, *options)
        test = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt" if options is FULL else "true"
        if _works([*words, "sh", "-c", test]):
            return words
    return ()


@cache
def _drops() -> tuple[str, ...]:
    """The words that take every capability from a program before it starts."""
    setpriv = shutil.which("setpriv")
    words = (setpriv or "", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    return words if setpriv and namespaces() and _works([*namespaces(), *words, "true"]) else ()


@cache
def _may_be_a_stranger() -> bool:
    """Whether a program of root's can be made another user here."""
    if os.geteuid() != 0 or "--mount" not in namespaces() or not _drops():
        return False
    return _works([*namespaces(), *_drops(), *stranger.words(), "true"])


def hindrance(trees: Sequence[Path], folder: Path | None = None) -> str:
    """Why a child that imports from `trees` and works in `folder` (one for temporary files unless told) keeps root's
    number; "" where it gets one of its own, or never had it."""
    if os.geteuid() != 0:
        return ""
    if not _may_be_a_stranger():
        return "the system does not let it go"
    return stranger.hindrance(trees, folder or Path(tempfile.gettempdir()) / "child")


def _works(words: Sequence[str]) -> bool:
    try:
        return subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def command(words: Sequence[str], folder: Path, hidden: Sequence[Path], trees: Sequence[Path] = ()) -> list[str]:
    """`words` as they are started in the box: `folder` is the only place to write, `hidden` files are not seen, and of
    what is root's alone only the folders `trees` are, from which the program imports."""
    around = namespaces()
    other = os.geteuid() == 0 and not hindrance(trees, folder)
    inside = [*_drops(), *(stranger.words() if other else ()), *words]
    if "--mount" in around:
        there = "\n".join(str(path) for path in hidden if path.exists())
        shown = "\n".join(f"{private}\t{tree}" for private, tree in stranger.shown(trees)) if other else ""
        return [*around, "sh", "-c", _INSIDE, "sh", str(folder), there, shown, *inside]
    return [*around, *inside]


def describe(trees: Sequence[Path] = ()) -> str:
    """What keeps a child that imports from `trees` in its place on this system, in one line."""
    around = namespaces()
    parts = ["no network"] if "--net" in around else ["network NOT cut off"]
    parts += ["no sight of other processes"] if "--pid" in around else ["other processes visible"]
    read_only = "--mount" in around
    parts += ["files read-only, data hidden"] if read_only else ["files NOT read-only, data NOT hidden"]
    parts += ["no capabilities"] if _drops() else []
    if os.geteuid() == 0:
        why = hindrance(trees)
        parts += [f"root's user number NOT taken away ({why})" if why else "a user of its own"]
    parts += [] if Path("/proc/self/stat").exists() else ["memory NOT watched"]
    return ", ".join(parts)


def environment(folder: Path, threads: int) -> dict[str, str]:
    """The child's environment: nothing of the parent's but the way to find programs and GPUs, and a home of its own."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    own = {name: str(folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "PURIFYBENCH_HOME", "TORCH_HOME")}
    return {
        **kept, **own, "USER": "child", "LOGNAME": "child",
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- watching and ending


@dataclass(frozen=True)
class Usage:
    """What a process and all that it started use now."""

    processes: tuple[int, ...]
    threads: int
    memory_mb: float


def usage(root: int) -> Usage:
    """What the process `root` and its descendants use, from /proc; nothing where there is none."""
    table = dict(_table())
    mine, found = {root}, True
    while found:
        found = False
        for pid, (parent, _, _) in table.items():
            if parent in mine and pid not in mine:
                mine.add(pid)
                found = True
    alive = [table[pid] for pid in mine if pid in table]
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    return Usage(tuple(sorted(mine & table.keys())), sum(n for _, n, _ in alive), sum(m for _, _, m in alive) * page)


def _table() -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Every process: its parent, threads and resident pages."""
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - many times a second
    except OSError:
        return
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                fields = file.read().rpartition(b")")[2].split()
            yield int(name), (int(fields[1]), int(fields[17]), int(fields[21]))
        except (OSError, ValueError, IndexError):
            continue  # it ended


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, and wait."""
    for _ in range(20):
        alive = usage(process.pid).processes
        for pid in reversed(alive):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            process.kill()
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
        break
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
