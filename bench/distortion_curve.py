"""What a target-image attack pays for what it gets: the curve over its constants, and the area under it. No torch here.

Tabacof, Tavares and Valle 2016 (arXiv:1612.00155) draw it; the area is the measure of Gondim-Ribeiro, Tabacof and Valle
2018 (arXiv:1806.04646).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

Point = tuple[float, float]
WIDEST_GAP = 0.25  # between the clean image and the smallest change that brought it nearer, as a share of the way


@dataclass(frozen=True)
class DistortionCurve:
    """`points` (distortion, closeness) from (0, 1) to (1, 0), the distortion growing; `area` under them, in [0, 1].

    The smaller the area, the less it costs to make a model take an image for another. Where an image cannot be taken
    for anything but what is drawn, mixing it with the target is all that helps: the area is 1/2.
    """

    points: tuple[Point, ...]
    area: float

    @property
    def is_told(self) -> bool:
        """Whether a small change was measured at all: else most of the area is that of a line drawn over a gap."""
        return self.points[1][0] <= WIDEST_GAP


def distortion_curve(cells: Iterable[Point]) -> DistortionCurve:
    """The curve through the (distortion, closeness) of cells, one a constant: `relative_distortion`, the length of the
    change over the distance to the target image, and `relative_reconstruction_distance` (or that of the codes), what is
    left of the distance to the target, as the attack tells them.

    An attacker who may change more may also change less, so the closeness is the lowest at any smaller distortion. The
    clean image is the point (0, 1). The target image itself, (1, 0), ends the curve: cells beyond it count for nothing.
    Between points the curve is straight. Raises ValueError without cells, or for numbers below 0 or not finite.
    """
    given = sorted(cells)
    if not given:
        raise ValueError("a distortion curve needs at least one cell")
    if not all(math.isfinite(number) and number >= 0 for pair in given for number in pair):
        raise ValueError(f"distortion and closeness are finite numbers from 0, got {given}")
    points: list[Point] = [(0.0, 1.0)]
    for distortion, closeness in given:
        if distortion < 1 and closeness < points[-1][1]:
            points.append((distortion, closeness))
    points.append((1.0, 0.0))
    steps = itertools.pairwise(points)
    area = sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in steps)
    return DistortionCurve(tuple(points), area)
