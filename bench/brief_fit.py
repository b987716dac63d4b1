"""A `fit` cut short, for bench.checks: its first optimizer step on 32 digits, and what it does after its training."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from bench import data, draws, training
from bench.data import Dataset
from bench.defense import Defense, has_door
from bench.progress import Advance, Progress


@cache
def digits() -> Dataset:
    """scikit-learn's digits, loaded once."""
    return data.load("digits")


def tiny_data() -> Dataset:
    """32 images to train on, 32 to choose on, none to test."""
    whole = digits()
    return Dataset("digits", whole.train[:32], whole.validation[:32], whole.test[:0], whole.class_names, whole.split)


class _EnoughError(Exception):
    pass


class _OneStep(Progress):
    """Stops a training after its first optimizer step: at the first report of progress at which weights have changed,
    as a `fit` may make its data before it learns. After so many reports that changed nothing it stops all the same."""

    REPORTS = 200

    def __init__(self, defense: Defense) -> None:
        self._defense, self._before, self._heard = defense, training.weights_hash(defense), 0

    @contextmanager
    def task(self, label: str, total: float, done: float = 0) -> Iterator[Advance]:
        def advance(units: float) -> None:
            self._heard += 1
            if self._heard >= self.REPORTS or training.weights_hash(self._defense) != self._before:
                raise _EnoughError

        yield advance


class _AllTrained(_OneStep):
    """Says of every training that it is done already, as after a stop, so that what follows it is reached."""

    def restore(self, label: str, stateful: Mapping[str, Any]) -> tuple[int, list[float]]:
        return sys.maxsize, [0.0]


def one_step(defense: Defense) -> None:
    """One optimizer step of `fit` where it reports progress, all of it on 32 images where it does not."""
    _fit(defense, _OneStep)


def rest(defense: Defense) -> None:
    """`fit` again, without the epochs of its trainings: such as the thresholds that it sets when it has learned. Where
    it learns in a loop of its own, or in a process of its own, one more step of that."""
    _fit(defense, _AllTrained)


def _fit(defense: Defense, until: type[_OneStep]) -> None:
    if has_door(defense, "fit"):
        try:
            with training.global_seed(0):
                defense.fit(tiny_data(), draws.generator("cpu", "check", "fit"), until(defense))
        except _EnoughError:
            pass
    defense.eval()
