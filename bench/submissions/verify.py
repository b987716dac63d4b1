"""`purifybench submission verify`: measure some cells of a submission again, and hold the records against them.

The attacks are run again from their seeds, or the images of an earlier run are scored again. Everything else of the
records is taken as it is; a cell whose key is not what this code, these weights and this protocol give is found too.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import campaign, planning
from bench.cache import ChunkCache
from bench.defense import Defense
from bench.errors import BenchError
from bench.places import home
from bench.progress import Progress
from bench.record import MAP, Cell, Record, Store

TOLERATED = 0.01  # share of images whose outcome may differ on another machine or with other versions
LATER_FACTS = ("codes_moved", "codes_astray", f"{MAP}neighbour")  # that records of older harnesses do not tell
_RUNS_ALIKE = ("device", "threads", "versions")


@dataclass(frozen=True)
class Comparison:
    """A record and the same cell measured again."""

    record: Cell
    again: Cell
    found: bool = False  # whether the images of all cells were among those of an earlier run: none was made again

    @property
    def problem(self) -> str:
        """Why the record is not confirmed; "" where it is."""
        old, new = _claims(self.record.record), _claims(self.again.record)
        for name in LATER_FACTS:
            if name not in old["facts"]:
                new["facts"].pop(name, None)
        if not old["images_sha256"]:  # of a harness that did not hash images
            del old["images_sha256"], new["images_sha256"]
        if old == new:
            return ""
        if self.found and old.get("images_sha256") != new.get("images_sha256"):
            return (
                "the images that were given are not those that the record was scored on: they have images_sha256 "
                f"{new['images_sha256'][:12]}, the record says {old['images_sha256'][:12]}"
            )
        fields = [name for name in new if old.get(name) != new[name]]
        known = (
            "outcomes_sha256", "images_sha256", "loss_curve", "blocked", "classifier_weights", "weights", "key",
        )  # fmt: skip
        odd = [
            name for name in fields if name not in known and not (name == "facts" and _are_near(old[name], new[name]))
        ]
        before, after = (cell.outcomes.correct for cell in (self.record, self.again))
        differ = int((~np.isclose(before, after, equal_nan=True)).sum())
        same_machine = all(
            getattr(self.record.record.run, name) == getattr(self.again.record.run, name) for name in _RUNS_ALIKE
        )
        if not odd and not same_machine and differ <= TOLERATED * len(after):
            return ""
        what = f"{differ} of {len(after)} images come out otherwise; {', '.join(fields)} differ"
        return what if not same_machine else f"{what}, on the same machine with the same versions"


def _claims(record: Record) -> dict[str, Any]:
    """What a record says and another run of its cell must say again. A map of codes is left out: the last digit of a
    code turns t-SNE's map into another one that shows the same, on another machine or with other versions. The numbers
    that are read off the codes themselves stay in."""
    said = record.lasting()
    places = (".x", ".y")
    said["facts"] = {
        name: value for name, value in said["facts"].items() if not (name.startswith(MAP) and name.endswith(places))
    }
    return said


def _are_near(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the same facts are told, each number within a hundredth of its fact's largest (or of 1); of the classes
    beside which codes lie, where two may be as near, all but a twentieth."""
    pairs = {name: (np.atleast_1d(old[name]), np.atleast_1d(new[name])) for name in old.keys() & new.keys()}
    return old.keys() == new.keys() and all(
        a.shape == b.shape
        and (
            (a != b).mean() <= 5 * TOLERATED
            if name.startswith(MAP)
            else np.allclose(a, b, rtol=0, atol=TOLERATED * max(1, np.abs(a).max(initial=0)))
        )
        for name, (a, b) in pairs.items()
    )


class _Guarded(Store):
    """A copy of the records in which only the chosen cells may be written."""

    def __init__(self, root: Path, chosen: Sequence[str]) -> None:
        super().__init__(root)
        self.chosen = set(chosen)

    def save(self, cell: Cell) -> Path:
        if cell.record.cell not in self.chosen:
            raise BenchError(
                f"the record {cell.record.cell} of {cell.record.defense} is not of this code, these weights and this "
                "protocol: it has another key, or is missing; run the protocol again"
            )
        return super().save(cell)


