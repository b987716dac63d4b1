"""What `purifybench doctor` looks at: versions, device, heap, data, plugins, packages that shadow one another."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench import places
from bench.errors import BenchError

EXTRAS = {
    "attacks": ("torchattacks",),
    "zoo": ("robustbench", "torchvision"),
    "defenses": ("diffusers", "vector-quantize-pytorch"),
    "maps": ("umap-learn",),
    "ray": ("ray",),
}


@dataclass(frozen=True)
class Line:
    """One thing looked at: `state` is "ok", "note" or "problem"; a problem's text says what to do."""

    topic: str
    state: str
    text: str


def examine(data_root: Path | str | None = None) -> Iterator[Line]:
    """Everything that explains why a number here may differ from a number there, one line each."""
    yield from _versions()
    yield from _device()
    yield from _places()
    yield from data(data_root)
    yield from _plugins()
    yield from _extras()
    yield from _shadowed()


def _versions() -> Iterator[Line]:
    names = ("purifybench", "torch", "numpy", "scipy", "pydantic")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    yield Line("versions", "ok", f"python {platform.python_version()}, {found}")


def _device() -> Iterator[Line]:
    import torch

    from bench.device import pin_heap

    if torch.cuda.is_available():
        yield Line("device", "ok", f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Line("device", "note", f"CPU, {torch.get_num_threads()} threads; no GPU found (torch is {built})")
    pinned = pin_heap()
    yield Line(
        "heap",
        "ok" if pinned else "note",
        "pinned" if pinned else "not pinned (not glibc): attacks run slower",
    )


def _places() -> Iterator[Line]:
    home = places.home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    state = "ok" if writable and free > 1 else "problem"
    advice = "" if state == "ok" else "; set PURIFYBENCH_HOME to a folder with room"
    yield Line("home", state, f"{home}, {free:.1f} GiB free{'' if writable else ', not writable'}{advice}")


def data(data_root: Path | str | None) -> Iterator[Line]:
    """Which data sets are found, and whether they are sound."""
    from bench.catalog import DATASETS
    from bench.data import load

    for name in DATASETS:
        try:
            loaded = load(name, data_root)
            sizes = f"{len(loaded.train):,} + {len(loaded.validation):,} + {len(loaded.test):,} images"
            yield Line(f"data {name}", "ok", f"{sizes}, sound")
        except BenchError as problem:
            yield Line(f"data {name}", "note" if "missing" in str(problem) else "problem", str(problem))


def _plugins() -> Iterator[Line]:
    from bench import plugins

    try:
        classes, broken = plugins.load_all()
    except BenchError as problem:
        yield Line("defenses", "problem", str(problem))
        return
    yield Line("defenses", "ok", ", ".join(classes) or "none")
    for name, reason in broken.items():
        yield Line(f"defense {name}", "problem", reason)


def _extras() -> Iterator[Line]:
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        if missing:
            yield Line(
                f"extra [{extra}]",
                "note",
                f"{', '.join(missing)} not installed: pip install 'purifybench[{extra}]'",
            )
        else:
            yield Line(f"extra [{extra}]", "ok", ", ".join(f"{name} {_version(name)}" for name in packages))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _shadowed() -> Iterator[Line]:
    """Files of robustbench that another wheel has overwritten: torchattacks carries an old copy of it."""
    try:
        package = metadata.distribution("robustbench")
    except metadata.PackageNotFoundError:
        return
    changed = []
    for path, kind, digest in _record(package):
        file = Path(str(package.locate_file(path)))
        if kind == "sha256" and file.exists() and _digest(file) != digest:
            changed.append(path)
    if changed:
        yield Line(
            "robustbench", "problem",
            f"{len(changed)} of its files, {changed[0]} among them, belong to another package (torchattacks "
            "carries an old copy): use pip install --force-reinstall --no-deps robustbench",
        )  # fmt: skip
    else:
        yield Line("robustbench", "ok", "all files are its own")


def _record(package: metadata.Distribution) -> Iterator[tuple[str, str, str]]:
    for path, digest, _ in csv.reader((package.read_text("RECORD") or "").splitlines()):
        if digest and path.endswith(".py"):
            kind, _, value = digest.partition("=")
            yield path, kind, value


def _digest(file: Path) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
