"""Whether a defense's gradient is the slope of its own answers: finite differences beside vector-Jacobian products.

An advice and no verdict: a true gradient may be useless for an attack, and steps of a finite size cross kinks. But a
defense that says `differentiable = True` and whose gradient points elsewhere is worth a reviewer's look.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench import checks, classifiers, draws, training
from bench.defense import Defense, settings

IMAGES = 8
STEP = 0.03  # of the pixel with the largest gradient
TRUE = (0.5, 2.0)  # how the change of the answers along the gradient relates to what the gradient says of it


def agreement(defense: Defense, images: Tensor) -> float:
    """How much the logits change along the gradient, measured in what the gradient says that they would: 1 where it is
    the slope, 0 or below where it misleads, nan where there is none. The median over `images` (N, C, H, W).

    Every look at a random defense starts from the same state of the generator, so that its draws are the same.
    """

    def logits(at: Tensor) -> Tensor:
        return defense.logits(at, draws.generator(images.device, "gradients"))

    with torch.enable_grad():
        at = images.clone().requires_grad_()
        answers = logits(at)
        weights = torch.linspace(-1, 1, answers.shape[1]).expand_as(answers)
        if not answers.requires_grad:
            return math.nan
        gradient: Tensor | None = torch.autograd.grad((answers * weights).sum(), at, allow_unused=True)[0]
    if gradient is None or not bool((gradient.flatten(1).abs().amax(dim=1) > 0).all()):
        return math.nan
    along = STEP * gradient / gradient.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        change = ((logits(images + along) - logits(images - along)) * weights).sum(dim=1) / 2
    return float((change / (gradient * along).flatten(1).sum(dim=1)).median())


def advice(cls: type[Defense]) -> str:
    """One sentence about the gradient of an untrained instance; "" where it declares that it has no true one."""
    if not cls.differentiable:
        return ""
    images = checks.sixteen_digits()[:IMAGES] * 0.9 + 0.05  # off the edges of [0, 1], where clamps have kinks
    with training.global_seed(0):
        net = classifiers.build("A", (1, 28, 28)).requires_grad_(False).eval()
        defense = cls(net, **settings(cls)[1])
    found = agreement(defense.eval(), images)
    if TRUE[0] <= found <= TRUE[1]:
        return f"the gradient is the slope of the answers ({found:.2f} of what it says)"
    return (
        f"ADVICE: along the gradient the answers change by {found:.2f} of what it says, expected {TRUE[0]:g} to "
        f"{TRUE[1]:g}: it may mislead attacks"
    )
