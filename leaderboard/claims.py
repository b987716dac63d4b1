"""What a defense's authors claim beside what a row measures, with the difference and its interval."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench import claims
from bench.submissions.schema import Claim
from leaderboard.tables import Estimate, Row, counted_cells, mean_accuracy


@dataclass(frozen=True)
class ClaimLine:
    """A claim; the worst case at its radius and that less the claim, both None where it was not measured."""

    claim: Claim
    measured: Estimate | None
    difference: Estimate | None


def claim_lines(row: Row, claimed: Iterable[Claim]) -> list[ClaimLine]:
    """The claims about the data set of a row, in their order. A row that lacks cells or images measures none."""
    seeds = [counted_cells(row, seed) for seed in row.seeds] if row.effort else [row.cells]
    return [_line(one, is_whole=row.mrr is not None) for one in claims.beside(claimed, seeds)]


def _line(one: claims.Beside, *, is_whole: bool) -> ClaimLine:
    if one.measured is None or not is_whole:
        return ClaimLine(one.claim, None, None)
    found, said = mean_accuracy(list(one.measured)), one.claim.accuracy
    return ClaimLine(one.claim, found, Estimate(found.value - said, found.low - said, found.high - said, found.n))
