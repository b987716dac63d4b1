"""Draws charts and maps with matplotlib, as inline SVG that follows the page: text in `currentColor`, series in CSS
variables.

matplotlib draws with marker colours that are then replaced, so that one file serves light and dark. Legends are HTML
beside the figure (they wrap on a phone, and names from records never pass through matplotlib's math parser).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leaderboard.figures import CLASSES, Chart, Line, Map, Mark

_INK, _GRID, _LABEL = "#000101", "#000102", "#000103"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_SVG_OPTIONS = {"svg.fonttype": "none", "svg.hashsalt": "purifybench", "path.simplify": False}
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def draw(what: Chart | Map) -> str:
    """The `<svg>` element of a figure; equal figures give equal text."""
    with matplotlib.style.context(["default", _SVG_OPTIONS]):
        return _lines(what) if isinstance(what, Chart) else _points(what)


def _lines(chart: Chart) -> str:
    labels = chart.panels or (chart.y_label,)
    foot, panel, gap = 0.496, 1.6 if chart.panels[1:] else 2.608, 0.25  # inches
    height = foot + len(labels) * (panel + gap) - gap + 0.096
    figure = Figure(figsize=(5.0, height))
    FigureCanvasSVG(figure)
    for place, label in enumerate(labels):
        bottom = foot + (len(labels) - 1 - place) * (panel + gap)
        axes = figure.add_axes((0.12, bottom / height, 0.865, panel / height))
        for line in chart.lines:
            if line.panel == place or not chart.panels:
                _draw(axes, line, chart.scale)
        is_last = place == len(labels) - 1
        _dress(axes, chart, chart.x_label if is_last else "", label)
        if chart.panels:
            axes.set_xlim(*_width(chart))
            axes.tick_params(labelbottom=is_last)
    return _inline(_saved(figure), chart.name)


def _width(chart: Chart) -> tuple[float, float]:
    """What x all panels share, with a margin."""
    every = [x for line in chart.lines for x in line.x]
    margin = 0.02 * ((max(every) - min(every)) or 1)
    return min(every) - margin, max(every) + margin


def _dress(axes: matplotlib.axes.Axes, chart: Chart, x_label: str, y_label: str) -> None:
    if chart.scale == 100:
        axes.set_ylim(-3, 103)
    axes.margins(x=0.02)
    axes.set_xlabel(x_label, color=_INK, fontsize=10)
    axes.set_ylabel(y_label, color=_INK, fontsize=10)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9.5, length=0, pad=5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=chart.scale == 1, steps=[1, 2, 5, 10]))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_INK)
        spine.set_linewidth(0.8)


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


def _points(shown: Map) -> str:
    figure = Figure(figsize=(3.4, 3.4))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.03, 0.03, 0.94, 0.94))
    axes.set_axis_off()
    axes.set(xlim=(-1, 1), ylim=(-1, 1))
    for marks, size in ((shown.clean, 3.4 if shown.attacked else 5.5), (shown.attacked, 6.5)):
        for label in sorted({mark.label for mark in marks}):
            at = [(mark.x, mark.y) for mark in marks if mark.label == label]
            axes.plot(
                *zip(*at, strict=True), linestyle="none", marker="o" if marks is shown.clean else f"${label:d}$",
                markersize=size, markeredgewidth=0, color=f"#0002{1 + label % CLASSES:02d}", clip_on=False,
            )  # fmt: skip
    for one in _named(shown.clean):
        axes.text(one.x, one.y, f"{one.label:d}", color=_LABEL, fontsize=15, ha="center", va="center")
    return _brief(_inline(_saved(figure), shown.name))


def _saved(figure: Figure) -> str:
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, metadata=_METADATA)
    return target.getvalue()


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
