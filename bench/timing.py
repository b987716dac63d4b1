"""The timing track: what an answer of each defense costs, beside the classifier alone and the search of Defense-GAN.

An answer is `logits`, purification and classification, with the rejection score where a defense may refuse. Who takes
part is chosen here; how they are timed is in bench/stopwatch.py.
"""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bench import (
    attacks,
    classifiers,
    cost,
    data,
    device,
    draws,
    plugins,
    provenance,
    seeds,
    subjects,
    threat,
    training,
)
from bench.data import Dataset, Split
from bench.defense import Defense, has_door, settings
from bench.errors import BenchError, unknown
from bench.progress import Progress
from bench.stopwatch import THROUGHPUT, Answer, Ask, Runner, Stopwatch, first_call, largest_batch, measure
from bench.timing_record import CLASSIFIER, REFERENCE, Kind, Machine, Score, Timing

SLOW_UNITS = 20  # beyond the cheap budget class: larger batches are derived, and on CPU there are fewer rounds
SEARCH = "defense_gan"  # whose search is the reference, by its paper's settings
FGSM_EPS = 0.3


def ready(
    name: str, cls: type[Defense], net: nn.Module, net_weights: str, dataset: Dataset, recipe: str | None = None
) -> Runner | str:
    """A trained defense; or why there is none. Nothing is trained here."""
    recipe_name, chosen = settings(cls, recipe if recipe in cls.recipes else None, dataset.shape)
    key = subjects.weights_key(cls, chosen, dataset, net_weights)
    learns = has_door(cls, "fit")
    if learns and not training.weights_path(name, key).exists():
        return f"not trained; purifybench train {name} --dataset {dataset.name}"

    def refuse(generator: Generator, progress: Progress) -> None:
        raise BenchError(f"the weights of {name} are damaged; purifybench train {name} --dataset {dataset.name}")

    try:
        defense = _built(name, cls, net, chosen, dataset)
        if learns:
            training.load_or_fit(defense, name, key, refuse, Progress())
        return _runner(name, "defense", cls.title, defense, recipe_name, chosen, net, dataset)
    except BenchError as problem:
        return str(problem)
    except (Exception, SystemExit) as problem:  # of a defense, whatever it raises
        return f"{type(problem).__name__}: {problem}"


def _built(name: str, cls: type[Defense], net: nn.Module, chosen: Mapping[str, Any], dataset: Dataset) -> Defense:
    with training.global_seed(seeds.derive("timing", name)):
        defense = cls(copy.deepcopy(net), **chosen)
    return defense.to(dataset.train.images.device).requires_grad_(False).eval()


def _runner(
    name: str, kind: Kind, title: str, defense: Defense, recipe: str, chosen: Mapping[str, Any], net: nn.Module,
    dataset: Dataset, *, trained: bool = True,
) -> Runner:  # fmt: skip
    image, answer = dataset.train.images[:1], _answer(defense)
    first = first_call(answer, image, watch(image.device))  # before the count, which calls it too
    units = cost.purification_units(defense, net, image)
    hashed = training.weights_hash(defense)
    return Runner(
        name, kind, title, answer, defense, recipe, chosen, hashed, trained, units > SLOW_UNITS, units,
        first_seconds=first,
    )  # fmt: skip


def _alone(net: nn.Module, classifier: str, dataset: Dataset) -> Runner:
    """The bare classifier; made before the others, whose costs are counted in calls of it."""

    def answer(images: Tensor, generator: Generator) -> Tensor:
        return net(images)  # type: ignore[no-any-return]

    image = dataset.train.images[:1]
    first = first_call(answer, image, watch(image.device))
    return Runner(CLASSIFIER, "classifier", f"classifier {classifier} alone", answer, first_seconds=first)


def _answer(defense: Defense) -> Answer:
    """All that a defense is asked for one image."""
    if not has_door(defense, "rejection_score"):
        return defense.logits

    def answer(images: Tensor, generator: Generator) -> Tensor:
        state = generator.get_state()
        logits = defense.logits(images, generator)
        generator.set_state(state)  # of the same draw
        defense.rejection_score(images, generator)
        return logits

    return answer


def reference(net: nn.Module, net_weights: str, dataset: Dataset) -> Runner | None:
    """The search of Defense-GAN by its paper's settings, trained where there are weights: its time does not depend on
    them. None where it is not installed."""
    if SEARCH not in plugins.installed():
        return None
    cls = plugins.load(SEARCH)
    found = ready(SEARCH, cls, net, net_weights, dataset, "paper")
    if isinstance(found, Runner):
        return replace(found, name=REFERENCE, kind="reference", title=f"{cls.title}'s search")
    recipe, chosen = settings(cls, "paper", dataset.shape)
    defense = _built(REFERENCE, cls, net, chosen, dataset)
    title = f"{cls.title}'s search"
    return _runner(REFERENCE, "reference", title, defense, recipe, chosen, net, dataset, trained=False)


