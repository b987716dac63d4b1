"""The nets that a transfer attack is made on: an independent classifier, or a substitute trained on answered labels.

A substitute learns from an oracle that it may only ask for labels, on points that it makes of its own Jacobian
(Papernot et al. 2017, arXiv:1602.02697). Which model is asked, and what is then attacked, is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bench import classifiers, draws, threat, training
from bench.data import Dataset
from bench.progress import Progress

VERSION = 1  # of this file's training; part of the keys of its weights and of the cells that use an imitation
SEED = 1  # the nets are drawn and trained from it: attacked classifiers are from 0, so no source shares their start
COMPARED = 1_000  # validation images, beyond a substitute's own, on which it is compared with its oracle
CHUNK = 256

Oracle = Callable[[Tensor, Generator], Tensor]  # images (N, C, H, W) in [0, 1] to labels (N,)


@dataclass(frozen=True)
class Recipe:
    """How a substitute is trained. With these values it asks for 150 * 2**5 = 4,800 labels.

    As Defense-GAN's code sets it (arXiv:1805.06605), with four deviations: the first images are those of the validation
    split, not of the test split, so that no scored image is among them; their labels are asked for, not given; the
    Jacobian is that of the logits, not of the softmax; new points are clipped to [0, 1], which defenses need.
    """

    first_images: int = 150
    rounds: int = 6  # each but the last doubles the points
    step: float = 0.1  # lambda
    clip: bool = True
    epochs: int = 10  # of each round; the weights are carried on, Adam starts anew
    batch_size: int = 128
    learning_rate: float = 1e-3

    @property
    def queries(self) -> int:
        """The labels that are asked for: one a point."""
        return self.first_images << (self.rounds - 1)

    @property
    def rows(self) -> int:
        """The images that training sends forward and backward."""
        return self.epochs * self.first_images * ((1 << self.rounds) - 1)


PAPERNOT = Recipe()


@dataclass(frozen=True)
class SourceNet:
    """A net that images are made on, frozen, and what is known about it.

    `agreement` is the share of validation images, none of them trained on, to which it and the model that it stands for
    give the same class. `problem` says why the defense could not be asked: such a net answers nothing.
    """

    net: nn.Module
    weights: str
    queries: int = 0  # labels that the attacker asked for
    agreement: float | None = None
    problem: str = ""

    @property
    def answers(self) -> tuple[object, ...]:
        """All that decides what the net answers."""
        return "net", self.weights


class Substitute(nn.Module):
    """A net with the counts that its file keeps beside the weights."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.net = net
        for name in ("queries", "agreed", "compared"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=device))


def independent(architecture: str, bare: nn.Module, data: Dataset, progress: Progress) -> SourceNet:
    """A classifier trained like every other on the training split, from a seed that no attacked one has: what MAD-VAE
    calls black-box. Its agreement is that with the classifier `bare`."""
    net, weights = classifiers.trained(architecture, data, progress, SEED)
    agreed, compared = _agreement(net, answers_of(bare), data, 0)
    return SourceNet(net, weights, 0, agreed / compared if compared else None)


def trained(
    architecture: str,
    oracle: Oracle,
    key: object,
    data: Dataset,
    progress: Progress,
    *,
    of: str,
    recipe: Recipe = PAPERNOT,
) -> SourceNet:
    """A substitute trained (or loaded) on the labels that `oracle` answers; `key` holds what decides its answers.

    `of` names the oracle for people. Of equal answers come equal weights: nothing but they enters the training. The
    generator of a query is derived from its number alone, so a random oracle answers with one draw, the same in every
    run. Whatever the oracle raises passes through.
    """
    device = data.train.images.device
    net = classifiers.build(architecture, data.shape, len(data.class_names), SEED).to(device)
    substitute = Substitute(net, device)

    def fit(generator: Generator, kept: Progress) -> None:
        kept.say(f"training a substitute {architecture} on {recipe.queries:,} labels that {of} answers")
        points = imitate(net, oracle, data.validation.images[: recipe.first_images], recipe, kept, architecture)
        agreed, compared = _agreement(net, oracle, data, recipe.first_images)
        for buffer, value in zip(("queries", "agreed", "compared"), (points, agreed, compared), strict=True):
            getattr(substitute, buffer).fill_(value)

    training.load_or_fit(substitute, *described(architecture, key, data.name, data.split, recipe), fit, progress)
    queries, agreed, compared = (int(getattr(substitute, name)) for name in ("queries", "agreed", "compared"))
    net.requires_grad_(False).eval()
    return SourceNet(net, training.weights_hash(net), queries, agreed / compared if compared else None)


