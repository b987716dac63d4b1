"""Models as attacks are given them."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import catalog
from bench.attacks import Logits


def shown(name: str, logits: Logits) -> Logits:
    """What the attack `name` is given of a model that accepts every image: its logits, and beside them, for one that
    goes past a detector, a slack, and for one that aims at a class, how unlikely each is."""
    info = catalog.ATTACKS[name]

    def answers(images: Tensor) -> Tensor:
        found = logits(images)
        parts = [found, torch.full_like(found[..., :1], 10.0)]
        if info.needs:
            apart = -found.log_softmax(dim=-1)
            parts.append(torch.stack([apart, torch.zeros_like(apart)], dim=-1).flatten(-2))
        return torch.cat(parts, dim=-1)

    return answers if info.past_detector else logits
