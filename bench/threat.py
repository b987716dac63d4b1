"""What the attacker attacks: a logits callable whose rows are counted. Attacks see nothing else of a model.

A threat says what the attacker knows. gray_box: the classifier alone. White-box routes know the defense too and differ
in the gradient they use; every route is run whatever a defense declares, since a declaration may be wrong:

- autograd: the true gradient through purification and classifier;
- bpda: the true value with the gradient of the defense's `surrogate_logits`, the identity unless it gives a stand-in
  (Athalye et al. 2018, arXiv:1802.00420);
- surrogate: the true value with the gradient of a small autoencoder that the harness trained to imitate `purify`.

Attackers who could not afford an inner search at every step may ask the defense in a hurry (Defense.hurried), along the
same route; what they find is scored on the whole one.

through_codes: white box, and the encoder and the decoder of the defense by themselves, so that the attacker may search
among codes instead of pixels.

score_only: the attacker may ask the whole defense for its logits and knows nothing else, no gradient and no weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from bench import draws
from bench.data import Split
from bench.defense import Defense, has_door
from bench.errors import unknown

Door = Callable[[Tensor, Generator], Tensor]  # a method of a defense that gives logits


class Target:
    """Logits of images (N, C, H, W) for an attacker, (N, K) or (draws, N, K), with every row counted both ways.

    The forward pass builds a graph only where the images require a gradient, and works on a copy: a model that writes
    to its input does not write to the attack's images. `forward_rows` and `backward_rows` are what an attack has spent:
    the units of its cost.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        in_a_hurry: Callable[[Tensor], Tensor] | None = None,
        classifier: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._logits = logits
        self._in_a_hurry = in_a_hurry or logits
        self._classifier = classifier
        self.forward_rows = 0
        self.backward_rows = 0

    def __call__(self, images: Tensor) -> Tensor:
        return self._answered(self._logits, images)

    def hurried(self, images: Tensor) -> Tensor:
        """Logits of the same model in a hurry, of the same shape; its rows count as any other. What cannot hurry is
        asked as a whole."""
        return self._answered(self._in_a_hurry, images)

    def classify(self, images: Tensor) -> Tensor:
        """Logits of the bare classifier, (N, K). Raises ValueError where the attacker is not given it."""
        if self._classifier is None:
            raise ValueError("this target has no bare classifier beside its logits")
        return self._answered(self._classifier, images)

    def _answered(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        logits = model(images.clone())
        self.forward_rows += logits.shape[:-1].numel()
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_rows += gradient.shape[:-1].numel()


def gray_box(classifier: Callable[[Tensor], Tensor]) -> Target:
    """The attacker knows the classifier and its weights, and does not know that a defense exists."""
    return Target(classifier)


def white_box(
    defense: Defense, route: str, *, eot: int, seed_parts: tuple[object, ...], surrogate: nn.Module | None = None
) -> Target:
    """The attacker knows the defense and its weights, and differentiates it along `route` (bench.protocol.ROUTES).

    A random defense answers with `eot` fresh draws, folded into the batch: (eot, N, K) (expectation over
    transformation, Athalye et al. 2018, arXiv:1707.07397). The draws of a call follow from `seed_parts` and the number
    of the call, so an attack is repeatable and never sees the draws that score it. `surrogate` maps images to purified
    ones and is needed for the route of that name. Raises BenchError for an unknown route.
    """

    def answers(asked: Defense) -> Door:
        return _door(asked, route, "white-box route", surrogate=_imitated(asked, surrogate))

    whole = _folded(defense, answers(defense), eot, seed_parts)
    return Target(whole, _in_a_hurry(defense, answers, eot, seed_parts), defense.classifier)


def acceptance(defense: Defense, route: str, *, threshold: float, eot: int, seed_parts: tuple[object, ...]) -> Target:
    """White box against a defense that may refuse: (N, K + 1) or (eot, N, K + 1), its logits and last the slack,
    `threshold` minus its rejection score, from the same draw as the logits.

    The logits have the gradient of `route`, "autograd" or "bpda", the slack always its own: the contract demands one.
    """
    door = _door(defense, route, "route past a detector")

    def answers(images: Tensor, generator: Generator) -> Tensor:
        state = generator.get_state()
        logits = door(images, generator)
        generator.set_state(state)
        slack = threshold - defense.rejection_score(images, generator)
        return torch.cat([logits, slack[:, None]], dim=1)

    return Target(_folded(defense, answers, eot, seed_parts))


def class_acceptance(defense: Defense, *, threshold: float, eot: int, seed_parts: tuple[object, ...]) -> Target:
    """White box against a defense that says what it expects of each class: (N, K + 1 + 2K) or (eot, N, K + 1 + 2K).

    The logits and the slack of `acceptance`, without a gradient, then the two `class_scores` of each class over
    `threshold`, all from one draw. Scores over a threshold that is not positive are infinite.
    """

    def answers(images: Tensor, generator: Generator) -> Tensor:
        state = generator.get_state()
        with torch.no_grad():
            logits = defense.logits(images, generator)
            generator.set_state(state)
            slack = threshold - defense.rejection_score(images, generator)
        generator.set_state(state)
        scores = defense.class_scores(images, generator)  # (N, K, 2)
        over = scores / threshold if threshold > 0 else torch.full_like(scores, torch.inf)
        return torch.cat([logits, slack[:, None], over.flatten(1)], dim=1)

    return Target(_folded(defense, answers, eot, seed_parts))


class Codes(Target):
    """A target whose encoder and decoder the attacker may use, as bench.attacks.ThroughCodes asks: each image sent
    through either, or through the bare classifier, is a row as well.

    Codes and images that are not finite, or of another number or shape, raise ValueError: an attack that went on with
    them would flatter the defense. Images beyond [0, 1] are clipped.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        defense: Defense,
        known: Split,
        in_a_hurry: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(logits, in_a_hurry, defense.classifier)
        self._defense = defense
        self.known_images, self.known_labels = known.images, known.labels

    def encode(self, images: Tensor) -> Tensor:
        """Codes (N, ...)."""
        codes = self._defense.encode(images.clone())
        return self._counted(_sound(codes, "encode", len(images)))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and log-variance, each (N, D); None where the defense has no posterior."""
        if not has_door(self._defense, "posterior"):
            return None
        mean, log_variance = self._defense.posterior(images.clone())
        mean = _sound(mean, "posterior", len(images))
        return self._counted(mean), _sound(log_variance, "posterior", len(images), mean.shape[1:])

    def start_codes(self, images: Tensor, starts: int, noise: draws.ImageDraws) -> Tensor:
        """So many random codes for each image, (N, starts, ...), an image's own: they depend on no other."""
        found = []
        asked = images if len(images) else images.new_zeros(1, *images.shape[1:])  # one shows the shape of a code
        own = noise.uniform(1).flatten().tolist() or [0.0]
        for image, number in zip(asked, own, strict=True):
            generator = draws.generator(images.device, "start codes", number)
            codes = self._defense.start_codes(image.expand(starts, *image.shape).clone(), generator)
            found.append(_sound(codes, "start_codes", starts))
        return torch.stack(found)[: len(images)]

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, C, H, W) from codes."""
        drawn = _sound(self._defense.decode(latents.clone()), "decode", len(latents), self.known_images.shape[1:])
        return self._counted(drawn + (drawn.clamp(0, 1) - drawn).detach())  # a clamp has no gradient at its ends

    def _counted(self, found: Tensor) -> Tensor:
        self.forward_rows += len(found)
        if found.requires_grad:
            found.register_hook(self._count_image)  # type: ignore[no-untyped-call]
        return found

    def _count_image(self, gradient: Tensor) -> None:
        self.backward_rows += len(gradient)


def _sound(found: Tensor, door: str, rows: int, shape: torch.Size | None = None) -> Tensor:
    """What a door gave, if it is one finite tensor a row, and of `shape` where that is known."""
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ValueError(f"{door} gave no tensor of floating point numbers")
    if found.ndim < 2 or len(found) != rows or (shape is not None and found.shape[1:] != shape):
        expected = "" if shape is None else f", expected {(rows, *shape)}"
        raise ValueError(f"{door} gave {tuple(found.shape)} for {rows} rows{expected}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{door} gave numbers that are not finite")
    return found


def through_codes(defense: Defense, route: str, *, eot: int, seed_parts: tuple[object, ...], known: Split) -> Codes:
    """The defense as `white_box` gives it, along `route` "autograd" or "bpda", and its encoder and decoder beside;
    `known` are images of the same data, none of them attacked here. Raises BenchError for another route."""

    def answers(asked: Defense) -> Door:
        return _door(asked, route, "route through codes")

    whole = _folded(defense, answers(defense), eot, seed_parts)
    return Codes(whole, defense, known, _in_a_hurry(defense, answers, eot, seed_parts))


def score_only(defense: Defense, *, eot: int, seed_parts: tuple[object, ...]) -> Target:
    """The attacker asks the whole defense for its logits and sees nothing else: they carry no gradient.

    A query of a random defense is answered by `eot` fresh draws, (eot, N, K), as in `white_box`: each costs its rows.
    """
    return Target(_without_gradient(_folded(defense, defense.logits, eot, seed_parts)))


def acceptance_score_only(defense: Defense, *, threshold: float, eot: int, seed_parts: tuple[object, ...]) -> Target:
    """The attacker asks a defense that may refuse for its logits and the slack of `acceptance`, and sees nothing else:
    (N, K + 1) or (eot, N, K + 1), without a gradient."""
    answers = acceptance(defense, "autograd", threshold=threshold, eot=eot, seed_parts=seed_parts)
    return Target(_without_gradient(answers))


def _without_gradient(answers: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def found(images: Tensor) -> Tensor:
        with torch.no_grad():
            return answers(images.detach()).detach()

    return found


def _door(defense: Defense, route: str, called: str, **more: Door) -> Door:
    """The method of the defense whose gradient `route` uses, or one of `more`. Raises BenchError for another route."""
    doors = {"autograd": defense.logits, "bpda": defense.surrogate_logits, **more}
    if route not in doors:
        raise unknown(called, route, doors)
    return doors[route]


def _folded(defense: Defense, door: Door, eot: int, seed_parts: tuple[object, ...]) -> Callable[[Tensor], Tensor]:
    """The logits behind `door`; those of a random defense in `eot` draws, (eot, N, K)."""
    calls = iter(range(2**62))

    def logits(images: Tensor) -> Tensor:
        generator = draws.generator(images.device, *seed_parts, next(calls))
        if not defense.stochastic:
            return door(images, generator)
        copies = images.repeat(eot, 1, 1, 1)
        if copies.requires_grad:  # a draw whose gradient is not finite must not spoil the others'
            copies.register_hook(lambda gradient: torch.nan_to_num(gradient, posinf=0.0, neginf=0.0))  # type: ignore[no-untyped-call]
        folded = door(copies, generator)  # (eot * N, K)
        return folded.view(eot, len(images), -1)

    return logits


def _in_a_hurry(
    defense: Defense, answers: Callable[[Defense], Door], eot: int, seed_parts: tuple[object, ...]
) -> Callable[[Tensor], Tensor] | None:
    """The logits behind the same door of the defense in a hurry, which is made when it is first asked; None for one
    that cannot hurry."""
    if not has_door(defense, "hurried"):
        return None

    @functools.cache
    def made() -> Callable[[Tensor], Tensor]:
        quick = defense.hurried()
        return _folded(quick, answers(quick), eot, (*seed_parts, "in a hurry"))

    return lambda images: made()(images)


def _imitated(defense: Defense, surrogate: nn.Module | None) -> Door:
    """The true value, with the gradient of the classifier behind `surrogate`."""

    def logits(images: Tensor, generator: Generator) -> Tensor:
        if surrogate is None:
            raise ValueError("there is no surrogate of this defense")
        return defense.true_value(images, generator, surrogate(images))

    return logits


def predictions(logits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The classes (N,) that a logits callable gives, without a gradient; of several draws, by their mean."""
    with torch.no_grad():
        scores = logits(images)  # (N, K) or (draws, N, K)
        return (scores if scores.ndim == 2 else scores.softmax(dim=2).mean(dim=0)).argmax(dim=1)
