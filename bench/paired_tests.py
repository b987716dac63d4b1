"""Tests of pairs: do the same images fare better under one attack than another? Nothing here imports torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

Array = NDArray[np.float64]


def sign_flip(gaps: Array) -> float:
    """The one-sided p-value of a mean above 0, were each of `gaps` (n,) as likely to have the other sign.

    Exact, up to rounding of the gaps to thousandths: for differences of right and wrong it is McNemar's exact test, for
    differences of shares the permutation test of pairs.
    """
    units = np.rint(1000 * gaps).astype(np.int64)
    better, worse, largest = int((units > 0).sum()), int((units < 0).sum()), np.abs(units).max(initial=0)
    if (better + worse) * largest == np.abs(units).sum():  # all differ by as much: coins
        return float(special.bdtrc(better - 1, better + worse, 0.5)) if better else 1.0
    units //= max(1, int(np.gcd.reduce(np.abs(units), initial=0)))
    sizes, counts = np.unique(np.abs(units[units != 0]), return_counts=True)
    return _sign_flip(int(units.sum()), tuple(zip(sizes.tolist(), counts.tolist(), strict=True)))


@functools.lru_cache(maxsize=4096)
def _sign_flip(observed: int, sizes: tuple[tuple[int, int], ...]) -> float:
    """The chance of a sum of `observed` or more, were the signs of gaps of these (size, count) thrown like coins."""
    total = sum(size * count for size, count in sizes)
    length = fft.next_fast_len(2 * total + 1, real=True)
    angles = 2 * np.pi * np.arange(length // 2 + 1) / length
    characteristic = np.ones(len(angles))
    for size, count in sizes:
        characteristic *= np.cos(size * angles) ** count
    chances = fft.irfft(characteristic, length)  # of the sums 0, 1, ..., total, and the negative ones from the end
    upper = float(chances[abs(observed) + (observed <= 0) : total + 1].sum())  # symmetric: the shorter tail is summed
    return float(np.clip(upper if observed > 0 else 1 - upper, 1e-12, 1))  # rounding errors lie below


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses fall at `level` over the whole family (Holm 1979)."""
    fallen = [False] * len(p_values)
    for k, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] >= level / (len(p_values) - k):
            break
        fallen[index] = True
    return fallen
