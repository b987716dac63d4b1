"""Known answers for the attacks of the papers: steps along a sign, DeepFool, Carlini and Wagner, a single pixel."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import random_net
from torch import Tensor, nn

from bench import attacks, catalog, threat
from bench.draws import ImageDraws

SIGNED = ("i_fgsm", "mi_fgsm")
NEAREST = ("deepfool", "cw_l2")


def draws(n: int, seed: int = 0) -> ImageDraws:
    return ImageDraws.derived(torch.arange(n), seed, "test")


def attack(name: str, logits, images: Tensor, labels: Tensor, **params) -> attacks.Attacked:
    return attacks.get(name)(logits, images, labels, draws=draws(len(images)), **params)


def length(change: Tensor) -> Tensor:
    return change.flatten(1).norm(dim=1)


class Planes(nn.Module):
    """Linear logits in float64, through the middle of the box."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(classes, 64, generator=generator, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T

    def distance(self, images: Tensor) -> Tensor:
        """The L2 distance to the nearest border, (N,), where no wall of the box is in the way."""
        scores, labels = self(images), self(images).argmax(dim=1)
        gaps = scores.gather(1, labels[:, None]) - scores  # (N, K)
        apart = (self.weight[labels][:, None] - self.weight).norm(dim=2)
        return (gaps / apart).scatter(1, labels[:, None], torch.inf).amin(dim=1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A small net with kinks."""
    return random_net(64, 30, nn.ReLU())


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Pixels near the middle, where no wall of the box is in the way."""
    generator = torch.Generator().manual_seed(1)
    return 0.4 + 0.2 * torch.rand(40, 1, 8, 8, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- steps along a sign


@pytest.mark.parametrize("name", SIGNED)
def test_on_a_linear_model_of_two_classes_steps_reach_the_corner_of_the_ball(name, images):
    weight = torch.randn(64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def logits(x: Tensor) -> Tensor:
        score = x.flatten(1) @ weight
        return torch.stack([-score, score], dim=1)

    hard = (3 * images - 1).clamp(0, 1)
    corner = (hard - 0.3 * weight.sign().view(1, 1, 8, 8)).clamp(0, 1)
    found = attack(name, logits, hard, torch.ones(40, dtype=torch.int64), eps=0.3)
    assert torch.allclose(found.images, corner)


@pytest.mark.parametrize("name", SIGNED)
def test_one_gradient_is_fgsm_at_nine_tenths_of_eps(name, net, images):
    net, images = copy.deepcopy(net).float(), images.float()
    labels = threat.predictions(net, images)
    for eps in (0.001, 0.2, 0.3):
        target = threat.gray_box(net)
        report = {"steps": 9, "relative_step": 0.1, "one_gradient": True}
        found = attack(name, target, images, labels, eps=eps, **report).images
        assert torch.equal(found, attack("fgsm", net, images, labels, eps=0.9 * eps).images)
        assert (target.forward_rows, target.backward_rows) == (80, 40)
        assert catalog.ATTACKS[name].cost(**report) == (2, 1)
        step_by_step = attack(name, lambda x: Tangent.apply(x, net, images), images, labels, eps=eps,
                              steps=9, relative_step=0.1)  # fmt: skip
        assert torch.allclose(found, step_by_step.images, atol=1e-6)


class Tangent(torch.autograd.Function):
    """The net's logits with their Jacobian at `at`, wherever they are asked for."""

    @staticmethod
    def forward(ctx, x, net, at):
        with torch.enable_grad():
            ctx.at = at.clone().requires_grad_()
            ctx.scores = net(ctx.at)
        return ctx.scores.detach().clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.autograd.grad(ctx.scores, ctx.at, gradient)[0], None, None


def test_momentum_without_memory_is_i_fgsm_and_with_it_is_not(net, images):
    labels = threat.predictions(net, images)
    plain = attack("i_fgsm", net, images, labels, eps=0.3).images
    assert torch.equal(attack("mi_fgsm", net, images, labels, eps=0.3, decay=0.0).images, plain)
    assert not torch.equal(attack("mi_fgsm", net, images, labels, eps=0.3).images, plain)


def test_a_step_is_fixed_or_relative_and_reaches_the_wall_by_default(net, images):
    labels = threat.predictions(net, images)
    fixed = attack("i_fgsm", net, images, labels, eps=0.3, steps=3, step_size=0.03).images
    assert torch.equal(attack("i_fgsm", net, images, labels, eps=0.3, steps=3, relative_step=0.1).images, fixed)
    assert float((fixed - images).abs().max()) == pytest.approx(0.09)
    published = attack("i_fgsm", net, images, labels, eps=0.3, step_size=0.01).images
    assert torch.equal(attack("i_fgsm", net, images, labels, eps=0.3).images, published)
    for steps in (1, 7, 40):
        found = attack("i_fgsm", lambda x: Planes()(x)[:, :2], images, labels % 2, eps=0.4, steps=steps).images
        assert float((found - images).abs().max()) == pytest.approx(0.4)


@pytest.mark.parametrize("name", SIGNED)
def test_one_gradient_that_is_zero_leaves_the_image(name, images):
    labels = torch.zeros(40, dtype=torch.int64)
    for quirk in ({"one_gradient": True}, {}):
        found = attack(name, lambda x: x.flatten(1)[:, :3] * 0, images, labels, eps=0.3, **quirk)
        assert torch.equal(found.images, images) and bool((found.blocked == 1).all())


WRONG = [
    ("i_fgsm", {"eps": -0.1}), ("i_fgsm", {"eps": 0.1, "step_size": 0.01, "relative_step": 0.1}),
    ("mi_fgsm", {"eps": 0.1, "decay": -1.0}), ("mi_fgsm", {"eps": 0.1, "relative_step": 0.0}),
    ("r_fgsm", {"eps": 0.1, "alpha": 0.2}), ("unclipped_step", {"step_size": 0.0}), ("deepfool", {"candidates": 1}),
    ("deepfool", {"eps": -1.0}), ("cw_l2", {"searches": 0}), ("cw_l2", {"box": "sine"}),
    ("single_pixel", {"pixels": 0}),
]  # fmt: skip


@pytest.mark.parametrize("name, wrong", WRONG, ids=str)
def test_settings_that_make_no_sense_are_refused(name, wrong, net, images):
    with pytest.raises(ValueError, match=f"{name} needs"):
        attack(name, net, images, threat.predictions(net, images), **wrong)


def test_r_fgsm_without_signs_leaves_the_ball_and_with_them_does_not(net, images):
    labels = threat.predictions(net, images)
    signed, raw = (
        attack("r_fgsm", net, images, labels, eps=0.3, signed=signed).images - images for signed in (True, False)
    )
    assert float(signed.abs().max()) <= 0.3 + 1e-6 < float(raw.abs().max())
    shares = (signed.abs() - 0.2).abs() < 1e-6, (signed.abs() - 0.3).abs() < 1e-6
    assert bool((shares[0] | shares[1]).all()) and shares[0].any() and shares[1].any()
    step = raw - 0.05 * draws(40).normal(1, 8, 8).double()
    assert torch.allclose(step.abs(), torch.full_like(step, 0.25), atol=1e-6)


def test_the_unclipped_step_spans_the_box_for_each_image_by_itself(net, images):
    labels = threat.predictions(net, images)
    seen = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(seen), labels, reduction="sum"), seen)
    stepped = images + 0.15 * gradient.sign()
    low, high = stepped.flatten(1).amin(dim=1), stepped.flatten(1).amax(dim=1)
    expected = (stepped - low.view(-1, 1, 1, 1)) / (high - low).view(-1, 1, 1, 1)
    found = attack("unclipped_step", net, images, labels).images
    assert torch.allclose(found, expected)
    assert torch.equal(found.flatten(1).amin(dim=1), torch.zeros(40, dtype=found.dtype))
    assert torch.equal(found.flatten(1).amax(dim=1), torch.ones(40, dtype=found.dtype))
    grey = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    still = attack("unclipped_step", lambda x: x.flatten(1)[:, :3] * 0, grey, 0 * labels[:2])
    assert torch.equal(still.images, grey) and bool((still.blocked == 1).all())


# ---------------------------------------------------------------------------------------------- the nearest image

FINE = {
    "deepfool": {"overshoot": 0.002},
    "cw_l2": {"steps": 300, "learning_rate": 0.002, "constant": 0.1},
}


@pytest.mark.parametrize("name, classes", [("deepfool", 2), ("deepfool", 5), ("cw_l2", 2)])
def test_linear_borders_are_found_at_their_distance(name, classes, images):
    """With more classes CW follows the likeliest wrong one, whose border need not be the nearest."""
    model, spread = Planes(classes), 3 * (images - 0.5) + 0.5
    images = spread[model.distance(spread) > 0.03]
    labels, true = threat.predictions(model, images), model.distance(images)
    assert len(images) > 10 and float(true.max()) < 0.6
    found = attack(name, model, images, labels, **FINE[name])
    assert bool(found.broken.all()) and bool((threat.predictions(model, found.images) != labels).all())
    reached = length(found.images - images)
    assert bool((reached >= true).all()) and bool((reached <= 1.01 * true).all())


@pytest.mark.parametrize("name", NEAREST)
def test_without_a_ball_every_image_is_broken_and_a_fresh_look_agrees(name, net, images):
    hard = (6 * images - 2.5).clamp(0, 1)  # many pixels at 0 and 1
    labels = threat.predictions(net, hard)
    found = attack(name, net, hard, labels)
    assert bool(found.broken.all()) and bool((threat.predictions(net, found.images) != labels).all())
    assert bool((found.step_of_success > 0).all())
    for i in range(0, 40, 7):
        assert int(net(found.images[i : i + 1]).argmax()) != int(labels[i])


@pytest.mark.parametrize("name", NEAREST)
def test_with_a_ball_what_lies_outside_comes_back_to_its_wall(name, net, images):
    labels = threat.predictions(net, images)
    free = length(attack(name, net, images, labels).images - images)
    eps = float(free.median())
    held = attack(name, net, images, labels, eps=eps)
    assert float(length(held.images - images).max()) <= eps + 1e-6
    assert torch.equal(held.broken, threat.predictions(net, held.images) != labels)
    assert torch.equal(held.broken, held.step_of_success >= 0)
    assert bool(held.broken[free <= eps].all()) and 15 <= int(held.broken.sum()) < 40


HIDDEN = {
    "detached": lambda net: lambda x: net(x.detach()),
    "zero": lambda net: lambda x: net((x * 3).round() / 3),
    "not finite": lambda net: lambda x: net(x.detach() + (x - x.detach()).sqrt().nan_to_num() * 0),
}


@pytest.mark.parametrize("how", HIDDEN)
@pytest.mark.parametrize("name", NEAREST)
def test_without_a_gradient_the_clean_image_comes_back(name, how, net, images):
    model = HIDDEN[how](net)
    labels = threat.predictions(model, images)
    for ball in ({}, {"eps": 0.5}):
        found = attack(name, model, images, labels, **ball)
        assert torch.equal(found.images, images) and not bool(found.broken.any())
        assert bool((found.step_of_success == -1).all()) and bool((found.blocked == 1).all())


@pytest.mark.parametrize("name", [*NEAREST, "single_pixel"])
def test_what_is_wrong_from_the_start_is_returned_as_it_is(name, net, images):
    labels = (threat.predictions(net, images) + 1) % 6
    target = threat.gray_box(net)
    found = attack(name, target, images, labels)
    assert torch.equal(found.images, images) and bool((found.step_of_success == 0).all())
    assert bool(found.broken.all()) and target.forward_rows <= 3 * 40


@pytest.mark.parametrize("name", [*NEAREST, "single_pixel", *SIGNED])
def test_logits_that_are_no_numbers_are_wrong(name, net, images):
    labels = threat.predictions(net, images)
    radius = {"eps": 0.1} if name in SIGNED else {}

    def lost(x: Tensor) -> Tensor:
        return net(x) * torch.where(x.flatten(1).amax(dim=1, keepdim=True) > 0.5, torch.nan, 1.0)

    found = attack(name, lost, images, labels, **radius)
    lost_ones = images.flatten(1).amax(dim=1) > 0.5
    assert bool(found.images.isfinite().all()) and bool((found.step_of_success[lost_ones] == 0).all())


@pytest.mark.parametrize("name", NEAREST)
def test_the_minimum_is_kept_though_others_need_longer(name, net, images):
    labels = threat.predictions(net, images)
    together = attack(name, net, images, labels)
    for i in (0, 17):
        alone = attack(name, net, images[i : i + 1], labels[i : i + 1])
        assert torch.allclose(alone.images[0], together.images[i])
        assert int(alone.step_of_success) == int(together.step_of_success[i])


def test_deepfool_looks_at_its_candidates_only(net, images):
    labels = threat.predictions(net, images)
    costs = []
    for candidates in (2, 6):
        target = threat.gray_box(net)
        found = attack("deepfool", target, images, labels, candidates=candidates)
        assert bool(found.broken.all())
        costs.append(target.backward_rows)
    assert 2 * costs[0] < costs[1]


@pytest.mark.parametrize("box", ["clip", "tanh"])
def test_carlini_wagner_gets_nearer_with_searches_and_keeps_its_margin(box, net, images):
    labels = threat.predictions(net, images)
    one, many = (
        length(attack("cw_l2", net, images, labels, searches=n, box=box, constant=100.0).images - images).mean()
        for n in (1, 6)
    )
    assert many < one
    found = attack("cw_l2", net, images, labels, kappa=1.0, box=box)
    scores = net(found.images)
    others = scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    assert bool(found.broken.all()) and bool((others - scores.gather(1, labels[:, None])[:, 0] >= 1.0).all())


def test_carlini_wagner_moves_pixels_at_the_walls_within_a_few_steps(net, images):
    """The substitution of the paper needs a hundred steps of 0.05 to bring such a pixel to a tenth."""
    hard = images.round()
    labels = threat.predictions(net, hard)
    clip, tanh = (attack("cw_l2", net, hard, labels, box=box, searches=4, steps=25) for box in ("clip", "tanh"))
    moved = (clip.images - hard).abs() > 1e-3
    assert bool(clip.broken.all()) and float(moved.double().mean()) > 0.3
    assert not bool(tanh.broken.any())


def test_carlini_wagner_aborts_each_image_for_itself(net, images):
    labels = threat.predictions(net, images)
    full, early = threat.gray_box(net), threat.gray_box(net)
    attack("cw_l2", full, images, labels)
    found = attack("cw_l2", early, images, labels, abort_early=True)
    assert bool(found.broken.all()) and early.forward_rows < 0.8 * full.forward_rows
    alone = attack("cw_l2", net, images[3:4], labels[3:4], abort_early=True)
    assert torch.allclose(alone.images[0], found.images[3])


@pytest.mark.parametrize("name", NEAREST)
def test_with_draws_no_image_leaves_and_equal_draws_are_the_model(name, net, images):
    labels = threat.predictions(net, images)
    sizes = []

    def drawn(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.stack([net(x)] * 3)

    few = {"steps": 20, **({"abort_early": True} if name == "cw_l2" else {})}
    found = attack(name, drawn, images, labels, **few)
    assert set(sizes) == {40} and not bool(found.broken.any())
    plain = attack(name, net, images, labels, steps=20)
    assert torch.allclose(found.images, plain.images) and torch.equal(found.step_of_success, plain.step_of_success)


# ---------------------------------------------------------------------------------------------- a single pixel


def test_a_single_pixel_changes_one_pixel_in_all_channels_and_uses_only_labels():
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(60, 3, 6, 5, generator=generator)
    weight = torch.randn(4, 90, generator=generator)
    logits = lambda x: (x.flatten(1) - 0.5) @ weight.T  # noqa: E731
    labels = threat.predictions(logits, images)
    found = attack("single_pixel", logits, images, labels, pixels=8)
    assert 5 < int(found.broken.sum()) < 55
    assert torch.equal(found.broken, threat.predictions(logits, found.images) != labels)
    changed = (found.images != images).any(dim=1).flatten(1).sum(dim=1)
    assert torch.equal(changed, found.broken.long())
    pixels = found.images[(found.images != images)]
    assert bool(((pixels == 0) | (pixels == 1)).all())
    for others in (lambda x: 1e6 * logits(x) - 3, lambda x: torch.eye(4)[logits(x).argmax(dim=1)]):
        again = attack("single_pixel", others, images, labels, pixels=8)
        assert torch.equal(again.images, found.images) and torch.equal(again.losses, found.losses)


def test_a_single_pixel_is_tried_black_then_white_and_the_first_change_wins():
    """Only a white pixel in the first place breaks the image: found after all places if need be, at an even trial."""
    images = torch.full((20, 1, 4, 4), 0.5)

    def logits(x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x[:, 0, 0, 0] - 0.9], dim=1)

    labels = torch.zeros(20, dtype=torch.int64)
    target = threat.gray_box(logits)
    found = attack("single_pixel", target, images, labels)
    assert bool(found.broken.all()) and bool((found.images[:, 0, 0, 0] == 1).all())
    assert bool((found.step_of_success % 2 == 0).all()) and len(set(found.step_of_success.tolist())) > 5
    assert target.forward_rows == int((found.step_of_success + 1).sum()) and target.backward_rows == 0
    few = attack("single_pixel", logits, images, labels, pixels=3)
    assert torch.equal(few.broken, (found.step_of_success <= 6))
    assert torch.equal(few.images[~few.broken], images[~few.broken])
