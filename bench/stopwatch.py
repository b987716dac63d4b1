"""Times of several answers in turns: round by round in one process, on the same images, by a clock that waits for the
device. So a busy neighbour or a hot chip slows everybody alike, and ratios are those of rounds, not of runs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from bench import cost, draws
from bench.defense import Defense
from bench.errors import BenchError
from bench.progress import Progress
from bench.timing_record import CLASSIFIER, Entrant, Kind, Measure, Passes, Score

ROUNDS, LEAST_ROUNDS, SLOW_ROUNDS = 30, 5, 5
CLOSE_ENOUGH = 0.02  # the width of the median's interval at which no more rounds are needed
LATENCY, THROUGHPUT = 1, 128
SLOW_BATCH = 32  # the largest at which a search is timed on CPU; larger ones are derived from it
LARGEST = 16_384  # no larger batch is tried on a GPU
CURVE = ((200, 1), (100, 1), (50, 1), (25, 1), (100, 2))  # steps and restarts of the searches beside Defense-GAN's

Answer = Callable[[Tensor, Generator], Tensor]


@dataclass(frozen=True)
class Stopwatch:
    """Seconds that work takes on a device that may go on after its call has returned: the clock is read only after the
    device has done all that it was given, before and after."""

    wait: Callable[[], None]
    clock: Callable[[], float] = time.perf_counter

    def seconds(self, work: Callable[[], object]) -> float:
        """The time from an idle device to an idle device."""
        self.wait()
        begin = self.clock()
        work()
        self.wait()
        return self.clock() - begin


@dataclass
class Runner:
    """Who takes part: how it answers, and how often it is asked."""

    name: str
    kind: Kind
    title: str
    answer: Answer
    defense: Defense | None = None
    recipe: str = ""
    settings: Mapping[str, Any] | None = None
    weights: str = ""
    trained: bool = True
    slow: bool = False
    units: float = 0.0
    score: Score | None = None
    first_seconds: float | None = None  # of its very first call, where something else called it since


@dataclass(frozen=True)
class Ask:
    """What to time: rounds of those that are quick and of those that are slow, sizes of batch, and of how many images
    the accuracies of the search's curve are (0: none)."""

    rounds: int = ROUNDS
    slow_rounds: int = SLOW_ROUNDS
    batches: tuple[int, ...] = (LATENCY, THROUGHPUT)
    slow_batch: int = SLOW_BATCH
    curve: tuple[tuple[int, int], ...] = CURVE
    score_images: int = 50

    def __post_init__(self) -> None:
        """Raises BenchError for a number below 1, where one is needed."""
        least = {"--rounds": self.rounds, "--slow-rounds": self.slow_rounds, "--slow-batch": self.slow_batch}
        for option, value in {**least, "--batches": min(self.batches, default=0)}.items():
            if value < 1:
                raise BenchError(f"{option} must be at least 1, got {value}")


def first_call(answer: Answer, image: Tensor, stopwatch: Stopwatch) -> float:
    """The seconds of one answer to one `image` (1, C, H, W), to be asked before anything else calls it: whatever is
    compiled, loaded or allocated once is in them."""
    given, generator = image.clone(), draws.generator(image.device, "timing", "first")
    with torch.no_grad():
        return stopwatch.seconds(lambda: answer(given, generator))


def contest(
    runners: Sequence[Runner], images: Tensor, rounds: Mapping[str, int], stopwatch: Stopwatch, progress: Progress
) -> dict[str, tuple[float, ...]]:
    """The seconds of each runner for one answer to `images`, round by round: in each, everybody once, another first
    every time, on a copy of the images.

    A runner drops out after its `rounds`, or after LEAST_ROUNDS once the interval of its median is narrow; the bare
    classifier stays to the end, as all are compared with it. One round before them all is not counted.
    """
    spent: dict[str, list[float]] = {runner.name: [] for runner in runners}

    def once(runner: Runner, number: int) -> float:
        given = images.clone()
        generator = draws.generator(images.device, "timing", number)
        with torch.no_grad():
            return stopwatch.seconds(lambda: runner.answer(given, generator))

    most = max(rounds[runner.name] for runner in runners)
    label = f"batches of {len(images)}"
    with _undisturbed(), progress.task(label, total=sum(rounds[runner.name] + 1 for runner in runners)) as advance:
        for runner in runners:
            once(runner, 0)
            advance(1)
        for number in range(1, most + 1):
            waiting = [runner for runner in runners if not _is_done(spent[runner.name], rounds[runner.name])]
            others = [runner for runner in waiting if runner.kind != "classifier"]
            if not others and len(waiting) < len(runners):
                break
            turn = [*waiting, *(one for one in runners if one.kind == "classifier" and one not in waiting)]
            first = number % len(turn)
            for runner in [*turn[first:], *turn[:first]]:
                spent[runner.name].append(once(runner, number))
                advance(1 if runner in waiting else 0)
    return {name: tuple(seconds) for name, seconds in spent.items()}


