"""What broke a defense: at every radius, how many images fell to each attack first. Counted by bench.statistics."""

from __future__ import annotations

from dataclasses import dataclass

from bench import statistics
from bench.protocol import AttackSpec
from bench.record import Cell
from leaderboard.tables import Row


@dataclass(frozen=True)
class Breaker:
    """One kind of attack (a spec without a strength), and the images that fell to it first at each Linf radius."""

    kind: AttackSpec
    broken: tuple[int, ...]


@dataclass(frozen=True)
class Breakers:
    """All attacks to which an image fell first, in the protocol's order, and what is broken in all at each radius.

    `right` counts the images that are right when clean, over all seeds.
    """

    attacks: tuple[Breaker, ...]
    total: tuple[int, ...]
    right: int

    @property
    def most(self) -> tuple[int, ...]:
        """The most images that fell to one attack at each radius."""
        return tuple(max(one.broken[k] for one in self.attacks) for k in range(len(self.total)))


def breakers(row: Row) -> Breakers | None:
    """Who broke the images of a complete row; None for others."""
    if row.effort is None or row.mrr is None:
        return None
    seeds = [_counted(row, seed) for seed in row.seeds]
    by_radius = [statistics.blamed(seeds, eps) for eps in row.effort.linf_radii]
    kinds = [kind for kind in by_radius[0] if any(found[kind] for found in by_radius)]
    attacks = tuple(Breaker(kind, tuple(found[kind] for found in by_radius)) for kind in kinds)
    clean = (cell for cells in seeds for cell in cells if cell.record.spec.slug == "clean.none")
    right = sum(int((cell.outcomes.correct > 0.5).sum()) for cell in clean)
    return Breakers(attacks, tuple(sum(found.values()) for found in by_radius), right)


def _counted(row: Row, seed: int) -> list[Cell]:
    assert row.effort is not None
    own = (cell for cell in row.cells if cell.record.seed == seed and cell.record.cell not in row.extra)
    return statistics.ordered(own, row.effort)