def variants(searching: Runner, net: nn.Module, dataset: Dataset, curve: Sequence[tuple[int, int]]) -> list[Runner]:
    """The same GAN behind searches of other lengths: (steps, restarts)."""
    assert searching.defense is not None and searching.settings is not None
    made = []
    for steps, restarts in curve:
        chosen = {**searching.settings, "search_steps": steps, "restarts": restarts}
        defense = _built(SEARCH, type(searching.defense), net, chosen, dataset)
        defense.load_state_dict(searching.defense.state_dict())
        name, title = f"{SEARCH}_l{steps}_r{restarts}", f"{searching.title}, L = {steps}, R = {restarts}"
        made.append(_runner(name, "variant", title, defense, searching.recipe, chosen, net, dataset))
    return made


def score(runner: Runner, net: nn.Module, clean: Split) -> Score:
    """The accuracy of a runner's answers to images, clean and under FGSM on the bare classifier."""
    noise = draws.ImageDraws.derived(torch.arange(len(clean), device=clean.images.device), "timing")
    fgsm = attacks.get("fgsm")(threat.gray_box(net), clean.images, clean.labels, eps=FGSM_EPS, draws=noise).images
    right = []
    for images in (clean.images, fgsm):
        with torch.no_grad():
            answers = [
                runner.answer(part, draws.generator(part.device, "timing", "score", number))
                for number, part in enumerate(torch.split(images, device.CHUNK_CPU))
            ]
        right.append(float((torch.cat(answers).argmax(dim=1) == clean.labels).float().mean()))
    return Score(n=len(clean), clean=right[0], fgsm=right[1], eps=FGSM_EPS)


# ---------------------------------------------------------------------------------------------- a whole run


def run(
    defenses: Sequence[str],
    *,
    dataset: str = "mnist",
    classifier: str = "A",
    recipe: str | None = None,
    on: str = "auto",
    data_root: Path | str | None = None,
    ask: Ask | None = None,
    progress: Progress | None = None,
) -> Timing:
    """Time the trained ones of `defenses` by name, the classifier alone and the search of Defense-GAN, in turns.

    Raises BenchError for unknown names.
    """
    ask, progress = ask or Ask(), progress or Progress()
    named = {plugins.slug(name): plugins.load(name) for name in defenses}
    if recipe is not None and not any(recipe in cls.recipes for cls in named.values()):
        raise unknown("recipe", recipe, {one for cls in named.values() for one in cls.recipes})
    place = device.prepare(on)
    loaded = data.load(dataset, data_root).to(place)
    net, net_weights = classifiers.trained(classifier, loaded, progress)
    net = net.requires_grad_(False).eval()
    clean, _ = loaded.examples(THROUGHPUT, 0)
    runners, left_out = [_alone(net, classifier, loaded)], dict[str, str]()
    longest = reference(net, net_weights, loaded)
    runners += [longest] if longest else []
    for name, cls in named.items():
        found = ready(name, cls, net, net_weights, loaded, recipe)
        if isinstance(found, str):
            left_out[name] = found
            progress.say(f"{name} is left out: {found}")
        else:
            runners.append(found)
    searching = next((runner for runner in runners if runner.name == SEARCH), None)
    if searching is not None and ask.curve:
        own = searching.settings or {}
        known = {(own.get("search_steps"), own.get("restarts"))}
        shorter = variants(searching, net, loaded, [one for one in ask.curve if one not in known])
        if ask.score_images:
            some = clean[: ask.score_images]
            with progress.task("accuracy of the searches", total=len(shorter) + 1) as advance:
                for runner in (searching, *shorter):
                    runner.score = score(runner, net, some)
                    advance(1)
        runners += shorter
    if place.type == "cuda":
        largest = min(largest_batch(runner, clean.images) for runner in runners if not runner.slow)
        batches = tuple(sorted({*ask.batches, 2 * THROUGHPUT, largest}))
        ask = replace(ask, batches=batches, slow_rounds=ask.rounds, slow_batch=2 * THROUGHPUT)
    entrants = measure(runners, clean.images, ask, watch(place), progress)
    return Timing(
        dataset=loaded.name, classifier=classifier, classifier_weights=net_weights, machine=machine(place),
        commit=provenance.commit(), entrants=tuple(entrants), left_out=left_out,
    )  # fmt: skip


def watch(place: torch.device) -> Stopwatch:
    """A stopwatch that waits for this device."""
    return Stopwatch(lambda: device.synchronize(place))


def machine(place: torch.device) -> Machine:
    """The machine that is being timed on."""
    is_gpu = place.type == "cuda"
    return Machine(
        device="cuda" if is_gpu else "cpu",
        name=torch.cuda.get_device_name(place) if is_gpu else _processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        driver=_driver() if is_gpu else "",
        cuda=(torch.version.cuda or "") if is_gpu else "",
        cudnn=str(torch.backends.cudnn.version() or "") if is_gpu else "",  # type: ignore[no-untyped-call]
        tf32=is_gpu and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        amp=torch.is_autocast_enabled(place.type),
        heap_pinned=device.pin_heap(),
        versions=provenance.versions(),
    )


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _driver() -> str:
    """The GPU driver's version, where the system tells."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().split("  ")[1].strip()
    except (OSError, IndexError):
        return ""
