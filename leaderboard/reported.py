"""What papers printed: the rows of data/reported.csv, checked. Which of our cells answers one is in counterparts.py."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

FILE = Path(__file__).parent / "data" / "reported.csv"
Source = Literal["lq-vae", "mad-vae", "gm-vae", "vq-vae"]
_Name = Annotated[str, Field(min_length=1)]


def _blank(text: Any) -> Any:
    return None if text == "" else text


class Reported(BaseModel):
    """One printed number. Names are the paper's own; `average` stands for a printed average over what it names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source
    table: _Name
    dataset: Literal["MNIST", "FMNIST", "CelebA", "SVHN", "COIL-100"]
    setting: Literal["clean", "white-box", "black-box", "bpda", "overpowered", "fgsm-reclassify"]
    classifier: str
    substitute: str
    attack: _Name
    epsilon: Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_blank)]
    defense: _Name
    metric: Literal[
        "accuracy", "error", "rejection", "original_accuracy", "share_of_adversaries_with_under_6pct_bit_flips",
        "share_of_adversaries_with_under_2pct_bit_flips", "accuracy_in_under_2pct_bit_flip_bucket",
    ]  # fmt: skip
    value_percent: Annotated[Decimal, Field(ge=0, le=100, description="with the digits that were printed")]

    @model_validator(mode="after")
    def _consistent(self) -> Reported:
        if not self.table.startswith(f"{self.source}/"):
            raise ValueError(f"the table {self.table!r} does not begin with its source {self.source!r}")
        if (self.setting == "clean") != (self.attack == "none"):
            raise ValueError(f"setting {self.setting!r} does not go with the attack {self.attack!r}")
        return self

    @property
    def key(self) -> tuple[object, ...]:
        """Everything but the value: no two rows share it."""
        return tuple(value for name, value in self if name != "value_percent")

    @property
    def is_average(self) -> bool:
        """Whether the paper printed it as an average of other rows of its table."""
        return "average" in (self.classifier, self.attack)


@dataclass(frozen=True)
class Paper:
    """Where numbers come from, for people; `link` is empty where none is known."""

    title: str
    authors: str
    year: int
    link: str


PAPERS: Mapping[str, Paper] = MappingProxyType(
    {
        "lq-vae": Paper(
            "Variational Inference with Latent Space Quantization for Adversarial Resilience (slides)",
            "Kyatham, Mishra and Prathosh", 2019, "https://arxiv.org/abs/1903.09940",
        ),
        "mad-vae": Paper(
            "MAD-VAE: Manifold Awareness Defense Variational Autoencoder", "Morlock and Wang", 2020,
            "https://github.com/Derek-Wds/MAD-VAE",
        ),
        "gm-vae": Paper(
            "Resisting Adversarial Attacks Using Gaussian Mixture Variational Autoencoders",
            "Ghosh, Losalka and Black", 2019, "",
        ),
        "vq-vae": Paper(
            "VQ-VAE As Defense On Adversarial Attacks (report)", "Gupta", 2023,
            "https://github.com/Harsh-Gupta9897/VQVAE_as_Defense_Against_Adverserial_Attack",
        ),
    }
)  # fmt: skip


def read(path: Path) -> tuple[Reported, ...]:
    """The rows of a file in its order. Raises ValueError for a bad row, named by its line, or two rows of one key."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, fields in enumerate(csv.DictReader(file), start=2):
            try:
                rows.append(Reported.model_validate(fields))
            except ValueError as problem:
                raise ValueError(f"{path.name}, line {number}: {problem}") from problem
    key, count = Counter(row.key for row in rows).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path.name} holds {count} rows for {key}")
    return tuple(rows)


@cache
def reported() -> tuple[Reported, ...]:
    """All printed numbers, in the order of their tables."""
    return read(FILE)


def parts(average: Reported) -> tuple[Reported, ...]:
    """The rows of its table that a printed average is the mean of."""
    fixed = ("table", "setting", "defense", "metric")
    return tuple(
        row
        for row in reported()
        if not row.is_average
        and all(getattr(row, name) == getattr(average, name) for name in fixed)
        and average.attack in ("average", row.attack)
    )


def tables() -> tuple[str, ...]:
    """The names of all tables, in the order of the file."""
    return tuple(dict.fromkeys(row.table for row in reported()))


def names() -> tuple[str, ...]:
    """What `purifybench reproduce` takes: the papers, then their tables."""
    return (*PAPERS, *tables())
