"""Images that a defense with an encoder takes for another image, one of another class: attacks on its codes.

Inside a ball (Kos, Fischer and Song 2018, arXiv:1702.06832: the latent attack and the L_VAE attack), or with a price on
the change (Tabacof, Tavares and Valle 2016, arXiv:1612.00155, and Kos et al.'s optimised form). None of them looks at
the logits while it searches: that a classifier errs as well is what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from bench.attacks import Attacked, ThroughCodes, Watch, balls, gradient_of, in_turn, is_blocked, losses, where
from bench.attacks.box_minimum import minimise
from bench.draws import ImageDraws
from bench.errors import unknown

PIECE = 256  # known images that are encoded at once
SOFTENING = 1e-4  # keeps the cross-entropy of a pixel that is drawn as 0 or 1 finite, and its gradient alive
CHOICES = ("nearest", "random")
PRICES = ("absolute", "relative")


@dataclass(frozen=True)
class Seen:
    """Images (N, C, H, W) and what an encoder makes of them: codes (N, ...), the posterior's log-variance if any."""

    images: Tensor
    codes: Tensor
    log_variance: Tensor | None

    @classmethod
    def by(cls, model: ThroughCodes, images: Tensor) -> Seen:
        """One row an image: the codes of a posterior are its means."""
        posterior = model.posterior(images)
        return cls(images, model.encode(images), None) if posterior is None else cls(images, *posterior)

    def rows(self, rows: Tensor) -> Seen:
        """What was made of the images at the indices `rows`."""
        return Seen(self.images[rows], self.codes[rows], None if self.log_variance is None else self.log_variance[rows])


# ---------------------------------------------------------------------------------------------- goals


def distance(seen: Seen, target: Seen) -> Tensor:
    """The squared distance of the codes, (N,)."""
    return _squares(seen.codes - target.codes)


def divergence(seen: Seen, target: Seen) -> Tensor:
    """The Kullback-Leibler divergence of the posteriors, KL(seen || target), (N,); without them, `distance`."""
    if seen.log_variance is None or target.log_variance is None:
        return distance(seen, target)
    wider = seen.log_variance - target.log_variance
    apart = (seen.codes - target.codes).square() * (-target.log_variance).exp()
    return 0.5 * (wider.exp() + apart - 1 - wider).sum(dim=1)


def published_divergence(seen: Seen, target: Seen) -> Tensor:
    """The divergence as Tabacof et al.'s code has it, with exp(l / 2) where the variances exp(l) belong: the sum of
    (exp(l / 2) + (m - m')^2) / exp(l' / 2) + l' - l - 1/2, lowest past the target; without posteriors, `distance`."""
    if seen.log_variance is None or target.log_variance is None:
        return distance(seen, target)
    wider = seen.log_variance - target.log_variance
    apart = (seen.codes - target.codes).square() * (-0.5 * target.log_variance).exp()
    return ((0.5 * wider).exp() + apart - 0.5 - wider).sum(dim=1)


MEASURES: Mapping[str, Callable[[Seen, Seen], Tensor]] = MappingProxyType(
    {"distance": distance, "divergence": divergence, "as_published": published_divergence}
)
GOALS = (*MEASURES, "vae_loss")


def vae_loss(model: ThroughCodes, seen: Seen, target: Tensor, kl_weight: float = 1.0) -> Tensor:
    """The loss of a VAE that is to draw the images `target`, (N,): their cross-entropy against the reconstruction, and
    `kl_weight` times the divergence of the posterior from the prior N(0, I), both summed; without a posterior, the
    first alone.

    The posterior's mean is decoded, where training draws from it.
    """
    drawn = SOFTENING + (1 - 2 * SOFTENING) * model.decode(seen.codes)
    error = -(target * drawn.log() + (1 - target) * (1 - drawn).log()).flatten(1).sum(dim=1)
    if seen.log_variance is None or kl_weight == 0:
        return error
    prior = 0.5 * (seen.log_variance.exp() + seen.codes.square() - 1 - seen.log_variance).sum(dim=1)
    return error + kl_weight * prior


