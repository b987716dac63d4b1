"""The minimum of a smooth function over a box for each row of a batch by itself: projected L-BFGS, all rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MEMORY = 10  # pairs of steps and gradient changes that a row remembers
SUFFICIENT = 1e-4  # the share of the decrease that the slope promises, by which a step is accepted (Armijo 1966)
PATIENCE = 20  # refusals in a row after which a row forgets its pairs and starts again down the gradient
CURVED = 1e-10  # the least curvature, relative to the lengths of a pair, that is remembered

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]


def minimise(slope: Slope, start: Tensor, steps: int, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """The lowest points found, of the shape of `start` (N, ...) and within [low, high], and the values on the way,
    (steps + 1, N), which never rise.

    `slope` gives the values (N,) and gradients (N, ...) of N points, each of its own row alone; it is called steps + 1
    times. A call tries one point for each row: a quasi-Newton step with the inverse Hessian of the last pairs (Nocedal
    1980), restricted to the coordinates that are not held at a wall by their gradient and bent along the walls
    (Bertsekas 1982). Where it does not lower the value enough, a shorter one is tried in the next call. The first step
    of a row has length 1. Values or gradients that are not finite are refused.
    """
    shape, n = start.shape, len(start)
    point = start.flatten(1).clamp(low, high)  # (N, D)
    value, gradient = _seen(slope, point, shape)
    curve = [value]
    moves, turns = (point.new_zeros(MEMORY, *point.shape) for _ in range(2))  # the newest pair last
    direction = _downhill(gradient, _free(point, gradient, low, high))
    length, refusals = torch.ones_like(value), torch.zeros(n, dtype=torch.int64, device=start.device)
    for _ in range(steps):
        tried = (point + length[:, None] * direction).clamp(low, high)
        found, ahead = _seen(slope, tried, shape)
        promised = _dot(gradient, tried - point)  # negative: downhill
        taken = (found <= value + SUFFICIENT * promised) & (found < value)
        move, turn = tried - point, ahead - gradient
        kept = taken & (_dot(move, turn) > CURVED * _dot(move, move).sqrt() * _dot(turn, turn).sqrt())
        moves, turns = (
            torch.where(kept[:, None], torch.cat([pairs[1:], new[None]]), pairs)
            for pairs, new in ((moves, move), (turns, turn))
        )
        refusals = torch.where(taken, 0, refusals + 1)
        afresh = refusals == PATIENCE
        moves, turns = (torch.where(afresh[:, None], 0.0, pairs) for pairs in (moves, turns))
        length = torch.where(taken | afresh, 1.0, length * _shorter(value, found, promised))
        point, value = torch.where(taken[:, None], tried, point), torch.where(taken, found, value)
        gradient = torch.where(taken[:, None], ahead, gradient)
        free = _free(point, gradient, low, high)
        direction = torch.where((taken | afresh)[:, None], _newton(gradient, free, moves, turns), direction)
        curve.append(value)
    return point.view(shape), torch.stack(curve)


def _seen(slope: Slope, point: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Values, infinite where they or the gradient are not finite, and gradients (N, D)."""
    value, gradient = slope(point.view(shape))
    gradient = gradient.flatten(1)
    sound = value.isfinite() & gradient.isfinite().all(dim=1)
    return torch.where(sound, value, torch.inf), torch.where(sound[:, None], gradient, 0.0)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=-1)


def _free(point: Tensor, gradient: Tensor, low: float, high: float) -> Tensor:
    """Which coordinates may move: not those at a wall that downhill leads through."""
    return ~(((point <= low) & (gradient > 0)) | ((point >= high) & (gradient < 0)))


def _downhill(gradient: Tensor, free: Tensor) -> Tensor:
    """Steps of length 1 down the gradient, (N, D); none where it is zero."""
    down = -gradient * free
    return down / _dot(down, down).sqrt().clamp(min=torch.finfo(down.dtype).tiny)[:, None]


def _newton(gradient: Tensor, free: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """The quasi-Newton steps (N, D) over the free coordinates; down the gradient for a row that remembers no pair."""
    moves, turns = moves * free, turns * free  # (MEMORY, N, D)
    curvature = _dot(moves, turns)  # (MEMORY, N)
    known = curvature > CURVED * _dot(moves, moves).sqrt() * _dot(turns, turns).sqrt()
    weight = torch.where(known, 1 / curvature, 0.0)
    scale = torch.ones_like(curvature[0])
    for pair in range(MEMORY):  # that of the newest known pair stays
        scale = torch.where(known[pair], curvature[pair] / _dot(turns[pair], turns[pair]), scale)
    direction, parts = gradient * free, torch.zeros_like(curvature)
    for pair in reversed(range(MEMORY)):
        parts[pair] = weight[pair] * _dot(moves[pair], direction)
        direction = direction - parts[pair][:, None] * turns[pair]
    direction = scale[:, None] * direction
    for pair in range(MEMORY):
        back = weight[pair] * _dot(turns[pair], direction)
        direction = direction + torch.where(known[pair], parts[pair] - back, 0.0)[:, None] * moves[pair]
    return torch.where(known.any(dim=0)[:, None], -direction, _downhill(gradient, free))


def _shorter(value: Tensor, found: Tensor, promised: Tensor) -> Tensor:
    """By how much to shorten a refused step: to the minimum of the parabola that is known, a tenth to a half."""
    bend = found - value - promised
    share = torch.where(bend > 0, -promised / (2 * bend), 0.5)
    return torch.nan_to_num(share, nan=0.1).clamp(0.1, 0.5)
