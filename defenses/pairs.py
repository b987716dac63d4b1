"""Pairs of attacked and clean training images, made on a classifier, shared by the defenses that learn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench import attacks, draws, places, record, seeds, training
from bench.cache import ChunkCache
from bench.catalog import ATTACKS
from bench.data import Dataset
from bench.progress import Progress

CHUNK = 256
DEAR = ("cw_l2",)  # attacks whose images are kept on disk: the next training, or one that was killed, finds them


@dataclass(frozen=True)
class Job:
    """An attack by its name in bench.catalog, its parameters, and the share of the training images that it is run on.

    Raises ValueError unless the share lies in (0, 1].
    """

    attack: str
    params: Mapping[str, float | str]
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"{self.attack} needs a share of the images in (0, 1], got {self.share}")


@dataclass(frozen=True)
class Pairs:
    """Attacked images (pairs, C, H, W), and of each the training image it was made of, int64 (pairs,)."""

    attacked: Tensor
    rows: Tensor


def attacked_pairs(
    classifier: nn.Module,
    data: Dataset,
    jobs: Sequence[Job],
    progress: Progress,
    *,
    labels: Literal["true", "predicted"] = "true",
) -> Pairs:
    """Attack the training images on `classifier` by each job, with their labels or those that it predicts.

    The same classifier, data and job always give the same pairs, whichever defense asks and whatever its seed.
    """
    images, cache = data.train.images, ChunkCache(places.home() / "pairs")
    weights = training.weights_hash(classifier)
    chosen = [_some(len(images), data.name, job).to(images.device) for job in jobs]
    attacked: list[Tensor] = []
    with progress.task(f"attacking {data.name}'s training images", total=sum(map(len, chosen))) as advance:
        for job, rows in zip(jobs, chosen, strict=True):
            for chunk in torch.split(rows, CHUNK):
                clean, own = images[chunk], data.train.labels[chunk]
                if labels == "predicted":
                    with torch.no_grad():
                        own = classifier(clean).argmax(dim=1)
                described = (job.attack, ATTACKS[job.attack].version, dict(job.params))
                inputs = record.hash_arrays({"images": clean.cpu().numpy(), "labels": own.cpu().numpy()})
                key = seeds.digest(weights, data.name, described, inputs)
                found = cache.read(key) if job.attack in DEAR else None
                if found is None:
                    noise = draws.ImageDraws.derived(chunk, "pairs", data.name, described)
                    made = attacks.get(job.attack)(classifier, clean, own, draws=noise, **job.params).images
                    if job.attack in DEAR:
                        cache.write(key, {"images": made.cpu().numpy()})
                else:
                    made = torch.from_numpy(found["images"]).to(images.device)
                attacked.append(made)
                advance(len(chunk))
    return Pairs(torch.cat(attacked), torch.cat(chosen))


def _some(n: int, dataset: str, job: Job) -> Tensor:
    """The rows that a job is run on, in no order."""
    order = torch.randperm(n, generator=draws.generator("cpu", "pairs", dataset, job.attack, dict(job.params)))
    return order[: max(1, round(job.share * n))]
