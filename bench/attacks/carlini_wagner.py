"""The attack of Carlini and Wagner (2017, arXiv:1608.04644) in L2: the smallest change that the model gets wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, losses, where
from bench.draws import ImageDraws

INSIDE = 1 - 1e-6  # the box is shrunk so far: pixels at exactly 0 and 1 would have no gradient otherwise
LARGEST_CONSTANT = 1e10


def cw_l2(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    draws: ImageDraws,
    searches: int = 5,
    steps: int = 100,
    learning_rate: float = 0.05,
    constant: float = 1.0,
    kappa: float = 0.0,
) -> Attacked:
    """Minimise ||x' - x||^2 + c max(0, true logit - best other + kappa) over x' = (tanh(w) + 1) / 2 with Adam.

    Each image has its own constant c: it starts at `constant` and is searched by bisection, `searches` times; the
    nearest x' that is wrong by more than `kappa` is returned, the image itself where there is none. The loss is in
    differences of logits, so a shift of all logits changes nothing. Deterministic: `draws` is not used. The curve is
    that of the margin in the last search. Raises ValueError for searches < 1, steps < 1, learning_rate <= 0 or
    constant <= 0.
    """
    if searches < 1 or steps < 1 or learning_rate <= 0 or constant <= 0:
        raise ValueError(
            "cw_l2 needs searches >= 1, steps >= 1, learning_rate > 0 and constant > 0, "
            f"got {searches}, {steps}, {learning_rate}, {constant}"
        )
    n = len(images)
    start = torch.atanh((2 * images - 1) * INSIDE)
    best, nearest = images.clone(), torch.full_like(images[:, 0, 0, 0], torch.inf)
    success = torch.full_like(labels, -1)
    curve = torch.empty(steps + 1, n, device=images.device, dtype=images.dtype)
    low, high = torch.zeros_like(nearest), torch.full_like(nearest, torch.inf)
    c = torch.full_like(nearest, constant)
    for search in range(searches):
        w = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([w], lr=learning_rate)
        broke = torch.zeros(n, dtype=torch.bool, device=images.device)
        for step in range(steps + 1):
            last = step == steps
            with torch.set_grad_enabled(not last):
                attacked = (w.tanh() + 1) / 2
                gap = losses.mean_over_draws(losses.true_gap(logits(attacked), labels))
                distance = (attacked - images).square().flatten(1).sum(dim=1)
                objective = distance + c * (gap + kappa).clamp(min=0)
            curve[step] = -gap.detach()
            wrong = ~(gap.detach() > -kappa) if kappa else ~(gap.detach() >= 0)
            broke |= wrong
            nearer = wrong & (distance.detach() < nearest)
            best = where(nearer, attacked.detach(), best)
            nearest = torch.where(nearer, distance.detach(), nearest)
            success = torch.where((success < 0) & wrong, search * (steps + 1) + step, success)
            if not last:
                (w.grad,) = torch.autograd.grad(torch.nan_to_num(objective).sum(), w)
                w.grad.nan_to_num_(posinf=0.0, neginf=0.0)
                optimizer.step()
        high = torch.where(broke, torch.minimum(high, c), high)
        low = torch.where(broke, low, torch.maximum(low, c))
        c = torch.where(high.isfinite(), (low + high) / 2, (10 * c).clamp(max=LARGEST_CONSTANT))
    return Attacked(best, curve, success, nearest.isfinite())
