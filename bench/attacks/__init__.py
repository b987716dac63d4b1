"""Attacks: one idea a file, each a function over a logits callable.

    def attack(logits, images, labels, *, eps, draws, ...) -> Attacked

`logits` maps images (N, C, H, W) in [0, 1] to (N, K), or to (draws, N, K) for a random defense; `labels` are int64
(N,); `eps` is the radius on the [0, 1] scale; `draws` gives each image its own random numbers
(bench.draws.ImageDraws). Attacks leave their inputs, the model and the global random state as they were, and image i's
result does not depend on the rest of the batch.
Names, versions and papers stand in bench.catalog.ATTACKS.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from bench.attacks import losses
from bench.catalog import ATTACKS
from bench.errors import unknown

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attacked:
    """What an attack made of a batch.

    `images` (N, C, H, W); `losses` (steps + 1, N), the loss before each step and after the last; `step_of_success`
    int64 (N,), the first step after which the attacked model was wrong, 0 if it was wrong before any, -1 if never;
    `broken` (N,) which of the returned images the attack itself saw misclassified, for attacks that keep track.
    """

    images: Tensor
    losses: Tensor
    step_of_success: Tensor
    broken: Tensor | None = None


def get(name: str) -> Callable[..., Attacked]:
    """The attack of that name. Raises BenchError, with the nearest names, if there is none."""
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS, see="purifybench list attacks")
    module, function = ATTACKS[name].function.split(":")
    found = cast(Callable[..., Attacked], getattr(importlib.import_module(module), function))
    return functools.partial(found, **ATTACKS[name].fixed)


@dataclass(frozen=True)
class Look:
    """What one forward and backward pass told: loss (N,), gradient (N, C, H, W), whether each image is broken (N,).

    `certain` is False where the model answered with draws: then one look proves nothing, and only losses compare.
    """

    loss: Tensor
    gradient: Tensor
    broken: Tensor
    certain: bool


def look(logits: Logits, images: Tensor, labels: Tensor, loss: losses.Loss, last: bool = False) -> Look:
    """Send images through the model and back.

    Where the model has no gradient, or one that is not finite, it is zero: the attack then stays where it started, and
    whoever reads its loss curve sees it. Where its logits are not finite the image is broken, as scoring counts it, and
    its loss is infinite. At the `last` look no gradient is computed.
    """
    with torch.set_grad_enabled(not last):
        attacked = images.detach().requires_grad_(not last)
        scores = logits(attacked)
        value = losses.mean_over_draws(loss(scores, labels))
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), attacked, allow_unused=True)
    known = torch.zeros_like(images) if gradient is None else torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)
    lost = ~value.detach().isfinite()
    reached = torch.where(lost, torch.inf, value.detach())
    return Look(reached, known, losses.is_broken(scores.detach(), labels) | lost, scores.ndim == 2)


def where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Per image (mask (N,)) the one or the other of two batches."""
    return torch.where(mask[:, None, None, None], yes, no)


def better_of(first: Attacked, second: Attacked) -> Attacked:
    """Per image the run whose returned image is broken (where that is told), else the one that reached the higher loss.

    The step of success is the first run's if it had one.
    """
    take = second.losses.amax(dim=0) > first.losses.amax(dim=0)
    if first.broken is not None and second.broken is not None:
        take = (second.broken & ~first.broken) | ((first.broken == second.broken) & take)
    return Attacked(
        where(take, second.images, first.images),
        torch.where(take, second.losses, first.losses),
        torch.where(first.step_of_success < 0, second.step_of_success, first.step_of_success),
        None if first.broken is None or second.broken is None else first.broken | second.broken,
    )
