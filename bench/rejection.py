"""Where a selective defense refuses: thresholds of its rejection score, set on validation images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from bench import draws
from bench.defense import Defense
from bench.device import chunk_size

SHARES: Mapping[str, float] = MappingProxyType({"1%": 0.01, "5%": 0.05})
IMAGES = 5_000  # validation images looked at, one draw each


def thresholds(defense: Defense, images: Tensor) -> dict[str, float]:
    """The thresholds of bench.protocol.THRESHOLDS: the published one is 1 by contract, the harness's own are the
    smallest scores beyond which at most 1 % and 5 % of the clean `images` (N, C, H, W) lie.

    An image is refused where its score is larger. Raises ValueError for scores that are not (N,) or not finite.
    """
    size, found = chunk_size(images.device), []
    with torch.no_grad():
        for start in range(0, min(len(images), IMAGES), size):
            batch = images[start : min(start + size, IMAGES)]
            score = defense.rejection_score(batch.clone(), draws.generator(images.device, "threshold", start))
            if score.shape != (len(batch),) or not bool(score.isfinite().all()):
                raise ValueError(f"rejection_score returned {tuple(score.shape)}, expected ({len(batch)},), all finite")
            found.append(score.double())
    scores = torch.cat(found).sort().values
    kept = {name: len(scores) - math.floor(share * len(scores)) for name, share in SHARES.items()}
    return {"published": 1.0, **{name: float(scores[count - 1]) for name, count in kept.items()}}
