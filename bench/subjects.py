"""From the class of a defense to what is measured: built for a classifier, trained or loaded, held to its contract."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bench import checks, cost, memory, rejection, seeds, training
from bench import weights as files
from bench.data import Dataset, Split
from bench.defense import Defense, has_door, settings, source_hash
from bench.errors import BenchError
from bench.guards import its_own_fault, untouched
from bench.isolation import Isolated
from bench.planning import Named
from bench.progress import Progress
from bench.work import Subject


class Unusable(Defense):
    """Stands where a defense could not be built or trained: every cell records the reason, and counts as wrong."""

    title, paper, year = "unusable", "", 0

    def __init__(self, classifier: nn.Module, *, reason: str = "") -> None:
        super().__init__(classifier)
        self.reason = reason

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """Raises RuntimeError with the reason."""
        raise RuntimeError(self.reason)


def trained_subject(
    named: Named,
    classifier: str,
    net: nn.Module,
    net_weights: str,
    dataset: Dataset,
    recipe: str | None,
    progress: Progress,
    seed: int = 0,
) -> Subject:
    """A defense built for a classifier, with its weights trained or loaded; `Unusable` if its code raises.

    Construction and training see `dataset` with an empty test split.
    """
    name, cls = named
    recipe_name, chosen = settings(cls, recipe if recipe in cls.recipes else None, dataset.shape)
    key = weights_key(cls, chosen, dataset, net_weights, seed)
    mine = copy.deepcopy(net)  # what one defense does to its copy reaches no other
    device = dataset.train.images.device

    def build() -> Defense:
        with training.global_seed(seeds.derive("initialise defense", name, key)), its_own_fault():
            return cls(mine, **chosen).to(device).eval()

    losses: Mapping[str, tuple[float, ...]] = {}
    thresholds: Mapping[str, float] = {}
    weights, built, stage, units = "", None, "built", 0.0
    try:
        with untouched(mine):
            built = build()
            if has_door(cls, "fit"):
                stage, trainee = "trained", built

                def fit(generator: Generator, kept: Progress) -> None:
                    with untouched(mine), its_own_fault():
                        trainee.fit(_own_copy(dataset), generator, kept)

                training.load_or_fit(trainee, name, key, fit, progress, source_hash(cls))
                built = build()  # from the file, as every later run sees it: what fit kept elsewhere is lost now
                weights = training.load_or_fit(built, name, key, fit, Progress(), source_hash(cls))
                losses = files.read(training.weights_path(name, key)).losses
            stage = "measured"
            built.requires_grad_(False).eval()
            with training.global_seed(seeds.derive("cost", name)):
                units = _units(built, net, dataset.train.images)
            if has_door(cls, "rejection_score"):
                thresholds = rejection.thresholds(built, dataset.validation.images)
    except BenchError:  # the disk, not the defense
        raise
    except (Exception, SystemExit) as problem:
        if memory.is_full(problem):
            raise memory.ended(f"{name} was not {stage}", problem) from problem
        reason = f"not {stage}: {type(problem).__name__}: {problem}"
        progress.say(f"{name} is {reason}")
        built = Unusable(mine, reason=reason)
    attacked, attacked_weights = net, net_weights
    if built.classifier is not mine:
        attacked = built.classifier
        attacked_weights = seeds.digest(name, chosen, source_hash(cls), training.weights_hash(attacked))
    return Subject(
        name, cls, built, recipe_name, chosen, weights or training.weights_hash(built), classifier, net_weights,
        attacked, attacked_weights, seed, cost.budget(units), units, losses, thresholds=thresholds,
    )  # fmt: skip


def weights_key(
    cls: type[Defense], chosen: Mapping[str, Any], dataset: Dataset, net_weights: str, seed: int = 0
) -> dict[str, Any]:
    """What decides the weights of a defense with the hyper-parameters `chosen`: see training.load_or_fit."""
    key = {"version": cls.version, "dataset": dataset.name, "split": dataset.split, "settings": chosen, "seed": seed}
    return {**key, "classifier": net_weights} if cls.per_classifier else key


def _units(defense: Defense, net: nn.Module, images: Tensor) -> float:
    """What a purification costs; counted where it happens."""
    return defense.units(images) if isinstance(defense, Isolated) else cost.purification_units(defense, net, images)


def _own_copy(dataset: Dataset) -> Dataset:
    """The data for one fit: what it writes into them reaches nobody else, and there is no test image."""

    def cloned(split: Split) -> Split:
        return Split(split.images.clone(), split.labels.clone())

    nothing = Split(torch.empty_like(dataset.test.images[:0]), torch.empty_like(dataset.test.labels[:0]))
    return replace(dataset, train=cloned(dataset.train), validation=cloned(dataset.validation), test=nothing)


def held_to_contract(subject: Subject, progress: Progress) -> Subject:
    """The same subject, or one with `Unusable` in the place of a defense that breaks the contract: not evaluated."""
    problem = next((finding.problem for finding in checks.run(subject.cls) if finding.problem), "")
    if not problem:
        return subject
    progress.say(
        f"{subject.name} breaks the contract and is not evaluated ({problem}); see purifybench check {subject.name}"
    )
    stand_in = Unusable(subject.defense.classifier, reason=f"breaks the contract: {problem}")
    return replace(subject, defense=stand_in)
