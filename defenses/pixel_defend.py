"""PixelDefend (Song et al. 2018): the likeliest image near the given one, chosen level by level by a PixelCNN."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.defense import Defense
from bench.progress import Progress
from defenses.pixel_cnn import PixelCNN

CHUNK = 16  # images whose likelihood is computed at a time, in double precision


class PixelDefend(Defense):
    """Each level of an image is replaced by the most likely one within `eps_defend`, given those replaced before it.

    A PixelCNN learns the clean images, rounded to 256 levels, by maximum likelihood; the curve of its training is in
    bits per dimension. An image is purified as in section 4.1, algorithm 1: row by row, pixel by pixel, channel by
    channel, each takes the level of highest probability within `eps_defend` levels of its own and within [0, 255],
    under the softmax given the purified levels before it. The result is deterministic and has no gradient: BPDA takes
    the purifier for the identity (Athalye et al. 2018, arXiv:1802.00420).

    `eps_defend` should not be smaller than the attacker's radius. By default it is the paper's: 32 levels for images of
    one channel (Fashion-MNIST), 16 for others (CIFAR-10). The paper has no MNIST, where attackers are measured up to
    0.3 and beyond: the `fast` recipe takes 77, the first whole number above 0.3 * 255.

    With `clean_bits`, an image of at most so many bits per dimension, once rounded, is taken for a clean one, and its
    `eps_defend` is 0: the paper's adaptive variant. The threshold is to be chosen on clean images; off by default.

    The softmax over 256 levels is that of algorithm 1 and of the released code, which put it into PixelCNN++ in the
    place of logistic mixtures. The net here is a plainer PixelCNN, and its width, dilations, rate, batches and epochs
    are our choice: 15 residual blocks of width 128, Adam 4e-4, which falls to zero along a cosine, 50 epochs. The
    `fast` recipe has 5 blocks of width 32 and 3 epochs, a quarter of an hour on two CPU cores.
    """

    title = "PixelDefend"
    paper = "https://arxiv.org/abs/1710.10766"
    year = 2018
    trained_on = "clean images"
    recipes = {
        "fast": {
            "width": 32, "dilations": (1, 2, 4, 1, 2), "learning_rate": 2e-3, "epochs": 3, "minimum_steps": 600,
            "eps_defend": 77,
        },
        "paper": {},
    }  # fmt: skip
    brief: ClassVar[dict[str, object]] = {"width": 4, "dilations": (1,)}

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 128,
        dilations: tuple[int, ...] = (1, 2, 4) * 5,
        learning_rate: float = 4e-4,
        batch_size: int = 64,
        epochs: int = 50,
        minimum_steps: int = 0,
        eps_defend: int | None = None,
        clean_bits: float | None = None,
    ) -> None:
        """Raises ValueError for an `eps_defend` that is no whole number of levels from 0 to 255, a negative
        `clean_bits`, and a net without width or with a dilation below 1."""
        super().__init__(classifier)
        self.net = PixelCNN(shape, width, dilations)
        if eps_defend is None:
            eps_defend = 32 if shape[0] == 1 else 16
        if not 0 <= eps_defend <= 255 or eps_defend != int(eps_defend):
            raise ValueError(f"eps_defend counts levels: a whole number from 0 to 255 (0.3 is 77), got {eps_defend}")
        if clean_bits is not None and not clean_bits >= 0:
            raise ValueError(f"clean_bits is a number of bits per dimension from 0, or None, got {clean_bits}")
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.epochs, self.minimum_steps = epochs, minimum_steps
        self.eps_defend, self.clean_bits = int(eps_defend), clean_bits

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train the PixelCNN on the clean training images."""
        training.train(
            self.net,
            lambda images: self.net.bits(to_levels(images)).mean(),
            (data.train.images,),
            optimizer=torch.optim.Adam(self.net.parameters(), lr=self.learning_rate),
            epochs=self.epochs,
            minimum_steps=self.minimum_steps,
            batch_size=self.batch_size,
            schedule=training.cosine,
            clip_norm=1.0,
            generator=generator,
            progress=progress,
            label=f"training the PixelCNN of {self.title} on {data.name}",
        )

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The images whose levels were chosen one after the other: multiples of 1 / 255, each within `eps_defend` of
        the nearest to its own. No gradient."""
        levels = to_levels(images.detach())
        reach = torch.full_like(levels, self.eps_defend)
        if self.clean_bits is not None:
            reach[self.bits(images) <= self.clean_bits] = 0
        chosen = self.net.greedy((levels - reach).clamp_min(0), (levels + reach).clamp_max(255))
        return chosen.to(images.dtype) / 255

    @torch.no_grad()
    def bits(self, images: Tensor) -> Tensor:
        """Bits per dimension of images, rounded to levels, (N,), in double precision: an image's own, whatever the
        batch."""
        net = copy.deepcopy(self.net).double()
        return torch.cat([net.bits(levels) for levels in torch.split(to_levels(images), CHUNK)])


def to_levels(images: Tensor) -> Tensor:
    """The nearest whole levels, 0 to 255, of images in [0, 1], same shape."""
    return (images * 255).round().long()
