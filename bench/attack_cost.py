"""What attacks cost, counted before they run: rows there and back, and labels asked of a defense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import device, substitutes
from bench.catalog import ATTACKS
from bench.protocol import AttackSpec, Protocol


def rows(specs: Sequence[AttackSpec], asked: Protocol, *, stochastic: bool = False) -> tuple[int, int]:
    """The rows that attacks send forward and backward on all images, in every draw that they average over, and those
    that they learn from first."""
    forward = backward = 0
    for spec in specs:
        ahead, back = each_image(spec, stochastic=stochastic)
        images = min(asked.n_examples, spec.n_examples or asked.n_examples)
        learn_ahead, learn_back = learning(spec, stochastic=stochastic)
        once = ATTACKS[spec.attack].once(**dict(spec.params)) * -(-images // device.CHUNK_CPU)
        forward += ahead * images + learn_ahead + once
        backward += back * images + learn_back
    return forward, backward


def each_image(spec: AttackSpec, *, stochastic: bool = False) -> tuple[int, int]:
    """The rows that an attack sends forward and backward for each image, in every draw that it averages over, with
    those that predict labels."""
    info, params = ATTACKS[spec.attack], dict(spec.params)
    forward, backward = info.cost(**params)
    draws = spec.eot(stochastic=stochastic)
    return _in_draws((forward + spec.predicts_labels, backward), info.undrawn(**params), draws)


def hurried(spec: AttackSpec, *, stochastic: bool = False) -> tuple[int, int]:
    """Those of `each_image` that go to a defense in a hurry, where it can."""
    forward, backward = ATTACKS[spec.attack].hurried(**dict(spec.params))
    draws = spec.eot(stochastic=stochastic)
    return forward * draws, backward * draws


def learning(spec: AttackSpec, *, stochastic: bool = False) -> tuple[int, int]:
    """The rows that an attack sends forward and backward, in every draw, before it attacks, once a cell."""
    info, params = ATTACKS[spec.attack], dict(spec.params)
    draws = spec.eot(stochastic=stochastic)
    return _in_draws(info.learning_cost(**params), info.learning_undrawn(**params), draws)


def _in_draws(rows: tuple[int, int], undrawn: tuple[int, int], draws: int) -> tuple[int, int]:
    """The rows, but the `undrawn` ones of them, once a draw: what asks no random defense is sent once."""
    ahead, back = (once + (every - once) * draws for every, once in zip(rows, undrawn, strict=True))
    return ahead, back


def labels_asked(specs: Iterable[AttackSpec], trainings: int = 1) -> str:
    """How many labels are asked for to train the nets of these attacks, or nothing."""
    nets = {spec.origin for spec in specs if spec.origin and spec.origin.kind in ("substitute", "imitation")}
    return f", {len(nets) * trainings * substitutes.PAPERNOT.queries:,} labels asked of it" if nets else ""
