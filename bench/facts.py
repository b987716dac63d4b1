"""What a cell's record tells of a defense beside its answers: how its codes lie, and what it says of itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from bench import latent_map, seeds, training
from bench.defense import Defense, Fact, has_door
from bench.progress import Progress
from bench.record import MAP, TOLD

CHUNK = 256
MOST_FACTS, LONGEST_NAME, LONGEST_TUPLE = 64, 80, 1000  # of one record


def facts(
    defense: Defense,
    clean: Tensor,
    attacked: Tensor,
    labels: Tensor,
    correct: Tensor,
    progress: Progress,
    *,
    with_map: bool = False,
) -> Mapping[str, Fact]:
    """The defense's own facts, and those of its codes: how they lie, and how they moved; six digits of each.

    `clean` and `attacked` are (N, C, H, W), `labels` and `correct` (N,). `silhouette` (Rousseeuw 1987) in [-1, 1] says
    how far apart the codes of the attacked images lie by their labels: near 1, classes are tight and separate.
    `codes_moved` is the median distance that they moved, `codes_astray` the share of the first images whose
    nearest clean code is of another class, and the map is drawn `with_map` alone: bench.latent_map. A copy of the
    defense is asked, so that nothing it does here reaches its classifier, its weights or what it answers later; one in
    a process of its own is asked in another one. What cannot be computed, or cannot be kept, is said and left out: no
    cell fails by it.
    """
    found: dict[str, Fact] = {}
    has_codes = has_door(defense, "encode") and 1 < len(set(labels.tolist())) < len(labels)
    if not (has_codes or has_door(defense, "facts")):
        return found
    with torch.no_grad(), training.global_seed(seeds.derive("facts")):
        try:
            asked = copy.deepcopy(defense)
            if has_codes:
                codes, classes = _codes(asked, attacked), labels.cpu().numpy()
                found["silhouette"] = float(silhouette_score(codes.cpu().numpy(), classes))
                before = codes if torch.equal(clean, attacked) else _codes(asked, clean)
                pair = before.float().cpu().numpy(), codes.float().cpu().numpy()
                found["codes_moved"] = latent_map.moved(*pair, classes)
                near = latent_map.neighbours(*pair, classes)
                found["codes_astray"] = float((near != classes[: len(near)]).mean())
                found |= latent_map.drawn(*pair, near) if with_map else {}
            found = {**_checked(asked.facts(clean, attacked, correct)), **found}
        except (Exception, SystemExit) as problem:  # whatever a defense raises here
            progress.say(f"{type(defense).__name__} gives no facts: {type(problem).__name__}: {problem}")
    return {name: _rounded(value) for name, value in found.items() if _is_finite(value)}


def _codes(defense: Defense, images: Tensor) -> Tensor:
    return torch.cat([defense.encode(chunk).flatten(1) for chunk in torch.split(images, CHUNK)])  # (N, D)


def _checked(told: Mapping[str, Fact]) -> dict[str, Fact]:
    """What a defense tells, as a record can hold it. Raises ValueError or TypeError for what a record cannot."""
    if not isinstance(told, Mapping) or len(told) > MOST_FACTS:
        raise ValueError(f"facts are a mapping of at most {MOST_FACTS} names")
    for name, value in told.items():
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise ValueError(f"a fact's name is text of 1 to {LONGEST_NAME} printable characters")
        if name.startswith(TOLD):
            raise ValueError(f"{name!r} is a name for what attacks tell; call it something else")
        if name.startswith(MAP):
            raise ValueError(f"names that begin with {MAP} are for the maps that the harness draws")
        if isinstance(value, tuple | list) and len(value) > LONGEST_TUPLE:
            raise ValueError(f"{name} holds {len(value)} numbers, at most {LONGEST_TUPLE} are kept")
    return {name: _plain(value) for name, value in told.items()}


def _plain(value: Fact) -> Fact:
    return tuple(map(_number, value)) if isinstance(value, tuple | list) else _number(value)


def _number(value: object) -> float:
    if isinstance(value, str | bytes):  # float() would read some
        raise TypeError(f"a fact is a number or a tuple of numbers, got {type(value).__name__}")
    return float(value)  # type: ignore[arg-type]


def _is_finite(value: Fact) -> bool:
    return all(map(math.isfinite, value if isinstance(value, tuple) else (value,)))


def _rounded(value: Fact) -> Fact:
    return tuple(map(_six, value)) if isinstance(value, tuple) else _six(value)


def _six(value: float) -> float:
    return float(f"{value:.6g}")
