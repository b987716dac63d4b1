"""Line charts and maps as inline SVG that follows the page: text in `currentColor`, series in CSS variables.

matplotlib draws with marker colours that are then replaced, so that one file serves light and dark. Legends are HTML
beside the figure (they wrap on a phone, and names from records never pass through matplotlib's math parser).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SERIES = 7  # colours there are for series: --s1 to --s7 in site.css
BASELINE_COLOUR = 8  # --s8, a grey for what others are compared with
CLASSES = 10  # colours there are for classes: --s1 to --s10
_INK, _GRID, _LABEL = "#000101", "#000102", "#000103"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_DASHES = ("", "7 3", "2 2.5", "8 3 2 3")
_SVG_OPTIONS = {"svg.fonttype": "none", "svg.hashsalt": "purifybench", "path.simplify": False}
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


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
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def dasharray(self) -> str:
        """The `stroke-dasharray` of the legend's sample; empty for a solid line."""
        return _DASHES[self.dash]


@dataclass(frozen=True)
class Chart:
    """A drawn figure: its SVG, what it shows in one sentence, and the lines for its legend."""

    svg: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Mark:
    """An image on a map, at `x` and `y` in [-1, 1], of class `label`."""

    x: float
    y: float
    label: int


def accuracy_chart(name: str, title: str, lines: Sequence[Line]) -> Chart:
    """Accuracy in percent against the radius. `name` must be unique on its page: it prefixes the SVG's ids."""
    return _chart(name, title, tuple(lines), "radius ε (largest change of a pixel)", "accuracy in %", scale=100)


def loss_chart(name: str, title: str, lines: Sequence[Line]) -> Chart:
    """An attack's mean loss against its step."""
    return _chart(name, title, tuple(lines), "step of the attack", "mean loss (higher is a stronger attack)", scale=1)


def risk_chart(name: str, title: str, lines: Sequence[Line]) -> Chart:
    """Errors against coverage, both in percent: x is given so, y as a share."""
    return _chart(name, title, tuple(lines), "images accepted in %", "errors among them in %", scale=100)


def distortion_chart(name: str, title: str, lines: Sequence[Line]) -> Chart:
    """What is left of the distance to the target against the size of the change, both as shares of all of it."""
    x, y = "change, in % of the way to the target image", "distance to the target left in %"
    return _chart(name, title, tuple(lines), x, y, scale=100)


def losses_chart(name: str, lines: Sequence[Line]) -> Chart:
    """The mean loss of each epoch of a training."""
    return _chart(name, "Training loss of each epoch", tuple(lines), "epoch", "mean loss", scale=1)


@lru_cache(maxsize=1024)  # the same lines are not drawn again: on two pages, or when a served site is built anew
def _chart(name: str, title: str, lines: tuple[Line, ...], x_label: str, y_label: str, scale: float) -> Chart:
    with matplotlib.style.context(["default", _SVG_OPTIONS]):
        figure = Figure(figsize=(5.0, 3.2))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.12, 0.155, 0.865, 0.815))
        for line in lines:
            _draw(axes, line, scale)
        if scale == 100:
            axes.set_ylim(-3, 103)
        axes.margins(x=0.02)
        axes.set_xlabel(x_label, color=_INK, fontsize=10)
        axes.set_ylabel(y_label, color=_INK, fontsize=10)
        axes.grid(axis="y", color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK, labelsize=9.5, length=0, pad=5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=scale == 1, steps=[1, 2, 5, 10]))
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_INK)
            spine.set_linewidth(0.8)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata=_METADATA)
    return Chart(_inline(target.getvalue(), name), title, tuple(lines))


def _draw(axes: matplotlib.axes.Axes, line: Line, scale: float) -> None:
    colour = f"#0002{line.colour:02d}"
    dashes = [float(part) / line.width for part in line.dasharray.split()]
    style: str | tuple[int, list[float]] = (0, dashes) if dashes else "solid"
    if line.low:
        low, high = [scale * v for v in line.low], [scale * v for v in line.high]
        axes.fill_between(line.x, low, high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(
        line.x, [scale * v for v in line.y], color=colour, linestyle=style if line.joined else "none",
        linewidth=line.width, alpha=line.opacity, marker=_MARKERS[line.colour - 1] if line.marked else None,
        markersize=4 if line.joined else 6, markeredgewidth=0, solid_capstyle="round", clip_on=False,
    )  # fmt: skip


@lru_cache(maxsize=256)
def map_chart(name: str, title: str, clean: tuple[Mark, ...], attacked: tuple[Mark, ...]) -> Chart:
    """Clean images as dots in the colour of their class, attacked ones as its number in the same colour, and where
    the clean images of a class are densest its number, large: who does not tell the colours apart reads the numbers."""
    with matplotlib.style.context(["default", _SVG_OPTIONS]):
        figure = Figure(figsize=(3.4, 3.4))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.03, 0.03, 0.94, 0.94))
        axes.set_axis_off()
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
        for marks, size in ((clean, 3.4 if attacked else 5.5), (attacked, 6.5)):
            for label in sorted({mark.label for mark in marks}):
                at = [(mark.x, mark.y) for mark in marks if mark.label == label]
                axes.plot(
                    *zip(*at, strict=True), linestyle="none", marker="o" if marks is clean else f"${label:d}$",
                    markersize=size, markeredgewidth=0, color=f"#0002{1 + label % CLASSES:02d}", clip_on=False,
                )  # fmt: skip
        for one in _named(clean):
            axes.text(one.x, one.y, f"{one.label:d}", color=_LABEL, fontsize=15, ha="center", va="center")
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata=_METADATA)
    return Chart(_brief(_inline(target.getvalue(), name)), title, ())


def _named(marks: Sequence[Mark]) -> list[Mark]:
    """One mark of each class, at which its number is written: where the class is densest, but not on another class's
    number if a third of its marks leaves a choice."""
    chosen: list[Mark] = []
    for label in sorted({mark.label for mark in marks}):
        own = [mark for mark in marks if mark.label == label]
        half, third = (len(own) + 1) // 2, (len(own) + 2) // 3
        dense = sorted(own, key=lambda one: sum(sorted(_apart(one, mark) for mark in own)[:half]))[:third]
        free = (one for one in dense if all(_apart(one, other) > 0.12 for other in chosen))
        chosen.append(next(free, dense[0]))
    return chosen


def _apart(one: Mark, other: Mark) -> float:
    return math.hypot(one.x - other.x, one.y - other.y)


def _brief(svg: str) -> str:
    """A map's SVG at a third of its size: each group's style is said once, and places to a tenth of a point."""
    svg = re.sub(r'<g>\s*(<use [^>]*?) (style="[^"]*")/>', r"<g \2>\1/>", svg)
    svg = re.sub(r'(<use [^>]*?) style="[^"]*"/>\s*', r"\1/>", svg)
    return re.sub(r'(?<= [xy]=")-?\d+\.\d+', lambda number: f"{float(number[0]):.1f}", svg)


def _inline(svg: str, name: str) -> str:
    """The `<svg>` element by itself: no prolog, no metadata, unique ids, colours that follow the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{name}-", svg)
    svg = re.sub(r"#0002(\d\d)", lambda found: f"var(--s{int(found[1])})", svg)
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--line)")
    svg = svg.replace(_LABEL, "currentColor; paint-order: stroke; stroke: var(--page); stroke-width: 4px")
    svg = re.sub(r'font-family: [^;"]*', "font-family: var(--sans)", svg)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    return svg.strip()
