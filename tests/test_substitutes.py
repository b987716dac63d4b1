"""Substitutes: where they ask, how often, and that they come to agree with what they asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bench import classifiers, draws, substitutes, training
from bench.progress import Progress
from bench.substitutes import Recipe

SHORT = Recipe(first_images=20, rounds=3, epochs=2)


class Counting:
    """An oracle that answers with a fixed linear rule, and remembers what it was asked."""

    def __init__(self, classes: int = 10) -> None:
        self.weight = torch.randn(784, classes, generator=torch.Generator().manual_seed(0))
        self.asked: list[torch.Tensor] = []

    def __call__(self, images, generator):
        self.asked.append(images)
        return ((images - 0.2).flatten(1) @ self.weight).argmax(1)

    @property
    def count(self) -> int:
        return sum(map(len, self.asked))


def linear(shape=(1, 4, 4), classes=3) -> nn.Sequential:
    layer = nn.Linear(shape[0] * shape[1] * shape[2], classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)))
    return nn.Sequential(nn.Flatten(), layer)


def test_a_new_point_lies_along_the_sign_of_its_label_s_weights():
    net, labels = linear(), torch.tensor([2, 0, 1, 2])
    images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    signs = net[1].weight[labels].sign().view(4, 1, 4, 4)
    free = substitutes.augmented(net, images, labels, 0.1, clip=False)
    assert torch.equal(free, images + 0.1 * signs)
    assert free.min() < 0 or free.max() > 1, "else clipping would be no test"
    assert torch.equal(substitutes.augmented(net, images, labels, 0.1), (images + 0.1 * signs).clamp(0, 1))
    assert not images.requires_grad and all(p.grad is None for p in net.parameters())


def test_every_point_is_asked_once(digits):
    oracle, net = Counting(), classifiers.build("E")
    asked = substitutes.imitate(net, oracle, digits.validation.images[:20], SHORT, Progress(), "E")
    assert asked == oracle.count == SHORT.queries == 20 * 4
    assert [len(images) for images in oracle.asked] == [20, 20, 40], "new points alone"
    assert torch.equal(oracle.asked[0], digits.validation.images[:20])
    assert all(images.min() >= 0 and images.max() <= 1 for images in oracle.asked)


def test_the_published_recipe_asks_for_4800_labels():
    assert substitutes.PAPERNOT.queries == 4800
    assert substitutes.PAPERNOT.rows == 10 * (150 + 300 + 600 + 1200 + 2400 + 4800)


def test_the_same_answers_give_the_same_net_whoever_gives_them(digits):
    nets = [
        substitutes.trained("E", Counting(), key, digits, Progress(), of=key, recipe=SHORT) for key in ("one", "other")
    ]
    assert nets[0].weights == nets[1].weights
    different = substitutes.trained(
        "E", lambda images, _: Counting()(images, _) * 0, "third", digits, Progress(), of="third", recipe=SHORT
    )
    assert different.weights != nets[0].weights


def test_a_trained_substitute_is_loaded_with_its_counts_and_asks_nothing(digits):
    oracle = Counting()
    assert not substitutes.is_kept("E", "key", digits.name, digits.split, SHORT)
    first = substitutes.trained("E", oracle, "key", digits, Progress(), of="it", recipe=SHORT)
    assert substitutes.is_kept("E", "key", digits.name, digits.split, SHORT)
    asked = oracle.count
    again = substitutes.trained("E", oracle, "key", digits, Progress(), of="it", recipe=SHORT)
    assert oracle.count == asked == SHORT.queries + 297 - 20, "the rest of the validation split is compared"
    assert (first.weights, first.queries, first.agreement) == (again.weights, 80, again.agreement)
    assert not any(p.requires_grad for p in again.net.parameters()) and not again.net.training
    assert training.weights_hash(again.net) == again.weights
    answered = oracle(digits.validation.images[20:], None)
    same = again.net(digits.validation.images[20:]).argmax(1) == answered
    assert again.agreement == pytest.approx(float(same.float().mean()))


def test_a_query_is_one_draw_and_the_same_in_every_run(monkeypatch, digits):
    def coin(images, generator):
        return torch.randint(0, 10, (len(images),), generator=generator)

    images = digits.train.images[:300]
    first, again = (substitutes.ask(coin, images) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, substitutes.ask(coin, images, first=300)), "later queries draw anew"
    start = draws.generator("cpu", "query", substitutes.SEED, substitutes.CHUNK)
    assert torch.equal(first[substitutes.CHUNK :], coin(images[substitutes.CHUNK :], start))


def test_an_oracle_cannot_write_to_the_points(digits):
    def spoils(images, generator):
        images.zero_()
        return torch.zeros(len(images), dtype=torch.int64)

    before = digits.validation.images.clone()
    substitutes.trained("E", spoils, "spoils", digits, Progress(), of="it", recipe=SHORT)
    assert torch.equal(digits.validation.images, before)


def test_the_test_split_is_never_asked(digits):
    oracle = Counting()
    shown = replace(digits, test=digits.test[:0], train=digits.train[:1])
    substitutes.trained("E", oracle, "key", shown, Progress(), of="it", recipe=SHORT)
    assert oracle.count


@pytest.mark.slow
@pytest.mark.usefixtures("trained_home")
def test_a_substitute_comes_to_agree_with_the_classifier(digits):
    bare, weights = classifiers.trained("A", digits, Progress())
    oracle = substitutes.answers_of(bare)
    found = substitutes.trained("E", oracle, weights, digits, Progress(), of="classifier A")
    assert found.queries == 4800
    assert 0.8 < found.agreement < 1
    untrained = classifiers.build("E", seed=substitutes.SEED)
    compared = digits.validation.images[150:]
    assert (untrained(compared).argmax(1) == bare(compared).argmax(1)).float().mean() < 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("trained_home")
def test_an_independent_net_shares_no_start_with_an_attacked_one(digits):
    bare, weights = classifiers.trained("A", digits, Progress())
    other = substitutes.independent("A", bare, digits, Progress())
    assert other.weights != weights and other.queries == 0
    assert 0.8 < other.agreement < 1
    starts = {training.weights_hash(classifiers.build("A", seed=seed)) for seed in (0, substitutes.SEED)}
    assert len(starts) == 2
