"""FGSM, R-FGSM, I-FGSM, MI-FGSM and PGD: steps of fixed size up the loss, back into the ball after each (one loop)."""

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
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    alpha: float | None = None,
    signed: bool = True,
) -> Attacked:
    """FGSM of size `eps` - `alpha` from a random corner of the ball of `alpha` (Tramer et al. 2018, arXiv:1705.07204).

    `alpha` None is the 0.05 of Defense-GAN (arXiv:1805.06605), or the paper's eps / 2 where that is less. The noise
    enters by its sign, so the image stays within `eps`. `signed=False` repeats the released code of MAD-VAE: Gaussian
    noise times alpha, clipped to [0, 1] only, and a step that is not held back either: a pixel may then move by more
    than `eps`. Raises ValueError unless 0 <= alpha <= eps.
    """
    first = min(0.05, eps / 2) if alpha is None else alpha
    if not 0 <= first <= eps:
        raise ValueError(f"r_fgsm needs 0 <= alpha <= eps, got alpha = {alpha}, eps = {eps}")
    noise = draws.normal(*images.shape[1:]).to(images.dtype)
    start = torch.clamp(images + first * (noise.sign() if signed else noise), 0, 1)
    centre = images if signed else start
    return _ascend(
        logits, centre, labels, eps, balls.get("linf"), losses.cross_entropy, start, 1, eps - first, keep_worst=False
    )


def i_fgsm(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    steps: int = 40,
    step_size: float | None = None,
    relative_step: float | None = None,
    one_gradient: bool = False,
) -> Attacked:
    """FGSM in `steps` small steps, also called BIM (Kurakin et al. 2017, arXiv:1607.02533); the last one is returned.

    A step is `step_size`, or `relative_step` * eps; with neither it is 0.01, or 1.25 eps / steps where that is more, as
    fewer steps could not reach the ball's wall (the paper's number of steps leaves the same room). No random start,
    deterministic: `draws` is not used. `one_gradient` repeats a mistake of the VQ-VAE report (steps=9,
    relative_step=0.1): all steps follow the gradient of the clean image. They are then one step of their summed size,
    FGSM at 0.9 eps, and are computed as such. Raises ValueError for eps < 0, steps < 1, a step <= 0 or both steps.
    """
    size = _step_size("i_fgsm", eps, steps, step_size, relative_step)
    return _iterate(logits, images, labels, eps, steps, size, one_gradient, decay=0.0)


def mi_fgsm(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    steps: int = 40,
    step_size: float | None = None,
    relative_step: float | None = None,
    decay: float = 1.0,
    one_gradient: bool = False,
) -> Attacked:
    """I-FGSM along the sign of a running sum of gradients (Dong et al. 2018, arXiv:1710.06081); the last step's image.

    The sum is multiplied by `decay` before each gradient is added; a gradient enters divided by the mean of its
    absolute values (the paper divides by their sum, which changes no sign), and not at all where it is zero
    everywhere. Momentum never turns the sign of a single gradient, so `one_gradient` gives what it gives in `i_fgsm`.
    The rest is as in `i_fgsm`. Raises ValueError as `i_fgsm`, and for decay < 0.
    """
    if decay < 0:
        raise ValueError(f"mi_fgsm needs decay >= 0, got {decay}")
    size = _step_size("mi_fgsm", eps, steps, step_size, relative_step)
    return _iterate(logits, images, labels, eps, steps, size, one_gradient, decay)


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


def _step_size(name: str, eps: float, steps: int, step_size: float | None, relative_step: float | None) -> float:
    given = [size for size in (step_size, relative_step) if size is not None]
    if eps < 0 or steps < 1 or len(given) > 1 or any(size <= 0 for size in given):
        raise ValueError(
            f"{name} needs eps >= 0, steps >= 1 and at most one of step_size > 0 and relative_step > 0, "
            f"got {eps}, {steps}, {step_size}, {relative_step}"
        )
    if relative_step is not None:
        return relative_step * eps
    return max(0.01, 1.25 * eps / steps) if step_size is None else step_size


def _iterate(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    eps: float,
    steps: int,
    size: float,
    one_gradient: bool,
    decay: float,
) -> Attacked:
    if one_gradient:
        steps, size = 1, min(steps * size, eps)
    ball = balls.get("linf")
    return _ascend(
        logits, images, labels, eps, ball, losses.cross_entropy, images, steps, size, keep_worst=False, decay=decay
    )


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
    decay: float = 0.0,
) -> Attacked:
    current, sizes = start, torch.full_like(images[:, 0, 0, 0], step_size)
    direction = torch.zeros_like(images)
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
            direction = decay * direction + _normalised(seen.gradient) if decay else seen.gradient
            current = ball.project(ball.step(current, direction, sizes), images, eps)
    return Attacked(kept.clone(), curve, success, blocked=watch.share(), looks=watch.looks)


def _normalised(gradient: Tensor) -> Tensor:
    """Each image's gradient divided by the mean of its absolute values; zero where it is zero everywhere."""
    size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
    return gradient / size.clamp(min=torch.finfo(gradient.dtype).tiny)
