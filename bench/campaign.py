"""From names to finished records: plan the cells, estimate, train what is missing, run, resume.

What cells share is computed once: a classifier is trained once, images attacked on the bare classifier serve every
defense, and a cell whose key is in the store is not run again (failed cells are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from bench import classifiers, data, device, draws, protocols, seal
from bench.auxiliary import imitation_of, judge_of, source_of, with_surrogate
from bench.cache import ChunkCache
from bench.catalog import ATTACKS
from bench.data import Dataset
from bench.defense import Defense, has_door
from bench.errors import BenchError
from bench.estimate import expected_seconds
from bench.evaluation import evaluate_cell
from bench.isolation import Isolated
from bench.places import home
from bench.planning import Plan, named_class, plan
from bench.progress import Progress, duration, for_terminal
from bench.protocol import AttackSpec, Budget, Protocol
from bench.record import Cell, Store
from bench.subjects import Unusable, held_to_contract, trained_subject
from bench.substitutes import SourceNet
from bench.work import Examples, Subject, Work, card, cell_name, wanted

Sources = Mapping[str, Subject | SourceNet]

SHOWN: Mapping[Budget, int] = MappingProxyType({"medium": 500, "search": 50})
"""How many validation images show what a training came to, where a purification costs too much for all of them."""


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
            self.subject = with_surrogate(self.subject, dataset, progress)
        if spec.imitates_defense and spec.source not in self.imitations:
            self.imitations[spec.source] = imitation_of(spec.source, self.subject, dataset, progress)
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
            name: source_of(name, classifier, net, net_weights, dataset, progress)
            for name in dict.fromkeys(spec.source for spec in shown)
        }
        for name, source in sources.items():
            if isinstance(source, Subject) and isinstance(source.defense, Unusable):
                raise BenchError(
                    f"{name}, whose images {plan.protocol.id} shows to every defense, is {source.defense.reason}; "
                    f"see purifybench train {name}, or leave that out: --tracks {_others(plan.protocol)}"
                )
        if any(ATTACKS[spec.attack].may_change_class for desk in desks for spec in desk.specs):
            judge = judge_of(classifier, net, net_weights, dataset, progress)
            for desk in desks:
                desk.examples = replace(desk.examples, judge=judge)
        open_work = [desk.open_work(sources) for desk in desks]
        expected = expected_seconds(open_work, examples, cache)
        total = max(sum(expected.values()), 1e-9)
        if any(open_work):
            n_open = sum(len(works) for works in open_work)
            progress.say(f"{n_open} cells to run, about {duration(max(total, 1))}{_shorter(plan, total)}")
        failures: set[tuple[str, str]] = set()
        with progress.task(f"{plan.protocol.id}, classifier {classifier}", total=total) as advance:
            for desk, works in zip(desks, open_work, strict=True):
                if works and plan.contract:
                    desk.subject = held_to_contract(desk.subject, progress)
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


def _shorter(plan: Plan, seconds: float) -> str:
    quick = plan.protocol.id.replace("-v1", "-v1-quick", 1)
    return f" ({quick} is a shorter look)" if quick in protocols.PROTOCOLS and seconds > 600 else ""


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


def _several(names: Sequence[str]) -> Sequence[str]:
    """A single name given without its list."""
    return [names] if isinstance(names, str) else names


def clean_accuracy(
    name: str,
    dataset: str,
    *,
    recipe: str | None = None,
    classifier: str = "A",
    on: str = "auto",
    data_root: Path | str | None = None,
    progress: Progress | None = None,
) -> tuple[float, float, int]:
    """Train (or load) a defense; the accuracy with it and of the classifier without it on the first images of the
    validation split, and of how many: all, or what SHOWN says of its budget class."""
    progress, place = progress or Progress(), device.prepare(on)
    named = named_class(name)
    loaded = data.load(dataset, data_root).to(place)
    net, net_weights = classifiers.trained(classifier, loaded, progress)
    subject = trained_subject(named, classifier, net, net_weights, loaded, recipe, progress)
    if isinstance(subject.defense, Unusable):
        raise BenchError(f"{subject.name} is {subject.defense.reason}")
    right, bare, shown = 0, 0, loaded.validation[: SHOWN.get(subject.budget)]
    with progress.task(f"{name} on validation", total=len(shown)) as advance, torch.no_grad():
        for start in range(0, len(shown), device.chunk_size(place)):
            batch = shown[start : start + device.chunk_size(place)]
            generator = draws.generator(place, "validation", start)
            right += int((subject.defense.logits(batch.images, generator).argmax(1) == batch.labels).sum())
            bare += int((net(batch.images).argmax(1) == batch.labels).sum())
            advance(len(batch))
    return right / len(shown), bare / len(shown), len(shown)
