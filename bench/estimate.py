"""The time that open cells will take, from a short measurement on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench import attack_cost, device, draws, substitutes
from bench import sources as origins
from bench.attacking import images_key
from bench.auxiliary import answers_key
from bench.cache import ChunkCache
from bench.catalog import ATTACKS
from bench.defense import has_door
from bench.guards import untouched
from bench.work import Examples, Subject, Work

EARLY = 0.4  # of the steps of an attack whose images may leave the batch, as far as experience goes


def expected_seconds(
    open_work: Sequence[Sequence[Work]], examples: Examples, cache: ChunkCache
) -> dict[tuple[str, int, str], float]:
    """The time each cell will take, from a short measurement on this machine: the classifier's forward and backward
    pass for images that are still to be attacked, the defense's forward pass for scoring and for the labels that an
    imitation asks for."""
    expected: dict[tuple[str, int, str], float] = {}
    works = [work for part in open_work for work in part]
    if not works:
        return expected
    probe = examples.clean.images[next(examples.chunks())]
    attacking = _gradient_seconds(works[0].subject.attacked, probe) / len(probe)
    purifying: dict[str, float] = {}
    in_a_hurry: dict[str, float] = {}
    done: set[tuple[object, ...]] = set()
    for work in works:
        subject, spec, source = work.subject, work.spec, work.source
        for one in (subject, source):
            if isinstance(one, Subject) and one.name not in purifying:
                purifying[one.name] = _purify_seconds(one, probe) / len(probe)
        stochastic = subject.cls.stochastic
        forward, backward = attack_cost.each_image(spec, stochastic=stochastic)
        ahead, back = attack_cost.learning(spec, stochastic=stochastic)
        n = int(work.wanted.sum())
        if spec.knows_defense:  # through the defense: its backward pass takes about twice its forward pass
            alone_ahead, alone_back = ATTACKS[spec.attack].undrawn(**dict(spec.params))  # a decoder, say, by itself
            quick_ahead, quick_back = attack_cost.hurried(spec, stochastic=stochastic)
            if quick_ahead and subject.name not in in_a_hurry:
                in_a_hurry[subject.name] = _hurried_seconds(subject, probe) / len(probe)
            passes = 3 * (backward - alone_back - quick_back) or forward - alone_ahead - quick_ahead
            each = purifying[subject.name] * passes + attacking * (alone_back or alone_ahead)
            each += in_a_hurry.get(subject.name, 0.0) * (3 * quick_back or quick_ahead)
            seconds = each * n * (1 if stochastic else EARLY)
            seconds += purifying[subject.name] * (3 * back or ahead)
        elif spec.imitates_defense:
            seconds = attacking * backward * n
            architecture, asked = origins.parse(spec.source).name, answers_key(subject)
            kept = substitutes.is_kept(architecture, asked, examples.dataset, examples.split, substitutes.PAPERNOT)
            if not kept and (asked, spec.source) not in done:
                done.add((asked, spec.source))
                recipe = substitutes.PAPERNOT
                seconds += attacking * recipe.rows
                seconds += purifying[subject.name] * (recipe.queries + substitutes.COMPARED)
        elif (spec.slug,) in done:
            seconds = 0.0
        else:  # the others share its images
            done.add((spec.slug,))
            chunks = (rows for rows in examples.chunks(work.wanted) if not cache.has(images_key(work, examples, rows)))
            unit = 3 * purifying[source.name] if isinstance(source, Subject) else attacking
            images = sum(len(rows) for rows in chunks)
            seconds = unit * (backward * images + (back if images else 0))
        looks = work.protocol.looks(stochastic=stochastic) * n
        expected[subject.name, subject.seed, spec.slug] = seconds + purifying[subject.name] * looks
    return expected


def _gradient_seconds(net: nn.Module, probe: Tensor) -> float:
    def gradient() -> None:
        images = probe.clone().requires_grad_()
        torch.autograd.grad(net(images).sum(), images)

    return _seconds(gradient, probe.device)


def _purify_seconds(subject: Subject, probe: Tensor) -> float:
    generator = draws.generator(probe.device, "estimate")

    def purify() -> None:
        with torch.no_grad():
            subject.defense.logits(probe.clone(), generator)

    try:
        with untouched(subject.defense.classifier):
            return _seconds(purify, probe.device)
    except (Exception, SystemExit):  # it will fail in its cells, and be recorded there
        return 0.0


def _hurried_seconds(subject: Subject, probe: Tensor) -> float:
    """As `_purify_seconds`, in a hurry where the defense can."""
    if not has_door(subject.cls, "hurried"):
        return _purify_seconds(subject, probe)
    try:
        return _purify_seconds(replace(subject, defense=subject.defense.hurried()), probe)
    except (Exception, SystemExit):
        return 0.0


def _seconds(work: Callable[[], None], on: torch.device) -> float:
    work()
    device.synchronize(on)
    started = time.perf_counter()
    work()
    device.synchronize(on)
    return time.perf_counter() - started
