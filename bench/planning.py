"""What a run is asked for, with its names resolved before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bench import device, plugins, protocols
from bench.catalog import CLASSIFIERS
from bench.defense import Defense, has_door, settings
from bench.errors import BenchError, unknown
from bench.isolation import Isolated
from bench.protocol import AttackSpec, Protocol
from bench.work import Subject, doors

Named = tuple[str, type[Defense]]


@dataclass(frozen=True)
class Plan:
    """What a run was asked for, with names resolved; empty `tracks` or `attacks` stand for all of the protocol's."""

    protocol: Protocol
    tracks: tuple[str, ...]
    attacks: tuple[str, ...]
    defenses: tuple[Named, ...]
    classifiers: tuple[str, ...]
    recipe: str | None
    device: torch.device
    contract: bool
    seeds: int

    def specs(self, subject: Subject) -> tuple[AttackSpec, ...]:
        """The cells of one defense: those that its budget class asks for, as far as they were selected."""
        return self.view(subject).among(self.tracks, self.attacks)

    def view(self, subject: Subject) -> Protocol:
        """The protocol as this defense meets it."""
        return self.protocol.effort(
            subject.budget, stochastic=subject.cls.stochastic, doors=doors(subject.cls, self.protocol)
        )


def plan(
    defenses: Sequence[str | type[Defense]],
    protocol_id: str | Protocol,
    *,
    classifier: Sequence[str] = (),
    tracks: Sequence[str] = (),
    attacks: Sequence[str] = (),
    limit: int | None = None,
    recipe: str | None = None,
    on: str = "auto",
    contract: bool = True,
    seeds: int = 1,
) -> Plan:
    """Resolve names before any work starts; `seeds` is from how many each defense is trained. Raises BenchError for the
    first unknown name, or for no cell."""
    if seeds < 1:
        raise BenchError(f"--seeds must be at least 1, got {seeds}")
    chosen = protocols.get(protocol_id) if isinstance(protocol_id, str) else protocol_id
    if limit is not None:
        chosen = chosen.limited(limit)
    if not contract:  # kept apart from records that were held to it
        chosen = replace(chosen, id=f"{chosen.id}+unchecked", ranked=False)
    for name in classifier:
        if name not in CLASSIFIERS:
            raise unknown("classifier", name, CLASSIFIERS, see="purifybench list classifiers")
    named = tuple(dict.fromkeys(named_class(defense) for defense in defenses))
    for name, cls in named:
        settings(cls, recipe if recipe in cls.recipes else None)
        _fits(name, cls, chosen)
    if recipe is not None and not any(recipe in cls.recipes for _, cls in named):
        raise unknown("recipe", recipe, {r for _, cls in named for r in cls.recipes})
    everything = replace(chosen, attacks=chosen.every_attack, efforts=())
    if not tuple(everything.select(tuple(tracks), tuple(attacks))):
        raise BenchError(f"no cell of {chosen.id} is in tracks {', '.join(tracks)} and attacks {', '.join(attacks)}")
    place = device.prepare(on)
    for name, cls in named:
        if place.type == "cuda" and issubclass(cls, Isolated) and not cls.sees_gpu:
            raise BenchError(
                f"{name}: torch finds a GPU here and none in its own process; use --device cpu, or let it see "
                "the GPU's device files (docs/isolation.md)"
            )
    return Plan(
        protocol=chosen,
        tracks=tuple(tracks),
        attacks=tuple(attacks),
        defenses=named,
        classifiers=tuple(dict.fromkeys(classifier)) or chosen.classifiers,
        recipe=recipe,
        device=place,
        contract=contract,
        seeds=seeds,
    )


def fits(cls: type[Defense], asked: Protocol) -> bool:
    """Whether a protocol is for defenses of this kind: those that may refuse have protocols of their own."""
    return asked.is_selective == has_door(cls, "rejection_score")


def _fits(name: str, cls: type[Defense], asked: Protocol) -> None:
    if not fits(cls, asked):
        others = [one.id for one in protocols.PROTOCOLS.values() if fits(cls, one) and one.dataset == asked.dataset]
        does = "may refuse images" if has_door(cls, "rejection_score") else "never refuses an image"
        raise BenchError(f"{name} {does}, which {asked.id} does not measure; take --protocol {' or '.join(others)}")


def named_class(defense: str | type[Defense]) -> Named:
    """The name and the class of a defense that is given by either; raises BenchError for what is no defense."""
    if isinstance(defense, str):
        return plugins.slug(defense), plugins.load(defense)
    if isinstance(defense, type) and issubclass(defense, Isolated):
        return defense.name, defense
    if not (isinstance(defense, type) and issubclass(defense, Defense)):
        raise BenchError(f"expected the name of a defense or a subclass of Defense, got {defense!r}")
    installed = plugins.installed()
    registered = {point.value: name for name, point in installed.items()}
    name = registered.get(f"{defense.__module__}:{defense.__qualname__}")
    if name is None:
        name = _snake(defense.__name__)
        if name in installed or not plugins.SLUG.fullmatch(name):
            why = "is the name of an installed defense" if name in installed else "is no slug"
            raise BenchError(f"the class {defense.__name__} would be called {name!r}, which {why}; rename the class")
    return name, defense


def _snake(name: str) -> str:
    return "".join(("_" if c.isupper() and i else "") + c.lower() for i, c in enumerate(name))
