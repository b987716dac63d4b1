"""Made-up breaks for tests: images near made-up clean ones, with the result that the harness would have written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.breaks import rules, schema
from bench.breaks.schema import Break, Result, Score
from bench.record import Cell

CLEAN = np.random.default_rng(3).uniform(0, 1, (500, 1, 28, 28)).astype(np.float32)


def description(**changes: Any) -> Break:
    """A break of `soft_focus`; every argument replaces a field."""
    said = {"entry": "soft_focus", "name": "ada_pgd", "author": "Ada", "dataset": "digits", "norm": "linf", "eps": 0.1}
    return schema.described({**said, **changes})


def images(indices: Sequence[int], eps: float = 0.1) -> np.ndarray:
    """Images within the Linf ball of the made-up clean ones, on its edge."""
    return np.clip(CLEAN[list(indices)] + np.float32(eps), 0, 1)


def result(said: Break, cells: Sequence[Cell], indices: Sequence[int], sha256: str, **changes: Any) -> Result:
    """A result of the nets of `cells` in which all images are wrong, at the radius; `changes` replaces fields, those of
    scores too."""
    first = cells[0].record
    order = sorted(indices)
    labels = [int(cells[0].outcomes.label[i]) if i < first.n_examples else 0 for i in order]
    n = len(order)
    scores = {
        "recipe": first.recipe, "settings": dict(first.settings), "draws": 1,
        "predicted": [(label + 1) % 10 for label in labels], "correct": [0.0] * n, "margin": [-1.0] * n,
        "selection": [0.0] * n, "selection_margin": [0.0] * n,
    }  # fmt: skip
    scores |= {name: changes.pop(name) for name in list(changes) if name in Score.model_fields}
    nets = sorted({(cell.record.seed, cell.record.weights) for cell in cells})
    fields = {
        "harness": first.harness, "entry": said.entry, "dataset": said.dataset, "norm": said.norm, "eps": said.eps,
        "images_sha256": sha256, "code": first.code, "stochastic": first.card.stochastic,
        "classifier": first.classifier, "classifier_weights": first.classifier_weights, "indices": order,
        "labels": labels, "linf": [said.eps if said.norm == "linf" else 1.0] * n, "l2": [said.eps] * n,
        "scores": [Score(**{"seed": seed, "weights": weights, **scores}) for seed, weights in nets],
    }  # fmt: skip
    return Result(**(fields | changes))


def save(root: Path, said: Break, cells: Sequence[Cell], indices: Sequence[int], **changes: Any) -> Path:
    """Write a break whose result fits its images; returns its folder."""
    folder = root / "breaks" / said.entry / said.name
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / schema.IMAGES, images=images(indices, said.eps if said.norm == "linf" else 0.001), indices=indices
    )
    (folder / schema.DESCRIPTION).write_text(schema.as_toml(said))
    rewrite(folder, result(said, cells, indices, rules.sha256(folder / schema.IMAGES), **changes))
    return folder


def rewrite(folder: Path, found: Result) -> None:
    """Replace the result of a break."""
    (folder / schema.RESULT).write_bytes(schema.encoded(found))
