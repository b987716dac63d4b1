"""Show a break's images to the defense, as the harness shows it those of its own attacks.

Each image is judged by `bench.scoring.score_chunk`, in a fresh forward pass of the real defense, whose code runs in
a child process unless it comes with PurifyBench. The draws of a random defense follow from the images' sha256, so that
no image can be made for its draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import classifiers, data, device, planning, scoring, subjects
from bench.breaks import schema
from bench.breaks.rules import Case
from bench.breaks.schema import Result, Score
from bench.cache import Arrays
from bench.defense import source_hash
from bench.errors import BenchError
from bench.isolation import Limits
from bench.progress import Progress
from bench.protocol import AttackSpec, Protocol
from bench.record import Cell
from bench.subjects import Unusable
from bench.submissions import run, weights
from bench.work import VERSION, Examples, Subject

DIGITS = 7  # of the numbers that are kept: about as many as float32 has


def score(
    case: Case,
    images_sha256: str,
    *,
    data_root: Path | None = None,
    on: str = "auto",
    progress: Progress | None = None,
) -> Result:
    """What every trained net that the entry's records are of makes of the images of a case that keeps the rules.

    Nets that are not here are trained, as in a run. A process that ends is started again, once for each image: to end
    it saves a defense from no image, and speaks for no other. Raises BenchError where the defense cannot be built or
    trained.
    """
    said, pixels, indices = case.said, case.pixels, case.indices
    assert said is not None and pixels is not None and indices is not None
    progress = progress or Progress()
    limits = Limits(failures=Limits().failures + 2 * len(indices) * len(_nets(case.cells)))
    with run.opened(said.entry, case.root, data_root, limits) as (submission, defense):
        weights.fetch(submission)
        protocol = schema.protocol_of(said.dataset, selective=case.may_refuse)
        asked = planning.plan([defense], protocol, classifier=[said.classifier], on=on)
        dataset = data.load(said.dataset, data_root).to(asked.device)
        clean, order = dataset.examples(protocol.n_examples, protocol.seed)
        examples = Examples(dataset.name, dataset.split, clean, order, dataset.validation)
        net, net_weights = classifiers.trained(said.classifier, dataset, progress)
        rising = np.argsort(indices)
        rows, images = torch.from_numpy(indices[rising]), pixels[rising]
        spec = AttackSpec("break", "white_box", said.norm, said.eps, variant=images_sha256[:16])
        scores: list[Score] = []
        for recipe, seed in _nets(case.cells):
            subject = subjects.trained_subject(
                asked.defenses[0], said.classifier, net, net_weights, dataset, recipe, progress, seed
            )
            if isinstance(subject.defense, Unusable):
                raise BenchError(f"{said.entry} is {subject.defense.reason}; see purifybench train {said.entry}")
            arrays, error = _scored(subject, protocol, spec, examples, rows, images, progress)
            scores.append(_as_score(subject, protocol, arrays, error))
        return Result(
            harness=VERSION, entry=said.entry, dataset=said.dataset, norm=said.norm, eps=said.eps,
            images_sha256=images_sha256, code=source_hash(asked.defenses[0][1]),
            stochastic=asked.defenses[0][1].stochastic, classifier=said.classifier, classifier_weights=net_weights,
            indices=tuple(rows.tolist()), labels=tuple(clean.labels[rows.to(asked.device)].tolist()),
            linf=_numbers(arrays["linf"]), l2=_numbers(arrays["l2"]), scores=tuple(scores),
        )  # fmt: skip


def clean_images(dataset: str, data_root: Path | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The images (n, C, H, W) of a data set's protocol in its order, and their labels (n,)."""
    asked = schema.protocol_of(dataset)
    clean, _ = data.load(dataset, data_root).examples(asked.n_examples, asked.seed)
    return clean.images.numpy(), clean.labels.numpy()


def _nets(cells: Sequence[Cell]) -> list[tuple[str, int]]:
    """The recipe and seed of every net that the records are of."""
    return sorted({(cell.record.recipe, cell.record.seed) for cell in cells})


def _scored(
    subject: Subject, protocol: Protocol, spec: AttackSpec, examples: Examples, rows: Tensor,
    images: NDArray[np.float32], progress: Progress,
) -> tuple[Arrays, str]:  # fmt: skip
    """The arrays of `scoring.score_chunk` for all images, and what the defense did wrong.

    Where a whole chunk fails, its images are shown one by one: one that the defense cannot bear speaks for no other.
    """
    view = protocol.effort(subject.budget, stochastic=subject.cls.stochastic)
    found: list[Arrays] = []
    errors: list[str] = []

    def shown(part: Tensor) -> tuple[Arrays, str]:
        here = rows[part].to(examples.indices.device)
        arrays, error = scoring.score_chunk(subject, view, spec, examples, here, {"images": images[part.numpy()]})
        return {name: array for name, array in arrays.items() if name not in ("exhibits", "seconds")}, error

    with progress.task(f"{subject.name} · {len(rows)} images of a break", total=len(rows)) as advance:
        for part in torch.split(torch.arange(len(rows)), device.chunk_size(examples.indices.device)):
            arrays, error = shown(part)
            if error and len(part) > 1 and (arrays["predicted"] == -1).all():
                alone = [shown(one) for one in torch.split(part, 1)]
                arrays = {name: np.concatenate([a[name] for a, _ in alone]) for name in arrays}
                error = "; ".join(dict.fromkeys(problem for _, problem in alone if problem))
            found.append(arrays)
            errors += [error] if error else []
            advance(len(part))
    together = {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}
    return together, "; ".join(dict.fromkeys(errors))[:2000]


def _as_score(subject: Subject, protocol: Protocol, arrays: Arrays, error: str) -> Score:
    view = protocol.effort(subject.budget, stochastic=subject.cls.stochastic)
    return Score(
        recipe=subject.recipe, settings=dict(subject.settings), seed=subject.seed, weights=subject.weights,
        draws=view.scoring_draws if subject.cls.stochastic else 1, predicted=arrays["predicted"].tolist(),
        correct=_numbers(arrays["correct"]), margin=_or_null(arrays["margin"]),
        selection=_numbers(arrays["selection"]), selection_margin=_or_null(arrays["selection_margin"]), error=error,
        accepted=_numbers(arrays["accepted"]) if subject.thresholds else (),
    )  # fmt: skip


def _numbers(values: NDArray[np.generic]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())


def _or_null(values: NDArray[np.generic]) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in _numbers(values))
