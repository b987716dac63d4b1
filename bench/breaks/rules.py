"""5xx: the numbered checks of a break, in the style of bench.submissions.rules. Nothing of it is run or unpickled.

Distances are measured where the clean images are given; without them those that the harness wrote are believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import catalog, plugins, selective
from bench.breaks import arrays, schema
from bench.breaks.arrays import Arrays
from bench.breaks.schema import Break, Kept, Result
from bench.errors import BenchError
from bench.protocol import USUAL_THRESHOLD
from bench.record import Cell, Store
from bench.statistics import TOLERANCE
from bench.submissions import places
from bench.submissions.rules.base import Finding, Objection, Rule, rule
from bench.submissions.rules.files import HIDDEN
from bench.submissions.schema import SubmissionError

Clean = Callable[[str], NDArray[np.float32] | None]  # a data set's name -> its protocol's images, where they are known
Records = dict[str, list[Cell]]  # by entry
AGAIN = "delete the folder and add the break again with `purifybench break add`"
MAKE = f"write it with {arrays.HOW}"
ORDER = "`purifybench break images DATASET OUT.npz` writes the images with their indices"


@dataclass(frozen=True)
class Case:
    """A break among the submissions in `root`; what several rules need is read once.

    `given` and `npz` are the description and the file of a break that is only being added: it has no folder yet.
    """

    folder: Path
    root: Path
    clean: Clean
    known: Records  # the cells of entries that were read so far
    given: Break | None = None
    npz: Path | None = None

    @property
    def images_path(self) -> Path:
        """The npz."""
        return self.npz or self.folder / schema.IMAGES

    @cached_property
    def parsed(self) -> Break | list[str]:
        """The description, or what is wrong with it."""
        try:
            return self.given or schema.read(self.folder / schema.DESCRIPTION)
        except SubmissionError as problem:
            return problem.problems

    @property
    def said(self) -> Break | None:
        """The description; None where it cannot be read, which rule 504 says."""
        return self.parsed if isinstance(self.parsed, Break) else None

    @cached_property
    def opened(self) -> Arrays | str:
        """The arrays, or what was found instead."""
        try:
            return arrays.read(self.images_path)
        except BenchError as problem:
            return str(problem)

    @property
    def arrays(self) -> Arrays | None:
        """The arrays; None where they cannot be read, which rules 503 and 505 say."""
        return self.opened if isinstance(self.opened, Arrays) else None

    @cached_property
    def indices(self) -> NDArray[np.int64] | None:
        """The indices as numbers, rule 507 permitting."""
        found = self.arrays
        if found is None or found.indices.ndim != 1 or found.indices.dtype.kind not in "iu":
            return None
        return np.asarray(np.minimum(found.indices, np.iinfo(np.int64).max), dtype=np.int64)

    @cached_property
    def pixels(self) -> NDArray[np.float32] | None:
        """The images in [0, 1], rule 506 permitting."""
        found = self.arrays
        is_sound = found is not None and found.images.dtype in (np.float32, np.uint8) and found.images.ndim == 4
        return found.pixels if found is not None and is_sound else None

    @cached_property
    def cells(self) -> list[Cell]:
        """The entry's records on the break's data set and classifier, held where it may refuse (bench.selective)."""
        said = self.said
        if said is None or said.entry in places.RESERVED:
            return []
        if said.entry not in self.known:
            cells = list(Store(self.root / said.entry / "records").cells(defense=said.entry))
            refuses = any(cell.record.thresholds for cell in cells)
            self.known[said.entry] = selective.as_held(cells, USUAL_THRESHOLD) if refuses else cells
        asked = (said.dataset, said.classifier)
        return [c for c in self.known[said.entry] if (c.record.dataset, c.record.classifier) == asked]

    @property
    def may_refuse(self) -> bool:
        """Whether the entry may refuse an image."""
        return any(cell.record.thresholds for cell in self.cells)

    @cached_property
    def scored(self) -> Result | str:
        """The result, or what was found instead."""
        try:
            return schema.read_result(self.folder / schema.RESULT)
        except BenchError as problem:
            return str(problem)

    @property
    def result(self) -> Result | None:
        """The result; None where it cannot be read, which rule 515 says."""
        return self.scored if self.given is None and isinstance(self.scored, Result) else None

    @property
    def kept(self) -> Kept | None:
        """The whole break; None where a part of it cannot be read."""
        return Kept(self.said, self.result) if self.said and self.result else None


@rule(501)
def folders_are_slugs(case: Case) -> Iterator[Objection]:
    """A break lies in breaks/<entry>/<name>/, both slugs, and says so."""
    for path in (case.folder.parent, case.folder):
        if not plugins.SLUG.fullmatch(path.name):
            yield path, repr(path.name), "2 to 40 of a-z, 0-9 and _, a letter first", "rename the folder"
    if case.said and (case.said.entry, case.said.name) != (case.folder.parent.name, case.folder.name):
        found = f"entry = {case.said.entry!r}, name = {case.said.name!r}"
        expected = f"{case.folder.parent.name!r} and {case.folder.name!r}"
        yield case.folder / schema.DESCRIPTION, found, expected, "move the folder, or mend the names"


@rule(502)
def three_files(case: Case) -> Iterator[Objection]:
    """Its folder holds break.toml, images.npz and result.json, and nothing else."""
    if case.given is not None:
        return
    expected = (schema.DESCRIPTION, schema.IMAGES, schema.RESULT)
    for folder in (case.folder.parent, case.folder):
        if folder.is_symlink():
            yield folder, "a symbolic link", "a folder", "replace it by the folder itself"
    for name in expected:
        if not (case.folder / name).exists():
            yield case.folder, f"no {name}", "one", AGAIN
    for path in sorted(case.folder.iterdir()):
        if path.is_symlink() or path.name not in expected or not path.is_file():
            found = "a symbolic link" if path.is_symlink() else "something that has no place there"
            yield path, found, ", ".join(expected), "remove it"


@rule(503)
def images_are_small(case: Case) -> Iterator[Objection]:
    """images.npz has at most 1 MB."""
    path = case.images_path
    if path.is_file() and path.stat().st_size > arrays.LARGEST_FILE:
        fix = "compress it (np.savez_compressed), store bytes (uint8), or give fewer images"
        yield path, f"{path.stat().st_size:,} bytes", f"at most {arrays.LARGEST_FILE:,}", fix


@rule(504)
def description_is_sound(case: Case) -> Iterator[Objection]:
    """break.toml keeps its schema, field by field."""
    path = case.folder / schema.DESCRIPTION
    for problem in case.parsed if isinstance(case.parsed, list) else ():
        found, _, fix = problem.rpartition("; ")
        yield path, found or problem, "what `purifybench break add` writes", fix


@rule(505)
def npz_is_two_arrays(case: Case) -> Iterator[Objection]:
    """images.npz holds the arrays images and indices, with nothing to unpickle."""
    path = case.images_path
    is_large = path.is_file() and not path.is_symlink() and path.stat().st_size > arrays.LARGEST_FILE
    if isinstance(case.opened, str) and not is_large:  # else rule 503
        yield path, case.opened, "an npz of the arrays images and indices", MAKE


@rule(506)
def images_have_their_shape(case: Case) -> Iterator[Objection]:
    """The images are float32 or uint8 (n, C, H, W), of the data set's size, at least one."""
    found = case.arrays
    if found is None:
        return
    images, size = found.images, case.cells[0].outcomes.exhibits.shape[2:] if case.cells else None
    shown = f"{images.dtype} {images.shape}"[:100]
    if images.dtype not in (np.float32, np.uint8) or images.ndim != 4 or not len(images):
        yield case.images_path, f"images of {shown}", "float32 or uint8 (n, C, H, W), n at least 1", MAKE
    elif size is not None and images.shape[1:] != size:
        yield case.images_path, f"images of {shown}", f"(n, {', '.join(map(str, size))})", MAKE


