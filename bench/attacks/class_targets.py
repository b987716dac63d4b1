"""The attacks that the GM-VAE's authors ran on all of it (Ghosh, Losalka and Black 2019, arXiv:1806.00081, eq. 10, 11).

The target answers (N, K + 1 + 2K): the logits, the slack (the threshold minus the rejection score), and for each class
its two scores: the distance of the code to the class's mean and the reconstruction error, each over its threshold, so
that an image is accepted as a class where both are at most 1 (`Defense.class_scores`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, Watch, chosen, gradient_of, is_blocked, losses, where
from bench.attacks.adam import adam
from bench.draws import ImageDraws


def towards_class(
    answers: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    draws: ImageDraws,
    targets: int = 9,
    steps: int = 200,
    learning_rate: float = 0.02,
    change_weight: float = 1.0,
    searches: int = 1,
    code_exponent: float = 2.0,
    error_exponent: float = 2.0,
    covariance: str = "inverse",
    variance: float = 1 / 3000,
) -> Attacked:
    """The nearest image that is accepted as a wrong class: eq. 10 from the clean image, for one class after another.

    Minimises (squared error / its threshold)^a + (squared distance to the target's mean / its threshold)^b + w
    |change|^2 with Adam, clipping to [0, 1] after each step; the exponents are `error_exponent` a and `code_exponent`
    b. Each image is aimed at up to `targets` of its wrong classes, the likeliest first, and gets the nearest version
    (L2) that was misclassified and accepted, at whatever class; where there is none, the one with the lowest objective.

    The paper's w is 1, at which the change may win and the search end among refused images. With more than one of
    `searches` each image has a weight of its own for each class, as the constant of Carlini and Wagner (2017,
    arXiv:1608.04644): `change_weight` at first, then ten times less until it was accepted as a wrong class or more
    until it was not, then the geometric mean of the two; every search starts anew.

    A Mahalanobis distance divides by the covariance, and so do the defense's own scores, whichever covariance it took.
    As printed the equation multiplies by it. `covariance` "printed" takes the scores times the square of `variance`,
    which is that equation where the defense's covariance is `variance` times the identity, the encoder's noise
    (GMVAE(covariance="encoder")). For any other, as a GM-VAE's own of each class, it is the usual equation with hardly
    any weight on the code. Exponents, optimiser, steps and rate are not stated in the paper. `draws` is not used.
    Raises ValueError for settings that make no sense.
    """
    if change_weight <= 0 or searches < 1:
        raise ValueError(
            f"attacks towards a class need change_weight > 0 and searches >= 1, got {change_weight}, {searches}"
        )
    goal = _goal(code_exponent, error_exponent, covariance, variance, centre=images)
    first = _first_look(answers, images)
    order = losses.without(first, labels).argsort(dim=1, descending=True)[:, :-1]
    return _descend(answers, images, labels, order, goal, targets, steps, learning_rate, change_weight, searches)


def fooling(
    answers: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    draws: ImageDraws,
    targets: int = 1,
    steps: int = 500,
    learning_rate: float = 0.02,
    code_exponent: float = 2.0,
    error_exponent: float = 2.0,
    covariance: str = "inverse",
    variance: float = 1 / 3000,
) -> Attacked:
    """An image that is accepted as a class it does not show: eq. 11 from uniform noise; the clean image has no part.

    The objective of `towards_class` without the change. Each image's noise is aimed at up to `targets` classes other
    than its label, in random order: to be accepted as any of them is an error, and no answer is right. Each gets the
    version with the lowest objective, an accepted one before any other. Raises ValueError as `towards_class` does.
    """
    goal = _goal(code_exponent, error_exponent, covariance, variance, centre=None)
    noise = draws.uniform(*images.shape[1:]).to(images.dtype)
    lots = draws.uniform(_first_look(answers, noise).shape[1])
    order = losses.without(lots, labels).argsort(dim=1, descending=True)[:, :-1]
    return _descend(answers, noise, labels, order, goal, targets, steps, learning_rate)


@dataclass(frozen=True)
class _Goal:
    """What is minimised: eq. 10 around the images `centre`, or eq. 11 without."""

    code_exponent: float
    error_exponent: float
    code_weight: float  # of the squared distance, before its exponent
    centre: Tensor | None

    def of(self, found: Tensor, target: Tensor, current: Tensor, change_weight: Tensor) -> Tensor:
        """The objective (N,) of answers (..., N, 3K + 1) to the images `current` with a class each to aim at and a
        weight of the change, each (N,)."""
        scores = found[..., _classes(found) + 1 :]
        scores = scores.reshape(*scores.shape[:-1], _classes(found), 2)  # (..., N, K, 2)
        index = target.expand(found.shape[:-1])[..., None, None].expand(*found.shape[:-1], 1, 2)
        code, error = scores.gather(-2, index).squeeze(-2).square().unbind(dim=-1)  # each (..., N)
        value = losses.mean_over_draws((self.code_weight * code) ** self.code_exponent + error**self.error_exponent)
        return value + change_weight * self.change(current)

    def change(self, current: Tensor) -> Tensor:
        """The squared distance of each image to its clean one, (N,); zero where that has no part."""
        away = current - (current.detach() if self.centre is None else self.centre)
        return away.flatten(1).square().sum(dim=1)


def _goal(
    code_exponent: float, error_exponent: float, covariance: str, variance: float, centre: Tensor | None
) -> _Goal:
    if covariance not in ("inverse", "printed") or variance <= 0 or min(code_exponent, error_exponent) <= 0:
        raise ValueError(
            'attacks towards a class need covariance "inverse" or "printed", variance > 0 and exponents > 0, got '
            f"{covariance!r}, {variance}, {code_exponent}, {error_exponent}"
        )
    return _Goal(code_exponent, error_exponent, variance**2 if covariance == "printed" else 1.0, centre)


def _classes(found: Tensor) -> int:
    return (found.shape[-1] - 1) // 3


def _first_look(answers: Logits, images: Tensor) -> Tensor:
    """The logits (N, K) of images; with draws, their mean."""
    with torch.no_grad():
        found = answers(images)
    logits = found[..., : _classes(found)]
    return logits if logits.ndim == 2 else logits.mean(dim=0)


def _descend(
    answers: Logits,
    start: Tensor,
    labels: Tensor,
    order: Tensor,
    goal: _Goal,
    targets: int,
    steps: int,
    learning_rate: float,
    change_weight: float = 1.0,
    searches: int = 1,
) -> Attacked:
    """Adam on every image from `start`, for up to `targets` of its classes in `order` (N, K - 1) with so many weights
    of the change, and the best of all iterates."""
    if targets < 1 or steps < 1 or learning_rate <= 0:
        raise ValueError(
            f"attacks towards a class need targets >= 1, steps >= 1 and learning_rate > 0, got {targets}, {steps}, "
            f"{learning_rate}"
        )
    n, everyone, watch = len(start), torch.arange(len(start), device=start.device), Watch(start)
    success = torch.full_like(labels, -1)
    best, best_broken = start.clone(), torch.zeros(n, dtype=torch.bool, device=start.device)
    worth = torch.full((n,), -torch.inf, dtype=start.dtype, device=start.device)  # among broken, or among unbroken ones
    curve = worth.repeat(steps + 1, 1)
    weights = _Weights(worth, change_weight)
    runs = itertools.product(chosen(order, targets, 1).unbind(dim=1), range(searches))
    for run, (target, search) in enumerate(runs):
        weights = weights if search else _Weights(worth, change_weight)
        current, mean, square = start, torch.zeros_like(start), torch.zeros_like(start)
        broke = torch.zeros_like(best_broken)
        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                looked = current.detach().requires_grad_(step < steps)
                found = answers(looked)
                value = goal.of(found, target, looked, weights.now)
                gradient = gradient_of(value, looked)
            broken, certain = _is_accepted_and_wrong(found.detach(), labels), found.ndim == 2
            watch.note(everyone, broken, is_blocked(gradient) if step < steps else None)
            success = torch.where((success < 0) & broken, step if step == 0 else run * steps + step, success)
            loss = torch.nan_to_num(-value.detach(), nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
            curve[step] = torch.maximum(curve[step], loss)
            broke = broke | broken
            broken = broken & certain
            now = loss if goal.centre is None else torch.where(broken, -goal.change(current), loss)
            better = (broken & ~best_broken) | ((broken == best_broken) & (now > worth))
            best, worth = where(better, current, best), torch.where(better, now, worth)
            best_broken = best_broken | broken
            if step < steps:
                gradient = torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)
                mean, square, ahead = adam(mean, square, gradient, step + 1, learning_rate)
                current = (current - ahead).clamp(0, 1)
        weights.note(broke)
    return Attacked(best, curve, success, best_broken, watch.share(), watch.looks)


class _Weights:
    """Each image's weight of the change, `now` (N,): what a search with it found says what the next one takes."""

    def __init__(self, like: Tensor, first: float) -> None:
        self.now = torch.full_like(like, first)
        self._broke, self._held = torch.zeros_like(like), torch.full_like(like, torch.inf)

    def note(self, broke: Tensor) -> None:
        """The largest weight that `broke` (N,) an image and the smallest that did not, and one between or beyond."""
        self._broke = torch.where(broke, torch.maximum(self._broke, self.now), self._broke)
        self._held = torch.where(broke, self._held, torch.minimum(self._held, self.now))
        between = (self._broke * self._held).sqrt()
        beyond = torch.where(broke, 10 * self.now, self.now / 10)
        self.now = torch.where((self._broke > 0) & self._held.isfinite(), between, beyond)


def _is_accepted_and_wrong(found: Tensor, labels: Tensor) -> Tensor:
    """Which images (N,) most draws misclassify and accept; answers that are not finite are wrong, as scoring counts."""
    k = _classes(found)
    sound = found[..., : k + 1].isfinite().all(dim=-1)
    broken = ((found[..., :k].argmax(dim=-1) != labels) & (found[..., k] >= 0)) | ~sound
    return losses.mean_over_draws(broken.float()) > 0.5
