"""Records to take away: zip files that unpack into a folder of records. Same cells, same bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bench.record import Cell, encoded

_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold: no file has a date of its own


def folder(cells: Sequence[Cell]) -> dict[str, bytes]:
    """The files of one defense under one protocol, as bench.record.Store lays them out: path to content.

    `cells` must share protocol and defense, and each name must occur once.
    """
    first = cells[0].record
    root = f"{first.protocol}/{first.defense}"
    files = {f"{root}/{cell.record.cell}.json": encoded(cell.record) for cell in cells}
    arrays = {f"{cell.record.cell}/{name}": array for cell in cells for name, array in cell.outcomes.arrays().items()}
    packed = io.BytesIO()
    np.savez_compressed(packed, **{name: arrays[name] for name in sorted(arrays)})  # type: ignore[arg-type]
    return {**files, f"{root}/outcomes.npz": packed.getvalue()}


def zipped(folders: Iterable[Mapping[str, bytes]]) -> bytes:
    """All files of all `folders` in one zip, in alphabetical order."""
    target = io.BytesIO()
    files = {name: content for files in folders for name, content in files.items()}
    with zipfile.ZipFile(target, "w") as file:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".npz") else zipfile.ZIP_DEFLATED
            file.writestr(info, files[name])
    return target.getvalue()
