"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599) in L2: over the nearest border of a linear approximation,
again and again, until the image is broken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attacks import (
    Attacked,
    Logits,
    PerImage,
    Watch,
    chosen,
    gradient_of,
    is_blocked,
    losses,
    nearest,
    wrong_classes,
)
from bench.draws import ImageDraws

FURTHER = 1e-4  # a step goes this much beyond the border, as in the authors' code


def deepfool(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    draws: ImageDraws,
    eps: float | None = None,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
) -> Attacked:
    """The first misclassified image that DeepFool finds in L2, whatever its distance; the clean one if it finds none.

    Each step adds up the way to the nearest border among the true class and the `candidates` - 1 wrong classes that
    are likeliest for the clean image; what is looked at is the clean image changed by 1 + `overshoot` times that sum,
    clipped to [0, 1]. An image leaves as soon as it is broken, by more than a tie. With `eps` the result is projected
    to the ball of that radius, broken or not. What is returned is looked at once more: `broken` and `step_of_success`
    mean that image, `losses` are the margins before each step and at the end. With draws (draws, N, K) gaps are means
    over draws, a majority of draws ends an image's search, but it stays in the batch, so that
    what the others draw does not depend on it; nothing counts as broken.

    Deviations: the sum is clipped to [0, 1] at each step, as what lies outside leads nowhere, and the labels, not the
    predictions, say what is wrong. A step costs a look and a backward pass for each wrong class; where images have left
    it may look at the others twice, which is cheaper than backward passes for those that left. Deterministic: `draws`
    is not used. Raises ValueError for eps < 0, steps < 1, overshoot < 0 or candidates < 2.
    """
    if (eps is not None and eps < 0) or steps < 1 or overshoot < 0 or candidates < 2:
        raise ValueError(
            "deepfool needs eps >= 0 or None, steps >= 1, overshoot >= 0 and candidates >= 2, "
            f"got {eps}, {steps}, {overshoot}, {candidates}"
        )
    n, device = len(images), images.device
    aims = chosen(wrong_classes(logits, images, labels), candidates - 1, 1)  # (N, J)
    s = _Search(torch.arange(n, device=device), images, labels, aims, torch.zeros_like(images), images)
    found, success, watch = images.clone(), torch.full_like(labels, -1), Watch(images)
    curve = torch.empty(steps + 1, n, device=device, dtype=images.dtype)
    for step in range(steps):
        if not len(s.row):
            break
        seen = _Borders(logits, s)
        curve[step:, s.row] = seen.loss
        new = success[s.row] < 0
        found[s.row[new]], success[s.row[new & seen.broken]] = s.current[new], step
        left = ~seen.broken | (not seen.certain)
        s, row, broken, leading = s.rows(left), s.row, seen.broken, left
        if int((~left).sum()) * aims.shape[1] > len(s.row) > 0:
            seen, left = _Borders(logits, s), torch.ones_like(s.row, dtype=torch.bool)
        if len(s.row):
            normals = seen.normals()[left]  # (N, J, C, H, W)
            watch.note(row, broken, torch.zeros_like(broken).masked_scatter(leading, is_blocked(normals)))
            s.advance(seen.gaps[left], normals, overshoot)
    new = success[s.row] < 0
    found[s.row[new]] = s.current[new]
    return nearest.settled(logits, images, labels, found, curve, success, watch, eps)


@dataclass
class _Search(PerImage):
    centre: Tensor
    labels: Tensor
    aims: Tensor  # (N, J) the classes whose borders are looked at
    change: Tensor  # the sum of all steps
    current: Tensor

    def advance(self, gaps: Tensor, normals: Tensor, overshoot: float) -> None:
        """A step to the nearest border; gap + normal * change is zero on the linear approximation of each."""
        normals = torch.nan_to_num(normals, posinf=0.0, neginf=0.0)
        length = normals.flatten(2).norm(dim=2)  # (N, J)
        distance = torch.where(length > 0, gaps.abs() / length, torch.inf)
        way, border = distance.min(dim=1)
        rows = torch.arange(len(border), device=border.device)
        scale = torch.where(way.isfinite(), (way + FURTHER) / length[rows, border], 0.0)
        step = scale[:, None, None, None] * normals[rows, border]
        self.change = (self.centre + self.change + torch.nan_to_num(step)).clamp(0, 1) - self.centre
        self.current = (self.centre + (1 + overshoot) * self.change).clamp(0, 1)


class _Borders:
    """One look: which images are broken (N,), their margin (N,), and the gaps (N, J) to the borders of their aims."""

    def __init__(self, logits: Logits, s: _Search) -> None:
        with torch.enable_grad():
            self._attacked = s.current.detach().requires_grad_()
            scores = logits(self._attacked)
            self._gaps = [losses.mean_over_draws(losses.targeted_margin(scores, s.labels, aim)) for aim in s.aims.T]
        self.gaps = torch.stack(self._gaps, dim=1).detach()
        self.loss = losses.mean_over_draws(losses.margin(scores.detach(), s.labels))
        lost = ~self.loss.isfinite()
        self.loss = torch.where(lost, torch.inf, self.loss)
        self.certain = scores.ndim == 2
        wrong = losses.is_broken(scores.detach(), s.labels)
        self.broken = (wrong & (self.loss > 0) if self.certain else wrong) | lost

    def normals(self) -> Tensor:
        """The gradients of the gaps, (N, J, C, H, W), as they are."""
        ends = len(self._gaps) - 1
        return torch.stack(
            [gradient_of(gap, self._attacked, keep_graph=k < ends) for k, gap in enumerate(self._gaps)], dim=1
        )
