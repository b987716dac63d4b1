"""The search of Defense-GAN (Samangouei et al. 2018): the latent code whose image comes closest to a given one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Descent:
    """Gradient descent with momentum on the mean squared difference of pixels: `steps` looks at the image, each but the
    last followed by a move. The released code looks, then moves, and returns what it saw last.

    The rate holds for one image: its loss is no mean over others, so nothing depends on what stands beside it. It stays
    the same to the end, as it does in the released code, whose counter of steps never counts.
    """

    steps: int = 200
    learning_rate: float = 10.0
    momentum: float = 0.7

    def __post_init__(self) -> None:
        """Raises ValueError without a step."""
        if self.steps < 1:
            raise ValueError(f"a search needs at least 1 step, got {self.steps}")


@dataclass(frozen=True)
class Found:
    """The best restart of each image: its picture (N, C, H, W), its code (N, D), the mean squared difference (N,); and
    where the restart stood `tail` steps before its end: codes and velocities, (N, D) each."""

    images: Tensor
    latents: Tensor
    errors: Tensor
    tail: tuple[Tensor, Tensor]


def search(decode: Decode, images: Tensor, starts: Tensor, descent: Descent, *, tail: int = 0) -> Found:
    """Descend from `starts` (N, R, D) towards `images` (N, C, H, W), all restarts of all images in one batch; of each
    image the restart that ends closest. Nothing found carries a gradient, and nothing is read back from the device.

    Where the device runs out of memory, the images are searched in halves, then the restarts of one image; the error of
    a single restart that does not fit passes through.
    """
    images, starts = images.detach(), starts.detach()
    n, restarts = starts.shape[:2]
    try:
        return _together(decode, images, starts, descent, min(tail, descent.steps - 1))
    except RuntimeError as problem:
        if not _is_out_of_memory(problem) or n * restarts == 1:
            raise
    if images.is_cuda:  # outside of the except block, which would keep what the attempt held
        torch.cuda.empty_cache()
    if n > 1:
        first, second = (
            search(decode, part, its_starts, descent, tail=tail)
            for part, its_starts in zip(_halves(images, 0), _halves(starts, 0), strict=True)
        )
        return _merged(first, second, lambda a, b: torch.cat([a, b]))
    first, second = (search(decode, images, part, descent, tail=tail) for part in _halves(starts, 1))
    first_is_better = _finite(first.errors) <= _finite(second.errors)  # (1,)

    def better(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(first_is_better.view(-1, *[1] * (a.ndim - 1)), a, b)

    return _merged(first, second, better)


def _together(decode: Decode, images: Tensor, starts: Tensor, descent: Descent, tail: int) -> Found:
    n, restarts = starts.shape[:2]
    targets = images.flatten(1)[:, None]  # (N, 1, P)
    latents = starts.flatten(0, 1).clone()  # (N * R, D)
    velocity = torch.zeros_like(latents)
    kept = latents, velocity
    with torch.enable_grad():
        for step in range(descent.steps):
            if step == descent.steps - 1 - tail:
                kept = latents, velocity
            latents = latents.detach().requires_grad_()
            shown = decode(latents)  # (N * R, C, H, W)
            errors = (shown.reshape(n, restarts, -1) - targets).square().mean(dim=2)  # (N, R)
            if step < descent.steps - 1:
                (gradient,) = torch.autograd.grad(errors.sum(), latents)
                latents, velocity = _moved(latents.detach(), velocity, gradient, descent)
    best = _finite(errors.detach()).argmin(dim=1)  # (N,)
    rows = torch.arange(n, device=images.device) * restarts + best
    before, speed = kept
    return Found(
        shown.detach()[rows], latents.detach()[rows], errors.detach().flatten()[rows],
        (before.detach()[rows], speed[rows]),
    )  # fmt: skip


def replay(decode: Decode, images: Tensor, before: tuple[Tensor, Tensor], descent: Descent, moves: int) -> Tensor:
    """So many moves from codes and velocities `before`, (N, D) each, with a graph: the pictures (N, C, H, W) that they
    end in, whose gradient with respect to `images`, and to codes that have one, is the true one of these moves."""
    latents, velocity = before
    with torch.enable_grad():
        latents = latents if latents.requires_grad else latents.detach().requires_grad_()
        for _ in range(moves):
            errors = (decode(latents) - images).square().flatten(1).mean(dim=1)  # (N,)
            (gradient,) = torch.autograd.grad(errors.sum(), latents, create_graph=True)
            latents, velocity = _moved(latents, velocity, gradient, descent)
        return decode(latents)


def _moved(latents: Tensor, velocity: Tensor, gradient: Tensor, descent: Descent) -> tuple[Tensor, Tensor]:
    velocity = descent.momentum * velocity + gradient
    return latents - descent.learning_rate * velocity, velocity


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `module` asks for a gradient, which would cost half as much again; after, those that did
    do again."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_()


def _merged(first: Found, second: Found, merge: Callable[[Tensor, Tensor], Tensor]) -> Found:
    return Found(
        merge(first.images, second.images), merge(first.latents, second.latents), merge(first.errors, second.errors),
        (merge(first.tail[0], second.tail[0]), merge(first.tail[1], second.tail[1])),
    )  # fmt: skip


def _halves(tensor: Tensor, dim: int) -> Sequence[Tensor]:
    half = tensor.shape[dim] // 2
    return torch.split(tensor, [half, tensor.shape[dim] - half], dim=dim)


def _finite(errors: Tensor) -> Tensor:
    """A restart that has run away to NaN comes last."""
    return torch.nan_to_num(errors, nan=torch.inf)


def _is_out_of_memory(problem: RuntimeError) -> bool:
    """torch has a class for GPUs; on CPU its allocator raises a plain RuntimeError."""
    return isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem)
