"""Diffusion purification, held against denoisers whose best answer is known: a single image, and a Gaussian."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import training
from bench.data import Dataset, Split
from bench.errors import BenchError
from bench.progress import Progress
from defenses.diffusion import LEVELS, Diffusion

BETAS = torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64)
KEPT = (1 - BETAS).cumprod(dim=0)  # the share of an image's variance left at each level


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(shape=(1, 28, 28), **options):
    with training.global_seed(0):
        return Diffusion(nn.Flatten(), shape=shape, **{"widths": (8, 8), "layers": 1} | options).eval()


class BestGuess(nn.Module):
    """The noise that is to be expected in images of pixels from N(`mean`, `deviation`^2) on [-1, 1], at each level."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean, self.variance, self.asked = mean, deviation**2, []

    def forward(self, noised, level):
        self.asked.append(level)
        kept = KEPT[level].to(noised.dtype)
        surprise = noised - kept.sqrt() * self.mean
        return SimpleNamespace(sample=(1 - kept).sqrt() * surprise / (kept * self.variance + 1 - kept))


def with_best_guess(mean, deviation=0.0, **options):
    defense = build(**options)
    defense.net = BestGuess(mean, deviation)
    return defense


def share_left(level, deviation):
    """How much of an image's distance from the mean is left on average after the noise of a level and a draw from the
    posterior of the Gaussian."""
    kept = float(KEPT[level - 1])
    return kept * deviation**2 / (kept * deviation**2 + 1 - kept)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=str)
def test_it_builds_learns_and_purifies_images_of_every_shape(shape):
    images = torch.rand(12, *shape, generator=generator(1))
    split = Split(images, torch.zeros(12, dtype=torch.int64))
    defense = build(shape, epochs=1, batch_size=6, denoising_steps=3, surrogate_steps=2)
    before = {name: tensor.clone() for name, tensor in defense.state_dict().items()}
    defense.fit(Dataset("noise", split, split[:4], split[:0], ("nothing",), "test"), generator(), Progress())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in defense.state_dict().items())
    purified = defense.purify(images[:4], generator())
    assert purified.shape == (4, *shape) and 0 <= purified.min() <= purified.max() <= 1


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_who_knows_one_image_only_gives_that_one(steps):
    one = torch.rand(1, 1, 28, 28, generator=generator(2))
    defense = with_best_guess(2 * one - 1, noise_level=300, denoising_steps=steps, surrogate_steps=1)
    purified = defense.purify(torch.rand(5, 1, 28, 28, generator=generator(3)), generator())
    assert torch.allclose(purified, one.expand(5, -1, -1, -1), atol=1e-5)


def test_the_levels_are_in_equal_distances_from_the_chosen_one_to_the_image():
    defense = with_best_guess(0.0, 0.5, noise_level=300, denoising_steps=10)
    images = torch.rand(2, 1, 28, 28, generator=generator(1))
    defense.purify(images, generator())
    assert defense.net.asked == [299, 269, 239, 209, 179, 149, 119, 89, 59, 29]
    defense.net.asked.clear()
    defense.approximate(images, generator())
    assert defense.net.asked == [299, 239, 179, 119, 59]


def test_images_from_the_learned_gaussian_come_back_as_such():
    """At every level in turn the chain draws from the posterior: mean, spread and what is left of the image are known
    (nothing of it is clipped at this deviation)."""
    mean, deviation, top = 0.1, 0.2, 60
    defense = with_best_guess(mean, deviation, noise_level=top, denoising_steps=top)
    scaled = mean + deviation * torch.randn(40, 1, 28, 28, generator=generator(5))
    images = (scaled + 1) / 2
    purified = 2 * defense.purify(images, generator()) - 1
    share = share_left(top, deviation)
    assert float(purified.mean()) == pytest.approx(mean, abs=0.01)
    assert float(purified.std()) == pytest.approx(deviation, rel=0.02)
    slope = ((scaled - mean) * (purified - mean)).mean() / (scaled - mean).square().mean()
    assert float(slope) == pytest.approx(share, abs=0.03) and 0.3 < share < 0.7


