"""Printed beside measured numbers as tables on a terminal, for `purifybench reproduce`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from leaderboard.reported import PAPERS
from leaderboard.reproduce import Line, obstacles, shared_caveats


def overview(found: Sequence[Line]) -> Iterator[RenderableType]:
    """For each paper its tables: how many numbers, how many can be measured here or are, and what the others lack."""
    for source, paper in PAPERS.items():
        table = Table(title=f"{source}: {paper.title}, {paper.authors} {paper.year}", title_justify="left")
        table.add_column("table", no_wrap=True)
        for heading in ("numbers", "measurable here", "in the records"):
            table.add_column(heading, justify="right")
        table.add_column("why the others are not")
        own = [line for line in found if line.row.source == source]
        for name in dict.fromkeys(line.row.table for line in own):
            rows = [line for line in own if line.row.table == name]
            counts = (len(rows), sum(not line.obstacle for line in rows), sum(bool(line.measured) for line in rows))
            table.add_row(name, *map(str, counts), _lacks(rows))
        yield table
    yield "Run what can be measured: purifybench reproduce TABLE, or a whole paper by its name."
    yield "Of Defense-GAN and Defense-VAE no numbers are kept, only settings: papers-v1-defense-gan-mnist and -fmnist."


def _lacks(rows: Sequence[Line], most: int = 3) -> str:
    said = [f"{text} ({count})" for text, count in obstacles(rows).items()]
    return "; ".join(said[:most]) + (f"; {len(said) - most} more" if len(said) > most else "")


def comparison(found: Sequence[Line]) -> Iterator[RenderableType]:
    """A table for each table of a paper: printed, measured with its interval, their difference, and notes below."""
    for name in dict.fromkeys(line.row.table for line in found):
        rows = [line for line in found if line.row.table == name]
        shared, notes = shared_caveats(rows), dict[str, int]()
        table = Table(title=name, title_justify="left")
        for heading in ("data", "attack", "ε", "on", "defense", "counted"):
            table.add_column(heading)
        for heading in ("printed", "measured, 95 % interval", "difference", "n"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("notes")
        for line in rows:
            own = [text for text in (*line.caveats, *_obstacle(line)) if text not in shared]
            marks = [notes.setdefault(text, len(notes) + 1) for text in own]
            table.add_row(*_about(line), *_numbers(line), " ".join(map(str, sorted(marks))))
        yield table
        yield from (Text(f"all  {text}", style="dim") for text in shared)
        yield from (Text(f"{number:>3}  {text}", style="dim") for text, number in notes.items())


def _obstacle(line: Line) -> list[str]:
    return [f"Not measured: {line.obstacle}."] if line.obstacle else []


def _about(line: Line) -> list[str]:
    row, answer = line.row, line.counterpart
    place = f"{row.classifier} from {row.substitute}" if row.classifier and row.substitute else ""
    counted = answer.metric if answer is not None and row.metric == "accuracy" else row.metric.replace("_", " ")
    eps = "" if row.epsilon is None else f"{row.epsilon:g}"
    return [row.dataset, row.attack, eps, place or row.classifier or row.substitute, row.defense, counted]


def _numbers(line: Line) -> list[str]:
    """Printed and measured in percent, their difference in points."""
    measured, difference = line.measured, line.difference
    if measured is None or difference is None:
        return [str(line.row.value_percent), "–", "–", "–"]
    interval = f"{100 * measured.value:.1f} [{100 * measured.low:.1f}, {100 * measured.high:.1f}]"
    return [str(line.row.value_percent), interval, f"{difference:+.1f}", str(measured.n)]
