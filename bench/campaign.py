"""From names to finished records: plan the cells, estimate, train what is missing, run, resume.

What cells share is computed once: a classifier is trained once, images attacked on the bare classifier serve every
defense, and a cell whose key is in the store is not run again (failed cells are).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bench import (
    checks,
    classifiers,
    cost,
    data,
    device,
    draws,
    plugins,
    protocol,
    rejection,
    seal,
    seeds,
    substitutes,
    surrogate,
    training,
)
from bench import sources as origins
from bench import weights as files
from bench.cache import ChunkCache
from bench.catalog import ATTACKS, CLASSIFIERS
from bench.class_change import Judge
from bench.data import Dataset, Split
from bench.defense import Defense, has_door, settings, source_hash
from bench.errors import BenchError, unknown
from bench.evaluation import (
    Examples,
    Subject,
    Work,
    card,
    cell_name,
    defended,
    doors,
    evaluate_cell,
    images_key,
    untouched,
    wanted,
)
from bench.isolation import Isolated
from bench.places import home
from bench.progress import Progress, duration, for_terminal
from bench.protocol import AttackSpec, Protocol
from bench.record import Cell, Store
from bench.substitutes import SourceNet

Named = tuple[str, type[Defense]]
JUDGE = "pgd_training"  # its net helps to say whether an image changed its class
Sources = Mapping[str, Subject | SourceNet]


@dataclass(frozen=True)
class Plan:
    """What a run was asked for, with names resolved; empty `tracks` or `attacks` stand for all of the protocol's."""

    protocol: Protocol
    tracks: tuple[str, ...]
    attacks: tuple[str, ...]
    defenses: tuple[Named, ...]
    classifiers: tuple[str, ...]
    recipe: str | None
    device: torch.device
    contract: bool
    seeds: int

    def specs(self, subject: Subject) -> tuple[AttackSpec, ...]:
        """The cells of one defense: those that its budget class asks for, as far as they were selected."""
        return self.view(subject).among(self.tracks, self.attacks)

    def view(self, subject: Subject) -> Protocol:
        """The protocol as this defense meets it."""
        return self.protocol.effort(
            subject.budget, stochastic=subject.cls.stochastic, doors=doors(subject.cls, self.protocol)
        )


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
    seeds: int = 1,
) -> Plan:
    """Resolve names before any work starts; `seeds` is from how many each defense is trained. Raises BenchError for the
    first unknown name, or for no cell."""
    if seeds < 1:
        raise BenchError(f"--seeds must be at least 1, got {seeds}")
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
        _fits(name, cls, chosen)
    if recipe is not None and not any(recipe in cls.recipes for _, cls in named):
        raise unknown("recipe", recipe, {r for _, cls in named for r in cls.recipes})
    everything = replace(chosen, attacks=chosen.every_attack, efforts=())
    if not tuple(everything.select(tuple(tracks), tuple(attacks))):
        raise BenchError(f"no cell of {chosen.id} is in tracks {', '.join(tracks)} and attacks {', '.join(attacks)}")
    place = device.prepare(on)
    for name, cls in named:
        if place.type == "cuda" and issubclass(cls, Isolated) and not cls.sees_gpu:
            raise BenchError(
                f"{name}: torch finds a GPU here and none in its own process; use --device cpu, or let it see "
                "the GPU's device files (docs/isolation.md)"
            )
    return Plan(
        protocol=chosen,
        tracks=tuple(tracks),
        attacks=tuple(attacks),
        defenses=named,
        classifiers=tuple(dict.fromkeys(classifier)) or chosen.classifiers,
        recipe=recipe,
        device=place,
        contract=contract,
        seeds=seeds,
    )


def fits(cls: type[Defense], asked: Protocol) -> bool:
    """Whether a protocol is for defenses of this kind: those that may refuse have protocols of their own."""
    return asked.is_selective == has_door(cls, "rejection_score")