def _files(folder: Path) -> set[Path]:
    return set(folder.glob("??/*.npz"))


def choose(records: Path, defense: str, protocol_id: str, count: int, seed: int | None = None) -> list[str]:
    """The names of `count` random cells that are in the records; of fresh randomness without a `seed`."""
    names = sorted(c.record.cell for c in Store(records).cells(protocol_id, defense) if c.record.status == "ok")
    if not names:
        raise BenchError(f"there are no records of {defense} under {protocol_id} in {records}; run the protocol first")
    rng = random.SystemRandom() if seed is None else random.Random(seed)
    return sorted(rng.sample(names, min(count, len(names))))


def again(
    defense: str | type[Defense],
    name: str,
    records: Path,
    protocol_id: str,
    chosen: Sequence[str],
    *,
    images: Path | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Comparison]:
    """The chosen cells of the records, each beside the same cell measured again.

    `images` is the PURIFYBENCH_HOME of an earlier run, or its folder `chunks`: attacked images found there are scored
    again; without it the attacks are run again. Raises BenchError for cells that do not exist and for records that are
    not of this code and protocol.
    """
    old = {cell.record.cell: cell for cell in Store(records).cells(protocol_id, name)}
    missing = [cell for cell in chosen if cell not in old]
    if missing:
        raise BenchError(f"there is no sound record {missing[0]} of {name} under {protocol_id} in {records}")
    with tempfile.TemporaryDirectory(prefix="purifybench-verify-") as scratch:
        copy = Path(scratch) / "records" / protocol_id / name
        shutil.copytree(records / protocol_id / name, copy)
        for cell in chosen:
            (copy / f"{cell}.json").unlink()
        asked = planning.plan(
            [defense], protocol_id, on=device, recipe=old[chosen[0]].record.recipe,
            classifier=sorted({cell.record.classifier for cell in old.values()}),
            seeds=1 + max(cell.record.seed for cell in old.values()),
        )  # fmt: skip
        with _another_home(Path(scratch) / "home", images):
            store, given = _Guarded(Path(scratch) / "records", chosen), _files(home() / "chunks")
            try:
                cells = campaign.run(asked, store, data_root=data_root, progress=progress)
            except AssertionError as problem:  # stored images beyond their radius
                raise BenchError(f"the images do not fit their cell: {problem}") from problem
            found = images is not None and _files(home() / "chunks") == given
        new = {cell.record.cell: cell for cell in cells}
    return [Comparison(old[cell], new[cell], found) for cell in chosen]


@contextmanager
def _another_home(folder: Path, images: Path | None) -> Iterator[None]:
    """Inside, PURIFYBENCH_HOME has the weights of the real one, and of its images only those that are given."""
    real = home()
    folder.mkdir(parents=True)
    (real / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "weights").symlink_to((real / "weights").resolve(), target_is_directory=True)
    if images is not None:
        _copy_images(images, folder / "chunks")
    before = os.environ.get("PURIFYBENCH_HOME")
    os.environ["PURIFYBENCH_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PURIFYBENCH_HOME"]
        else:
            os.environ["PURIFYBENCH_HOME"] = before


def _copy_images(source: Path, target: Path) -> None:
    """The chunks of attacked images in `source`; chunks of scores are left behind."""
    source = source / "chunks" if (source / "chunks").is_dir() else source
    cache, found = ChunkCache(source), 0
    for path in sorted(_files(source)):
        arrays = cache.read(path.stem)
        if arrays is not None and "images" in arrays:
            into = target / path.parent.name / path.name
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into)
            found += 1
    if not found:
        raise BenchError(f"{source} holds no attacked images; give the PURIFYBENCH_HOME of a run, or its folder chunks")
