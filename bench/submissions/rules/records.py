"""4xx: the records of a submission: of this defense, of a published protocol, whole, and free of contradictions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache

import numpy as np

from bench import catalog, protocols, seal
from bench.catalog import ATTACKS
from bench.errors import BenchError
from bench.protocol import BUDGETS, Protocol
from bench.record import SEAL, Cell
from bench.statistics import TOLERANCE
from bench.submissions.rules.base import Case, Objection, rule

AGAIN = "run the cell again"
SHA256 = re.compile("[0-9a-f]{64}")


def _view(cell: Cell) -> Protocol | None:
    """The protocol of a cell as its defense meets it; None where rule 403 has said that there is none."""
    try:
        known = protocols.get(cell.record.protocol)
    except BenchError:
        return None
    card = cell.record.card
    return _effort(known, cell.record.budget, card.stochastic, card.doors)


@cache  # a protocol's hash takes a while, and a submission has hundreds of cells
def _effort(protocol: Protocol, budget: str, stochastic: bool, doors: tuple[str, ...]) -> Protocol:
    return protocol.effort(budget, stochastic=stochastic, doors=doors)


def _groups(case: Case) -> dict[tuple[str, str], list[Cell]]:
    """The cells by protocol and classifier."""
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in case.cells:
        groups[cell.record.protocol, cell.record.classifier].append(cell)
    return groups


@rule(401)
def records_are_whole(case: Case) -> Iterator[Objection]:
    """Every record can be read and matches its checksum, its arrays and its place."""
    _ = case.cells
    for problem in dict.fromkeys(case.store.problems):
        path, _, what = problem.partition(": ")
        yield path, what.partition("; run the cell")[0], "what the harness wrote", AGAIN


@rule(402)
def records_are_its_own(case: Case) -> Iterator[Objection]:
    """The records are of this defense."""
    for path in sorted((case.folder / "records").glob("*/*")):
        if path.is_dir() and path.name != case.name:
            yield path, f"records of {path.name}", f"of {case.name}", "move them to their own submission"


@rule(403)
def protocols_are_known(case: Case) -> Iterator[Objection]:
    """The records are of a whole protocol, not of a limited, unchecked or unknown one; drafts are shown, not ranked."""
    for path in sorted((case.folder / "records").glob("*")):
        if path.name not in protocols.known():
            yield path, path.name, f"one of {', '.join(protocols.PROTOCOLS)}", "measure under one of these, all images"


@rule(404)
def protocols_are_unchanged(case: Case) -> Iterator[Objection]:
    """The records cite the protocol as it stands."""
    for cell in case.cells:
        view = _view(cell)
        if view and cell.record.protocol_hash != view.hash:
            found = f"protocol_hash {cell.record.protocol_hash[:12]}"
            yield case.path_of(cell), found, view.hash[:12], "run purifybench again; equal cells are taken over"


@rule(405)
def cards_agree(case: Case) -> Iterator[Objection]:
    """The records say of the defense what submission.toml says."""
    said = case.submission
    if said is None:
        return
    for cell in case.cells:
        about, facts = cell.record.card, said.facts
        for fact in ("title", "paper", "year", "kind", "stochastic", "differentiable", "trained_on"):
            found, expected = getattr(about, fact), getattr(said if hasattr(said, fact) else facts, fact)
            if found != expected:
                fix = "make submission.toml and class agree, then run again"
                yield case.path_of(cell), f"{fact} {found!r}", repr(expected), fix


@rule(406)
def one_defense_was_measured(case: Case) -> Iterator[Objection]:
    """All cells of a protocol and classifier are of one code, recipe and settings, and of one net for each seed."""
    for cells in _groups(case).values():
        same = Counter((c.record.code, c.record.recipe, repr(dict(c.record.settings))) for c in cells)
        usual = same.most_common(1)[0][0]
        weights: dict[int, Counter[str]] = defaultdict(Counter)
        for cell in cells:
            weights[cell.record.seed][cell.record.weights] += 1
        for cell in cells:
            record = cell.record
            mine = (record.code, record.recipe, repr(dict(record.settings)))
            if mine != usual or record.weights != weights[record.seed].most_common(1)[0][0]:
                yield case.path_of(cell), "other code, settings or weights", "those of the other cells", AGAIN


@rule(407)
def cells_are_the_protocols(case: Case) -> Iterator[Objection]:
    """Every cell is one that the protocol asks for, as it asks for it."""
    for cell in case.cells:
        view = _view(cell)
        if view is None:
            continue
        wanted = {spec.slug: spec for spec in view.attacks}.get(cell.record.spec.slug)
        if wanted is None:
            yield case.path_of(cell), f"the attack {cell.record.spec.slug}", f"one of {view.id}'s", "remove it"
        elif dict(wanted.params) != dict(cell.record.params) or wanted.cascade != cell.record.cascade:
            found = f"parameters {dict(cell.record.params)}"
            yield case.path_of(cell), found, str(dict(wanted.params)), AGAIN


@rule(408)
def no_cell_is_missing(case: Case) -> Iterator[Objection]:
    """Where a protocol was begun, none of its cells is missing."""
    for (protocol_id, classifier), cells in _groups(case).items():
        view = _view(cells[0])
        for seed in sorted({cell.record.seed for cell in cells}) if view else ():
            there = {cell.record.spec.slug for cell in cells if cell.record.seed == seed}
            missing = [spec.slug for spec in view.attacks if spec.slug not in there] if view else []
            if missing:
                some = ", ".join(missing[:3])
                found = f"{len(missing)} cells missing for classifier {classifier}, seed {seed}: {some}"
                ours = case.submission is None or case.submission.install.included
                fix = f"purifybench {'run' if ours else 'submission run'} {case.name} --protocol {protocol_id}"
                yield case.folder / "records" / protocol_id, found, "all cells of the protocol", fix


@rule(409)
def images_are_in_their_balls(case: Case) -> Iterator[Objection]:
    """No stored image lies further away than its cell's radius."""
    for cell in case.cells:
        record, outcomes = cell.record, cell.outcomes
        if record.norm is None or record.eps is None:
            continue
        reached = outcomes.distance(record.norm)[outcomes.attacked]
        if reached.size and not float(reached.max()) <= record.eps + TOLERANCE:
            yield case.path_of(cell), f"{record.norm} {reached.max():g}", f"at most {record.eps:g}", AGAIN


