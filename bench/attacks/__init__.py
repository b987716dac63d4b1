"""Attacks: one idea a file, each a function over a logits callable.

    def attack(logits, images, labels, *, eps, draws, ...) -> Attacked

`logits` maps images (N, C, H, W) in [0, 1] to (N, K), or to (draws, N, K) for a random defense; `labels` are int64
(N,); `eps` is the radius on the [0, 1] scale; `draws` gives each image its own random numbers
(bench.draws.ImageDraws). An attack that learns something first, once for a whole cell, is given it as `learned` (see
`learner`). Attacks leave their inputs, the model and the global random state as they were, and image i's
result does not depend on the rest of the batch.
Names, versions and papers stand in bench.catalog.ATTACKS.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor

from bench.attacks import losses
from bench.catalog import ATTACKS
from bench.draws import ImageDraws
from bench.errors import unknown

Logits = Callable[[Tensor], Tensor]


class Hurrying(Protocol):
    """A model that also answers in a hurry, with less inner work, which is not what images are scored on
    (bench.threat.Target)."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of the whole defense, (N, K), or (draws, N, K) for a random one."""

    def hurried(self, images: Tensor) -> Tensor:
        """Logits of the defense in a hurry, of the same shape."""

    def classify(self, images: Tensor) -> Tensor:
        """Logits of the classifier behind the defense alone, (N, K)."""


class ThroughCodes(Hurrying, Protocol):
    """A model whose encoder and decoder the attacker uses, beside its logits (bench.threat.through_codes)."""

    known_images: Tensor  # (M, C, H, W), images that the attacker has, of the data the defense was made for
    known_labels: Tensor  # int64 (M,)

    def encode(self, images: Tensor) -> Tensor:
        """Codes (N, ...) of images (N, C, H, W)."""

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and log-variance of the codes, each (N, D); None for a model without."""

    def start_codes(self, images: Tensor, starts: int, noise: ImageDraws) -> Tensor:
        """So many random codes for each image, (N, starts, ...)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] from codes (N, ...)."""


@dataclass(frozen=True)
class Attacked:
    """What an attack made of a batch.

    `images` (N, C, H, W); `losses` (steps + 1, N), the loss before each step and after the last; `step_of_success`
    int64 (N,), the first step after which the attacked model was wrong, 0 if it was wrong before any, -1 if never;
    `broken` (N,) which of the returned images the attack itself saw misclassified, for attacks that keep track.
    `blocked` float (N,), for attacks that use gradients, is evidence of masked ones: the share of an image's looks at
    which its gradient was zero everywhere, missing or not finite; `looks` (N,) is of how many. Looks count while the
    image was in the batch and not yet broken; the share of none is 0. `told` are numbers (N,) by name that the attack
    knows of each image and no one else can: a record keeps the mean of each among its facts.
    """

    images: Tensor
    losses: Tensor
    step_of_success: Tensor
    broken: Tensor | None = None
    blocked: Tensor | None = None
    looks: Tensor | None = None
    told: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, rows: Tensor) -> Attacked:
        """What was made of the images at the indices `rows`."""
        found = {name: batch.index_select(dim, rows) for name, batch, dim in self._batches()}
        return replace(self, **found, told={name: values[rows] for name, values in self.told.items()})  # type: ignore[arg-type]

    def with_rows(self, rows: Tensor, other: Attacked) -> Attacked:
        """This, with what was made of the images at the indices `rows` replaced by `other`."""
        found = {name: batch.index_copy(dim, rows, getattr(other, name)) for name, batch, dim in self._batches()}
        told = {name: values.index_copy(0, rows, other.told[name]) for name, values in self.told.items()}
        return replace(self, **found, told=told)  # type: ignore[arg-type]

    def _batches(self) -> Iterator[tuple[str, Tensor, int]]:
        """Every field that holds a batch, with the dimension along which its images lie."""
        for one in fields(self):
            batch = getattr(self, one.name)
            if isinstance(batch, Tensor):
                yield one.name, batch, int(one.name == "losses")


def get(name: str) -> Callable[..., Attacked]:
    """The attack of that name. Raises BenchError, with the nearest names, if there is none."""
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS, see="purifybench list attacks")
    module, function = ATTACKS[name].function.split(":")
    found = cast(Callable[..., Attacked], getattr(importlib.import_module(module), function))
    return functools.partial(found, **ATTACKS[name].fixed)


def learner(name: str) -> Callable[..., Mapping[str, Tensor]] | None:
    """What the attack of that name learns with before it attacks, or None for one that learns nothing.

        learn(logits, images, labels, *, generator, ...) -> tensors by name

    `images` and `labels` are known ones, never those attacked; all randomness comes from `generator`. The attack is
    given the tensors as `learned`. Of a cell's settings each of the two takes those that it names.
    """
    if not ATTACKS[name].learns:
        return None
    module, function = ATTACKS[name].learns.split(":")
    return cast(Callable[..., Mapping[str, Tensor]], getattr(importlib.import_module(module), function))


def split_settings(name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that the attack takes, with those that nobody knows, and those that its learner takes."""
    learn = learner(name)
    if learn is None:
        return dict(settings), {}
    taken, learned = (inspect.signature(function).parameters for function in (get(name), learn))
    own = {key: value for key, value in settings.items() if key in taken or key not in learned}
    return own, {key: value for key, value in settings.items() if key in learned}


