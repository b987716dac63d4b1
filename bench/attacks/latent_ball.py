"""Inside the ball, but by way of the codes: what the decoder can draw, pulled into the ball around the image.

A purifier that hides its gradient over pixels may show it over codes: the attacks of Jalal et al. (2017,
arXiv:1712.09196) and Athalye et al. (2018, arXiv:1802.00420) on Defense-GAN search there. Almost no image that a
decoder draws lies in a small ball around a real one, so each is pulled to the nearest point of the ball.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bench.attacks import Attacked, ThroughCodes, Watch, balls, gradient_through, in_turn, look, losses, size_of, where
from bench.attacks.adam import adam
from bench.attacks.apgd import ascend
from bench.draws import ImageDraws

JITTER = 0.5  # of a start after the first, in units of the size of the image's own code


def latent_ball(
    model: ThroughCodes,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    learning_rate: float = 0.3,
    stop_when_broken: bool = False,
) -> Attacked:
    """Half of the steps move the code z so that pull(G(z)) has a large margin, half move that image itself.

    pull() is the projection into the "linf" or "l2" ball and G the decoder. The first start is the image's own code,
    further ones lie near it. Codes move by Adam, at a rate that falls from `learning_rate` times the size of the
    image's code (its root mean square) to nothing; then Auto-PGD (Croce and Hein 2020, arXiv:2003.01690) leaves what
    decoders can draw from the best image so far. Both raise the margin. Returned images, draws and `stop_when_broken`
    are as in bench.attacks.apgd, but that no image leaves in the first half. Raises ValueError for eps < 0, fewer than
    two steps, restarts < 1, learning_rate <= 0 or an unknown norm.
    """
    if eps < 0 or steps < 2 or restarts < 1 or learning_rate <= 0:
        raise ValueError(
            "latent_ball needs eps >= 0, steps >= 2, restarts >= 1 and learning_rate > 0, got "
            f"{eps}, {steps}, {restarts}, {learning_rate}"
        )
    ball = balls.get(norm)
    starts = iter(range(restarts))

    def run(rows: Tensor, noise: ImageDraws) -> Attacked:
        some, classes, away = images[rows], labels[rows], JITTER * (next(starts) > 0)
        drawn = _among_codes(model, some, classes, eps, ball, noise, steps // 2, learning_rate, away)
        left = torch.arange(len(some), device=some.device)
        if stop_when_broken and drawn.broken is not None:
            left = left[~drawn.broken]
        rest = steps - steps // 2
        if not len(left):
            return _repeated(drawn, rest)
        there = drawn.rows(left)
        freed = ascend(
            model, some[left], classes[left], None, there.images, eps, ball, losses.margin, rest, stop_when_broken
        )
        return _joined(drawn, left, there, freed, rest)

    return in_turn([run] * restarts, len(images), draws, stop_when_broken)


def _among_codes(
    model: ThroughCodes,
    images: Tensor,
    labels: Tensor,
    eps: float,
    ball: balls.Ball,
    draws: ImageDraws,
    steps: int,
    learning_rate: float,
    jitter: float,
) -> Attacked:
    """The best of `steps` pulled images; losses are those at each of them."""
    everyone, watch = torch.arange(len(images), device=images.device), Watch(images)
    with torch.no_grad():
        latents = model.encode(images)
    size = size_of(latents)
    if jitter:
        latents = latents + jitter * size * draws.normal(*latents.shape[1:]).to(latents.dtype)
    mean, square = torch.zeros_like(latents), torch.zeros_like(latents)
    best, best_broken = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    worth = torch.full_like(images[:, 0, 0, 0], -torch.inf)
    success, curve = torch.full_like(labels, -1), []
    for step in range(steps):
        with torch.enable_grad():
            codes = latents.detach().requires_grad_()
            pulled = ball.project(model.decode(codes), images, eps)
        seen = look(model, pulled.detach(), labels, losses.margin)
        gradient = gradient_through(pulled, codes, seen.gradient)
        watch.note(everyone, seen.broken, seen.blocked)
        success = torch.where((success < 0) & seen.broken, step, success)
        curve.append(seen.loss)
        broken = seen.broken & seen.certain
        better = (broken & ~best_broken) | ((broken == best_broken) & (seen.loss > worth))
        best, worth = where(better, pulled.detach(), best), torch.where(better, seen.loss, worth)
        best_broken = best_broken | broken
        gradient = torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)
        rate = learning_rate * size * (1 - step / steps)
        mean, square, ahead = adam(mean, square, gradient, step + 1, rate)
        latents = latents + ahead
    return Attacked(best, torch.stack(curve), success, best_broken, watch.share(), watch.looks)


def _joined(drawn: Attacked, left: Tensor, there: Attacked, freed: Attacked, steps: int) -> Attacked:
    """The search among codes and what Auto-PGD made of the images `left` to it; the others repeat their last loss."""
    assert freed.broken is not None and freed.blocked is not None and freed.looks is not None
    assert there.blocked is not None and there.looks is not None
    after = drawn.losses.shape[0]
    later = torch.where(freed.step_of_success >= 0, freed.step_of_success + after, -1)
    looks = there.looks + freed.looks
    blocked = (there.blocked * there.looks + freed.blocked * freed.looks) / looks.clamp(min=1)
    whole = Attacked(
        freed.images,
        torch.cat([there.losses, freed.losses]),
        torch.where(there.step_of_success >= 0, there.step_of_success, later),
        freed.broken,
        blocked,
        looks,
    )
    return _repeated(drawn, steps).with_rows(left, whole)


def _repeated(drawn: Attacked, steps: int) -> Attacked:
    """The search among codes, its last loss repeated for the start and the `steps` that follow."""
    return replace(drawn, losses=torch.cat([drawn.losses, drawn.losses[-1:].expand(steps + 1, -1)]))
