"""Attacks that make training pairs: R-FGSM and the smallest L2 change of Carlini and Wagner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import carlini_wagner, gradient_steps
from bench.draws import ImageDraws


def draws(n: int) -> ImageDraws:
    return ImageDraws.derived(torch.arange(n), "test")


@pytest.fixture
def plane() -> nn.Module:
    """Two classes with a plane between them."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    weight = torch.randn(64, generator=torch.Generator().manual_seed(2))
    net[1].weight = nn.Parameter(torch.stack([weight, -weight]))
    return net.requires_grad_(False)


@pytest.fixture
def batch(plane) -> tuple[Tensor, Tensor]:
    images = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 0.6 + 0.2
    return images, plane(images).argmax(dim=1)


def test_r_fgsm_stays_in_its_ball_and_is_fgsm_without_its_random_step(plane, batch):
    images, labels = batch
    for alpha in (0.0, 0.05, 0.1):
        found = gradient_steps.r_fgsm(plane, images, labels, eps=0.1, draws=draws(24), alpha=alpha).images
        assert (found - images).abs().max() <= 0.1 + 1e-6
        assert found.min() >= 0 and found.max() <= 1
    one_step = gradient_steps.fgsm(plane, images, labels, eps=0.1, draws=draws(24)).images
    assert torch.allclose(
        gradient_steps.r_fgsm(plane, images, labels, eps=0.1, draws=draws(24), alpha=0).images, one_step
    )
    corner = gradient_steps.r_fgsm(plane, images, labels, eps=0.1, draws=draws(24), alpha=0.1).images - images
    assert torch.allclose(corner.abs(), torch.full_like(corner, 0.1), atol=1e-6), "the noise enters by its sign"
    with pytest.raises(ValueError, match="0 <= alpha <= eps"):
        gradient_steps.r_fgsm(plane, images, labels, eps=0.01, draws=draws(24), alpha=0.05)


def test_cw_finds_the_distance_to_the_plane(plane, batch):
    """The closed form: half the gap of the logits over the length of the weights, where no pixel meets the box."""
    images, labels = batch
    logits = plane(images)
    exact = (logits[:, 0] - logits[:, 1]).abs() / (2 * plane[1].weight[0].norm())
    found = carlini_wagner.cw_l2(plane, images, labels, draws=draws(24), searches=9, steps=200, learning_rate=0.01)
    reached = (found.images - images).flatten(1).norm(dim=1)
    assert found.broken.all() and (plane(found.images).argmax(dim=1) != labels).all()
    assert (reached >= exact - 1e-4).all(), "nothing breaks below the distance"
    assert (reached / exact).median() < 1.05 and (reached / exact).max() < 1.3


def test_cw_moves_pixels_at_the_borders_of_the_box_and_does_not_feel_a_shift_of_all_logits(plane, batch):
    images = batch[0].round()
    labels = plane(images).argmax(dim=1)
    found = carlini_wagner.cw_l2(plane, images, labels, draws=draws(24), searches=6)
    assert found.broken.all() and (found.images != images).any()
    shifted = carlini_wagner.cw_l2(lambda x: plane(x) - 100, images, labels, draws=draws(24), searches=6)
    assert torch.allclose(found.images, shifted.images, atol=1e-3)


def test_cw_asks_for_a_margin_and_returns_the_image_where_it_finds_none(plane, batch):
    images, labels = batch
    near, far = (
        carlini_wagner.cw_l2(plane, images, labels, draws=draws(24), searches=7, kappa=kappa) for kappa in (0.0, 1.0)
    )
    distance = [(found.images - images).flatten(1).norm(dim=1).mean() for found in (near, far)]
    assert distance[1] > distance[0]
    logits = plane(far.images[far.broken])
    gap = logits.gather(1, labels[far.broken, None]) - logits.gather(1, 1 - labels[far.broken, None])
    assert (gap <= -1).all()

    def blind(x: Tensor) -> Tensor:
        return torch.zeros(len(x), 2).scatter(1, labels[:, None], 1.0)

    nothing = carlini_wagner.cw_l2(blind, images, labels, draws=draws(24), searches=2, steps=5)
    assert torch.equal(nothing.images, images) and not nothing.broken.any()
    with pytest.raises(ValueError, match="cw_l2 needs"):
        carlini_wagner.cw_l2(plane, images, labels, draws=draws(24), constant=0)
