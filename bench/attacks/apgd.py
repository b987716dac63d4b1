"""Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1): gradient ascent whose step size needs no tuning.

The step is halved, and the search returns to the best point, wherever progress over a window of steps was poor. Ours
keeps each image's state apart, and keeps a broken image before one of higher loss. `apgd` raises a loss, `apgd_t` aims
at one wrong class after another.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, PerImage, Watch, balls, chosen, in_turn, look, losses, where, wrong_classes
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
    stop_when_broken: bool = False,
) -> Attacked:
    """Auto-PGD in the "linf" or "l2" ball with any loss of bench.attacks.losses, from `restarts` random starts.

    `logits` may return (draws, N, K) for a random defense. Each image's best iterate is returned: a broken one before
    an unbroken one, then the one of higher loss (with draws: the higher mean loss alone, as one lucky draw proves
    nothing). With `stop_when_broken` an image leaves the batch with the iterate that broke it, nothing more is sent
    through the model for it, and its last loss is repeated; which images are broken stays the same. It has no effect
    with draws. Raises ValueError for eps < 0, steps < 1, restarts < 1 or an unknown norm.
    """
    if eps < 0 or steps < 1 or restarts < 1:
        raise ValueError(f"apgd needs eps >= 0, steps >= 1 and restarts >= 1, got {eps}, {steps}, {restarts}")
    raised, ball = losses.get(loss), balls.get(norm)

    def run(rows: Tensor, noise: ImageDraws) -> Attacked:
        start = ball.start(images[rows], eps, noise)
        return ascend(logits, images[rows], labels[rows], None, start, eps, ball, raised, steps, stop_when_broken)

    return in_turn([run] * restarts, len(images), draws, stop_when_broken)


def apgd_t(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    first_target: int = 1,
    stop_when_broken: bool = False,
) -> Attacked:
    """Auto-PGD on the targeted DLR loss: a run of `steps` for each of the `targets` likeliest wrong classes.

    The wrong classes are ordered by the logits of the clean image (with draws: their mean), and tried from the
    `first_target`-th on; there are fewer runs where there are fewer classes. With 2 or 3 classes, for which the
    targeted DLR is not defined, the targeted margin takes its place. What is returned, and `stop_when_broken`, are as
    in `apgd`. Raises ValueError for eps < 0, steps < 1, targets < 1, a first target that does not exist or an unknown
    norm.
    """
    if eps < 0 or steps < 1 or targets < 1:
        raise ValueError(f"apgd_t needs eps >= 0, steps >= 1 and targets >= 1, got {eps}, {steps}, {targets}")
    order = wrong_classes(logits, images, labels)  # (N, K - 1)
    loss, ball = losses.targeted_margin if order.shape[1] < 3 else losses.targeted_dlr, balls.get(norm)

    def run(aim: Tensor, rows: Tensor, noise: ImageDraws) -> Attacked:
        start = ball.start(images[rows], eps, noise)
        return ascend(logits, images[rows], labels[rows], aim[rows], start, eps, ball, loss, steps, stop_when_broken)

    runs = [functools.partial(run, aim) for aim in chosen(order, targets, first_target).T]
    return in_turn(runs, len(images), draws, stop_when_broken)


def _windows(steps: int) -> set[int]:
    """The steps after which the step size is reconsidered: 0.22 of all at first, ever closer, never below 0.06."""
    length, shrink, shortest = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    ends, end = set(), length
    while end <= steps:
        ends.add(end)
        length = max(length - shrink, shortest)
        end += length
    return ends


@dataclass
class _Search(PerImage):
    centre: Tensor
    labels: Tensor
    target: Tensor
    current: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    top: Tensor  # the highest loss, where it was reached and its gradient: where a poor window returns to
    top_images: Tensor
    top_gradient: Tensor
    kept: Tensor  # what is returned
    kept_loss: Tensor
    kept_broken: Tensor
    step_size: Tensor
    raised: Tensor  # steps of this window that raised the loss
    halved: Tensor  # whether the last window halved the step size
    checked_top: Tensor  # the highest loss at the end of the last window


def ascend(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    target: Tensor | None,
    start: Tensor,
    eps: float,
    ball: balls.Ball,
    loss: losses.Loss,
    steps: int,
    stop_when_broken: bool,
    first_step: float = 2.0,
) -> Attacked:
    """One run of algorithm 1 from `start` (N, C, H, W) in the ball around `images`, towards the classes `target` (N,)
    where the loss is a targeted one. The first step is `first_step` times eps long: 2 crosses the ball, and who goes on
    from a good place takes less."""
    n, device = len(images), images.device
    everyone, watch = torch.arange(n, device=device), Watch(images)
    seen = look(logits, start, labels, loss, target=target)
    watch.note(everyone, seen.broken, seen.blocked)
    success = torch.where(seen.broken, 0, torch.full_like(labels, -1))
    curve = torch.empty(steps + 1, n, device=device, dtype=images.dtype)
    curve[0] = seen.loss
    found, found_broken = images.clone(), torch.zeros(n, dtype=torch.bool, device=device)
    s = _Search(
        row=everyone, centre=images, labels=labels, target=labels if target is None else target,
        current=start, previous=start, gradient=seen.gradient, loss=seen.loss,
        top=seen.loss, top_images=start, top_gradient=seen.gradient,
        kept=start, kept_loss=seen.loss, kept_broken=seen.broken & seen.certain,
        step_size=torch.full_like(seen.loss, first_step * eps), raised=torch.zeros_like(seen.loss),
        halved=torch.ones_like(seen.broken), checked_top=seen.loss,
    )  # fmt: skip
    checked_at, windows = 0, _windows(steps)
    for step in range(1, steps + 1):
        if stop_when_broken:
            done = s.kept_broken
            found[s.row[done]], found_broken[s.row[done]] = s.kept[done], True
            s = s.rows(~done)
        curve[step] = curve[step - 1]
        if not len(s.row):
            continue
        ahead = ball.project(ball.step(s.current, s.gradient, s.step_size), s.centre, eps)
        if step > 1:
            ahead = s.current + MOMENTUM * (ahead - s.current) + (1 - MOMENTUM) * (s.current - s.previous)
            ahead = ball.project(ahead, s.centre, eps)
        s.current, s.previous = ahead, s.current
        aim = None if target is None else s.target
        seen = look(logits, s.current, s.labels, loss, last=step == steps, target=aim)
        watch.note(s.row, seen.broken, seen.blocked)
        curve[step, s.row] = seen.loss
        success[s.row] = torch.where((success[s.row] < 0) & seen.broken, step, success[s.row])
        s.raised += seen.loss > s.loss
        s.loss, s.gradient = seen.loss, seen.gradient
        broken = seen.broken & seen.certain
        better = (broken & ~s.kept_broken) | ((broken == s.kept_broken) & (seen.loss > s.kept_loss))
        s.kept, s.kept_loss = where(better, s.current, s.kept), torch.where(better, seen.loss, s.kept_loss)
        s.kept_broken = s.kept_broken | broken
        higher = seen.loss > s.top
        s.top, s.top_images = torch.where(higher, seen.loss, s.top), where(higher, s.current, s.top_images)
        s.top_gradient = where(higher, s.gradient, s.top_gradient)
        if step in windows:
            stuck = ~s.halved & (s.checked_top >= s.top)
            s.halved = (s.raised <= OSCILLATION * (step - checked_at)) | stuck
            s.step_size = torch.where(s.halved, s.step_size / 2, s.step_size)
            s.current = where(s.halved, s.top_images, s.current)
            s.gradient = where(s.halved, s.top_gradient, s.gradient)
            checked_at, s.checked_top = step, s.top
            s.raised = torch.zeros_like(s.raised)
    found[s.row], found_broken[s.row] = s.kept, s.kept_broken
    return Attacked(found, curve, success, found_broken, watch.share(), watch.looks)
