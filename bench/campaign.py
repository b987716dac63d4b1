"""From names to finished records: plan the cells, estimate, train what is missing, run, resume.

What cells share is computed once: a classifier is trained once, images attacked on the bare classifier serve every
defense, and a cell whose key is in the store is not run again (failed cells are).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from bench import checks, classifiers, data, device, draws, plugins, protocol, seeds, training
from bench.cache import ChunkCache
from bench.catalog import ATTACKS, CLASSIFIERS
from bench.data import Dataset, Split
from bench.defense import Defense, has_door, settings, source_hash
from bench.errors import BenchError, unknown
from bench.evaluation import Examples, Subject, cell_key, cell_name, evaluate_cell, images_key, untouched
from bench.places import home
from bench.progress import Progress, duration, for_terminal
from bench.protocol import AttackSpec, Protocol
from bench.record import Cell, Store

Named = tuple[str, type[Defense]]


@dataclass(frozen=True)
class Plan:
    """What a run was asked for, with names resolved; `specs` are the protocol's or a selection of them."""

    protocol: Protocol
    specs: tuple[AttackSpec, ...]
    defenses: tuple[Named, ...]
    classifiers: tuple[str, ...]
    recipe: str | None
    device: torch.device
    contract: bool


def plan(
    defenses: Sequence[str | type[Defense]],
    protocol_id: str | Protocol,
    *,
    classifier: Sequence[str] = (),
    tracks: Sequence[str] = (),
    attacks: Sequence[str] = (),
    limit: int | None = None,
    recipe: str | None = None,
    on: str = "auto",
    contract: bool = True,
) -> Plan:
    """Resolve names before any work starts. Raises BenchError for the first unknown one, or for no cell."""
    chosen = protocol.get(protocol_id) if isinstance(protocol_id, str) else protocol_id
    if limit is not None:
        chosen = chosen.limited(limit)
    if not contract:  # kept apart from records that were held to it
        chosen = replace(chosen, id=f"{chosen.id}+unchecked", ranked=False)
    for name in classifier:
        if name not in CLASSIFIERS:
            raise unknown("classifier", name, CLASSIFIERS, see="purifybench list classifiers")
    named = tuple(dict.fromkeys(_named(defense) for defense in defenses))
    for name, cls in named:
        settings(cls, recipe if recipe in cls.recipes else None)
        if cls.kind == "selective" or has_door(cls, "rejection_score"):
            raise BenchError(f"{name} may refuse images; no protocol scores rejection yet, so it cannot be run")
    if recipe is not None and not any(recipe in cls.recipes for _, cls in named):
        raise unknown("recipe", recipe, {r for _, cls in named for r in cls.recipes})
    specs = tuple(chosen.select(tuple(tracks), tuple(attacks)))
    if not specs:
        raise BenchError(f"no cell of {chosen.id} is in tracks {', '.join(tracks)} and attacks {', '.join(attacks)}")
    return Plan(
        protocol=chosen,
        specs=specs,
        defenses=named,
        classifiers=tuple(dict.fromkeys(classifier)) or chosen.classifiers,
        recipe=recipe,
        device=device.prepare(on),
        contract=contract,
    )


def _named(defense: str | type[Defense]) -> Named:
    if isinstance(defense, str):
        return plugins.slug(defense), plugins.load(defense)
    if not (isinstance(defense, type) and issubclass(defense, Defense)):
        raise BenchError(f"expected the name of a defense or a subclass of Defense, got {defense!r}")
    installed = plugins.installed()
    registered = {point.value: name for name, point in installed.items()}
    name = registered.get(f"{defense.__module__}:{defense.__qualname__}")
    if name is None:
        name = _snake(defense.__name__)
        if name in installed or not plugins.SLUG.fullmatch(name):
            why = "is the name of an installed defense" if name in installed else "is no slug"
            raise BenchError(f"the class {defense.__name__} would be called {name!r}, which {why}; rename the class")
    return name, defense


def _snake(name: str) -> str:
    return "".join(("_" if c.isupper() and i else "") + c.lower() for i, c in enumerate(name))


class Unusable(Defense):
    """Stands where a defense could not be built or trained: every cell records the reason, and counts as wrong."""

    title, paper, year = "unusable", "", 0

    def __init__(self, classifier: nn.Module, *, reason: str = "") -> None:
        super().__init__(classifier)
        self.reason = reason

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """Raises RuntimeError with the reason."""
        raise RuntimeError(self.reason)


