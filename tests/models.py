"""Models as attacks are given them."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from bench import attacks, catalog, data, threat
from bench.attacks import Logits


def shown(name: str, logits: Logits) -> Logits:
    """What the attack `name` is given of a model that accepts every image: its logits, and beside them, for one that
    goes past a detector, a slack, for one that aims at a class, how unlikely each is, and for one that searches among
    codes, an encoder and a decoder."""
    info = catalog.ATTACKS[name]
    if info.through_codes:
        return Flat(logits)

    def answers(images: Tensor) -> Tensor:
        found = logits(images)
        parts = [found, torch.full_like(found[..., :1], 10.0)]
        if "class_scores" in info.needs:
            apart = -found.log_softmax(dim=-1)
            parts.append(torch.stack([apart, torch.zeros_like(apart)], dim=-1).flatten(-2))
        return torch.cat(parts, dim=-1)

    return answers if info.past_detector else logits


def taught(
    name: str, logits: Logits, images: Tensor, labels: Tensor, seed: int = 0, **settings: object
) -> dict[str, object]:
    """What the attack `name` is given beside the images where it learns first: here from known `images` (M, C, H, W)
    of `labels` (M,)."""
    learn = attacks.learner(name)
    if learn is None:
        return {}
    accepted = inspect.signature(learn).parameters
    known = {key: value for key, value in {"epochs": 6, **settings}.items() if key in accepted}
    generator = torch.Generator().manual_seed(seed)
    return {"learned": learn(shown(name, logits), images, labels, generator=generator, **known)}


def counted(name: str, logits: Logits) -> threat.Target:
    """What `shown` gives, with every row counted."""
    given = shown(name, logits)
    if not isinstance(given, Flat):
        return threat.gray_box(given)
    return threat.Codes(given, given, data.Split(given.known_images, given.known_labels))  # type: ignore[arg-type]


class Flat:
    """A model of one-channel square images whose codes are their pixels in a row, off by a half; it knows grey images
    of ten classes."""

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
        return (latents + 0.5).view(-1, *self.shape).clamp(0, 1)
