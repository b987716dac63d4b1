"""The overpowered attack (Jalal, Ilyas, Daskalakis and Dimakis 2017, arXiv:1712.09196; MAD-VAE, 2020, appendix A.5).

Not a step in a ball: an image that the decoder itself draws, close to the real one, is misclassified even under noise,
so that a purifier which finds its way back to it only roughly does not undo it. How large the noise is, is `rho`. The
authors ask the classifier alone. Where a purifier answers otherwise, such an image may fool the one and not the other;
our own form demands both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attacks import (
    Attacked,
    PerImage,
    ThroughCodes,
    Watch,
    gradient_of,
    gradient_through,
    is_blocked,
    losses,
    size_of,
    where,
)
from bench.attacks.adam import adam
from bench.draws import ImageDraws

SURE = 1.0  # the margin by which a wrong class must win, on average over the noise
JITTER = 0.1  # of all copies but the first, in units of the size of the image's own code
CHECKS = 16  # draws of noise that a copy is held to before it counts as done
MULTIPLIER, DUAL_RATE = 5.0, 1.0  # of the violated bound: its start, and how it follows
PUBLISHED_MULTIPLIER, PUBLISHED_DUAL_RATE = 1000.0, 100.0  # of the mean squared distance; 10,000 over about 100 copies
FAR = 1e9  # of another order than any margin or distance


@dataclass
class _Search(PerImage):
    """What is remembered of each image that is not done: its R copies lie along the second dimension."""

    clean: Tensor
    labels: Tensor
    checks: Tensor  # (N, CHECKS, C, H, W), noise of norm rho
    latents: Tensor  # (N, R, ...)
    mean: Tensor
    square: Tensor
    multiplier: Tensor  # (N, R)


def overpowered(
    model: ThroughCodes,
    images: Tensor,
    labels: Tensor,
    *,
    draws: ImageDraws,
    rho: float = 2.5,
    bound: float = 4.0,
    copies: int = 4,
    noise_draws: int = 2,
    steps: int = 300,
    learning_rate: float = 0.05,
    rule: str = "projected",
) -> Attacked:
    """Minimises the margin of the true class at G(z) + rho u, u on the unit sphere, with |G(z) - x| <= `bound` (L2).

    From the code of each image, `copies` of which all but the first are moved a little, Adam lowers the larger of two
    margins, plus a multiplier times (|G(z) - x|^2 / bound^2 - 1), which is raised in turn by that violation and never
    falls below 0. One is the classifier's, the mean over `noise_draws` fresh u, whose noise is not clipped; the other
    is the whole defense's at G(z). A copy inside the bound whose true class loses by 1 to both, to the classifier over
    CHECKS other draws, is done, and its image with it. Returned is G(z), of a copy that is done, or else the version
    inside the bound that fools the defense, of those the one of the lowest margin, or else the nearest version.
    `told`: the share `in_bound`, and the share `fooled` in which a wrong class wins the classifier's mean.

    With the `rule` "published" it is as the released code runs: the defense is not asked, copies are identical, all run
    to the end, inside half the squared bound the distance counts as -1, and the multiplier may fall below 0. (There,
    the classes of the four other images of a call are no targets, and a call ends when nine images in ten are done:
    both left out, as an image's result would depend on its neighbours.) Raises ValueError for settings that make no
    sense.
    """
    if rule not in ("projected", "published"):
        raise ValueError(f'overpowered needs the rule "projected" or "published", got {rule!r}')
    if rho < 0 or min(bound, learning_rate) <= 0 or min(copies, noise_draws, steps) < 1:
        raise ValueError(
            "overpowered needs rho >= 0, bound and learning_rate > 0, copies, noise_draws and steps >= 1, got "
            f"{rho}, {bound}, {learning_rate}, {copies}, {noise_draws}, {steps}"
        )
    published, everyone, watch = rule == "published", torch.arange(len(images), device=images.device), Watch(images)
    with torch.no_grad():
        codes, lost = model.encode(images), losses.is_broken(model.classify(images), labels)
    latents = codes.unsqueeze(1).repeat_interleave(copies, dim=1)  # (N, R, ...)
    if copies > 1 and not published:
        size = size_of(codes).unsqueeze(1)
        latents[:, 1:] += JITTER * size * draws.normal(copies - 1, *codes.shape[1:]).to(codes.dtype)
    checks = _noise(draws, rho, images, CHECKS)
    s = _Search(
        row=everyone, clean=images, labels=labels, checks=checks, latents=latents,
        mean=torch.zeros_like(latents), square=torch.zeros_like(latents),
        multiplier=latents.new_full(latents.shape[:2], PUBLISHED_MULTIPLIER if published else MULTIPLIER),
    )  # fmt: skip
    success, found = torch.where(lost, 0, -1), images.clone()
    worth = torch.full((len(images),), -torch.inf, dtype=torch.float64, device=images.device)
    curve = worth.to(images.dtype).repeat(steps + 1, 1)
    for step in range(steps + 1):
        curve[step] = curve[step - 1]
        if not len(s.row):
            continue
        with torch.set_grad_enabled(step < steps):
            moved = s.latents.detach().flatten(0, 1).requires_grad_(step < steps)
            drawn = model.decode(moved)
        shape = (len(s.row), copies, *images.shape[1:])
        here = drawn.detach().view(shape)  # (N, R, C, H, W)
        gap, gradient = _gap(model, here, s.labels, _noise(draws, rho, s.clean, copies, noise_draws), step < steps)
        sure = gap <= -SURE
        fools = torch.zeros_like(sure)
        if not published:
            own, own_gradient = _own_gap(model, here, s.labels, step < steps)
            sure, fools = sure & (own <= -SURE), own < 0
            gap, gradient = torch.maximum(gap, own), _where(own > gap, own_gradient, gradient)
        away = here - s.clean[:, None]
        distance = away.flatten(2).square().sum(dim=2) / bound**2  # (N, R), at most 1 inside
        sure = _checked(model, here, s.labels, s.checks, (distance <= 1) & sure)
        inside = -gap.double() + FAR * fools + FAR * sure
        value = torch.where(distance <= 1, inside, -FAR - distance.double())
        top, copy = value.nan_to_num(nan=-torch.inf).max(dim=1)
        better = top > worth[s.row]
        curve[step, s.row] = torch.nan_to_num(-gap, nan=torch.inf).amax(dim=1)
        chosen = here[torch.arange(len(s.row), device=copy.device), copy]
        found[s.row], worth[s.row] = where(better, chosen, found[s.row]), torch.where(better, top, worth[s.row])
        done = sure.any(dim=1)
        success[s.row] = torch.where((success[s.row] < 0) & done, step, success[s.row])
        if step == steps:
            break
        pixels = images[0].numel()
        near = published & (distance <= 0.5)
        weight = s.multiplier * (bound**2 / pixels if published else 1.0)
        pull = _where(near, torch.zeros_like(away), weight[:, :, None, None, None] * 2 * away / bound**2)
        slope = gradient_through(drawn, moved, (torch.nan_to_num(gradient) + pull).flatten(0, 1)).view_as(s.latents)
        watch.note(s.row, torch.zeros_like(done), is_blocked(gradient) | is_blocked(slope))
        s = _descended(s, slope, step, learning_rate)
        if published:
            spread = torch.where(near, -1.0, distance * bound**2 / pixels)
            s.multiplier = s.multiplier + PUBLISHED_DUAL_RATE * spread
        else:
            s.multiplier = (s.multiplier + DUAL_RATE * (distance - 1)).clamp(min=0)
            s, draws = s.rows(~done), draws.rows(~done)
    gap, _ = _gap(model, found[:, None], labels, checks[:, None], learning=False)
    length = (found - images).flatten(1).norm(dim=1)
    told = {"in_bound": (length <= bound * (1 + 1e-6)).double(), "fooled": (gap[:, 0] < 0).double()}
    return Attacked(found, curve, success, None, watch.share(), watch.looks, told)


def _noise(draws: ImageDraws, rho: float, images: Tensor, *shape: int) -> Tensor:
    """Noise of norm `rho` in every direction alike, (N, *shape, C, H, W)."""
    noise = draws.normal(*shape, *images.shape[1:]).to(images.dtype)
    length = noise.flatten(-3).norm(dim=-1).clamp(min=1e-12)
    scale: Tensor = rho / length[..., None, None, None]
    return noise * scale


def _gap(model: ThroughCodes, drawn: Tensor, labels: Tensor, noise: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
    """The mean over the noise (N, R, D, C, H, W) of the classifier's margin at the images `drawn` (N, R, C, H, W),
    (N, R), and its gradient there (zero unless `learning`)."""
    several = noise.shape[2]

    def margin(centre: Tensor) -> Tensor:
        logits = model.classify((centre.unsqueeze(2) + noise).flatten(0, 2))
        gaps = losses.true_gap(logits, labels.repeat_interleave(noise.shape[1] * several))
        return gaps.view(noise.shape[:3]).mean(dim=2)

    return _looked(margin, drawn, learning)


def _own_gap(model: ThroughCodes, drawn: Tensor, labels: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
    """The same of the whole defense, the mean over its draws. An answer that is not finite counts as fooled."""

    def margin(images: Tensor) -> Tensor:
        gaps = losses.true_gap(model(images.flatten(0, 1)), labels.repeat_interleave(drawn.shape[1]))
        return losses.mean_over_draws(gaps).view(drawn.shape[:2])

    gap, gradient = _looked(margin, drawn, learning)
    return torch.where(gap.isfinite(), gap, -FAR), gradient


def _looked(margin: Callable[[Tensor], Tensor], drawn: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
    """A margin (N, R): the true logit minus the best other one at the images `drawn`, and its gradient there."""
    with torch.set_grad_enabled(learning):
        images = drawn.detach().requires_grad_(learning)
        gap = margin(images)
        gradient = gradient_of(gap, images) if learning else torch.zeros_like(drawn)
    return gap.detach(), gradient


def _checked(model: ThroughCodes, drawn: Tensor, labels: Tensor, checks: Tensor, asked: Tensor) -> Tensor:
    """Which of the copies `asked` (N, R) also lose by SURE on average over the image's own `checks`, (N, R)."""
    image, copy = asked.nonzero(as_tuple=True)
    if not len(image):
        return asked
    gap, _ = _gap(model, drawn[image, copy][:, None], labels[image], checks[image][:, None], learning=False)
    sure = torch.zeros_like(asked)
    sure[image, copy] = gap[:, 0] <= -SURE
    return sure


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Per copy (mask (N, R)) the one or the other of two batches (N, R, C, H, W)."""
    return torch.where(mask[:, :, None, None, None], yes, no)


def _descended(s: _Search, gradient: Tensor, step: int, learning_rate: float) -> _Search:
    """The search after a step of Adam along the gradient (N, R, ...)."""
    gradient = torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)
    s.mean, s.square, ahead = adam(s.mean, s.square, gradient, step + 1, learning_rate)
    s.latents = s.latents - ahead
    return s
