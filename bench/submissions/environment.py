"""An environment for a submission: a virtual one over the host's, quick to make and small, or a full one of its own.

The overlay sees the host's packages through a .pth file. What the submission installs goes into the overlay alone. A
fresh environment sees nothing of the host: PurifyBench as it runs here is installed there too, with all that it needs.
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
import zipfile
from base64 import urlsafe_b64encode
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from bench.errors import BenchError
from bench.places import home
from bench.submissions import places
from bench.submissions.schema import Submission

READY = "ready.txt"
INSTALL_SECONDS = 1800
PACKAGES = ("bench", "defenses", "leaderboard")


def prepare(submission: Submission, folder: Path, *, fresh: bool = False) -> Path:
    """The interpreter of the submission's environment, made where it is not there yet; the host's own for a defense
    that comes with PurifyBench. `fresh` asks for a full environment instead of one over the host's.

    Raises BenchError where the package does not install, with what pip said last, and for a fresh environment of a
    defense that comes with PurifyBench.
    """
    if submission.install.included:
        if fresh:
            raise BenchError(
                f"{submission.name} comes with PurifyBench: no environment is made for it; leave --fresh out"
            )
        return Path(sys.executable)
    place = home() / "environments" / f"{submission.name}-{_digest(submission, folder, fresh)[:16]}"
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not (place / READY).exists():
            shutil.rmtree(place, ignore_errors=True)
            if fresh:
                venv.create(place, with_pip=False, symlinks=os.name != "nt")
            else:
                overlay(place)
            _install(submission, folder, python, place, fresh)
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
    found += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]  # of the system, too
    return list(dict.fromkeys(found))


def _digest(submission: Submission, folder: Path, fresh: bool) -> str:
    """A hash of all that is installed, and of where the host is; for a fresh environment, of the harness too."""
    host = [] if fresh else host_folders()
    state = hashlib.sha256(repr((submission.install, sys.executable, sys.version, host, fresh)).encode())
    own = folder / submission.install.folder if submission.install.folder else None
    for top in [*([own] if own else []), *(_code() if fresh else [])]:
        for path in places.own_files(top):
            state.update(str(path.relative_to(top.parent)).encode() + b"\0")
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def _code() -> list[Path]:
    """The folders of the packages that PurifyBench consists of, as they are imported here."""
    specs = [importlib.util.find_spec(package) for package in PACKAGES]
    return [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]


def _install(submission: Submission, folder: Path, python: Path, place: Path, fresh: bool) -> None:
    """pip, run by the host for the environment. A folder is copied first: building writes beside the source."""
    sources = [submission.install.requirement or ""]
    options = ["--no-warn-script-location"]
    if submission.install.requirement and "git+" not in sources[0]:
        options += ["--only-binary", ":all:"]  # a source distribution would run code of its own to build
    if submission.install.folder:
        copy = place / "source"
        shutil.copytree(folder / submission.install.folder, copy, ignore=shutil.ignore_patterns(*places.IGNORED))
        sources = [str(copy)]
        if fresh:  # which has no backend to build with
            sources = [str(_built(copy, place / "wheels", submission.name))]
        elif _has_backend(copy):
            options += ["--no-build-isolation"]
    if fresh:
        sources = [str(harness(place / "wheels")), *sources]
    _pip(submission.name, ["--python", str(python), "install", *options, *sources])


def harness(into: Path) -> Path:
    """A wheel of PurifyBench as it runs here, written to the folder `into`: built from its checkout, or put together
    again from the files of an installed one. Raises BenchError where neither is there."""
    top = _code()[0].parent
    if (top / "pyproject.toml").is_file():
        return _built(top, into, "PurifyBench")
    try:
        found = metadata.distribution("purifybench")
    except metadata.PackageNotFoundError as problem:
        raise BenchError(f"PurifyBench in {top} is neither installed nor a checkout; pip install it") from problem
    into.mkdir(parents=True, exist_ok=True)
    wheel, rows = into / f"purifybench-{found.version}-py3-none-any.whl", []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in found.files or ():
            local = Path(str(found.locate_file(path)))
            info = path.parts[0].endswith(".dist-info")
            left = path.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json") if info else False
            if (info or path.parts[0] in PACKAGES) and not left and path.suffix != ".pyc" and local.is_file():
                content = local.read_bytes()
                digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                archive.writestr(str(path), content)
                rows.append(f"{path},sha256={digest},{len(content)}\n")
        record = f"purifybench-{found.version}.dist-info/RECORD"
        archive.writestr(record, "".join([*rows, f"{record},,\n"]))
    return wheel


def _built(source: Path, into: Path, name: str) -> Path:
    """The wheel of a package, built by the host."""
    own = into / source.name
    backend = ["--no-build-isolation"] if _has_backend(source) else []
    _pip(name, ["wheel", "--no-deps", "--wheel-dir", str(own), *backend, str(source)])
    return next(own.glob("*.whl"))


def _pip(name: str, words: list[str]) -> None:
    """Run the host's pip. Raises BenchError, which says that `name` does not install, with what pip said last."""
    quiet = ["--disable-pip-version-check", "--no-input", "--quiet"]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PURIFYBENCH_DATA")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *quiet, *words], env=kept, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False, timeout=INSTALL_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        raise BenchError(f"{name} does not install within {INSTALL_SECONDS} s; make it smaller") from problem
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "rror" in line] or lines or ["pip said nothing"]
        raise BenchError(f"{name} does not install: {errors[-1][:500]}; try pip install {words[-1]}")


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