def trained_subject(
    named: Named,
    classifier: str,
    net: nn.Module,
    net_weights: str,
    dataset: Dataset,
    recipe: str | None,
    progress: Progress,
) -> Subject:
    """A defense built for a classifier, with its weights trained or loaded; `Unusable` if its code raises.

    Construction and training see `dataset` with an empty test split.
    """
    name, cls = named
    recipe_name, chosen = settings(cls, recipe if recipe in cls.recipes else None, dataset.shape)
    key = {"version": cls.version, "dataset": dataset.name, "split": dataset.split, "settings": chosen, "seed": 0}
    if cls.per_classifier:
        key["classifier"] = net_weights
    mine = copy.deepcopy(net)  # what one defense does to its copy reaches no other
    device = dataset.train.images.device

    def build() -> Defense:
        with training.global_seed(seeds.derive("initialise defense", name, key)):
            return cls(mine, **chosen).to(device).eval()

    weights, built, stage = "", None, "built"
    try:
        with untouched(mine):
            built = build()
            if has_door(cls, "fit"):
                stage, trainee = "trained", built

                def fit(generator: Generator, kept: Progress) -> None:
                    with untouched(mine):
                        trainee.fit(_own_copy(dataset), generator, kept)

                training.load_or_fit(trainee, name, key, fit, progress, source_hash(cls))
                built = build()  # from the file, as every later run sees it: what fit kept elsewhere is lost now
                weights = training.load_or_fit(built, name, key, fit, Progress(), source_hash(cls))
    except BenchError:  # the disk, not the defense
        raise
    except (Exception, SystemExit) as problem:
        reason = f"not {stage}: {type(problem).__name__}: {problem}"
        progress.say(f"{name} is {reason}")
        built = Unusable(mine, reason=reason)
    assert built is not None
    built.requires_grad_(False).eval()
    attacked, attacked_weights = net, net_weights
    if built.classifier is not mine:
        attacked = built.classifier
        attacked_weights = seeds.digest(name, chosen, source_hash(cls), training.weights_hash(attacked))
    weights = weights or training.weights_hash(built)
    return Subject(name, cls, built, recipe_name, chosen, weights, classifier, net_weights, attacked, attacked_weights)


def _own_copy(dataset: Dataset) -> Dataset:
    """The data for one fit: what it writes into them reaches nobody else, and there is no test image."""

    def cloned(split: Split) -> Split:
        return Split(split.images.clone(), split.labels.clone())

    nothing = Split(torch.empty_like(dataset.test.images[:0]), torch.empty_like(dataset.test.labels[:0]))
    return replace(dataset, train=cloned(dataset.train), validation=cloned(dataset.validation), test=nothing)


def _held_to_contract(
    cells: Sequence[tuple[Subject, AttackSpec]], progress: Progress
) -> list[tuple[Subject, AttackSpec]]:
    """The same cells, with `Unusable` in the place of every defense that breaks the contract: it is not evaluated."""
    subjects = {subject.name: subject for subject, _ in cells}
    for name, subject in subjects.items():
        problem = next((finding.problem for finding in checks.run(subject.cls) if finding.problem), "")
        if problem:
            progress.say(f"{name} breaks the contract and is not evaluated ({problem}); see purifybench check {name}")
            stand_in = Unusable(subject.defense.classifier, reason=f"breaks the contract: {problem}")
            subjects[name] = replace(subject, defense=stand_in)
    return [(subjects[subject.name], spec) for subject, spec in cells]


