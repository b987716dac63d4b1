"""The classifiers that defenses stand in front of: models A to F of the Defense-GAN paper (arXiv:1805.06605), MagNet's.

The papers print dropout as a drop rate and we follow them (the TensorFlow code behind them treats the same number as
the share to keep); model C's second kernel is 5x5 as in every released code. Where a later paper's code changed a net,
its port stands beside ours, for that paper's own evaluation (catalog.PORTS); MAD-VAE's A, C and E are ours. All return
logits and are trained alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bench import seeds, training
from bench.catalog import CLASSIFIERS
from bench.data import Dataset
from bench.errors import unknown
from bench.progress import Progress

Shape = tuple[int, int, int]


def _conv_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0
) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()


def _features(layers: nn.Sequential, shape: Shape) -> int:
    """The number of features that `layers` make of one image of `shape`."""
    with torch.no_grad():
        return int(layers.eval()(torch.zeros(1, *shape)).numel())


def _two_hidden(convolutions: nn.Sequential, shape: Shape, n_classes: int) -> nn.Sequential:
    """Models A and C: flatten, dropout 0.25, 128 hidden units, dropout 0.5."""
    width = _features(convolutions, shape)
    return nn.Sequential(
        *convolutions, nn.Flatten(), nn.Dropout(0.25), nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, n_classes),
    )  # fmt: skip


def _a(shape: Shape, n_classes: int) -> nn.Sequential:
    convolutions = nn.Sequential(*_conv_relu(shape[0], 64, 5, padding=2), *_conv_relu(64, 64, 5, stride=2))
    return _two_hidden(convolutions, shape, n_classes)


def _strided(
    shape: Shape, n_classes: int, *, before: list[nn.Module], after: list[nn.Module], padding: int = 3
) -> nn.Sequential:
    """Models B and F: three wide convolutions, between what stands `before` and `after` them, and no hidden layer."""
    convolutions = nn.Sequential(
        *before,
        *_conv_relu(shape[0], 64, 8, stride=2, padding=padding),
        *_conv_relu(64, 128, 6, stride=2),
        *_conv_relu(128, 128, 5),
    )
    width = _features(convolutions, shape)
    return nn.Sequential(*convolutions, *after, nn.Flatten(), nn.Linear(width, n_classes))


def _b(shape: Shape, n_classes: int) -> nn.Sequential:
    return _strided(shape, n_classes, before=[nn.Dropout(0.2)], after=[nn.Dropout(0.5)])


def _b_madvae(shape: Shape, n_classes: int) -> nn.Sequential:
    """B with padding 5, and whole channels of the input dropped: on grey images, one whole image in five."""
    return _strided(shape, n_classes, before=[nn.Dropout2d(0.2)], after=[nn.Dropout(0.5)], padding=5)


def _f(shape: Shape, n_classes: int) -> nn.Sequential:
    return _strided(shape, n_classes, before=[], after=[])


def _c(shape: Shape, n_classes: int) -> nn.Sequential:
    convolutions = nn.Sequential(*_conv_relu(shape[0], 128, 3, padding=1), *_conv_relu(128, 64, 5, stride=2))
    return _two_hidden(convolutions, shape, n_classes)


def _dense(shape: Shape, n_classes: int, *drop_rates: float) -> nn.Sequential:
    """Models D and E: two layers of 200 units, the first ones followed by dropout at the given rates."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, rates in ((math.prod(shape), drop_rates[:1]), (200, drop_rates[1:])):
        layers += [nn.Linear(inputs, 200), nn.ReLU(), *(nn.Dropout(rate) for rate in rates)]
    return nn.Sequential(*layers, nn.Linear(200, n_classes))


def _d(shape: Shape, n_classes: int) -> nn.Sequential:
    return _dense(shape, n_classes, 0.5)


def _d_madvae(shape: Shape, n_classes: int) -> nn.Sequential:
    return _dense(shape, n_classes, 0.5, 0.25)


def _e(shape: Shape, n_classes: int) -> nn.Sequential:
    return _dense(shape, n_classes)


def _two_stages(channels: int, padding: int) -> nn.Sequential:
    """The convolutions of MagNet's classifier: twice 32 channels, twice 64, each pair followed by pooling."""
    return nn.Sequential(
        *_conv_relu(channels, 32, 3, padding=padding), *_conv_relu(32, 32, 3, padding=padding), nn.MaxPool2d(2),
        *_conv_relu(32, 64, 3, padding=padding), *_conv_relu(64, 64, 3, padding=padding), nn.MaxPool2d(2),
    )  # fmt: skip


