"""The seal of a folder of records: which cells the harness left there, and one hash over what they say.

It finds what was edited, replaced, added or removed since. It holds no secret: whoever runs the harness can make
another seal, so what counts is measuring again (bench.submissions.verify). Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from bench.places import one_line, write_atomically
from bench.record import SEAL, Store

LINKS = ("key", "protocol_hash", "images_sha256", "outcomes_sha256")  # what of a record enters the chain


def write(store: Store, protocol: str, defense: str) -> None:
    """Seal the sound cells of one defense under one protocol, or leave the folder without a seal where there are none.

    `cells` holds the checksum of each record's file. `chain` is a hash over the cells by name, each with its key, its
    protocol's hash and the hashes of its images and outcomes: two honest runs on one machine have the same.
    """
    folder = store.folder(protocol, defense)
    sound = {cell.record.cell for cell in store.cells(protocol, defense)}
    if not sound:
        return
    with one_line(folder), FileLock(folder / ".lock"):
        sealed = _sealed({name: record for name, record in _records(folder).items() if name in sound})
        content = (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode()
        path = folder / SEAL
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, lambda file: file.write(content))


def chain(folder: Path) -> str:
    """The hash over all cells that a folder's seal cites; "" where there is no seal to be read."""
    return str((_read(folder) or {}).get("chain", ""))


def problems(folder: Path) -> Iterator[str]:
    """In what the records of a folder are not those that were sealed; nothing where there is no seal."""
    if not (folder / SEAL).exists():
        return
    sealed, now = _read(folder), _sealed(_records(folder))
    if sealed is None:
        yield "it cannot be read"
        return
    before, after = sealed["cells"], now["cells"]
    changes = {
        "removed": sorted(before.keys() - after.keys()),
        "added": sorted(after.keys() - before.keys()),
        "replaced": [name for name in sorted(before.keys() & after.keys()) if before[name] != after[name]],
    }
    for what, names in changes.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"{what} after the run: {', '.join(names[:3])}{more}"
    if not any(changes.values()) and sealed != now:
        yield "its chain is not that of the records"


def _records(folder: Path) -> dict[str, Mapping[str, Any]]:
    """What the files of records say, by their names; nothing of a file that is torn."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name != SEAL:
            found[path.stem] = _json(path) or {}
    return found


def _sealed(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    link = ""
    for name, record in sorted(records.items()):
        link = hashlib.sha256(json.dumps([link, name, *(record.get(part, "") for part in LINKS)]).encode()).hexdigest()
    return {"cells": {name: record.get("checksum", "") for name, record in records.items()}, "chain": link}


def _read(folder: Path) -> dict[str, Any] | None:
    sealed = _json(folder / SEAL)
    return sealed if sealed is not None and isinstance(sealed.get("cells"), dict) else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
