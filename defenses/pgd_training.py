"""Adversarial training with projected gradient descent: the hardened net that purifiers are measured beside."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.attacks import gradient_steps
from bench.data import Dataset
from bench.defense import Defense
from bench.draws import ImageDraws
from bench.progress import Progress

CUSTOMARY_EPS: Mapping[str, float] = MappingProxyType({"digits": 0.3, "mnist": 0.3, "fmnist": 0.1})


class PGDTraining(Defense):
    """The classifier's own architecture, trained from new weights on PGD images instead of clean ones.

    Madry et al. 2018 (arXiv:1706.06083): 40 steps of 0.01 in the Linf ball of 0.3 on MNIST, Adam 1e-4, batches of 50,
    100,000 steps. The `fast` recipe takes 10 larger steps, batches of 64 and a rate of 1e-3 that falls along a cosine
    for 4 epochs. In both the radius grows to its full size over the first half: small nets otherwise stay at a constant
    answer. Dropout stays off, as their nets have none. `eps` None stands for the radius customary for the data set.
    """

    title = "PGD training"
    paper = "https://arxiv.org/abs/1706.06083"
    year = 2018
    kind = "hardened"
    differentiable = True
    per_classifier = True
    trained_on = "PGD images of itself"
    recipes = {
        "fast": {"steps": 10, "step_share": 0.25, "batch_size": 64, "learning_rate": 1e-3, "epochs": 4, "decay": True},
        "paper": {},
    }

    def __init__(
        self,
        classifier: nn.Module,
        *,
        eps: float | None = None,
        steps: int = 40,
        step_share: float = 0.01 / 0.3,
        batch_size: int = 50,
        learning_rate: float = 1e-4,
        epochs: int = 100,
        minimum_steps: int = 600,
        decay: bool = False,
    ) -> None:
        """`step_share` is the size of a step as a share of the radius."""
        super().__init__(classifier)
        self.net = _renewed(classifier)
        object.__setattr__(self, "classifier", self.net)  # its own: the one that gray-box attackers know
        self.eps, self.steps, self.step_share = eps, steps, step_share
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self.epochs, self.minimum_steps, self.decay = epochs, minimum_steps, decay

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train on the clean training images, attacked anew in every batch."""
        full = CUSTOMARY_EPS.get(data.name, 0.3) if self.eps is None else self.eps
        eps = 0.0

        def schedule(share: float) -> float:
            nonlocal eps
            eps = full * min(1.0, 2 * share)
            return training.cosine(share) if self.decay else 1.0

        def batch_loss(images: Tensor, labels: Tensor) -> Tensor:
            self.net.eval()  # no dropout
            noise = torch.randint(2**62, (len(images),), generator=generator, device=images.device)
            attacked = gradient_steps.pgd(
                self.net, images, labels, eps=eps, draws=ImageDraws(noise), steps=self.steps,
                step_size=max(self.step_share * eps, 1e-6), keep_worst=False,
            )  # fmt: skip
            return nn.functional.cross_entropy(self.net(attacked.images), labels)

        training.train(
            self.net,
            batch_loss,
            (data.train.images, data.train.labels),
            optimizer=torch.optim.Adam(self.net.parameters(), lr=self.learning_rate),
            epochs=self.epochs,
            minimum_steps=self.minimum_steps,
            batch_size=self.batch_size,
            schedule=schedule,
            generator=generator,
            progress=progress,
            label=f"PGD training on {data.name}",
        )

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The images themselves: it is the net that changed."""
        return images


def _renewed(classifier: nn.Module) -> nn.Module:
    """The same architecture with weights drawn anew from the global generator, to be trained."""
    net = copy.deepcopy(classifier)
    for layer in net.modules():
        if callable(getattr(layer, "reset_parameters", None)):
            layer.reset_parameters()  # type: ignore[operator]
    return net.requires_grad_(True)
