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
        ahead, back = each_image(spec)
        images, draws = min(asked.n_examples, spec.n_examples or asked.n_examples), spec.eot(stochastic=stochastic)
        learn_ahead, learn_back = learning(spec)
        once = ATTACKS[spec.attack].once(**dict(spec.params)) * -(-images // device.CHUNK_CPU)
        forward += (ahead * images + learn_ahead) * draws + once
        backward += (back * images + learn_back) * draws
    return forward, backward


def each_image(spec: AttackSpec) -> tuple[int, int]:
    """The rows that an attack sends forward and backward for each image and draw, with those that predict labels."""
    forward, backward = ATTACKS[spec.attack].cost(**dict(spec.params))
    return forward + spec.predicts_labels, backward


def learning(spec: AttackSpec) -> tuple[int, int]:
    """The rows that an attack sends forward and backward in each draw before it attacks, once a cell."""
    return ATTACKS[spec.attack].learning_cost(**dict(spec.params))


def labels_asked(specs: Iterable[AttackSpec], trainings: int = 1) -> str:
    """How many labels are asked for to train the nets of these attacks, or nothing."""
    nets = {spec.origin for spec in specs if spec.origin and spec.origin.kind in ("substitute", "imitation")}
    return f", {len(nets) * trainings * substitutes.PAPERNOT.queries:,} labels asked of it" if nets else ""