def _magnet(shape: Shape, n_classes: int) -> nn.Sequential:
    convolutions = _two_stages(shape[0], padding=0)
    width = _features(convolutions, shape)
    return nn.Sequential(
        *convolutions, nn.Flatten(), nn.Linear(width, 200), nn.ReLU(), nn.Dropout(0.5), nn.Linear(200, 200), nn.ReLU(),
        nn.Linear(200, n_classes),
    )  # fmt: skip


def _magnet_madvae(shape: Shape, n_classes: int) -> nn.Sequential:
    """MagNet's with padding 1, one hidden layer and no dropout: the net that MAD-VAE trains for and attacks."""
    convolutions = _two_stages(shape[0], padding=1)
    width = _features(convolutions, shape)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(width, 200), nn.ReLU(), nn.Linear(200, n_classes))


def _cnet(shape: Shape, n_classes: int) -> nn.Sequential:
    """PyTorch's MNIST example. Its second Dropout2d stands behind a linear layer, where it is plain dropout."""
    convolutions = nn.Sequential(*_conv_relu(shape[0], 32, 3), *_conv_relu(32, 64, 3), nn.MaxPool2d(2))
    width = _features(convolutions, shape)
    return nn.Sequential(
        *convolutions, nn.Dropout2d(0.25), nn.Flatten(), nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, n_classes),
    )  # fmt: skip


BUILDERS: Mapping[str, Callable[[Shape, int], nn.Sequential]] = MappingProxyType(
    {
        "A": _a, "B": _b, "C": _c, "D": _d, "E": _e, "F": _f, "magnet": _magnet,
        "B_madvae": _b_madvae, "D_madvae": _d_madvae, "magnet_madvae": _magnet_madvae, "cnet": _cnet,
    }
)  # fmt: skip

# Short, and enough for the published clean accuracies: Adam with its rate falling to zero along a cosine.
RECIPE: Mapping[str, float] = MappingProxyType(
    {"epochs": 4, "minimum_steps": 250, "batch_size": 128, "learning_rate": 1e-3}
)


def build(name: str, shape: Shape = (1, 28, 28), n_classes: int = 10, seed: int = 0) -> nn.Sequential:
    """An untrained classifier for images of `shape` (C, H, W), in eval mode, its weights drawn from `seed`.

    Raises BenchError for an unknown name.
    """
    if name not in BUILDERS:
        raise unknown("classifier", name, CLASSIFIERS, see="purifybench list classifiers")
    with training.global_seed(seeds.derive("initialise classifier", name, shape, n_classes, seed)):
        return BUILDERS[name](shape, n_classes).eval()


def fit(
    classifier: nn.Module, data: Dataset, generator: Generator, progress: Progress, label: str = "classifier"
) -> None:
    """Train `classifier` in place on `data.train` with RECIPE and cross-entropy, and leave it in eval mode."""

    def batch_loss(images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(classifier(images), labels)

    training.train(
        classifier,
        batch_loss,
        (data.train.images, data.train.labels),
        optimizer=torch.optim.Adam(classifier.parameters(), lr=RECIPE["learning_rate"]),
        epochs=int(RECIPE["epochs"]),
        minimum_steps=int(RECIPE["minimum_steps"]),
        batch_size=int(RECIPE["batch_size"]),
        schedule=training.cosine,
        generator=generator,
        progress=progress,
        label=label,
    )


def key(dataset: str, split: str, seed: int) -> dict[str, Any]:
    """What decides the weights of a classifier, besides its name: see training.load_or_fit."""
    return {"dataset": dataset, "split": split, "recipe": dict(RECIPE), "seed": seed}


def trained(name: str, data: Dataset, progress: Progress, seed: int = 0) -> tuple[nn.Sequential, str]:
    """The classifier trained on `data` (loaded if it was before), frozen, in eval mode; and its weights' hash."""
    classifier = build(name, data.shape, len(data.class_names), seed).to(data.train.images.device)
    weights_hash = training.load_or_fit(
        classifier,
        f"classifier_{name}",
        key(data.name, data.split, seed),
        lambda generator, kept: fit(classifier, data, generator, kept, f"training classifier {name} on {data.name}"),
        progress,
    )
    return classifier.requires_grad_(False).eval(), weights_hash
