"""Random numbers for torch: explicit generators, and noise that belongs to an image rather than to a batch."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from bench import seeds


def generator(device: torch.device | str, *parts: object) -> Generator:
    """A generator on `device` whose seed is derived from `parts` (protocol seed, purpose, cell, chunk, ...)."""
    return Generator(device=device).manual_seed(seeds.derive(*parts))


class ImageDraws:
    """Independent noise for each image of a batch: image i's k-th draw depends on its own seed and on k only.

    So an attack gives an image the same random start alone, in any batch, in any order, on CPU and on GPU.
    The numbers come from a counter-based generator: Steele, Lea and Flood's SplitMix64 finaliser (OOPSLA 2014)
    applied to seed + counter, in wrapping 64-bit integers.
    """

    def __init__(self, image_seeds: Tensor, draw: int = 0) -> None:
        """`image_seeds` are int64 (N,); `draw` is the number of the next draw."""
        if image_seeds.dtype != torch.int64 or image_seeds.ndim != 1:
            raise TypeError(f"image seeds must be int64 (N,), got {image_seeds.dtype} {tuple(image_seeds.shape)}")
        self.seeds = image_seeds
        self._draw = draw

    @classmethod
    def derived(cls, indices: Tensor, *parts: object) -> ImageDraws:
        """Draws for the images at `indices` (N,) of a data set, for the purpose that `parts` name."""
        base = torch.tensor(seeds.derive(*parts), dtype=torch.int64, device=indices.device)
        return cls(_mix(indices.to(torch.int64) * _GOLDEN + base))

    def rows(self, keep: Tensor) -> ImageDraws:
        """The draws of a subset of the images (mask or indices), at the same position in their streams."""
        return ImageDraws(self.seeds[keep], self._draw)

    def uniform(self, *shape: int) -> Tensor:
        """float32 (N, *shape), uniform on [0, 1) in steps of 2**-24."""
        size = math.prod(shape)
        counter = torch.arange(size, device=self.seeds.device) + (self._draw << 40)
        self._draw += 1
        bits = _mix(_mix(self.seeds[:, None] ^ _STREAM) + counter * _GOLDEN)  # (N, size)
        return ((bits >> 40) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24).view(len(self.seeds), *shape)

    def normal(self, *shape: int) -> Tensor:
        """float32 (N, *shape), standard normal (Box and Muller 1958)."""
        radius = (-2 * torch.log1p(-self.uniform(*shape))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(*shape))


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_STREAM = 0x5851F42D4C957F2D


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's `>>` on int64 is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)
