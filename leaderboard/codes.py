"""What the records tell of a defense's codes: how far apart the classes lie, and how many bits an attack flips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench import statistics
from bench.latent_map import MOST
from bench.protocol import AttackSpec
from bench.record import TOLD, Cell, Record
from bench.statistics import ordered
from leaderboard.tables import Estimate, Row

WORDS = {
    "silhouette": "silhouette of the codes by class",
    "codes_moved": "distance that a code moves, median",
    "codes_astray": "nearest clean code of another class",
    "bit_flips": "bits flipped, mean share",
    "bit_flips_under_6_percent": "images with under 6 % of bits flipped",
    "local_lipschitz": "largest local Lipschitz constant of the encoder",
}
FLIPS, RIGHT = "bit_flips_images", "bit_flips_correct"  # histograms: images, and those classified correctly
BIN = 2  # per cent of the bits
WIDTH, HEIGHT = 340, 150  # of a histogram; its bars stand on BASE and reach up to TOP
BASE, TOP = 126, 22


@dataclass(frozen=True)
class Line:
    """The numbers of one cell over `n` images, in the order of `Codes.names`: what is a share of images with its
    interval; None where it has none."""

    spec: AttackSpec
    seed: int
    n: int
    values: tuple[float | Estimate | None, ...]


@dataclass(frozen=True)
class Bar:
    """The images of one bin of a histogram, how many of them stay right (None where there are none), and where the bar
    is drawn."""

    name: str
    start: int  # per cent of the bits
    images: int
    right: Estimate | None
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Flips:
    """How many images had a share of their bits flipped, by bins of BIN per cent, and how many of these stay right."""

    spec: AttackSpec
    seed: int
    bars: tuple[Bar, ...]

    @property
    def n(self) -> int:
        """All images of the histogram."""
        return sum(bar.images for bar in self.bars)


@dataclass(frozen=True)
class Codes:
    """What the records of a row tell of its codes, by cell."""

    names: tuple[str, ...]
    lines: tuple[Line, ...]
    flips: tuple[Flips, ...]


def codes(row: Row) -> Codes | None:
    """The facts of the clean images, and of attacked ones at the radii that the board shows; None where there are none.

    A fact that is one number becomes a column. LQ-VAE's pair of histograms is shown as such; other tuples are not.
    """
    shown = row.effort.headline_radii if row.effort else ()
    cells = ordered(row.cells, row.effort) if row.effort else row.cells
    cells = [cell for cell in cells if cell.record.facts and cell.record.status == "ok"]
    chosen = [cell for cell in cells if _is_shown(cell.record, shown)]
    names = tuple(dict.fromkeys(name for cell in chosen for name in _numbers(cell.record)))
    if not names:
        return None
    lines = tuple(_line(cell, names) for cell in chosen)
    flips = (Flips(cell.record.spec, cell.record.seed, _bars(cell.record)) for cell in chosen)
    return Codes(names, lines, tuple(one for one in flips if one.n))


def fact_name(name: str) -> str:
    """A fact's name for people."""
    return WORDS.get(name, name.replace("_", " "))


def share(value: float | None, n: int) -> Estimate | None:
    """A share of `n` images with its interval; None where it is none of so many, in six digits."""
    if value is None or n < 1 or not 0 <= value <= 1 or abs(value * n - round(value * n)) > 1e-5 * n:
        return None
    return Estimate(value, *statistics.wilson(round(value * n), n), n)


def _is_shown(record: Record, radii: tuple[float, ...]) -> bool:
    return record.attack == "none" or record.eps is None or record.eps in radii


def _line(cell: Cell, names: tuple[str, ...]) -> Line:
    record, attacked = cell.record, int(cell.outcomes.attacked.sum())
    flips = record.facts.get(FLIPS)
    counts = {"codes_astray": min(attacked, MOST)}  # of the first images alone
    counts["bit_flips_under_6_percent"] = round(sum(flips)) if isinstance(flips, tuple) else 0
    numbers = _numbers(record)
    values = [share(numbers.get(name), counts.get(name, 0)) or numbers.get(name) for name in names]
    return Line(record.spec, record.seed, attacked, tuple(values))


def _numbers(record: Record) -> Mapping[str, float]:
    return {
        name: value
        for name, value in record.facts.items()
        if isinstance(value, float | int) and not name.startswith(TOLD)
    }


def _bars(record: Record) -> tuple[Bar, ...]:
    """The histogram of one cell; empty where its two halves do not fit together."""
    images, right = record.facts.get(FLIPS), record.facts.get(RIGHT)
    if not isinstance(images, tuple) or not isinstance(right, tuple) or len(images) != len(right):
        return ()
    if not all(0 <= kept <= count and count == int(count) for count, kept in zip(images, right, strict=True)):
        return ()
    step, most, last = WIDTH / max(len(images), 1), max(images, default=0) or 1, len(images) - 1
    bars = []
    for place, (count, kept) in enumerate(zip(images, right, strict=True)):
        name = f"{BIN * place} % or more" if place == last else f"{BIN * place}–{BIN * (place + 1)} %"
        stays = Estimate(kept / count, *statistics.wilson(kept, int(count)), int(count)) if count else None
        height = round((BASE - TOP) * count / most, 1)
        box = (round(place * step + 2, 1), round(BASE - height, 1), round(step - 4, 1), height)
        bars.append(Bar(name, BIN * place, int(count), stays, *box))
    return tuple(bars)
