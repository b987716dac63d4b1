"""One cell of the benchmark: make the attacked images, run the real defense on them, keep what happened to each image.

The order is a paper's: the images are attacked chunk by chunk; then the defense sees the stored images in a fresh
forward pass, and each is judged against its true label. Failure never helps: where the defense raises, returns NaN,
leaves [0, 1] or changes the shape, the image counts as wrong and the cell says why.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from bench import attacks, device, draws, latent_map, seeds, substitutes, surrogate, threat, training
from bench.attacks import losses
from bench.cache import Arrays, ChunkCache
from bench.catalog import ATTACKS
from bench.class_change import Judge
from bench.data import Split
from bench.defense import Defense, Fact, has_door, source_hash
from bench.facts import facts
from bench.progress import Progress
from bench.protocol import AttackSpec, Budget, Protocol
from bench.record import EXHIBITS, TOLD, Card, Cell, ImagesHash, Outcomes, Record, Run
from bench.statistics import TOLERANCE
from bench.substitutes import SourceNet

VERSION = 4  # of the rules in this file; part of every cell's key
LAYOUT = 4  # of a cached chunk; part of its key
LEARNED = "learned."  # begins the names of the arrays that hold what the attack learned before
MAXIMAL_DISAGREEMENT = 0.005  # between what an attack saw and what scoring sees, for a deterministic defense


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


def evaluate_cell(work: Work, examples: Examples, cache: ChunkCache, progress: Progress) -> Cell:
    """Attack the examples as the work's spec says and score the defense on the attacked images, resuming from
    `cache`."""
    subject, protocol, spec, source = work.subject, work.protocol, work.spec, work.source
    net = source if isinstance(source, SourceNet) else None
    attacked: list[Arrays] = []
    scored: list[Arrays] = []
    errors: list[str] = []
    images_hash = ImagesHash()
    attack_seconds = scoring_seconds = 0.0
    chunks = list(examples.chunks(work.wanted))
    with progress.task(f"{subject.name} · {spec.slug}", total=max(1, int(work.wanted.sum()))) as advance:
        before = lesson(work, examples, cache)
        for rows in chunks:
            images, error = attacked_images(work, examples, rows, cache, before)
            chunk_key = _chunk_key("scores", work.key, examples, rows)
            score = cache.read(chunk_key)
            if score is None:
                score, wrong = score_chunk(subject, protocol, spec, examples, rows, images)
                error = error or wrong
                if error:
                    score = _all_wrong(score) if images["failed"] else score
                    errors.append(error)
                else:
                    cache.write(chunk_key, score)
            attack_seconds += float(images["seconds"])
            scoring_seconds += float(score["seconds"])
            attacked.append(images)
            images_hash.add(rows.tolist(), images["images"])
            scored.append(score)
            advance(len(rows))
    outcomes = _outcomes(examples, work.wanted, attacked, scored)
    errors = (_disagreement(work, attacked, scored) if spec.knows_defense else []) + errors
    curves = [images["losses"] for images in attacked if not images["failed"]]
    curve = np.concatenate(curves, axis=1) if curves else np.empty((0, 0), np.float32)
    looks = sum(float(images["looks"].sum()) for images in attacked)
    blocked = sum(float((images["blocked"] * images["looks"]).sum()) for images in attacked)
    record = Record(
        harness=VERSION,
        key=work.key,
        protocol=protocol.id,
        protocol_hash=protocol.hash,
        dataset=protocol.dataset,
        n_examples=protocol.n_examples,
        defense=subject.name,
        card=card(subject.cls, protocol),
        recipe=subject.recipe,
        settings=subject.settings,
        weights=subject.weights,
        code=source_hash(subject.cls),
        classifier=subject.classifier,
        classifier_weights=subject.classifier_weights,
        budget=subject.budget,
        units=float(f"{subject.units:.4g}"),
        track=spec.track,
        attack=spec.attack,
        attack_version=ATTACKS[spec.attack].version,
        norm=spec.norm,
        eps=spec.eps,
        route=spec.route,
        source=spec.source,
        source_weights=source.weights if source else "",
        source_queries=net.queries if net else 0,
        source_agreement=None if net is None or net.agreement is None else float(f"{net.agreement:.6g}"),
        variant=spec.variant,
        cascade=spec.cascade,
        params=dict(spec.params),
        seed=subject.seed,
        draws=_scoring_draws(subject, protocol),
        thresholds=subject.thresholds,
        status="failed" if errors else "ok",
        error="; ".join(dict.fromkeys(errors))[:2000],
        forward_rows=before.rows[0] + int(sum(images["rows"][0] for images in attacked)),
        backward_rows=before.rows[1] + int(sum(images["rows"][1] for images in attacked)),
        blocked=float(f"{blocked / looks:.6g}") if looks else None,
        loss_curve=_rounded(curve.mean(axis=1)) if curve.size else (),
        facts=_facts(work, examples, attacked, outcomes, progress),
        training=subject.training if spec.slug == "clean.none" else {},
        outcomes_sha256=outcomes.sha256(),
        images_sha256=images_hash.sha256(),
        run=_run(examples.indices.device, before.seconds + attack_seconds, scoring_seconds),
    )
    for rows in chunks:  # the record replaces them
        cache.drop(_chunk_key("scores", work.key, examples, rows))
    return Cell(record, outcomes)


def _facts(
    work: Work, examples: Examples, attacked: Sequence[Arrays], outcomes: Outcomes, progress: Progress
) -> Mapping[str, Fact]:
    """The facts of a whole cell, those that the attack told among them: those of a part of the images, as in a cascade,
    would mislead."""
    if not work.wanted.any() or work.spec.cascade or any(images["failed"] for images in attacked):
        return {}
    told = {
        name: float(np.concatenate([images[name] for images in attacked]).mean())
        for name in attacked[0]
        if name.startswith(TOLD)
    }
    rows = torch.from_numpy(np.flatnonzero(work.wanted)).to(examples.indices.device)
    shown = torch.cat([torch.from_numpy(images["images"]).to(rows.device) for images in attacked])
    correct = torch.from_numpy(outcomes.correct[work.wanted]).to(rows.device)
    clean = examples.clean
    if ATTACKS[work.spec.attack].may_change_class and examples.judge is not None:
        told |= {f"{TOLD}{name}": share for name, share in examples.judge(shown, clean.labels[rows]).items()}
    own = facts(
        work.subject.defense, clean.images[rows], shown, clean.labels[rows], correct, progress,
        with_map=work.spec.slug in latent_map.mapped(work.protocol),
    )  # fmt: skip
    return {**{name: float(f"{mean:.6g}") for name, mean in told.items() if np.isfinite(mean)}, **own}


# ---------------------------------------------------------------------------------------------- attack


def _chunk_key(purpose: str, what: object, examples: Examples, rows: Tensor) -> str:
    images = examples.clean.images[rows].cpu().contiguous().numpy().tobytes()
    content = hashlib.sha256(images).hexdigest()
    indices = examples.indices[rows].tolist()
    return seeds.digest(LAYOUT, purpose, what, examples.dataset, examples.split, indices, content)


def _made_on(work: Work) -> object:
    """What decides attacked images and what is learned for them: the cell's own key where the attacker sees the
    defense, else the model that is attacked, so that all defenses share them."""
    subject, spec = work.subject, work.spec
    if spec.knows_defense:
        return work.key
    on: object = subject.attacked_weights if work.source is None else work.source.answers
    return spec.slug, spec.params, ATTACKS[spec.attack].version, on, work.protocol.seed


def images_key(work: Work, examples: Examples, rows: Tensor) -> str:
    """The key of a chunk of attacked images."""
    return _chunk_key("images", _made_on(work), examples, rows)


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
    key = _chunk_key("learned", _made_on(work), replace(examples, clean=known, indices=everyone), everyone)
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


def _said(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


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
    """
    subject, spec, source = work.subject, work.spec, work.source
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
        with untouched(_shared_net(work)), training.global_seed(seeds.derive(key)):
            labels = threat.predictions(target, clean.images) if spec.predicts_labels else clean.labels
            result = function(target, clean.images, labels, draws=noise, **settings)
    except (Exception, SystemExit) as problem:
        if not _runs_defense(work):
            raise
        spent = (target.forward_rows, target.backward_rows)
        return _no_images(clean, spent, _since(started, clean)), f"under attack: {_said(problem)}"
    right = labels == clean.labels
    result = replace(
        result,
        step_of_success=torch.where(right, result.step_of_success, 0),
        broken=None if result.broken is None else result.broken & right,
    )
    found = _arrays(result, (target.forward_rows, target.backward_rows), _since(started, clean))
    cache.write(key, found)
    return found, ""


