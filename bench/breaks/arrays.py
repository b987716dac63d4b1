"""The npz of a break, read without trust: nothing is unpickled, and nothing is unpacked before its size is known."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.places import TORN_NPZ

LARGEST_FILE = 1_000_000  # bytes
LARGEST_ARRAYS = 32_000_000  # bytes, unpacked
MEMBERS = ("images", "indices")
HOW = "np.savez_compressed(path, images=images, indices=indices)"


@dataclass(frozen=True)
class Arrays:
    """What an npz holds: `images` and `indices`, whatever their types and shapes."""

    images: NDArray[np.generic]
    indices: NDArray[np.generic]

    @property
    def pixels(self) -> NDArray[np.float32]:
        """The images in [0, 1]: bytes are divided by 255, as those of the data set are."""
        values = self.images.astype(np.float32)
        return values / np.float32(255) if self.images.dtype == np.uint8 else values


def read(path: Path) -> Arrays:
    """The arrays of a file of at most 1 MB. Raises BenchError with what was found instead."""
    if path.is_symlink() or not path.is_file():
        raise BenchError("no regular file")
    if path.stat().st_size > LARGEST_FILE:
        raise BenchError(f"{path.stat().st_size:,} bytes")
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            names = sorted(member.filename for member in archive.infolist())
            if names != [f"{name}.npy" for name in MEMBERS]:
                shown = ", ".join(repr(name)[:40] for name in names[:4])
                raise BenchError(f"an archive of {shown or 'nothing'}{' ...' * (len(names) > 4)}")
            if sum(member.file_size for member in archive.infolist()) > LARGEST_ARRAYS:
                raise BenchError(f"arrays that unpack to more than {LARGEST_ARRAYS:,} bytes")
            return Arrays(*(_array(archive, f"{name}.npy") for name in MEMBERS))
    except BenchError:
        raise
    except (*TORN_NPZ, MemoryError, OverflowError, TypeError, KeyError, SyntaxError, RecursionError) as problem:
        raise BenchError(f"no npz that can be read ({type(problem).__name__})") from problem


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
    """One array, once its header says that it is as large as the archive says."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if header is None:
            raise BenchError(f"{name} of an unknown version")
        shape, in_columns, dtype = header(file)
        if dtype.hasobject:
            raise BenchError(f"{name} with objects to unpickle")
        size = dtype.itemsize
        for length in shape:
            size *= length
        if min(shape, default=0) < 0 or size > LARGEST_ARRAYS:
            raise BenchError(f"{name} with a header of another size than its content")
        content = file.read(size + 1)
        if len(content) != size:
            raise BenchError(f"{name} with a header of another size than its content")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if in_columns else "C")
