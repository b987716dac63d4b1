"""SPSA (Uesato et al. 2018, arXiv:1802.05666): gradient ascent on a gradient estimated from scores alone."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, balls, look, losses
from bench.attacks.adam import adam
from bench.draws import ImageDraws

PUBLISHED_RATE = 0.01
SLICE_ROWS = 1024  # the images sent through the model at once, draws included; results do not depend on it


def spsa(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    loss: str = "margin",
    steps: int = 100,
    samples: int = 128,
    delta: float = 0.01,
    learning_rate: float | None = None,
    stop_when_broken: bool = False,
) -> Attacked:
    """Adam on the image inside the Linf ball, from a random start, up an estimate of the gradient of `loss`.

    A step averages over `samples` random directions v of -1 and 1 in every pixel, each with two queries:
    (loss(x + delta v) - loss(x - delta v)) / (2 delta) times v (simultaneous perturbation, Spall 1992); one more query
    looks at the image itself. `learning_rate` None is the published 0.01, or 2.5 eps / steps where that is more: with
    fewer steps 0.01 could not cross the ball. Each image's best iterate is returned: a broken one before an unbroken
    one, then the one of higher loss (with draws, (draws, N, K), the higher mean loss alone).

    `delta` must be wide enough to see a difference: about a level's width against a quantiser, and wider than the
    published 0.01 against a random defense, as the noise of two answers is divided by 2 delta.

    `stop_when_broken` takes broken images out of the batch: sound where `logits` is the very model that is scored.
    Nothing leaves where the model answers with draws. `losses` repeats the last loss of an image that has left.
    Deviation: where x is nearer than delta to a wall of [0, 1], directions are tried around the nearest point that is
    not, as the queries would else be no images. Raises ValueError for eps < 0, steps < 1, samples < 1, learning_rate
    <= 0 or delta outside (0, 0.5).
    """
    rate = max(PUBLISHED_RATE, 2.5 * eps / max(steps, 1)) if learning_rate is None else learning_rate
    if eps < 0 or steps < 1 or samples < 1 or rate <= 0 or not 0 < delta < 0.5:
        raise ValueError(
            "spsa needs eps >= 0, steps >= 1, samples >= 1, learning_rate > 0 and delta in (0, 0.5), "
            f"got {eps}, {steps}, {samples}, {learning_rate}, {delta}"
        )
    ball, measure = balls.get("linf"), losses.get(loss)
    current = ball.start(images, eps, draws)
    mean, square = torch.zeros_like(images), torch.zeros_like(images)  # Adam's running moments
    best, best_broken = current.clone(), torch.zeros_like(labels, dtype=torch.bool)
    best_loss = torch.full_like(images[:, 0, 0, 0], -torch.inf)
    curve = torch.empty(steps + 1, len(images), device=images.device, dtype=images.dtype)
    success = torch.full_like(labels, -1)
    left, noise = torch.arange(len(images), device=images.device), draws  # the images still under attack
    for step in range(steps + 1):
        seen = look(logits, current[left], labels[left], measure, last=True)
        curve[step:, left] = seen.loss
        success[left[seen.broken & (success[left] < 0)]] = step
        broken = seen.broken & seen.certain
        better = (broken & ~best_broken[left]) | ((broken == best_broken[left]) & (seen.loss > best_loss[left]))
        taken = left[better]
        best[taken], best_loss[taken], best_broken[taken] = current[taken], seen.loss[better], broken[better]
        if stop_when_broken:
            left, noise = left[~broken], noise.rows(~broken)
        if step == steps or len(left) == 0:
            break
        slope = _slope(logits, current[left], labels[left], measure, delta, samples, noise, seen.draws)
        mean[left], square[left], ahead = adam(mean[left], square[left], slope, step + 1, rate)
        current[left] = ball.project(current[left] + ahead, images[left], eps)
    return Attacked(best, curve, success, best_broken)


def _slope(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    loss: losses.Loss,
    delta: float,
    samples: int,
    noise: ImageDraws,
    answers: int,
) -> Tensor:
    """The estimated gradient (N, C, H, W) of the loss, from 2 * samples queries an image; NaN answers count nothing."""
    n, centre, slope = len(images), images.clamp(delta, 1 - delta), torch.zeros_like(images)
    at_once = max(SLICE_ROWS // (2 * n * answers), 1)
    for done in range(0, samples, at_once):
        count = min(at_once, samples - done)
        uniform = torch.stack([noise.uniform(*images.shape[1:]) for _ in range(count)])
        directions = torch.where(uniform < 0.5, -1.0, 1.0).to(images.dtype)  # (count, N, C, H, W)
        probes = torch.cat([centre + delta * directions, centre - delta * directions])  # (2 * count, N, C, H, W)
        with torch.no_grad():
            scores = logits(probes.flatten(0, 1))
            up, down = losses.mean_over_draws(loss(scores, labels.repeat(2 * count))).view(2, count, n)
        rise = torch.nan_to_num(up - down, posinf=0.0, neginf=0.0)
        slope += torch.einsum("sn,snchw->nchw", rise.to(images.dtype), directions)
    return slope / (2 * delta * samples)