@dataclass(frozen=True)
class Look:
    """What one forward and backward pass told: loss (N,), gradient (N, C, H, W), whether each image is broken (N,).

    `certain` is False where the model answered with draws: then one look proves nothing, and only losses compare.
    `draws` is the number of those answers for each image.
    `blocked` (N,) is True where the gradient was zero everywhere, missing or not finite; None where none was asked for.
    """

    loss: Tensor
    gradient: Tensor
    broken: Tensor
    certain: bool
    blocked: Tensor | None
    draws: int = 1


def look(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    loss: losses.Loss,
    last: bool = False,
    target: Tensor | None = None,
) -> Look:
    """Send images through the model and back; `target` (N,) is the wrong class that a targeted loss aims at.

    Where the model has no gradient, or one that is not finite, it is zero: the attack then stays where it started, and
    whoever reads `blocked` or its loss curve sees it. Where its logits are not finite the image is broken, as scoring
    counts it, and its loss is infinite. The draws of a random model have the same say, whatever the scale of their
    logits. At the `last` look no gradient is computed.
    """
    with torch.set_grad_enabled(not last):
        attacked = images.detach().requires_grad_(not last)
        scores = logits(attacked)
        even = scores if scores.ndim == 2 else losses.evened(scores)
        value = losses.mean_over_draws(loss(even, labels) if target is None else loss(even, labels, target))
        gradient = gradient_of(value, attacked)
    lost = ~value.detach().isfinite()
    return Look(
        torch.where(lost, torch.inf, value.detach()),
        torch.nan_to_num(gradient, posinf=0.0, neginf=0.0),
        losses.is_broken(scores.detach(), labels) | lost,
        scores.ndim == 2,
        None if last else is_blocked(gradient),
        scores.shape[:-2].numel(),
    )


def wrong_classes(logits: Logits, images: Tensor, labels: Tensor) -> Tensor:
    """The wrong classes of each image, (N, K - 1), likeliest first by its logits (with draws: by their mean)."""
    with torch.no_grad():
        scores = losses.without(logits(images), labels)  # (N, K) or (draws, N, K)
    scores = scores if scores.ndim == 2 else scores.mean(dim=0)
    return scores.argsort(dim=1, descending=True)[:, :-1]


def chosen(order: Tensor, targets: int, first_target: int) -> Tensor:
    """`targets` of the wrong classes in `order`, or as many as there are, from the `first_target`-th on: (N, targets).

    Raises ValueError if there is no such class.
    """
    if not 1 <= first_target <= order.shape[1]:
        raise ValueError(f"first_target must be from 1 to {order.shape[1]}, the wrong classes, got {first_target}")
    return order[:, first_target - 1 :][:, :targets]


def gradient_of(value: Tensor, images: Tensor, keep_graph: bool = False) -> Tensor:
    """The gradient of each image's value (N,) at the image, (N, C, H, W), as it is; zero where there is none."""
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), images, retain_graph=keep_graph, allow_unused=True)
    return torch.zeros_like(images) if gradient is None else gradient


