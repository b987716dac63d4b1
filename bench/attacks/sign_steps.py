"""FGSM and PGD in the Linf ball: steps along the sign of the gradient, projected after each (one loop for both)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.attacks import Attacked, Logits
from bench.draws import ImageDraws


def fgsm(logits: Logits, images: Tensor, labels: Tensor, *, eps: float, draws: ImageDraws) -> Attacked:
    """One step of size `eps` along the sign of the cross-entropy's gradient (Goodfellow et al. 2015, arXiv:1412.6572).

    The stepped image is returned even where its loss is lower, as published. Deterministic: `draws` is not used.
    """
    return _sign_steps(logits, images, labels, eps=eps, start=images, steps=1, step_size=eps, keep_worst=False)


def pgd(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    steps: int = 40,
    step_size: float = 0.01,
    restarts: int = 1,
    random_start: bool = True,
    keep_worst: bool = True,
) -> Attacked:
    """Projected gradient ascent on the cross-entropy from a uniform start in the ball (Madry et al. 2018,
    arXiv:1706.06083).

    All `steps` are run on all images, and each image's iterate of highest loss over all restarts is returned
    (`keep_worst=False`: the last iterate of the last restart, as published). `restarts` beyond the first need
    `random_start`. Raises ValueError for eps < 0, steps < 1, step_size <= 0 or restarts < 1.
    """
    if eps < 0 or steps < 1 or step_size <= 0 or restarts < 1:
        raise ValueError(
            "pgd needs eps >= 0, steps >= 1, step_size > 0 and restarts >= 1, "
            f"got {eps}, {steps}, {step_size}, {restarts}"
        )
    best: Attacked | None = None
    for _ in range(restarts):
        start = images
        if random_start:
            noise = draws.uniform(*images.shape[1:]).mul_(2).sub_(1)
            start = torch.clamp(images + eps * noise.to(images.dtype), 0, 1)
        found = _sign_steps(
            logits,
            images,
            labels,
            eps=eps,
            start=start,
            steps=steps,
            step_size=step_size,
            keep_worst=keep_worst,
        )
        best = found if best is None or not keep_worst else _worse(best, found)
    assert best is not None
    return best


def _sign_steps(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    start: Tensor,
    steps: int,
    step_size: float,
    keep_worst: bool,
) -> Attacked:
    low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
    current = start.detach().clone()
    best = current.clone()
    best_loss = torch.full_like(images[:, 0, 0, 0], -torch.inf)
    losses = torch.empty(steps + 1, len(images), device=images.device, dtype=images.dtype)
    success = torch.full_like(labels, -1)
    for step in range(steps + 1):
        last = step == steps
        with torch.set_grad_enabled(not last):
            current.requires_grad_(not last)
            scores = logits(current)
            loss = nn.functional.cross_entropy(scores, labels, reduction="none")  # (N,)
        if not last:
            (gradient,) = torch.autograd.grad(loss.sum(), current)
        current.requires_grad_(False)
        losses[step] = loss.detach()
        success = torch.where((success < 0) & (scores.argmax(dim=1) != labels), step, success)
        if keep_worst or last:
            higher = (losses[step] > best_loss) | (not keep_worst)
            best_loss = torch.where(higher, losses[step], best_loss)
            best = torch.where(higher[:, None, None, None], current, best)
        if not last:
            current.add_(gradient.sign_(), alpha=step_size)
            torch.clamp(current, low, high, out=current)
    return Attacked(best, losses, success)


def _worse(first: Attacked, second: Attacked) -> Attacked:
    """Per image the run that reached the higher loss; success is the earlier one of either."""
    higher = second.losses.amax(dim=0) > first.losses.amax(dim=0)
    sooner = torch.where((first.step_of_success < 0), second.step_of_success, first.step_of_success)
    return Attacked(
        torch.where(higher[:, None, None, None], second.images, first.images),
        torch.where(higher, second.losses, first.losses),
        sooner,
    )
