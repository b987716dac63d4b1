"""What one answer of each installed defense takes, untrained, in a table of pytest-benchmark: its timer waits for the
device. pytest tests/timing/test_defenses.py -n0 --benchmark-only; `purifybench timing` lets all take turns instead."""

from __future__ import annotations

import os
import time

import pytest
import torch

from bench import classifiers, cost, device, draws, plugins, stopwatch, training
from bench.defense import settings

BATCH = int(os.environ.get("PURIFYBENCH_TIMED_IMAGES", "1"))
ROUNDS = int(os.environ.get("PURIFYBENCH_TIMED_ROUNDS", "5"))
PLACE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timer() -> float:
    """Seconds, once the device has done all that it was given."""
    device.synchronize(PLACE)
    return time.perf_counter()


@pytest.mark.benchmark(group="one answer", timer=timer)
@pytest.mark.parametrize("name", sorted(plugins.installed()))
def test_an_answer(benchmark, name: str):
    device.prepare("auto")
    cls = plugins.load(name)
    with training.global_seed(0):
        net = classifiers.build("A").requires_grad_(False).to(PLACE).eval()
        defense = cls(net, **settings(cls)[1]).to(PLACE).requires_grad_(False).eval()
    images = torch.rand(BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(PLACE)

    def fresh() -> tuple[tuple[torch.Tensor, torch.Generator], dict[str, object]]:
        return (images.clone(), draws.generator(PLACE, "timing")), {}

    with torch.no_grad():
        benchmark.pedantic(defense.logits, setup=fresh, rounds=ROUNDS, warmup_rounds=1, iterations=1)
    benchmark.extra_info["peak_memory_mb"] = round(stopwatch.peak_memory_mb(defense.logits, images), 3)
    rows = cost.passes(defense, images, draws.generator(PLACE, "timing"))
    benchmark.extra_info.update(batch=BATCH, device=PLACE.type, rows=rows, threads=torch.get_num_threads())
    if benchmark.stats is not None:  # None where benchmarks are switched off
        benchmark.extra_info["images_per_second"] = BATCH / benchmark.stats.stats.median
