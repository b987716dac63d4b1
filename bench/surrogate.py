"""The third white-box route: a small autoencoder that the harness trains to imitate a purifier, for its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from bench import draws, seeds, training
from bench.data import Dataset
from bench.defense import Defense
from bench.progress import Progress

VERSION = 1  # of this file's net and training; part of the keys of its weights and of the cells that use it
EXAMPLES = {"cheap": 10_000, "medium": 1_000, "search": 500}  # training images purified, by budget class
LARGEST_NOISE = 0.4
CHUNK = 256


class Surrogate(nn.Module):
    """Images (N, C, H, W) to images of the same shape: halved once and back, with a skip; not clipped to [0, 1]."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
        self.coarse = nn.Sequential(
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 5, padding=2), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Conv2d(2 * width, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """The imitation of the purified images."""
        fine = self.fine(images)
        coarse = self.coarse(fine)[..., : fine.shape[2], : fine.shape[3]]
        coarse = nn.functional.pad(coarse, (0, fine.shape[3] - coarse.shape[3], 0, fine.shape[2] - coarse.shape[2]))
        return self.out(torch.cat([fine, coarse], dim=1))  # type: ignore[no-any-return]


def trained(defense: Defense, name: str, key: object, data: Dataset, examples: int, progress: Progress) -> Surrogate:
    """A surrogate of `defense`, trained (or loaded) on what it makes of `examples` training images; frozen.

    The images carry uniform noise of a size of their own, up to 0.4: an attacker asks for gradients off the clean data.
    `key` holds what decides the defense's answers. Whatever the defense raises passes through.
    """
    images = data.train.images[:examples]
    with training.global_seed(seeds.derive("initialise surrogate", name)):
        surrogate = Surrogate(images.shape[1]).to(images.device)

    def fit(generator: Generator, kept: Progress) -> None:
        size = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * LARGEST_NOISE
        noise = torch.rand(images.shape, generator=generator, device=images.device) * 2 - 1
        given = (images + size * noise).clamp(0, 1)
        with torch.no_grad():
            purified = torch.cat(
                [
                    defense.purify(given[start : start + CHUNK], draws.generator(images.device, "surrogate", start))
                    for start in range(0, len(given), CHUNK)
                ]
            )

        def batch_loss(given: Tensor, purified: Tensor) -> Tensor:
            return nn.functional.mse_loss(surrogate(given), purified)

        training.train(
            surrogate, batch_loss, (given, purified), optimizer=torch.optim.Adam(surrogate.parameters(), lr=2e-3),
            epochs=4, minimum_steps=300, batch_size=64, schedule=training.cosine, generator=generator, progress=kept,
            label=f"training the surrogate of {name}",
        )  # fmt: skip

    training.load_or_fit(surrogate, *described(name, key, data.name, data.split, examples), fit, progress)
    return surrogate.requires_grad_(False).eval()


def described(name: str, key: object, dataset: str, split: str, examples: int) -> tuple[str, dict[str, Any]]:
    """What a surrogate's weights are called, and what decides them: see training.load_or_fit."""
    decides = {"defense": key, "dataset": dataset, "split": split, "examples": examples}
    return f"surrogate_{name}", {"version": VERSION, **decides}
