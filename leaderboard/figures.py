"""Line charts and maps as data: what is drawn (leaderboard.drawing), what the legend says, what tests look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SERIES = 7  # colours there are for series: --s1 to --s7 in site.css
BASELINE_COLOUR = 8  # --s8, a grey for what others are compared with
CLASSES = 10  # colours there are for classes: --s1 to --s10
_SHAPES = (  # as leaderboard.drawing draws them: disc, square, triangles, diamond, plus, cross, hexagon
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0", "M-3 -3H3V3H-3Z", "M0 -3L3 3H-3Z", "M0 -4L4 0L0 4L-4 0Z", "M0 3L3 -3H-3Z",
    "M-1 -3H1V-1H3V1H1V3H-1V1H-3V-1H-1Z", "M-3 -2L-2 -3L0 -1L2 -3L3 -2L1 0L3 2L2 3L0 1L-2 3L-3 2L-1 0Z",
    "M0 -3.4L3 -1.7V1.7L0 3.4L-3 1.7V-1.7Z",
)  # fmt: skip
_DASHES = ("", "7 3", "2 2.5", "8 3 2 3")


@dataclass(frozen=True)
class Line:
    """One line of a chart and of its legend. `low` and `high` (as long as `y`, or empty) draw a band around it."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    colour: int = 1  # 1 to SERIES, or BASELINE_COLOUR
    dash: int = 0  # 0 to 3, solid first
    width: float = 1.6
    opacity: float = 1.0
    marked: bool = True
    joined: bool = True  # False: markers alone, where the radii between were not measured
    panel: int = 0  # of `Chart.panels`
    is_named: bool = True  # False: has no place of its own in the legend
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def dasharray(self) -> str:
        """The `stroke-dasharray` of the legend's sample; empty for a solid line."""
        return _DASHES[self.dash]

    @property
    def marker(self) -> str:
        """The path of the legend's sample of a marker, around (0, 0); empty where there is none."""
        return _SHAPES[self.colour - 1] if self.marked else ""


@dataclass(frozen=True)
class Chart:
    """A figure of lines. `name` is unique on its page: it begins the ids of the SVG. `title` says in one sentence what
    is shown; a `scale` of 100 draws shares in percent. `panels` are the labels of several axes, one below the other
    over the same x."""

    name: str
    title: str
    lines: tuple[Line, ...]
    x_label: str
    y_label: str
    scale: float = 1
    panels: tuple[str, ...] = ()

    @property
    def legend(self) -> tuple[Line, ...]:
        """The lines that the legend names, faint ones last."""
        return tuple(sorted((line for line in self.lines if line.is_named), key=lambda line: line.opacity < 1))


@dataclass(frozen=True)
class Mark:
    """An image on a map, at `x` and `y` in [-1, 1], of class `label`."""

    x: float
    y: float
    label: int


@dataclass(frozen=True)
class Map:
    """Clean images as dots in the colour of their class, attacked ones as its number in the same colour, and where
    the clean images of a class are densest its number, large: who does not tell the colours apart reads the numbers."""

    name: str
    title: str
    clean: tuple[Mark, ...]
    attacked: tuple[Mark, ...]


def accuracy_chart(name: str, title: str, lines: Sequence[Line]) -> Chart:
    """Accuracy in percent against the radius. `name` must be unique on its page: it prefixes the SVG's ids."""
    return Chart(name, title, tuple(lines), "radius ε (largest change of a pixel)", "accuracy in %", scale=100)


def loss_chart(name: str, title: str, lines: Sequence[Line], panels: Sequence[str]) -> Chart:
    """Attacks' mean losses against their steps: each loss in its own panel."""
    return Chart(name, title, tuple(lines), "step of the attack", "", panels=tuple(panels))


def risk_chart(name: str, title: str, lines: Sequence[Line]) -> Chart:
    """Errors against coverage, both in percent: x is given so, y as a share."""
    return Chart(name, title, tuple(lines), "images accepted in %", "errors among them in %", scale=100)


def distortion_chart(name: str, title: str, lines: Sequence[Line]) -> Chart:
    """What is left of the distance to the target against the size of the change, both as shares of all of it."""
    x, y = "change, in % of the way to the target image", "distance to the target left in %"
    return Chart(name, title, tuple(lines), x, y, scale=100)


def far_chart(name: str, title: str, lines: Sequence[Line]) -> Chart:
    """Accuracy in percent against the largest L2 distance at which an attacked image counts."""
    return Chart(name, title, tuple(lines), "L2 distance from the clean image", "accuracy in %", scale=100)


def losses_chart(name: str, lines: Sequence[Line]) -> Chart:
    """The mean loss of each epoch of a training."""
    return Chart(name, "Training loss of each epoch", tuple(lines), "epoch", "mean loss", scale=1)
