"""Auto-PGD on a defense whose purification is a search: most steps ask it in a hurry, the last ones the whole of it.

A search of two thousand steps at each step of an attack is more than an attacker can spend; Athalye et al. (2018,
arXiv:1802.00420) attack such a defense through a cheaper search. What fools the hurried defense need not fool the whole
one, so the last steps look at that, and it alone says which image is broken. An attacker who knows the defense knows
its classifier, too, and may begin with what fools that.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from bench.attacks import Attacked, Hurrying, balls, followed, in_turn, look, losses, where
from bench.attacks.apgd import ascend
from bench.attacks.gradient_steps import pgd
from bench.draws import ImageDraws

FIRST_STEP = 0.5  # from a good place, in units of eps: of the last steps, and after a blind attack
BLIND_STEPS, BLIND_STEP = 40, 0.01  # of the blind attack, as the boards' gray-box PGD takes them


def hurried_apgd(
    model: Hurrying,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    loss: str = "margin",
    steps: int = 40,
    last_steps: int = 10,
    restarts: int = 1,
    start: str = "random",
    stop_when_broken: bool = False,
) -> Attacked:
    """Auto-PGD (bench.attacks.apgd) of `steps` against the model in a hurry from each of `restarts` random starts, then
    of `last_steps` against the whole one, from each image's best. `loss` is that of all steps.

    With start="gray_box" the first start is the image that PGD against the bare classifier came by (40 steps of 0.01,
    or of 1.25 eps / 40 where that is more, from a random start), and the last steps begin there, too, where the whole
    model fares worse on it than on what the hurried steps made of it. So what the blind attack breaks of a
    deterministic defense is broken, whatever its gradients in a hurry are worth.

    No image leaves in a hurry; in the last steps returned images, draws and `stop_when_broken` are as in
    bench.attacks.apgd. `broken` images are those that the whole model gets wrong; their step of success is the first at
    which the model that was asked then got them wrong. Raises ValueError for eps < 0, steps < 1, last_steps < 1,
    restarts < 1, another start or an unknown norm.
    """
    if eps < 0 or steps < 1 or last_steps < 1 or restarts < 1:
        raise ValueError(
            "hurried_apgd needs eps >= 0, steps >= 1, last_steps >= 1 and restarts >= 1, got "
            f"{eps}, {steps}, {last_steps}, {restarts}"
        )
    if start not in ("random", "gray_box"):
        raise ValueError(f"hurried_apgd needs start 'random' or 'gray_box', got {start!r}")
    raised, ball, blind = losses.get(loss), balls.get(norm), None
    if start == "gray_box":
        step_size = max(BLIND_STEP, 1.25 * eps / BLIND_STEPS)
        blind = pgd(
            model.classify, images, labels, eps=eps, draws=draws, norm=norm, steps=BLIND_STEPS, step_size=step_size
        ).images

    def run(rows: Tensor, noise: ImageDraws) -> Attacked:
        begin = ball.start(images[rows], eps, noise)
        return ascend(model.hurried, images[rows], labels[rows], None, begin, eps, ball, raised, steps, False)

    def warm(rows: Tensor, noise: ImageDraws) -> Attacked:
        assert blind is not None
        return ascend(
            model.hurried, images[rows], labels[rows], None, blind[rows], eps, ball, raised, steps, False, FIRST_STEP
        )

    runs = [run] * restarts if blind is None else [warm, *[run] * (restarts - 1)]
    found = in_turn(runs, len(images), draws, False)
    if blind is not None:
        found = replace(found, images=_worse(model, found.images, blind, labels, raised))
    return at_last(model, images, labels, found, eps, ball, raised, last_steps, stop_when_broken)


def _worse(model: Hurrying, images: Tensor, others: Tensor, labels: Tensor, loss: losses.Loss) -> Tensor:
    """Of each image and its other version that on which the whole model fares worse: a broken one, else the one of
    higher loss; with draws, as one lucky draw proves nothing, by the mean loss alone."""
    one, other = (look(model, some, labels, loss, last=True) for some in (images, others))
    first, second = (seen.broken & seen.certain for seen in (one, other))
    return where((second & ~first) | ((first == second) & (other.loss > one.loss)), others, images)


def at_last(
    model: Hurrying,
    images: Tensor,
    labels: Tensor,
    found: Attacked,
    eps: float,
    ball: balls.Ball,
    loss: losses.Loss,
    steps: int,
    stop_when_broken: bool,
) -> Attacked:
    """What was `found` in a hurry for each of the `images`, and Auto-PGD of `steps` from there against the whole
    model."""
    start = found.images
    whole = ascend(model, images, labels, None, start, eps, ball, loss, steps, stop_when_broken, first_step=FIRST_STEP)
    return followed(found, whole)
