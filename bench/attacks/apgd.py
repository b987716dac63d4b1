"""Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1): gradient ascent whose step size needs no tuning.

The step is halved, and the search returns to the best point, wherever progress over a window of steps was poor. Ours
is batched over restarts, keeps each image's state apart, and keeps a broken image before one of higher loss.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, balls, better_of, look, losses, where
from bench.draws import ImageDraws

MOMENTUM = 0.75  # weight of the new step against the last one
OSCILLATION = 0.75  # a window in which fewer steps than this share raised the loss halves the step size


def apgd(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    loss: str = "cross_entropy",
    steps: int = 100,
    restarts: int = 1,
) -> Attacked:
    """Auto-PGD in the "linf" or "l2" ball with any loss of bench.attacks.losses, from `restarts` random starts.

    `logits` may return (draws, N, K) for a random defense. Each image's best iterate is returned: a broken one before
    an unbroken one, then the one of higher loss (with draws: the higher mean loss alone, as one lucky draw proves
    nothing). Raises ValueError for eps < 0, steps < 1, restarts < 1 or an unknown norm.
    """
    if eps < 0 or steps < 1 or restarts < 1:
        raise ValueError(f"apgd needs eps >= 0, steps >= 1 and restarts >= 1, got {eps}, {steps}, {restarts}")
    ball = balls.get(norm)
    runs = (
        _ascend(logits, images, labels, eps, ball, losses.get(loss), ball.start(images, eps, draws), steps)
        for _ in range(restarts)
    )
    return functools.reduce(better_of, runs)


def _windows(steps: int) -> set[int]:
    """The steps after which the step size is reconsidered: 0.22 of all at first, ever closer, never below 0.06."""
    length, shrink, shortest = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    ends, end = set(), length
    while end <= steps:
        ends.add(end)
        length = max(length - shrink, shortest)
        end += length
    return ends


def _ascend(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    eps: float,
    ball: balls.Ball,
    loss: losses.Loss,
    start: Tensor,
    steps: int,
) -> Attacked:
    n, device = len(images), images.device
    current, previous = start, start
    seen = look(logits, current, labels, loss)
    gradient = seen.gradient
    curve = torch.empty(steps + 1, n, device=device, dtype=images.dtype)
    curve[0] = seen.loss
    success = torch.where(seen.broken, 0, torch.full_like(labels, -1))
    top, top_images, top_gradient = seen.loss, current, gradient  # the highest loss: where a poor window returns to
    kept, kept_loss, kept_broken = current, seen.loss, seen.broken & seen.certain  # what is returned
    step_size = torch.full((n,), 2 * eps, device=device, dtype=images.dtype)
    raised = torch.zeros(n, device=device, dtype=images.dtype)
    halved = torch.ones(n, dtype=torch.bool, device=device)
    checked_at, checked_top = 0, top
    windows = _windows(steps)
    for step in range(1, steps + 1):
        ahead = ball.project(ball.step(current, gradient, step_size), images, eps)
        if step > 1:
            ahead = current + MOMENTUM * (ahead - current) + (1 - MOMENTUM) * (current - previous)
            ahead = ball.project(ahead, images, eps)
        current, previous = ahead, current
        seen = look(logits, current, labels, loss, last=step == steps)
        gradient = seen.gradient
        curve[step] = seen.loss
        raised += seen.loss > curve[step - 1]
        success = torch.where((success < 0) & seen.broken, step, success)
        broken = seen.broken & seen.certain
        better = (broken & ~kept_broken) | ((broken == kept_broken) & (seen.loss > kept_loss))
        kept, kept_loss = where(better, current, kept), torch.where(better, seen.loss, kept_loss)
        kept_broken = kept_broken | broken
        higher = seen.loss > top
        top, top_images = torch.where(higher, seen.loss, top), where(higher, current, top_images)
        top_gradient = where(higher, gradient, top_gradient)
        if step in windows:
            stuck = ~halved & (checked_top >= top)
            halved = (raised <= OSCILLATION * (step - checked_at)) | stuck
            step_size = torch.where(halved, step_size / 2, step_size)
            current, gradient = where(halved, top_images, current), where(halved, top_gradient, gradient)
            checked_at, checked_top = step, top
            raised = torch.zeros_like(raised)
    return Attacked(kept.clone(), curve, success, kept_broken)