def run(
    plan: Plan, store: Store, *, data_root: Path | str | None = None, progress: Progress | None = None
) -> list[Cell]:
    """Run a plan into a store and return its cells in the plan's order; cells that the store holds are not run again.

    Trainings and attacked images are kept under $PURIFYBENCH_HOME. Interrupted at any time, the same call resumes.
    """
    progress = progress or Progress()
    dataset = data.load(plan.protocol.dataset, data_root).to(plan.device)
    clean, indices = dataset.examples(plan.protocol.n_examples, plan.protocol.seed)
    examples = Examples(dataset.name, dataset.split, clean, indices)
    cache = ChunkCache(home() / "chunks")
    store.prepare()
    cells: list[Cell] = []
    for classifier in plan.classifiers:
        net, net_weights = classifiers.trained(classifier, dataset, progress)
        subjects = [
            trained_subject(named, classifier, net, net_weights, dataset, plan.recipe, progress)
            for named in plan.defenses
        ]
        finished: dict[tuple[str, str], Cell] = {}
        failures: set[tuple[str, str]] = set()
        open_cells: list[tuple[Subject, AttackSpec]] = []
        for subject in subjects:
            stored = {cell.record.cell: cell for cell in store.cells(plan.protocol.id, subject.name)}
            for spec in plan.specs:
                cell = stored.get(cell_name(subject, plan.protocol, spec))
                same = cell is not None and cell.record.key == cell_key(subject, plan.protocol, spec)
                if cell is not None and same and cell.record.status == "ok":
                    finished[subject.name, spec.slug] = cell
                else:
                    open_cells.append((subject, spec))
        expected = _expected_seconds(open_cells, plan, examples, cache)
        total = sum(expected.values())
        if plan.contract:
            open_cells = _held_to_contract(open_cells, progress)
        if open_cells:
            progress.say(f"{len(open_cells)} cells to run, about {duration(max(total, 1))}{_shorter(plan, total)}")
        with progress.task(f"{plan.protocol.id}, classifier {classifier}", total=max(total, 1e-9)) as advance:
            for subject, spec in open_cells:
                cell = evaluate_cell(subject, plan.protocol, spec, examples, cache, progress)
                store.save(cell)
                finished[subject.name, spec.slug] = cell
                advance(expected[subject.name, spec.slug])
                failure = (subject.name, cell.record.error)
                if cell.record.status == "failed" and failure not in failures:
                    failures.add(failure)
                    progress.say(f"{subject.name} failed under {spec.slug}: {cell.record.error}")
        for subject in subjects:
            for spec in plan.specs:
                cells.append(finished[subject.name, spec.slug])
    for problem in dict.fromkeys(store.problems):
        progress.say(f"not trusted: {problem}")
    return cells


def evaluate(
    defense: str | type[Defense],
    protocol: str | Protocol = "digits-v1-quick-draft",
    *,
    classifier: str | None = None,
    tracks: Sequence[str] = (),
    attacks: Sequence[str] = (),
    limit: int | None = None,
    recipe: str | None = None,
    device: str = "auto",
    records: Path | str = "results",
    data_root: Path | str | None = None,
    progress: Progress | None = None,
    contract: bool = True,
) -> list[Cell]:
    """Measure one defense, by name or by class, under a protocol: what `purifybench run` does, for a notebook.

    Returns the cells, also kept in the folder `records`. A defense that breaks the contract is not evaluated, unless
    `contract=False`; such cells go by another protocol's name. Shows its progress unless given a silent `Progress()`.
    Raises BenchError for anything that the caller can mend.

    >>> from bench import evaluate
    >>> cells = evaluate("kmeans", "digits-v1-quick-draft", limit=64)  # doctest: +SKIP
    """
    asked = plan(
        [defense], protocol, classifier=[classifier] if classifier else [], tracks=_several(tracks),
        attacks=_several(attacks), limit=limit, recipe=recipe, on=device, contract=contract,
    )  # fmt: skip
    return run(asked, Store(records), data_root=data_root, progress=progress or for_terminal())


def _expected_seconds(
    open_cells: Sequence[tuple[Subject, AttackSpec]], plan: Plan, examples: Examples, cache: ChunkCache
) -> dict[tuple[str, str], float]:
    """The time each cell will take, from a short measurement on this machine: the classifier's forward and backward
    pass for images that are still to be attacked, the defense's forward pass for scoring."""
    if not open_cells:
        return {}
    chunk = next(examples.chunks())
    probe = examples.clean.images[chunk]
    net = open_cells[0][0].attacked

    def gradient() -> None:
        images = probe.clone().requires_grad_()
        torch.autograd.grad(net(images).sum(), images)

    attacking = _seconds(gradient, plan.device) / len(probe)
    scoring: dict[str, float] = {}
    expected: dict[tuple[str, str], float] = {}
    for subject, spec in open_cells:
        if subject.name not in scoring:
            scoring[subject.name] = _purify_seconds(subject, probe, plan) / len(probe)
        _, backward = ATTACKS[spec.attack].cost(**dict(spec.params))
        own = spec.knows_defense
        first = backward and (own or not any(slug == spec.slug for _, slug in expected))  # the others share its images
        missing = 0
        if first:
            chunks = (
                c for c in examples.chunks() if not cache.has(images_key(subject, plan.protocol, spec, examples, c))
            )
            missing = sum(c.stop - c.start for c in chunks)
        unit = attacking
        if own:  # through the defense: its backward pass takes about twice its forward pass
            unit = 3 * scoring[subject.name] * spec.eot(stochastic=subject.cls.stochastic)
        looks = plan.protocol.looks(stochastic=subject.cls.stochastic) * len(examples.indices)
        expected[subject.name, spec.slug] = unit * backward * missing + scoring[subject.name] * looks
    return expected


