"""Inside the ball, but by way of the codes: what the decoder can draw, pulled into the ball around the image.

A purifier that hides its gradient over pixels may show it over codes: the attacks of Jalal et al. (2017,
arXiv:1712.09196) and Athalye et al. (2018, arXiv:1802.00420) on Defense-GAN search there. Almost no image that a
decoder draws lies in a small ball around a real one, so each is pulled to the nearest point of the ball. Where there
is no encoder, as in a GAN, the code to start from is itself found by search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.attacks import (
    Attacked,
    Logits,
    ThroughCodes,
    Watch,
    balls,
    gradient_through,
    in_turn,
    look,
    losses,
    size_of,
    where,
)
from bench.attacks.adam import adam
from bench.attacks.apgd import ascend
from bench.attacks.hurried import at_last
from bench.draws import ImageDraws

JITTER = 0.5  # of a start after the first, in units of the size of the image's own code
SEARCH_RATE = 1.0  # of the search for a code at its start, in units of the size of the random codes


@dataclass(frozen=True)
class _Search:
    """How to find the code of an image without an encoder."""

    steps: int
    starts: int


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
    start: str = "encoder",
    search_steps: int = 100,
    starts: int = 4,
    last_steps: int = 0,
    stop_when_broken: bool = False,
) -> Attacked:
    """Half of the steps move the code z so that pull(G(z)) has a large margin, half move that image itself.

    pull() is the projection into the "linf" or "l2" ball and G the decoder. The first start is the image's own code,
    further ones lie near it. Codes move by Adam, at a rate that falls from `learning_rate` times the size of the
    image's code (its root mean square) to nothing; then Auto-PGD (Croce and Hein 2020, arXiv:2003.01690) leaves what
    decoders can draw from the best image so far. Both raise the margin. Returned images, draws and `stop_when_broken`
    are as in bench.attacks.apgd, but that no image leaves in the first half.

    With start="search" the image's own code is the one whose picture comes closest to it (`_nearest`), found by
    `search_steps` from each of `starts` random codes, other ones in each restart. With `last_steps` all of this asks
    the model in a hurry, and as many steps of Auto-PGD against the whole model follow, which alone says what is broken
    (bench.attacks.hurried). Raises ValueError for eps < 0, fewer than two steps, restarts < 1, learning_rate <= 0,
    another start, a search without a step or a start, last_steps < 0 or an unknown norm.
    """
    if eps < 0 or steps < 2 or restarts < 1 or learning_rate <= 0:
        raise ValueError(
            "latent_ball needs eps >= 0, steps >= 2, restarts >= 1 and learning_rate > 0, got "
            f"{eps}, {steps}, {restarts}, {learning_rate}"
        )
    if start not in ("encoder", "search") or search_steps < 1 or starts < 1 or last_steps < 0:
        raise ValueError(
            "latent_ball needs start 'encoder' or 'search', search_steps >= 1, starts >= 1 and last_steps >= 0, got "
            f"{start!r}, {search_steps}, {starts}, {last_steps}"
        )
    ball, search = balls.get(norm), _Search(search_steps, starts) if start == "search" else None
    asked: Logits = model.hurried if last_steps else model
    stop = stop_when_broken and not last_steps  # a hurried answer is no proof
    tries = iter(range(restarts))

    def run(rows: Tensor, noise: ImageDraws) -> Attacked:
        some, classes, is_first = images[rows], labels[rows], next(tries) == 0
        codes = _codes(model, some, noise, search, is_first)
        drawn = _among_codes(model, asked, some, classes, eps, ball, codes, steps // 2, learning_rate)
        left = torch.arange(len(some), device=some.device)
        if stop and drawn.broken is not None:
            left = left[~drawn.broken]
        rest = steps - steps // 2
        if not len(left):
            return _repeated(drawn, rest)
        there = drawn.rows(left)
        freed = ascend(asked, some[left], classes[left], None, there.images, eps, ball, losses.margin, rest, stop)
        return _joined(drawn, left, there, freed, rest)

    found = in_turn([run] * restarts, len(images), draws, stop)
    if not last_steps:
        return found
    return at_last(model, images, labels, found, eps, ball, losses.margin, last_steps, stop_when_broken)


def _codes(
    model: ThroughCodes, images: Tensor, draws: ImageDraws, search: _Search | None, is_first: bool
) -> tuple[Tensor, Tensor]:
    """Where a run among codes starts, and the size of each image's own code: the encoder's, or the nearest found."""
    if search is not None:
        latents = _nearest(model, images, draws, search)
        return latents, size_of(latents)
    with torch.no_grad():
        latents = model.encode(images)
    size = size_of(latents)
    if not is_first:
        latents = latents + JITTER * size * draws.normal(*latents.shape[1:]).to(latents.dtype)
    return latents, size


def _nearest(model: ThroughCodes, images: Tensor, draws: ImageDraws, search: _Search) -> Tensor:
    """The code (N, ...) of the picture with the least squared difference of pixels to each image that descent from
    several random codes came by.

    Codes move by Adam, at a rate that falls from SEARCH_RATE times the size of the random ones to nothing.
    """
    latents = model.start_codes(images, search.starts, draws)  # (N, S, ...)
    shape, targets = latents.shape, images.repeat_interleave(search.starts, dim=0)  # (N * S, C, H, W)
    latents = latents.flatten(0, 1)
    size = size_of(latents)
    mean, square = torch.zeros_like(latents), torch.zeros_like(latents)
    best, least = latents, torch.full_like(targets[:, 0, 0, 0], torch.inf)
    for step in range(search.steps + 1):
        with torch.set_grad_enabled(step < search.steps):
            codes = latents.detach().requires_grad_(step < search.steps)
            drawn = model.decode(codes)
            off = drawn - targets
        missed = off.detach().flatten(1).square().sum(dim=1)
        closer = missed < least
        best = torch.where(closer.view(-1, *[1] * (latents.ndim - 1)), codes.detach(), best)
        least = torch.where(closer, missed, least)
        if step < search.steps:
            gradient = torch.nan_to_num(gradient_through(drawn, codes, 2 * off.detach()), posinf=0.0, neginf=0.0)
            rate = SEARCH_RATE * size * (1 - step / search.steps)
            mean, square, ahead = adam(mean, square, gradient, step + 1, rate)
            latents = latents - ahead
    chosen = least.view(shape[:2]).argmin(dim=1)
    return best.view(shape)[torch.arange(len(images), device=images.device), chosen]


def _among_codes(
    model: ThroughCodes,
    asked: Logits,
    images: Tensor,
    labels: Tensor,
    eps: float,
    ball: balls.Ball,
    codes_and_size: tuple[Tensor, Tensor],
    steps: int,
    learning_rate: float,
) -> Attacked:
    """The best of `steps` pulled images; losses are those at each of them."""
    everyone, watch = torch.arange(len(images), device=images.device), Watch(images)
    latents, size = codes_and_size
    mean, square = torch.zeros_like(latents), torch.zeros_like(latents)
    best, best_broken = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    worth = torch.full_like(images[:, 0, 0, 0], -torch.inf)
    success, curve = torch.full_like(labels, -1), []
    for step in range(steps):
        with torch.enable_grad():
            codes = latents.detach().requires_grad_()
            pulled = ball.project(model.decode(codes), images, eps)
        seen = look(asked, pulled.detach(), labels, losses.margin)
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
