"""One perturbation for every image: learned from known images, then added to each attacked one as it is.

Moosavi-Dezfooli et al. 2017 (arXiv:1610.08401) sum up small steps, one for each image that is not fooled yet. What is
built here is the stochastic gradient ascent on a clamped loss of Shafahi et al. 2020 (arXiv:1811.11304), which they
find to be as strong and many times as fast; where it deviates stands in `learn`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor

from bench.attacks import Attacked, Logits, balls, look, losses
from bench.draws import ImageDraws


def universal(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    learned: Mapping[str, Tensor],
    norm: str = "linf",
) -> Attacked:
    """The `learned` change (C, H, W) added to every image, clipped to the ball and to [0, 1].

    The model is asked about the clean image and about the result, and its answers change nothing. Deterministic:
    `draws` is not used. Raises ValueError for eps < 0 or an unknown norm.
    """
    if eps < 0:
        raise ValueError(f"universal needs eps >= 0, got {eps}")
    changed = balls.get(norm).project(images + learned["change"], images, eps)
    seen = [look(logits, given, labels, losses.cross_entropy, last=True) for given in (images, changed)]
    never = torch.full_like(labels, -1)
    success = torch.where(seen[0].broken, 0, torch.where(seen[1].broken, 1, never))
    return Attacked(changed, torch.stack([one.loss for one in seen]), success, seen[1].broken & seen[1].certain)


def learn(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    generator: Generator,
    eps: float,
    norm: str = "linf",
    known: int = 500,
    epochs: int = 10,
    batch_size: int = 50,
    loss: str = "cross_entropy",
    most_loss: float = 9.0,
) -> Mapping[str, Tensor]:
    """`change` (C, H, W): the one change of size `eps` that breaks most of the first `known` images; `broke` (), how
    many of them, as a share.

    Each epoch goes through all images in a new random order, and each batch moves the change by one step of steepest
    ascent on its mean loss, back into the ball after it. No image's loss counts beyond `most_loss`, as one that is
    lost already must not outvote the others (the paper's beta is 9 as well, on the cross-entropy). Deviations: it
    starts from a random corner, so that it is never weaker than noise where the gradient is masked; a step has size
    `eps` at first and falls to 0 along a line; and of the changes at the start and after each epoch the one that breaks
    most known images is kept, of several the one of the highest mean loss. Raises ValueError for eps < 0,
    counts below 1, no images, or an unknown norm or loss.
    """
    images, labels = images[:known], labels[:known]
    if eps < 0 or known < 1 or epochs < 1 or batch_size < 1 or not len(images):
        raise ValueError(
            "universal needs eps >= 0, known >= 1, epochs >= 1, batch_size >= 1 and images to learn from, "
            f"got {eps}, {known}, {epochs}, {batch_size} and {len(images)} images"
        )
    ball, raised = balls.get(norm), losses.get(loss)

    def clamped(scores: Tensor, true: Tensor) -> Tensor:
        return raised(scores, true).clamp(max=most_loss)

    nowhere = torch.zeros_like(images[:1])
    change = _corner(nowhere, eps, norm, generator)
    best, reached = change, (-1.0, 0.0)
    steps, done = epochs * -(-len(images) // batch_size), 0
    for epoch in range(epochs + 1):
        broke, height = 0.0, 0.0
        for rows in torch.split(torch.arange(len(images), device=images.device), batch_size):
            seen = look(logits, _shown(images[rows], change), labels[rows], clamped, last=True)
            broke += float(seen.broken.sum())
            height += float(seen.loss.clamp(max=most_loss).sum())
        if (broke, height) > reached:
            best, reached = change, (broke, height)
        if epoch == epochs:
            break
        for rows in _shuffled(len(images), batch_size, generator):
            slope = look(logits, _shown(images[rows], change), labels[rows], clamped).gradient
            size = torch.full_like(change[:, 0, 0, 0], eps * (1 - done / steps))
            change = _within(ball.step(change, _felt(slope, images[rows] + change), size), eps, norm)
            done += 1
    return {"change": best[0], "broke": torch.tensor(reached[0] / len(images))}


def _corner(nowhere: Tensor, eps: float, norm: str, generator: Generator) -> Tensor:
    """A random change (1, C, H, W) of the ball's full size: a corner of the cube, or a point of the sphere."""
    noise = torch.randn(nowhere.shape, generator=generator, device=nowhere.device).to(nowhere.dtype)
    return _within(noise.sign() * eps if norm == "linf" else noise * (eps * 1e6), eps, norm)


def _within(change: Tensor, eps: float, norm: str) -> Tensor:
    """The change (1, C, H, W) brought back into its ball, which the walls of [0, 1] do not bound here."""
    if norm == "linf":
        return change.clamp(-eps, eps)
    length = torch.linalg.vector_norm(change).clamp(min=balls.TINY)
    shorter: Tensor = change * (eps / length).clamp(max=1)
    return shorter


def _felt(slope: Tensor, moved: Tensor) -> Tensor:
    """The mean over the images of their gradients (N, C, H, W), for the change, (1, C, H, W): an image that is `moved`
    out of [0, 1] at a pixel does not feel the change there, and has a say only where none of the others feels it."""
    inside = torch.where((moved >= 0) & (moved <= 1), slope, 0).mean(dim=0, keepdim=True)
    return torch.where(inside == 0, slope.mean(dim=0, keepdim=True), inside)


def _shown(images: Tensor, change: Tensor) -> Tensor:
    return (images + change).clamp(0, 1)


def _shuffled(n: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    yield from torch.split(torch.randperm(n, generator=generator, device=generator.device), batch_size)