def _goal(model: ThroughCodes, name: str, kl_weight: float, target: Seen) -> Callable[[Tensor], Tensor]:
    """What is minimised, (N,), as a function of images: how far they are from `target`."""
    if name not in GOALS:
        raise unknown("goal", name, GOALS)
    if not kl_weight >= 0:
        raise ValueError(f"attacks towards an image need kl_weight >= 0, got {kl_weight}")

    def value(images: Tensor) -> Tensor:
        seen = Seen.by(model, images)
        if name == "vae_loss":
            return vae_loss(model, seen, target.images, kl_weight)
        return MEASURES[name](seen, target)

    return value


def _squares(difference: Tensor) -> Tensor:
    return difference.flatten(1).square().sum(dim=1)


def _or_one(sizes: Tensor) -> Tensor:
    """The sizes (N,) to divide by; 1 for those that are no number above 0."""
    return torch.where(sizes.isfinite() & (sizes > 0), sizes, 1.0)


# ---------------------------------------------------------------------------------------------- attacks


def in_ball(
    model: ThroughCodes,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    goal: str = "distance",
    kl_weight: float = 1.0,
    norm: str = "linf",
    steps: int = 40,
    targets: int = 3,
    choice: str = "nearest",
    known: int = 500,
    stop_when_broken: bool = False,
) -> Attacked:
    """The image of the ball whose code is nearest to that of a target image (Kos et al.'s latent attack, `goal`
    "distance"), or whose reconstruction is ("vae_loss", their L_VAE attack, in which the prior counts `kl_weight`: a
    defense that was trained without it has codes far from the prior, and 0 looks at the reconstruction alone).

    Steepest descent from the clean image: one step of `eps`, then shorter ones that shrink evenly from `eps` / 2; the
    lowest value after any step is kept. With `steps=1` that is the paper's form, one step as FGSM makes it.

    Each image is aimed at `targets` of the first `known` images that the attacker has, one of each other class: those
    with the nearest codes, or random ones (`choice`). The whole defense is asked about the clean image and about what
    each target gave: one that it gets wrong is returned, else the one nearest to its target; an image that is wrong
    when clean is returned so unless another is. An answer with draws is no proof: there the nearest is returned. With
    `stop_when_broken` an image that is broken is aimed at no further target. `told` is as in `penalised`. Raises
    ValueError for settings that make no sense, or known images of one class alone.
    """
    if eps < 0 or steps < 1:
        raise ValueError(f"attacks towards an image need eps >= 0 and steps >= 1, got {eps}, {steps}")
    ball = balls.get(norm)

    def search(centre: Tensor, _: Tensor, objective: Callable[[Tensor], Tensor], look: _Look) -> _Searched:
        current, curve = centre, []
        best, lowest = centre, torch.full_like(centre[:, 0, 0, 0], torch.inf)
        for step in range(steps + 1):
            value, gradient = look(objective, current, last=step == steps)
            curve.append(value)
            if step > 0:
                lower = (value < lowest) | (step == 1)
                best, lowest = where(lower, current, best), torch.where(lower, value, lowest)
            if step < steps:
                size = torch.full_like(value, eps * (1 if step == 0 else 0.5 * (1 - step / steps)))
                current = ball.project(ball.step(current, -gradient, size), centre, eps)
        return best, torch.stack(curve)

    return _each_target(
        model, images, labels, draws, partial(_goal, model, goal, kl_weight), search, steps=steps, targets=targets,
        choice=choice, known=known, stop_when_broken=stop_when_broken, keeps_wrong=True,
    )  # fmt: skip


