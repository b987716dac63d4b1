"""One cell of the benchmark: make the attacked images, run the real defense on them, keep what happened to each image.

The order is a paper's: the images are attacked chunk by chunk; then the defense sees the stored images in a fresh
forward pass, and each is judged against its true label. Failure never helps: where the defense raises, returns NaN,
leaves [0, 1] or changes the shape, the image counts as wrong and the cell says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import latent_map, provenance
from bench.attacking import attacked_images, lesson
from bench.cache import Arrays, ChunkCache
from bench.catalog import ATTACKS
from bench.defense import Fact, source_hash
from bench.facts import facts
from bench.progress import Progress
from bench.record import EXHIBITS, TOLD, Cell, ImagesHash, Outcomes, Record
from bench.scoring import all_wrong, score_chunk, scoring_draws
from bench.substitutes import SourceNet
from bench.work import VERSION, Examples, Wanted, Work, card, chunk_key

MAXIMAL_DISAGREEMENT = 0.005  # between what an attack saw and what scoring sees, for a deterministic defense


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
            key = chunk_key("scores", work.key, examples, rows)
            score = cache.read(key)
            if score is None:
                score, wrong = score_chunk(subject, protocol, spec, examples, rows, images)
                error = error or wrong
                if error:
                    score = all_wrong(score) if images["failed"] else score
                    errors.append(error)
                else:
                    cache.write(key, score)
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
        draws=scoring_draws(subject, protocol),
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
        run=provenance.of(examples.indices.device, before.seconds + attack_seconds, scoring_seconds),
    )
    for rows in chunks:  # the record replaces them
        cache.drop(chunk_key("scores", work.key, examples, rows))
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


def _disagreement(work: Work, attacked: list[Arrays], scored: list[Arrays]) -> list[str]:
    """Voids a deterministic cell in which more than 0.5 % of the images that the attack saw broken score as right, or,
    where they had to be accepted, as right or refused."""
    if work.subject.cls.stochastic or not attacked:
        return []
    broken = np.concatenate([images["broken"] for images in attacked])
    right = np.concatenate([score["right"] for score in scored]) > 0
    if ATTACKS[work.spec.attack].past_detector:
        right |= np.concatenate([score["accepted"] for score in scored]) == 0
    share = float((broken & right).mean())
    if share <= MAXIMAL_DISAGREEMENT:
        return []
    return [f"{share:.1%} of the images were misclassified under attack and score as right: it is not one function"]


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


def _rounded(curve: NDArray[np.float32]) -> tuple[float | None, ...]:
    return tuple(float(f"{loss:.6g}") if math.isfinite(loss) else None for loss in curve)
