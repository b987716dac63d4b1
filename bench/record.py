"""One cell of the benchmark as a file: the schema of a record, its per-image outcomes, and the store that keeps both.

A cell is protocol x defense x classifier x attack x seed. Its record is a JSON file; the per-image arrays of all
cells of one defense under one protocol share one npz beside it. Summaries (worst case, intervals, ranks) are never
stored: bench.statistics computes them. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench import sources
from bench.errors import BenchError
from bench.places import TORN_NPZ, one_line, write_atomically
from bench.protocol import AttackSpec, Budget, Route, Track

SEAL = "seal.json"  # beside the records of a finished run: bench.seal
TOLD = "attack."  # begins the names of the facts that the attack tells, not the defense
MAP = "map."  # begins the names of facts that draw a map of the codes: bench.latent_map
EXHIBITS = 8  # the first images of every cell are kept as pictures: clean, attacked, purified


class Card(BaseModel):
    """Who a defense is, for people: copied from the class into every record, so that the site needs no plugin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    paper: str
    year: int
    summary: str
    kind: Literal["purifier", "selective", "hardened"] = "purifier"
    stochastic: bool = False
    differentiable: bool = True
    trained_on: str = "nothing"
    doors: tuple[str, ...] = Field((), description="the optional methods of the contract that some attacks need")

    @property
    def has_seen_attacks(self) -> bool:
        """Whether the defense was trained on more than clean images, by its own words."""
        return not self.trained_on.startswith(("nothing", "clean"))


class Run(BaseModel):
    """How the cell was computed: everything that may differ between two honest runs of the same cell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack_seconds: float = Field(ge=0, description="wall time of making the images, in whichever run made them")
    scoring_seconds: float = Field(ge=0, description="wall time of the defense and the classifier on all images")
    device: str
    threads: int
    peak_memory_mb: float
    versions: Mapping[str, str]
    commit: str = ""


class Record(BaseModel):
    """What one attack did to one defense. Fractions lie in [0, 1]; radii are on the [0, 1] scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    harness: int = Field(description="the version of the rules by which cells are evaluated")
    key: str = Field(description="sha256 of all that decides the outcome; equal keys mean the same cell")
    protocol: str
    protocol_hash: str
    dataset: str
    n_examples: int = Field(gt=0)
    defense: str
    card: Card
    recipe: str
    settings: Mapping[str, Any] = Field(description="the defense's hyper-parameters under this recipe")
    weights: str = Field(description="sha256 of the defense's weights; empty where there are none")
    code: str = Field("", description="sha256 of the defense's code, without prose")
    classifier: str
    classifier_weights: str
    budget: Budget = Field("cheap", description="the class of the purification's cost")
    units: float = Field(0, ge=0, description="that cost, in forward and backward passes of the classifier")
    track: Track
    attack: str
    attack_version: int
    norm: Literal["linf", "l2"] | None
    eps: float | None = Field(ge=0)
    route: Route = Field("", description="the gradient of a white-box attack")
    source: str = Field("", description="what the images of a transfer attack were made on: bench.sources")
    source_weights: str = Field("", description="sha256 of that defense's or net's weights")
    source_queries: int = Field(0, ge=0, description="labels that were asked for to train that net")
    source_agreement: float | None = Field(
        None, ge=0, le=1, description="share of validation images to which that net and the model it stands for agree"
    )
    variant: str = Field("", description="tells apart cells that share everything else")
    cascade: bool = Field(False, description="only images that no earlier cell had broken were attacked")
    params: Mapping[str, int | float | str | bool]
    seed: int = Field(description="from which the defense was trained and attacked")
    draws: int = Field(ge=1, description="scoring draws averaged for each image; 1 for a deterministic defense")
    thresholds: Mapping[str, float] = Field(
        {}, description="the rejection scores beyond which a selective defense refuses, by bench.protocol.THRESHOLDS"
    )
    status: Literal["ok", "failed"]
    error: str = Field("", description="why the defense failed on some or all images; those count as wrong")
    forward_rows: int = Field(ge=0, description="images that the attack sent forward through the attacked model")
    backward_rows: int = Field(ge=0, description="images that it sent backward")
    blocked: float | None = Field(
        None, ge=0, le=1, description="share of the attack's looks at unbroken images that gave no usable gradient"
    )
    loss_curve: tuple[float | None, ...] = Field(
        (), description="the attack's mean loss before each step and after the last; null where it was not finite"
    )
    facts: Mapping[str, float | tuple[float, ...]] = Field(
        {}, description="what the defense tells of the attacked images beside its answers, such as how its codes lie"
    )
    training: Mapping[str, tuple[float, ...]] = Field(
        {}, description="the mean loss of each epoch by training; in the cell of clean images"
    )
    outcomes_sha256: str
    images_sha256: str = Field(
        "", description="sha256 of the images that were scored: ImagesHash; empty in records of older harnesses"
    )
    run: Run

    @field_validator("source")
    @classmethod
    def _source_exists(cls, source: str) -> str:
        if source:
            sources.parse(source)
        return source

    @property
    def spec(self) -> AttackSpec:
        """The attack that this record answers."""
        return AttackSpec(
            self.attack, self.track, self.norm, self.eps, tuple(sorted(self.params.items())), self.route, self.source,
            cascade=self.cascade, variant=self.variant,
        )  # type: ignore[arg-type]  # fmt: skip

    @property
    def cell(self) -> str:
        """The file's name without `.json`: unique among the cells of one defense under one protocol."""
        return self.spec.cell(self.classifier, self.seed)

    def lasting(self) -> dict[str, Any]:
        """The record without its `run` block: what a repeated run on the same machine reproduces byte for byte."""
        return self.model_dump(mode="json", exclude={"run"})


