"""The result of the timing track as a file: who was timed, round by round, on which machine. Imports no torch.

One file holds one run, in which all took turns in one process. Medians, intervals and ratios are computed from its
rounds, never stored; files of different machines are never put into one order.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench import record, seeds
from bench.errors import BenchError
from bench.places import write_atomically

FOLDER = "timing"  # in a folder of records, beside those of the protocols
NOISY = 0.05  # an interquartile range beyond this share of the median
CLASSIFIER, REFERENCE = "classifier", "reference"  # the entrants that the others are compared with
LARGEST_FILE = 10_000_000  # bytes

Kind = Literal["classifier", "reference", "defense", "variant"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(_Frozen):
    """What decides a time beside the code: equal machines may be compared, others not."""

    device: Literal["cpu", "cuda"]
    name: str = Field(description="of the GPU, or of the processor")
    cores: int = Field(ge=1)
    threads: int = Field(ge=1)
    system: str
    driver: str = Field(default="", description="of the GPU")
    cuda: str = ""
    cudnn: str = ""
    tf32: bool = Field(description="whether products or convolutions may be rounded to TF32")
    amp: bool = Field(description="whether autocast was on")
    heap_pinned: bool
    versions: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name the machine."""
        return seeds.digest(self.model_dump(mode="json"))[:8]


class Measure(_Frozen):
    """The times of one entrant at one size of batch, in seconds a batch, in the order of the rounds."""

    batch: int = Field(ge=1)
    seconds: tuple[float, ...] = Field(min_length=1)
    derived_from: int = Field(default=0, ge=0, description="the batch that was timed instead; 0: this one itself")

    @model_validator(mode="after")
    def _positive(self) -> Measure:
        if any(second <= 0 for second in self.seconds):
            raise ValueError("times must be positive")
        return self

    @property
    def median(self) -> float:
        """Seconds a batch."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one, in seconds a batch."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    @property
    def p95(self) -> float:
        """The 95th percentile, in seconds a batch."""
        return float(np.quantile(self.seconds, 0.95))

    @property
    def spread(self) -> float:
        """The interquartile range as a share of the median."""
        low, high = self.quartiles
        return (high - low) / self.median

    @property
    def is_noisy(self) -> bool:
        """Whether the machine had other work: such a row is marked, and wins nothing."""
        return self.spread > NOISY

    @property
    def images_per_second(self) -> float:
        """Throughput: the batch over its median."""
        return self.batch / self.median

    @property
    def interval(self) -> float:
        """The width of the median's 95 % interval as a share of it (McGill, Tukey and Larsen 1978)."""
        return 2 * 1.57 * self.spread / math.sqrt(len(self.seconds))


class Passes(_Frozen):
    """Rows that one image sends through a net for one answer."""

    forward: float = Field(ge=0)
    backward: float = Field(ge=0)


class Score(_Frozen):
    """Accuracy on the first `n` images of the test split's permutation: clean, and under gray-box FGSM."""

    n: int = Field(ge=1)
    clean: float = Field(ge=0, le=1)
    fgsm: float = Field(ge=0, le=1)
    eps: float = Field(gt=0)


class Entrant(_Frozen):
    """One who was timed: the bare classifier, a defense, the reference search, or a variant of it."""

    name: str
    kind: Kind
    title: str
    recipe: str = ""
    settings: Mapping[str, Any] = {}
    weights: str = Field(default="", description="sha256 of the weights; empty where there are none")
    trained: bool = True
    first_seconds: float = Field(gt=0, description="the very first call, of one image, before any warm-up")
    measures: tuple[Measure, ...] = Field(min_length=1)
    units: float = Field(
        default=0, ge=0, description="forward and backward passes of the classifier that it costs beyond one"
    )
    passes: Mapping[str, Passes] = Field(
        default={}, description="rows by net: the classifier, and the defense's own by name"
    )
    peak_memory_mb: float = Field(ge=0, description="the most that one call at `peak_memory_batch` held at once")
    peak_memory_batch: int = Field(ge=1)
    score: Score | None = None

    @model_validator(mode="after")
    def _sizes(self) -> Entrant:
        sizes = [measure.batch for measure in self.measures]
        if len(set(sizes)) < len(sizes):
            raise ValueError("a size of batch occurs twice")
        return self

    def at(self, batch: int) -> Measure | None:
        """The times at a size of batch, if there are any."""
        return next((measure for measure in self.measures if measure.batch == batch), None)


class Timing(_Frozen):
    """One run of the timing track."""

    schema_version: Literal[1] = 1
    dataset: str
    classifier: str
    classifier_weights: str
    machine: Machine
    commit: str = ""
    entrants: tuple[Entrant, ...]
    left_out: Mapping[str, str] = Field(default={}, description="defenses that were not timed, with the reason")

    @model_validator(mode="after")
    def _names(self) -> Timing:
        names = [entrant.name for entrant in self.entrants]
        if len(set(names)) < len(names):
            raise ValueError("two entrants have one name")
        if CLASSIFIER not in names:
            raise ValueError("the classifier alone is missing")
        return self

    @property
    def file_name(self) -> str:
        """A run on the same machine, data and classifier replaces this one."""
        return f"{self.dataset}-{self.classifier}-{self.machine.digest}.json"

    @property
    def batches(self) -> tuple[int, ...]:
        """All sizes that somebody was timed at, from small to large."""
        return tuple(sorted({measure.batch for entrant in self.entrants for measure in entrant.measures}))

    def entrant(self, name: str) -> Entrant | None:
        """The entrant of that name, if it took part."""
        return next((entrant for entrant in self.entrants if entrant.name == name), None)

    def ratio(self, one: Entrant, to: str, batch: int) -> float | None:
        """How many times as long `one` takes as the entrant `to`: the median over the rounds in which both were timed;
        of their medians where one of them is derived. None where one of them is missing."""
        other = self.entrant(to)
        mine, theirs = one.at(batch), other.at(batch) if other else None
        if mine is None or theirs is None:
            return None
        if mine.derived_from or theirs.derived_from:
            return mine.median / theirs.median
        return statistics.median(a / b for a, b in zip(mine.seconds, theirs.seconds, strict=False))


def save(timing: Timing, root: Path) -> Path:
    """Write a run into the folder of records `root`; returns the file."""
    path = root / FOLDER / timing.file_name
    content = record.encoded(timing)
    write_atomically(path, lambda file: file.write(content))
    return path


def read(path: Path) -> Timing:
    """The run in a file. Raises BenchError where it is torn, edited, or no run."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        payload = json.loads(path.read_text())
        if payload.pop("checksum") != record.checksum(payload):
            raise ValueError("its checksum does not match: it was edited or torn")
        timing = Timing.model_validate(payload)
        if timing.file_name != path.name:
            raise ValueError(f"it should be called {timing.file_name}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        first = f"{problem.error_count()} invalid fields" if isinstance(problem, ValidationError) else str(problem)
        raise BenchError(f"{path}: {first}; run purifybench timing again") from problem
    return timing


def found(roots: Sequence[Path]) -> Iterator[Timing | BenchError]:
    """The runs in folders of records by file name, each once; for a file that is none, what is wrong with it."""
    seen: set[str] = set()
    paths = [path for root in roots for path in sorted((root / FOLDER).glob("*.json"))]
    for path in sorted(paths, key=lambda path: path.name):
        try:
            timing = read(path)
        except BenchError as problem:
            yield problem
            continue
        if path.name not in seen:
            seen.add(path.name)
            yield timing
