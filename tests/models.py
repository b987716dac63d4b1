"""Models as attacks are given them."""

from __future__ import annotations

import inspect
from typing import cast

import torch
from torch import Generator, Tensor, nn

from bench import attacks, catalog, threat
from bench.attacks import Logits
from bench.data import Split
from bench.defense import Defense


def shown(name: str, logits: Logits, shape: tuple[int, ...] = (1, 28, 28)) -> Logits:
    """What the attack `name` is given of a model that accepts every image: its logits, and beside them, for one that
    goes past a detector, a slack, for one that aims at a class, how unlikely each is, for one that asks in a hurry, the
    same logits again, and for one that searches among codes, an encoder, a decoder and known images of `shape`."""
    info = catalog.ATTACKS[name]
    if info.through_codes:
        return flat(logits, Split(*black_and_white(shape)))
    if any(info.hurried()):
        return threat.Target(logits)

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
    generator = Generator().manual_seed(seed)
    return {"learned": learn(shown(name, logits, images.shape[1:]), images, labels, generator=generator, **known)}


def counted(name: str, logits: Logits, shape: tuple[int, ...] = (1, 28, 28)) -> threat.Target:
    """The same, with every row counted."""
    model = shown(name, logits, shape)
    return model if isinstance(model, threat.Target) else threat.gray_box(model)


def black_and_white(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two images of noise for each of ten classes, every pixel 0 or 1."""
    noise = torch.rand(20, *shape, generator=Generator().manual_seed(9))
    return noise.round(), torch.arange(20) % 10


class Flat(Defense):
    """Codes are the pixels in a row, off by a half."""

    title, paper, year = "Flat", "https://example.org", 2020

    def __init__(self, logits: Logits) -> None:
        super().__init__(cast("nn.Module", logits))  # not every model of the tests is a module

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images

    def encode(self, images: Tensor) -> Tensor:
        self.shape = images.shape[1:]
        return images.flatten(1) - 0.5

    def start_codes(self, images: Tensor, generator: Generator) -> Tensor:
        self.shape = images.shape[1:]
        return (0.3 * torch.randn(len(images), images[0].numel(), generator=generator)).to(images)

    def decode(self, latents: Tensor) -> Tensor:
        free = (latents + 0.5).view(-1, *self.shape)
        return free + (free.clamp(0, 1) - free).detach()  # a clamp by itself has no gradient at 0 and 1


def flat(logits: Logits, known: Split) -> threat.Codes:
    """The model behind `Flat`, as an attack through codes is given it; of draws, the classifier is the mean."""

    def classify(images: Tensor) -> Tensor:
        found = logits(images)
        return found if found.ndim == 2 else found.mean(dim=0)

    return threat.Codes(logits, Flat(classify), known)
