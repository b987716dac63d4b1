"""An environment for a submission: a virtual one over the host's, quick to make and small.

The overlay sees the host's packages through a .pth file. What the submission installs goes into the overlay alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from filelock import FileLock

from bench.errors import BenchError
from bench.places import home
from bench.submissions import places
from bench.submissions.schema import Submission

READY = "ready.txt"
INSTALL_SECONDS = 1800


def prepare(submission: Submission, folder: Path) -> Path:
    """The interpreter of the submission's environment, made where it is not there yet; the host's own for a defense
    that comes with PurifyBench.

    Raises BenchError where the package does not install, with what pip said last.
    """
    if submission.install.included:
        return Path(sys.executable)
    place = home() / "environments" / f"{submission.name}-{_digest(submission, folder)[:16]}"
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not (place / READY).exists():
            shutil.rmtree(place, ignore_errors=True)
            overlay(place)
            _install(submission, folder, python, place)
            (place / READY).write_text("made by purifybench submission run\n")
    return python


def overlay(place: Path) -> None:
    """A virtual environment at `place` without packages of its own that sees those of this interpreter."""
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else sysconfig.get_default_scheme()
    packages = Path(sysconfig.get_path("purelib", scheme, {"base": str(place), "platbase": str(place)}))
    packages.mkdir(parents=True, exist_ok=True)
    (packages / "host.pth").write_text("\n".join(host_folders()) + "\n")


def host_folders() -> list[str]:
    """The folders that this interpreter finds packages in, and the one that PurifyBench is imported from."""
    spec = importlib.util.find_spec("bench")
    assert spec is not None and spec.origin is not None
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(spec.origin).parent.parent)]
    return list(dict.fromkeys(found))


def _digest(submission: Submission, folder: Path) -> str:
    """A hash of all that is installed, and of where the host is."""
    state = hashlib.sha256(repr((submission.install, sys.executable, sys.version, host_folders())).encode())
    for path in places.own_files(folder / submission.install.folder) if submission.install.folder else ():
        state.update(str(path.relative_to(folder)).encode() + b"\0")
        state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def _install(submission: Submission, folder: Path, python: Path, place: Path) -> None:
    """pip, run by the host for the overlay. A folder is copied first: building writes beside the source."""
    source = submission.install.requirement or ""
    options = ["--disable-pip-version-check", "--no-input", "--no-warn-script-location", "--quiet"]
    if submission.install.requirement and "git+" not in source:
        options += ["--only-binary", ":all:"]  # a source distribution would run code of its own to build
    if submission.install.folder:
        copy = place / "source"
        shutil.copytree(folder / submission.install.folder, copy, ignore=shutil.ignore_patterns(*places.IGNORED))
        source = str(copy)
        options += ["--no-build-isolation"] if _has_backend(copy) else []
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, source]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PURIFYBENCH_DATA")}
    try:
        done = subprocess.run(
            pip, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=INSTALL_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        raise BenchError(f"{submission.name} does not install within {INSTALL_SECONDS} s; make it smaller") from problem
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "rror" in line] or lines or ["pip said nothing"]
        raise BenchError(f"{submission.name} does not install: {errors[-1][:500]}; try pip install {source}")


def _has_backend(source: Path) -> bool:
    """Whether the host has what builds the package, so that nothing need be downloaded."""
    import tomllib

    try:
        backend = tomllib.loads((source / "pyproject.toml").read_text())["build-system"]["build-backend"]
        return importlib.util.find_spec(str(backend).partition(".")[0]) is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def entry_point(python: Path, submission: Submission, folder: Path) -> str:
    """The "module:Class" that the environment registers under the submission's name, read from metadata without
    importing it. Raises BenchError where there is none."""
    script = (
        "import sys\nfrom importlib.metadata import entry_points\n"
        "points = [p.value for p in entry_points(group='purifybench.defenses') if p.name == sys.argv[1]]\n"
        "print(points[0] if points else '')"
    )
    done = subprocess.run(
        [str(python), "-I", "-c", script, submission.name], capture_output=True, text=True, timeout=120, check=False
    )
    point = done.stdout.strip()
    if done.returncode or not point:
        raise BenchError(
            f"{submission.name} is installed but registers no defense of that name; see its pyproject.toml in {folder}"
        )
    return point
