"""FAB (Croce and Hein 2020, arXiv:1907.02044): the smallest change that breaks an image, by steps from plane to plane.

Each step replaces the model by its linear approximation, moves to where that changes class, with a bias towards the
clean image, and takes a tenth of the way back after a success. `fab` looks at the borders to all classes at once,
`fab_t` at one after another. The paper's final search along a line is left out, as in its authors' later work.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

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
    look,
    losses,
    where,
    wrong_classes,
)
from bench.draws import ImageDraws

BIAS = 0.1  # at most this much of a step starts from the clean image (alpha_max)
OVERSHOOT = 1.05  # a step goes this far, in units of the way to the plane (eta)
BACKWARD = 0.9  # of the change of a broken image, what the next step starts from (beta)


def fab(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    stop_when_broken: bool = False,
) -> Attacked:
    """The nearest misclassified image that FAB finds in "linf" or "l2", if it lies in the ball of `eps`.

    The first run starts at the image, every other at a random point of the ball of eps / 2. Where nothing was found
    within `eps`, the nearest misclassified image, or else the last iterate, is projected to the ball. `losses` are the
    negative distances of the nearest one found so far; before there is any, of the farthest corner of [0, 1]. A step
    costs two looks and a backward pass for each wrong class. With draws (draws, N, K) planes are means over draws, and
    a majority of draws is believed. With `stop_when_broken` (no effect with draws) an image leaves the batch as soon
    as it is broken within `eps`, before the smallest change is found. Raises ValueError for eps < 0, steps < 1,
    restarts < 1 or an unknown norm.
    """
    if eps < 0 or steps < 1 or restarts < 1:
        raise ValueError(f"fab needs eps >= 0, steps >= 1 and restarts >= 1, got {eps}, {steps}, {restarts}")

    aims = wrong_classes(logits, images, labels)  # (N, K - 1)

    def run(again: bool, rows: Tensor, noise: ImageDraws) -> Attacked:
        start = balls.get(norm).start(images[rows], eps / 2, noise) if again else images[rows]
        return _descend(logits, images[rows], labels[rows], aims[rows], eps, norm, start, steps, stop_when_broken)

    runs = [functools.partial(run, number > 0) for number in range(restarts)]
    return in_turn(runs, len(images), draws, stop_when_broken)


def fab_t(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    first_target: int = 1,
    stop_when_broken: bool = False,
) -> Attacked:
    """FAB towards the border of one class at a time: a run from the clean image for each of `targets` classes.

    Classes are chosen as by `apgd_t`, the rest is as in `fab`; deterministic: `draws` are not used. A step costs two
    looks and one backward pass, however many classes there are. Raises ValueError for eps < 0, steps < 1, targets < 1,
    a first target that does not exist or an unknown norm.
    """
    if eps < 0 or steps < 1 or targets < 1:
        raise ValueError(f"fab_t needs eps >= 0, steps >= 1 and targets >= 1, got {eps}, {steps}, {targets}")
    aims = chosen(wrong_classes(logits, images, labels), targets, first_target)  # (N, targets)

    def run(aim: Tensor, rows: Tensor, noise: ImageDraws) -> Attacked:
        aimed = aim[rows, None]  # (N, 1)
        return _descend(logits, images[rows], labels[rows], aimed, eps, norm, images[rows], steps, stop_when_broken)

    return in_turn([functools.partial(run, aim) for aim in aims.T], len(images), draws, stop_when_broken)


@dataclass
class _Search(PerImage):
    centre: Tensor
    labels: Tensor
    aims: Tensor  # (N, J) the classes whose borders are looked at
    current: Tensor
    kept: Tensor  # the nearest misclassified image so far, and its distance
    distance: Tensor

    def put(self, some: _Search) -> None:
        """Take over the state of some of the images."""
        self.current = self.current.index_copy(0, some.row, some.current)
        self.kept = self.kept.index_copy(0, some.row, some.kept)
        self.distance = self.distance.index_copy(0, some.row, some.distance)

    def keep_nearest(self, broken: Tensor, norm: str) -> None:
        """Keep the current images where they are broken and nearer than what was kept."""
        distance = _length(self.current - self.centre, norm)
        nearer = broken & (distance < self.distance)
        self.kept, self.distance = where(nearer, self.current, self.kept), torch.where(nearer, distance, self.distance)


def _descend(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    aims: Tensor,
    eps: float,
    norm: str,
    start: Tensor,
    steps: int,
    stop_when_broken: bool,
) -> Attacked:
    n, device = len(images), images.device
    watch, success, never = Watch(images), torch.full_like(labels, -1), torch.full_like(images[:, 0, 0, 0], torch.inf)
    farthest = _length(torch.ones_like(images), norm)
    curve = -farthest.repeat(steps + 1, 1)
    last = _Search(torch.arange(n, device=device), images, labels, aims, start, start, never)  # of those that have left
    s, certain = last.rows(last.row), False
    for step in range(1, steps + 1):
        if stop_when_broken and certain:
            done = s.distance <= eps
            last.put(s.rows(done))
            s = s.rows(~done)
        curve[step - 1 :] = curve[step - 1]
        if not len(s.row):
            break
        planes = _planes(logits, s.current, s.labels, s.aims)
        certain = planes.certain
        s.keep_nearest(planes.broken, norm)
        near = s.distance <= eps
        watch.note(s.row, near, is_blocked(planes.normals))
        success[s.row] = torch.where((success[s.row] < 0) & near, step - 1, success[s.row])
        curve[step - 1, s.row] = -torch.minimum(s.distance, farthest[s.row])

        s.current = _towards(planes, s.current, s.centre, norm)
        broken = look(logits, s.current, s.labels, losses.margin, last=True).broken
        s.keep_nearest(broken, norm)
        success[s.row] = torch.where((success[s.row] < 0) & (s.distance <= eps), step, success[s.row])
        curve[step, s.row] = -torch.minimum(s.distance, farthest[s.row])
        s.current = where(broken, s.centre + BACKWARD * (s.current - s.centre), s.current)
    last.put(s)
    best = where(last.distance.isfinite(), last.kept, last.current)
    inside = last.distance <= eps
    best = where(inside, best, balls.get(norm).project(best, images, eps))
    return Attacked(best.clone(), curve, success, inside & certain, watch.share(), watch.looks)


@dataclass(frozen=True)
class _Planes:
    """The linear approximation of the borders to J classes: gap + normal * change, positive beyond the border."""

    gaps: Tensor  # (N, J)
    normals: Tensor  # (N, J, C, H, W)
    broken: Tensor  # (N,)
    certain: bool


def _planes(logits: Logits, images: Tensor, labels: Tensor, aims: Tensor) -> _Planes:
    with torch.enable_grad():
        attacked = images.detach().requires_grad_()
        scores = logits(attacked)
        gaps = [losses.mean_over_draws(losses.targeted_margin(scores, labels, aim)) for aim in aims.T]
    last = len(gaps) - 1
    normals = [gradient_of(gap, attacked, keep_graph=number < last) for number, gap in enumerate(gaps)]
    values = torch.stack(gaps, dim=1).detach()
    lost = ~values.isfinite().all(dim=1)
    return _Planes(
        values, torch.stack(normals, dim=1), losses.is_broken(scores.detach(), labels) | lost, scores.ndim == 2
    )


def _towards(planes: _Planes, current: Tensor, centre: Tensor, norm: str) -> Tensor:
    """A step over the nearest plane, from the current images and a little from the clean ones."""
    normals, gaps = torch.nan_to_num(planes.normals, posinf=0.0, neginf=0.0), torch.nan_to_num(planes.gaps)
    dual = normals.flatten(2).abs().sum(dim=2) if norm == "linf" else normals.flatten(2).norm(dim=2)
    nearest = (gaps.abs() / dual.clamp(min=balls.TINY)).argmin(dim=1)
    rows = torch.arange(len(current), device=current.device)
    normal, gap = normals[rows, nearest], gaps[rows, nearest]
    gap_at_centre = gap + (normal * (centre - current)).flatten(1).sum(dim=1)
    ahead = _to_plane(current, normal, -gap, norm)
    ahead_of_centre = _to_plane(centre, normal, -gap_at_centre, norm)
    way, way_of_centre = (_length(change, norm).clamp(min=1e-8) for change in (ahead, ahead_of_centre))
    bias = (way / (way + way_of_centre)).clamp(max=BIAS)[:, None, None, None]
    mixed = (1 - bias) * (current + OVERSHOOT * ahead) + bias * (centre + OVERSHOOT * ahead_of_centre)
    return mixed.clamp(0, 1)


def _to_plane(points: Tensor, normal: Tensor, gain: Tensor, norm: str) -> Tensor:
    """The shortest change, within [0, 1], along which a linear function with gradient `normal` grows by `gain` (N,).

    Every pixel moves in proportion to one number, until it meets a wall: in Linf all by the same amount, in L2 by their
    part of the normal. What is gained grows with that number by straight pieces, which are searched for the right one.
    Where the gain cannot be reached, every pixel moves to its wall.
    """
    largest = normal.flatten(1).abs().amax(dim=1, keepdim=True).clamp(min=balls.TINY)
    normal = normal.flatten(1) / largest * gain.sign()[:, None]
    wanted = gain.abs()[:, None] / largest  # (N, 1)
    room = torch.where(normal > 0, 1 - points.flatten(1), points.flatten(1))
    size = torch.where(normal.abs() > 1e-8, normal.abs(), 0)
    speed = (size > 0).to(size.dtype) if norm == "linf" else size
    walls = torch.where(size > 0, room / speed.clamp(min=1e-8), 0)  # the number at which a pixel meets its wall
    ordered, order = walls.sort(dim=1)
    slope = (size * speed).gather(1, order)
    still = slope.flip(1).cumsum(dim=1).flip(1)  # the slope of the piece that ends at each wall
    gained = (still * ordered.diff(dim=1, prepend=torch.zeros_like(wanted))).cumsum(dim=1)  # at each wall
    piece = (gained < wanted).sum(dim=1, keepdim=True)
    ends = piece.clamp(max=ordered.shape[1] - 1)
    number = ordered.gather(1, ends) - (gained.gather(1, ends) - wanted) / still.gather(1, ends).clamp(min=balls.TINY)
    number = torch.where(piece < ordered.shape[1], number, torch.inf)
    return (normal.sign() * speed * torch.minimum(walls, number)).view_as(points)


def _length(change: Tensor, norm: str) -> Tensor:
    flat = change.flatten(1)
    return flat.abs().amax(dim=1) if norm == "linf" else flat.norm(dim=1)
