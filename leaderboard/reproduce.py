"""Printed numbers beside measured ones: from records to lines, and from lines to what would have to be run.

Nothing here runs anything, and nothing but `installed` depends on this installation: the site shows the same lines.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from bench import paper_metrics, papers, plugins, protocols, statistics
from bench.catalog import ATTACKS, CLASSIFIERS, DATASETS
from bench.errors import unknown
from bench.paper_metrics import OVER_SEVERAL
from bench.protocol import TRACKS, AttackSpec, Track
from bench.record import Cell, Store
from leaderboard.counterparts import Counterpart, counterpart
from leaderboard.reported import Reported, names, parts, reported
from leaderboard.tables import BASELINE, Estimate

Array = NDArray[np.float64]
_Name = tuple[str, str, str, str]  # protocol, defense, classifier, slug of the attack


@dataclass(frozen=True)
class Line:
    """A printed number, what answers it, and what was measured of it; `obstacle` says why nothing can be.

    A printed average has no counterpart of its own: `measured` is the mean over its parts, all of them or none.
    """

    row: Reported
    counterpart: Counterpart | None = None
    measured: Estimate | None = None
    caveats: tuple[str, ...] = ()
    obstacle: str = ""
    cells: tuple[Cell, ...] = ()  # that it was measured in, one a seed

    @property
    def difference(self) -> float | None:
        """Measured minus printed, in percentage points."""
        return None if self.measured is None else 100 * self.measured.value - float(self.row.value_percent)


# ---------------------------------------------------------------------------------------------- which numbers


def chosen(name: str) -> tuple[Reported, ...]:
    """The rows of a paper or a table. Raises BenchError for an unknown name, with the nearest ones."""
    found = tuple(row for row in reported() if name in (row.source, row.table))
    if not found:
        raise unknown("paper or table", name, names(), see="purifybench reproduce")
    return found


@dataclass(frozen=True)
class Installed:
    """The names that exist in this installation."""

    defenses: frozenset[str]
    attacks: frozenset[str] = field(default_factory=lambda: frozenset(ATTACKS))
    classifiers: frozenset[str] = field(default_factory=lambda: frozenset(CLASSIFIERS))
    datasets: frozenset[str] = field(default_factory=lambda: frozenset(DATASETS))
    nets: bool = False  # whether the harness trains nets for transfer

    def lacks(self, answer: Counterpart) -> str:
        """What keeps a cell from being measured here, in a few words; empty where nothing does."""
        spec, dataset = answer.spec, protocols.get(answer.protocol).dataset
        for kind, name, existing in (
            ("data set", dataset, self.datasets),
            ("defense", answer.defense, self.defenses),
            ("classifier", answer.classifier, self.classifiers),
            ("attack", spec.attack, self.attacks),
        ):
            if name not in existing:
                return f"no {kind} {name} is installed"
        if spec.source and not self.has_source(spec.source):
            return f"no source {spec.source} is installed"
        return ""

    def has_source(self, name: str) -> bool:
        """Whether images can be made on it: a defense, or another net, named by its kind and its classifier."""
        _, is_net, net = name.partition("-")
        return self.nets and net in self.classifiers if is_net else name in self.defenses


def installed() -> Installed:
    """What is installed here, found without importing any of it."""
    return Installed(frozenset(plugins.installed()), nets=find_spec("bench.substitutes") is not None)


# ---------------------------------------------------------------------------------------------- measured


def stored(store: Store, limit: int | None = None) -> Iterator[Cell]:
    """The cells of a store that belong to the papers' protocols, on their first `limit` images."""
    for one in papers.PROTOCOLS.values():
        yield from store.cells((one if limit is None else one.limited(limit)).id)


def lines(
    rows: Iterable[Reported], cells: Iterable[Cell], limit: int | None = None, here: Installed | None = None
) -> tuple[Line, ...]:
    """A line for each row, measured where `cells` hold its counterpart on the protocol's first `limit` images (all
    unless told). With `here`, the lines that this installation cannot measure say why."""
    bench = _Bench(cells, limit, here)
    return tuple(bench.line(row) for row in rows)


class _Bench:
    """The cells by name, those of one name being of several seeds; what was looked up once is kept."""

    def __init__(self, cells: Iterable[Cell], limit: int | None, here: Installed | None) -> None:
        self.limit, self.here = limit, here
        self.known: dict[Reported, tuple[Line, Array | None]] = {}
        self.cells: dict[_Name, list[Cell]] = {}
        for cell in cells:
            record = cell.record
            name = (record.protocol, record.defense, record.classifier, record.spec.slug)
            self.cells.setdefault(name, []).append(cell)

    def line(self, row: Reported) -> Line:
        return self._average(row) if row.is_average else self._plain(row)[0]

    def _plain(self, row: Reported) -> tuple[Line, Array | None]:
        if row not in self.known:
            self.known[row] = self._looked_up(row)
        return self.known[row]

    def _looked_up(self, row: Reported) -> tuple[Line, Array | None]:
        answer = counterpart(row)
        if isinstance(answer, str):
            return Line(row, obstacle=answer), None
        cells, bare = self._found(answer, answer.spec), self._found(answer, None)
        values = _values(answer, cells, bare)
        if values is not None and answer.metric in OVER_SEVERAL:
            several = [values, *(_values(answer, self._found(answer, spec), bare) for spec in answer.also)]
            whole = [one for one in several if one is not None and one.shape == values.shape]
            values = OVER_SEVERAL[answer.metric](np.stack(whole)) if len(whole) == len(several) else None
        obstacle = self.here.lacks(answer) if self.here and values is None else ""
        if values is None:
            return Line(row, answer, None, answer.caveats, obstacle), None
        caveats = (*answer.caveats, *_findings(cells))
        return Line(row, answer, _estimate(values), caveats, cells=tuple(cells)), values.mean(axis=0)

    def _average(self, row: Reported) -> Line:
        found = [self._plain(part) for part in parts(row)]
        caveats = tuple(dict.fromkeys(caveat for line, _ in found for caveat in line.caveats))
        obstacle = next((line.obstacle for line, _ in found if line.obstacle), "")
        values = [array for _, array in found if array is not None]
        if len(values) < len(found):
            return Line(row, None, None, caveats, obstacle)
        n = min(map(len, values))
        shared = np.mean([array[:n] for array in values], axis=0)  # (n,)
        note = f"The mean of {len(found)} numbers, on the {n} images that all have."
        return Line(row, None, _estimate(shared[None]), (*caveats, note))

    def _found(self, answer: Counterpart, spec: AttackSpec | None) -> list[Cell]:
        """The counterpart's cells under an attack by seed, or the clean ones of the bare classifier; of the present
        version."""
        view = protocols.get(answer.protocol)
        view = view if self.limit is None else view.limited(self.limit)
        defense, slug = (BASELINE, "clean.none") if spec is None else (answer.defense, spec.slug)
        found = self.cells.get((view.id, defense, answer.classifier, slug), [])
        return sorted((one for one in found if one.record.protocol_hash == view.hash), key=lambda one: one.record.seed)


