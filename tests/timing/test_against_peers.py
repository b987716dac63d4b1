"""DeepFool and Carlini and Wagner beside foolbox and adv-lib, in turns within one run, on MNIST and a trained
classifier A: pytest tests/timing/test_against_peers.py -n0 --benchmark-only. Rows: ms an image and the median L2."""

from __future__ import annotations

import os
import sys
import time
import types
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench import attacks, classifiers, data, device, threat
from bench.draws import ImageDraws
from bench.progress import Progress

N = int(os.environ.get("PURIFYBENCH_TIMED_IMAGES", "64"))
SEARCHES, STEPS, RATE, CONSTANT = 5, 50, 0.05, 1.0
ROUNDS = int(os.environ.get("PURIFYBENCH_TIMED_ROUNDS", "3"))
Batch = tuple[nn.Module, Tensor, Tensor]


HOME = os.environ.get("PURIFYBENCH_HOME")  # as it was before the tests' own: it may hold the trained classifier


@pytest.fixture
def batch(monkeypatch) -> Batch:
    """The net and the first test images that it gets right."""
    device.pin_heap()
    monkeypatch.setenv("PURIFYBENCH_HOME", HOME) if HOME else monkeypatch.delenv("PURIFYBENCH_HOME")
    mnist = data.load("mnist")
    net = classifiers.trained("A", mnist, Progress())[0].eval().requires_grad_(False)
    images, labels = mnist.test.images[: 2 * N], mnist.test.labels[: 2 * N]
    right = (threat.predictions(net, images) == labels).nonzero()[:N, 0]
    return net, images[right], labels[right]


def ours(name: str, **settings: object) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    def run(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        draws = ImageDraws.derived(torch.arange(len(images)), 0)
        return attacks.get(name)(net, images, labels, draws=draws, **settings).images

    return run


def foolboxes(name: str, **settings: object) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    foolbox = pytest.importorskip("foolbox")

    def run(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        criterion = foolbox.criteria.Misclassification(labels)
        return getattr(foolbox.attacks, name)(**settings).run(
            foolbox.PyTorchModel(net, bounds=(0, 1)), images, criterion
        )

    return run


def adv_libs(name: str, **settings: object) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    visdom = types.ModuleType("visdom")  # for pictures that are not drawn here
    visdom.Visdom = object  # type: ignore[attr-defined]
    sys.modules.setdefault("visdom", visdom)
    adv_lib = pytest.importorskip("adv_lib.attacks", reason="needs pip install --no-deps adv-lib tqdm")

    def run(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return getattr(adv_lib, name)(net, images, labels, **settings)

    return run


def contest(attack: str) -> dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]]:
    """Who takes part, at equal settings."""
    if attack == "deepfool":
        return {
            "ours": ours("deepfool", steps=50),
            "foolbox": foolboxes("L2DeepFoolAttack", steps=50, candidates=10, overshoot=0.02),
            "adv-lib": adv_libs("df", steps=50, overshoot=0.02),
        }
    own = {"searches": SEARCHES, "steps": STEPS, "learning_rate": RATE, "constant": CONSTANT}
    theirs = {"binary_search_steps": SEARCHES, "initial_const": CONSTANT, "abort_early": False}
    return {
        "ours": ours("cw_l2", **own),
        "ours, tanh": ours("cw_l2", **own, box="tanh"),
        "foolbox": foolboxes("L2CarliniWagnerAttack", **theirs, steps=STEPS, stepsize=RATE),
        "adv-lib": adv_libs("carlini_wagner_l2", **theirs, max_iterations=STEPS, learning_rate=RATE),
    }


@pytest.mark.data
@pytest.mark.benchmark(group="the nearest broken image")
@pytest.mark.parametrize("attack", ["deepfool", "cw_l2"])
def test_against_peers(benchmark, attack: str, batch: Batch):
    """One round is everybody once, so that a busy neighbour slows all alike; `extra_info` has each one's median."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runners = contest(attack)
    net, images, labels = batch
    spent: dict[str, list[float]] = {name: [] for name in runners}
    made: dict[str, Tensor] = {}

    def everybody() -> None:
        for name, run in runners.items():
            begin = time.perf_counter()
            made[name] = run(net, images, labels)
            spent[name].append(time.perf_counter() - begin)

    benchmark.pedantic(everybody, rounds=ROUNDS, warmup_rounds=0, iterations=1)
    for name, found in made.items():
        distance = (found - images).flatten(1).norm(dim=1)
        broken = threat.predictions(net, found) != labels
        benchmark.extra_info[name] = {
            "ms_per_image": round(1000 * sorted(spent[name])[ROUNDS // 2] / len(images), 2),
            "median_l2": round(float(torch.where(broken, distance, torch.inf).median()), 4),
            "success_rate": round(float(broken.float().mean()), 4),
        }
