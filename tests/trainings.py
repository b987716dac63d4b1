"""What a defense's `fit` asks of the training loop, caught before anything trains, and noise for it to learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset, Split
from bench.defense import Defense
from bench.progress import Progress

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]


@dataclass(frozen=True)
class Asked:
    """The arguments of one call of `bench.training.train`."""

    module: nn.Module
    batch_loss: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    options: dict[str, Any]

    @property
    def rates(self) -> list[float]:
        """The learning rates of its own optimizer and of those beside it."""
        optimizers = [self.options["optimizer"], *(update.optimizer for update in self.options.get("also", ()))]
        return [group["lr"] for one in optimizers for group in one.param_groups]


def asked(defense: Defense, data: Dataset, generator: Generator) -> list[Asked]:
    """All trainings that `fit` asks for, none of which happens."""
    found: list[Asked] = []

    def catch(module, batch_loss, tensors, **options):
        found.append(Asked(module, batch_loss, tuple(tensors), options))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", catch)
        defense.fit(data, generator, Progress())
    return found


def noise(shape: tuple[int, int, int] = (1, 28, 28), n: int = 24) -> Dataset:
    """Three splits of noise that have no image in common, n images each, with the labels 0 to 9 in turn."""
    images, labels = torch.rand(3, n, *shape, generator=seeded(1)), torch.arange(n) % 10
    return Dataset("noise", *(Split(part, labels) for part in images), tuple("0123456789"), "test")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def array(tensor: Tensor) -> np.ndarray:
    """For arithmetic by numpy, in double precision."""
    return tensor.detach().double().numpy()