def is_kept(architecture: str, key: object, dataset: str, split: str, recipe: Recipe = PAPERNOT) -> bool:
    """Whether the weights that `trained` would train lie on disk."""
    return training.weights_path(*described(architecture, key, dataset, split, recipe)).exists()


def described(
    architecture: str, key: object, dataset: str, split: str, recipe: Recipe = PAPERNOT
) -> tuple[str, dict[str, Any]]:
    """What a substitute's weights are called, and what decides them: see training.load_or_fit."""
    decides = {"oracle": key, "dataset": dataset, "split": split, "recipe": asdict(recipe), "compared": COMPARED}
    return f"substitute_{architecture}", {"version": VERSION, **decides}


def answers_of(net: nn.Module) -> Oracle:
    """The oracle that answers with the classes of a net alone."""
    return lambda images, _: threat.predictions(net, images)


def imitate(net: nn.Module, oracle: Oracle, images: Tensor, recipe: Recipe, progress: Progress, name: str) -> int:
    """Train `net` in place by rounds of Jacobian augmentation from `images` (N, C, H, W); the number of labels that
    were asked for. Every point is asked once, its answer is remembered."""
    generator = draws.generator(images.device, "substitute", name, SEED)
    labels = ask(oracle, images)
    for number in range(1, recipe.rounds + 1):
        training.train(
            net, lambda batch, answers: nn.functional.cross_entropy(net(batch), answers), (images, labels),
            optimizer=torch.optim.Adam(net.parameters(), lr=recipe.learning_rate), epochs=recipe.epochs,
            batch_size=recipe.batch_size, generator=generator, progress=progress,
            label=f"substitute {name}, round {number} of {recipe.rounds}",
        )  # fmt: skip
        if number < recipe.rounds:
            new = augmented(net, images, labels, recipe.step, clip=recipe.clip)
            labels = torch.cat([labels, ask(oracle, new, len(images))])
            images = torch.cat([images, new])
    return len(images)


def augmented(net: nn.Module, images: Tensor, labels: Tensor, step: float, *, clip: bool = True) -> Tensor:
    """A new point for each image (N, C, H, W): `step` along the sign of the gradient of its label's logit, so that the
    oracle is asked where the net changes most; clipped to [0, 1] unless told."""
    new = []
    for start in range(0, len(images), CHUNK):
        given = images[start : start + CHUNK].detach().requires_grad_()
        with torch.enable_grad():
            own = net(given).gather(1, labels[start : start + CHUNK, None])  # (N, 1)
        (gradient,) = torch.autograd.grad(own.sum(), given)
        new.append(given.detach() + step * gradient.sign())
    return torch.cat(new).clamp(0, 1) if clip else torch.cat(new)


def ask(oracle: Oracle, images: Tensor, first: int = 0, purpose: str = "query") -> Tensor:
    """The oracle's labels (N,) of images (N, C, H, W), the first of which is its query number `first`."""
    with torch.no_grad():
        answers = [
            oracle(images[start : start + CHUNK].clone(), draws.generator(images.device, purpose, SEED, first + start))
            for start in range(0, len(images), CHUNK)
        ]
    return torch.cat(answers)


def _agreement(net: nn.Module, oracle: Oracle, data: Dataset, first: int) -> tuple[int, int]:
    """On how many of the validation images from the `first` on the two give one class, and how many were compared."""
    images = data.validation.images[first : first + COMPARED]
    if not len(images):
        return 0, 0
    same = ask(oracle, images, purpose="compare") == ask(answers_of(net), images)
    return int(same.sum()), len(images)
