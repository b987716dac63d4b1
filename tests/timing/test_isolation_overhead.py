"""What the seam costs: a defense in a child process against the same one here, for classifier A at batch 128."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from bench import classifiers, device, draws, training
from bench.isolation import isolated
from defenses.identity import Identity

BATCH, REPEATS = 128, 20


@pytest.mark.benchmark(group="isolation")
def test_a_gradient_through_the_seam_costs_at_most_a_fifth_more(benchmark):
    device.prepare("cpu")
    with training.global_seed(0):
        net = classifiers.build("A", (1, 28, 28)).requires_grad_(False).eval()
    images = torch.rand(BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    cls = isolated("identity", "defenses.identity:Identity")

    def gradient(defense):
        attacked = images.clone().requires_grad_()
        logits = defense.logits(attacked, draws.generator("cpu", "timing"))
        return torch.autograd.grad(logits.logsumexp(dim=1).sum(), attacked)[0]

    def seconds(defense):
        started = time.perf_counter()
        gradient(defense)
        return time.perf_counter() - started

    here, there = Identity(net), cls(net)
    assert torch.equal(gradient(here), gradient(there))
    pairs = [(seconds(here), seconds(there)) for _ in range(REPEATS)]  # in turn: both meet the same load
    ratio = statistics.median(b / a for a, b in pairs)
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(gradient, args=(there,), rounds=3)
    cls.channel.close()
    assert ratio <= 1.2