@rule(410)
def arrays_have_their_shapes(case: Case) -> Iterator[Objection]:
    """Every array has one entry an image, and shares lie in [0, 1]."""
    for cell in case.cells:
        n, outcomes = cell.record.n_examples, cell.outcomes
        for name, array in outcomes.arrays().items():
            if name != "exhibits" and array.shape != (n,):
                yield case.path_of(cell), f"{name} of shape {array.shape}", f"({n},)", AGAIN
        for name in ("correct", "selection", "accepted"):
            shares = getattr(outcomes, name)
            shares = shares[outcomes.attacked] if shares.shape == outcomes.attacked.shape else shares
            if not ((shares >= 0) & (shares <= 1)).all():
                yield case.path_of(cell), f"{name} outside [0, 1]", "shares of draws", AGAIN


@rule(411)
def outcomes_do_not_contradict_themselves(case: Case) -> Iterator[Objection]:
    """A deterministic defense is right exactly where it accepts the image and names its label, as the margin says."""
    for cell in case.cells:
        found = cell.outcomes
        if (
            cell.record.card.stochastic
            or len({array.shape for array in (found.label, found.predicted, found.correct)}) > 1
        ):
            continue
        looked = found.attacked
        named = (found.predicted == found.label)[looked]
        if not np.array_equal(found.correct[looked] > 0, named & (found.accepted[looked] > 0)):
            yield case.path_of(cell), "images counted as right whose class is not the label", "none", AGAIN
        elif (found.margin[looked][named] < 0).any() or (found.margin[looked][~named] > 0).any():
            yield case.path_of(cell), "margins of the other sign than the outcome", "margins that agree", AGAIN


@rule(412)
def labels_are_the_data_sets(case: Case) -> Iterator[Objection]:
    """Every cell of a protocol has the same labels, in this submission and in all others."""
    labels: dict[str, np.ndarray[tuple[int], np.dtype[np.int16]]] = {}
    for other in case.others.values():
        for cell in other.cells[:1]:
            labels.setdefault(cell.record.protocol, cell.outcomes.label)
    for cell in case.cells:
        known = labels.setdefault(cell.record.protocol, cell.outcomes.label)
        n = min(len(known), len(cell.outcomes.label))
        if not np.array_equal(known[:n], cell.outcomes.label[:n]):
            yield case.path_of(cell), "other labels than in the other cells", "the data set's", AGAIN


@rule(413)
def all_images_were_used(case: Case) -> Iterator[Objection]:
    """A cell holds as many images as its protocol asks for."""
    for cell in case.cells:
        view = _view(cell)
        if view and cell.record.n_examples != view.n_examples:
            yield case.path_of(cell), f"{cell.record.n_examples} images", f"{view.n_examples}", AGAIN


@rule(414)
def attacks_are_current(case: Case) -> Iterator[Objection]:
    """The attacks are of the version that the harness has now."""
    for cell in case.cells:
        info = ATTACKS.get(cell.record.attack)
        if info is not None and cell.record.attack_version != info.version:
            yield case.path_of(cell), f"version {cell.record.attack_version}", f"{info.version}", AGAIN


@rule(415)
def failures_are_told(case: Case) -> Iterator[Objection]:
    """A cell says why it failed if and only if it did, and no image that failed counts as right."""
    for cell in case.cells:
        record, outcomes = cell.record, cell.outcomes
        if (record.status == "failed") != bool(record.error):
            yield case.path_of(cell), f"status {record.status!r}, error {record.error[:40]!r}", "both or none", AGAIN
        elif record.card.stochastic or outcomes.predicted.shape != outcomes.correct.shape:
            continue
        elif (outcomes.correct[(outcomes.predicted == -1) & outcomes.attacked] > 0).any():
            yield case.path_of(cell), "failed images counted as right", "failure never helps", AGAIN


