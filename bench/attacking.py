"""Chunks of attacked images: made as a cell's work says, or found in the cache, with what was learned before.

Where the defense makes an attack impossible, clean images marked as failed stand in for it. Where memory runs out, the
images are attacked in smaller pieces.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from bench import attacks, device, draws, memory, seeds, threat, training
from bench.cache import Arrays, ChunkCache
from bench.catalog import ATTACKS
from bench.data import Split
from bench.guards import untouched
from bench.protocol import AttackSpec
from bench.record import TOLD
from bench.substitutes import SourceNet
from bench.work import Examples, Work, chunk_key

LEARNED = "learned."  # begins the names of the arrays that hold what the attack learned before


def images_key(work: Work, examples: Examples, rows: Tensor) -> str:
    """The key of a chunk of attacked images."""
    return chunk_key("images", _made_on(work), examples, rows)


def _made_on(work: Work) -> object:
    """What decides attacked images and what is learned for them: the cell's own key where the attacker sees the
    defense, else the model that is attacked, so that all defenses share them."""
    subject, spec = work.subject, work.spec
    if spec.knows_defense:
        return work.key
    on: object = subject.attacked_weights if work.source is None else work.source.answers
    return spec.slug, spec.params, ATTACKS[spec.attack].version, on, work.protocol.seed


@dataclass(frozen=True)
class Lesson:
    """What an attack `learned` before it attacked, the `rows` (forward, backward) and seconds that it took, in
    whichever run that was, and the `problem` where the defense made it impossible."""

    learned: Mapping[str, Tensor] = field(default_factory=dict)
    rows: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    problem: str = ""


def lesson(work: Work, examples: Examples, cache: ChunkCache) -> Lesson:
    """What the work's attack learns once a cell from the validation split, or has learned, from the cache; empty where
    it learns nothing. It is shared where attacked images are."""
    spec = work.spec
    learn = attacks.learner(spec.attack)
    if learn is None or not work.wanted.any() or (isinstance(work.source, SourceNet) and work.source.problem):
        return Lesson()
    known = examples.validation
    everyone = torch.arange(len(known), device=known.labels.device)
    key = chunk_key("learned", _made_on(work), replace(examples, clean=known, indices=everyone), everyone)
    found = cache.read(key)
    if found is None:
        started = time.perf_counter()
        target = _target(work, examples, "learning")
        _, settings = attacks.split_settings(spec.attack, _settings(spec))
        _, own = attacks.split_settings(spec.attack, spec.settings)  # the same numbers at every radius
        purpose = (work.protocol.seed, "learn", spec.attack, own, examples.dataset)
        generator = draws.generator(known.images.device, *purpose)
        try:
            with untouched(_shared_net(work)), training.global_seed(seeds.derive(key)):
                learned = learn(target, known.images, known.labels, generator=generator, **settings)
        except (Exception, SystemExit) as problem:
            if memory.is_full(problem):
                raise memory.ended(f"{_named(work)}, as the attack learned", problem) from None
            if not _runs_defense(work):
                raise
            spent = (target.forward_rows, target.backward_rows)
            return Lesson({}, spent, _since(started, known), f"as an attack learned: {_said(problem)}")
        found = {f"{LEARNED}{name}": tensor.detach().cpu().numpy() for name, tensor in learned.items()}
        found |= {"rows": np.array((target.forward_rows, target.backward_rows), dtype=np.int64)}
        found |= {"seconds": np.array(_since(started, known))}
        cache.write(key, found)
    kept = {name.removeprefix(LEARNED): array for name, array in found.items() if name.startswith(LEARNED)}
    tensors = {name: torch.from_numpy(array).to(known.images.device) for name, array in kept.items()}
    return Lesson(tensors, (int(found["rows"][0]), int(found["rows"][1])), float(found["seconds"]))


def attacked_images(
    work: Work, examples: Examples, rows: Tensor, cache: ChunkCache, before: Lesson
) -> tuple[Arrays, str]:
    """One chunk of images, attacked as the work's spec says with what was learned `before`, or found in the cache; and
    why the defense made that impossible.

    An attack that is given predicted labels cannot tell which images the attacked model gets wrong when clean: these
    have a success at step 0, and do not count as `broken`.

    Arrays: `images` float32 (N, C, H, W), `losses` (steps + 1, N), `step_of_success` (N,), `broken` (N,) the images
    that the attack saw misclassified (all False where it keeps no track), `blocked` and `looks` (N,) how often the
    gradient was of no use, `rows` (forward, backward), `seconds` () that
    making them took, in whichever run that was, `failed` (); and what the attack `told` of each image, (N,) each.

    Where memory runs out the rows are attacked in pieces (bench.memory). For a deterministic defense that changes no
    more than the last digits, where a product's rounding depends on the size of a batch; of a random one the draws
    follow from the first row of each piece. Raises BenchError where a single image does not fit.
    """
    spec, source = work.spec, work.source
    assert bool(spec.source) == (source is not None), f"{spec.slug} was given no source"
    clean = examples.clean[rows]
    if isinstance(source, SourceNet) and source.problem:
        return _no_images(clean, (0, 0)), source.problem
    if before.problem:
        return _no_images(clean, (0, 0)), before.problem
    key = images_key(work, examples, rows)
    found = cache.read(key)
    if found is not None:
        return found, ""
    pieces = memory.in_pieces(lambda some: _attacked(work, examples, some, before), rows, _named(work))
    problem = next((said for _, said in pieces if said), "")
    found = _joined([arrays for arrays, _ in pieces])
    if problem:
        return _no_images(clean, (int(found["rows"][0]), int(found["rows"][1])), float(found["seconds"])), problem
    cache.write(key, found)
    return found, ""


def _attacked(work: Work, examples: Examples, rows: Tensor, before: Lesson) -> tuple[Arrays, str]:
    """The images at `rows`, attacked together. A full memory is raised, whoever filled it."""
    subject, spec, clean = work.subject, work.spec, examples.clean[rows]
    started = time.perf_counter()
    noise = _noise(work, examples, rows)
    target = _target(work, examples, int(rows[0]))
    function = attacks.get(spec.attack)
    settings, _ = attacks.split_settings(spec.attack, _settings(spec))
    if ATTACKS[spec.attack].learns:
        settings["learned"] = before.learned
    if (
        spec.knows_defense
        and not subject.cls.stochastic
        and "stop_when_broken" in inspect.signature(function).parameters
    ):
        settings["stop_when_broken"] = True  # the attacked pipeline is the scored one, and one answer is proof
    try:
        with untouched(_shared_net(work)), training.global_seed(seeds.derive(images_key(work, examples, rows))):
            labels = threat.predictions(target, clean.images) if spec.predicts_labels else clean.labels
            result = function(target, clean.images, labels, draws=noise, **settings)
    except (Exception, SystemExit) as problem:
        if memory.is_full(problem) or not _runs_defense(work):
            raise
        spent = (target.forward_rows, target.backward_rows)
        return _no_images(clean, spent, _since(started, clean)), f"under attack: {_said(problem)}"
    right = labels == clean.labels
    result = replace(
        result,
        step_of_success=torch.where(right, result.step_of_success, 0),
        broken=None if result.broken is None else result.broken & right,
    )
    return _arrays(result, (target.forward_rows, target.backward_rows), _since(started, clean)), ""


def _joined(pieces: Sequence[Arrays]) -> Arrays:
    """The arrays of pieces that were attacked one after the other, as those of one; without images where one failed."""
    if len(pieces) == 1:
        return pieces[0]
    joined = {"rows": np.sum([piece["rows"] for piece in pieces], axis=0)}
    joined |= {"seconds": np.array(sum(float(piece["seconds"]) for piece in pieces))}
    joined |= {"failed": np.array(any(bool(piece["failed"]) for piece in pieces))}
    if joined["failed"]:
        return joined
    per_image = [name for name in pieces[0] if name not in joined]
    return joined | {
        name: np.concatenate([piece[name] for piece in pieces], axis=int(name == "losses")) for name in per_image
    }


def _settings(spec: AttackSpec) -> dict[str, object]:
    """The keyword arguments that a spec gives an attack: its own, the radius, and the norm where there is a choice."""
    settings: dict[str, object] = {**spec.settings}
    if spec.eps is not None:
        settings["eps"] = spec.eps
    if len(ATTACKS[spec.attack].norms) > 1 and spec.norm is not None:
        settings["norm"] = spec.norm
    return settings


def _shared_net(work: Work) -> nn.Module:
    """The classifier that a defense is handed while it is attacked."""
    return work.source.net if isinstance(work.source, SourceNet) else (work.source or work.subject).defense.classifier


def _runs_defense(work: Work) -> bool:
    """Whether code of the defense is run while it is attacked: then what is raised is the defense's failure."""
    own_net = work.subject.attacked_weights != work.subject.classifier_weights
    return work.source is None and (work.spec.knows_defense or own_net)


