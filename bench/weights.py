"""Trained weights as files to look at, give away and take in. A file names what it was trained for in its key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bench import places, plugins, seeds
from bench.catalog import DATASETS
from bench.errors import BenchError, unknown

NETS = ("classifier_", "substitute_", "surrogate_")  # how the names of what is no defense begin
LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself allows


def file_name(name: str, key: Mapping[str, Any]) -> str:
    """What the file of the weights of `name` under `key` is called."""
    return f"{name}-{seeds.digest(name, dict(key))[:16]}.safetensors"


@dataclass(frozen=True)
class Weights:
    """A file of weights: what it is of, the key that it was trained for, the loss after each epoch by training."""

    path: Path
    name: str
    key: Mapping[str, Any]
    losses: Mapping[str, tuple[float, ...]]
    size: int  # in bytes

    @property
    def file_name(self) -> str:
        """What the file must be called for its key."""
        return file_name(self.name, self.key)


def header(file: BinaryIO) -> dict[str, Any]:
    """The header of a safetensors file, read without its tensors; `file` then stands at their first byte. Raises
    ValueError or RecursionError if it has none."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= LONGEST_HEADER:
        raise ValueError("no safetensors file")
    text = file.read(length)
    found = json.loads(text)
    if len(text) < length or not isinstance(found, dict):
        raise ValueError("no safetensors file")
    return found


def read(path: Path) -> Weights:
    """What a file says of itself, from its header alone. Raises BenchError if it is no file of weights of ours."""
    try:
        with path.open("rb") as file:
            metadata = header(file)["__metadata__"]
        key, found = json.loads(metadata["key"]), json.loads(metadata["losses"])
        losses = {label: tuple(float(f"{loss:.6g}") for loss in curve) for label, curve in found.items()}
        return Weights(path, key.pop("name"), key, losses, path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BenchError(f"{path} holds no weights that `purifybench` wrote ({problem!r})") from problem


def kept(names: Sequence[str] = ()) -> list[Weights]:
    """The weights in the home folder, or those of `names` only, by file name. Raises BenchError for a name without any.

    Files that cannot be read are left out: training sets them aside.
    """
    found = list(_readable(sorted((places.home() / "weights").glob("*.safetensors"))))
    for name in names:
        if not any(weights.name == plugins.slug(name) for weights in found):
            raise unknown("file of weights", name, {weights.name for weights in found}, see="purifybench weights list")
    wanted = {plugins.slug(name) for name in names}
    return [weights for weights in found if not wanted or weights.name in wanted]


def _readable(paths: Sequence[Path]) -> Iterator[Weights]:
    for path in paths:
        try:
            yield read(path)
        except BenchError:
            continue


def export(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Copy the weights of `names` (empty: all) to `folder`; the copies."""
    copies = []
    for weights in kept(names):
        copies.append(folder / weights.path.name)
        _copy(weights.path, copies[-1])
    return copies


def take(path: Path) -> str:
    """Take the weights of one file into the home folder; says what was done.

    Raises BenchError, and takes nothing, where the file is damaged, is called otherwise than its key wants, was trained
    for a defense, version or settings that are not installed here, is of a classifier or another net that this version
    trains otherwise, or differs from weights of the same key.
    """
    from bench import training

    weights = read(path)
    if path.name != weights.file_name:
        raise BenchError(f"{path} is called otherwise than its key wants; expected {weights.file_name}")
    hashed = training.check(path)
    _usable(weights)
    target = places.home() / "weights" / path.name
    if target.exists():
        try:
            mine = training.check(target)
        except BenchError:
            mine = ""  # damaged: replaced
        if mine == hashed:
            return "already here"
        if mine:
            raise BenchError(f"{path} differs from {target}, trained for the same key; delete one of them")
    _copy(path, target)
    return "taken"


def _usable(weights: Weights) -> None:
    """Raises BenchError if no defense or net here would ever look for these weights."""
    if weights.name.startswith(NETS):
        _usable_net(weights)
        return
    from bench.defense import settings

    cls, recipes, differences = plugins.load(weights.name), [], []
    if weights.key.get("version") != cls.version:
        raise BenchError(
            f"{weights.path} is of version {weights.key.get('version')} of {weights.name}, expected {cls.version}: "
            "train it again"
        )
    mine = dict(weights.key.get("settings", {}))
    shape = tuple(mine.get("shape", (1, 28, 28)))
    for recipe in cls.recipes:
        chosen = json.loads(json.dumps(settings(cls, recipe, shape)[1]))
        other = sorted(name for name in chosen.keys() | mine.keys() if chosen.get(name) != mine.get(name))
        if not other:
            return
        recipes.append(recipe)
        differences.append(other)
    fewest = min(range(len(recipes)), key=lambda number: len(differences[number]))
    raise BenchError(
        f"{weights.path} fits no recipe of {weights.name}: it differs from {recipes[fewest]!r} in "
        f"{', '.join(differences[fewest])}"
    )


def _usable_net(weights: Weights) -> None:
    """The same of what is no defense: of a kind, recipe and version that is trained here, for a data set that is
    known, with the tensors of such a net. Of which model (the hash `oracle` or `defense`) is not checked: a net of one
    that is not here is never asked for."""
    import torch

    from bench import classifiers, substitutes, surrogate, training

    kind, _, name = weights.name.partition("_")
    given = dict(weights.key)
    dataset, split = str(given.get("dataset")), str(given.get("split"))
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS, see="purifybench list datasets")
    if kind == "surrogate":
        plugins.load(name)
        counts = surrogate.EXAMPLES.values()
        examples = given["examples"] if given.get("examples") in counts else max(counts)
        _, expected = surrogate.described(name, str(given.get("defense")), dataset, split, examples)
        module: torch.nn.Module = surrogate.Surrogate(channels=1)
    else:
        module = classifiers.build(name)  # every data set is of ten classes, 1x28x28
        expected = classifiers.key(dataset, split, seed if isinstance(seed := given.get("seed"), int) else 0)
        if kind == "substitute":
            _, expected = substitutes.described(name, str(given.get("oracle")), dataset, split)
            module = substitutes.Substitute(module, torch.device("cpu"))
    for field in sorted(expected.keys() | given.keys()):
        found, wanted = (
            json.dumps(one[field], sort_keys=True) if field in one else "nothing" for one in (given, expected)
        )
        if found != wanted:
            raise BenchError(
                f"{weights.path} is of another {kind} than this version trains: {field} is {found}, expected {wanted}; "
                "train it again"
            )
    training.check(weights.path, module)


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    places.write_atomically(target, lambda file: file.write(content))


def last_loss(weights: Weights) -> float:
    """The loss after the last epoch of the last training; nan where none was kept."""
    return next((losses[-1] for losses in reversed(list(weights.losses.values())) if losses), math.nan)
