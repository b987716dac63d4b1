"""What is not an attack but stands beside the attacks: clean images, and noise made without any knowledge."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, balls
from bench.draws import ImageDraws


def none(logits: Logits, images: Tensor, labels: Tensor, *, draws: ImageDraws) -> Attacked:
    """The clean images, and whether the model is wrong on them. Nothing is sent through `logits`."""
    return _unlearned(images.clone(), labels)


def uniform_noise(logits: Logits, images: Tensor, labels: Tensor, *, eps: float, draws: ImageDraws) -> Attacked:
    """Uniform noise in the Linf ball of radius `eps`, clipped to [0, 1]: a defense that it breaks is merely fragile."""
    return _unlearned(balls.get("linf").start(images, eps, draws), labels)


def _unlearned(images: Tensor, labels: Tensor) -> Attacked:
    return Attacked(images, torch.empty(0, len(images), device=images.device), torch.full_like(labels, -1))