def _named(work: Work) -> str:
    """The defense and the cell, for errors."""
    return f"{work.subject.name}, {work.spec.slug}"


def _said(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


def _since(started: float, clean: Split) -> float:
    """The seconds since `started`, all work on the device of these images being done."""
    device.synchronize(clean.labels.device)
    return time.perf_counter() - started


def _no_images(clean: Split, spent: tuple[int, int], seconds: float = 0.0) -> Arrays:
    """Stands where the defense made an attack impossible: the clean images, marked as failed."""
    never = torch.full_like(clean.labels, -1)
    nothing = attacks.Attacked(clean.images.clone(), clean.images.new_empty(0, len(clean)), never)
    return _arrays(nothing, spent, seconds, failed=True)


def _arrays(result: attacks.Attacked, spent: tuple[int, int], seconds: float, *, failed: bool = False) -> Arrays:
    none = torch.zeros_like(result.step_of_success)
    broken = none.bool() if result.broken is None else result.broken
    blocked, looks = (none if part is None else part for part in (result.blocked, result.looks))
    return {
        "images": result.images.cpu().numpy(),
        "losses": result.losses.float().cpu().numpy(),
        "step_of_success": result.step_of_success.cpu().numpy().astype(np.int16),
        "broken": broken.cpu().numpy(),
        "blocked": blocked.float().cpu().numpy(),
        "looks": looks.cpu().numpy(),
        "rows": np.array(spent, dtype=np.int64),
        "seconds": np.array(seconds),
        "failed": np.array(failed),
        **{f"{TOLD}{name}": values.double().cpu().numpy() for name, values in result.told.items()},
    }


def _noise(work: Work, examples: Examples, rows: Tensor) -> draws.ImageDraws:
    """The attack's own random numbers: the same for every radius, so that a larger ball starts further out, and for
    every strength of a sweep."""
    spec = work.spec
    params = tuple((name, value) for name, value in spec.params if name != ATTACKS[spec.attack].strength)
    purpose = (work.protocol.seed, "attack", spec.attack, params, examples.dataset)
    return draws.ImageDraws.derived(examples.indices[rows], *purpose)


def _target(work: Work, examples: Examples, first: int | str) -> threat.Target:
    spec = work.spec
    if isinstance(work.source, SourceNet):
        return threat.gray_box(work.source.net)
    if work.source is not None:
        return threat.white_box(
            work.source.defense, "autograd", eot=1, seed_parts=(work.protocol.seed, "source", first)
        )
    if not spec.knows_defense:
        return threat.gray_box(work.subject.attacked)
    seed_parts = (work.protocol.seed, "attacked draws", work.subject.name, work.subject.seed, spec.slug, first)
    eot = spec.eot(stochastic=True)
    beyond = work.subject.thresholds.get(spec.threshold, math.inf)  # none where it could not be built: it raises
    if spec.track == "rejection":
        if "class_scores" in ATTACKS[spec.attack].needs:
            return threat.class_acceptance(work.subject.defense, threshold=beyond, eot=eot, seed_parts=seed_parts)
        return threat.acceptance(work.subject.defense, spec.route, threshold=beyond, eot=eot, seed_parts=seed_parts)
    if spec.track == "latent":
        return threat.through_codes(
            work.subject.defense, spec.route, eot=eot, seed_parts=seed_parts, known=examples.validation
        )
    if spec.track == "query" and ATTACKS[spec.attack].past_detector:
        return threat.acceptance_score_only(work.subject.defense, threshold=beyond, eot=eot, seed_parts=seed_parts)
    if spec.track == "query":
        return threat.score_only(work.subject.defense, eot=eot, seed_parts=seed_parts)
    return threat.white_box(
        work.subject.defense, spec.route, eot=eot, seed_parts=seed_parts, surrogate=work.subject.surrogate
    )
