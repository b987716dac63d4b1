"""Attacks past a detector where the answer is known: on linear logits and a linear score it is a linear programme. And
past one that is not linear, where more steps, a larger ball and other attacks must agree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Generator, Tensor, nn

from bench import attacks, draws, threat
from bench.attacks.acceptance import accepted_pgd
from bench.catalog import ATTACKS as ATTACKS_BY_NAME
from bench.defense import Defense
from bench.errors import BenchError

BY_GRADIENT = ("lagrangian_pgd", "orthogonal_pgd")
ATTACKS = (*BY_GRADIENT, "accepted_square")
SHAPE = (1, 4, 4)


class Linear(Defense):
    """Linear logits of 3 classes, and a linear rejection score."""

    title, paper, year, kind, differentiable = "Linear", "https://example.org", 2020, "selective", True

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        made = Generator().manual_seed(1)
        self.register_buffer("direction", torch.randn(16, generator=made))

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return images.flatten(1) @ self.direction


@pytest.fixture(scope="module")
def linear() -> tuple[Linear, Tensor, Tensor]:
    """The defense, 24 images, and the labels that it gives them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False)
        net[1].bias.copy_(-net[1].weight.sum(dim=1) / 2)  # every class wins somewhere
        images = torch.rand(24, *SHAPE)
    return Linear(net), images, net(images).argmax(dim=1)


def reachable(defense: Linear, images: Tensor, labels: Tensor, eps: float, threshold: float) -> np.ndarray:
    """The largest margin of an accepted image in each Linf ball, by linear programming; -inf where none is accepted."""
    weight, bias = (part.double().numpy() for part in defense.classifier[1].parameters())
    direction = defense.direction.double().numpy()
    best = []
    for image, label in zip(images.flatten(1).double().numpy(), labels.tolist(), strict=True):
        bounds = list(zip(np.clip(image - eps, 0, 1), np.clip(image + eps, 0, 1), strict=True))
        found = []
        for other in set(range(3)) - {label}:
            solved = linprog(weight[label] - weight[other], A_ub=direction[None], b_ub=[threshold], bounds=bounds)
            found.append(-solved.fun + bias[other] - bias[label] if solved.status == 0 else -np.inf)
        best.append(max(found))
    return np.array(best)


def effort(name: str, *, steps: int, **given) -> dict[str, object]:
    """As many steps, or the queries that do as much on images of 16 pixels."""
    return {"steps": steps, **given} if name in BY_GRADIENT else {"queries": 10 * steps}


class Reconstructed(Defense):
    """A small net, and as the score how badly an autoencoder with a fixed random encoder gives an image back."""

    title, paper, year, kind, differentiable = "Reconstructed", "https://example.org", 2020, "selective", True

    def __init__(self, classifier: nn.Module, images: Tensor) -> None:
        super().__init__(classifier)
        self.register_buffer("weight", 3 / 8 * torch.randn(64, 24, generator=Generator().manual_seed(3)))
        self.register_buffer("back", torch.linalg.lstsq(self.code(images), images.flatten(1)).solution)

    def code(self, images: Tensor) -> Tensor:
        bent = ((images.flatten(1) - 0.5) @ self.weight).tanh()
        return torch.cat([bent, torch.ones_like(bent[:, :1])], dim=1)

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return (self.code(images) @ self.back).view_as(images).clamp(0, 1)

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.classifier(images)

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return (images.flatten(1) - self.code(images) @ self.back).square().mean(dim=1)


@pytest.fixture(scope="module")
def bent() -> tuple[Reconstructed, Tensor, Tensor, float]:
    """The defense, 48 images that it accepts, their labels, and the threshold that refuses 1 % of others."""
    drawn = Generator().manual_seed(7)

    def blurred(*shape: int, of=torch.randn) -> Tensor:
        return nn.functional.interpolate(of(*shape, 4, 4, generator=drawn), size=(8, 8), mode="bilinear")

    means, ways = blurred(3, 1, of=torch.rand), blurred(15, 1).view(3, 5, 1, 8, 8)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(n) % 3
        along = torch.einsum("nk,nkchw->nchw", 0.1 * torch.randn(n, 5, generator=drawn), ways[labels])
        noise = 0.02 * torch.randn(n, 1, 8, 8, generator=drawn)
        return (means[labels] + along + noise).clamp(0, 1), labels

    images, labels = sample(600)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    defense = Reconstructed(net.requires_grad_(False), images)
    threshold = float(defense.rejection_score(sample(300)[0], Generator()).quantile(0.99))
    images, labels = sample(60)
    kept = (net(images).argmax(dim=1) == labels) & (defense.rejection_score(images, Generator()) <= threshold)
    return defense, images[kept][:48], labels[kept][:48], threshold


RADII = (0.08, 0.1, 0.15, 0.2, 0.4)


