"""Attacks on a defense that may refuse: an image counts as broken where it is misclassified *and* accepted.

The target answers (N, K + 1): the logits, and last the slack, the threshold minus the rejection score, at least 0 where
the image is accepted. Two gradients a step: that of the margin, towards a wrong class, and that of the slack, towards
acceptance. They are scaled to equal length before they are mixed, as their sizes have nothing to do with each other;
the rules below say how they become one step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from bench.attacks import (
    Attacked,
    Logits,
    PerImage,
    Watch,
    balls,
    chosen,
    gradient_of,
    in_turn,
    is_blocked,
    losses,
    where,
)
from bench.attacks.square import random_search
from bench.draws import ImageDraws
from bench.errors import unknown

LAST_STEP = 0.005  # of the radius; a cosine lies between the rule's first step and this
WAY = 4.0  # in steps of the radius: all steps together are at least half as long, and cross the ball
HALVINGS = 14  # of what is known of a multiplier


def accepted_pgd(
    answers: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    rule: str = "lagrangian",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 0,
    stop_when_broken: bool = False,
) -> Attacked:
    """Projected gradient ascent in the "linf" or "l2" ball towards images that are misclassified and accepted.

    `answers` maps images to (N, K + 1), or (draws, N, K + 1) for a random defense: logits and slack. With the `rule`
    "lagrangian" each step is the one that raises the lesser of margin and slack the most, to first order and within the
    ball: the sum of both gradients with a Lagrange multiplier that is solved for anew, for each image at each step. So
    nothing is left to grow or to oscillate, and where both cannot be had neither is given up for the other. Against
    detectors the objective is that of Carlini and Wagner (2017, arXiv:1705.07263), whose weight is one for all steps.
    "orthogonal" follows one of the two at a time, without what would undo the other: the margin until the image is
    misclassified, then the slack (Bryniarski et al. 2021, arXiv:2106.15023, section 4, Orthogonal PGD).

    The first of `restarts` runs starts at the clean image, later ones at random points. With `targets` there are so
    many runs for each of the so many likeliest wrong classes of the clean image, one class after the other, and the
    margin to climb is that class's; an image that is accepted as any wrong class is broken all the same.

    The loss that is kept is the margin where the image is accepted, else the lesser of margin and slack, each over its
    size at the clean image: positive where the image is broken. Each image's best iterate is returned: a broken one
    before an unbroken one, then that of higher loss; with draws, that of higher mean loss alone. `stop_when_broken` is
    as in `bench.attacks.apgd`. Raises ValueError for eps < 0, steps < 1, restarts < 1 or targets < 0, BenchError for an
    unknown norm or rule.
    """
    if eps < 0 or steps < 1 or restarts < 1 or targets < 0:
        raise ValueError(
            "accepted_pgd needs eps >= 0, steps >= 1, restarts >= 1 and targets >= 0, got "
            f"{eps}, {steps}, {restarts}, {targets}"
        )
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    ball, clean = balls.get(norm), _clean(answers, images)
    scales = _sizes(clean, labels)

    def run(aim: Tensor | None, number: int, rows: Tensor, noise: ImageDraws) -> Attacked:
        centre = images[rows]
        start = ball.start(centre, eps, noise) if number else centre
        asked = _Asked(answers, labels[rows], None if aim is None else aim[rows], scales[:, rows])
        return _climb(asked, start, centre, eps, ball, RULES[rule], steps, stop_when_broken)

    aims = chosen(_likeliest(clean, labels), targets, 1).unbind(dim=1) if targets else [None]
    runs = [functools.partial(run, aim, number) for aim in aims for number in range(restarts)]
    return in_turn(runs, len(images), draws, stop_when_broken)


def accepted_square(
    answers: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    queries: int = 1000,
    stop_when_broken: bool = False,
) -> Attacked:
    """The random search of Square Attack (bench.attacks.square) towards images that are misclassified and accepted.

    It asks for logits and slack, (N, K + 1) or (draws, N, K + 1), and follows no gradient: a detector whose gradient
    leads nowhere, or the wrong way, does not stop it. The loss is that of `accepted_pgd`. Raises ValueError for eps < 0
    or queries < 1, BenchError for an unknown norm.
    """
    asked = _Asked(answers, labels, None, _sizes(_clean(answers, images), labels))

    def seen(rows: Tensor, proposals: Tensor) -> _Seen:
        return _look(asked.rows(rows), proposals, last=True)

    return random_search(
        seen, images, eps=eps, draws=draws, norm=norm, queries=queries, stop_when_broken=stop_when_broken
    )


@dataclass(frozen=True)
class _Asked:
    """Whom an attack asks, and about what: the labels (N,), the wrong classes to aim at, (N,) or None, and how large
    margin and slack are at the clean images, (2, N), the units of the loss."""

    answers: Logits
    labels: Tensor
    aim: Tensor | None
    scale: Tensor

    def rows(self, rows: Tensor) -> _Asked:
        """The same about the images at the indices `rows`."""
        aim = None if self.aim is None else self.aim[rows]
        return _Asked(self.answers, self.labels[rows], aim, self.scale[:, rows])


@dataclass
class _Climb(PerImage):
    centre: Tensor
    current: Tensor
    kept: Tensor
    kept_loss: Tensor
    kept_broken: Tensor


@dataclass
class _Seen(PerImage):
    """What one look told of each image (N,): the loss, whether most draws misclassify it, accept it, and both."""

    loss: Tensor
    wrong: Tensor
    accepted: Tensor
    broken: Tensor
    blocked: Tensor
    certain: Tensor  # one look at a random defense proves nothing
    margin: Tensor  # to the class aimed at, or any wrong one, and
    slack: Tensor  # each in its unit
    to_wrong: Tensor  # (N, C, H, W), the gradient of the margin
    to_accepted: Tensor  # and that of the slack; zero where they are not finite


def _clean(answers: Logits, images: Tensor) -> Tensor:
    """What the defense answers to the clean images."""
    with torch.no_grad():
        return answers(images)


def _sizes(clean: Tensor, labels: Tensor) -> Tensor:
    """How large margin and slack are in the answers to the clean images, (2, N)."""
    both = torch.stack([losses.margin(clean[..., :-1], labels), clean[..., -1]])  # (2, N) or (2, draws, N)
    mean = both if clean.ndim == 2 else both.mean(dim=1)
    return torch.nan_to_num(mean.abs(), nan=1.0, posinf=1.0).clamp(min=1e-3)


def _likeliest(clean: Tensor, labels: Tensor) -> Tensor:
    """The wrong classes (N, K - 1), likeliest first by the answers to the clean images; with draws, by their mean."""
    scores = losses.without(clean[..., :-1], labels)
    scores = scores if scores.ndim == 2 else scores.mean(dim=0)
    return scores.argsort(dim=1, descending=True)[:, :-1]


def _look(asked: _Asked, images: Tensor, last: bool) -> _Seen:
    """One forward pass; two backward ones unless it is the last."""
    with torch.set_grad_enabled(not last):
        attacked = images.detach().requires_grad_(not last)
        found = asked.answers(attacked)
        logits, slack = found[..., :-1], found[..., -1]
        margin, slack = losses.margin(logits, asked.labels) / asked.scale[0], slack / asked.scale[1]
        aimed = margin
        if asked.aim is not None:
            aimed = losses.targeted_margin(logits, asked.labels, asked.aim) / asked.scale[0]
        margins, slacks = losses.mean_over_draws(aimed), losses.mean_over_draws(slack)
        first, second = gradient_of(margins, attacked, keep_graph=True), gradient_of(slacks, attacked)
    sound = found.detach().isfinite().all(dim=-1)
    wrong, accepted = (margin.detach() > 0) | ~sound, (slack.detach() >= 0) | ~sound
    loss = losses.mean_over_draws(torch.where(slack >= 0, margin, torch.minimum(margin, slack)).detach())
    lost = ~loss.isfinite()
    most = (losses.mean_over_draws(part.to(loss.dtype)) > 0.5 for part in (wrong, accepted, wrong & accepted))
    wrong, accepted, broken = (part | lost for part in most)
    blocked = torch.where(wrong & ~accepted, is_blocked(second), is_blocked(first))
    return _Seen(
        row=torch.arange(len(images), device=images.device), loss=torch.where(lost, torch.inf, loss), wrong=wrong,
        accepted=accepted, broken=broken, blocked=blocked, certain=torch.full_like(broken, found.ndim == 2),
        margin=margins.detach(), slack=slacks.detach(), to_wrong=_finite(first), to_accepted=_finite(second),
    )  # fmt: skip


def _finite(gradient: Tensor) -> Tensor:
    return torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)


def _unit(gradient: Tensor) -> Tensor:
    """Each image's gradient at length 1; zero where it has none."""
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)  # first: the square of a tiny number is zero
    scaled = torch.where(largest > 0, gradient / largest, gradient)
    length = scaled.flatten(1).norm(dim=1)[:, None, None, None]
    return torch.where(length > 0, scaled / length, scaled)


