"""What authors claim, each beside what was measured at the same radius. For the terminal and the site; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bench import statistics
from bench.record import Cell
from bench.statistics import Array
from bench.submissions.schema import Claim


@dataclass(frozen=True)
class Beside:
    """A claim, and how right each image is in the worst case measured at its radius, by seed, (S, n).

    `measured` is None where no attack of the cells has the claim's norm and radius. At radius 0 it is clean accuracy.
    """

    claim: Claim
    measured: Array | None


def beside(claims: Iterable[Claim], seeds: Sequence[Sequence[Cell]]) -> list[Beside]:
    """The claims about the data set of the cells, which are of one classifier and a sequence for each seed."""
    cells = [cell for one in seeds for cell in one]
    datasets = {cell.record.dataset for cell in cells}
    is_sound = bool(seeds) and all(any(cell.record.spec.slug == "clean.none" for cell in one) for one in seeds)
    radii = {(cell.record.norm, cell.record.eps) for cell in cells}
    found = []
    for claim in claims:
        if claim.dataset in datasets:
            is_measured = is_sound and (claim.eps == 0 or (claim.norm, claim.eps) in radii)
            found.append(Beside(claim, _measured(claim, seeds) if is_measured else None))
    return found


def _measured(claim: Claim, seeds: Sequence[Sequence[Cell]]) -> Array:
    radii = (claim.eps,) if claim.eps else ()
    return np.stack([statistics.robustness(cells, claim.norm, radii)[-1] for cells in seeds])
