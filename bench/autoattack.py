"""A yardstick: the four attacks of Croce and Hein 2020 (arXiv:2003.01690), each on the images that held so far.

Not part of a protocol: for deterministic, differentiable models, beside numbers that others measured with the same four
at the same settings. tests/test_auto_attack.py holds images and rows against the published code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import attacks
from bench.attacks import Logits, losses, where
from bench.draws import ImageDraws

STAGES = ("none", "apgd_ce", "apgd_t", "fab_t", "square")


@dataclass(frozen=True)
class Standing:
    """What is left of a batch: `images` (N, C, H, W), and `broken_by` int64 (N,), the number in STAGES, -1 if it held.

    An image that held is returned clean.
    """

    images: Tensor
    broken_by: Tensor

    @property
    def broken(self) -> Tensor:
        """Which images are misclassified, (N,)."""
        return self.broken_by >= 0

    def accuracy_after(self) -> dict[str, float]:
        """The share of images that hold against this stage and all before it; "none" is clean accuracy."""
        return {
            name: float((~self.broken | (self.broken_by > stage)).double().mean()) for stage, name in enumerate(STAGES)
        }


def autoattack(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    stop_when_broken: bool = True,
) -> Standing:
    """Auto-PGD on the cross-entropy, on the targeted DLR, FAB-T and Square, at the settings of the standard version.

    Images (N, C, H, W) in [0, 1], labels int64 (N,), `logits` (N, K); norm "linf" or "l2". A class, too, is attacked
    only where those before it failed. With `stop_when_broken=False` every gradient attack ends its run of `steps`
    before broken images leave, as published: the same images break, for more rows. Images count as broken where a last
    look at all of them says so. Raises ValueError for logits with draws, and what the attacks raise.
    """
    with torch.no_grad():
        scores = logits(images)
    if scores.ndim != 2:
        raise ValueError(f"autoattack needs a deterministic model's logits (N, K), got {tuple(scores.shape)}")
    found, broken_by = images.clone(), torch.where(losses.is_broken(scores, labels), 0, -1)
    held = broken_by < 0
    rows, noise = held.nonzero().squeeze(1), draws.rows(held)
    for name, settings in _runs(steps, min(targets, scores.shape[1] - 1), queries, stop_when_broken):
        if not len(rows):
            break
        result = attacks.get(name)(logits, images[rows], labels[rows], eps=eps, draws=noise, norm=norm, **settings)
        assert result.broken is not None
        found[rows] = where(result.broken, result.images, images[rows])
        broken_by[rows] = torch.where(result.broken, STAGES.index(name), -1)
        rows, noise = rows[~result.broken], noise.rows(~result.broken)
    with torch.no_grad():
        broken = losses.is_broken(logits(found), labels)
    return Standing(where(broken, found, images), torch.where(broken, broken_by, -1))


def _runs(steps: int, targets: int, queries: int, stop_when_broken: bool) -> Iterator[tuple[str, dict[str, int]]]:
    """The attacks and their settings, one wrong class at a time."""
    run = {"steps": steps, "stop_when_broken": stop_when_broken}
    yield "apgd_ce", run
    for name in ("apgd_t", "fab_t"):
        for target in range(1, targets + 1):
            yield name, {**run, "targets": 1, "first_target": target}
    yield "square", {"queries": queries, "stop_when_broken": True}
