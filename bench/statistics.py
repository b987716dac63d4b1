"""From per-image outcomes to what the board says: worst cases, mean robust radius, intervals, ranks. No torch here."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench import seeds
from bench.record import Cell

Array = NDArray[np.float64]
TOLERANCE = 1e-6  # slack on realised norms: float32 rounding, never a bigger ball
RESAMPLES = 4000


def robustness(cells: Sequence[Cell], norm: str, radii: Sequence[float]) -> Array:
    """The probability that each image is still classified right at radius 0 and at each of `radii`, (1 + R, n).

    An attacked image counts at radius eps if and only if its realised distance is at most eps + 1e-6, whichever attack
    made it; the clean image counts everywhere. Of the versions that count, the worst decides. For a random defense the
    worst is chosen on the selection draws and its value taken from the fresh scoring draws: a minimum over noisy
    values would count luck as an attack. All cells must be of one defense, one classifier, one protocol and one seed.
    Raises ValueError without a clean cell.
    """
    clean = np.array([cell.record.attack == "none" for cell in cells])
    if not clean.any():
        raise ValueError("robustness needs the clean cell (attack 'none')")
    chosen_by = np.stack([cell.outcomes.selection for cell in cells]).astype(np.float64)  # (cells, n)
    values = np.stack([cell.outcomes.correct for cell in cells]).astype(np.float64)
    distance = np.stack([cell.outcomes.distance(norm) for cell in cells])
    rows = []
    for eps in (-np.inf, *radii):  # at radius 0 the clean image alone
        counted = clean[:, None] | (distance <= eps + TOLERANCE)
        worst = np.where(counted, chosen_by, np.inf).argmin(axis=0)
        rows.append(np.take_along_axis(values, worst[None], axis=0)[0])
    return np.stack(rows)  # (1 + R, n)


def robust_radius(curve: Array, radii: Sequence[float]) -> Array:
    """Each image's share of the mean robust radius, (n,) in [0, 1], from `robustness` at 0 and at `radii`.

    The mean over images is MRR = (1 / eps_max) times the integral from 0 to eps_max of the mean robust accuracy,
    by the trapezoid rule.
    """
    points = np.array([0.0, *radii])
    return np.asarray(np.trapezoid(curve, points, axis=0) / points[-1], dtype=np.float64)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: for single deterministic accuracies. Raises ValueError if n < 1."""
    if n < 1:
        raise ValueError(f"a proportion needs at least one image, got n = {n}")
    z = float(stats.norm.ppf(0.5 + level / 2))
    share, centre = successes / n, (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * share * (1 - share) + z * z / 4)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@functools.lru_cache(maxsize=4)
def _resampling_weights(n: int) -> Array:
    generator = np.random.default_rng(seeds.derive("bootstrap", n))
    return generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n  # (RESAMPLES, n)


def bootstrap(values: Array, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values` (n,), resampled over images from a fixed seed."""
    means = _resampling_weights(len(values)) @ values
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def accuracy_interval(values: Array) -> tuple[float, float]:
    """Wilson's interval where every value is 0 or 1 (a proportion), the bootstrap's where they are shares."""
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(float(values.sum()), len(values))
    return bootstrap(values)


def ranks(entries: Mapping[str, Array], level: float = 0.05) -> dict[str, int]:
    """The rank of each entry: 1 + the number of entries that are significantly better. Ties share a rank.

    `entries` maps names to per-image values on the same images, higher is better. All pairs are compared by the
    paired difference of means with a bootstrap standard error, two-sided, Holm-corrected at `level` over all pairs.
    """
    names = list(entries)
    if len(names) < 2:
        return dict.fromkeys(names, 1)
    table = np.stack([entries[name] for name in names])  # (E, n)
    resampled = _resampling_weights(table.shape[1]) @ table.T  # (RESAMPLES, E)
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    p_values = []
    for i, j in pairs:
        gap = float(np.mean(table[i] - table[j]))
        error = float(np.std(resampled[:, i] - resampled[:, j]))
        p_values.append(1.0 if gap == 0 else 0.0 if error == 0 else float(2 * stats.norm.sf(abs(gap) / error)))
    beaten = dict.fromkeys(names, 0)
    for k, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > level / (len(pairs) - k):
            break
        i, j = pairs[index]
        beaten[names[j] if table[i].mean() > table[j].mean() else names[i]] += 1
    return {name: 1 + beaten[name] for name in names}