def _fits(name: str, cls: type[Defense], asked: Protocol) -> None:
    if not fits(cls, asked):
        others = [one.id for one in protocol.PROTOCOLS.values() if fits(cls, one) and one.dataset == asked.dataset]
        does = "may refuse images" if has_door(cls, "rejection_score") else "never refuses an image"
        raise BenchError(f"{name} {does}, which {asked.id} does not measure; take --protocol {' or '.join(others)}")


def _named(defense: str | type[Defense]) -> Named:
    if isinstance(defense, str):
        return plugins.slug(defense), plugins.load(defense)
    if isinstance(defense, type) and issubclass(defense, Isolated):
        return defense.name, defense
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
    seed: int = 0,
) -> Subject:
    """A defense built for a classifier, with its weights trained or loaded; `Unusable` if its code raises.

    Construction and training see `dataset` with an empty test split.
    """
    name, cls = named
    recipe_name, chosen = settings(cls, recipe if recipe in cls.recipes else None, dataset.shape)
    key = weights_key(cls, chosen, dataset, net_weights, seed)
    mine = copy.deepcopy(net)  # what one defense does to its copy reaches no other
    device = dataset.train.images.device

    def build() -> Defense:
        with training.global_seed(seeds.derive("initialise defense", name, key)), _its_own_fault():
            return cls(mine, **chosen).to(device).eval()

    losses: Mapping[str, tuple[float, ...]] = {}
    thresholds: Mapping[str, float] = {}
    weights, built, stage, units = "", None, "built", 0.0
    try:
        with untouched(mine):
            built = build()
            if has_door(cls, "fit"):
                stage, trainee = "trained", built

                def fit(generator: Generator, kept: Progress) -> None:
                    with untouched(mine), _its_own_fault():
                        trainee.fit(_own_copy(dataset), generator, kept)

                training.load_or_fit(trainee, name, key, fit, progress, source_hash(cls))
                built = build()  # from the file, as every later run sees it: what fit kept elsewhere is lost now
                weights = training.load_or_fit(built, name, key, fit, Progress(), source_hash(cls))
                losses = files.read(training.weights_path(name, key)).losses
            stage = "measured"
            built.requires_grad_(False).eval()
            with training.global_seed(seeds.derive("cost", name)):
                units = _units(built, net, dataset.train.images)
            if has_door(cls, "rejection_score"):
                thresholds = rejection.thresholds(built, dataset.validation.images)
    except BenchError:  # the disk, not the defense
        raise
    except (Exception, SystemExit) as problem:
        reason = f"not {stage}: {type(problem).__name__}: {problem}"
        progress.say(f"{name} is {reason}")
        built = Unusable(mine, reason=reason)
    attacked, attacked_weights = net, net_weights
    if built.classifier is not mine:
        attacked = built.classifier
        attacked_weights = seeds.digest(name, chosen, source_hash(cls), training.weights_hash(attacked))
    return Subject(
        name, cls, built, recipe_name, chosen, weights or training.weights_hash(built), classifier, net_weights,
        attacked, attacked_weights, seed, cost.budget(units), units, losses, thresholds=thresholds,
    )  # fmt: skip


def weights_key(
    cls: type[Defense], chosen: Mapping[str, Any], dataset: Dataset, net_weights: str, seed: int = 0
) -> dict[str, Any]:
    """What decides the weights of a defense with the hyper-parameters `chosen`: see training.load_or_fit."""
    key = {"version": cls.version, "dataset": dataset.name, "split": dataset.split, "settings": chosen, "seed": seed}
    return {**key, "classifier": net_weights} if cls.per_classifier else key


def _units(defense: Defense, net: nn.Module, images: Tensor) -> float:
    """What a purification costs; counted where it happens."""
    return defense.units(images) if isinstance(defense, Isolated) else cost.purification_units(defense, net, images)