def _values(answer: Counterpart, cells: Sequence[Cell], bare: Sequence[Cell]) -> Array | None:
    """The metric of each image by seed, (seeds, n); None where a cell is missing."""
    if not cells or (answer.needs_bare and not bare) or not cells[0].outcomes.attacked.any():
        return None
    reference = bare[0] if bare else None
    return np.stack([paper_metrics.per_image(answer.metric, cell, reference) for cell in cells])


def _estimate(values: Array) -> Estimate:
    """The mean of (seeds, n) with its interval over images, and over seeds where there are three."""
    together = values.mean(axis=0)
    low, high = statistics.share_interval(values, is_proportion=True)
    several = tuple(float(seed.mean()) for seed in values) if len(values) > 1 else ()
    return Estimate(float(together.mean()), low, high, len(together), several)


def _findings(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What the records themselves say against a comparison."""
    first = cells[0].record
    said = [f"{first.card.title} was trained by its {first.recipe} recipe." if _is_short(cells[0]) else ""]
    said += [f"{first.card.title} failed on some images, which count as wrong: {cell.record.error}."
             for cell in cells if cell.record.status == "failed"]  # fmt: skip
    return tuple(dict.fromkeys(filter(None, said)))


def _is_short(cell: Cell) -> bool:
    return cell.record.card.trained_on != "nothing" and cell.record.recipe != "paper"


# ---------------------------------------------------------------------------------------------- what to run


@dataclass(frozen=True)
class Ask:
    """Cells to measure: these attacks of one track of a protocol, on these defenses before these classifiers."""

    protocol: str
    track: Track
    defenses: tuple[str, ...]
    classifiers: tuple[str, ...]
    attacks: tuple[str, ...]


def asks(found: Iterable[Line], here: Installed, only: Collection[str]) -> tuple[Ask, ...]:
    """What would have to be run for these lines on the defenses `only`, as far as this installation can; also what the
    records hold already, since only a run knows whether that still is what it was."""
    wanted: dict[tuple[str, Track], list[tuple[str, str, str]]] = {}
    for line in found:
        answer = line.counterpart
        if answer is None or here.lacks(answer) or answer.defense not in only:
            continue
        named = (answer.defense, answer.classifier, answer.spec.attack)
        wanted.setdefault((answer.protocol, answer.spec.track), []).append(named)
        if answer.needs_bare:
            wanted.setdefault((answer.protocol, "clean"), []).append((BASELINE, answer.classifier, "none"))
    order = list(TRACKS)
    return tuple(
        Ask(protocol, track, *(tuple(dict.fromkeys(names)) for names in zip(*wanted[protocol, track], strict=True)))
        for protocol, track in sorted(wanted, key=lambda key: (key[0], order.index(key[1])))
    )


# ---------------------------------------------------------------------------------------------- as a file


def as_csv(found: Sequence[Line]) -> str:
    """The lines with full precision: the columns of reported.csv, then ours; percent throughout."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ours = ("protocol", "our_defense", "our_classifier", "cell", "counted", "measured_percent", "low", "high", "n",
            "difference", "obstacle", "caveats")  # fmt: skip
    writer.writerow([*Reported.model_fields, *ours])
    for line in found:
        answer, e = line.counterpart, line.measured
        names = [answer.protocol, answer.defense, answer.classifier, answer.spec.slug, answer.metric] if answer else []
        numbers = [f"{100 * value:.4f}" for value in (e.value, e.low, e.high)] if e else [""] * 3
        difference = "" if line.difference is None else f"{line.difference:.4f}"
        printed = ["" if value is None else value for _, value in line.row]
        writer.writerow([*printed, *(names or [""] * 5), *numbers, e.n if e else "", difference, line.obstacle,
                         " ".join(line.caveats)])  # fmt: skip
    return text.getvalue()


def obstacles(found: Sequence[Line]) -> Mapping[str, int]:
    """What keeps lines from being measured, and how many of them, the most first."""
    stopped = [line.obstacle for line in found if line.obstacle]
    return {text: stopped.count(text) for text in sorted(set(stopped), key=lambda text: (-stopped.count(text), text))}


def shared_caveats(found: Sequence[Line]) -> tuple[str, ...]:
    """The caveats of every line of a table that has any: they belong under the table, not on its lines."""
    with_any = [line.caveats for line in found if line.caveats]
    return tuple(text for text in with_any[0] if all(text in own for own in with_any)) if with_any else ()
