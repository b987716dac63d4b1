"""What attacks without a small ball tell of the images that they made: how far they went, whether the class changed.

An attack that was run at several strengths is also counted over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.catalog import ATTACKS
from bench.distortion_curve import DistortionCurve, distortion_curve
from bench.paper_metrics import OVER_SEVERAL, per_image
from bench.protocol import AttackSpec
from bench.record import TOLD, Cell, Record
from bench.statistics import ordered, robustness
from leaderboard.codes import share
from leaderboard.figures import BASELINE_COLOUR, SERIES, Chart, Line, distortion_chart, far_chart
from leaderboard.formats import strength
from leaderboard.pictures import data_uri
from leaderboard.tables import Estimate, Row, cell_accuracy, mean_accuracy

WORDS = {
    "in_bound": "inside the bound",
    "relative_distortion": "change, of the way to the target",
    "relative_code_distance": "code's distance left",
    "relative_reconstruction_distance": "reconstruction's distance left",
    "fooled": "fool the bare classifier",
    "class_changed_by_net": "another class to the PGD-trained net",
    "class_changed_by_neighbours": "another class to its neighbours",
    "class_changed_by_both": "another class to both",
    "latent_classifier_accuracy": "its classifier of codes is right on other images",
}
SHARES = ("in_bound", "fooled", "class_changed_by_net", "class_changed_by_neighbours", "class_changed_by_both")

FAR_POINTS = 81  # of a line over distances
FURTHER = "relative_distortion"
NEARER = {"relative_reconstruction_distance": "reconstruction", "relative_code_distance": "code"}


@dataclass(frozen=True)
class Strength:
    """One cell: what is right of the images, their median L2 distance, and the numbers in the order of `Told.names`;
    what is a share of its images with its interval."""

    spec: AttackSpec
    seed: int
    accuracy: Estimate
    distance: float
    values: tuple[float | Estimate | None, ...]


@dataclass(frozen=True)
class Seen:
    """One image as an attack left it: clean, attacked and purified, and the class that the defense then saw."""

    pictures: tuple[str, str, str]
    label: int
    predicted: int
    distance: float  # L2


@dataclass(frozen=True)
class Strip:
    """The first images of one cell."""

    spec: AttackSpec
    images: tuple[Seen, ...]


@dataclass(frozen=True)
class Told:
    """The cells of one attack; of one at several strengths without a ball also `pooled`, and right under `every`, and
    its images at up to three strengths."""

    attack: str
    names: tuple[str, ...]
    lines: tuple[Strength, ...]
    pooled: Estimate | None
    every: Estimate | None
    may_change_class: bool
    curves: tuple[tuple[str, DistortionCurve], ...]  # by what of the image comes near the target's
    chart: Chart | None
    strips: tuple[Strip, ...] = ()


def told(row: Row, name: str) -> tuple[Told, ...]:
    """A table for each attack of which the records of a row tell something, in the protocol's order; `name` begins the
    ids of their figures."""
    cells = ordered(row.cells, row.effort) if row.effort else row.cells
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if _numbers(cell.record) and cell.record.status == "ok" and cell.outcomes.attacked.any():
            groups.setdefault(cell.record.attack, []).append(cell)
    clean = next((cell for cell in cells if cell.record.spec.slug == "clean.none"), None)
    return tuple(_told(attack, same, clean, f"{name}-{attack}") for attack, same in groups.items())


def told_name(name: str) -> str:
    """What an attack tells, for people."""
    return WORDS.get(name, name.replace("_", " "))


def _told(attack: str, cells: Sequence[Cell], clean: Cell | None, figure: str) -> Told:
    names = tuple(dict.fromkeys(name for cell in cells for name in _numbers(cell.record)))
    lines = []
    for cell in cells:
        accuracy, record = cell_accuracy(cell), cell.record
        assert accuracy is not None
        distance = float(np.median(cell.outcomes.l2[cell.outcomes.attacked]))
        values = tuple(_value(name, _numbers(record).get(name), accuracy.n) for name in names)
        lines.append(Strength(record.spec, record.seed, accuracy, distance, values))
    first, several = cells[0], [cell for cell in cells if cell.record.seed == cells[0].record.seed]
    same = all(np.array_equal(cell.outcomes.attacked, first.outcomes.attacked) for cell in several)
    free = attack in ATTACKS and ATTACKS[attack].may_change_class
    curves = _curves(several) if free else ()
    pooled, every = (
        mean_accuracy([combine(np.stack([per_image(metric, cell) for cell in several]))])
        if same and len(several) > 1 and free and not curves
        else None
        for metric, combine in OVER_SEVERAL.items()
    )
    chart = _chart(figure, curves) if curves else _far_chart(figure, clean, several) if free and clean else None
    return Told(attack, names, tuple(lines), pooled, every, free, curves, chart, _strips(several) if free else ())


def _strips(cells: Sequence[Cell]) -> tuple[Strip, ...]:
    """The first, the middle and the last of the cells that kept pictures."""
    kept = [cell for cell in cells if cell.outcomes.exhibits.shape[1]]
    places = sorted({0, len(kept) // 2, len(kept) - 1}) if kept else []
    return tuple(Strip(kept[k].record.spec, tuple(_seen(kept[k]))) for k in places)


def _seen(cell: Cell) -> Iterator[Seen]:
    outcomes = cell.outcomes
    for image in range(outcomes.exhibits.shape[1]):
        clean, attacked, purified = (data_uri(stage[image]) for stage in outcomes.exhibits)
        yield Seen(
            (clean, attacked, purified), int(outcomes.label[image]), int(outcomes.predicted[image]),
            float(outcomes.l2[image]),
        )  # fmt: skip


def _far_chart(name: str, clean: Cell, cells: Sequence[Cell]) -> Chart:
    """What is right where only images count that lie within so much L2 of the clean one: a line a strength."""
    lines = []
    for k, cell in enumerate(cells):
        mask = cell.outcomes.attacked
        x = np.linspace(0, float(cell.outcomes.l2[mask].max()), FAR_POINTS)
        y = robustness([clean, cell], "l2", x.tolist()[1:])[:, mask].mean(axis=1)
        label = strength(cell.record.variant) or "as it is"
        lines.append(Line(label, tuple(x.tolist()), tuple(y.tolist()), 1 + k % SERIES, k // SERIES % 4, marked=False))
    return far_chart(name, "Accuracy where an image counts as attacked only within so much L2", lines)


def _value(name: str, value: float | None, n: int) -> float | Estimate | None:
    return (share(value, n) if name in SHARES else None) or value


def _curves(cells: Sequence[Cell]) -> tuple[tuple[str, DistortionCurve], ...]:
    """The curves through the cells of a target-image attack, one a price of the change; none for other attacks."""
    found = []
    for name, what in NEARER.items():
        pairs = [(told.get(FURTHER), told.get(name)) for told in (_numbers(cell.record) for cell in cells)]
        whole = [(far, near) for far, near in pairs if far is not None and near is not None]
        if len(whole) > 1 and len(whole) == len(pairs) and min(map(min, whole)) >= 0:
            found.append((what, distortion_curve(whole)))
    return tuple(found)


def _chart(name: str, curves: Sequence[tuple[str, DistortionCurve]]) -> Chart:
    lines = [
        Line(f"{what}, {_area(curve)}", *_axes(curve), colour=k + 1, dash=k) for k, (what, curve) in enumerate(curves)
    ]
    mixed = Line("mixing both images, area 0.50", (0.0, 100.0), (1.0, 0.0), BASELINE_COLOUR, 2, marked=False)
    return distortion_chart(
        name, "What is left of the distance to the target image, by the size of the change", [*lines, mixed]
    )


def _area(curve: DistortionCurve) -> str:
    if curve.is_told:
        return f"area {curve.area:.2f}"
    return f"no area: nothing measured below a change of {100 * curve.points[1][0]:.0f} %"


def _axes(curve: DistortionCurve) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(100 * x for x, _ in curve.points), tuple(y for _, y in curve.points)


def _numbers(record: Record) -> Mapping[str, float]:
    return {
        name.removeprefix(TOLD): value
        for name, value in record.facts.items()
        if name.startswith(TOLD) and isinstance(value, float | int)
    }
