"""What a row comes to, in two sentences made from its numbers: what blind attackers leave, and what the worst do."""

from __future__ import annotations

from leaderboard.formats import (
    decimal,
    decimal_range,
    listing,
    percent,
    percent_range,
    radius,
    signed,
    signed_range,
    thousands,
    words,
)
from leaderboard.tables import BASELINE, Estimate, Row

_BLIND = ("gray_box", "transfer")  # tracks whose attackers know the classifier or less, and nothing of the defense


def verdict_in_two(row: Row) -> tuple[str, ...]:
    """Two sentences on a row, one where no blind attacker was run, none where there are no numbers to compare."""
    if row.effort is None or row.mrr is None:
        return ()
    eps = (row.effort.headline_radii or row.effort.linf_radii)[-1]
    return tuple(filter(None, (_blind(row, eps), _worst(row, eps))))


def _blind(row: Row, eps: float) -> str:
    """What the worst attacker leaves who does not know the defense."""
    assert row.effort is not None
    if eps not in row.effort.headline_radii or row.defense == BASELINE:
        return ""
    place = row.effort.headline_radii.index(eps)
    known = [row.tracks[track][place] for track in _BLIND if track in row.tracks]
    found = [one for one in known if one is not None]
    if not found:
        return ""
    worst = min(found, key=lambda one: one.value)
    return f"Attackers who do not know the defense leave {_share(worst, row)} at ε\u00a0=\u00a0{radius(eps)}."


def _worst(row: Row, eps: float) -> str:
    """What the worst attacker leaves, and what that is worth over all radii."""
    assert row.effort is not None and row.mrr is not None
    left = row.robust[row.effort.linf_radii.index(eps)]
    start = f"The worst attack on each image leaves {_share(left, row)} at ε\u00a0=\u00a0{radius(eps)}"
    over_all = f"mean robust radius {decimal(row.mrr.value)} ({decimal_range(row.mrr)})"
    if row.defense == BASELINE:
        return f"This is the classifier without a defense. {start}, {over_all}; every gain is measured against it."
    return f"{start}; over all radii {_gain(row.gain) if row.gain else over_all}{_doubt(row)}."


def _share(estimate: Estimate, row: Row) -> str:
    right = "right or refused" if row.effort is not None and row.effort.is_selective else "right"
    return (
        f"{percent(estimate)} of the images {right} ({percent_range(estimate)}, n\u00a0=\u00a0{thousands(estimate.n)})"
    )


def _gain(gain: Estimate) -> str:
    """A gain in words: it counts as one only where its interval leaves out 0."""
    amount = f"{signed(gain.value)} of mean robust radius ({signed_range(gain)})"
    if gain.low > 0:
        return f"it gains {amount} over no defense"
    if gain.high < 0:
        return f"it is worse than no defense by {amount}"
    return f"it cannot be told from no defense, {amount}"


def _doubt(row: Row) -> str:
    """Why even this may be too good; empty where nothing says so."""
    if row.state == "unverified":
        rules = listing(dict.fromkeys(words(verdict.rule) for verdict in row.found("warning")))
        return f"; even that is an upper bound, unverified ({rules})"
    return "; even that is an upper bound, from a reduced budget" if row.state == "reduced" else ""