def _purify_seconds(subject: Subject, probe: Tensor, plan: Plan) -> float:
    generator = draws.generator(plan.device, "estimate")

    def purify() -> None:
        with torch.no_grad():
            subject.defense.logits(probe.clone(), generator)

    try:
        with untouched(subject.defense.classifier):
            return _seconds(purify, plan.device)
    except (Exception, SystemExit):  # it will fail in its cells, and be recorded there
        return 0.0


def _shorter(plan: Plan, seconds: float) -> str:
    quick = plan.protocol.id.replace("-v1", "-v1-quick", 1)
    return f" ({quick} is a shorter look)" if quick in protocol.PROTOCOLS and seconds > 600 else ""


def _seconds(work: Callable[[], None], on: torch.device) -> float:
    work()
    device.synchronize(on)
    started = time.perf_counter()
    work()
    device.synchronize(on)
    return time.perf_counter() - started


def _several(names: Sequence[str]) -> Sequence[str]:
    """A single name given without its list."""
    return [names] if isinstance(names, str) else names


def outline(asked: Plan, store: Store) -> list[str]:
    """What a plan would do, without training anything: its cells, and the rows that its attacks cost at most."""
    lines = [
        f"{asked.protocol.id}: {asked.protocol.n_examples} images of {asked.protocol.dataset} on {asked.device.type}"
    ]
    stored = {(cell.record.defense, cell.record.cell) for cell in store.cells(asked.protocol.id)}
    shared = [spec for spec in asked.specs if not spec.knows_defense]
    own = [spec for spec in asked.specs if spec.knows_defense]
    for classifier in asked.classifiers:
        forward, backward = _rows(shared, asked.protocol)
        lines.append(
            f"classifier {classifier}: attacks cost {forward:,} forward, {backward:,} backward rows, once for all"
        )
        names = [spec.cell(classifier, asked.protocol.seed) for spec in asked.specs]
        for name, cls in asked.defenses:
            done = sum((name, cell) in stored for cell in names)
            passes = (len(names) - done) * asked.protocol.n_examples * asked.protocol.looks(stochastic=cls.stochastic)
            attack = _rows(own, asked.protocol, stochastic=cls.stochastic)[1]
            knowing = f", at most {attack:,} forward and backward rows of attackers who know it" if own else ""
            lines.append(f"  {name}: {len(names)} cells, {done} in the records, {passes:,} images to purify{knowing}")
    return lines


def _rows(specs: Sequence[AttackSpec], asked: Protocol, *, stochastic: bool = False) -> tuple[int, int]:
    """The rows that attacks send forward and backward on all images, in every draw that they average over."""
    forward = backward = 0
    for spec in specs:
        ahead, back = ATTACKS[spec.attack].cost(**dict(spec.params))
        rows = spec.eot(stochastic=stochastic) * asked.n_examples
        forward, backward = forward + ahead * rows, backward + back * rows
    return forward, backward


def clean_accuracy(
    name: str,
    dataset: str,
    *,
    recipe: str | None = None,
    classifier: str = "A",
    on: str = "auto",
    data_root: Path | str | None = None,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Train (or load) a defense; the accuracy on the validation split with it and of the classifier without it."""
    progress, place = progress or Progress(), device.prepare(on)
    named = _named(name)
    loaded = data.load(dataset, data_root).to(place)
    net, net_weights = classifiers.trained(classifier, loaded, progress)
    subject = trained_subject(named, classifier, net, net_weights, loaded, recipe, progress)
    if isinstance(subject.defense, Unusable):
        raise BenchError(f"{subject.name} is {subject.defense.reason}")
    right = bare = 0
    with progress.task(f"{name} on validation", total=len(loaded.validation)) as advance, torch.no_grad():
        for start in range(0, len(loaded.validation), device.chunk_size(place)):
            batch = loaded.validation[start : start + device.chunk_size(place)]
            generator = draws.generator(place, "validation", start)
            right += int((subject.defense.logits(batch.images, generator).argmax(1) == batch.labels).sum())
            bare += int((net(batch.images).argmax(1) == batch.labels).sum())
            advance(len(batch))
    return right / len(loaded.validation), bare / len(loaded.validation)
