"""Adam (Kingma and Ba 2015, arXiv:1412.6980), for attacks whose state is kept image by image."""

from __future__ import annotations

from torch import Tensor

DECAY, DECAY_OF_SQUARES, DAMPING = 0.9, 0.999, 1e-8


def adam(
    mean: Tensor, square: Tensor, gradient: Tensor, number: int, rate: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The moments after the gradient of that `number`, from 1 on, and the step along it: about `rate` long in every
    coordinate. All are of one shape, but for a rate that broadcasts."""
    mean = DECAY * mean + (1 - DECAY) * gradient
    square = DECAY_OF_SQUARES * square + (1 - DECAY_OF_SQUARES) * gradient.square()
    spread = (square / (1 - DECAY_OF_SQUARES**number)).sqrt() + DAMPING
    return mean, square, rate / (1 - DECAY**number) * mean / spread
