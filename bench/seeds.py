"""One seed drives everything: every other seed is derived from it by hash. No torch here (see draws.py)."""

from __future__ import annotations

import hashlib
import json


def derive(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on all `parts` (strings, numbers, tuples), and on nothing else."""
    return int(digest(*parts)[:16], 16) >> 1


def digest(*parts: object) -> str:
    """The sha256, in hex, of the canonical JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