def _since(started: float, clean: Split) -> float:
    """The seconds since `started`, all work on the device of these images being done."""
    device.synchronize(clean.labels.device)
    return time.perf_counter() - started


def _no_images(clean: Split, spent: tuple[int, int], seconds: float = 0.0) -> Arrays:
    """Stands where the defense made an attack impossible: the clean images, marked as failed."""
    never = torch.full_like(clean.labels, -1)
    nothing = attacks.Attacked(clean.images.clone(), clean.images.new_empty(0, len(clean)), never)
    return _arrays(nothing, spent, seconds, failed=True)


def _rounded(curve: NDArray[np.float32]) -> tuple[float | None, ...]:
    return tuple(float(f"{loss:.6g}") if math.isfinite(loss) else None for loss in curve)


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
    if spec.track == "rejection":
        beyond = work.subject.thresholds.get(spec.threshold, math.inf)  # none where it could not be built: it raises
        if "class_scores" in ATTACKS[spec.attack].needs:
            return threat.class_acceptance(work.subject.defense, threshold=beyond, eot=eot, seed_parts=seed_parts)
        return threat.acceptance(work.subject.defense, spec.route, threshold=beyond, eot=eot, seed_parts=seed_parts)
    if spec.track == "latent":
        return threat.through_codes(
            work.subject.defense, spec.route, eot=eot, seed_parts=seed_parts, known=examples.validation
        )
    if spec.track == "query":
        return threat.score_only(work.subject.defense, eot=eot, seed_parts=seed_parts)
    return threat.white_box(
        work.subject.defense, spec.route, eot=eot, seed_parts=seed_parts, surrogate=work.subject.surrogate
    )


