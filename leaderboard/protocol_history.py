"""What became of each protocol, for its page: when it was published or begun, and what a draft has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bench.protocol import Protocol


@dataclass(frozen=True)
class Change:
    """One step of a protocol: the day, and what changed for whoever reads its numbers."""

    day: str
    text: str


_FAMILIES: Mapping[str, tuple[Change, ...]] = MappingProxyType(
    {
        "selective-v1": (
            Change("2026-11-21", "Begun: thresholds of the harness, Lagrangian and Orthogonal PGD past the detector."),
            Change("2026-11-21", "The GM-VAE's own attacks, for defenses that tell what they expect of a class."),
            Change("2026-11-22", "A random search that asks for scores alone, towards wrong and accepted."),
            Change("2026-11-22", "Both attacks past the detector run along BPDA at every radius, as elsewhere."),
        ),
        "latent-v1": (
            Change("2026-11-22", "Begun: the same balls searched among codes and pixels; the overpowered attack."),
            Change("2026-11-22", "Attacks towards other images, with a sweep of prices."),
            Change("2026-11-22", "One change for all images; a classifier of codes."),
            Change("2026-11-22", "The overpowered attack asks the defense, too; relative prices; single steps."),
        ),
        "search-v1": (
            Change("2026-11-22", "Begun: attackers who hurry the inner loop at first, and who search codes."),
        ),
    }
)


def history(protocol: Protocol) -> tuple[Change, ...]:
    """The steps of a protocol, the first one first. A published one has a single step: it never changes."""
    if protocol.is_draft:
        return next((steps for family, steps in _FAMILIES.items() if f"-{family}" in protocol.id), ())
    if "+limit" in protocol.id:
        return ()
    return (Change("2026-11-21", "Published. Its hash is pinned by a test: a fix becomes a new version beside it."),)
