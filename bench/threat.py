"""What the attacker attacks: a logits callable whose rows are counted. Attacks see nothing else of a model.

A threat says what the attacker knows. gray_box: the classifier alone. White-box routes know the defense too and differ
in the gradient they use; every route is run whatever a defense declares, since a declaration may be wrong:

- autograd: the true gradient through purification and classifier;
- bpda: the true value with the gradient of the defense's `surrogate_logits`, the identity unless it gives a stand-in
  (Athalye et al. 2018, arXiv:1802.00420).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench import draws
from bench.defense import Defense
from bench.errors import unknown


class Target:
    """Logits of images (N, C, H, W) for an attacker, (N, K) or (draws, N, K), with every row counted both ways.

    The forward pass builds a graph only where the images require a gradient, and works on a copy: a model that writes
    to its input does not write to the attack's images. `forward_rows` and `backward_rows` are
    what an attack has spent: the units of its cost.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self._logits = logits
        self.forward_rows = 0
        self.backward_rows = 0

    def __call__(self, images: Tensor) -> Tensor:
        logits = self._logits(images.clone())
        self.forward_rows += logits.shape[:-1].numel()
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_rows += gradient.shape[:-1].numel()


def gray_box(classifier: Callable[[Tensor], Tensor]) -> Target:
    """The attacker knows the classifier and its weights, and does not know that a defense exists."""
    return Target(classifier)


def white_box(defense: Defense, route: str, *, eot: int, seed_parts: tuple[object, ...]) -> Target:
    """The attacker knows the defense and its weights, and differentiates it along `route` ("autograd" or "bpda").

    A random defense answers with `eot` fresh draws, folded into the batch: (eot, N, K) (expectation over
    transformation, Athalye et al. 2018, arXiv:1707.07397). The draws of a call follow from `seed_parts` and the number
    of the call, so an attack is repeatable and never sees the draws that score it. Raises BenchError for an unknown
    route.
    """
    routes = {"autograd": defense.logits, "bpda": defense.surrogate_logits}
    if route not in routes:
        raise unknown("white-box route", route, routes)
    door, calls = routes[route], iter(range(2**62))

    def logits(images: Tensor) -> Tensor:
        generator = draws.generator(images.device, *seed_parts, next(calls))
        if not defense.stochastic:
            return door(images, generator)
        folded = door(images.repeat(eot, 1, 1, 1), generator)  # (eot * N, K)
        return folded.view(eot, len(images), -1)

    return Target(logits)


def predictions(logits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The classes (N,) that a logits callable gives, without a gradient."""
    with torch.no_grad():
        return logits(images).argmax(dim=1)