def share_broken(bent, name: str, eps: float, steps: int = 40, **given) -> float:
    """The share of images that are wrong and accepted, once every image of the attack is found to be as it tells."""
    defense, images, labels, threshold = bent
    found = attacked(bent[:3], name, eps, threshold, steps=steps, stop_when_broken=True, **given)
    change = (found.images - images).flatten(1)
    length = change.abs().amax(dim=1) if given.get("norm", "linf") == "linf" else change.norm(dim=1)
    assert float(length.max()) <= eps + 1e-6 and 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    wrong = defense.classifier(found.images).argmax(dim=1) != labels
    assert torch.equal(found.broken, wrong & (defense.rejection_score(found.images, Generator()) <= threshold))
    return float(found.broken.float().mean())


def test_past_a_detector_that_is_not_linear_a_larger_ball_and_more_steps_never_break_fewer(bent):
    """With a multiplier that grew by half at each step these were 15, 23, 21, 44 and 94 %."""
    shares = [share_broken(bent, "lagrangian_pgd", eps) for eps in RADII]
    twice = [share_broken(bent, "lagrangian_pgd", eps, steps=80) for eps in RADII]
    assert 0.05 < shares[0] < shares[1] < 0.5 < shares[2] < 0.95  # something is left to gain
    for found in (shares, twice):
        assert all(small <= large + 0.03 for small, large in itertools.pairwise(found)), found
    assert all(once <= more + 0.03 for once, more in zip(shares, twice, strict=True)), (shares, twice)


def test_its_own_long_runs_and_the_other_rule_find_hardly_more(bent):
    for eps in RADII:
        assert share_broken(bent, "lagrangian_pgd", eps) >= share_broken(bent, "orthogonal_pgd", eps) - 0.03
    long = [share_broken(bent, name, 0.15, steps=400) for name in BY_GRADIENT]
    assert share_broken(bent, "lagrangian_pgd", 0.15) >= max(long) - 0.05


def test_restarts_and_targets_only_add_and_l2_balls_are_held(bent):
    one = share_broken(bent, "lagrangian_pgd", 0.15)
    assert share_broken(bent, "lagrangian_pgd", 0.15, restarts=3) >= one
    assert share_broken(bent, "lagrangian_pgd", 0.15, targets=2) >= one - 0.03
    small, large = (share_broken(bent, "lagrangian_pgd", eps, norm="l2") for eps in (0.5, 1.5))
    assert small < large


def test_a_target_is_aimed_at_and_others_count_too(bent):
    defense, images, labels, threshold = bent
    likely = attacks.wrong_classes(defense.classifier, images, labels)
    first = attacked(bent[:3], "lagrangian_pgd", 0.2, threshold, steps=40, targets=1, stop_when_broken=True)
    reached = defense.classifier(first.images).argmax(dim=1)
    assert first.broken.any() and (reached == likely[:, 0])[first.broken].float().mean() > 0.9


def attacked(linear, name: str, eps: float, threshold: float, *, norm="linf", stop_when_broken=False, **given):
    defense, images, labels = linear
    target = threat.acceptance(defense, "autograd", threshold=threshold, eot=1, seed_parts=())
    given = {"norm": norm, "stop_when_broken": stop_when_broken, **effort(name, **given)}
    noise = draws.ImageDraws.derived(torch.arange(len(images)), "test")
    return attacks.get(name)(target, images, labels, eps=eps, draws=noise, **given)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("eps", "threshold"), [(0.1, 0.0), (0.2, -1.0), (0.2, 1.0), (0.3, 0.0)])
def test_it_breaks_what_a_linear_programme_can_break_and_nothing_else(name, eps, threshold, linear):
    defense, images, labels = linear
    best = reachable(defense, images, labels, eps, threshold)
    broken = attacked(linear, name, eps, threshold, steps=200, restarts=2).broken
    assert not broken[torch.from_numpy(best < 0)].any()  # what cannot be reached is not claimed
    clearly = torch.from_numpy(best > 0.02)
    assert clearly.any() and broken[clearly].float().mean() > 0.95


