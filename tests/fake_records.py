"""Made-up cells for tests of the site: random numbers that mean nothing, in the shape of real ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bench import seeds
from bench.protocol import AttackSpec, Protocol
from bench.record import EXHIBITS, Card, Cell, Outcomes, Record, Run, Store

VERSIONS = {"numpy": "2"}
RUN = Run(attack_seconds=1.5, scoring_seconds=0.5, device="cpu", threads=2, peak_memory_mb=300.0, versions=VERSIONS)
STRENGTH = {"identity": 0.05, "kmeans": 0.12, "identity_vae": 0.16, "trained": 0.3}  # where accuracy is halved


def card(name: str, **changes: Any) -> Card:
    """A card that says nothing true."""
    facts = {
        "title": name.replace("_", " ").capitalize(), "paper": "https://arxiv.org/abs/1805.06605", "year": 2018,
        "summary": f"A made-up entry called {name}.",
    }  # fmt: skip
    return Card(**(facts | changes))


def outcomes(n: int, spec: AttackSpec, strength: float, salt: int = 0) -> Outcomes:
    """Random outcomes of n images that get worse with eps; the same arguments give the same arrays."""
    labels = np.random.default_rng(n).integers(0, 10, n)
    noise = np.random.default_rng(seeds.derive("fake", n, salt)).random(n)  # a hardness per image, for all cells
    eps = spec.eps or 0.0
    force = {"none": 0.0, "uniform_noise": 0.15, "fgsm": 0.7}.get(spec.attack, 1.0)
    correct = (noise > 1 / (1 + np.exp(4 - force * 4 * eps / strength))).astype(np.float32)
    exhibits = _exhibits(labels, eps)
    return Outcomes(
        label=labels.astype(np.int16),
        predicted=np.where(correct > 0.5, labels, (labels + 3) % 10).astype(np.int16),
        margin=(correct * 4 - 2).astype(np.float32),
        correct=correct,
        selection=correct,
        accepted=np.ones(n, np.float32),
        rejection_score=np.zeros(n, np.float32),
        linf=np.full(n, eps, np.float32),
        l2=np.full(n, eps * 20, np.float32),
        step_of_success=np.where(correct > 0.5, -1, 3).astype(np.int16),
        exhibits=exhibits,
    )


def _exhibits(labels: np.ndarray, eps: float) -> np.ndarray:
    """Rings of different sizes, with noise for the attacked ones."""
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    count = min(EXHIBITS, len(labels))
    clean = np.stack([np.exp(-((np.hypot(x, y) - 0.15 - label / 14) ** 2) / 0.02) for label in labels[:count]])
    noise = np.random.default_rng(7).uniform(-1, 1, clean.shape)
    stages = np.stack([clean, np.clip(clean + eps * np.sign(noise), 0, 1), np.clip(clean + eps * noise / 3, 0, 1)])
    return (255 * stages[:, :, None]).round().astype(np.uint8)


def cell(
    protocol: Protocol, defense: str, spec: AttackSpec, /, *, strength: float | None = None, classifier: str = "A",
    seed: int | None = None, arrays: Mapping[str, Any] | None = None, **changes: Any,
) -> Cell:  # fmt: skip
    """One made-up cell; `arrays` replaces per-image arrays, `changes` replaces fields of the record."""
    known = STRENGTH.get(defense, 0.1) if strength is None else strength
    made = outcomes(protocol.n_examples, spec, known, salt=0 if seed is None else seed)
    if arrays:
        same = {"selection": arrays["correct"]} if "correct" in arrays else {}
        made = Outcomes(**(made.arrays() | same | dict(arrays)))
    steps = dict(spec.params).get("steps", 0 if spec.attack in ("none", "uniform_noise") else 1)
    curve = tuple(float(v) for v in 3 * (spec.eps or 0) * (1 - np.exp(-np.arange(int(steps) + 1) / 8)) + 0.1)
    fields: dict[str, Any] = {
        "key": "", "protocol": protocol.id, "protocol_hash": protocol.hash, "dataset": protocol.dataset,
        "n_examples": protocol.n_examples, "defense": defense, "card": card(defense), "recipe": "standard",
        "settings": {"latent_size": 20, "noise_level": 0.1}, "weights": seeds.digest(defense, seed),
        "classifier": classifier, "classifier_weights": seeds.digest(classifier), "track": spec.track,
        "attack": spec.attack, "attack_version": 1, "norm": spec.norm, "eps": spec.eps, "route": spec.route,
        "params": dict(spec.params),
        "seed": protocol.seed if seed is None else seed, "draws": 1, "status": "ok",
        "forward_rows": (int(steps) + 1) * protocol.n_examples,
        "backward_rows": int(steps) * protocol.n_examples, "loss_curve": curve if steps else (),
        "outcomes_sha256": made.sha256(), "run": RUN,
    }  # fmt: skip
    fields |= changes
    named = [str(fields[name]) for name in ("protocol", "protocol_hash", "defense", "classifier", "seed", "weights")]
    fields["key"] = fields["key"] or seeds.digest(*named, spec.slug)
    return Cell(Record(**fields), made)


def save(
    store: Store, protocol: Protocol, defenses: Iterable[str], *, skip: Iterable[str] = (), **changes: Any
) -> Store:
    """Save a made-up cell for every attack of `protocol` and each defense, but for the slugs in `skip`."""
    for defense in defenses:
        for spec in protocol.attacks:
            if spec.slug not in skip:
                store.save(cell(protocol, defense, spec, **changes))
    return store
