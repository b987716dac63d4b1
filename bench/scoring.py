"""Chunks of scores: the real defense in a fresh forward pass on stored images, each judged against its true label.

Failure never helps: an image that the defense has no sound answer to counts as wrong. A machine with too little memory
is no failure of the defense: there it is asked about fewer images at once.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from bench import draws, memory, seeds, training
from bench.attacks import losses
from bench.cache import Arrays
from bench.defense import Defense, has_door
from bench.guards import untouched
from bench.protocol import AttackSpec, Protocol
from bench.record import EXHIBITS
from bench.statistics import TOLERANCE
from bench.work import Examples, Subject


def scoring_draws(subject: Subject, protocol: Protocol) -> int:
    """The draws over which an outcome is a mean: 1 for a deterministic defense."""
    return protocol.scoring_draws if subject.cls.stochastic else 1


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
    """What happened to one chunk of stored images, and what the defense did wrong ("" if nothing).

    Where memory runs out the rows are scored in pieces (bench.memory). For a deterministic defense that changes no more
    than the last digits, where a product's rounding depends on the size of a batch; of a random one the draws follow
    from the first row of each piece. Raises BenchError where a single image does not fit.
    """

    def some(places: Tensor) -> tuple[Arrays, str]:
        return _scored(subject, protocol, spec, examples, rows[places], images["images"][places.cpu().numpy()])

    everyone = torch.arange(len(rows), device=rows.device)
    pieces = memory.in_pieces(some, everyone, f"{subject.name}, {spec.slug}")
    whole: dict[str, NDArray[Any]] = {"seconds": np.array(sum(float(arrays["seconds"]) for arrays, _ in pieces))}
    for name in pieces[0][0].keys() - whole:
        parts = [arrays[name] for arrays, _ in pieces]
        whole[name] = np.concatenate(parts, axis=int(name == "exhibits"))
    return whole, "; ".join(dict.fromkeys(error for _, error in pieces if error))


def _scored(
    subject: Subject, protocol: Protocol, spec: AttackSpec, examples: Examples, rows: Tensor, images: NDArray[Any]
) -> tuple[Arrays, str]:
    """The images at `rows`, (N, C, H, W) as attacked, scored together. A full memory is raised, whoever filled it."""
    started = time.perf_counter()
    clean, place = examples.clean[rows], examples.indices.device
    attacked = torch.from_numpy(images).to(place)
    if not bool((attacked.isfinite() & (attacked >= 0) & (attacked <= 1)).all()):
        raise AssertionError(f"{spec.slug} left [0, 1]: a bug in the attack, not in the defense")
    distance = (attacked.double() - clean.images.double()).flatten(1)
    linf, l2 = distance.abs().amax(dim=1), distance.norm(dim=1)
    reached = {"linf": linf, "l2": l2}.get(spec.norm or "")
    if reached is not None and spec.eps is not None and float(reached.max()) > spec.eps + TOLERANCE:
        raise AssertionError(f"{spec.slug} left its ball: a bug in the attack, not in the defense")
    n, n_draws, threshold = len(clean), scoring_draws(subject, protocol), subject.thresholds.get(spec.threshold)
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
        if memory.is_full(problem):
            raise
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


def all_wrong(score: Arrays) -> Arrays:
    """What counts where the defense raised under attack, so that no attacked image exists: every image is wrong."""
    n = len(score["correct"])
    wrong = {name: np.zeros(n, np.float32) for name in ("right", "correct", "selection", "selection_margin")}
    wrong |= {"accepted": np.ones(n, np.float32)}
    return {**score, **wrong, "predicted": np.full(n, -1, np.int16), "margin": np.full(n, np.nan, np.float32)}
