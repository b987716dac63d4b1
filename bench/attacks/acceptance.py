"""Attacks on a defense that may refuse: an image counts as broken where it is misclassified *and* accepted.

The target answers (N, K + 1): the logits, and last the slack, the threshold minus the rejection score, at least 0 where
the image is accepted. Two gradients a step: that of the margin, towards a wrong class, and that of the slack, towards
acceptance. They are scaled to equal length, as their sizes have nothing to do with each other; the rules below say how
they become one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, PerImage, Watch, balls, gradient_of, in_turn, is_blocked, losses, where
from bench.attacks.square import random_search
from bench.draws import ImageDraws
from bench.errors import unknown

FIRST_STEP, LAST_STEP = 0.5, 0.005  # of the radius; a cosine lies between
GROWTH = 1.5  # of a multiplier, at each step at which the image is on one side of its constraint


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
    stop_when_broken: bool = False,
) -> Attacked:
    """Projected gradient ascent in the "linf" or "l2" ball towards images that are misclassified and accepted.

    `answers` maps images to (N, K + 1), or (draws, N, K + 1) for a random defense: logits and slack. With the `rule`
    "lagrangian" the slack's gradient is added times a multiplier of the image's own, which grows while the image is
    refused and shrinks while it is accepted. "orthogonal" follows one of the two at a time, without what would undo
    the other: the margin until the image is misclassified, then the slack (Bryniarski et al. 2021,
    arXiv:2106.15023, section 4, Orthogonal PGD). The first run starts at the clean image, later ones at random
    points.

    The loss that is kept is the margin where the image is accepted, else the lesser of margin and slack, each over its
    size at the clean image: positive where the image is broken. Each image's best iterate is returned: a broken one
    before an unbroken one, then that of higher loss; with draws, that of higher mean loss alone. `stop_when_broken` is
    as in `bench.attacks.apgd`. Raises ValueError for eps < 0, steps < 1 or restarts < 1, BenchError for an unknown norm
    or rule.
    """
    if eps < 0 or steps < 1 or restarts < 1:
        raise ValueError(f"accepted_pgd needs eps >= 0, steps >= 1 and restarts >= 1, got {eps}, {steps}, {restarts}")
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    ball, starts = balls.get(norm), iter(range(restarts))
    scales = _sizes(answers, images, labels)

    def run(rows: Tensor, noise: ImageDraws) -> Attacked:
        centre = images[rows]
        start = ball.start(centre, eps, noise) if next(starts) else centre
        scale = scales[:, rows]
        return _climb(answers, start, centre, labels[rows], scale, eps, ball, RULES[rule], steps, stop_when_broken)

    return in_turn([run] * restarts, len(images), draws, stop_when_broken)


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
    scales = _sizes(answers, images, labels)

    def seen(rows: Tensor, proposals: Tensor) -> _Seen:
        return _look(answers, proposals, labels[rows], scales[:, rows], last=True)

    return random_search(
        seen, images, eps=eps, draws=draws, norm=norm, queries=queries, stop_when_broken=stop_when_broken
    )


@dataclass
class _Climb(PerImage):
    centre: Tensor
    labels: Tensor
    current: Tensor
    multiplier: Tensor  # the weight of the slack against the margin
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
    to_wrong: Tensor  # (N, C, H, W), of unit length: the gradient of the margin
    to_accepted: Tensor  # and that of the slack


def _sizes(answers: Logits, images: Tensor, labels: Tensor) -> Tensor:
    """How large margin and slack are at the clean images, (2, N): the units of the loss."""
    with torch.no_grad():
        found = answers(images)
        both = torch.stack([losses.margin(found[..., :-1], labels), found[..., -1]])  # (2, N) or (2, draws, N)
        mean = both if found.ndim == 2 else both.mean(dim=1)
    return torch.nan_to_num(mean.abs(), nan=1.0, posinf=1.0).clamp(min=1e-3)


def _look(answers: Logits, images: Tensor, labels: Tensor, scale: Tensor, last: bool) -> _Seen:
    """One forward pass; two backward ones unless it is the last."""
    with torch.set_grad_enabled(not last):
        attacked = images.detach().requires_grad_(not last)
        found = answers(attacked)
        logits, slack = found[..., :-1], found[..., -1]
        margin, slack = losses.margin(logits, labels) / scale[0], slack / scale[1]
        margins, slacks = losses.mean_over_draws(margin), losses.mean_over_draws(slack)
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
        to_wrong=_unit(first), to_accepted=_unit(second),
    )  # fmt: skip


def _unit(gradient: Tensor) -> Tensor:
    """Each image's gradient at length 1; zero where it has none or one that is not finite."""
    finite = torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)
    largest = finite.abs().amax(dim=(1, 2, 3), keepdim=True)  # first: the square of a tiny number is zero
    finite = torch.where(largest > 0, finite / largest, finite)
    length = finite.flatten(1).norm(dim=1)[:, None, None, None]
    return torch.where(length > 0, finite / length, finite)


