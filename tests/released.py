"""Algorithms as the papers' released code has them, naively: what the harness's faster ones are held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tiled_search(
    decode: Callable[[Tensor], Tensor], images: Tensor, starts: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Defense-GAN's search: tiled images, one loss summed over all, torch's SGD, gradients of the weights too.

    `images` (N, C, H, W) and `starts` (N, R, D); returns what the best restart of each image had made before its last
    move, (N, C, H, W), and the errors (N, R).
    """
    n, restarts = starts.shape[:2]
    targets = images.repeat_interleave(restarts, dim=0)  # (N * R, C, H, W)
    latents = starts.flatten(0, 1).clone().requires_grad_()
    optimizer = torch.optim.SGD([latents], lr=10.0, momentum=0.7)
    for _ in range(steps):
        made = decode(latents)
        errors = (made - targets).square().mean(dim=(1, 2, 3))
        optimizer.zero_grad()
        errors.sum().backward()
        optimizer.step()
    errors = errors.detach().view(n, restarts)
    best = errors.argmin(dim=1)
    return made.detach().view(n, restarts, *images.shape[1:])[torch.arange(n), best], errors
