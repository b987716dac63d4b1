"""One change for all images: answers known in closed form, no weaker than noise, learned from known images alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from bench import attacks, catalog, draws, threat
from bench.attacks.universal import learn
from bench.defense import Defense

PIXELS, CLASSES = 36, 4


def grey(n: int, seed: int = 0) -> Tensor:
    """Images (n, 1, 6, 6) away from black and white, so that no change is clipped."""
    return 0.5 + 0.1 * (torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) - 0.5)


def weights(classes: int = CLASSES) -> Tensor:
    return torch.randn(classes, PIXELS, generator=torch.Generator().manual_seed(1))


def one_sided(images: Tensor) -> Tensor:
    """Two classes, of which the border is at w.x = 0 and all grey images lie on one side."""
    score = (images.flatten(1) - 0.5) @ weights()[0] + 2
    return torch.stack([-score, score], dim=1)


def linear(images: Tensor) -> Tensor:
    return (images.flatten(1) - 0.5) @ weights().T


def taught(model, images: Tensor, labels: Tensor, eps: float, norm: str = "linf", **settings) -> Tensor:
    found = learn(model, images, labels, generator=draws.generator("cpu", 7), eps=eps, norm=norm, **settings)
    return found["change"]


def applied(model, images: Tensor, labels: Tensor, change: Tensor, eps: float, norm: str = "linf") -> attacks.Attacked:
    noise = draws.ImageDraws.derived(torch.arange(len(images)), "test")
    return attacks.get("universal")(
        model, images, labels, eps=eps, draws=noise, norm=norm, learned={"change": change, "broke": torch.tensor(0.0)}
    )


def accuracy(model, images: Tensor, labels: Tensor) -> float:
    return float((threat.predictions(model, images) == labels).float().mean())


def test_against_a_linear_border_it_is_the_best_change_in_closed_form():
    """All images on one side of w.x = t: the best change is -eps sign(w) in Linf and -eps w / |w| in L2."""
    labels, w = torch.ones(60, dtype=torch.int64), weights()[0].view(1, 6, 6)
    assert torch.equal(taught(one_sided, grey(60), labels, 0.1), -0.1 * w.sign())
    found = taught(one_sided, grey(60), labels, 0.5, "l2")
    assert float(found.norm()) == pytest.approx(0.5, abs=1e-5)
    assert float((found * -w).sum() / (0.5 * w.norm())) > 0.999


def test_it_breaks_as_many_images_as_the_best_direction_from_one_class_to_another():
    images = grey(200)
    labels = threat.predictions(linear, images)
    w, best = weights(), 1.0
    for one, other in itertools.permutations(range(CLASSES), 2):
        change = 0.02 * (w[one] - w[other]).sign().view(1, 6, 6)
        best = min(best, accuracy(linear, images + change, labels))
    assert 0.2 < best < 0.9
    assert accuracy(linear, images + taught(linear, images, labels, 0.02, epochs=20), labels) <= best + 0.01


def test_more_room_breaks_more_images_that_it_never_saw():
    net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) / 3)
    images, known = torch.rand(300, 1, 6, 6, generator=torch.Generator().manual_seed(8)), grey(200, 9).sub(0.5) * 10
    known = (known + 0.5).clamp(0, 1)
    labels, their = threat.predictions(net, images), threat.predictions(net, known)
    for norm, radii in (("linf", (0.0, 0.1, 0.2, 0.4)), ("l2", (0.0, 0.5, 1.0, 2.0))):
        reached = []
        for eps in radii:
            change = taught(net, known, their, eps, norm)
            found = applied(net, images, labels, change, eps, norm)
            moved = (found.images - images).flatten(1)
            assert float((moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)).max()) <= eps + 1e-6
            reached.append(accuracy(net, found.images, labels))
        assert reached[0] == 1.0 and all(b < a for a, b in itertools.pairwise(reached)), reached
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
        noise = (
            noise.sign() * 0.4 if norm == "linf" else 2.0 * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
        )
        assert reached[-1] < accuracy(net, (images + noise).clamp(0, 1), labels)


class Masked(nn.Module):
    """A model whose gradient says nothing, or points the wrong way: steps along it make every image safer."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, images: Tensor) -> Tensor:
        value, slope = linear(images).detach(), self.sign * linear(images)
        return value + slope - slope.detach()


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_on_a_model_that_masks_its_gradient_it_is_as_strong_as_noise_of_its_size(sign):
    images = grey(100)
    labels = threat.predictions(linear, images)
    corner = taught(Masked(0.0), images, labels, 0.1)
    assert torch.equal(corner.abs(), torch.full_like(corner, 0.1)), "without a gradient it stays in its corner"
    model = Masked(sign)
    broken = 1 - accuracy(model, images + taught(model, images, labels, 0.1), labels)
    assert broken >= 1 - accuracy(model, images + corner, labels) > 0


def test_the_change_is_the_same_whatever_is_attacked_with_it():
    images = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    labels = threat.predictions(linear, images)
    change = taught(linear, grey(40), labels.repeat(10)[:40], 0.1)
    together = applied(linear, images, labels, change, 0.1)
    assert torch.equal(together.images, (images + change).clamp(0, 1))
    others = applied(linear, torch.cat([images[:1], 1 - images[1:]]), labels, change, 0.1)
    assert torch.equal(others.images[0], together.images[0])
    assert together.step_of_success.tolist() == [
        1 if wrong else -1 for wrong in threat.predictions(linear, together.images) != labels
    ]
    assert torch.equal(together.broken, together.step_of_success == 1)


class Draws(Defense):
    """Adds noise, so that attackers see draws."""

    title, paper, year, stochastic, differentiable = "Draws", "https://example.org", 2020, True, True

    def purify(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return (images + 0.01 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


class Sided(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return one_sided(images)


def test_learning_counts_its_rows_and_averages_over_draws():
    labels = torch.ones(60, dtype=torch.int64)
    plain = threat.white_box(Draws(Sided()), "bpda", eot=3, seed_parts=())
    change = taught(plain, grey(60), labels, 0.1, known=50, epochs=4, batch_size=20)
    assert torch.equal(change, -0.1 * weights()[0].view(1, 6, 6).sign())
    forward, backward = catalog.ATTACKS["universal"].learning_cost(known=50, epochs=4)
    assert (plain.forward_rows, plain.backward_rows) == (3 * forward, 3 * backward) == (3 * 450, 3 * 200)


def test_no_more_than_the_first_known_images_are_looked_at():
    images, labels = grey(60), torch.ones(60, dtype=torch.int64)
    spoilt = torch.cat([images[:40], torch.full_like(images[40:], torch.nan)])
    first, second = (taught(linear, given, labels, 0.1, known=40) for given in (images, spoilt))
    assert torch.equal(first, second)


@pytest.mark.parametrize("wrong", [{"eps": -0.1}, {"known": 0}, {"epochs": 0}, {"batch_size": 0}], ids=str)
def test_learning_refuses_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="universal needs eps >= 0"):
        taught(linear, grey(4), torch.ones(4, dtype=torch.int64), **{"eps": 0.1, **wrong})
    with pytest.raises(ValueError, match="and 0 images"):
        taught(linear, grey(0), torch.ones(0, dtype=torch.int64), 0.1)