def penalised(
    model: ThroughCodes,
    images: Tensor,
    labels: Tensor,
    *,
    draws: ImageDraws,
    goal: str = "divergence",
    kl_weight: float = 1.0,
    constant: float = 1.0,
    price: str = "absolute",
    steps: int = 100,
    targets: int = 1,
    choice: str = "random",
    known: int = 500,
) -> Attacked:
    """The image that minimises its distance from a target image's code + `constant` * |change|^2 within [0, 1].

    What a constant is worth depends on how long codes are and how wide posteriors: where training put no weight on the
    prior, divergences are a thousand times as large. With the `price` "relative" the goal counts as a share of what it
    is between the clean image and its target, the change as a share of the way there: no change longer than
    1 / sqrt(constant) of it is then worth its price.

    Tabacof et al.'s attack: the distance is the divergence of the posteriors (`goal` "divergence"), or the squared
    distance of the codes where there is none ("distance"); "as_published" is what their code computes. Kos et al.'s
    optimised attacks are "distance" and "vae_loss", their lambda the constant. The targets are chosen as in `in_ball`;
    of several the one is returned that fools the whole defense, else that of the lowest objective.

    `told`: `distortion`, the L2 norm of the change; `relative_distortion`, over the distance to the target image;
    `relative_code_distance`, what is left of the divergence (squared distance) between the codes of clean and target
    image, and `relative_reconstruction_distance`, of the distance (L2) between their reconstructions: 1 where nothing
    was gained, 0 where the target is reached. Over several constants they draw a curve (bench.distortion_curve).

    Deviations: the paper runs SciPy's L-BFGS-B to its end from a change of U(-1e-8, 1e-8), at 100 constants from 2^-20
    to 2^20; here a projected L-BFGS looks `steps` + 1 times at each image and starts at the clean one. Raises
    ValueError for settings that make no sense, or known images of one class alone.
    """
    if not constant >= 0 or steps < 1:
        raise ValueError(f"attacks towards an image need constant >= 0 and steps >= 1, got {constant}, {steps}")
    if price not in PRICES:
        raise unknown("price", price, PRICES)

    def search(centre: Tensor, target: Tensor, objective: Callable[[Tensor], Tensor], look: _Look) -> _Searched:
        far = way = torch.ones_like(centre[:, 0, 0, 0])
        if price == "relative":
            with torch.no_grad():
                far, way = _or_one(objective(centre) - objective(target)), _or_one(_squares(target - centre))

        def priced(changed: Tensor) -> Tensor:
            return objective(changed) / far + constant * _squares(changed - centre) / way

        return minimise(partial(look, priced), centre, steps)

    return _each_target(
        model, images, labels, draws, partial(_goal, model, goal, kl_weight), search, steps=steps, targets=targets,
        choice=choice, known=known, stop_when_broken=False, keeps_wrong=False,
    )  # fmt: skip


