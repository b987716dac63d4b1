"""The harness's own imitation of a purifier: it learns, it loads, and its gradient breaks what hides its own."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from bench import attacks, surrogate, threat
from bench.defense import Defense
from bench.draws import ImageDraws
from bench.progress import Progress


class Inverts(Defense):
    """Turns black into white, without a gradient: the identity is the wrong stand-in."""

    title, paper, year = "Inverts", "https://example.org", 2020

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return (1 - images.detach()).mul(7).round().div(7)


class OwnAnswer(Inverts):
    """The same as an answer of its own."""

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return 2 * self.classifier(self.purify(images, generator))


@pytest.fixture(scope="module")
def net(digits) -> nn.Module:
    """A linear classifier of inverted digits, fitted in closed form."""
    images, labels = 1 - digits.train.images.flatten(1), digits.train.labels
    targets = nn.functional.one_hot(labels, 10).float()
    solution = torch.linalg.lstsq(images.T @ images + 30 * torch.eye(784), images.T @ targets).solution
    layer = nn.Linear(784, 10, bias=False)
    layer.weight = nn.Parameter(solution.T.contiguous())
    return nn.Sequential(nn.Flatten(), layer).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def imitation(net, digits, tmp_path_factory) -> surrogate.Surrogate:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURIFYBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        first = surrogate.trained(Inverts(net), "inverts", "key", digits, 600, Progress())
        again = surrogate.trained(Inverts(net), "inverts", "key", digits, 600, Progress())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    return first


@pytest.mark.slow
def test_it_imitates_the_purifier_on_images_it_has_not_seen(imitation, net, digits):
    images = digits.validation.images[:64]
    purified = Inverts(net).purify(images, torch.Generator())
    assert (imitation(images) - purified).abs().mean() < 0.1 < (images - purified).abs().mean()
    assert imitation(torch.rand(2, 1, 9, 13)).shape == (2, 1, 9, 13), "odd sides are padded"


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Inverts, OwnAnswer])
def test_its_route_keeps_the_value_and_breaks_what_the_others_do_not(cls, imitation, net, digits):
    images, labels = digits.validation.images[:64], digits.validation.labels[:64]
    defense = cls(net)
    left = {}
    for route in ("autograd", "bpda", "surrogate"):
        target = threat.white_box(defense, route, eot=1, seed_parts=(), surrogate=imitation)
        assert torch.allclose(target(images), defense.logits(images, torch.Generator()), atol=1e-5), route
        found = attacks.get("apgd_margin")(
            target, images, labels, eps=0.1, steps=20, draws=ImageDraws.derived(torch.arange(64), "test")
        )
        left[route] = float((defense.logits(found.images, torch.Generator()).argmax(1) == labels).float().mean())
    assert left["surrogate"] < 0.2 < left["autograd"]
    assert left["surrogate"] < left["bpda"] - 0.2


def test_without_a_surrogate_the_route_says_so(net):
    target = threat.white_box(Inverts(net), "surrogate", eot=1, seed_parts=())
    with pytest.raises(ValueError, match="there is no surrogate of this defense"):
        target(torch.rand(1, 1, 28, 28))
