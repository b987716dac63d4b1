"""What the attacker attacks: a logits callable whose rows are counted. Attacks see nothing else of a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Target:
    """Logits (N, K) of images (N, C, H, W) for an attacker, with every row counted, forward and backward.

    The forward pass builds a graph only where the images require a gradient. `forward_rows` and `backward_rows` are
    what an attack has spent: the units of its cost.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self._logits = logits
        self.forward_rows = 0
        self.backward_rows = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.forward_rows += len(images)
        logits = self._logits(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_rows += len(gradient)


def gray_box(classifier: Callable[[Tensor], Tensor]) -> Target:
    """The attacker knows the classifier and its weights, and does not know that a defense exists."""
    return Target(classifier)


def predictions(logits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The classes (N,) that a logits callable gives, without a gradient."""
    with torch.no_grad():
        return logits(images).argmax(dim=1)