def _all_wrong(score: Arrays) -> Arrays:
    """What counts where the defense raised under attack, so that no attacked image exists: every image is wrong."""
    n = len(score["correct"])
    wrong = {name: np.zeros(n, np.float32) for name in ("right", "correct", "selection", "selection_margin")}
    wrong |= {"accepted": np.ones(n, np.float32)}
    return {**score, **wrong, "predicted": np.full(n, -1, np.int16), "margin": np.full(n, np.nan, np.float32)}


def _disagreement(work: Work, attacked: list[Arrays], scored: list[Arrays]) -> list[str]:
    """Voids a deterministic cell in which more than 0.5 % of the images that the attack saw broken score as right, or,
    where they had to be accepted, as right or refused."""
    if work.subject.cls.stochastic or not attacked:
        return []
    broken = np.concatenate([images["broken"] for images in attacked])
    right = np.concatenate([score["right"] for score in scored]) > 0
    if work.spec.track == "rejection":
        right |= np.concatenate([score["accepted"] for score in scored]) == 0
    share = float((broken & right).mean())
    if share <= MAXIMAL_DISAGREEMENT:
        return []
    return [f"{share:.1%} of the images were misclassified under attack and score as right: it is not one function"]


# ---------------------------------------------------------------------------------------------- score


def _scoring_draws(subject: Subject, protocol: Protocol) -> int:
    return protocol.scoring_draws if subject.cls.stochastic else 1


@contextmanager
def untouched(classifier: nn.Module) -> Iterator[None]:
    """Raises RuntimeError on leaving if the classifier's weights or mode were changed inside, after mending them."""
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    expected = training.weights_hash(classifier)
    try:
        yield
    finally:
        changed = training.weights_hash(classifier) != expected
        in_training = any(module.training for module in classifier.modules())
        if changed:
            classifier.load_state_dict(before)
        classifier.eval()
    if changed or in_training:
        what = "changed the shared classifier's weights" if changed else "put the shared classifier in training mode"
        raise RuntimeError(f"the defense {what}")


class Answer(NamedTuple):
    """One draw of a defense: purified images (N, C, H, W), logits (N, K), and the rejection score (N,) of a selective
    defense."""

    purified: Tensor
    logits: Tensor
    score: Tensor | None


