"""The end of attacks that look for the nearest broken image: into the ball if there is one, and a last look."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, Watch, balls, look, losses, where


def settled(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    found: Tensor,
    curve: Tensor,
    success: Tensor,
    watch: Watch,
    eps: float | None,
) -> Attacked:
    """What was `found` for each image, projected to the L2 ball of `eps`; without a ball the clean image where the last
    look does not see it broken.

    `success` is the first step at which any broken image was seen; it stays where the returned one is broken.
    """
    if eps is not None:
        found = balls.get("l2").project(found, images, eps)
    last = look(logits, found, labels, losses.margin, last=True)
    curve[-1] = last.loss
    success = torch.where(last.broken, torch.where(success < 0, len(curve) - 1, success), -1)
    if eps is None:
        found = where(last.broken, found, images)
    return Attacked(found.clone(), curve, success, last.broken & last.certain, watch.share(), watch.looks)