def _along(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).flatten(1).sum(dim=1)


Ahead = Callable[[Tensor], Tensor]  # the image after a step in a direction, both (N, C, H, W)


def _lagrangian(seen: _Seen, current: Tensor, ahead: Ahead) -> Tensor:
    """The step that raises the lesser of margin and slack the most, to first order.

    By duality it is steepest ascent on a weighted sum of the two, at the weight at which they come out equal, or with
    all weight on the one that stays the lesser. More weight on one only raises it, so that halving an interval finds
    it; nothing is sent through the model for that.
    """
    to_wrong, to_accepted = _unit(seen.to_wrong), _unit(seen.to_accepted)
    low, high = torch.zeros_like(seen.margin), torch.ones_like(seen.margin)  # of the margin's weight

    def at(weight: Tensor) -> Tensor:
        return ahead(weight[:, None, None, None] * to_wrong + (1 - weight)[:, None, None, None] * to_accepted)

    for _ in range(HALVINGS):
        weight = (low + high) / 2
        change = at(weight) - current
        less = seen.margin + _along(change, seen.to_wrong) < seen.slack + _along(change, seen.to_accepted)
        low, high = torch.where(less, weight, low), torch.where(less, high, weight)
    return at((low + high) / 2)


def _orthogonal(seen: _Seen, current: Tensor, ahead: Ahead) -> Tensor:
    """A step along one of the two, without what would undo the other."""
    to_wrong, to_accepted = _unit(seen.to_wrong), _unit(seen.to_accepted)
    against = _along(to_wrong, to_accepted)[:, None, None, None].clamp(max=0)  # a common part helps both
    taken = where(seen.wrong & ~seen.accepted, to_accepted - against * to_wrong, to_wrong - against * to_accepted)
    return ahead(taken)


