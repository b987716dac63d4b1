"""AdverTorch's single pixel attack (Ding et al. 2019, arXiv:1902.07623): one pixel black or white, labels only."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, losses
from bench.draws import ImageDraws


def single_pixel(logits: Logits, images: Tensor, labels: Tensor, *, draws: ImageDraws, pixels: int = 100) -> Attacked:
    """The first image that is misclassified when one of `pixels` random pixels is set to 0, then to 1, in all channels.

    Pixels are drawn for each image without replacement; there are fewer trials where an image has fewer. Where no
    trial succeeds the clean image is returned. An image leaves as soon as it is broken, and one that is wrong from the
    start is not changed (AdverTorch does not look at it, and changes a pixel). Of the answer only the label is used, so
    `losses` are 1 where it is wrong and 0 where it is right; with draws, (draws, N, K), a majority of labels counts.
    Raises ValueError for pixels < 1.
    """
    if pixels < 1:
        raise ValueError(f"single_pixel needs pixels >= 1, got {pixels}")
    places = draws.uniform(images.shape[2] * images.shape[3]).argsort(dim=1)[:, :pixels]  # (N, pixels)
    queries = 2 * places.shape[1]
    found, success = images.clone(), torch.full_like(labels, -1)
    curve = images.new_zeros(queries + 1, len(images))
    left = torch.arange(len(images), device=images.device)  # the images still under attack
    for query in range(queries + 1):
        if not len(left):
            break
        tried = images[left].flatten(2)  # (n, C, H * W)
        if query:
            place = places[left, (query - 1) // 2]
            tried[torch.arange(len(left), device=images.device), :, place] = float((query - 1) % 2)
        tried = tried.view(len(left), *images.shape[1:])
        with torch.no_grad():
            broken = losses.is_broken(logits(tried), labels[left])
        done = left[broken]
        found[done], success[done], curve[query:, done] = tried[broken], query, 1.0
        left = left[~broken]
    return Attacked(found, curve, success, success >= 0)
