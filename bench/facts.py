"""What a cell's record tells of a defense beside its answers: how its codes lie, and what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from bench.defense import Defense, Fact, has_door
from bench.progress import Progress

CHUNK = 256


def facts(
    defense: Defense, clean: Tensor, attacked: Tensor, labels: Tensor, correct: Tensor, progress: Progress
) -> Mapping[str, Fact]:
    """The defense's own facts, and the silhouette of its codes; six digits of each.

    `clean` and `attacked` are (N, C, H, W), `labels` and `correct` (N,). `silhouette` (Rousseeuw 1987) in [-1, 1] says
    how far apart the codes of the attacked images lie by their labels: near 1, classes are tight and separate. What
    cannot be computed is said and left out: no cell fails by it.
    """
    found: dict[str, Fact] = {}
    with torch.no_grad():
        try:
            if has_door(defense, "encode") and 1 < len(set(labels.tolist())) < len(labels):
                codes = torch.cat([defense.encode(chunk).flatten(1) for chunk in torch.split(attacked, CHUNK)])
                found["silhouette"] = float(silhouette_score(codes.cpu().numpy(), labels.cpu().numpy()))
            found |= {name: _plain(value) for name, value in defense.facts(clean, attacked, correct).items()}
        except Exception as problem:  # whatever a defense raises here
            progress.say(f"{type(defense).__name__} gives no facts: {type(problem).__name__}: {problem}")
    return {name: _rounded(value) for name, value in found.items() if _is_finite(value)}


def _plain(value: Fact) -> Fact:
    return tuple(float(part) for part in value) if isinstance(value, tuple | list) else float(value)


def _is_finite(value: Fact) -> bool:
    return all(map(math.isfinite, value if isinstance(value, tuple) else (value,)))


def _rounded(value: Fact) -> Fact:
    return tuple(map(_six, value)) if isinstance(value, tuple) else _six(value)


def _six(value: float) -> float:
    return float(f"{value:.6g}")
