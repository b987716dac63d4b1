"""What is not an attack but stands beside the attacks: clean images, jitter and noise made without any knowledge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, balls
from bench.draws import ImageDraws


def none(logits: Logits, images: Tensor, labels: Tensor, *, draws: ImageDraws) -> Attacked:
    """The clean images, and whether the model is wrong on them. Nothing is sent through `logits`."""
    return _unlearned(images.clone(), labels)


def uniform_noise(logits: Logits, images: Tensor, labels: Tensor, *, eps: float, draws: ImageDraws) -> Attacked:
    """Uniform noise in the Linf ball of radius `eps`, clipped to [0, 1]: a defense that it breaks is merely fragile."""
    return _unlearned(balls.get("linf").start(images, eps, draws), labels)


def shift(logits: Logits, images: Tensor, labels: Tensor, *, draws: ImageDraws) -> Attacked:
    """Each image moved by one pixel towards one of its eight neighbours, black behind it: a jitter that people do not
    notice, and that a purifier built on exact positions does."""
    moves = torch.tensor([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx], device=images.device)
    chosen = moves[(draws.uniform() * len(moves)).long()].float()  # (N, 2), in pixels
    size = torch.tensor(images.shape[2:], device=images.device)
    affine = torch.eye(2, device=images.device).repeat(len(images), 1, 1)
    offset = (2 * chosen / size).flip(1)  # the grid is (x, y) on [-1, 1]
    return _unlearned(_resampled(images, torch.cat([affine, offset[:, :, None]], dim=2), "nearest"), labels)


def rotate(logits: Logits, images: Tensor, labels: Tensor, *, draws: ImageDraws, degrees: float = 5.0) -> Attacked:
    """Each image turned by `degrees`, one way or the other, bilinear, black beyond its edges: the other jitter."""
    angle = math.radians(degrees) * torch.where(draws.uniform() < 0.5, -1.0, 1.0)  # (N,)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    affine = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # (N, 2, 3)
    return _unlearned(_resampled(images, affine, "bilinear"), labels)


def _resampled(images: Tensor, affine: Tensor, mode: str) -> Tensor:
    if not len(images):  # there is no grid of nothing
        return images.clone()
    grid = torch.nn.functional.affine_grid(affine.to(images.dtype), list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return moved.clamp(0, 1)


def _unlearned(images: Tensor, labels: Tensor) -> Attacked:
    return Attacked(images, torch.empty(0, len(images), device=images.device), torch.full_like(labels, -1))
