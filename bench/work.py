"""The work of one cell: who is attacked how, on which images, and the key that all of it makes.

Equal keys mean equal outcomes: what is stored under one is not computed again. Nothing is attacked or scored here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench import device, seeds, substitutes, surrogate
from bench.catalog import ATTACKS
from bench.class_change import Judge
from bench.data import Split
from bench.defense import Defense, has_door, source_hash
from bench.protocol import AttackSpec, Budget, Protocol
from bench.record import Card, Cell
from bench.statistics import TOLERANCE
from bench.substitutes import SourceNet

VERSION = 4  # of the rules by which cells are attacked and scored; part of every cell's key
LAYOUT = 4  # of a cached chunk; part of its key
Wanted = NDArray[np.bool_]  # (n,) the images that a cell attacks


@dataclass(frozen=True)
class Subject:
    """A trained defense in front of a trained classifier, with the names and hashes that a record cites."""

    name: str
    cls: type[Defense]  # of the defense, or of what could not be trained
    defense: Defense
    recipe: str
    settings: Mapping[str, Any]
    weights: str
    classifier: str
    classifier_weights: str
    attacked: nn.Module  # what gray_box attacks: a net that no defense was given, unless the defense brings its own
    attacked_weights: str  # names it in the keys of shared images; with the code's hash where it is the defense's own
    seed: int = 0  # that the defense was trained from
    budget: Budget = "cheap"
    units: float = 0.0  # what a purification costs: bench.cost
    training: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # the loss of each epoch, by training
    surrogate: nn.Module | None = None  # the harness's imitation of purify: bench.surrogate
    thresholds: Mapping[str, float] = field(default_factory=dict)  # of a selective defense: bench.rejection

    @property
    def answers(self) -> tuple[object, ...]:
        """All that decides what the defense answers."""
        return self.name, self.settings, self.weights, source_hash(self.cls), self.classifier_weights


@dataclass(frozen=True)
class Examples:
    """The protocol's images: `clean` on the device, and their `indices` (n,) in the test split of `dataset`; the
    validation split, from which an attacker may learn; and who says whether an image still shows what it showed, where
    an attack of the protocol may change that."""

    dataset: str
    split: str
    clean: Split
    indices: Tensor
    validation: Split
    judge: Judge | None = None

    def first(self, n: int) -> Examples:
        """The first `n` of them."""
        return self if n >= len(self.indices) else replace(self, clean=self.clean[:n], indices=self.indices[:n])

    def chunks(self, wanted: Wanted | None = None) -> Iterator[Tensor]:
        """Fixed pieces of the images `wanted` (all unless told), as row numbers: the unit of work and of resume."""
        size, place = device.chunk_size(self.indices.device), self.indices.device
        rows = torch.arange(len(self.indices)) if wanted is None else torch.from_numpy(np.flatnonzero(wanted))
        return (piece.to(place) for piece in torch.split(rows, size) if len(piece))


def card(cls: type[Defense], protocol: Protocol) -> Card:
    """What a record of this protocol says about a defense to people."""
    lines = (cls.__doc__ or "").strip().splitlines()
    return Card(
        title=cls.title, paper=cls.paper, year=cls.year, summary=lines[0].strip() if lines else "", kind=cls.kind,
        stochastic=cls.stochastic, differentiable=cls.differentiable, trained_on=cls.trained_on,
        doors=doors(cls, protocol),
    )  # fmt: skip


def doors(cls: type[Defense], protocol: Protocol) -> tuple[str, ...]:
    """The optional methods of a defense that decide which of the protocol's attacks are applicable to it."""
    return tuple(door for door in protocol.doors if has_door(cls, door))


def wanted(subject: Subject, protocol: Protocol, spec: AttackSpec, earlier: Sequence[Cell]) -> Wanted:
    """The images that a cell attacks, (n,): the protocol's first ones, or all; in a cascade only those that no
    `earlier` cell of the same defense broke at a distance that counts here. On a random defense one wrong answer proves
    nothing, so there all are attacked."""
    rows = np.arange(protocol.n_examples) < (spec.n_examples or protocol.n_examples)
    if spec.cascade and not subject.cls.stochastic and spec.norm is not None and spec.eps is not None:
        for cell in earlier:
            near = cell.outcomes.distance(spec.norm) <= spec.eps + TOLERANCE
            rows &= ~(near & (cell.outcomes.correct == 0))
    return rows


def cell_name(subject: Subject, spec: AttackSpec) -> str:
    """The name under which the store keeps a cell."""
    return spec.cell(subject.classifier, subject.seed)


@dataclass(frozen=True)
class Work:
    """One cell to evaluate: who is attacked how, on which images, and on whom the images are made."""

    subject: Subject
    protocol: Protocol
    spec: AttackSpec
    wanted: Wanted
    source: Subject | SourceNet | None = None  # of a transfer attack
    judge: str = ""  # the weights of who says whether an image changed its class, where the attack may change it

    @cached_property
    def key(self) -> str:
        """A hash of all that decides the cell's outcome: equal keys mean that a stored cell may be used again, also in
        another version of its protocol."""
        subject, spec, protocol = self.subject, self.spec, self.protocol
        looks = (protocol.selection_draws, protocol.scoring_draws) if subject.cls.stochastic else ()
        decides = [
            VERSION, protocol.dataset, protocol.seed, looks, spec.slug, spec.params, ATTACKS[spec.attack].version,
            subject.name, subject.settings, subject.weights, source_hash(subject.cls), subject.classifier,
            subject.classifier_weights, subject.attacked_weights, subject.seed, self.wanted.tolist(),
        ]  # fmt: skip
        if spec.imitates_defense:  # what it learned from is in the key already
            decides.append(substitutes.VERSION)
        elif self.source is not None:
            decides.append(self.source.answers)
        decides += [surrogate.VERSION] if spec.route == "surrogate" else []
        decides += [self.judge] if ATTACKS[spec.attack].may_change_class else []
        return seeds.digest(*decides)


def chunk_key(purpose: str, what: object, examples: Examples, rows: Tensor) -> str:
    """The key of a chunk in the cache: its `purpose`, `what` decides it beside the images, and the images."""
    images = examples.clean.images[rows].cpu().contiguous().numpy().tobytes()
    content = hashlib.sha256(images).hexdigest()
    indices = examples.indices[rows].tolist()
    return seeds.digest(LAYOUT, purpose, what, examples.dataset, examples.split, indices, content)