@pytest.mark.parametrize("name", ATTACKS)
def test_a_detector_costs_the_attacker_something_and_one_that_accepts_all_nothing(name, linear):
    defense, images, labels = linear
    left = [
        int((~attacked(linear, name, 0.05, threshold, steps=100).broken).sum()) for threshold in (-5.0, -4.0, 100.0)
    ]
    target = threat.white_box(defense, "autograd", eot=1, seed_parts=())
    noise = draws.ImageDraws.derived(torch.arange(len(images)), "test")
    plain = attacks.get("apgd_margin")(target, images, labels, eps=0.05, draws=noise)
    assert left[0] > left[1] > left[2] and left[2] <= int((~plain.broken).sum())


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_breaks_a_defense_that_refuses_everything(name, linear):
    found = attacked(linear, name, 0.3, -1e6, steps=20)
    assert not found.broken.any() and (found.step_of_success == -1).all() and (found.losses < 0).all()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_stay_in_the_ball_and_what_is_told_of_them_is_so(name, norm, linear):
    defense, images, labels = linear
    found = attacked(linear, name, 0.3, 0.0, steps=30, norm=norm, restarts=2)
    change = (found.images - images).flatten(1)
    length = change.abs().amax(dim=1) if norm == "linf" else change.norm(dim=1)
    assert float(length.max()) <= 0.3 + 1e-6 and 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    with torch.no_grad():
        wrong = defense.classifier(found.images).argmax(dim=1) != labels
        accepted = defense.rejection_score(found.images, Generator()) <= 0
    assert torch.equal(found.broken, wrong & accepted)
    early = attacked(linear, name, 0.3, 0.0, steps=30, norm=norm, restarts=2, stop_when_broken=True)
    assert torch.equal(early.broken, found.broken)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_costs_the_rows_that_the_catalog_says(name, linear):
    defense, images, labels = linear
    for more in ({"restarts": 2}, {"restarts": 3, "targets": 2}):
        target = threat.acceptance(defense, "autograd", threshold=-1e6, eot=1, seed_parts=())
        noise = draws.ImageDraws.derived(torch.arange(len(images)), "test")
        given = effort(name, steps=7, **more)
        attacks.get(name)(target, images, labels, eps=0.1, draws=noise, **given)
        forward, backward = ATTACKS_BY_NAME[name].cost(**given)
        assert (target.forward_rows, target.backward_rows) == (forward * len(images), backward * len(images))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_random_defense_answers_with_draws_of_both(name, linear):
    class Random(Linear):
        stochastic = True

        def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
            return super().rejection_score(images, generator) + torch.randn(len(images), generator=generator)

    _, images, labels = linear
    target = threat.acceptance(Random(linear[0].classifier), "autograd", threshold=0.0, eot=5, seed_parts=())
    with torch.no_grad():
        assert target(images).shape == (5, len(images), 4)
    noise = draws.ImageDraws.derived(torch.arange(len(images)), "test")
    given = {"stop_when_broken": True, **effort(name, steps=30)}
    found = attacks.get(name)(target, images, labels, eps=0.3, draws=noise, **given)
    assert not found.broken.any()  # one look proves nothing
    assert (found.step_of_success >= 0).any() and found.losses[-1].mean() > found.losses[0].mean()


def test_score_and_logits_come_from_the_same_draw(linear):
    class Shared(Linear):
        stochastic = True

        def logits(self, images: Tensor, generator: Generator) -> Tensor:
            drawn = torch.randn(len(images), generator=generator)
            return drawn[:, None].expand(-1, 3)

        def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
            return torch.randn(len(images), generator=generator)

    target = threat.acceptance(Shared(linear[0].classifier), "autograd", threshold=0.0, eot=3, seed_parts=())
    answers = target(linear[1])
    assert torch.equal(answers[..., 0], -answers[..., -1])


class _Reversed(torch.autograd.Function):
    """The identity, with a gradient that points the other way."""

    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return -gradient


def test_a_detector_whose_gradient_points_away_stops_those_who_follow_it_and_not_those_who_ask(linear):
    class Misleading(Linear):
        def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
            return _Reversed.apply(super().rejection_score(images, generator))

    defense, images, labels = linear
    masked = (Misleading(defense.classifier), images, labels)
    masked[0].load_state_dict(defense.state_dict())
    possible = torch.from_numpy(reachable(defense, images, labels, 0.3, -4.0) > 0.02)
    left = {name: int((~attacked(masked, name, 0.3, -4.0, steps=100).broken[possible]).sum()) for name in ATTACKS}
    assert left["accepted_square"] <= 1 < int(possible.sum()) // 2 < min(left[name] for name in BY_GRADIENT)


def test_who_sees_scores_alone_gets_no_gradient_and_the_same_answers(linear):
    defense, images, _ = linear
    asked = threat.acceptance_score_only(defense, threshold=0.5, eot=1, seed_parts=())
    knowing = threat.acceptance(defense, "autograd", threshold=0.5, eot=1, seed_parts=())
    answers = asked(images.clone().requires_grad_())
    assert not answers.requires_grad and torch.equal(answers, knowing(images))
    assert asked.forward_rows == len(images) and asked.backward_rows == 0


def test_an_unknown_rule_or_route_is_refused(linear):
    with pytest.raises(BenchError, match="lagrangian"):
        accepted_pgd(lambda x: x, linear[1], linear[2], eps=0.1, draws=None, rule="lagrange")
    with pytest.raises(ValueError, match="steps >= 1"):
        accepted_pgd(lambda x: x, linear[1], linear[2], eps=0.1, draws=None, steps=0)
    with pytest.raises(ValueError, match="targets >= 0"):
        accepted_pgd(lambda x: x, linear[1], linear[2], eps=0.1, draws=None, targets=-1)
    with pytest.raises(BenchError, match="autograd"):
        threat.acceptance(linear[0], "surrogate", threshold=1.0, eot=1, seed_parts=())