@contextmanager
def _its_own_fault() -> Iterator[None]:
    """Around the code of a defense: a BenchError that leaves it is its failure, and ends nobody else's run."""
    try:
        yield
    except BenchError as problem:
        raise RuntimeError(str(problem)) from problem


def _own_copy(dataset: Dataset) -> Dataset:
    """The data for one fit: what it writes into them reaches nobody else, and there is no test image."""

    def cloned(split: Split) -> Split:
        return Split(split.images.clone(), split.labels.clone())

    nothing = Split(torch.empty_like(dataset.test.images[:0]), torch.empty_like(dataset.test.labels[:0]))
    return replace(dataset, train=cloned(dataset.train), validation=cloned(dataset.validation), test=nothing)


def _held_to_contract(subject: Subject, progress: Progress) -> Subject:
    """The same subject, or one with `Unusable` in the place of a defense that breaks the contract: not evaluated."""
    problem = next((finding.problem for finding in checks.run(subject.cls) if finding.problem), "")
    if not problem:
        return subject
    progress.say(
        f"{subject.name} breaks the contract and is not evaluated ({problem}); see purifybench check {subject.name}"
    )
    stand_in = Unusable(subject.defense.classifier, reason=f"breaks the contract: {problem}")
    return replace(subject, defense=stand_in)


class _Desk:
    """One subject's cells in their order: which are stored, which are open, and what they wait for."""

    def __init__(self, subject: Subject, plan: Plan, examples: Examples, store: Store) -> None:
        self.subject, self.view, self.specs = subject, plan.view(subject), plan.specs(subject)
        self.examples = examples.first(self.view.n_examples)
        cells = list(store.cells(defense=subject.name))
        self._stored = {cell.record.cell: cell for cell in cells if cell.record.protocol == self.view.id}
        self._elsewhere = {cell.record.key: cell for cell in cells if "+" not in cell.record.protocol + self.view.id}
        self.cells: list[Cell] = []
        self.imitations: dict[str, SourceNet] = {}  # the sources that this defense alone has

    def work(self, spec: AttackSpec, sources: Sources) -> Work:
        """The next cell's work, given the cells finished so far."""
        mask = wanted(self.subject, self.view, spec, self.cells)
        known: Sources = self.imitations if spec.imitates_defense else sources
        judge = self.examples.judge.weights if self.examples.judge else ""
        return Work(self.subject, self.view, spec, mask, known.get(spec.source), judge)

    def prepare(self, work: Work, sources: Sources, dataset: Dataset, progress: Progress) -> Work:
        """The same work with the net that its attacker trains on what this defense answers, where there is one."""
        spec = work.spec
        if spec.route == "surrogate" and work.subject.surrogate is None:
            self.subject = _with_surrogate(self.subject, dataset, progress)
        if spec.imitates_defense and spec.source not in self.imitations:
            self.imitations[spec.source] = _imitation(spec.source, self.subject, dataset, progress)
        return self.work(spec, sources)

    def stored(self, work: Work) -> Cell | None:
        """The sound cell of exactly this work from an earlier run, under this protocol or another version of it."""
        cell = self._stored.get(cell_name(work.subject, work.spec))
        if cell is None or cell.record.key != work.key:
            cell = self._elsewhere.get(work.key)
        return cell if cell is not None and cell.record.status == "ok" else None

    def own(self, cell: Cell) -> Cell:
        """The cell as one of this protocol, wherever it was measured."""
        cites = {"protocol": self.view.id, "protocol_hash": self.view.hash}
        about = {"card": card(self.subject.cls, self.view)}  # another version may ask for other optional methods
        return Cell(cell.record.model_copy(update=cites | about), cell.outcomes)

    def open_work(self, sources: Sources) -> list[Work]:
        """What is left to do, as far as it is known before it is done: a cascade may turn out to have less, and its
        stored cells are taken for sound while one before them is missing."""
        left: list[Work] = []
        for spec in self.specs:
            work = self.work(spec, sources)
            cell = self.stored(work)
            if cell is None and left and spec.cascade:
                cell = self._stored.get(cell_name(self.subject, spec))
            if cell is None:
                left.append(work)
            else:
                self.cells.append(cell)
        self.cells = []
        return left


