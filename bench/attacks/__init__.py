"""Attacks: one idea a file, each a function over a logits callable.

    def attack(logits, images, labels, *, eps, draws, ...) -> Attacked

`logits` maps images (N, C, H, W) in [0, 1] to (N, K); `labels` are int64 (N,); `eps` is the radius on the [0, 1]
scale; `draws` gives each image its own random numbers (bench.draws.ImageDraws). Attacks leave their inputs, the
model and the global random state as they were, and image i's result does not depend on the rest of the batch.
Names, versions and papers stand in bench.catalog.ATTACKS.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from bench.catalog import ATTACKS
from bench.errors import unknown

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attacked:
    """What an attack made of a batch.

    `images` (N, C, H, W); `losses` (steps + 1, N), the loss before each step and after the last; `step_of_success`
    int64 (N,), the first step after which the attacked model was wrong, 0 if it was wrong before any, -1 if never.
    """

    images: Tensor
    losses: Tensor
    step_of_success: Tensor


def get(name: str) -> Callable[..., Attacked]:
    """The attack of that name. Raises BenchError, with the nearest names, if there is none."""
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS, see="purifybench list attacks")
    module, function = ATTACKS[name].function.split(":")
    return cast(Callable[..., Attacked], getattr(importlib.import_module(module), function))