@rule(507)
def indices_have_their_shape(case: Case) -> Iterator[Objection]:
    """The indices are integers (n,), one an image."""
    found = case.arrays
    if found is not None and (case.indices is None or found.indices.shape != found.images.shape[:1]):
        shown, n = f"{found.indices.dtype} {found.indices.shape}"[:100], found.images.shape[:1]
        yield case.images_path, f"indices of {shown}", f"integers {n}", ORDER


@rule(508)
def pixels_are_finite(case: Case) -> Iterator[Objection]:
    """Every pixel is a finite number."""
    if case.pixels is not None and not np.isfinite(case.pixels).all():
        count = int((~np.isfinite(case.pixels)).any(axis=(1, 2, 3)).sum())
        yield case.images_path, f"{count} images with NaN or infinity", "finite pixels", "leave these images out"


@rule(509)
def pixels_are_in_range(case: Case) -> Iterator[Objection]:
    """Every pixel lies in [0, 1]."""
    pixels = case.pixels
    if pixels is not None and pixels.size and ((pixels < 0) | (pixels > 1)).any():
        found = f"pixels in [{np.nanmin(pixels):g}, {np.nanmax(pixels):g}]"
        yield case.images_path, found, "[0, 1]", "clip the images; bytes are given as uint8"


@rule(510)
def indices_exist(case: Case) -> Iterator[Objection]:
    """Every index is one of the protocol's images, and none occurs twice."""
    if case.indices is None or case.said is None or case.said.dataset not in catalog.DATASETS:
        return
    asked = schema.protocol_of(case.said.dataset)
    outside = case.indices[(case.indices < 0) | (case.indices >= asked.n_examples)]
    if len(outside):
        yield case.images_path, f"the index {outside[0]}", f"0 to {asked.n_examples - 1}, as in {asked.id}", ORDER
    numbers, times = np.unique(case.indices, return_counts=True)
    for number in numbers[times > 1][:1]:
        yield case.images_path, f"the index {number} more than once", "each once", "keep the best image of each"


