"""Finished pieces of work on disk: a chunk of attacked images or of scores, found again by its key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import places
from bench.record import hash_arrays

Arrays = Mapping[str, NDArray[Any]]
CHECKSUM = "sha256"


class ChunkCache:
    """Named arrays under `folder/<first two letters of the key>/<key>.npz`; torn files count as absent.

    A killed run loses the chunk it was working on and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"

    def has(self, key: str) -> bool:
        """Whether a chunk of this key exists (it may still turn out to be torn)."""
        return self._path(key).exists()

    def read(self, key: str) -> Arrays | None:
        """The arrays of this key, or None if there are none that are whole."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            if arrays.pop(CHECKSUM).item() != hash_arrays(arrays):
                raise ValueError("the arrays were changed")
            return arrays
        except places.TORN_NPZ:
            path.unlink(missing_ok=True)
            return None

    def write(self, key: str, arrays: Arrays) -> None:
        """Keep arrays under this key, at once or not at all."""
        checked = {**arrays, CHECKSUM: np.array(hash_arrays(arrays))}
        places.write_atomically(self._path(key), lambda file: np.savez_compressed(file, **checked))  # type: ignore[arg-type]

    def drop(self, key: str) -> None:
        """Forget a chunk."""
        self._path(key).unlink(missing_ok=True)
