"""The step of LQ-VAE's released BPDA code (arXiv:1903.09940): not clipped, then each image is rescaled by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, Watch, balls, look, losses
from bench.draws import ImageDraws


def unclipped_step(
    logits: Logits, images: Tensor, labels: Tensor, *, draws: ImageDraws, step_size: float = 0.15
) -> Attacked:
    """One step of `step_size` along the sign of the gradient, with each image's range then stretched or shrunk to
    [0, 1].

    As released with LQ-VAE: a step of 0.3 on [-1, 1], hence 0.15 here; the stepped image may leave [0, 1], and what the
    model sees is (x - min x) / (max x - min x), with the extremes over all pixels and channels of the image. So no
    ball holds the result: an image of low contrast changes even where the gradient is zero. An image of one colour is
    clipped instead, as it has no range. Deviation: the gradient is the softmax cross-entropy's, the release has the
    sigmoid one, which a constant added to all logits changes. Deterministic: `draws` is not used. Raises ValueError for
    step_size <= 0.
    """
    if step_size <= 0:
        raise ValueError(f"unclipped_step needs step_size > 0, got {step_size}")
    watch, everyone = Watch(images), torch.arange(len(images), device=images.device)
    before = look(logits, images, labels, losses.cross_entropy)
    watch.note(everyone, before.broken, before.blocked)
    sizes = torch.full_like(images[:, 0, 0, 0], step_size)
    stepped = _rescaled(balls.get("linf").step(images, before.gradient, sizes))
    after = look(logits, stepped, labels, losses.cross_entropy, last=True)
    success = torch.where(after.broken, 1, torch.full_like(labels, -1))
    success = torch.where(before.broken, 0, success)
    return Attacked(stepped, torch.stack([before.loss, after.loss]), success, None, watch.share(), watch.looks)


def _rescaled(images: Tensor) -> Tensor:
    lowest, highest = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    extent = highest - lowest
    return torch.where(extent > 0, (images - lowest) / extent.clamp(min=balls.TINY), images).clamp(0, 1)
