"""What an attack costs beyond the passes it counts, as a ratio in one run: pytest tests/timing -n0 --benchmark-only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import attacks, catalog, classifiers, device, threat
from bench.draws import ImageDraws

BATCH, STEPS = 128, 40


@pytest.fixture(scope="module")
def net() -> nn.Module:
    device.pin_heap()
    return classifiers.build("A").requires_grad_(False)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(BATCH, 1, 28, 28, generator=generator), torch.randint(10, (BATCH,), generator=generator)


def passes(net, images, labels, forward: int, both: int) -> None:
    """`both` forward and backward passes of the loss, and forward passes up to `forward` in all, and nothing else."""
    for _ in range(both):
        attacked = images.clone().requires_grad_()
        loss = nn.functional.cross_entropy(net(attacked), labels, reduction="sum")
        torch.autograd.grad(loss, attacked)
    with torch.no_grad():
        for _ in range(forward - both):
            net(images)


@pytest.mark.benchmark(group="PGD at batch 128")
@pytest.mark.parametrize("what", ["counted passes alone", "the attack"])
def test_pgd(benchmark, what, net, batch):
    images, labels = batch
    forward, backward = catalog.ATTACKS["pgd"].cost(steps=STEPS)

    def attack() -> None:
        draws = ImageDraws.derived(torch.arange(BATCH), 0)
        target = threat.gray_box(net)
        attacks.get("pgd")(target, images, labels, eps=0.3, draws=draws, steps=STEPS)
        assert (target.forward_rows, target.backward_rows) == (forward * BATCH, backward * BATCH)

    work = attack if what == "the attack" else lambda: passes(net, images, labels, forward, backward)
    benchmark.extra_info.update(batch=BATCH, forward_rows=forward * BATCH, backward_rows=backward * BATCH)
    benchmark.pedantic(work, rounds=5, warmup_rounds=1, iterations=1)
