"""Models as attacks are given them."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import catalog, threat
from bench.attacks import Logits
from bench.data import Split
from bench.defense import Defense


def shown(name: str, logits: Logits, shape: tuple[int, ...] = (1, 28, 28)) -> Logits:
    """What the attack `name` is given of a model that accepts every image: its logits, and beside them, for one that
    goes past a detector, a slack, for one that aims at a class, how unlikely each is, and for one that searches among
    codes, an encoder, a decoder and known images of `shape`."""
    info = catalog.ATTACKS[name]
    if info.through_codes:
        return Flat(logits, black_and_white(shape))

    def answers(images: Tensor) -> Tensor:
        found = logits(images)
        parts = [found, torch.full_like(found[..., :1], 10.0)]
        if "class_scores" in info.needs:
            apart = -found.log_softmax(dim=-1)
            parts.append(torch.stack([apart, torch.zeros_like(apart)], dim=-1).flatten(-2))
        return torch.cat(parts, dim=-1)

    return answers if info.past_detector else logits


def counted(name: str, logits: Logits, shape: tuple[int, ...] = (1, 28, 28)) -> threat.Target:
    """The same, with every row counted."""
    model = shown(name, logits, shape)
    return (
        threat.Codes(model, Doors(logits), Split(*black_and_white(shape)))
        if isinstance(model, Flat)
        else threat.gray_box(model)
    )


def black_and_white(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two images of noise for each of ten classes, every pixel 0 or 1."""
    noise = torch.rand(20, *shape, generator=torch.Generator().manual_seed(9))
    return noise.round(), torch.arange(20) % 10


class Flat:
    """A model whose codes are pixels in a row, off by a half, and whose decoder gives them back; it has no posterior,
    and knows the images and labels `known`, none unless told."""

    def __init__(self, logits: Logits, known: tuple[Tensor, Tensor] | None = None) -> None:
        self._logits = logits
        self.known_images, self.known_labels = known or (torch.empty(0, 1, 1, 1), torch.empty(0, dtype=torch.int64))

    def __call__(self, images: Tensor) -> Tensor:
        return self._logits(images.clone())

    def classify(self, images: Tensor) -> Tensor:
        found = self._logits(images.clone())
        return found if found.ndim == 2 else found.mean(dim=0)

    def encode(self, images: Tensor) -> Tensor:
        self.shape = images.shape[1:]
        return images.flatten(1) - 0.5

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        return None

    def decode(self, latents: Tensor) -> Tensor:
        free = (latents + 0.5).view(-1, *self.shape)
        return free + (free.clamp(0, 1) - free).detach()  # a clamp by itself has no gradient at 0 and 1


class Doors(Flat):
    """Flat as a defense has it."""

    posterior = Defense.posterior
    classifier = Flat.classify
