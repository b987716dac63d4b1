"""A break on disk: break.toml says whose it is and what it claims, images.npz holds the images, result.json what the
harness found when it showed them to the defense. No torch here.

An index is a position in the order of the data set's protocols: index i is the i-th image of mnist-v1, which is also
the i-th of mnist-v1-quick, as all protocols of a data set take the first images of one permutation of its test split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bench import catalog, plugins, protocols, seeds
from bench.errors import BenchError, unknown
from bench.protocol import Protocol
from bench.submissions import places
from bench.submissions import schema as submissions
from bench.submissions.schema import Line, Link, toml_value

DESCRIPTION, IMAGES, RESULT = "break.toml", "images.npz", "result.json"
LARGEST_RESULT = 1_000_000  # bytes
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,39}$")]
Note = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Norm = Literal["linf", "l2"]


class Break(BaseModel):
    """Who broke what, and within which radius: break.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    entry: Slug = Field(description="the name of the submission that is broken", examples=["kmeans"])
    name: Slug = Field(
        description="the break's own name and folder: 2 to 40 of a-z, 0-9 and _, a letter first", examples=["ada_pgd"]
    )
    author: Line = Field(description="who made it, one line of at most 200 characters", examples=["Ada Example"])
    dataset: Annotated[str, StringConstraints(max_length=40)] = Field(
        description=f"one of {', '.join(catalog.DATASETS)}", examples=["mnist"]
    )
    norm: Norm = Field(description='"linf" or "l2"', examples=["linf"])
    eps: float = Field(gt=0, le=60, description="the radius for pixels in [0, 1], above 0", examples=[0.3])
    classifier: Annotated[str, StringConstraints(max_length=40)] = Field(
        "A", description="the classifier behind the defense", examples=["A"]
    )
    paper: Link | None = Field(
        None, description="an https link to a paper", examples=["https://arxiv.org/abs/2003.01690"]
    )
    code: Link | None = Field(None, description="an https link to code", examples=["https://github.com/ada/attack"])
    note: Note = Field("", description="how it was made, one line of at most 1000 characters", examples=["PGD-1000"])


class Score(BaseModel):
    """What one trained net of the defense made of the images; every list has one number an image, by rising index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    settings: Mapping[str, Any]
    seed: int = Field(description="from which the defense was trained")
    weights: str = Field(description="sha256 of its weights; empty where there are none")
    draws: int = Field(ge=1, description="scoring draws averaged for each image; 1 for a deterministic defense")
    predicted: tuple[int, ...] = Field(description="-1 where the defense failed")
    correct: tuple[float, ...] = Field(description="share of scoring draws that were right, and not refused")
    margin: tuple[float | None, ...] = Field(description="true logit minus the best other; null where it failed")
    selection: tuple[float, ...] = Field(description="share of other draws, which choose an image's worst version")
    selection_margin: tuple[float | None, ...] = Field(description="the mean margin on those; 0 if deterministic")
    accepted: tuple[float, ...] = Field(
        (), description="share of scoring draws that were not refused; empty for a defense that never refuses"
    )
    error: str = Field("", description="why the defense failed on some images; those count as wrong")


class Result(BaseModel):
    """What the harness found, written by it alone; every list has one number an image, by rising index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    harness: int = Field(description="the version of the rules by which images are scored")
    entry: str
    dataset: str
    norm: Norm
    eps: float
    images_sha256: str = Field(description="sha256 of images.npz")
    code: str = Field(description="sha256 of the defense's code, without prose")
    stochastic: bool
    classifier: str
    classifier_weights: str
    indices: tuple[int, ...] = Field(description="positions in the order of the data set's protocols")
    labels: tuple[int, ...]
    linf: tuple[float, ...] = Field(description="realised distance to the clean image")
    l2: tuple[float, ...]
    scores: tuple[Score, ...] = Field(min_length=1)

    def distance(self, norm: str) -> NDArray[np.float64]:
        """The realised distances in `norm`, "linf" or "l2"."""
        return np.array(self.linf if norm == "linf" else self.l2, dtype=np.float64)


@dataclass(frozen=True)
class Kept:
    """A break in its folder: what it says, and what was found."""

    description: Break
    result: Result

    @cached_property
    def where(self) -> str:
        """Its name among all breaks: "kmeans/ada_pgd"."""
        return f"{self.description.entry}/{self.description.name}"


def protocol_of(dataset: str, *, selective: bool = False) -> Protocol:
    """The full protocol of a data set, whose images breaks may attack; `selective` asks for that of defenses that may
    refuse, which has the same images. Raises BenchError for an unknown data set."""
    if dataset not in catalog.DATASETS:
        raise unknown("dataset", dataset, catalog.DATASETS, see="purifybench list datasets")
    return protocols.get(f"{dataset}-selective-v1-draft" if selective else f"{dataset}-v1")


def described(given: Mapping[str, Any], path: Path | str = DESCRIPTION) -> Break:
    """The break that values describe. Raises SubmissionError, one line a field."""
    return submissions.checked(Break, given, path)


def read(path: Path) -> Break:
    """The break that a break.toml describes. Raises SubmissionError, one line a field."""
    return described(submissions.load(path, "`purifybench break add`"), path)


def as_toml(one: Break) -> str:
    """The text of a break.toml; `read` gives the same break back."""
    given = one.model_dump(mode="json", exclude_none=True)
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in given.items() if value != "")


def encoded(result: Result) -> bytes:
    """The content of result.json: one field a line, and a checksum of all the rest. The same result, the same bytes."""
    payload = result.model_dump(mode="json")
    payload["checksum"] = seeds.digest(payload)
    lines = (f" {json.dumps(name)}: {json.dumps(payload[name], sort_keys=True)}" for name in sorted(payload))
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_result(path: Path) -> Result:
    """The result in a file. Raises BenchError for anything but what the harness wrote."""
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST_RESULT:
            raise BenchError(f"a link, or more than {LARGEST_RESULT:,} bytes")
        payload = json.loads(path.read_text(encoding="utf-8"))
        claimed = payload.pop("checksum")
        if claimed != seeds.digest(payload):
            raise BenchError("a checksum that does not match: it was edited or torn")
        return Result.model_validate(payload)
    except ValidationError as problem:
        raise BenchError(f"{problem.error_count()} invalid fields") from problem
    except BenchError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BenchError(f"no result ({type(problem).__name__})") from problem


def folders(root: Path) -> Iterator[Path]:
    """The folders of breaks under `root`, the folder of all submissions, in order: breaks/<entry>/<name>/."""
    for path in sorted((root / places.BREAKS).glob("*/*/")):
        if not path.name.startswith("."):
            yield path


def chosen(names: list[str], root: Path) -> list[Path]:
    """The folders of the breaks called ENTRY or ENTRY/NAME; all where there are no names. Raises BenchError."""
    every = {path.relative_to(root / places.BREAKS).as_posix(): path for path in folders(root)}
    found: dict[str, Path] = {}
    for name in names:
        wanted = plugins.slug(name).rstrip("/")
        mine = {where: path for where, path in every.items() if wanted in (where, where.partition("/")[0])}
        if not mine:
            entries = {where.partition("/")[0] for where in every}
            raise unknown("break", name, [*every, *entries], see=f"ls {root / places.BREAKS}")
        found |= mine
    return list((found if names else every).values())
