"""What the records tell of a defense's codes: how far apart the classes lie, and how many bits an attack flips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.protocol import AttackSpec
from bench.record import TOLD, Record
from bench.statistics import ordered
from leaderboard.tables import Row

WORDS = {
    "silhouette": "silhouette of the codes by class",
    "codes_moved": "distance that a code moves, median",
    "codes_astray": "nearest clean code of another class, share",
    "bit_flips": "bits flipped, mean share",
    "bit_flips_under_6_percent": "images with under 6 % of bits flipped, share",
    "local_lipschitz": "largest local Lipschitz constant of the encoder",
}
FLIPS, RIGHT = "bit_flips_images", "bit_flips_correct"  # histograms: images, and those classified correctly
BIN = 2  # per cent of the bits


@dataclass(frozen=True)
class Line:
    """The numbers of one cell, in the order of `Codes.names`; None where it has none."""

    spec: AttackSpec
    seed: int
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Flips:
    """How many images had a share of their bits flipped, by bins of BIN per cent, and how many of these stay right."""

    spec: AttackSpec
    seed: int
    bins: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Codes:
    """What the records of a row tell of its codes, by cell."""

    names: tuple[str, ...]
    lines: tuple[Line, ...]
    flips: tuple[Flips, ...]

    @property
    def bins(self) -> tuple[str, ...]:
        """How the bins of the histograms are called."""
        count = max((len(one.bins) for one in self.flips), default=0)
        last = BIN * (count - 1)
        return (*(f"{BIN * k}–{BIN * (k + 1)} %" for k in range(count - 1)), f"{last} % or more")


def codes(row: Row) -> Codes | None:
    """The facts of the clean images, and of attacked ones at the radii that the board shows; None where there are none.

    A fact that is one number becomes a column. LQ-VAE's pair of histograms is shown as such; other tuples are not.
    """
    shown = row.effort.headline_radii if row.effort else ()
    cells = ordered(row.cells, row.effort) if row.effort else row.cells
    records = [cell.record for cell in cells if cell.record.facts and cell.record.status == "ok"]
    chosen = [record for record in records if record.attack == "none" or record.eps is None or record.eps in shown]
    names = tuple(dict.fromkeys(name for record in chosen for name in _numbers(record)))
    if not names:
        return None
    lines = (Line(one.spec, one.seed, tuple(_numbers(one).get(name) for name in names)) for one in chosen)
    flips = (Flips(one.spec, one.seed, _bins(one)) for one in chosen if _bins(one))
    return Codes(names, tuple(lines), tuple(flips))


def fact_name(name: str) -> str:
    """A fact's name for people."""
    return WORDS.get(name, name.replace("_", " "))


def _numbers(record: Record) -> Mapping[str, float]:
    return {
        name: value
        for name, value in record.facts.items()
        if isinstance(value, float | int) and not name.startswith(TOLD)
    }


def _bins(record: Record) -> tuple[tuple[int, float], ...]:
    images, right = record.facts.get(FLIPS), record.facts.get(RIGHT)
    if not isinstance(images, tuple) or not isinstance(right, tuple) or len(images) != len(right):
        return ()
    return tuple((int(count), kept) for count, kept in zip(images, right, strict=True))