def hash_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The sha256 over names, types, shapes and bytes of arrays, in the order given."""
    state = hashlib.sha256()
    for name, array in arrays.items():
        state.update(f"{name}{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


class ImagesHash:
    """The sha256 over the images that a cell attacked, in their order, whatever the chunks in which they are added: of
    each, its row among the protocol's images (int64) and its pixels as they were scored (float32), little-endian."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def add(self, rows: Sequence[int], images: NDArray[np.float32]) -> None:
        """Add `images` (N, C, H, W), which stand at `rows` (N,)."""
        for row, image in zip(rows, images, strict=True):
            self._state.update(int(row).to_bytes(8, "little"))
            self._state.update(np.ascontiguousarray(image, "<f4").tobytes())

    def sha256(self) -> str:
        """The hash of all that was added."""
        return self._state.hexdigest()


@dataclass(frozen=True)
class Outcomes:
    """What happened to each of the n images, in the protocol's order.

    An image that the cell did not attack (it lies beyond the cell's first ones, or an earlier cell of the cascade had
    broken it) has nan for shares and margin, -1 for classes and steps, and lies infinitely far away.
    """

    attacked: NDArray[np.bool_]  # (n,)
    label: NDArray[np.int16]  # (n,)
    predicted: NDArray[np.int16]  # (n,) -1 where the defense failed
    margin: NDArray[np.float32]  # (n,) true logit minus the best other; nan where the defense failed
    correct: NDArray[np.float32]  # (n,) share of scoring draws that were right and not refused, in [0, 1]
    selection: NDArray[np.float32]  # (n,) the same on other draws, which choose the worst of several attacks; there a
    # draw that was refused counts half
    selection_margin: NDArray[np.float32]  # (n,) the mean margin on those draws; 0 for a deterministic defense
    accepted: NDArray[np.float32]  # (n,) share of draws that were not refused, at the cell's own threshold
    rejection_score: NDArray[np.float32]  # (n,) the mean over draws; 0 for a defense that cannot refuse
    linf: NDArray[np.float32]  # (n,) realised distance to the clean image
    l2: NDArray[np.float32]  # (n,)
    step_of_success: NDArray[np.int16]  # (n,) first step at which the attacked model was wrong, -1 never
    exhibits: NDArray[np.uint8]  # (3, EXHIBITS or fewer, C, H, W) clean, attacked, purified

    def sha256(self) -> str:
        """A hash over names, types, shapes and bytes of all arrays."""
        return hash_arrays(self.arrays())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def accuracy(self) -> float:
        """The mean share of right draws over the images that the cell attacked; nan where it attacked none."""
        return float(self.correct[self.attacked].mean()) if self.attacked.any() else math.nan

    def distance(self, norm: str) -> NDArray[np.float32]:
        """The realised distances in `norm`, "linf" or "l2"."""
        return self.linf if norm == "linf" else self.l2