@pytest.mark.parametrize("door", ["purify", "approximate"])
def test_the_gradient_through_every_step_is_the_known_one(door):
    """With a Gaussian the whole process is linear: the gradient at each pixel is the share of it that is left."""
    mean, deviation, top = 0.1, 0.2, 60
    defense = with_best_guess(mean, deviation, noise_level=top, denoising_steps=top, surrogate_steps=top)
    images = ((mean + deviation * torch.randn(3, 1, 28, 28, generator=generator(5)) + 1) / 2).requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(defense, door)(images, generator()).sum(), images)
    assert torch.allclose(gradient, torch.full_like(gradient, gradient.median()), rtol=1e-3)
    assert float(gradient.median()) == pytest.approx(share_left(top, deviation), rel=0.05)


def test_steps_computed_again_on_the_way_back_give_the_gradient_of_the_value(monkeypatch):
    defense = build(denoising_steps=4, surrogate_steps=2, noise_level=80).requires_grad_(False)
    images = torch.rand(3, 1, 28, 28, generator=generator(4))

    def gradient():
        asking = images.clone().requires_grad_()
        purified = defense.purify(asking, generator(1))
        return purified.detach(), torch.autograd.grad(purified.square().sum(), asking)[0]

    purified, found = gradient()
    monkeypatch.setattr("defenses.diffusion.checkpoint", lambda step, *inputs, **_: step(*inputs))
    whole, expected = gradient()
    assert torch.equal(purified, whole) and torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(purified, defense.purify(images, generator(1)))  # without a gradient, the same


def test_in_a_hurry_it_denoises_in_half_of_the_steps_and_at_most_ten():
    for steps, hurried in ((100, 10), (20, 10), (10, 5), (6, 5), (5, 5)):
        whole = build(denoising_steps=steps)
        quick = whole.hurried()
        assert (quick.denoising_steps, whole.denoising_steps, quick.net) == (hurried, steps, whole.net)
    images, built = torch.rand(2, 1, 28, 28, generator=generator(1)), build(denoising_steps=5)
    with torch.no_grad():
        assert torch.equal(quick.purify(images, generator()), built.purify(images, generator()))


def test_the_surrogate_starts_from_the_same_noise():
    """One step of both, nothing clipped: the same image."""
    defense = with_best_guess(0.0, 0.2, noise_level=60, denoising_steps=1, surrogate_steps=1)
    images = 0.5 + 0.1 * torch.randn(4, 1, 28, 28, generator=generator(4)).clamp(-2, 2)
    assert torch.allclose(defense.purify(images, generator(7)), defense.approximate(images, generator(7)), atol=1e-6)


def test_more_noise_leaves_less_of_an_attack():
    """What is left of a change of 0.3 on every pixel falls as the level rises."""
    images = torch.full((8, 1, 28, 28), 0.5)
    left = []
    for level in (50, 150, 300, 500):
        defense = with_best_guess(0.0, 0.2, noise_level=level, denoising_steps=50)
        left.append(float((defense.purify(images + 0.3, generator()) - defense.purify(images, generator())).mean()))
    assert left == sorted(left, reverse=True) and left[0] > 0.1 > 0.05 > left[-1] > 0


def test_the_denoiser_learns_on_digits(digits):
    with training.global_seed(0):
        settings = {"widths": (8, 16), "layers": 1, "noise_level": 100, "denoising_steps": 5, "learned_levels": 100}
        defense = Diffusion(nn.Flatten(), epochs=1, batch_size=32, learning_rate=2e-3, **settings).eval()
    clean = digits.test.images[:20]
    noisy = (clean + 0.3 * torch.randn(clean.shape, generator=generator(2))).clamp(0, 1)
    before = (defense.purify(noisy, generator()) - clean).square().mean()
    defense.fit(digits, generator(), Progress())
    after = (defense.purify(noisy, generator()) - clean).square().mean()
    assert after < 0.5 * before and after < (noisy - clean).square().mean()


@pytest.mark.parametrize(
    "settings",
    [
        {"denoising_steps": 0},
        {"denoising_steps": 4, "surrogate_steps": 5},
        {"noise_level": 50, "denoising_steps": 51},
        {"noise_level": 300, "learned_levels": 200},
        {"learned_levels": LEVELS + 1},
    ],
    ids=str,
)
def test_steps_and_levels_that_do_not_go_together_are_refused(settings):
    with pytest.raises(ValueError, match="denoising_steps <= noise_level <= learned_levels"):
        build(**settings)


def test_sides_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match="3 widths need sides that halve 2 times"):
        build((1, 30, 30), widths=(8, 8, 8))


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d", None)
    with pytest.raises(BenchError, match=r"pip install 'purifybench\[defenses\]'"):
        build()
