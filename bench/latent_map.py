"""How an attack moves a defense's codes: by how much, next to which clean ones, and on a map in two dimensions.

A map is made for a few cells of a defense and is a picture: nothing is ranked by it. Its axes mean nothing, and
another machine draws another one (`bench.record.MAP`); which images lie beside which is what can be read off it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bench.protocol import Protocol
from bench.record import MAP

MOST, LEAST = 200, 20  # images whose neighbours are looked for and that are mapped: the cell's first ones
TRACKS = ("gray_box", "white_box", "latent", "rejection")  # whose attackers know a model and follow its gradient
Codes = NDArray[np.floating]  # (N, D)


def mapped(protocol: Protocol) -> frozenset[str]:
    """The slugs of the cells that are given a map: the clean images and, at the largest radius that results are quoted
    at, one independent attack of each of TRACKS, the first of those with the most steps."""
    chosen = {"clean.none"} if protocol.headline_radii else set()
    for track in TRACKS:
        usual = [
            spec for spec in protocol.attacks
            if spec.track == track and spec.variant in ("", "cold") and not spec.cascade
            and spec.norm == "linf" and spec.eps in protocol.headline_radii[-1:]
        ]  # fmt: skip
        if usual:
            chosen.add(max(usual, key=lambda spec: int(dict(spec.params).get("steps", 0))).slug)
    return frozenset(chosen)


def moved(clean: Codes, attacked: Codes, labels: NDArray[np.int64]) -> float:
    """The median distance from an image's code to that of the same image attacked, in units of the root mean square
    distance of two clean codes of one class: at 1 it is as far as another image of the class lies. Not finite where no
    class has two different codes."""
    squares, pairs, distances = 0.0, 0, np.zeros(len(labels))
    for label in np.unique(labels):  # class by class, so that no large cell is held in double precision
        rows = labels == label
        members = clean[rows].astype(np.float64)
        distances[rows] = np.linalg.norm(attacked[rows] - members, axis=1)
        squares += len(members) * float(((members - members.mean(axis=0)) ** 2).sum())  # over all pairs of the class
        pairs += len(members) * (len(members) - 1) // 2
    apart = math.sqrt(squares / pairs) if pairs else 0.0
    return float(np.median(distances)) / apart if apart else math.nan


def neighbours(clean: Codes, attacked: Codes, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For the first MOST images, the class of the one whose clean code lies nearest to each's attacked code, among
    these and its own left out: (N,) or (MOST,)."""
    from sklearn.metrics import pairwise_distances

    apart = pairwise_distances(attacked[:MOST].astype(np.float64), clean[:MOST].astype(np.float64))
    np.fill_diagonal(apart, np.inf)
    nearest: NDArray[np.int64] = labels[apart.argmin(axis=1)]
    return nearest


def drawn(clean: Codes, attacked: Codes, near: NDArray[np.int64]) -> Mapping[str, tuple[float, ...]]:
    """The facts that hold the map of a cell's first MOST images: where they lie clean and attacked, and the class that
    each is `near` to. None for fewer than LEAST images, or for codes that cannot be laid out."""
    n, parts = min(len(clean), MOST), {"clean": clean[:MOST]}
    if not np.array_equal(clean, attacked):
        parts["attacked"] = attacked[:MOST]
    places = layout(np.concatenate(list(parts.values())).astype(np.float64), n) if n >= LEAST else None
    if places is None:
        return {}
    facts = {f"{MAP}neighbour": tuple(near[:n].astype(float).tolist())}
    for name, part in zip(parts, np.split(places, len(parts)), strict=True):
        facts |= {f"{MAP}{name}.{axis}": tuple(part[:, k].tolist()) for k, axis in enumerate("xy")}
    return facts


def layout(codes: NDArray[np.float64], n: int) -> NDArray[np.float64] | None:
    """Places (N, 2) of codes (N, D) in [-1, 1], to three decimals; None where all are one, or not all
    are finite.

    t-SNE (van der Maaten and Hinton 2008, jmlr.org/papers/v9/vandermaaten08a.html) from the first two principal
    components of the first `n`, so that maps of the same clean images under several attacks start alike. Its gradients
    are exact: the usual approximation of them crashes the process where a number is not finite, and a defense may be
    anybody's.
    """
    from sklearn.manifold import TSNE  # only few cells wait for it

    if not np.isfinite(codes).all():
        return None
    points = codes - codes[:n].mean(axis=0)
    points = points / (np.abs(points).max() or 1)
    axes = np.linalg.svd(points[:n], full_matrices=False)[2][:2]
    start = np.zeros((len(points), 2), np.float32)
    start[:, : len(axes)] = points @ axes.T
    if not start[:, 0].std():
        return None
    start *= 1e-4 / start[:, 0].std()
    fit = TSNE(perplexity=min(30, n / 4), init=start, random_state=0, method="exact", max_iter=500)
    laid = fit.fit_transform(points).astype(np.float64)
    low, high = laid.min(axis=0), laid.max(axis=0)
    places: NDArray[np.float64] = np.round((laid - (low + high) / 2) / ((high - low).max() / 2), 3)
    return places
