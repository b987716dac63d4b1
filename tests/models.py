"""Models as attacks are given them."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import catalog
from bench.attacks import Logits


def shown(name: str, logits: Logits) -> Logits:
    """What the attack `name` is given of a model that accepts every image: its logits, and beside them, for one that
    goes past a detector, a slack."""

    def answers(images: Tensor) -> Tensor:
        found = logits(images)
        return torch.cat([found, torch.full_like(found[..., :1], 10.0)], dim=-1)

    return answers if catalog.ATTACKS[name].past_detector else logits
