"""Bit-depth reduction, the first squeezer of "Feature Squeezing" (Xu, Evans and Qi, NDSS 2018, arXiv:1704.01155).

The paper uses squeezers to detect attacks, by how far the answers before and after differ, and evaluates each of them
as a purifier too: that is what stands here.
"""

from __future__ import annotations

import math

from torch import Generator, Tensor, nn

from bench import Defense


class BitDepth(Defense):
    """Rounds each pixel to the few values that a small number of bits can tell apart: one bit makes it black or white.

    One bit is the paper's choice for MNIST ("binary filter").
    """

    title, paper, year = "Bit depth", "https://arxiv.org/abs/1704.01155", 2018
    differentiable = False  # rounding has the gradient 0 wherever it has one

    def __init__(self, classifier: nn.Module, *, bits: int = 1) -> None:
        super().__init__(classifier)
        self.steps = 2**bits - 1

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """Images whose pixels take 2 ** bits values, evenly spread over [0, 1]."""
        return (images * self.steps).round() / self.steps

    def approximate(self, images: Tensor, generator: Generator) -> Tensor:
        """A smooth staircase through the same points, steepest where rounding jumps: its slope lies in [0.1, 1.9]."""
        turn = 2 * math.pi * self.steps
        return images - 0.9 * (turn * images).sin() / turn