def _lagrangian(seen: _Seen, multiplier: Tensor) -> Tensor:
    return seen.to_wrong + multiplier[:, None, None, None] * seen.to_accepted


def _orthogonal(seen: _Seen, multiplier: Tensor) -> Tensor:
    along = (seen.to_wrong * seen.to_accepted).flatten(1).sum(dim=1)[:, None, None, None]
    against = along.clamp(max=0)  # only what would undo the other: a common part helps both
    to_wrong, to_accepted = seen.to_wrong - against * seen.to_accepted, seen.to_accepted - against * seen.to_wrong
    return where(seen.wrong & ~seen.accepted, to_accepted, to_wrong)


Rule = Callable[[_Seen, Tensor], Tensor]
RULES: Mapping[str, Rule] = MappingProxyType({"lagrangian": _lagrangian, "orthogonal": _orthogonal})


def _climb(
    answers: Logits,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    scale: Tensor,
    eps: float,
    ball: balls.Ball,
    rule: Rule,
    steps: int,
    stop_when_broken: bool,
) -> Attacked:
    n, device = len(images), images.device
    watch, everyone = Watch(images), torch.arange(n, device=device)
    seen = _look(answers, start, labels, scale, last=False)
    watch.note(everyone, seen.broken, seen.blocked)
    success = torch.where(seen.broken, 0, torch.full_like(labels, -1))
    curve = torch.empty(steps + 1, n, device=device, dtype=images.dtype)
    curve[0] = seen.loss
    found, found_broken = images.clone(), torch.zeros(n, dtype=torch.bool, device=device)
    s = _Climb(
        row=everyone, centre=images, labels=labels, current=start, multiplier=torch.ones_like(seen.loss),
        kept=start, kept_loss=seen.loss, kept_broken=seen.broken & seen.certain,
    )  # fmt: skip
    for step in range(1, steps + 1):
        if stop_when_broken and bool(s.kept_broken.any()):
            done, left = s.kept_broken, ~s.kept_broken
            found[s.row[done]], found_broken[s.row[done]] = s.kept[done], True
            s, seen = s.rows(left), seen.rows(left)
        curve[step] = curve[step - 1]
        if not len(s.row):
            continue
        weight = torch.where(seen.accepted, 1 / GROWTH, torch.full_like(s.multiplier, GROWTH))
        s.multiplier = (s.multiplier * torch.where(seen.broken, 1.0, weight)).clamp(1e-3, 1e3)
        share = LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        size = torch.full_like(s.kept_loss, share * eps)
        s.current = ball.project(ball.step(s.current, rule(seen, s.multiplier), size), s.centre, eps)
        seen = _look(answers, s.current, s.labels, scale[:, s.row], last=step == steps)
        watch.note(s.row, seen.broken, None if step == steps else seen.blocked)
        curve[step, s.row] = seen.loss
        success[s.row] = torch.where((success[s.row] < 0) & seen.broken, step, success[s.row])
        broken = seen.broken & seen.certain
        better = (broken & ~s.kept_broken) | ((broken == s.kept_broken) & (seen.loss > s.kept_loss))
        s.kept, s.kept_loss = where(better, s.current, s.kept), torch.where(better, seen.loss, s.kept_loss)
        s.kept_broken = s.kept_broken | broken
    found[s.row], found_broken[s.row] = s.kept, s.kept_broken
    return Attacked(found, curve, success, found_broken, watch.share(), watch.looks)
