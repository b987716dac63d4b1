"""2xx: what submission.toml says, beyond its schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bench import catalog
from bench.submissions import places
from bench.submissions.rules.base import Case, Objection, rule

LARGEST_RADIUS = {"linf": 1.0, "l2": 60.0}  # no image of 3x32x32 pixels in [0, 1] is further from another


@rule(201)
def description_is_sound(case: Case) -> Iterator[Objection]:
    """submission.toml keeps its schema, field by field."""
    path = case.folder / places.FILE
    for problem in case.parsed if isinstance(case.parsed, list) and path.exists() else ():
        found, _, fix = problem.rpartition("; ")
        yield path, found or problem, "what submission.schema.json describes", fix


@rule(202)
def named_like_its_folder(case: Case) -> Iterator[Objection]:
    """The name is the folder's."""
    if case.submission and case.submission.name != case.name:
        yield case.folder / places.FILE, f"name = {case.submission.name!r}", repr(case.name), "rename one of the two"


@rule(203)
def data_sets_exist(case: Case) -> Iterator[Objection]:
    """Every data set named is one of the benchmark's."""
    for name in case.submission.datasets if case.submission else ():
        if name not in catalog.DATASETS:
            expected = f"one of {', '.join(catalog.DATASETS)}"
            yield case.folder / places.FILE, f"the data set {name!r}", expected, "remove it from datasets"


@rule(204)
def classifiers_exist(case: Case) -> Iterator[Objection]:
    """Every classifier named is one that boards use."""
    boards = [name for name in catalog.CLASSIFIERS if name not in catalog.PORTS]
    for name in case.submission.classifiers if case.submission else ():
        if name not in boards:
            expected = f"one of {', '.join(boards)}"
            yield case.folder / places.FILE, f"the classifier {name!r}", expected, "remove it from classifiers"


@rule(205)
def nothing_is_named_twice(case: Case) -> Iterator[Objection]:
    """No data set, classifier, weights or claim is given twice."""
    said = case.submission
    lists = {
        "datasets": said.datasets, "classifiers": said.classifiers, "weights": [w.file for w in said.weights],
        "claims": [(c.dataset, c.norm, c.eps, c.attack, c.where) for c in said.claims],
    } if said else {}  # fmt: skip
    for field, values in lists.items():
        for value, times in Counter(values).items():
            if times > 1:
                yield case.folder / places.FILE, f"{value!r} {times} times in {field}", "it once", "remove the others"


@rule(206)
def claims_are_about_its_data(case: Case) -> Iterator[Objection]:
    """Claims are about data sets of the benchmark."""
    for i, claim in enumerate(case.submission.claims if case.submission else ()):
        if claim.dataset not in catalog.DATASETS:
            expected = f"one of {', '.join(catalog.DATASETS)}"
            yield (
                case.folder / places.FILE,
                f"claims[{i}].dataset = {claim.dataset!r}",
                expected,
                "leave that claim out",
            )


@rule(207)
def radii_are_on_our_scale(case: Case) -> Iterator[Objection]:
    """Radii of claims are for pixels in [0, 1], not in [0, 255]."""
    for i, claim in enumerate(case.submission.claims if case.submission else ()):
        most = LARGEST_RADIUS[claim.norm]
        if claim.eps > most:
            found = f"claims[{i}].eps = {claim.eps:g}"
            yield case.folder / places.FILE, found, f"at most {most:g} for pixels in [0, 1]", "divide it by 255"


@rule(208)
def title_is_its_own(case: Case) -> Iterator[Objection]:
    """No submission that was there before has the same title."""
    said = case.submission
    for name, other in case.others.items():
        alike = said and other.submission and other.submission.title.casefold() == said.title.casefold()
        if said and alike and case.came_after(other):
            found = f"title = {said.title!r}"
            yield case.folder / places.FILE, found, f"another one than {name}'s", "say what sets yours apart"


@rule(209)
def template_is_filled_in(case: Case) -> Iterator[Objection]:
    """Links are real ones, not the template's."""
    for field in ("paper", "code"):
        link = getattr(case.submission, field) if case.submission else None
        if link and link.split("/")[2] in ("example.org", "example.com"):
            yield case.folder / places.FILE, f"{field} = {link!r}", "where it can be read", f"write the true {field}"


@rule(210)
def weights_are_named_like_it(case: Case) -> Iterator[Objection]:
    """Weights belong to this defense."""
    for i, weights in enumerate(case.submission.weights if case.submission else ()):
        if weights.file.rpartition("-")[0] != case.name:
            found = f"weights[{i}].file = {weights.file!r}"
            yield case.folder / places.FILE, found, f"{case.name}-....safetensors", "give this defense's own weights"
