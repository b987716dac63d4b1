"""Units of purification: counted by the same rule for every defense, never declared and never timed."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from bench import classifiers, cost
from bench.defense import Defense


class Loops(Defense):
    """Sends the images `passes` times through a copy of the classifier, forward and backward."""

    title, paper, year = "Loops", "https://example.org", 2020

    def __init__(self, classifier: nn.Module, *, passes: int = 1, backward: bool = True) -> None:
        super().__init__(classifier)
        self.passes, self.backward = passes, backward

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        with torch.enable_grad():
            for _ in range(self.passes):
                moved = images.clone().requires_grad_()
                total = self.classifier(moved).sum()
                if self.backward:
                    torch.autograd.grad(total, moved)
        return images


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return classifiers.build("A").requires_grad_(False)


IMAGES = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("passes", [1, 3, 25])
def test_a_unit_is_a_forward_and_backward_pass_of_the_classifier(passes, net):
    assert cost.purification_units(Loops(net, passes=passes), net, IMAGES) == pytest.approx(passes, rel=0.01)


def test_a_forward_pass_is_about_half_a_unit(net):
    units = cost.purification_units(Loops(net, backward=False), net, IMAGES)
    assert 0.3 < units < 0.7


def test_the_count_does_not_depend_on_how_many_images_are_given_and_repeats(net):
    few, many = (cost.purification_units(Loops(net), net, IMAGES[:n]) for n in (4, 8))
    assert few == many


def test_a_costlier_class_cannot_be_bought_by_work_that_is_done_on_some_batches_only(net):
    class Buys(Loops):
        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            if len(images) == 4 or not torch.is_grad_enabled():
                super().purify(images, generator)
            return images.clone()

    class Idles(Loops):
        """Works in a door that nobody scores."""

        def logits(self, images: Tensor, generator: Generator) -> Tensor:
            return self.classifier(images)

    assert cost.purification_units(Buys(net, passes=30), net, IMAGES) < 0.01
    assert cost.purification_units(Idles(net, passes=30), net, IMAGES) < 0.01


def test_nothing_is_counted_of_a_defense_that_fails(net):
    class Fails(Loops):
        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            raise RuntimeError("out of luck")

    assert cost.purification_units(Fails(net), net, IMAGES) == 0
    assert cost.budget(0) == "cheap"