@dataclass(frozen=True)
class _Rule:
    """How margin and slack become a step, and the first step's share of the radius."""

    step: Callable[[_Seen, Tensor, Ahead], Tensor]
    first_step: float


RULES: Mapping[str, _Rule] = MappingProxyType(
    # what a step does to first order is true of a short one only, and a detector is soon too far away to come back to
    {"lagrangian": _Rule(_lagrangian, 0.1), "orthogonal": _Rule(_orthogonal, 0.5)}
)


def _climb(
    asked: _Asked,
    start: Tensor,
    images: Tensor,
    eps: float,
    ball: balls.Ball,
    rule: _Rule,
    steps: int,
    stop_when_broken: bool,
) -> Attacked:
    n, device = len(images), images.device
    watch, everyone = Watch(images), torch.arange(n, device=device)
    seen = _look(asked, start, last=False)
    watch.note(everyone, seen.broken, seen.blocked)
    success = torch.where(seen.broken, 0, torch.full_like(asked.labels, -1))
    curve = torch.empty(steps + 1, n, device=device, dtype=images.dtype)
    curve[0] = seen.loss
    found, found_broken = images.clone(), torch.zeros(n, dtype=torch.bool, device=device)
    s = _Climb(
        row=everyone, centre=images, current=start, kept=start, kept_loss=seen.loss,
        kept_broken=seen.broken & seen.certain,
    )  # fmt: skip
    first_step = max(rule.first_step, min(0.5, WAY / steps))
    for step in range(1, steps + 1):
        if stop_when_broken and bool(s.kept_broken.any()):
            done, left = s.kept_broken, ~s.kept_broken
            found[s.row[done]], found_broken[s.row[done]] = s.kept[done], True
            s, seen = s.rows(left), seen.rows(left)
        curve[step] = curve[step - 1]
        if not len(s.row):
            continue
        share = LAST_STEP + (first_step - LAST_STEP) * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        ahead = functools.partial(_ahead, ball, s.current, s.centre, eps, torch.full_like(s.kept_loss, share * eps))
        s.current = rule.step(seen, s.current, ahead)
        seen = _look(asked.rows(s.row), s.current, last=step == steps)
        watch.note(s.row, seen.broken, None if step == steps else seen.blocked)
        curve[step, s.row] = seen.loss
        success[s.row] = torch.where((success[s.row] < 0) & seen.broken, step, success[s.row])
        broken = seen.broken & seen.certain
        better = (broken & ~s.kept_broken) | ((broken == s.kept_broken) & (seen.loss > s.kept_loss))
        s.kept, s.kept_loss = where(better, s.current, s.kept), torch.where(better, seen.loss, s.kept_loss)
        s.kept_broken = s.kept_broken | broken
    found[s.row], found_broken[s.row] = s.kept, s.kept_broken
    return Attacked(found, curve, success, found_broken, watch.share(), watch.looks)


def _ahead(ball: balls.Ball, current: Tensor, centre: Tensor, eps: float, size: Tensor, direction: Tensor) -> Tensor:
    return ball.project(ball.step(current, direction, size), centre, eps)