@dataclass(frozen=True)
class Cell:
    """A record and its per-image outcomes."""

    record: Record
    outcomes: Outcomes


def encoded(record: BaseModel) -> bytes:
    """The content of the file of a record, of a cell or another: JSON with sorted keys and a checksum of all the rest.

    Raises ValueError for a number that is not finite.
    """
    payload = record.model_dump(mode="json")
    payload["checksum"] = checksum(payload)
    return (json.dumps(payload, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def checksum(payload: Mapping[str, Any]) -> str:
    """The sha256 over a record's content, whatever the layout of its file."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Store:
    """Cells under one folder: `<root>/<protocol>/<defense>/<cell>.json` and `outcomes.npz` beside them.

    Every write is atomic; the arrays go first, so that a record without its arrays cannot exist. The folder's
    seal is taken off before both, since it is that of other records. A file that is torn, edited or at the wrong place
    is listed in `problems` and otherwise treated as absent.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.problems: list[str] = []

    def folder(self, protocol: str, defense: str) -> Path:
        """Where the cells of one defense under one protocol lie."""
        return self.root / protocol / defense

    def prepare(self) -> None:
        """Make the folder. Raises BenchError where nothing can be written, before any work is done for nothing."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as problem:
            raise BenchError(
                f"cannot write to {self.root}: {problem.strerror}; choose another folder with --records"
            ) from problem

    def save(self, cell: Cell) -> Path:
        """Write a cell, replacing an older one of the same name; returns the path of its JSON file."""
        record = cell.record
        folder = self.folder(record.protocol, record.defense)
        with one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with one_line(folder), FileLock(folder / ".lock"):
            (folder / SEAL).unlink(missing_ok=True)
            arrays = dict(_read_arrays(folder / "outcomes.npz", self.problems))
            arrays |= {f"{record.cell}/{name}": array for name, array in cell.outcomes.arrays().items()}
            ordered = {name: arrays[name] for name in sorted(arrays)}
            write_atomically(folder / "outcomes.npz", lambda file: np.savez_compressed(file, **ordered))  # type: ignore[arg-type]
            path = folder / f"{record.cell}.json"
            write_atomically(path, lambda file: file.write(encoded(record)))
        return path

    def cells(self, protocol: str | None = None, defense: str | None = None) -> Iterator[Cell]:
        """All sound cells in a stable order, optionally of one protocol or defense."""
        for folder in sorted(self.root.glob(f"{protocol or '*'}/{defense or '*'}/")):
            paths = sorted(set(folder.glob("*.json")) - {folder / SEAL})  # before their arrays: another may be saving
            arrays = _read_arrays(folder / "outcomes.npz", self.problems)
            for path in paths:
                cell = self._read(path, arrays)
                if cell is not None:
                    yield cell

    def _read(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> Cell | None:
        try:
            payload = json.loads(path.read_text())
            claimed = payload.pop("checksum")
            if claimed != checksum(payload):
                raise BenchError("its checksum does not match: it was edited or torn")
            record = Record.model_validate(payload)
            if (record.protocol, record.defense, record.cell) != (
                path.parent.parent.name,
                path.parent.name,
                path.stem,
            ):
                raise BenchError(f"it belongs at {self.folder(record.protocol, record.defense)}/{record.cell}.json")
            outcomes = Outcomes(**{field.name: arrays[f"{record.cell}/{field.name}"] for field in fields(Outcomes)})
            if outcomes.sha256() != record.outcomes_sha256:
                raise BenchError("its arrays in outcomes.npz were edited or belong to another run")
            if len(outcomes.label) != record.n_examples:
                raise BenchError(f"it holds {len(outcomes.label)} images, expected {record.n_examples}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            first = f"{problem.error_count()} invalid fields" if isinstance(problem, ValidationError) else str(problem)
            self.problems.append(f"{path}: {first}; run the cell again")
            return None
        return Cell(record, outcomes)


def _read_arrays(path: Path, problems: list[str]) -> dict[str, NDArray[Any]]:
    if not path.exists():
        return {}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except TORN_NPZ as problem:
        problems.append(f"{path}: {problem}; its cells are computed again")
        return {}
