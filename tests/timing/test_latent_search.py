"""Defense-GAN's search beside the released code's way of it: tiled images, gradients of the weights, torch's SGD. In
turns within one run: pytest tests/timing/test_latent_search.py -n0 --benchmark-only."""

from __future__ import annotations

import os
import statistics
import time

import pytest
import torch
from released import tiled_search
from torch import Tensor, nn

from bench import device, draws, training
from defenses.defense_gan import DefenseGAN
from defenses.latent_search import search

IMAGES = int(os.environ.get("PURIFYBENCH_TIMED_IMAGES", "4"))
ROUNDS = int(os.environ.get("PURIFYBENCH_TIMED_ROUNDS", "5"))
STEPS = int(os.environ.get("PURIFYBENCH_TIMED_STEPS", "50"))  # of the 200: each takes the same time


@pytest.mark.benchmark(group="the search of Defense-GAN")
@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_the_search_beats_the_tiled_one(benchmark, recipe):
    """One round is both once, so that a busy neighbour slows them alike; `extra_info` has ms an image of all 200 steps
    by the processor's clock, and the median ratio of the rounds."""
    device.prepare("cpu")
    with training.global_seed(0):
        defense = DefenseGAN(nn.Identity(), width={"fast": 32, "paper": 64}[recipe], search_steps=STEPS)
    images = torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    starts = defense.starts(images, draws.generator("cpu", "timing"))

    def ours() -> Tensor:
        return defense.purify(images, draws.generator("cpu", "timing"))

    def theirs() -> Tensor:
        return tiled_search(defense.gan, images, starts, STEPS)[0]

    spent: dict[str, list[float]] = {"ours": [], "tiled": []}
    made: dict[str, Tensor] = {}

    def both() -> None:
        for name, run in (("ours", ours), ("tiled", theirs)):
            begin = time.process_time()
            made[name] = run()
            spent[name].append(time.process_time() - begin)

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1, iterations=1)
    assert torch.allclose(made["ours"], made["tiled"], atol=1e-4), "the same work"
    found = search(defense.decode, images, starts, defense.descent)
    assert torch.allclose(found.images, made["ours"], atol=1e-4)
    for name, seconds in spent.items():
        benchmark.extra_info[f"{name}_ms_per_image"] = 1000 * statistics.median(seconds) / IMAGES * 200 / STEPS
    ratios = [slow / quick for slow, quick in zip(spent["tiled"][1:], spent["ours"][1:], strict=True)]
    benchmark.extra_info["ratio"] = statistics.median(ratios)
    assert benchmark.extra_info["ratio"] >= 1.4
