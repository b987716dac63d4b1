"""A classifier of the attacker's own on a defense's codes, attacked through the encoder (Kos et al. 2018).

The paper (arXiv:1702.06832) attacks generative models so; a purifier with an encoder is one. It trains a classifier on
the codes of a frozen encoder, takes the two together for the attacked network, and hopes that what it mistakes for
another class is decoded as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Generator, Tensor, nn

from bench.attacks import Attacked, Logits, ThroughCodes
from bench.attacks.gradient_steps import pgd
from bench.draws import ImageDraws

CHUNK = 256
SMALLEST_SPREAD = 1e-6  # a code that never changes is not divided by its spread


def latent_classifier(
    model: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    learned: Mapping[str, Tensor],
    norm: str = "linf",
    steps: int = 40,
) -> Attacked:
    """Images in the ball that the `learned` classifier of codes gets wrong; each image's iterate of its highest loss.

    Steps of 2.5 eps / `steps` up the cross-entropy from the clean image; a single one is eps long, the fast gradient
    sign. The defense's own answers are not asked for: `losses` and `step_of_success` are those of the learned
    classifier, `broken` is not told, and images that it gets wrong may well be right behind the defense. Told:
    `latent_classifier_accuracy`, on known images that it was not trained on. Deviations from the paper: the wrong class
    is any, not a chosen one; the ball bounds the change, which an optimiser weighs by lambda in the longer of its two
    forms; and the steps, their size, the architecture and the training of the classifier are ours, not the paper's.
    Deterministic: `draws` is not used. Raises ValueError for eps < 0, steps < 1 or an unknown norm.
    """
    if eps < 0 or steps < 1:
        raise ValueError(f"latent_classifier needs eps >= 0 and steps >= 1, got {eps} and {steps}")
    encode = cast(ThroughCodes, model).encode

    def answers(given: Tensor) -> Tensor:
        return _classify(encode(given).flatten(1), learned)

    size = eps if steps == 1 else 2.5 * eps / steps
    found = pgd(
        answers, images, labels, eps=eps, draws=draws, norm=norm, steps=steps, step_size=size or 1.0, random_start=False
    )
    told = learned["held_out_accuracy"].to(found.losses).expand(len(images))
    return Attacked(
        found.images, found.losses, found.step_of_success, blocked=found.blocked, looks=found.looks,
        told={"latent_classifier_accuracy": told},
    )  # fmt: skip


def learn(
    model: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    generator: Generator,
    known: int = 5000,
    held_out: float = 0.2,
    hidden: int = 128,
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> Mapping[str, Tensor]:
    """The weights of a classifier on the codes of the first `known` images, and its `held_out_accuracy` ().

    One layer of `hidden` units (ReLU) on standardised codes, Adam on the cross-entropy. The last share `held_out` of
    the known images is not trained on. The classes are those of the classifier behind the defense. Raises ValueError
    for known < 2, or where nothing is left to train on.
    """
    images, labels = images[:known], labels[:known]
    trained = len(images) - int(held_out * len(images))
    if known < 2 or trained < 1 or min(hidden, epochs, batch_size) < 1:
        raise ValueError(
            "latent_classifier needs known >= 2, held_out < 1, hidden, epochs and batch_size >= 1 and known images, "
            f"got {known}, {held_out}, {hidden}, {epochs}, {batch_size} and {len(images)} images"
        )
    through = cast(ThroughCodes, model)
    with torch.no_grad():
        codes = torch.cat([through.encode(chunk).flatten(1) for chunk in torch.split(images, CHUNK)])  # (M, D)
        classes = through.classify(images[:1]).shape[-1]
    mean, spread = codes[:trained].mean(dim=0), codes[:trained].std(dim=0, correction=0)
    learned = {
        "mean": mean,
        "spread": torch.where(spread > SMALLEST_SPREAD, spread, 1),
        "hidden": _drawn(codes.new_empty(hidden, codes.shape[1]), generator),
        "hidden_bias": codes.new_zeros(hidden),
        "out": _drawn(codes.new_empty(classes, hidden), generator),
        "out_bias": codes.new_zeros(classes),
    }
    weights = [learned[name].requires_grad_() for name in ("hidden", "hidden_bias", "out", "out_bias")]
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(trained, generator=generator, device=generator.device)
            for rows in torch.split(order, batch_size):
                loss = nn.functional.cross_entropy(_classify(codes[rows], learned), labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    learned = {name: weight.detach() for name, weight in learned.items()}
    right = _classify(codes[trained:], learned).argmax(dim=1) == labels[trained:]
    return {**learned, "held_out_accuracy": right.double().mean()}


def _classify(codes: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """Logits (N, K) of codes (N, D)."""
    standard = (codes - learned["mean"]) / learned["spread"]
    inner = nn.functional.linear(standard, learned["hidden"], learned["hidden_bias"]).relu()
    return nn.functional.linear(inner, learned["out"], learned["out_bias"])


def _drawn(weight: Tensor, generator: Generator) -> Tensor:
    """Initial weights: normal, of variance 2 over the number of inputs (He et al. 2015, arXiv:1502.01852)."""
    noise = torch.randn(weight.shape, generator=generator, device=weight.device)
    scale: float = (2 / weight.shape[1]) ** 0.5
    return noise.to(weight.dtype) * scale
