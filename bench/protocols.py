"""Every protocol by its id: those of the boards, and those that repeat a paper's own evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from bench import papers
from bench.boards import PROTOCOLS
from bench.errors import unknown
from bench.protocol import Protocol

__all__ = ["PROTOCOLS", "get", "known"]


def known() -> Mapping[str, Protocol]:
    """Every protocol by id: those of the boards, then those that repeat a paper's own evaluation (bench.papers)."""
    return {**PROTOCOLS, **papers.PROTOCOLS}


def get(protocol_id: str) -> Protocol:
    """The protocol of that id, or a limited one from `ID+limitN`; raises BenchError that suggests the nearest one."""
    base, _, count = protocol_id.partition("+limit")
    protocols = known()
    if base not in protocols or (count and not count.isdecimal()):
        raise unknown("protocol", protocol_id, protocols, see="purifybench list protocols")
    return protocols[base].limited(int(count)) if count else protocols[base]
