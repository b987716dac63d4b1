"""What submission.toml may say: one frozen model, and errors that name the field, what came and what to write instead.

Published as a JSON schema (`purifybench submission schema`). Whether the facts are true is for bench.submissions.rules.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from bench import catalog
from bench.errors import BenchError
from bench.submissions.places import FILE

LARGEST = 64 * 1024  # bytes of a submission.toml
URL = r"^https://[A-Za-z0-9][A-Za-z0-9.-]*(:\d+)?(/[^\s\"'<>\\^`{|}]*)?$"
PINNED = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*"
    r"(==[0-9][A-Za-z0-9.!+_-]*"
    r"| ?@ ?https://\S+\.whl#sha256=[0-9a-f]{64}"
    r"| ?@ ?git\+https://[^\s@#]+@[0-9a-f]{40})"
)

Line = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Link = Annotated[str, StringConstraints(max_length=500, pattern=URL)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
Model = TypeVar("Model", bound=BaseModel)


class Facts(BaseModel):
    """What the class declares of itself: held against the class and its records."""

    model_config = _STRICT

    stochastic: bool = Field(description="whether purification draws random numbers", examples=[False])
    differentiable: bool = Field(description="whether autograd gives its true gradient", examples=[True])
    trained_on: Line = Field("nothing", description="what its fit learns from, in a few words", examples=["nothing"])


class Install(BaseModel):
    """Where the code comes from: exactly one of the three."""

    model_config = _STRICT

    included: Literal[True] | None = Field(None, description="true: part of PurifyBench itself", examples=[True])
    folder: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")] | None = Field(
        None,
        description="the name of a folder beside submission.toml, with a pyproject.toml in it",
        examples=["plugin"],
    )
    requirement: Annotated[str, StringConstraints(max_length=500)] | None = Field(
        None,
        description="one pinned version: NAME==VERSION, NAME @ https://...whl#sha256=..., NAME @ git+https://...@COMMIT",
        examples=["my-defense==0.1.0"],
    )

    @model_validator(mode="after")
    def _one_way(self) -> Install:
        given = [name for name in ("included", "folder", "requirement") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} given, expected one of included, folder, requirement")
        if self.requirement is not None and not PINNED.fullmatch(self.requirement):
            raise ValueError(
                f"requirement {self.requirement!r} is not pinned to one version; write NAME==VERSION, "
                "NAME @ https://...whl#sha256=DIGEST or NAME @ git+https://...@40-DIGIT-COMMIT"
            )
        return self


class Weights(BaseModel):
    """A file that `purifybench train` wrote, so that nobody has to train again."""

    model_config = _STRICT

    file: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,60}-[0-9a-f]{16}\.safetensors$")] = Field(
        description="the name that `purifybench train` gave it",
        examples=["my_defense-12ab34cd56ef78ab.safetensors"],
    )
    url: Link = Field(description="where the file can be had, https", examples=["https://example.org/w.safetensors"])
    sha256: Sha256 = Field(description="the file's sha256, 64 hex digits", examples=["0" * 64])


class Claim(BaseModel):
    """An accuracy that the authors printed, to stand beside what is measured here."""

    model_config = _STRICT

    dataset: Annotated[str, StringConstraints(min_length=1)] = Field(description="a data set", examples=["mnist"])
    norm: Literal["linf", "l2"] = Field(description='"linf" or "l2"', examples=["linf"])
    eps: float = Field(ge=0, le=100, description="the radius for pixels in [0, 1]", examples=[0.3])
    accuracy: float = Field(ge=0, le=1, description="a fraction in [0, 1], not a percentage", examples=[0.964])
    attack: Line = Field(description="the attack behind it, as the paper calls it", examples=["PGD-40"])
    where: Line = Field(description="table, figure or page", examples=["Table 2"])


class Submission(BaseModel):
    """A submitted defense: who made it, what it claims, where its code and weights come from."""

    model_config = _STRICT

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,39}$")] = Field(
        description="entry point, command-line name and folder: 2 to 40 of a-z, 0-9 and _, a letter first",
        examples=["my_defense"],
    )
    title: Line = Field(description="the name for people", examples=["My defense"])
    authors: Annotated[tuple[Line, ...], Field(min_length=1, max_length=100, strict=False)] = Field(
        description="a list of at least one name", examples=[["Ada Example"]]
    )
    paper: Link = Field(description="an https link to the paper", examples=["https://arxiv.org/abs/1805.06605"])
    year: int = Field(ge=1990, le=2100, description="the year of publication, 1990 to 2100", examples=[2026])
    code: Link | None = Field(
        None, description="an https link to the authors' code", examples=["https://example.org/code"]
    )
    kind: Literal["purifier", "selective", "hardened"] = Field(
        description='"purifier", "selective" or "hardened"', examples=["purifier"]
    )
    licence: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .+()-]{1,99}$")] = Field(
        description="an SPDX identifier", examples=["MIT"]
    )
    datasets: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = Field(
        description=f"a list of {', '.join(catalog.DATASETS)}", examples=[["mnist"]]
    )
    classifiers: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = Field(
        description="a list of names from `purifybench list classifiers`", examples=[["A"]]
    )
    facts: Facts = Field(description="a table [facts]")
    install: Install = Field(description="a table [install]")
    weights: Annotated[tuple[Weights, ...], Field(max_length=50, strict=False)] = Field(
        (), description="tables [[weights]], one a file"
    )
    claims: Annotated[tuple[Claim, ...], Field(max_length=200, strict=False)] = Field(
        (), description="tables [[claims]], one a number"
    )


class SubmissionError(BenchError):
    """A submission.toml that cannot be read; `problems` has one line for each field."""

    def __init__(self, path: Path | str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{path}: {problem}" for problem in problems))


def json_schema() -> str:
    """The JSON schema of submission.toml, as committed in submissions/."""
    return json.dumps(Submission.model_json_schema(), indent=1, sort_keys=True) + "\n"


def read(path: Path) -> Submission:
    """The submission that a file describes. Raises SubmissionError, one line a field."""
    return validate(load(path, "`purifybench submission add`"), path)


def load(path: Path, mend: str) -> dict[str, Any]:
    """The table in a small TOML file; `mend` says how a missing one is made. Raises SubmissionError."""
    try:
        if path.is_symlink():
            raise SubmissionError(path, ["is a symbolic link, expected a file; commit the file itself"])
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as problem:
        raise SubmissionError(path, [f"cannot be read ({problem.strerror}); {mend}"]) from problem
    return _table_in(content, path)


def _table_in(content: bytes, path: Path | str) -> dict[str, Any]:
    if len(content) > LARGEST:
        raise SubmissionError(path, [f"has more than {LARGEST} bytes; shorten it"])
    try:
        return tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, ValueError) as problem:
        raise SubmissionError(path, [f"is not TOML ({problem}); mend that line"]) from problem


def parse(content: bytes, path: Path | str = FILE) -> Submission:
    """The submission that bytes describe; `path` is named in errors. Raises SubmissionError, one line a field."""
    return validate(_table_in(content, path), path)


def validate(given: Mapping[str, Any], path: Path | str = FILE) -> Submission:
    """The submission that values describe; `path` is named in errors. Raises SubmissionError, one line a field."""
    return checked(Submission, given, path)


def checked(model: type[Model], given: Mapping[str, Any], path: Path | str) -> Model:
    """The `model` that values describe; `path` is named in errors. Raises SubmissionError, one line a field."""
    try:
        return model.model_validate(given)
    except ValidationError as problem:
        lines = dict.fromkeys(_line(error, model) for error in problem.errors(include_url=False))
        raise SubmissionError(path, list(lines)) from problem


def _line(error: Any, top: type[BaseModel]) -> str:
    """One error of pydantic as field, what came, what was expected, what to write."""
    place = [
        part for part in error["loc"] if not (isinstance(part, str) and part.startswith(("function-", "literal[")))
    ]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if error["type"] == "extra_forbidden":
        near = f"; the fields here are {', '.join(_model(place[:-1], top).model_fields)}" if place else ""
        return f"{name}: no such field{near}; remove or rename it"
    if error["type"] == "value_error":
        return f"{name}: {error['ctx']['error']}"
    field = _field(place, top)
    expected = field.description if field is not None and field.description else error["msg"]
    example = field.examples[0] if field is not None and field.examples else None
    last = next((part for part in reversed(place) if isinstance(part, str)), name)
    mend = f"write {last} = {toml_value(example)}" if example is not None else f"add it as {expected}"
    if error["type"] == "missing":
        return f"{name}: missing, expected {expected}; {mend}"
    return f"{name}: found {_short(error['input'])}, expected {expected}; {mend}, for example"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _model(place: list[Any], top: type[BaseModel]) -> type[BaseModel]:
    models: dict[str, type[BaseModel]] = {"facts": Facts, "install": Install, "weights": Weights, "claims": Claim}
    return models.get(str(place[0]), top) if place else top


def _field(place: list[Any], top: type[BaseModel]) -> Any:
    words = [part for part in place if isinstance(part, str)]
    if not words:
        return None
    model = _model(place, top) if len(words) > 1 else top
    return model.model_fields.get(words[-1])


# ---------------------------------------------------------------------------------------------- writing


def as_toml(submission: Submission) -> str:
    """The text of a submission.toml; `parse` gives the same submission back."""
    given = submission.model_dump(mode="json", exclude_none=True)
    flat = [f"{name} = {toml_value(value)}" for name, value in given.items() if not _is_table(value)]
    text = "\n".join(flat) + "\n"
    for name in ("facts", "install"):
        text += f"\n[{name}]\n" + _table(given[name])
    for name in ("weights", "claims"):
        for entry in given[name]:
            text += f"\n[[{name}]]\n" + _table(entry)
    return text


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or value == [] or (isinstance(value, list) and isinstance(value[0], dict))


def _table(values: dict[str, Any]) -> str:
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in values.items())


def toml_value(value: object) -> str:
    """A string, number, boolean or list of them as TOML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(part) for part in value)}]"
    return json.dumps(value, ensure_ascii=False)  # whose strings are TOML's basic strings