def defended(defense: Defense, images: Tensor, generator: Generator) -> Answer:
    """One draw of the real pipeline, without gradients, checked.

    Raises ValueError for a wrong shape or type, or if the defense wrote to its input. Rows that are not finite, or
    purified out of [0, 1], get NaN logits.
    """
    with torch.no_grad():
        state, given = generator.get_state(), images.clone()
        purified = defense.purify(given, generator)
        if not isinstance(purified, Tensor) or purified.shape != images.shape or purified.dtype != images.dtype:
            raise ValueError(f"purify returned {_described(purified)}, expected {_described(images)}")
        if has_door(defense, "logits"):
            generator.set_state(state)
            logits = defense.logits(given, generator)
        else:
            logits = defense.classifier(purified)
        score = None
        if has_door(defense, "rejection_score"):
            generator.set_state(state)
            score = defense.rejection_score(given, generator)
        if not torch.equal(given, images):
            raise ValueError("the defense wrote to its input images; work on images.clone()")
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(f"logits are {_described(logits)}, expected ({len(images)}, classes)")
        if score is not None and (not isinstance(score, Tensor) or score.shape != (len(images),)):
            raise ValueError(f"the rejection score is {_described(score)}, expected ({len(images)},)")
        flat = purified.flatten(1)
        sound = (
            flat.isfinite().all(dim=1)
            & (flat.amin(dim=1) >= 0)
            & (flat.amax(dim=1) <= 1)
            & logits.isfinite().all(dim=1)
        )
        if score is not None:
            sound &= score.isfinite()
        return Answer(purified, torch.where(sound[:, None], logits, torch.nan), score)


def _described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def score_chunk(
    subject: Subject, protocol: Protocol, spec: AttackSpec, examples: Examples, rows: Tensor, images: Arrays
) -> tuple[Arrays, str]:
    """What happened to one chunk of stored images, and what the defense did wrong ("" if nothing)."""
    started = time.perf_counter()
    clean, place = examples.clean[rows], examples.indices.device
    attacked = torch.from_numpy(images["images"]).to(place)
    if not bool((attacked.isfinite() & (attacked >= 0) & (attacked <= 1)).all()):
        raise AssertionError(f"{spec.slug} left [0, 1]: a bug in the attack, not in the defense")
    distance = (attacked.double() - clean.images.double()).flatten(1)
    linf, l2 = distance.abs().amax(dim=1), distance.norm(dim=1)
    reached = {"linf": linf, "l2": l2}.get(spec.norm or "")
    if reached is not None and spec.eps is not None and float(reached.max()) > spec.eps + TOLERANCE:
        raise AssertionError(f"{spec.slug} left its ball: a bug in the attack, not in the defense")
    n, n_draws, threshold = len(clean), _scoring_draws(subject, protocol), subject.thresholds.get(spec.threshold)
    seed_parts = (protocol.seed, "score", examples.dataset, spec.slug, int(rows[0]))
    right, selection = torch.zeros(n, device=place), torch.zeros(n, device=place)
    margin, selection_margin = torch.zeros(n, device=place), torch.zeros(n, device=place)
    accepted, kept, rejection = (torch.zeros(n, device=place) for _ in range(3))
    predicted = torch.full((n,), -1, device=place)
    shown = torch.zeros_like(attacked)
    error = ""
    try:
        with untouched(subject.defense.classifier), training.global_seed(seeds.derive(*seed_parts, "global")):
            generator = draws.generator(place, *seed_parts)
            for _ in range(protocol.selection_draws if subject.cls.stochastic else 0):
                _, logits, score = defended(subject.defense, attacked, generator)
                sound = (logits.argmax(dim=1) == clean.labels) & logits.isfinite().all(dim=1)
                selection += torch.where(_refused(score, threshold, logits), 0.5, sound.float())
                selection_margin += losses.true_gap(logits, clean.labels) / protocol.selection_draws
            for draw in range(n_draws):
                purified, logits, score = defended(subject.defense, attacked, generator)
                broken = ~logits.isfinite().all(dim=1)
                if bool(broken.any()):
                    error = "purified images or logits were not finite, or left [0, 1]"
                found = torch.where(broken, -1, logits.argmax(dim=1))
                refused = _refused(score, threshold, logits)
                right += found == clean.labels
                kept += (found == clean.labels) & ~refused
                accepted += ~refused
                rejection += 0 if score is None else score / n_draws
                margin += losses.true_gap(logits, clean.labels) / n_draws
                if draw == 0:
                    predicted, shown = found, purified
    except (Exception, SystemExit) as problem:  # whatever a defense does wrong, it never gains by it
        error = f"{type(problem).__name__}: {problem}"
        right, kept, selection, rejection = (torch.zeros(n, device=place) for _ in range(4))
        accepted = torch.full((n,), float(n_draws), device=place)
        margin, selection_margin = torch.full((n,), torch.nan, device=place), torch.zeros(n, device=place)
        predicted = torch.full((n,), -1, device=place)
    shown_rows = (rows < EXHIBITS).to(place)
    if not subject.cls.stochastic:
        selection = torch.where(accepted > 0, right, 0.5) if threshold is not None else right
    found_scores = {
        "predicted": predicted.cpu().numpy().astype(np.int16),
        "right": (right / n_draws).cpu().numpy().astype(np.float32),
        "correct": (kept / n_draws).cpu().numpy().astype(np.float32),
        "accepted": (accepted / n_draws).cpu().numpy().astype(np.float32),
        "rejection_score": rejection.cpu().numpy().astype(np.float32),
        "selection": (selection / protocol.selection_draws if subject.cls.stochastic else selection).cpu().numpy(),
        "selection_margin": selection_margin.cpu().numpy().astype(np.float32),
        "margin": margin.cpu().numpy().astype(np.float32),
        "linf": linf.cpu().numpy().astype(np.float32),
        "l2": l2.cpu().numpy().astype(np.float32),
        "exhibits": torch.stack([_bytes(x[shown_rows]) for x in (clean.images, attacked, shown)]).cpu().numpy(),
        "seconds": np.array(time.perf_counter() - started),  # reading the answers has waited for the device
    }
    return found_scores, error


