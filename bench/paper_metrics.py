"""The accuracies that papers print, image by image from the records: meanings of one word, and errors and refusals. No
torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench import selective
from bench.record import Cell

Array = NDArray[np.float64]
Metric = Literal["accuracy", "agreement", "joint", "answer", "right", "wrong", "refused", "pooled", "every"]
METRICS: Mapping[Metric, str] = MappingProxyType(
    {
        "accuracy": "the share of images classified as their true label",
        "agreement": "the share of images on which the defended answer to the attacked image is the bare classifier's "
        "answer to the clean one, right or wrong (MAD-VAE's code)",
        "joint": "the share of images classified as their true label that the bare classifier got right when clean "
        "(the VQ-VAE report's code)",
        "answer": "the share of images classified as their true label, refused or not",
        "right": "the share of images that the published thresholds accept, classified as their true label",
        "wrong": "the share of images that the published thresholds accept, classified as another label",
        "refused": "the share of images that the published thresholds refuse",
        "pooled": "the share of images classified as their true label, over several attacks pooled",
        "every": "the share of images classified as their true label under every one of several attacks",
    }
)

OVER_SEVERAL: Mapping[Metric, Callable[[Array], Array]] = MappingProxyType(
    {"pooled": lambda values: values.mean(axis=0), "every": lambda values: values.min(axis=0)}
)
"""Metrics of several cells: what becomes of the values (cells, n) of the same images."""


def per_image(metric: Metric, cell: Cell, bare: Cell | None = None) -> Array:
    """The metric's value of each attacked image in [0, 1], (n,).

    `bare` is the clean cell of the classifier without a defense, on images that start alike; only agreement and joint
    need it. Of a metric over several attacks (OVER_SEVERAL) it is the part of this one. Accuracy, joint and those over
    several average the scoring draws, agreement and answer look at the first. Raises ValueError where the images of
    `bare` are others, or are missing, and for shares at published thresholds that a random defense's records lack.
    """
    attacked, outcomes = cell.outcomes.attacked, cell.outcomes
    correct: Array = outcomes.correct[attacked].astype(np.float64)
    if metric in ("accuracy", *OVER_SEVERAL):
        return correct
    if metric == "answer":
        return np.asarray(outcomes.predicted == outcomes.label, dtype=np.float64)[attacked]
    if metric in ("right", "wrong", "refused"):
        shares = selective.answers(cell, "published")
        if shares is None:
            raise ValueError(f"{cell.record.cell} of a random defense tells nothing of the published thresholds")
        return np.asarray(getattr(shares, metric), dtype=np.float64)[attacked]
    if bare is None:
        raise ValueError(f"{metric} of {cell.record.cell} needs the clean cell of the classifier without a defense")
    rows = np.flatnonzero(attacked)
    known = bare.outcomes
    if (rows >= len(known.label)).any() or not np.array_equal(known.label[rows], outcomes.label[rows]):
        raise ValueError(f"{metric} of {cell.record.cell} needs the bare classifier on the same images")
    if metric == "agreement":
        same = (outcomes.predicted[rows] == known.predicted[rows]) & (outcomes.predicted[rows] >= 0)
        return np.asarray(same, dtype=np.float64)
    return np.asarray(correct * (known.correct[rows] > 0.5), dtype=np.float64)
