"""Protocols as data, for people and for programs: what is measured, on what, with which hash."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from bench import protocols
from bench.protocol import Protocol
from leaderboard.tables import Board


def shown(boards: Iterable[Board]) -> list[Protocol]:
    """The protocols that have a page: those of the boards in their order, then every other published one."""
    found = {board.protocol.id: board.protocol for board in boards if board.protocol}
    return list(({**found, **{name: one for name, one in protocols.PROTOCOLS.items() if name not in found}}).values())


def suggested(all_of_them: Iterable[Protocol]) -> list[Protocol]:
    """A quick protocol and one that ranks, for somebody's first runs; fewer where there are none."""
    some = list(all_of_them)
    quick = [one for one in some if one.id.endswith("-quick")]
    ranked = [one for one in some if one.ranked and not one.is_draft]
    return [*quick[:1], *ranked[:1]]


def as_json(protocol: Protocol) -> bytes:
    """A protocol with all that its hash covers, and the hash."""
    fields = dataclasses.asdict(protocol)
    return (json.dumps({"hash": protocol.hash, **fields}, indent=1, sort_keys=True) + "\n").encode()
