"""What long work reports to: bars with the time left on a terminal, plain lines in a log, nothing in a library call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Advance = Callable[[float], None]


class Progress:
    """Silent, and keeps no checkpoints: the default for notebooks and tests. Subclasses show or keep something."""

    def task(self, label: str, total: float, done: float = 0) -> AbstractContextManager[Advance]:
        """Report work of `total` units, `done` of which are finished; call the result with each number of new units."""
        return nullcontext(lambda units: None)

    def say(self, message: str) -> None:
        """One line for the user."""

    def restore(self, label: str, stateful: Mapping[str, Any]) -> tuple[int, list[float]]:
        """Load a checkpoint of the training `label` into `stateful`, if there is one: (epochs done, loss of each)."""
        return 0, []

    def checkpoint(self, label: str, stateful: Mapping[str, Any], losses: list[float]) -> None:
        """Keep the state after an epoch."""


class LineProgress(Progress):
    """A line when a task starts, ends, and every `every` seconds between: for logs and pipes."""

    def __init__(self, every: float = 30.0) -> None:
        self.every = every

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, label: str, total: float, done: float = 0) -> Iterator[Advance]:
        start = spoken = time.monotonic()
        first, finished = done, done

        def advance(units: float) -> None:
            nonlocal finished, spoken
            finished += units
            now = time.monotonic()
            if now - spoken >= self.every and finished < total and finished > first:
                left = (now - start) / (finished - first) * (total - finished)
                self.say(f"  {label}: {finished / total:.0%}, about {duration(left)} left")
                spoken = now

        yield advance
        if time.monotonic() - start >= 1:
            self.say(f"  {label}: done in {duration(time.monotonic() - start)}")


class BarProgress(Progress):
    """rich's progress bars on a terminal: the outermost stays, inner ones go when they are done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.bars = Bars(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
        self._open = 0

    def say(self, message: str) -> None:
        self.bars.console.print(message, highlight=False, markup=False)

    @contextmanager
    def task(self, label: str, total: float, done: float = 0) -> Iterator[Advance]:
        if self._open == 0:
            self.bars.start()
        self._open += 1
        bar = self.bars.add_task(label.replace("[", "\\["), total=total, completed=done)  # type: ignore[arg-type]
        try:
            yield lambda units: self.bars.advance(bar, units)
        finally:
            self._open -= 1
            if self._open == 0:
                self.bars.stop()
            self.bars.remove_task(bar)


def for_terminal() -> Progress:
    """Bars where standard error is a terminal, lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def duration(seconds: float) -> str:
    """A time for people: 8 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
