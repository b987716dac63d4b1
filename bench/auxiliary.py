"""The nets that cells need beside their subject: what transfer images are made on, what imitates a defense or its
purifier, and who judges whether an image changed its class."""

from __future__ import annotations

from dataclasses import replace

from torch import Generator, Tensor, nn

from bench import memory, plugins, seeds, substitutes, surrogate, training
from bench import sources as origins
from bench.class_change import Judge
from bench.data import Dataset
from bench.defense import settings
from bench.errors import BenchError
from bench.guards import its_own_fault, untouched
from bench.progress import Progress
from bench.scoring import defended
from bench.subjects import Unusable, trained_subject, weights_key
from bench.substitutes import SourceNet
from bench.work import Subject

JUDGE = "pgd_training"  # its net helps to say whether an image changed its class


def source_of(
    name: str, classifier: str, net: nn.Module, net_weights: str, dataset: Dataset, progress: Progress
) -> Subject | SourceNet:
    """What images that all defenses of a classifier are shown are made on, trained or loaded."""
    origin = origins.parse(name)
    if origin.kind == "classifier":
        return substitutes.independent(origin.name, net, dataset, progress)
    if origin.kind == "substitute":
        oracle = substitutes.answers_of(net)
        of = f"classifier {classifier}"
        return substitutes.trained(
            origin.name, oracle, net_weights, dataset, progress, of=of, recipe=substitutes.PAPERNOT
        )
    named = name, plugins.load(name)
    return trained_subject(named, classifier, net, net_weights, dataset, None, progress)


def judge_of(classifier: str, net: nn.Module, net_weights: str, dataset: Dataset, progress: Progress) -> Judge:
    """Who says whether attacked images still show what they showed: PGD training and the training images."""
    cls = plugins.load(JUDGE)
    key = weights_key(cls, settings(cls, None, dataset.shape)[1], dataset, net_weights)
    if not training.weights_path(JUDGE, key).exists():
        progress.say(
            f"{JUDGE} is trained first, once a data set and classifier: the class-change judge of the latent track "
            "needs it"
        )
    found = source_of(JUDGE, classifier, net, net_weights, dataset, progress)
    if not isinstance(found, Subject) or isinstance(found.defense, Unusable):
        raise BenchError(
            f"{JUDGE}, which says whether an image changed its class, cannot be used; see purifybench train {JUDGE}"
        )
    return Judge(found.defense.classifier, dataset.train, found.weights)


def imitation_of(name: str, subject: Subject, dataset: Dataset, progress: Progress) -> SourceNet:
    """The net that an attacker trains on a defense's answers; where it gives none, cells made on it say why."""

    def oracle(images: Tensor, generator: Generator) -> Tensor:
        with its_own_fault(), training.global_seed(seeds.derive("query", generator.initial_seed())):
            logits = defended(subject.defense, images, generator).logits
        if not bool(logits.isfinite().all()):
            raise ValueError("purified images or logits were not finite, or left [0, 1]")
        return logits.argmax(dim=1)

    architecture = origins.parse(name).name
    try:
        with untouched(subject.defense.classifier):
            return substitutes.trained(
                architecture, oracle, answers_key(subject), dataset, progress, of=subject.name,
                recipe=substitutes.PAPERNOT,
            )  # fmt: skip
    except BenchError:  # the disk, not the defense
        raise
    except (Exception, SystemExit) as problem:
        if memory.is_full(problem):
            raise memory.ended(f"{subject.name}, asked for labels", problem) from problem
        return SourceNet(nn.Identity(), "", problem=f"asked for labels: {type(problem).__name__}: {problem}")


def answers_key(subject: Subject) -> str:
    """A hash of all that decides what a defense answers to queries."""
    return seeds.digest(*subject.answers)


def with_surrogate(subject: Subject, dataset: Dataset, progress: Progress) -> Subject:
    """The subject with the harness's imitation of its purifier; where that cannot be trained, the cells say why."""
    key, examples = answers_key(subject), surrogate.EXAMPLES[subject.budget]
    try:
        with untouched(subject.defense.classifier):
            imitation = surrogate.trained(subject.defense, subject.name, key, dataset, examples, progress)
    except BenchError:  # the disk, not the defense
        raise
    except (Exception, SystemExit) as problem:
        if memory.is_full(problem):
            raise memory.ended(f"the surrogate of {subject.name}", problem) from problem
        progress.say(f"no surrogate of {subject.name}: {type(problem).__name__}: {problem}")
        return subject
    return replace(subject, surrogate=imitation)