def run(
    plan: Plan, store: Store, *, data_root: Path | str | None = None, progress: Progress | None = None
) -> list[Cell]:
    """Run a plan into a store and return its cells in the plan's order; cells that the store holds are not run again.

    Trainings and attacked images are kept under $PURIFYBENCH_HOME. Interrupted at any time, the same call resumes.
    """
    progress = progress or Progress()
    dataset = data.load(plan.protocol.dataset, data_root).to(plan.device)
    most = max([plan.protocol.n_examples, *(effort.n_examples for effort in plan.protocol.efforts)])
    clean, indices = dataset.examples(most, plan.protocol.seed)
    examples = Examples(dataset.name, dataset.split, clean, indices, dataset.validation)
    cache = ChunkCache(home() / "chunks")
    store.prepare()
    for name, _ in plan.defenses:
        for problem in seal.problems(store.folder(plan.protocol.id, name)):
            progress.say(f"the records of {name} are not those that were sealed: {problem}")
    cells: list[Cell] = []
    for classifier in plan.classifiers:
        net, net_weights = classifiers.trained(classifier, dataset, progress)
        subjects = [
            trained_subject(named, classifier, net, net_weights, dataset, plan.recipe, progress, seed)
            for named in plan.defenses
            for seed in range(plan.seeds if has_door(named[1], "fit") else 1)
        ]
        desks = [_Desk(subject, plan, examples, store) for subject in subjects]
        shown = (spec for desk in desks for spec in desk.specs if spec.source and not spec.imitates_defense)
        sources = {
            name: _source(name, classifier, net, net_weights, dataset, progress)
            for name in dict.fromkeys(spec.source for spec in shown)
        }
        for name, source in sources.items():
            if isinstance(source, Subject) and isinstance(source.defense, Unusable):
                raise BenchError(
                    f"{name}, whose images {plan.protocol.id} shows to every defense, is {source.defense.reason}; "
                    f"see purifybench train {name}, or leave that out: --tracks {_others(plan.protocol)}"
                )
        if any(ATTACKS[spec.attack].may_change_class for desk in desks for spec in desk.specs):
            judge = _judge(classifier, net, net_weights, dataset, progress)
            for desk in desks:
                desk.examples = replace(desk.examples, judge=judge)
        open_work = [desk.open_work(sources) for desk in desks]
        expected = _expected_seconds(open_work, examples, cache)
        total = max(sum(expected.values()), 1e-9)
        if any(open_work):
            n_open = sum(len(works) for works in open_work)
            progress.say(f"{n_open} cells to run, about {duration(max(total, 1))}{_shorter(plan, total)}")
        failures: set[tuple[str, str]] = set()
        with progress.task(f"{plan.protocol.id}, classifier {classifier}", total=total) as advance:
            for desk, works in zip(desks, open_work, strict=True):
                if works and plan.contract:
                    desk.subject = _held_to_contract(desk.subject, progress)
                for spec in desk.specs:
                    work = desk.work(spec, sources)
                    cell = desk.stored(work)
                    if cell is None:
                        with _one_cell(desk.subject.defense):
                            work = desk.prepare(work, sources, dataset, progress)
                            cell = evaluate_cell(work, desk.examples, cache, progress)
                        store.save(cell)
                    elif cell.record.protocol_hash != plan.protocol.hash:
                        cell = desk.own(cell)
                        store.save(cell)
                    desk.cells.append(cell)
                    advance(expected.get((desk.subject.name, desk.subject.seed, spec.slug), 0.0))
                    failure = (desk.subject.name, cell.record.error)
                    if cell.record.status == "failed" and failure not in failures:
                        failures.add(failure)
                        progress.say(f"{desk.subject.name} failed under {spec.slug}: {cell.record.error}")
        cells += [cell for desk in desks for cell in desk.cells]
    for name, _ in plan.defenses:
        seal.write(store, plan.protocol.id, name)
    for problem in dict.fromkeys(store.problems):
        progress.say(f"not trusted: {problem}")
    return cells