@rule(416)
def data_and_classifiers_are_announced(case: Case) -> Iterator[Objection]:
    """Records are on the data sets and classifiers that submission.toml names."""
    said = case.submission
    for protocol_id, classifier in _groups(case) if said else ():
        dataset = next(c.record.dataset for c in case.cells if c.record.protocol == protocol_id)
        path = case.folder / "records" / protocol_id
        if said and dataset not in said.datasets:
            yield path, f"records on {dataset}", f"on {', '.join(said.datasets)}", f"add {dataset} to datasets"
        if said and classifier not in (*said.classifiers, *catalog.PORTS):
            expected = f"classifiers {', '.join(said.classifiers)}"
            yield path, f"records of classifier {classifier}", expected, f"add {classifier} to classifiers"


@rule(417)
def budgets_follow_from_costs(case: Case) -> Iterator[Objection]:
    """The budget class is that of the measured cost."""
    for cell in case.cells:
        record = cell.record
        right = next(name for name, most in BUDGETS.items() if record.units <= most)
        if record.budget != right:
            yield case.path_of(cell), f"budget {record.budget!r} at {record.units:g} units", repr(right), AGAIN


@rule(418)
def clean_images_are_clean(case: Case) -> Iterator[Objection]:
    """Images that nobody attacked lie at distance 0."""
    for cell in case.cells:
        if cell.record.attack == "none":
            moved = cell.outcomes.linf[cell.outcomes.attacked]
            if moved.size and float(moved.max()) > 0:
                yield case.path_of(cell), f"clean images moved by {moved.max():g}", "0", AGAIN


@rule(419)
def records_are_not_copied(case: Case) -> Iterator[Objection]:
    """The records are not those of a submission that was there before."""
    mine = _attacked(case)
    for name, other in case.others.items() if mine else ():
        theirs = _attacked(other)
        for protocol_id in sorted(mine.keys() & theirs.keys()) if case.came_after(other) else ():
            one, two = mine[protocol_id], theirs[protocol_id]
            if min(len(one), len(two)) > 1 and (one <= two or two <= one):
                path = case.folder / "records" / protocol_id
                yield path, f"exactly the outcomes of {name}", "its own", "measure this defense"


def _attacked(case: Case) -> dict[str, set[tuple[str, str]]]:
    """The cells of attacked images with the hashes of their outcomes, by protocol."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for cell in case.cells:
        if cell.record.attack != "none":
            found[cell.record.protocol].add((cell.record.cell, cell.record.outcomes_sha256))
    return found


@rule(420)
def nets_are_shared(case: Case) -> Iterator[Objection]:
    """All cells of a classifier are in front of the same net."""
    for cells in _groups(case).values():
        usual = Counter(cell.record.classifier_weights for cell in cells).most_common(1)[0][0]
        for cell in cells:
            if cell.record.classifier_weights != usual:
                yield case.path_of(cell), f"classifier_weights {cell.record.classifier_weights[:12]}", usual[:12], AGAIN


@rule(421)
def images_are_hashed(case: Case) -> Iterator[Objection]:
    """images_sha256 is a sha256, and that of clean images is the one of most submissions."""
    clean: dict[tuple[str, bytes], Counter[str]] = defaultdict(Counter)
    for one in (case, *case.others.values()) if case.cells else ():
        for cell in one.cells:
            if cell.record.attack == "none" and SHA256.fullmatch(cell.record.images_sha256):
                clean[_images(cell)][cell.record.images_sha256] += 1
    for cell in case.cells:
        mine = cell.record.images_sha256
        if not mine:
            continue  # of a harness that did not hash images
        usual = clean[_images(cell)].most_common(1)
        if not SHA256.fullmatch(mine):
            yield case.path_of(cell), f"images_sha256 {mine[:20]!r}", "64 hex digits", AGAIN
        elif cell.record.attack == "none" and usual[0][1] > clean[_images(cell)][mine]:
            found = f"images_sha256 {mine[:12]} of clean images"
            yield case.path_of(cell), found, f"{usual[0][0][:12]} as elsewhere", AGAIN


@rule(422)
def records_are_as_sealed(case: Case) -> Iterator[Objection]:
    """The records are those that the run sealed: none was added, removed or replaced since."""
    hashed = {cell.record.protocol for cell in case.cells if cell.record.images_sha256}  # by a harness that seals
    for folder in sorted((case.folder / "records").glob("*/*/")) if case.can_be_read else ():
        path, fix = folder / SEAL, f"purifybench run {case.name} --protocol {folder.parent.name}"
        if not path.exists() and folder.parent.name in hashed:
            yield path, "no seal", "the seal of a finished run", fix
        for problem in seal.problems(folder):
            yield path, problem, "the records that were sealed", fix


def _images(cell: Cell) -> tuple[str, bytes]:
    """Which images of which protocol a cell attacked."""
    return cell.record.protocol, cell.outcomes.attacked.tobytes()
