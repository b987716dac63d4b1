"""Auto-PGD on a defense whose purification is a search: most steps ask it in a hurry, the last ones the whole of it.

A search of two thousand steps at each step of an attack is more than an attacker can spend; Athalye et al. (2018,
arXiv:1802.00420) attack such a defense through a cheaper search. What fools the hurried defense need not fool the whole
one, so the last steps look at that, and it alone says which image is broken.
"""

from __future__ import annotations

from torch import Tensor

from bench.attacks import Attacked, Hurrying, balls, followed, in_turn, losses
from bench.attacks.apgd import ascend
from bench.draws import ImageDraws

FIRST_STEP = 0.5  # of the last steps, in units of eps: they go on from a good place


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
    stop_when_broken: bool = False,
) -> Attacked:
    """Auto-PGD (bench.attacks.apgd) of `steps` against the model in a hurry from each of `restarts` random starts, then
    of `last_steps` against the whole one, from each image's best.

    No image leaves in a hurry; in the last steps returned images, draws and `stop_when_broken` are as in
    bench.attacks.apgd. `broken` images are those that the whole model gets wrong; their step of success is the first at
    which the model that was asked then got them wrong. Raises ValueError for eps < 0, steps < 1, last_steps < 1,
    restarts < 1 or an unknown norm.
    """
    if eps < 0 or steps < 1 or last_steps < 1 or restarts < 1:
        raise ValueError(
            "hurried_apgd needs eps >= 0, steps >= 1, last_steps >= 1 and restarts >= 1, got "
            f"{eps}, {steps}, {last_steps}, {restarts}"
        )
    raised, ball = losses.get(loss), balls.get(norm)

    def run(rows: Tensor, noise: ImageDraws) -> Attacked:
        start = ball.start(images[rows], eps, noise)
        return ascend(model.hurried, images[rows], labels[rows], None, start, eps, ball, raised, steps, False)

    found = in_turn([run] * restarts, len(images), draws, False)
    return at_last(model, images, labels, found, eps, ball, raised, last_steps, stop_when_broken)


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
