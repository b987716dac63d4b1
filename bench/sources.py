"""What the images of a transfer attack are made on, read from its name in a protocol. No torch here.

A source is a defense by its slug, or a net as `KIND-ARCHITECTURE` (slugs hold no hyphen): bench.substitutes trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bench import plugins
from bench.catalog import CLASSIFIERS
from bench.errors import BenchError, unknown

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "classifier": "an independent classifier",  # trained on the same training split from another seed
        "substitute": "a substitute of the bare classifier,",  # trained on the labels that it answers
        "imitation": "a substitute of the defense,",  # trained on the labels that the defended classifier answers
    }
)
"""The kinds of nets, and how a page introduces their architecture."""


@dataclass(frozen=True)
class Source:
    """A defense called `name`, or a net of the architecture `name` and of a kind in KINDS."""

    kind: str  # "defense" or one of KINDS
    name: str

    @property
    def is_net(self) -> bool:
        """Whether the source is a net alone, which the attacker trained."""
        return self.kind != "defense"

    @property
    def is_own(self) -> bool:
        """Whether every defense has a source of its own, made of its answers."""
        return self.kind == "imitation"

    @property
    def words(self) -> str:
        """The source for people: "a substitute of the defense, B"."""
        return f"{KINDS[self.kind]} {self.name}" if self.is_net else self.name.replace("_", " ")


def parse(source: str) -> Source:
    """The source of that name: `identity_vae`, `classifier-B`, `substitute-B`, `imitation-B`.

    Raises BenchError (a ValueError) for an unknown kind or architecture, and for what is no slug.
    """
    kind, hyphen, name = source.partition("-")
    if not hyphen:
        if not plugins.SLUG.fullmatch(source):
            raise BenchError(f"the source {source!r} is no defense's slug; expected one, or KIND-ARCHITECTURE")
        return Source("defense", source)
    if kind not in KINDS:
        raise unknown("kind of source", kind, KINDS)
    if name not in CLASSIFIERS:
        raise unknown("classifier", name, CLASSIFIERS, see="purifybench list classifiers")
    return Source(kind, name)