@rule(511)
def images_are_in_their_ball(case: Case) -> Iterator[Objection]:
    """No image lies further from the clean one than eps, 1e-6 for rounding."""
    said, pixels, indices = case.said, case.pixels, case.indices
    clean = case.clean(said.dataset) if said and said.dataset in catalog.DATASETS else None
    if said is None or pixels is None or indices is None or clean is None or not len(pixels):
        return
    if len(pixels) != len(indices) or pixels.shape[1:] != clean.shape[1:]:
        return  # rules 506 and 507
    if (indices < 0).any() or (indices >= len(clean)).any() or not np.isfinite(pixels).all():
        return  # rules 508 and 510
    reached = distances(pixels, clean[indices], said.norm)
    far = int(reached.argmax())
    if reached[far] > said.eps + TOLERANCE:
        count = int((reached > said.eps + TOLERANCE).sum())
        found = f"{count} of {len(reached)} images further away, index {indices[far]} at {said.norm} {reached[far]:.7g}"
        yield case.images_path, found, f"at most {said.eps:g}", "project onto the ball, or claim the larger eps"


@rule(512)
def radius_is_on_our_scale(case: Case) -> Iterator[Objection]:
    """The radius is for pixels in [0, 1], not in [0, 255]."""
    if case.said and case.said.norm == "linf" and case.said.eps > 1:
        yield case.folder / schema.DESCRIPTION, f"eps = {case.said.eps:g}", "at most 1 in linf", "divide it by 255"


@rule(513)
def entry_exists(case: Case) -> Iterator[Objection]:
    """The entry is a submission."""
    there = places.names(case.root)
    if case.said and case.said.entry not in there:
        found = f"entry = {case.said.entry!r}"
        yield case.folder / schema.DESCRIPTION, found, f"one of {', '.join(there) or 'none'}", "name a submission"


@rule(514)
def entry_was_measured(case: Case) -> Iterator[Objection]:
    """The entry has records on the data set and classifier."""
    if case.said and case.said.entry in places.names(case.root) and not case.cells:
        found = f"dataset = {case.said.dataset!r}, classifier = {case.said.classifier!r}"
        asked = {(c.record.dataset, c.record.classifier) for c in case.known.get(case.said.entry, ())}
        expected = "; ".join(f"{dataset} with {classifier}" for dataset, classifier in sorted(asked))
        yield case.folder / schema.DESCRIPTION, found, expected or "records, of which there are none", "name those"


@rule(515)
def result_is_the_harnesss(case: Case) -> Iterator[Objection]:
    """result.json is what the harness wrote: whole, and with its checksum."""
    path = case.folder / schema.RESULT
    if case.given is None and path.exists() and isinstance(case.scored, str):
        yield path, case.scored, "what the harness wrote", AGAIN


@rule(516)
def result_is_of_this_break(case: Case) -> Iterator[Objection]:
    """result.json is of these images, this entry and this radius."""
    result, said = case.result, case.said
    if result is None or said is None or case.arrays is None:
        return
    path = case.folder / schema.RESULT
    for name in ("entry", "dataset", "norm", "eps", "classifier"):
        if getattr(result, name) != getattr(said, name):
            yield path, f"{name} {getattr(result, name)!r}"[:100], repr(getattr(said, name)), AGAIN
    if result.images_sha256 != sha256(case.images_path):
        yield path, f"the result of other images, {result.images_sha256[:12]!r}", sha256(case.images_path)[:12], AGAIN
    elif case.indices is None or result.indices != tuple(sorted(case.indices.tolist())):
        yield path, "other indices", f"those of {schema.IMAGES}, rising", AGAIN


