"""Which loss the curve in a record is of: two losses never share an axis."""

from __future__ import annotations

from bench.catalog import ATTACKS
from bench.record import Record
from leaderboard.attack_page import defaults
from leaderboard.formats import attack_name

NAMES = {"cross_entropy": "mean cross-entropy", "margin": "mean margin"}
_STEPS = ("fgsm", "r_fgsm", "i_fgsm", "mi_fgsm")  # have no choice: cross-entropy


def loss_name(record: Record) -> str:
    """What a record's losses are, for an axis: attacks with one name there may be compared, and higher is stronger."""
    if record.attack in _STEPS:
        return NAMES["cross_entropy"]
    named = record.params.get("loss") or defaults(ATTACKS.get(record.attack)).get("loss")
    return NAMES.get(str(named), f"loss of {attack_name(record.attack)}")
