"""The attack of Carlini and Wagner (2017, arXiv:1608.04644) in L2: the smallest change that the model gets wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, PerImage, Watch, look, losses, nearest
from bench.attacks.adam import adam
from bench.draws import ImageDraws

INSIDE = 1 - 1e-6  # how far the box is shrunk for tanh, whose inverse is infinite at its walls
LARGEST_CONSTANT = 1e10
PROGRESS = 0.9999  # with abort_early an image goes on while a tenth of the steps brings its objective below this share


def cw_l2(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    draws: ImageDraws,
    eps: float | None = None,
    searches: int = 9,
    steps: int = 100,
    learning_rate: float = 0.05,
    constant: float = 1.0,
    kappa: float = 0.0,
    box: str = "clip",
    abort_early: bool = False,
) -> Attacked:
    """The nearest x' that is wrong by more than `kappa`, whatever its distance; the clean image where there is none.

    Minimises ||x' - x||^2 + c max(0, true logit - best other + kappa) with Adam, from x anew for each c. An image has
    its own c: it starts at `constant`, grows tenfold until it breaks the image, and is then bisected, `searches` runs
    in all. The loss is in differences of logits, so a shift of all logits changes nothing. An image that is wrong from
    the start is returned as it is. With `eps` the result is projected to the L2 ball of that radius. What is returned
    is looked at once more: `broken` and `step_of_success` (counted over all searches) mean that image; `losses` are the
    margins of the last search, and at the end. With draws (draws, N, K) margins are means over draws, no image leaves
    the batch and nothing counts as broken.

    Deviation: `box="clip"` keeps x' in [0, 1] by clipping it after each step. The paper's substitution x' = (tanh w +
    1) / 2, `box="tanh"`, has a slope of 1e-6 where pixels are 0 or 1, as four fifths of MNIST are, and they hardly move
    in a hundred steps; after thousands both are as near. The paper has 10,000 steps of 0.01 from c = 0.001.
    `abort_early` ends an image's run when a tenth of the steps brings no progress; the authors' code ends a batch's.
    Deterministic: `draws` is not used. Raises ValueError for eps < 0, searches < 1, steps < 1, learning_rate <= 0,
    constant <= 0, kappa < 0 or another box.
    """
    if (eps is not None and eps < 0) or searches < 1 or steps < 1 or learning_rate <= 0 or constant <= 0 or kappa < 0:
        raise ValueError(
            "cw_l2 needs eps >= 0 or None, searches >= 1, steps >= 1, learning_rate > 0, constant > 0 and kappa >= 0, "
            f"got {eps}, {searches}, {steps}, {learning_rate}, {constant}, {kappa}"
        )
    if box not in ("clip", "tanh"):
        raise ValueError(f'cw_l2 needs box "clip" or "tanh", got "{box}"')
    everyone, watch = torch.arange(len(images), device=images.device), Watch(images)
    clean = look(logits, images, labels, losses.margin)
    watch.note(everyone, clean.broken, clean.blocked)
    success = torch.where(clean.broken, 0, torch.full_like(labels, -1))
    curve = clean.loss.repeat(steps + 1, 1)
    best, distance = images.clone(), torch.where(clean.broken, 0.0, torch.full_like(clean.loss, torch.inf))
    low, high = torch.zeros_like(distance), torch.full_like(distance, torch.inf)
    c = torch.full_like(distance, constant)
    start = torch.atanh((2 * images - 1) * INSIDE) if box == "tanh" else images
    zero = torch.zeros_like(images)
    for search in range(searches):
        broke = clean.broken.clone()
        s = _Run(everyone, images, labels, c, start, images, clean.loss, clean.gradient, zero, zero, high)
        s = s.rows(~clean.broken | (not clean.certain))
        for step in range(1, steps + 1):
            if abort_early and clean.certain and (step - 1) % max(steps // 10, 1) == 0:
                s = s.those_that_progress(kappa)
            if not len(s.row):
                break
            s.advance(learning_rate, kappa, step, box)
            seen = look(logits, s.current, s.labels, losses.margin, last=step == steps)
            watch.note(s.row, seen.broken, seen.blocked)
            s.margin, s.gradient = seen.loss, seen.gradient
            curve[step:, s.row] = seen.loss
            wrong = seen.broken & (seen.loss > kappa)
            reached = s.distance()
            nearer = wrong & (reached < distance[s.row])
            best[s.row[nearer]], distance[s.row[nearer]] = s.current[nearer], reached[nearer]
            broke[s.row[wrong]] = True
            success[s.row] = torch.where((success[s.row] < 0) & wrong, search * steps + step, success[s.row])
        high = torch.where(broke, torch.minimum(high, c), high)
        low = torch.where(broke, low, torch.maximum(low, c))
        c = torch.where(high.isfinite(), (low + high) / 2, (10 * c).clamp(max=LARGEST_CONSTANT))
    return nearest.settled(logits, images, labels, best, curve, success, watch, eps)


@dataclass
class _Run(PerImage):
    """Adam on each image still in the batch, for one constant each; `gradient` is the margin's at `current`."""

    centre: Tensor
    labels: Tensor
    c: Tensor
    point: Tensor  # what Adam moves: w for tanh, the image itself for clipping
    current: Tensor
    margin: Tensor  # the best other logit minus the true one
    gradient: Tensor
    mean: Tensor  # Adam's running moments
    square: Tensor
    checked: Tensor  # the objective when its progress was last looked at

    def distance(self) -> Tensor:
        """The squared distance to the clean image, (N,)."""
        return (self.current - self.centre).square().sum(dim=(1, 2, 3))

    def those_that_progress(self, kappa: float) -> _Run:
        """The images whose objective has fallen since the last check."""
        objective = self.distance() + self.c * (kappa - self.margin).clamp(min=0)
        going = objective <= PROGRESS * self.checked
        self.checked = objective
        return self.rows(going)

    def advance(self, learning_rate: float, kappa: float, number: int, box: str) -> None:
        """Adam's step `number`, from 1 on, down the objective."""
        pull = torch.where(self.margin < kappa, self.c, 0.0)[:, None, None, None]
        slope = 2 * (self.current - self.centre) - pull * self.gradient
        if box == "tanh":
            slope = slope * 2 * self.current * (1 - self.current)
        self.mean, self.square, step = adam(self.mean, self.square, slope, number, learning_rate)
        self.point = self.point - step
        if box == "clip":
            self.point = self.point.clamp(0, 1)
        self.current = (self.point.tanh() + 1) / 2 if box == "tanh" else self.point
