"""My defense: replace this by what it does, and the class below by yours. bench/defense.py is the contract in full."""

from __future__ import annotations

from torch import Generator, Tensor, nn

from bench import Defense


class MyDefense(Defense):
    """Moves each pixel towards the mean of its 3x3 neighbourhood."""

    title, paper, year = "My defense", "https://example.org/paper", 2026
    differentiable = True  # autograd through purify gives its true gradient
    # stochastic = True    # if purify draws random numbers: pass `generator` to every one of them
    # trained_on = "clean images"  # if there is a fit(data, generator, progress); README.md shows one

    def __init__(self, classifier: nn.Module, *, strength: float = 0.5) -> None:
        super().__init__(classifier)
        self.strength = strength

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """Images moved back towards the clean data, same shape, in [0, 1]."""
        mean = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        return (1 - self.strength) * images + self.strength * mean
