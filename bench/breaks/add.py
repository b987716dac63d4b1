"""`purifybench break add`, `verify` and `images`: from somebody's npz to a scored break, and the same once more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import catalog, plugins
from bench.breaks import effect, rules, schema, score
from bench.breaks.rules import Case
from bench.breaks.schema import Result
from bench.errors import BenchError
from bench.places import write_atomically
from bench.progress import Progress
from bench.record import Cell
from bench.submissions import places
from bench.submissions.rules.base import Rule

NEAR = 1e-3  # difference of margins that two machines may have
SHARE = 0.05  # difference of a random defense's shares of right draws that two machines may have


@dataclass(frozen=True)
class Added:
    """A break that was written, and what it does under each protocol that the entry has records of."""

    folder: Path
    effects: Mapping[str, effect.Effect]


def add(
    npz: Path,
    root: Path,
    given: Mapping[str, Any],
    *,
    data_root: Path | None = None,
    on: str = "auto",
    progress: Progress | None = None,
) -> Added:
    """Check the images of `npz` by the rules, show them to the defense, and write `<root>/breaks/<entry>/<name>/`.

    `given` are the fields of a break.toml; without a name one is made of the author, norm and eps. Raises BenchError
    with what the rules find, or where the nets here are not those of the entry's records; then nothing is written.
    """
    places.root_of(root)
    entry = plugins.slug(str(given["entry"]))
    name = given.get("name") or _name(str(given["author"]), str(given["norm"]), float(given["eps"]))
    said = schema.described({**given, "entry": entry, "name": plugins.slug(name)})
    folder = root / places.BREAKS / said.entry / said.name
    if folder.exists():
        raise BenchError(f"{folder} exists already; choose another --name, or delete it first")
    images = clean(data_root)
    if said.dataset in catalog.DATASETS:
        images(said.dataset)  # the error of data that are not here is no finding
    case = Case(folder, root, images, {}, given=said, npz=npz)
    _keep(case)
    content = npz.read_bytes()
    result = score.score(case, rules.sha256(npz), data_root=data_root, on=on, progress=progress)
    effects = _effects(result, case.cells)
    texts = {schema.DESCRIPTION: schema.as_toml(said).encode(), schema.RESULT: schema.encoded(result)}
    for path, text in {schema.IMAGES: content, **texts}.items():
        write_atomically(folder / path, lambda file, text=text: file.write(text))  # type: ignore[misc]
    _keep(rules.examine(folder, root, images)[0])
    return Added(folder, effects)


def _keep(case: Case, only: Iterable[Rule[Case]] | None = None) -> None:
    found = rules.findings(case, only)
    if found:
        raise BenchError("; ".join(str(finding) for finding in found[:20]))


def _name(author: str, norm: str, eps: float) -> str:
    """A name for a break whose author gave none: "ada_example_linf_0_1"."""
    words = re.sub(r"[^a-z0-9]+", "_", author.lower()).strip("_")[:24].strip("_")
    return f"{words if words[:1].isalpha() else f'by_{words}'.rstrip('_')}_{norm}_{f'{eps:g}'.replace('.', '_')}"


def clean(data_root: Path | None, say: Callable[[str], None] | None = None) -> rules.Clean:
    """The clean images of a data set, read once. Where the data are not here, that is told to `say` and there are none;
    without `say` it raises BenchError."""
    known: dict[str, Any] = {}

    def images(dataset: str) -> Any:
        if dataset not in known:
            try:
                known[dataset] = score.clean_images(dataset, data_root)[0]
            except BenchError as problem:
                if say is None:
                    raise
                known[dataset] = None
                say(f"distances are not measured again: {problem}")
        return known[dataset]

    return images


def _effects(result: Result, cells: Sequence[Cell]) -> dict[str, effect.Effect]:
    """What a result does under each protocol. Raises BenchError where it counts under none of them."""
    found: dict[str, effect.Effect] = {}
    reasons: dict[str, str] = {}
    for protocol in sorted({cell.record.protocol for cell in cells}):
        mine = [cell for cell in cells if cell.record.protocol == protocol]
        reason = effect.mismatch(result, mine)
        if reason:
            reasons[protocol] = reason
        elif any(cell.record.spec.slug == "clean.none" for cell in mine):
            seeds = sorted({cell.record.seed for cell in mine})
            found[protocol] = effect.effect(result, [[c for c in mine if c.record.seed == seed] for seed in seeds])
    if reasons and not found:
        first = next(iter(reasons.values()))
        raise BenchError(
            f"what is scored here is {first}, not what the records of {result.entry} are of, so the break would not "
            "count; attack the nets of the records (purifybench weights import), or have the entry measured again"
        )
    return found


def again(
    folder: Path, root: Path, *, data_root: Path | None = None, on: str = "auto", progress: Progress | None = None
) -> tuple[str, bool]:
    """Score a break again: what differs from its result ("" where it is confirmed), and whether that is because other
    nets are here than those that it was scored against. Raises BenchError for one that breaks a rule."""
    case = rules.examine(folder, root, clean(data_root))[0]
    _keep(case)
    old = case.result
    assert old is not None
    new = score.score(case, old.images_sha256, data_root=data_root, on=on, progress=progress)
    return compared(old, new)


def compared(old: Result, new: Result) -> tuple[str, bool]:
    """What differs between a result and the same again, and whether other code or nets are the reason."""
    nets = [(r.code, r.harness, r.classifier_weights, [(s.recipe, s.seed, s.weights) for s in r.scores])
            for r in (old, new)]  # fmt: skip
    if nets[0] != nets[1]:
        still = sum(int((np.array(one.correct) <= 0.5).sum()) for one in new.scores)
        return (
            f"cannot be confirmed: other code or weights are here than the result is of; with these, {still} of "
            f"{sum(len(one.correct) for one in new.scores)} images are wrong"
        ), True
    facts = [r.model_dump(exclude={"scores", "linf", "l2"}) for r in (old, new)]
    if facts[0] != facts[1]:
        return ", ".join(sorted(name for name in facts[0] if facts[0][name] != facts[1][name])) + " differ", False
    far = sum(not np.allclose(getattr(old, norm), getattr(new, norm), rtol=0, atol=1e-6) for norm in ("linf", "l2"))
    if far:
        return "the distances differ", False
    wrong = 0
    for before, after in zip(old.scores, new.scores, strict=True):
        margins = [np.array([np.nan if m is None else m for m in one.margin]) for one in (before, after)]
        alike = np.isclose(margins[0], margins[1], rtol=NEAR, atol=NEAR, equal_nan=True)
        for name in ("correct", "selection"):
            shares = [np.array(getattr(one, name)) for one in (before, after)]
            if old.stochastic:
                alike &= np.abs(shares[0] - shares[1]) <= SHARE
            else:  # another machine may round an image over the edge, and no other
                alike &= (shares[0] == shares[1]) | (np.abs(margins[1]) <= NEAR)
        wrong += int((~alike).sum())
    return (f"{wrong} of {sum(len(s.correct) for s in old.scores)} images come out otherwise" if wrong else ""), False


def write_images(
    dataset: str, out: Path, data_root: Path | None = None, *, against: Case | None = None
) -> tuple[int, int | None]:
    """Write the clean `images`, `labels` and `indices` that breaks of a data set refer to; returns how many there are.

    With a case, whose description says against whom and within which radius, also `standing` (n,): the images that the
    records of that entry leave right, whose number is returned too. Raises BenchError for an entry without records.
    """
    images, labels = score.clean_images(dataset, data_root)
    arrays: dict[str, Any] = {"images": images, "labels": labels, "indices": np.arange(len(images))}
    count = None
    if against is not None and against.said is not None:
        _keep(against, (rules.entry_exists, rules.entry_was_measured, rules.radius_is_on_our_scale))
        arrays["standing"] = effect.standing(against.cells, against.said.norm, against.said.eps, len(images))
        count = int(arrays["standing"].sum())
    write_atomically(out, lambda file: np.savez_compressed(file, **arrays))
    return len(images), count


def about(root: Path, entry: str, dataset: str, norm: str, eps: float, classifier: str) -> Case:
    """The case of a break that is only thought of: whose records tell what still stands."""
    places.root_of(root)
    fields = {
        "entry": plugins.slug(entry),
        "name": "planned",
        "author": "-",
        "dataset": dataset,
        "norm": norm,
        "eps": eps,
    }
    said = schema.described({**fields, "classifier": classifier})
    return Case(root / places.BREAKS / said.entry / said.name, root, rules.nothing, {}, given=said)
