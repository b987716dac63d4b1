"""Made-up cells for tests of the site: random numbers that mean nothing, in the shape of real ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import seeds, statistics
from bench.catalog import ATTACKS
from bench.protocol import AttackSpec, Protocol
from bench.record import EXHIBITS, Card, Cell, Outcomes, Record, Run, Store
from leaderboard import archive

VERSIONS = {"numpy": "2"}
RUN = Run(attack_seconds=1.5, scoring_seconds=0.5, device="cpu", threads=2, peak_memory_mb=300.0, versions=VERSIONS)
Mask = NDArray[np.bool_]
FORCES = {  # how much of the budget an attack makes use of, a track, a route
    "none": 0.0, "uniform_noise": 0.15, "fgsm": 0.7, "apgd_ce": 1.3, "apgd_margin": 1.4, "apgd_t": 1.5, "square": 0.9,
    "gray_box": 0.7, "transfer": 0.6, "bpda": 0.9, "surrogate": 0.8,
}  # fmt: skip
STRENGTH = {"identity": 0.05, "kmeans": 0.12, "identity_vae": 0.16, "trained": 0.3}  # where accuracy is halved


def card(name: str, **changes: Any) -> Card:
    """A card that says nothing true."""
    facts = {
        "title": name.replace("_", " ").capitalize(), "paper": "https://arxiv.org/abs/1805.06605", "year": 2018,
        "summary": f"A made-up entry called {name}.",
    }  # fmt: skip
    return Card(**(facts | changes))


def outcomes(
    n: int, spec: AttackSpec, strength: float, salt: int = 0, *, stochastic: bool = False, stands: Mask | None = None
) -> Outcomes:
    """Random outcomes of n images that get worse with eps; the same arguments give the same arrays.

    A cascade cell attacks the images that still stand, all others the first ones that their spec names.
    """
    labels = np.random.default_rng(1000).integers(0, 10, 1000)[:n]
    noise = np.random.default_rng(seeds.derive("fake", salt)).random(1000)[:n]  # a hardness per image, for all cells
    eps = spec.eps or 0.0
    pixel = eps / 5 if spec.norm == "l2" else eps
    force = FORCES.get(spec.attack, 1.0) * FORCES.get(spec.track, 1.0) * FORCES.get(spec.route, 1.0)
    share = 1 / (1 + np.exp(-20 * (noise - 1 / (1 + np.exp(4 - force * 4 * pixel / strength)))))
    correct = (share.round(2) if stochastic else share > 0.5).astype(np.float32)
    attacked = np.arange(n) < (spec.n_examples or n)
    if spec.cascade and stands is not None:
        attacked &= stands
    return Outcomes(
        attacked=attacked,
        label=labels.astype(np.int16),
        predicted=np.where(attacked, np.where(correct > 0.5, labels, (labels + 3) % 10), -1).astype(np.int16),
        margin=_where(attacked, correct * 4 - 2, np.nan),
        correct=_where(attacked, correct, np.nan),
        selection=_where(attacked, correct, np.nan),
        selection_margin=_where(attacked, np.zeros_like(correct), np.nan),
        accepted=np.ones(n, np.float32),
        rejection_score=np.zeros(n, np.float32),
        linf=_where(attacked, np.full(n, pixel), np.inf),
        l2=_where(attacked, np.full(n, eps if spec.norm == "l2" else eps * 20), np.inf),
        step_of_success=np.where(attacked & (correct <= 0.5), 3, -1).astype(np.int16),
        exhibits=_exhibits(labels, pixel)[:, : 8 if attacked[:EXHIBITS].all() else 0],
    )


def map_facts(n: int, *, attacked: bool = True, near: Sequence[float] = ()) -> dict[str, Any]:
    """The facts of a map of the first n images: clean ones on a ring, attacked ones on a smaller one."""
    turns = 2 * np.pi * np.arange(n) / n
    rings = {"clean": 1.0, "attacked": 0.5} if attacked else {"clean": 1.0}
    places = {name: np.round([np.cos(turns) * size, np.sin(turns) * size], 3) for name, size in rings.items()}
    facts: dict[str, Any] = {"silhouette": 0.125, "codes_moved": 0.75 if attacked else 0.0, "codes_astray": 0.4}
    facts |= {
        f"map.{name}.{axis}": tuple(two[k].tolist()) for name, two in places.items() for k, axis in enumerate("xy")
    }
    return facts | {"map.neighbour": tuple(near) or (3.0,) * n}


def _where(mask: Mask, values: np.ndarray, blank: float) -> np.ndarray:
    return np.where(mask, values, blank).astype(np.float32)


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
    seed: int | None = None, arrays: Mapping[str, Any] | None = None, stands: Mask | None = None, **changes: Any,
) -> Cell:  # fmt: skip
    """One made-up cell; `arrays` replaces per-image arrays, `changes` replaces fields of the record."""
    known = STRENGTH.get(defense, 0.1) if strength is None else strength
    about = changes.setdefault("card", card(defense))
    salt = 0 if seed is None else seed
    made = outcomes(protocol.n_examples, spec, known, salt, stochastic=about.stochastic, stands=stands)
    if arrays:
        same = {"selection": arrays["correct"]} if "correct" in arrays else {}
        made = Outcomes(**(made.arrays() | same | dict(arrays)))
    attacked = int(made.attacked.sum())
    steps = dict(spec.params).get("steps", 0 if spec.attack in ("none", "uniform_noise") else 1)
    curve = tuple(float(v) for v in 3 * (spec.eps or 0) * (1 - np.exp(-np.arange(int(steps) + 1) / 8)) + 0.1)
    version = ATTACKS[spec.attack].version if spec.attack in ATTACKS else 1
    fields: dict[str, Any] = {
        "key": "", "protocol": protocol.id, "protocol_hash": protocol.hash, "dataset": protocol.dataset,
        "harness": 1, "n_examples": protocol.n_examples, "defense": defense, "recipe": "standard",
        "settings": {"latent_size": 20, "noise_level": 0.1}, "weights": seeds.digest(defense, seed),
        "classifier": classifier, "classifier_weights": seeds.digest(classifier), "track": spec.track,
        "attack": spec.attack, "attack_version": version, "norm": spec.norm, "eps": spec.eps, "route": spec.route,
        "source": spec.source, "variant": spec.variant, "cascade": spec.cascade, "params": dict(spec.params),
        "budget": "cheap", "units": 1.25,
        "seed": protocol.seed if seed is None else seed, "draws": 1, "status": "ok",
        "forward_rows": (int(steps) + 1) * attacked, "backward_rows": int(steps) * attacked,
        "blocked": 0.02 if spec.track == "white_box" else None, "loss_curve": curve if steps else (),
        "outcomes_sha256": made.sha256(), "run": RUN,
    }  # fmt: skip
    fields |= changes
    named = [str(fields[name]) for name in ("protocol", "protocol_hash", "defense", "classifier", "seed", "weights")]
    fields["key"] = fields["key"] or seeds.digest(*named, spec.slug)
    return Cell(Record(**fields), made)


def save(
    store: Store, protocol: Protocol, defenses: Iterable[str], *, skip: Iterable[str] = (), **changes: Any
) -> Store:
    """Save a made-up cell for every attack that `protocol` has for each defense, but for the slugs in `skip`."""
    for defense in defenses:
        about = changes.get("card", card(defense))
        effort = protocol.effort(changes.get("budget", "cheap"), stochastic=about.stochastic)
        broken: list[Cell] = []
        for spec in effort.attacks:
            stands = np.ones(effort.n_examples, dtype=bool)
            for earlier in broken if spec.cascade and spec.norm and spec.eps else ():
                near = earlier.outcomes.distance(spec.norm or "") <= (spec.eps or 0) + statistics.TOLERANCE
                stands &= ~(near & (earlier.outcomes.correct == 0))
            broken.append(cell(effort, defense, spec, stands=stands, **changes))
        save_all(store, [made for made in broken if made.record.spec.slug not in skip])
    return store


def save_all(store: Store, cells: Sequence[Cell]) -> None:
    """Save cells of one defense: all at once where it has none yet, since each further one packs all arrays again."""
    if cells and not store.folder(cells[0].record.protocol, cells[0].record.defense).exists():
        for name, content in archive.folder(cells).items():
            path = store.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return
    for made in cells:
        store.save(made)
