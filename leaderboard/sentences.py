"""What a row comes to, in two sentences made from its numbers: what blind attackers leave, and what the worst do; and
what a board comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from leaderboard.tables import BASELINE, Board, Estimate, Row

_BLIND = ("gray_box", "transfer")  # tracks whose attackers know the classifier or less, and nothing of the defense


def verdict_in_two(row: Row) -> tuple[str, ...]:
    """Two sentences on a row, one where no blind attacker was run, none where there are no numbers to compare."""
    if row.effort is None or row.mrr is None:
        return ()
    eps = (row.effort.headline_radii or row.effort.linf_radii)[-1]
    return tuple(filter(None, (_blind(row, eps), _worst(row, eps))))


def _blind(row: Row, eps: float) -> str:
    """What the worst attacker leaves who does not know the defense, in a sentence."""
    worst = _left_by_blind(row, eps)
    if worst is None or row.defense == BASELINE:
        return ""
    return f"Attackers who do not know the defense leave {_share(worst, row)} at {_at(eps)}."


def _left_by_blind(row: Row, eps: float) -> Estimate | None:
    """What the worst attacker leaves who does not know the defense; None where there is none at this radius."""
    if row.effort is None or eps not in row.effort.headline_radii:
        return None
    place = row.effort.headline_radii.index(eps)
    known = [row.tracks[track][place] for track in _BLIND if track in row.tracks]
    return min((one for one in known if one is not None), key=lambda one: one.value, default=None)


def _worst(row: Row, eps: float) -> str:
    """What the worst attacker leaves, and what that is worth over all radii."""
    assert row.effort is not None and row.mrr is not None
    left = row.robust[row.effort.linf_radii.index(eps)]
    start = f"The worst attack on each image leaves {_share(left, row)} at {_at(eps)}"
    over_all = f"mean robust radius {decimal(row.mrr.value)} ({decimal_range(row.mrr)})"
    if row.defense == BASELINE:
        return f"This is the classifier without a defense. {start}, {over_all}; every gain is measured against it."
    return f"{start}; over all radii {_gain(row.gain) if row.gain else over_all}{_doubt(row)}."


def _at(eps: float) -> str:
    return f"ε\u00a0=\u00a0{radius(eps)}"


def _share(estimate: Estimate, row: Row) -> str:
    right = "right or refused" if row.effort is not None and row.effort.is_selective else "right"
    return (
        f"{percent(estimate)} of the images {right} ({percent_range(estimate)}, n\u00a0=\u00a0{thousands(estimate.n)})"
    )


def _gain(gain: Estimate) -> str:
    """A gain in words: it counts as one only where its interval leaves out 0."""
    interval = f"of mean robust radius (difference {signed_range(gain)})"
    if gain.low > 0:
        return f"it gains {decimal(gain.value)} {interval} over no defense"
    if gain.high < 0:
        return f"it is worse than no defense, by {decimal(-gain.value)} {interval}"
    return f"it cannot be told from no defense: {signed(gain.value)} {interval}"


def _doubt(row: Row) -> str:
    """Why even this may be too good; empty where nothing says so."""
    if row.state == "unverified":
        rules = listing(dict.fromkeys(words(verdict.rule) for verdict in row.found("warning")))
        return f"; even that is an upper bound, unverified ({rules})"
    return "; even that is an upper bound, from a reduced budget" if row.state == "reduced" else ""


# ---------------------------------------------------------------------------------------------- a whole board


@dataclass(frozen=True)
class Summary:
    """What a board comes to, in a few sentences."""

    board: Board
    sentences: tuple[str, ...]


def summary(board: Board) -> Summary | None:
    """Who holds at the largest radius that is quoted, who seems to, and what that is worth; None where no defense has
    numbers, and where no attacker knows of the defense. Rows before other classifiers than the board's own are left
    out."""
    if board.protocol is None or not any(spec.knows_defense for spec in board.protocol.every_attack):
        return None
    eps = (board.protocol.headline_radii or board.protocol.linf_radii)[-1]
    usual = board.protocol.classifiers[0]
    rows = [row for row in board.rows if row.mrr is not None and (row.defense, row.classifier) != (BASELINE, usual)]
    rows = [row for row in rows if row.classifier == usual]
    sound = [row for row in rows if row.state != "unverified"]
    cleaners = [row for row in sound if row.card.kind != "hardened"]
    said = [
        _best(cleaners, eps, board),
        _seeming(cleaners, eps),
        *(_hardened(row, eps) for row in sound if row.card.kind == "hardened"),
        *(_warned(row, eps) for row in rows if row.state == "unverified"),
    ]
    found = tuple(filter(None, said))
    return Summary(board, found) if found else None


def _left(row: Row, eps: float) -> Estimate:
    assert row.effort is not None
    return row.robust[row.effort.linf_radii.index(eps)]


def _best(rows: Sequence[Row], eps: float, board: Board) -> str:
    """What the best of several defenses keeps against attackers who know of it, and who has the largest radius."""
    if not rows:
        return ""
    assert board.protocol is not None
    best = max(rows, key=lambda row: _left(row, eps).value)
    far = max(rows, key=lambda row: row.mrr.value if row.mrr else 0)
    assert far.mrr is not None
    bare = board.baseline.mrr if board.baseline else None
    beside = f"; no defense has {decimal(bare.value)}" if bare else ""
    radii = f"The largest mean robust radius is {decimal(far.mrr.value)} ({far.card.title}{beside})."
    return f"{_kept(rows, best, eps, board.protocol.is_selective)} {radii}"


def _kept(rows: Sequence[Row], best: Row, eps: float, may_refuse: bool) -> str:
    known, share = f"against attackers who know of it, at {_at(eps)}", percent(_left(best, eps))
    kind = "defenses that may refuse" if may_refuse else "purifiers"
    if _left(best, eps).value == 0:
        nothing = "holds any image" if may_refuse else "keeps any image right"
        return f"Of {len(rows)} {kind} none {nothing} {known} ({share})."
    held = "never accepts a wrong answer for" if may_refuse else "keeps"
    return f"Of {len(rows)} {kind} the best {held} {share} of the images {known} ({best.card.title})."


def _seeming(rows: Sequence[Row], eps: float) -> str:
    """The widest gap between what blind attackers leave and what the worst do."""
    gaps = [(blind.value - _left(row, eps).value, row, blind) for row in rows if (blind := _left_by_blind(row, eps))]
    gap, row, blind = max(gaps, key=lambda found: found[0], default=(0.0, None, None))
    if row is None or blind is None or gap < 0.1:
        return ""
    left = percent(_left(row, eps))
    return f"Attackers who do not know the defense make {row.card.title} look like {percent(blind)}; it is {left}."


def _hardened(row: Row, eps: float) -> str:
    return f"{row.card.title}, a hardened classifier and no purifier, keeps {percent(_left(row, eps))}."


def _warned(row: Row, eps: float) -> str:
    return f"{percent(_left(row, eps))} for {row.card.title} is an upper bound, unverified."