def _one_cell(defense: Defense) -> AbstractContextManager[None]:
    """Around all that one cell asks of a defense: in a process of its own it has so much time for it."""
    return defense.channel.one_cell() if isinstance(defense, Isolated) else nullcontext()


def _others(chosen: Protocol) -> str:
    return ",".join(track for track in chosen.tracks if track != "transfer")


def _source(
    name: str, classifier: str, net: nn.Module, net_weights: str, dataset: Dataset, progress: Progress
) -> Subject | SourceNet:
    """What images that all defenses of a classifier are shown are made on, trained or loaded."""
    origin = origins.parse(name)
    if origin.kind == "classifier":
        return substitutes.independent(origin.name, net, dataset, progress)
    if origin.kind == "substitute":
        oracle = substitutes.answers_of(net)
        of = f"classifier {classifier}"
        return substitutes.trained(
            origin.name, oracle, net_weights, dataset, progress, of=of, recipe=substitutes.PAPERNOT
        )
    named = name, plugins.load(name)
    return trained_subject(named, classifier, net, net_weights, dataset, None, progress)


def _judge(classifier: str, net: nn.Module, net_weights: str, dataset: Dataset, progress: Progress) -> Judge:
    """Who says whether attacked images still show what they showed: PGD training and the training images."""
    found = _source(JUDGE, classifier, net, net_weights, dataset, progress)
    if not isinstance(found, Subject) or isinstance(found.defense, Unusable):
        raise BenchError(
            f"{JUDGE}, which says whether an image changed its class, cannot be used; see purifybench train {JUDGE}"
        )
    return Judge(found.defense.classifier, dataset.train, found.weights)


def _imitation(name: str, subject: Subject, dataset: Dataset, progress: Progress) -> SourceNet:
    """The net that an attacker trains on a defense's answers; where it gives none, cells made on it say why."""

    def oracle(images: Tensor, generator: Generator) -> Tensor:
        with _its_own_fault(), training.global_seed(seeds.derive("query", generator.initial_seed())):
            logits = defended(subject.defense, images, generator).logits
        if not bool(logits.isfinite().all()):
            raise ValueError("purified images or logits were not finite, or left [0, 1]")
        return logits.argmax(dim=1)

    architecture = origins.parse(name).name
    try:
        with untouched(subject.defense.classifier):
            return substitutes.trained(
                architecture, oracle, _asked(subject), dataset, progress, of=subject.name, recipe=substitutes.PAPERNOT
            )
    except BenchError:  # the disk, not the defense
        raise
    except (Exception, SystemExit) as problem:
        return SourceNet(nn.Identity(), "", problem=f"asked for labels: {type(problem).__name__}: {problem}")


def _asked(subject: Subject) -> str:
    """A hash of all that decides what a defense answers to queries."""
    return seeds.digest(*subject.answers)


def _with_surrogate(subject: Subject, dataset: Dataset, progress: Progress) -> Subject:
    """The subject with the harness's imitation of its purifier; where that cannot be trained, the cells say why."""
    key, examples = _asked(subject), surrogate.EXAMPLES[subject.budget]
    try:
        with untouched(subject.defense.classifier):
            imitation = surrogate.trained(subject.defense, subject.name, key, dataset, examples, progress)
    except BenchError:  # the disk, not the defense
        raise
    except (Exception, SystemExit) as problem:
        progress.say(f"no surrogate of {subject.name}: {type(problem).__name__}: {problem}")
        return subject
    return replace(subject, surrogate=imitation)