def gradient_through(drawn: Tensor, codes: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at the codes (N, ...) of what has the given `gradient` (N, C, H, W) at the images drawn from them;
    zero where there is none."""
    found = None
    if drawn.requires_grad:
        (found,) = torch.autograd.grad(drawn, codes, gradient, allow_unused=True)
    return torch.zeros_like(codes) if found is None else found


def size_of(codes: Tensor) -> Tensor:
    """The root mean square of each image's code, (N, 1, ...) for codes (N, ...); 1 for a code of zeros."""
    size = codes.flatten(1).square().mean(dim=1).sqrt()
    return torch.where(size > 0, size, 1).view(-1, *[1] * (codes.ndim - 1))


def is_blocked(gradient: Tensor) -> Tensor:
    """Which gradients (N, ...) lead nowhere, (N,): zero everywhere or not finite somewhere."""
    size = gradient.flatten(1).abs().sum(dim=1)
    return (size == 0) | ~size.isfinite()


@dataclass
class PerImage:
    """What an attack remembers of each image still in the batch: every field's first dimension is the image's.

    `row` is the image's place in the batch at the start.
    """

    row: Tensor

    def rows(self, keep: Tensor) -> Self:
        """The state of a subset of the images (mask or indices)."""
        return type(self)(**{one.name: getattr(self, one.name)[keep] for one in fields(self)})


class Watch:
    """Counts the looks at each image of a batch until it is broken, and those at which its gradient was blocked."""

    def __init__(self, images: Tensor) -> None:
        self._broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.looks = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self._blocked = torch.zeros_like(self.looks)

    def note(self, rows: Tensor, broken: Tensor, blocked: Tensor | None) -> None:
        """What a look told of the images at the indices `rows`; one without a gradient is not counted."""
        self._broken[rows] |= broken
        if blocked is not None:
            unbroken = ~self._broken[rows]
            self.looks[rows] += unbroken
            self._blocked[rows] += unbroken & blocked

    def share(self) -> Tensor:
        """The share of looks at which the gradient was blocked, float32 (N,)."""
        return self._blocked / self.looks.clamp(min=1)


def where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Per image (mask (N,)) the one or the other of two batches."""
    return torch.where(mask[:, None, None, None], yes, no)


def better_of(first: Attacked, second: Attacked) -> Attacked:
    """Per image the run whose returned image is broken (where that is told), else the one that reached the higher loss.

    The step of success is the first run's if it had one; then the second run's looks count for nothing.
    """
    take = second.losses.amax(dim=0) > first.losses.amax(dim=0)
    if first.broken is not None and second.broken is not None:
        take = (second.broken & ~first.broken) | ((first.broken == second.broken) & take)
    blocked, looks = first.blocked, first.looks
    if blocked is not None and looks is not None and second.blocked is not None and second.looks is not None:
        more = torch.where(first.step_of_success < 0, second.looks, 0)
        blocked = (blocked * looks + second.blocked * more) / (looks + more).clamp(min=1)
        looks = looks + more
    return Attacked(
        where(take, second.images, first.images),
        torch.where(take, second.losses, first.losses),
        torch.where(first.step_of_success < 0, second.step_of_success, first.step_of_success),
        None if first.broken is None or second.broken is None else first.broken | second.broken,
        blocked,
        looks,
        {name: torch.where(take, second.told[name], values) for name, values in first.told.items()},
    )


def followed(first: Attacked, second: Attacked) -> Attacked:
    """Two attacks in a row, where the second went on from the images of the first and alone saw what is scored: images
    and `broken` are its own, and an image that it never saw broken has no step of success."""
    after = torch.where(first.step_of_success >= 0, first.step_of_success, second.step_of_success + len(first.losses))
    blocked, looks = second.blocked, second.looks
    if first.blocked is not None and first.looks is not None and blocked is not None and looks is not None:
        blocked = (first.blocked * first.looks + blocked * looks) / (first.looks + looks).clamp(min=1)
        looks = first.looks + looks
    return Attacked(
        second.images,
        torch.cat([first.losses, second.losses]),
        torch.where(second.step_of_success >= 0, after, -1),
        second.broken,
        blocked,
        looks,
    )


def in_turn(
    runs: Iterable[Callable[[Tensor, ImageDraws], Attacked]], n: int, draws: ImageDraws, stop_when_broken: bool
) -> Attacked:
    """The better of several runs, image by image; a run takes the indices of the images it attacks, and their draws.

    With `stop_when_broken` a run sees only those of the `n` images that no run before it saw broken.
    """
    rows, best = torch.arange(n, device=draws.seeds.device), None
    for run in runs:
        found = run(rows, draws)
        best = found if best is None else best.with_rows(rows, better_of(best.rows(rows), found))
        if stop_when_broken and best.broken is not None:
            left = ~best.broken[rows]
            rows, draws = rows[left], draws.rows(left)
            if not len(rows):
                break
    assert best is not None
    return best