@dataclass(frozen=True)
class _Look:
    """Looks at images on behalf of a search, and notes where the gradient was of no use."""

    watch: Watch
    broken: Tensor  # (N,) before the search

    def __call__(
        self, objective: Callable[[Tensor], Tensor], images: Tensor, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The objective (N,), infinite where it is not a number, and its gradient; at the `last` look none, zeros."""
        with torch.set_grad_enabled(not last):
            looked = images.detach().requires_grad_(not last)
            value = objective(looked)
            gradient, value = gradient_of(value, looked), value.detach()
        if not last:  # a search that has arrived needs no gradient
            everyone = torch.arange(len(images), device=images.device)
            self.watch.note(everyone, self.broken, is_blocked(gradient) & ~(value == 0))
        return torch.nan_to_num(value, nan=torch.inf, posinf=torch.inf), torch.nan_to_num(
            gradient, posinf=0.0, neginf=0.0
        )


_Searched = tuple[Tensor, Tensor]
_Search = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor], _Look], _Searched]


def _each_target(
    model: ThroughCodes,
    images: Tensor,
    labels: Tensor,
    draws: ImageDraws,
    goal: Callable[[Seen], Callable[[Tensor], Tensor]],
    search: _Search,
    *,
    steps: int,
    targets: int,
    choice: str,
    known: int,
    stop_when_broken: bool,
    keeps_wrong: bool,
) -> Attacked:
    """The best of one search an image and target; `search` maps clean images, target images, what is to be minimised
    and how to look at it to images and the values (steps + 1, N) on the way. With `keeps_wrong` an image that is wrong
    when clean is returned so rather than as one that is right."""
    with torch.no_grad():
        wrong, certain = _is_wrong(model, images, labels)
        clean = Seen.by(model, images)
        clean_drawn = model.decode(clean.codes)
        chosen = _targets(model, clean, labels, draws, targets, choice, known)  # (N, targets)

    def run(index: Tensor, rows: Tensor, _: ImageDraws) -> Attacked:
        start, watch, was_wrong = clean.rows(rows), Watch(images[rows]), wrong[rows]
        with torch.no_grad():
            target = Seen.by(model, model.known_images[index[rows]].to(images.dtype))
        found, curve = search(start.images, target.images, goal(target), _Look(watch, was_wrong & certain))
        with torch.no_grad():
            now_wrong = _is_wrong(model, found, labels[rows])[0]
            back = was_wrong & ~now_wrong & (certain and keeps_wrong)
            found, now_wrong = where(back, start.images, found), now_wrong | back
            told = _told(model, start, clean_drawn[rows], target, Seen.by(model, found))
        success = torch.where(now_wrong, steps, -1)
        return Attacked(
            found.clone(), -curve, torch.where(was_wrong, 0, success), now_wrong & certain, watch.share(), watch.looks,
            told,
        )  # fmt: skip

    runs = [partial(run, index) for index in chosen.unbind(dim=1)]
    return in_turn(runs, len(images), draws, stop_when_broken)


def _is_wrong(model: ThroughCodes, images: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
    """Which images (N,) the whole defense misclassifies, in most draws; and whether that proves anything."""
    scores = model(images)
    return losses.is_broken(scores, labels), scores.ndim == 2


def _told(model: ThroughCodes, clean: Seen, clean_drawn: Tensor, target: Seen, found: Seen) -> dict[str, Tensor]:
    """What `penalised` says that it tells, (N,) each; of two images that are alike from the start, nothing is left."""
    drawn, target_drawn = model.decode(found.codes), model.decode(target.codes)
    distortion = _squares(found.images - clean.images).sqrt()

    def left(now: Tensor, before: Tensor) -> Tensor:
        return torch.where(before > 0, now / before, 0.0)

    return {
        "distortion": distortion,
        "relative_distortion": left(distortion, _squares(target.images - clean.images).sqrt()),
        "relative_code_distance": left(divergence(found, target), divergence(clean, target)),
        "relative_reconstruction_distance": left(
            _squares(drawn - target_drawn).sqrt(), _squares(clean_drawn - target_drawn).sqrt()
        ),
    }


# ---------------------------------------------------------------------------------------------- whom to be like


def _targets(
    model: ThroughCodes, clean: Seen, labels: Tensor, draws: ImageDraws, targets: int, choice: str, known: int
) -> Tensor:
    """The indices of up to `targets` known images for each image, one of each other class, best first: (N, targets)."""
    if choice not in CHOICES:
        raise unknown("choice", choice, CHOICES)
    known_labels = model.known_labels[:known]
    classes = torch.unique(known_labels)
    if targets < 1 or len(classes) < 2:
        raise ValueError(
            f"attacks towards an image need targets >= 1 and known images of at least two classes, got {targets} "
            f"targets and {len(known_labels)} known images of {len(classes)} classes"
        )
    if choice == "random":
        far = draws.uniform(len(known_labels))
    else:
        pieces = torch.split(model.known_images[:known].to(clean.images.dtype), PIECE)
        held = torch.cat([Seen.by(model, piece).codes.flatten(1) for piece in pieces])
        far = torch.cdist(clean.codes.flatten(1), held, compute_mode="donot_use_mm_for_euclid_dist")  # (N, M)
        far = far.nan_to_num(nan=torch.inf)
    best, worth = [], []
    for one in classes.tolist():  # the best known image of each class
        rows = (known_labels == one).nonzero()[:, 0]
        value, place = far[:, rows].min(dim=1)
        best.append(rows[place])
        worth.append(torch.where(labels == one, torch.inf, value))
    order = torch.stack(worth, dim=1).argsort(dim=1, stable=True)[:, : min(targets, len(classes) - 1)]
    return torch.stack(best, dim=1).gather(1, order)
