"""Whether an attacked image still shows what it showed: two judges who know nothing of the defense must both say no.

Attacks without a small ball may turn a digit into another one, and then a "wrong" answer is right. No label tells; a
net trained on PGD images (Madry et al. 2018), whose mistakes are those of the eye more than other nets', and the images
nearest in the training set stand in. Either errs, and on attacked images more than on clean ones, so a change of class
counts where both see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data import Split

NEIGHBOURS = 5
CHUNK = 4096  # training images compared at once


@dataclass(frozen=True)
class Judge:
    """`net` gives logits of images (N, C, H, W), `weights` is the hash of its own; `training` are the images whose
    labels the neighbours bring."""

    net: Callable[[Tensor], Tensor]
    training: Split
    weights: str = ""

    def __call__(self, images: Tensor, labels: Tensor) -> Mapping[str, float]:
        """The shares of `images` (N, C, H, W) that no longer show their `labels` (N,) to each judge, and to both."""
        with torch.no_grad():
            by_net = self.net(images).argmax(dim=1) != labels
            by_neighbours = nearest_class(images, self.training) != labels
        shares = {"by_net": by_net, "by_neighbours": by_neighbours, "by_both": by_net & by_neighbours}
        return {f"class_changed_{name}": float(mask.double().mean()) for name, mask in shares.items()}


def nearest_class(images: Tensor, training: Split, neighbours: int = NEIGHBOURS) -> Tensor:
    """The class (N,) most frequent among the `neighbours` training images nearest to each image (L2 over pixels); of
    equally frequent ones the class of the nearest image."""
    flat, n = images.flatten(1), len(images)
    best = torch.full((n, neighbours), torch.inf, dtype=flat.dtype, device=flat.device)
    classes = torch.full((n, neighbours), -1, dtype=torch.int64, device=flat.device)
    for some, labels in zip(torch.split(training.images, CHUNK), torch.split(training.labels, CHUNK), strict=True):
        both = torch.cat([best, _distances(flat, some.flatten(1).to(flat.dtype))], dim=1)
        named = torch.cat([classes, labels.expand(n, -1)], dim=1)
        best, chosen = both.topk(neighbours, dim=1, largest=False, sorted=True)
        classes = named.gather(1, chosen)
    votes = (classes[:, :, None] == classes[:, None, :]).sum(dim=2)  # (N, neighbours), how many share each one's class
    return classes.gather(1, votes.argmax(dim=1, keepdim=True)).squeeze(1)  # the first of the most frequent


def _distances(images: Tensor, others: Tensor) -> Tensor:
    """(N, M), exact, so that no image's depend on how many are compared at once."""
    return torch.cdist(images, others, compute_mode="donot_use_mm_for_euclid_dist")