@rule(517)
def result_does_not_contradict_itself(case: Case) -> Iterator[Objection]:
    """Every list has one number an image, shares lie in [0, 1], and a prediction is right where it is the label."""
    result = case.result
    if result is None:
        return
    path, n = case.folder / schema.RESULT, len(result.indices)
    lists = {name: getattr(result, name) for name in ("labels", "linf", "l2")}
    for score in result.scores:
        names = ["predicted", "correct", "margin", "selection", "selection_margin"]
        names += ["accepted"] if score.accepted else []
        lists |= {f"{name} of seed {score.seed}": getattr(score, name) for name in names}
    wrong = next((name for name, values in lists.items() if len(values) != n), None)
    if wrong:
        yield path, f"{len(lists[wrong])} numbers in {wrong}", str(n), AGAIN
        return
    if not (result.distance(result.norm) <= result.eps + TOLERANCE).all():
        yield path, f"{result.norm} beyond the radius", f"at most {result.eps:g}", AGAIN
    for score in result.scores:
        correct, label, predicted = np.array(score.correct), np.array(result.labels), np.array(score.predicted)
        accepted = np.array(score.accepted) if score.accepted else np.ones(n)
        shares = np.array([*score.correct, *score.selection, *score.accepted])
        if not ((shares >= 0) & (shares <= 1)).all():
            yield path, "shares outside [0, 1]", "shares of draws", AGAIN
        elif (correct > accepted).any():
            yield path, "images that are right and refused", "one of the two", AGAIN
        elif not result.stochastic and not np.array_equal(correct, (predicted == label) * accepted):
            yield path, "images counted as right whose class is not the label, or the reverse", "none", AGAIN
        elif not result.stochastic and not np.array_equal(score.selection, np.where(accepted > 0, correct, 0.5)):
            yield path, "a deterministic defense that answers twice", "one answer", AGAIN


@rule(518)
def labels_are_the_data_sets(case: Case) -> Iterator[Objection]:
    """The labels are those of the entry's records."""
    result = case.result
    if result is None or len(result.labels) != len(result.indices):
        return
    known = max((cell.outcomes.label for cell in case.cells), key=len, default=None)
    for index, label in zip(result.indices, result.labels, strict=True) if known is not None else ():
        if known is not None and 0 <= index < len(known) and known[index] != label:
            yield case.folder / schema.RESULT, f"label {label} at index {index}", str(known[index]), AGAIN
            return


@rule(519)
def text_is_what_it_seems(case: Case) -> Iterator[Objection]:
    """No text holds characters that hide or reorder text."""
    said = case.said
    for name in ("author", "note", "paper", "code"):
        hidden = HIDDEN.search(getattr(said, name) or "") if said else None
        if hidden:
            found = f"the invisible character U+{ord(hidden.group()):04X} in {name}"
            yield case.folder / schema.DESCRIPTION, found, "text that reads as it is", "remove that character"


@rule(520)
def refusals_are_told(case: Case) -> Iterator[Objection]:
    """Where the entry may refuse an image, and only there, the result says which were accepted."""
    if case.result is None or not case.cells:
        return
    for score in case.result.scores:
        if bool(score.accepted) != case.may_refuse:
            found = f"{'accepted' if score.accepted else 'no'} images of seed {score.seed}"
            expected = "which were accepted" if case.may_refuse else "nothing of that: the entry always answers"
            yield case.folder / schema.RESULT, found, expected, AGAIN


ALL: tuple[Rule[Case], ...] = tuple(
    sorted((value for value in list(vars().values()) if isinstance(value, Rule)), key=lambda one: one.number)
)


def distances(images: NDArray[np.float32], clean: NDArray[np.float32], norm: str) -> NDArray[np.float64]:
    """How far each image lies from its clean one, (n,), in double precision as everywhere in the harness."""
    away = (images.astype(np.float64) - clean.astype(np.float64)).reshape(len(images), -1)
    return np.asarray(np.abs(away).max(axis=1) if norm == "linf" else np.linalg.norm(away, axis=1))


def sha256(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def nothing(dataset: str) -> None:
    """Stands where no clean images are known."""


def examine(
    folder: Path, root: Path, clean: Clean = nothing, known: Records | None = None
) -> tuple[Case, list[Finding]]:
    """A break's folder as a case, and all that the rules object to in it; entries' records are kept in `known`."""
    case = Case(folder, root, clean, {} if known is None else known)
    return case, findings(case)


def findings(case: Case, rules: Iterable[Rule[Case]] | None = None) -> list[Finding]:
    """All that the rules (ALL unless told) object to, in their order."""
    return [finding for one in (ALL if rules is None else rules) for finding in one.findings(case)]


def kept(root: Path, entries: Sequence[str]) -> tuple[list[Kept], list[Finding]]:
    """The breaks of some entries under `root` that keep every rule, and what was found in the others."""
    sound, problems, known = list[Kept](), list[Finding](), Records()
    for folder in schema.folders(root):
        if folder.parent.name in entries:
            case, found = examine(folder, root, known=known)
            problems += found
            if not found and case.kept:
                sound.append(case.kept)
    return sound, problems