def evaluate(
    defense: str | type[Defense],
    protocol: str | Protocol = "digits-v1-quick",
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
    seeds: int = 1,
) -> list[Cell]:
    """Measure one defense, by name or by class, under a protocol: what `purifybench run` does, for a notebook.

    Returns the cells, also kept in the folder `records`. A defense that breaks the contract is not evaluated, unless
    `contract=False`; such cells go by another protocol's name. Shows its progress unless given a silent `Progress()`.
    Raises BenchError for anything that the caller can mend.

    >>> from bench import evaluate
    >>> cells = evaluate("kmeans", "digits-v1-quick", limit=64)  # doctest: +SKIP
    """
    asked = plan(
        [defense], protocol, classifier=[classifier] if classifier else [], tracks=_several(tracks),
        attacks=_several(attacks), limit=limit, recipe=recipe, on=device, contract=contract, seeds=seeds,
    )  # fmt: skip
    return run(asked, Store(records), data_root=data_root, progress=progress or for_terminal())


EARLY = 0.4  # of the steps of an attack whose images may leave the batch, as far as experience goes


def _expected_seconds(
    open_work: Sequence[Sequence[Work]], examples: Examples, cache: ChunkCache
) -> dict[tuple[str, int, str], float]:
    """The time each cell will take, from a short measurement on this machine: the classifier's forward and backward
    pass for images that are still to be attacked, the defense's forward pass for scoring and for the labels that an
    imitation asks for."""
    expected: dict[tuple[str, int, str], float] = {}
    works = [work for part in open_work for work in part]
    if not works:
        return expected
    probe = examples.clean.images[next(examples.chunks())]
    attacking = _gradient_seconds(works[0].subject.attacked, probe) / len(probe)
    purifying: dict[str, float] = {}
    done: set[tuple[object, ...]] = set()
    for work in works:
        subject, spec, source = work.subject, work.spec, work.source
        for one in (subject, source):
            if isinstance(one, Subject) and one.name not in purifying:
                purifying[one.name] = _purify_seconds(one, probe) / len(probe)
        stochastic = subject.cls.stochastic
        forward, backward = _cost(spec)
        ahead, back = _learning_cost(spec)
        n = int(work.wanted.sum())
        if spec.knows_defense:  # through the defense: its backward pass takes about twice its forward pass
            passes = 3 * backward or forward
            seconds = purifying[subject.name] * passes * n * spec.eot(stochastic=stochastic)
            seconds *= 1 if stochastic else EARLY
            seconds += purifying[subject.name] * (3 * back or ahead) * spec.eot(stochastic=stochastic)
        elif spec.imitates_defense:
            seconds = attacking * backward * n
            architecture, asked = origins.parse(spec.source).name, _asked(subject)
            kept = substitutes.is_kept(architecture, asked, examples.dataset, examples.split, substitutes.PAPERNOT)
            if not kept and (asked, spec.source) not in done:
                done.add((asked, spec.source))
                recipe = substitutes.PAPERNOT
                seconds += attacking * recipe.rows
                seconds += purifying[subject.name] * (recipe.queries + substitutes.COMPARED)
        elif (spec.slug,) in done:
            seconds = 0.0
        else:  # the others share its images
            done.add((spec.slug,))
            chunks = (rows for rows in examples.chunks(work.wanted) if not cache.has(images_key(work, examples, rows)))
            unit = 3 * purifying[source.name] if isinstance(source, Subject) else attacking
            images = sum(len(rows) for rows in chunks)
            seconds = unit * (backward * images + (back if images else 0))
        looks = work.protocol.looks(stochastic=stochastic) * n
        expected[subject.name, subject.seed, spec.slug] = seconds + purifying[subject.name] * looks
    return expected