def _is_done(seconds: Sequence[float], most: int) -> bool:
    if len(seconds) >= most:
        return True
    return len(seconds) >= LEAST_ROUNDS and Measure(batch=1, seconds=tuple(seconds)).interval < CLOSE_ENOUGH


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the garbage collector."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def measure(
    runners: Sequence[Runner], images: Tensor, ask: Ask, stopwatch: Stopwatch, progress: Progress
) -> list[Entrant]:
    """Time all runners on the first of `images` (N, C, H, W), as many as a batch asks for."""
    first = {
        runner.name: runner.first_seconds or first_call(runner.answer, images[:1], stopwatch) for runner in runners
    }
    measures: dict[str, list[Measure]] = {runner.name: [] for runner in runners}
    is_slow = any(runner.slow for runner in runners)
    for batch in sorted({*ask.batches, *([ask.slow_batch] if is_slow else [])}):
        taking_part = [runner for runner in runners if not runner.slow or batch <= ask.slow_batch]
        rounds = {one.name: ask.slow_rounds if one.slow else ask.rounds for one in taking_part}
        for name, seconds in contest(taking_part, _several(images, batch), rounds, stopwatch, progress).items():
            measures[name].append(Measure(batch=batch, seconds=seconds))
    for runner in runners:
        own = measures[runner.name]
        timed = {one.batch for one in own}
        measures[runner.name] += [_derived(own[-1], batch) for batch in ask.batches if batch not in timed]
    entrants = []
    with progress.task("memory and rows", total=len(runners)) as advance:
        for runner in runners:
            largest = max(one.batch for one in measures[runner.name] if not one.derived_from)
            entrants.append(
                Entrant(
                    name=runner.name, kind=runner.kind, title=runner.title, recipe=runner.recipe,
                    settings=runner.settings or {}, weights=runner.weights, trained=runner.trained,
                    first_seconds=first[runner.name],
                    measures=tuple(sorted(measures[runner.name], key=lambda one: one.batch)),
                    units=float(f"{runner.units:.4g}"), passes=_passes(runner, images[:1]),
                    peak_memory_mb=round(peak_memory_mb(runner.answer, _several(images, largest)), 3),
                    peak_memory_batch=largest, score=runner.score,
                )
            )  # fmt: skip
            advance(1)
    return entrants


def _derived(largest: Measure, batch: int) -> Measure:
    """The times of a larger batch, if a row of it takes as long."""
    seconds = tuple(second * batch / largest.batch for second in largest.seconds)
    return Measure(batch=batch, seconds=seconds, derived_from=largest.batch)


def _several(images: Tensor, batch: int) -> Tensor:
    """So many images, from the start again where there are fewer."""
    return images[torch.arange(batch, device=images.device) % len(images)]


def _passes(runner: Runner, image: Tensor) -> dict[str, Passes]:
    if runner.defense is None:
        return {CLASSIFIER: Passes(forward=1, backward=0)}
    generator = draws.generator(image.device, "timing", "passes")
    counted = cost.passes(runner.defense, image, generator)
    return {name: Passes(forward=ahead, backward=back) for name, (ahead, back) in counted.items()}


def peak_memory_mb(answer: Answer, images: Tensor) -> float:
    """What one answer holds at once beyond the weights, in MiB: as the GPU's allocator says, or, on CPU, of tensors."""
    generator = draws.generator(images.device, "timing", "memory")
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
        before = torch.cuda.memory_allocated(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        with torch.no_grad():
            answer(images.clone(), generator)
        torch.cuda.synchronize(images.device)
        return float(torch.cuda.max_memory_allocated(images.device) - before) / 2**20
    with torch.no_grad(), cost.Held() as held:
        answer(images.clone(), generator)
    return float(held.peak) / 2**20


def largest_batch(runner: Runner, images: Tensor, most: int = LARGEST) -> int:
    """The largest power of two that one answer of a GPU has memory for, from THROUGHPUT; at most `most`."""
    batch = THROUGHPUT
    while 2 * batch <= most:
        try:
            with torch.no_grad():
                runner.answer(_several(images, 2 * batch), draws.generator(images.device, "timing", "largest"))
        except torch.OutOfMemoryError:
            break
        batch *= 2
    if images.is_cuda:
        torch.cuda.empty_cache()
    return batch
