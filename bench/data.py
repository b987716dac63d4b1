"""Real images in [0, 1] with fixed splits: scikit-learn's digits, MNIST, Fashion-MNIST. Nothing is tuned on test.

MNIST-likes are read by our own IDX reader, compressed or not, and their content is checked against the published
checksums; `fetch` downloads them. Digits come with scikit-learn and need no network.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import places, seeds
from bench.catalog import DATASETS
from bench.errors import BenchError, unknown

VALIDATION = 10_000  # the last images of the training split of MNIST-likes


@dataclass(frozen=True)
class Split:
    """`images` float32 (N, C, H, W) in [0, 1] and `labels` int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Split:
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> Split:
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Three splits and their names. `split` identifies how they were cut, and is part of every weights key."""

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    split: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> Dataset:
        """The same data on another device."""
        return Dataset(
            self.name, self.train.to(device), self.validation.to(device), self.test.to(device),
            self.class_names, self.split,
        )  # fmt: skip

    def examples(self, n: int, seed: int) -> tuple[Split, Tensor]:
        """The first n test images of the permutation that `seed` fixes, and their indices (n,) in the test split.

        Raises BenchError if the split is smaller.
        """
        if n > len(self.test):
            raise BenchError(f"{self.name} has {len(self.test)} test images, the protocol asks for {n}")
        order = np.random.default_rng(seeds.derive(seed, "examples", self.name)).permutation(len(self.test))[:n]
        indices = torch.from_numpy(order).to(self.test.labels.device)
        return self.test[indices], indices


# ---------------------------------------------------------------------------------------------- MNIST-likes

_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@dataclass(frozen=True)
class IdxSource:
    """Where an MNIST-like lives: its folder below the data root, a download address, MD5 of the unpacked files."""

    folder: str
    url: str
    md5: Mapping[str, str]
    class_names: tuple[str, ...]


IDX: Mapping[str, IdxSource] = MappingProxyType(
    {
        "mnist": IdxSource(
            "MNIST",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            {
                "train-images-idx3": "6bbc9ace898e44ae57da46a324031adb",
                "train-labels-idx1": "a25bea736e30d166cdddb491f175f624",
                "t10k-images-idx3": "2646ac647ad5339dbf082846283269ea",
                "t10k-labels-idx1": "27ae3e4e09519cfbb04c329615203637",
            },
            tuple("0123456789"),
        ),
        "fmnist": IdxSource(
            "FashionMNIST",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            {
                "train-images-idx3": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "train-labels-idx1": "9018921c3c673c538a1fc5bad174d6f9",
                "t10k-images-idx3": "8181f5470baa50b63fa0f6fddb340f0a",
                "t10k-labels-idx1": "15d484375f8d13e6eb1aabb0c3f46965",
            },
            (
                "T-shirt",
                "trouser",
                "pullover",
                "dress",
                "coat",
                "sandal",
                "shirt",
                "sneaker",
                "bag",
                "ankle boot",
            ),
        ),
    }
)


def roots(data_root: Path | str | None = None) -> list[Path]:
    """The folders searched for data, in order: the argument alone if given, else $PURIFYBENCH_DATA alone, else ./data
    and the cache."""
    named = data_root or os.environ.get("PURIFYBENCH_DATA")
    return [Path(named).expanduser()] if named else [Path("data"), places.home() / "data"]


def read_idx(path: Path, md5: str | None = None) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzipped or not.

    Raises BenchError that names the file for anything but a whole, well-formed file with the given MD5 (of the
    unpacked bytes).
    """
    mend = f"delete it and run `purifybench data fetch {_name_of(path)}`"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except PermissionError as problem:
        raise BenchError(f"{path} may not be read ({problem.strerror}); give yourself the right to") from problem
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise BenchError(f"{path} is truncated or corrupted ({problem}); {mend}") from problem
    if len(content) < 8 or content[:3] != b"\0\0\x08":
        raise BenchError(
            f"{path} is not an IDX file of bytes (it starts with {content[:4].hex() or 'nothing'}); {mend}"
        )
    n_dimensions = content[3]
    start = 4 + 4 * n_dimensions
    if len(content) < start:
        raise BenchError(f"{path} is truncated in its header; {mend}")
    shape = struct.unpack(f">{n_dimensions}I", content[4:start])
    if len(content) - start != int(np.prod(shape)):
        raise BenchError(
            f"{path} is truncated or corrupted: it holds {len(content) - start} values, its header promises "
            f"{int(np.prod(shape))}; {mend}"
        )
    if md5 is not None and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise BenchError(
            f"{path} has MD5 {found} (unpacked), the published file has {md5}: its content differs; {mend}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _name_of(path: Path) -> str:
    folders = {folder: name for name, source in IDX.items() for folder in (source.folder, name)}
    return next((folders[part] for part in reversed(path.parts) if part in folders), "mnist")


def find_idx(name: str, part: str, data_root: Path | str | None = None) -> Path | None:
    """The file of one part of an MNIST-like, unpacked before packed, in any layout that people have, or None."""
    for root in roots(data_root):
        for folder in (root / IDX[name].folder / "raw", root / IDX[name].folder, root / name):
            for stem in (f"{part}-ubyte", f"{part}-ubyte.gz", f"{part.replace('-idx', '.idx')}-ubyte"):
                if (folder / stem).is_file():
                    return folder / stem
    return None


def _load_idx(name: str, data_root: Path | str | None) -> Dataset:
    source, arrays = IDX[name], {}
    for part in _PARTS:
        path = find_idx(name, part, data_root)
        if path is None:
            looked = ", ".join(str(root / source.folder / "raw") for root in roots(data_root))
            raise BenchError(
                f"{name}: {part}-ubyte(.gz) is missing, looked in {looked}; run `purifybench data fetch {name}`, or "
                "name the folder that holds it with --data-root or PURIFYBENCH_DATA"
            )
        arrays[part] = read_idx(path, source.md5[part])
    train, test = (
        Split(
            torch.from_numpy(arrays[f"{part}-images-idx3"].astype(np.float32) / 255).unsqueeze(1),  # (N, 1, 28, 28)
            torch.from_numpy(arrays[f"{part}-labels-idx1"].astype(np.int64)),
        )
        for part in ("train", "t10k")
    )
    return Dataset(
        name,
        train[:-VALIDATION],
        train[-VALIDATION:],
        test,
        source.class_names,
        split=f"last-{VALIDATION}-validate",
    )


def fetch(
    name: str,
    data_root: Path | str | None = None,
    url: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Download the files of an MNIST-like that are missing or corrupted; returns their folder.

    `url` is another address of a folder with the four .gz files (a mirror, or file:///...). Each file is checked
    before it takes its place. Raises BenchError if the address does not answer or serves something else.
    """
    if name == "digits":
        raise BenchError("digits come with scikit-learn; there is nothing to fetch")
    if name not in IDX:
        raise unknown("dataset", name, DATASETS, see="purifybench list datasets")
    folder = roots(data_root)[-1] / IDX[name].folder / "raw"
    for part in _PARTS:
        found = find_idx(name, part, data_root)
        if found is not None:
            try:
                read_idx(found, IDX[name].md5[part])
                report(f"{found} is there and sound")
                continue
            except BenchError as problem:
                report(f"{problem}".split(";")[0] + "; fetching it again")
        target = folder / f"{part}-ubyte.gz"
        address = (url or IDX[name].url).rstrip("/") + f"/{target.name}"
        report(f"fetching {address}")
        part_file = target.with_name(f"partial-{target.name}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(address, timeout=60) as answer, part_file.open("wb") as file:
                shutil.copyfileobj(answer, file)
            read_idx(part_file, IDX[name].md5[part])
            part_file.replace(target)
            if found is not None and found != target:
                found.unlink()
        except BenchError as problem:
            raise BenchError(f"{address} serves something else: {str(problem).split(';')[0]}") from problem
        except (OSError, HTTPException, ValueError) as problem:  # ValueError: no address at all
            raise BenchError(
                f"cannot fetch {address}: {problem}; try again, or give a mirror of the four .gz with --url"
            ) from problem
        finally:
            with suppress(OSError):  # a file where the folder should be
                part_file.unlink(missing_ok=True)
    return folder


# ---------------------------------------------------------------------------------------------- digits


def _load_digits() -> Dataset:
    """scikit-learn's 1,797 digits, 8x8 with 17 grey levels, enlarged to 28x28 (bilinear): 1,000 train, 297 validation,
    500 test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images.astype(np.float32) / 16).unsqueeze(1)  # (1797, 1, 8, 8)
    images = torch.nn.functional.interpolate(small, size=28, mode="bilinear", align_corners=False).clamp(0, 1)
    order = torch.from_numpy(np.random.default_rng(seeds.derive("digits split")).permutation(len(images)))
    everything = Split(images[order], torch.from_numpy(digits.target.astype(np.int64))[order])
    train, validation, test = (
        Split(part.images.clone(), part.labels.clone())  # no split is a view of another
        for part in (everything[:1000], everything[1000:1297], everything[1297:])
    )
    return Dataset("digits", train, validation, test, tuple("0123456789"), split="1000-297-500")


def load(name: str, data_root: Path | str | None = None) -> Dataset:
    """The data set of that name on the CPU. Raises BenchError if it is unknown, missing, truncated or corrupted."""
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS, see="purifybench list datasets")
    return _load_digits() if name == "digits" else _load_idx(name, data_root)