def _refused(score: Tensor | None, threshold: float | None, logits: Tensor) -> Tensor:
    """Which images (N,) a selective defense refuses; none whose answer is not finite, as failure never helps."""
    if score is None or threshold is None:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    return (score > threshold) & logits.isfinite().all(dim=1)


def _bytes(images: Tensor) -> Tensor:
    return (torch.nan_to_num(images).clamp(0, 1) * 255).round().to(torch.uint8)


def _outcomes(examples: Examples, wanted: Wanted, attacked: list[Arrays], scored: list[Arrays]) -> Outcomes:
    n = len(wanted)

    def spread(name: str, parts: list[Arrays], blank: NDArray[Any]) -> NDArray[Any]:
        if parts:
            blank[wanted] = np.concatenate([part[name] for part in parts])
        return blank

    blanks = {name: np.full(n, np.nan, np.float32) for name in ("correct", "selection", "selection_margin", "margin")}
    blanks |= {name: np.full(n, np.inf, np.float32) for name in ("linf", "l2")}
    blanks["predicted"] = np.full(n, -1, np.int16)
    blanks |= {"accepted": np.ones(n, np.float32), "rejection_score": np.zeros(n, np.float32)}
    shape = examples.clean.images.shape[1:]
    pictures = np.zeros((3, min(EXHIBITS, n), *shape), np.uint8)  # black where an image was not attacked
    if scored:
        pictures[:, wanted[:EXHIBITS]] = np.concatenate([part["exhibits"] for part in scored], axis=1)
    return Outcomes(
        attacked=wanted.copy(),
        label=examples.clean.labels.cpu().numpy().astype(np.int16),
        step_of_success=spread("step_of_success", attacked, np.full(n, -1, np.int16)),
        exhibits=pictures,
        **{name: spread(name, scored, blank) for name, blank in blanks.items()},
    )


# ---------------------------------------------------------------------------------------------- provenance


def _run(place: torch.device, attack_seconds: float, scoring_seconds: float) -> Run:
    peak = torch.cuda.max_memory_allocated(place) / 2**20 if place.type == "cuda" else device.peak_memory_mb()
    return Run(
        attack_seconds=round(attack_seconds, 3),
        scoring_seconds=round(scoring_seconds, 3),
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        threads=torch.get_num_threads(),
        peak_memory_mb=round(peak, 1),
        versions=versions(),
        commit=commit(),
    )


@cache
def versions() -> dict[str, str]:
    """The versions that a number may depend on."""
    found = {name: metadata.version(name) for name in ("numpy", "torch")}
    return {"purifybench": metadata.version("purifybench"), "python": platform.python_version(), **found}


@cache
def commit() -> str:
    """The commit that this code is of; empty outside of a repository."""
    here = Path(__file__).parent
    answer = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
    )  # fmt: skip
    return answer.stdout.strip() if answer.returncode == 0 and (here.parent / ".git").exists() else ""
