"""MagNet: two autoencoders that say which images are strange, and one of them mends the others."""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.defense import Defense
from bench.device import chunk_size
from bench.progress import Progress

VALIDATION = 5_000  # images that the thresholds are set on


class MagNet(Defense):
    """Refuses images that two autoencoders reconstruct badly, and classifies the reconstruction of the others.

    Meng and Chen 2017, section 4, with the nets and the settings of the authors' MNIST code: the first autoencoder
    halves the image (three 3x3 filters a layer) and is both a detector, by its mean squared error, and the
    reformer; the second keeps the size and is a detector by its mean absolute error. Both learn to remove noise of
    0.1 that is drawn once. Each threshold lets `drop_rate` of 5,000 clean validation images go. The detector that
    compares the classifier's outputs (Jensen-Shannon divergence) is in the paper and unused in their MNIST code; so
    it is here. Broken by Carlini and Wagner 2017 (arXiv:1711.08478).

    """

    title = "MagNet"
    paper = "https://arxiv.org/abs/1705.09064"
    year = 2017
    kind = "selective"
    differentiable = True
    trained_on = "clean images"
    recipes = MappingProxyType({"fast": MappingProxyType({"epochs": 20}), "paper": MappingProxyType({"epochs": 100})})

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 3,
        noise: float = 0.1,
        drop_rate: float = 0.001,
        activity: float = 1e-9,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        epochs: int = 100,
    ) -> None:
        """`activity` weighs the sum of squares of all activations, which Keras adds to the loss. Raises ValueError for
        sides that are no multiple of 2 and for a drop rate outside [0, 1)."""
        super().__init__(classifier)
        channels, height, side = shape
        if height % 2 or side % 2:
            raise ValueError(f"MagNet halves images and needs even sides, got {shape}")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"MagNet needs 0 <= drop_rate < 1, got {drop_rate}")
        self.reformer = nn.Sequential(
            *_layer(channels, width), nn.AvgPool2d(2), *_layer(width, width),
            *_layer(width, width), nn.Upsample(scale_factor=2), *_layer(width, width), *_layer(width, channels),
        )  # fmt: skip
        self.second = nn.Sequential(*_layer(channels, width), *_layer(width, width), *_layer(width, channels))
        self.register_buffer("thresholds", torch.ones(2))
        self.noise, self.drop_rate, self.activity = noise, drop_rate, activity
        self.learning_rate, self.batch_size, self.epochs = learning_rate, batch_size, epochs

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train both autoencoders on noisy training images; set the thresholds on clean validation images."""
        clean = data.train.images
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        noisy = (clean + self.noise * noise).clamp(0, 1)
        for net, which in ((self.reformer, "first"), (self.second, "second")):

            def batch_loss(noisy: Tensor, clean: Tensor, net: nn.Sequential = net) -> Tensor:
                activity, found = torch.zeros((), device=noisy.device), noisy
                for layer in net:
                    found = layer(found)
                    if isinstance(layer, nn.Sigmoid):
                        activity = activity + found.square().sum()
                return nn.functional.mse_loss(found, clean) + self.activity * activity

            training.train(
                net, batch_loss, (noisy, clean), optimizer=torch.optim.Adam(net.parameters(), lr=self.learning_rate),
                epochs=self.epochs, batch_size=self.batch_size, generator=generator, progress=progress,
                label=f"training MagNet's {which} autoencoder on {data.name}",
            )  # fmt: skip
        self.thresholds = self._chosen(data.validation.images[:VALIDATION])

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The reconstruction by the first autoencoder."""
        return self.reformer(images)  # type: ignore[no-any-return]

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        """The larger of the two reconstruction errors, each over its threshold, (N,)."""
        return (self._errors(images) / self.thresholds).amax(dim=1)

    def _errors(self, images: Tensor) -> Tensor:
        """Mean squared error of the first autoencoder and mean absolute error of the second, (N, 2)."""
        first, second = (images - self.reformer(images), images - self.second(images))
        return torch.stack([first.square().flatten(1).mean(dim=1), second.abs().flatten(1).mean(dim=1)], dim=1)

    def _chosen(self, images: Tensor) -> Tensor:
        """The errors that `drop_rate` of the images exceed, (2,)."""
        with torch.no_grad():
            errors = torch.cat([self._errors(batch) for batch in torch.split(images, chunk_size(images.device))])
        kept = len(errors) - math.floor(self.drop_rate * len(errors))
        return errors.sort(dim=0).values[kept - 1]


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.xavier_uniform_(convolution.weight)  # Keras' own
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution, nn.Sigmoid()
