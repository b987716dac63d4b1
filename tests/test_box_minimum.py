"""The batched projected L-BFGS against SciPy's L-BFGS-B and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor, nn

from bench.attacks.box_minimum import minimise

N, D = 4, 30


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A curved encoder in float64."""
    layers = nn.Sequential(nn.Linear(D, 20), nn.Tanh(), nn.Linear(20, 6)).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weights in layers.parameters():
        weights.copy_(torch.randn(weights.shape, generator=generator, dtype=torch.float64) / 3)
    return layers


def priced(net: nn.Module, constant: float, images: Tensor, target: Tensor):
    """Values and gradients of |code - target|^2 + constant |change|^2."""

    def slope(points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.detach().requires_grad_()
        value = (net(points) - target).square().sum(dim=1) + constant * (points - images).square().sum(dim=1)
        return value.detach(), torch.autograd.grad(value.sum(), points)[0]

    return slope


@pytest.fixture(scope="module")
def start() -> tuple[Tensor, Tensor]:
    """Images with many pixels at the walls, and others."""
    generator = torch.Generator().manual_seed(1)
    both = torch.rand(2, N, D, generator=generator, dtype=torch.float64) * 1.8 - 0.4
    return both[0].clamp(0, 1), both[1].clamp(0, 1)


@pytest.mark.parametrize("constant", [2.0**-10, 0.1, 1.0, 2.0**20])
def test_it_finds_what_scipy_finds(constant, net, start):
    images, target = start[0], net(start[1])
    found, curve = minimise(priced(net, constant, images, target), images, 200)
    assert bool((found >= 0).all()) and bool((found <= 1).all())
    for i in range(N):
        slope = priced(net, constant, images[i : i + 1], target[i : i + 1])

        def alone(point, slope=slope):
            value, gradient = slope(torch.from_numpy(point)[None])
            return float(value), gradient[0].numpy()

        options = {"maxcor": 25, "ftol": 10 * np.finfo(float).eps}
        best = optimize.minimize(
            alone, images[i].numpy(), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * D, options=options
        ).fun
        assert float(curve[-1, i]) <= 1.02 * best, (i, float(curve[-1, i]), best)


def test_values_never_rise_and_the_last_is_that_of_the_point(net, start):
    slope = priced(net, 0.1, start[0], net(start[1]))
    found, curve = minimise(slope, start[0], 30)
    assert curve.shape == (31, N) and bool((curve.diff(dim=0) <= 0).all())
    assert torch.equal(slope(found)[0], curve[-1])


def test_a_row_alone_goes_the_same_way(net, start):
    images, target = start[0], net(start[1])
    together, _ = minimise(priced(net, 0.1, images, target), images, 30)
    for i in range(N):
        alone, _ = minimise(priced(net, 0.1, images[i : i + 1], target[i : i + 1]), images[i : i + 1], 30)
        assert torch.allclose(alone[0], together[i])


def test_walls_hold_back_only_what_leads_through_them():
    """The minimum of |A x - a|^2 with A diagonal is a / A, clipped to the box."""
    scale = torch.logspace(0, 1.5, D, dtype=torch.float64)
    aim = torch.linspace(-1, 2, D, dtype=torch.float64).repeat(N, 1)
    corners = torch.stack([torch.zeros(D), torch.ones(D), torch.full((D,), 0.5), torch.arange(D) % 2.0]).double()
    slope = lambda x: ((scale * (x - aim)).square().sum(dim=1), 2 * scale.square() * (x - aim))  # noqa: E731
    found, _ = minimise(slope, corners, 60)
    assert torch.allclose(found, aim.clamp(0, 1), atol=1e-6)


def test_what_is_not_finite_is_never_taken():
    """Half of the box has no value, and one row has no gradient at all."""

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.where(x[:, 0] > 0.6, torch.nan, (x - 1).square().sum(dim=1))
        gradient = 2 * (x - 1)
        gradient[3] = torch.nan
        return value, gradient

    start = torch.full((N, D), 0.5, dtype=torch.float64)
    found, curve = minimise(slope, start, 60)
    assert bool(found.isfinite().all()) and bool((found[:, 0] <= 0.6).all())
    assert bool((curve[-1, :3] < curve[0, :3]).all()) and torch.equal(found[3], start[3])


def test_of_no_rows_nothing_is_found():
    found, curve = minimise(lambda x: (x.flatten(1).sum(dim=1), x), torch.empty(0, 1, 2, 2), 3)
    assert found.shape == (0, 1, 2, 2) and curve.shape == (4, 0)
