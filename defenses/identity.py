"""No defense: the yardstick that every other entry is measured against."""

from __future__ import annotations

from torch import Generator, Tensor

from bench.defense import Defense


class Identity(Defense):
    """The classifier alone: images pass unchanged."""

    title = "No defense"
    paper = "https://arxiv.org/abs/1312.6199"
    year = 2013
    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The images themselves."""
        return images
