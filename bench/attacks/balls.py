"""The balls that attacks stay in: random starts, steps of steepest ascent, projections. Linf and L2, inside [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from bench.draws import ImageDraws
from bench.errors import unknown

TINY = 1e-12


class Ball(Protocol):
    """The three things an iterative attack needs of a norm. Images are (N, C, H, W), `step_size` is (N,)."""

    def start(self, images: Tensor, eps: float, draws: ImageDraws) -> Tensor:
        """A random point of the ball around each image, in [0, 1]."""

    def step(self, images: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        """Images moved by `step_size` in the direction in which the loss grows fastest for this norm."""

    def project(self, images: Tensor, centre: Tensor, eps: float) -> Tensor:
        """The nearest point of the ball around `centre`, then of [0, 1]."""


class Linf:
    """No pixel moves by more than eps."""

    def start(self, images: Tensor, eps: float, draws: ImageDraws) -> Tensor:
        """Uniform in the cube."""
        noise = draws.uniform(*images.shape[1:]).mul_(2).sub_(1).to(images.dtype)
        return self.project(images + eps * noise, images, eps)

    def step(self, images: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        """Along the sign of the gradient."""
        return images + _column(step_size) * gradient.sign()

    def project(self, images: Tensor, centre: Tensor, eps: float) -> Tensor:
        """Each pixel is clipped to the cube and to [0, 1]."""
        return torch.clamp(torch.clamp(images, centre - eps, centre + eps), 0, 1)


class L2:
    """The Euclidean length of the change is at most eps."""

    def start(self, images: Tensor, eps: float, draws: ImageDraws) -> Tensor:
        """A random direction, at the full distance eps."""
        noise = draws.normal(*images.shape[1:]).to(images.dtype)
        return self.project(images + eps * noise / _length(noise), images, eps)

    def step(self, images: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        """Along the gradient, normalised."""
        return images + _column(step_size) * gradient / _length(gradient)

    def project(self, images: Tensor, centre: Tensor, eps: float) -> Tensor:
        """The change is shortened to eps; clipping to [0, 1] only shortens it further, as the centre lies inside.

        In double precision, and to eps less what rounding the image can add at most, half a last place of each pixel:
        pixels of one value are rounded alike, and their errors add up.
        """
        change = images.double() - centre.double()
        rounding = math.sqrt(math.prod(change.shape[1:])) * torch.finfo(images.dtype).eps / 4
        scale = ((eps - rounding) / _length(change)).clamp(0, 1)
        return torch.clamp(centre.double() + change * scale, 0, 1).to(images.dtype)


BALLS: Mapping[str, Ball] = MappingProxyType({"linf": Linf(), "l2": L2()})


def get(norm: str) -> Ball:
    """The ball of "linf" or "l2". Raises BenchError for any other norm."""
    if norm not in BALLS:
        raise unknown("norm", norm, BALLS)
    return BALLS[norm]


def _length(images: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return length.clamp(min=TINY)[:, None, None, None]


def _column(step_size: Tensor) -> Tensor:
    return step_size[:, None, None, None]
