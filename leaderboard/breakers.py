"""What broke a defense, and all of a board: how many images fell to each attack first. Counted by bench.statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import statistics
from bench.protocol import AttackSpec
from leaderboard.tables import BASELINE, Board, Row, counted_cells


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
    seeds = [counted_cells(row, seed) for seed in row.seeds]
    by_radius = [statistics.blamed(seeds, eps) for eps in row.effort.linf_radii]
    kinds = [kind for kind in by_radius[0] if any(found[kind] for found in by_radius)]
    attacks = tuple(Breaker(kind, tuple(found[kind] for found in by_radius)) for kind in kinds)
    clean = (cell for cells in seeds for cell in cells if cell.record.spec.slug == "clean.none")
    right = sum(int((cell.outcomes.correct > 0.5).sum()) for cell in clean)
    return Breakers(attacks, tuple(sum(found.values()) for found in by_radius), right)


@dataclass(frozen=True)
class Toll:
    """Over all defenses of a board, at the largest radius that is quoted: how many images fell to each attack first, by
    the attack's name, and how many fell in all."""

    board: Board
    eps: float
    broken: Mapping[str, int]
    total: int


def toll(boards: Sequence[Board]) -> Toll | None:
    """The toll of the first board that has any numbers; None where none has."""
    for board in boards:
        found = [(row, one) for row in board.rows if row.defense != BASELINE and (one := breakers(row)) is not None]
        if board.protocol and found:
            eps = (board.protocol.headline_radii or board.protocol.linf_radii)[-1]
            place = board.protocol.linf_radii.index(eps)
            broken: dict[str, int] = {}
            for _, one in found:
                for attack in one.attacks:
                    broken[attack.kind.attack] = broken.get(attack.kind.attack, 0) + attack.broken[place]
            return Toll(board, eps, broken, sum(broken.values()))
    return None
