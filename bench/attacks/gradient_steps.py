"""FGSM, R-FGSM and PGD: steps of fixed size up the loss, projected to the ball after each (one loop for both)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, Watch, balls, better_of, look, losses, where
from bench.draws import ImageDraws


def fgsm(logits: Logits, images: Tensor, labels: Tensor, *, eps: float, draws: ImageDraws) -> Attacked:
    """One step of size `eps` along the sign of the cross-entropy's gradient (Goodfellow et al. 2015, arXiv:1412.6572).

    The stepped image is returned even where its loss is lower, as published. Deterministic: `draws` is not used.
    """
    return _ascend(logits, images, labels, eps, balls.get("linf"), losses.cross_entropy, images, 1, eps, False)


def r_fgsm(
    logits: Logits, images: Tensor, labels: Tensor, *, eps: float, draws: ImageDraws, alpha: float = 0.05
) -> Attacked:
    """FGSM of size `eps` - `alpha` from a random corner of the ball of `alpha` (Tramer et al. 2018, arXiv:1705.07204).

    The noise enters by its sign, so the image stays within `eps`. Raises ValueError unless 0 <= alpha <= eps.
    """
    if not 0 <= alpha <= eps:
        raise ValueError(f"r_fgsm needs 0 <= alpha <= eps, got alpha = {alpha}, eps = {eps}")
    ball = balls.get("linf")
    noise = draws.normal(*images.shape[1:]).to(images.dtype)
    start = ball.project(images + alpha * noise.sign(), images, alpha)
    return _ascend(logits, images, labels, eps, ball, losses.cross_entropy, start, 1, eps - alpha, False)


def pgd(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    loss: str = "cross_entropy",
    steps: int = 40,
    step_size: float = 0.01,
    restarts: int = 1,
    random_start: bool = True,
    keep_worst: bool = True,
) -> Attacked:
    """Projected gradient ascent from a random start in the ball (Madry et al. 2018, arXiv:1706.06083).

    All `steps` are run on all images, and each image's iterate of highest loss over all restarts is returned
    (`keep_worst=False`: the last iterate of the last restart, as published). `restarts` beyond the first need
    `random_start`. Raises ValueError for eps < 0, steps < 1, step_size <= 0 or restarts < 1.
    """
    if eps < 0 or steps < 1 or step_size <= 0 or restarts < 1:
        raise ValueError(
            "pgd needs eps >= 0, steps >= 1, step_size > 0 and restarts >= 1, "
            f"got {eps}, {steps}, {step_size}, {restarts}"
        )
    ball, best = balls.get(norm), None
    for _ in range(restarts):
        start = ball.start(images, eps, draws) if random_start else images
        found = _ascend(logits, images, labels, eps, ball, losses.get(loss), start, steps, step_size, keep_worst)
        best = found if best is None or not keep_worst else better_of(best, found)
    assert best is not None
    return best


def _ascend(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    eps: float,
    ball: balls.Ball,
    loss: losses.Loss,
    start: Tensor,
    steps: int,
    step_size: float,
    keep_worst: bool,
) -> Attacked:
    current, sizes = start, torch.full_like(images[:, 0, 0, 0], step_size)
    kept, kept_value = current, torch.full_like(sizes, -torch.inf)
    curve = torch.empty(steps + 1, len(images), device=images.device, dtype=images.dtype)
    success = torch.full_like(labels, -1)
    everyone, watch = torch.arange(len(images), device=images.device), Watch(images)
    for step in range(steps + 1):
        last = step == steps
        seen = look(logits, current, labels, loss, last)
        watch.note(everyone, seen.broken, seen.blocked)
        curve[step] = seen.loss
        success = torch.where((success < 0) & seen.broken, step, success)
        if keep_worst or last:
            higher = (seen.loss > kept_value) | (not keep_worst)
            kept, kept_value = where(higher, current, kept), torch.where(higher, seen.loss, kept_value)
        if not last:
            current = ball.project(ball.step(current, seen.gradient, sizes), images, eps)
    return Attacked(kept.clone(), curve, success, blocked=watch.share(), looks=watch.looks)