def _gradient_seconds(net: nn.Module, probe: Tensor) -> float:
    def gradient() -> None:
        images = probe.clone().requires_grad_()
        torch.autograd.grad(net(images).sum(), images)

    return _seconds(gradient, probe.device)


def _purify_seconds(subject: Subject, probe: Tensor) -> float:
    generator = draws.generator(probe.device, "estimate")

    def purify() -> None:
        with torch.no_grad():
            subject.defense.logits(probe.clone(), generator)

    try:
        with untouched(subject.defense.classifier):
            return _seconds(purify, probe.device)
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
    """What a plan would do, without training anything: its cells, and the rows that its attacks cost at most.

    A defense's budget class is measured when it is run; here all are taken for cheap.
    """
    lines = [
        f"{asked.protocol.id}: {asked.protocol.n_examples} images of {asked.protocol.dataset} on {asked.device.type}"
    ]
    stored = {(cell.record.defense, cell.record.cell) for cell in store.cells(asked.protocol.id)}
    usual = [spec for spec in asked.protocol.among(asked.tracks, asked.attacks) if spec.is_shared]
    for classifier in asked.classifiers:
        forward, backward = _rows(usual, asked.protocol)
        lines.append(
            f"classifier {classifier}: attacks cost {forward:,} forward, {backward:,} backward rows, once for all"
            f"{_queries(usual)}"
        )
        for name, cls in asked.defenses:
            view = asked.protocol.effort("cheap", stochastic=cls.stochastic, doors=doors(cls, asked.protocol))
            specs = view.among(asked.tracks, asked.attacks)
            trainings = asked.seeds if has_door(cls, "fit") else 1
            names = [spec.cell(classifier, seed) for seed in range(trainings) for spec in specs]
            done = sum((name, cell) in stored for cell in names)
            passes = (len(names) - done) * view.n_examples * view.looks(stochastic=cls.stochastic)
            own = [spec for spec in specs if not spec.is_shared]
            ahead, back = (rows * trainings for rows in _rows(own, view, stochastic=cls.stochastic))
            knowing = f", at most {ahead:,} forward and {back:,} backward rows of attackers who know it" if own else ""
            knowing += _queries(own, trainings)
            lines.append(f"  {name}: {len(names)} cells, {done} in the records, {passes:,} images to purify{knowing}")
    return lines


def _queries(specs: Iterable[AttackSpec], trainings: int = 1) -> str:
    """How many labels are asked for to train the nets of these attacks, or nothing."""
    nets = {spec.origin for spec in specs if spec.origin and spec.origin.kind in ("substitute", "imitation")}
    return f", {len(nets) * trainings * substitutes.PAPERNOT.queries:,} labels asked of it" if nets else ""


def _cost(spec: AttackSpec) -> tuple[int, int]:
    """The rows that an attack sends forward and backward for each image and draw, with those that predict labels."""
    forward, backward = ATTACKS[spec.attack].cost(**dict(spec.params))
    return forward + spec.predicts_labels, backward


def _learning_cost(spec: AttackSpec) -> tuple[int, int]:
    """The rows that an attack sends forward and backward in each draw before it attacks, once a cell."""
    return ATTACKS[spec.attack].learning_cost(**dict(spec.params))


def _rows(specs: Sequence[AttackSpec], asked: Protocol, *, stochastic: bool = False) -> tuple[int, int]:
    """The rows that attacks send forward and backward on all images, in every draw that they average over, and those
    that they learn from first."""
    forward = backward = 0
    for spec in specs:
        ahead, back = _cost(spec)
        images, draws = min(asked.n_examples, spec.n_examples or asked.n_examples), spec.eot(stochastic=stochastic)
        learn_ahead, learn_back = _learning_cost(spec)
        once = ATTACKS[spec.attack].once(**dict(spec.params)) * -(-images // device.CHUNK_CPU)
        forward += (ahead * images + learn_ahead) * draws + once
        backward += (back * images + learn_back) * draws
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
