"""LQ-VAE: its quantizers, its Lipschitz penalty and its gradients against closed forms; three updates in turn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import training
from bench.data import Dataset, Split
from bench.progress import Progress
from defenses.lq_vae import LQVAE, LQNet, gradient_norm, hard_bits, soft_bits

SMALL = {"width": 4, "hidden": 32, "latent": 8, "minimum_steps": 0}
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]
PARTS = ("encoder", "mean", "log_variance", "soft", "hard")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_data(shape=(1, 28, 28), n=24):
    images = torch.rand(n, *shape, generator=generator(1))
    split = Split(images, torch.zeros(n, dtype=torch.int64))
    return Dataset("noise", split, split[:4], split[:0], ("nothing",), "test")


def build(shape=(1, 28, 28), **options):
    with training.global_seed(0):
        return LQVAE(nn.Flatten(), shape=shape, **SMALL | options).eval()


@pytest.fixture(scope="module")
def images():
    return noise_data().train.images


@pytest.mark.parametrize("penalty", ["sum", "jacobian"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_builds_learns_and_purifies_images_of_every_shape(shape, penalty):
    defense, data = build(shape, penalty=penalty, epochs=1, batch_size=8), noise_data(shape)
    before = {name: weight.clone() for name, weight in defense.named_parameters()}
    defense.fit(data, generator(), Progress())
    assert all(not torch.equal(weight, before[name]) for name, weight in defense.named_parameters())
    purified = defense.purify(data.train.images, generator())
    assert purified.shape == data.train.images.shape and 0 <= purified.min() <= purified.max() <= 1
    assert defense.encode(data.train.images).shape == (24, 8)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 30, 30\)"):
        LQNet((1, 30, 30))
    with pytest.raises(ValueError, match="a penalty of sum or jacobian and 1 to 8 directions, got 'norm' and 1"):
        build(penalty="norm")
    with pytest.raises(ValueError, match="got 'jacobian' and 9"):
        build(penalty="jacobian", directions=9)


def test_the_recipes_differ_in_the_penalty_alone():
    assert dict(LQVAE.recipes["paper"]) == {} and dict(LQVAE.recipes["slides"]) == {"penalty": "jacobian"}


# ---------------------------------------------------------------------------------------------- the quantizers


def test_a_bit_tells_whether_a_latent_lies_within_tau_of_zero():
    latents = torch.tensor([0.0, 0.05, -0.0999, 0.1001, -0.11, 3.0])
    assert hard_bits(latents, 0.1).tolist() == [1, 1, 1, -1, -1, -1]
    assert hard_bits(latents, 0.06).tolist() == [1, 1, -1, -1, -1, -1]


def test_the_soft_quantizer_and_its_derivative_have_their_closed_forms():
    latents = torch.tensor([0.0, 0.1, 0.2, -0.2], requires_grad=True)
    soft = soft_bits(latents, 0.1)  # softsign of 500 (0.01 - z^2): 5, 0, -15, -15
    assert soft.tolist() == pytest.approx([5 / 6, 0, -15 / 16, -15 / 16], abs=1e-5)
    (gradient,) = torch.autograd.grad(soft.sum(), latents)  # -1000 z / (1 + |u|)^2
    assert gradient.tolist() == pytest.approx([0, -100, -200 / 256, 200 / 256], rel=1e-3)


def test_the_soft_quantizer_agrees_with_the_hard_one_in_sign():
    latents = torch.randn(1000, generator=generator(2)) * 0.2
    assert torch.equal(soft_bits(latents, 0.1).sign(), hard_bits(latents, 0.1))


def test_images_are_decoded_from_hard_bits_by_the_hard_decoder(images):
    defense = build()
    nn.init.normal_(defense.net.mean.bias, 0, 0.1, generator=generator(3))
    latents = defense.encode(images)
    bits = torch.where(latents.abs() < 0.1, 1.0, -1.0)
    assert 0 < (bits == 1).float().mean() < 1
    assert torch.equal(defense.bits(images), bits)
    assert torch.allclose(defense.purify(images, generator()), (defense.net.hard(bits) + 1) / 2, atol=1e-6)


def test_the_true_gradient_route_has_the_soft_quantizers_gradient_at_the_hard_bits():
    defense = build()
    latents = (torch.randn(6, 8, generator=generator(4)) * 0.2).requires_grad_()
    weights = torch.rand(6, 1, 28, 28, generator=generator(5))
    (found,) = torch.autograd.grad((defense.decode(latents) * weights).sum(), latents)
    bits = hard_bits(latents.detach(), 0.1).requires_grad_()
    (by_bits,) = torch.autograd.grad(((defense.net.hard(bits) + 1) / 2 * weights).sum(), bits)
    slope = -1000 * latents / (1 + 500 * (0.01 - latents**2).abs()) ** 2
    assert by_bits.abs().max() > 0
    assert torch.allclose(found, by_bits * slope, rtol=1e-4, atol=1e-6)


def test_bpda_differentiates_the_hard_decoder_behind_the_soft_quantizer(images):
    defense = build()
    attacked = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(defense.approximate(attacked, generator()).square().sum(), attacked)
    (expected,) = torch.autograd.grad(
        ((defense.net.hard(soft_bits(defense.net.posterior(2 * attacked - 1)[0], 0.1)) + 1) / 2).square().sum(),
        attacked,
    )
    assert found.abs().max() > 0 and torch.allclose(found, expected)
    assert torch.allclose(defense.surrogate_logits(images, generator()), defense.logits(images, generator()), atol=1e-6)


# ---------------------------------------------------------------------------------------------- the penalty


@pytest.fixture(scope="module")
def linear():
    """A linear encoder: its matrix (D, pixels), images and their means."""
    matrix = torch.randn(8, 64, generator=generator(6)) / 8
    inputs = torch.rand(5, 1, 8, 8, generator=generator(7)).requires_grad_()
    return matrix, inputs, inputs.flatten(1) @ matrix.T


def test_the_penalty_of_the_code_takes_the_gradient_of_the_sum_of_the_means(linear):
    matrix, inputs, means = linear
    found = gradient_norm(inputs, means, "sum", 1, generator())
    assert torch.allclose(found, matrix.sum(dim=0).norm().expand(5))


def test_the_penalty_of_the_slides_takes_the_norm_of_the_jacobian(linear):
    matrix, inputs, means = linear
    exact = matrix.norm()
    assert torch.allclose(gradient_norm(inputs, means, "jacobian", 8, generator()), exact.expand(5))
    draws = [gradient_norm(inputs, means, "jacobian", 1, generator(seed))[0].item() for seed in range(400)]
    assert len(set(draws)) == 400
    assert sum(draw**2 for draw in draws) / 400 == pytest.approx(exact.item() ** 2, rel=0.05)  # unbiased
    assert abs(matrix.sum(dim=0).norm() - exact) > 0.1, "or the two variants could not be told apart"


def test_the_penalty_moves_the_encoder():
    """For z = W x, the derivative of |W^T 1| by each row of W is W^T 1 over its norm."""
    matrix = torch.randn(8, 64, generator=generator(6)).requires_grad_()
    inputs = torch.rand(1, 64, generator=generator(7)).requires_grad_()
    norm = gradient_norm(inputs, inputs @ matrix.T, "sum", 1, generator())
    (found,) = torch.autograd.grad(norm.sum(), matrix)
    total = matrix.detach().sum(dim=0)
    assert torch.allclose(found, (total / total.norm()).expand(8, 64), atol=1e-6)


@pytest.mark.parametrize("penalty", ["sum", "jacobian"])
def test_training_drives_the_norm_to_its_target(penalty, images):
    defense = build(
        penalty=penalty, directions=8, lipschitz=0.5, penalty_weight=1000.0, error_weight=0.0, epochs=20, batch_size=24,
        learning_rate=1e-2, decay=True,
    )  # fmt: skip
    scaled = (2 * images - 1).requires_grad_()

    def norm():
        return gradient_norm(scaled, defense.net.posterior(scaled)[0], penalty, 8, generator()).mean().item()

    before = norm()
    defense.fit(noise_data(), generator(), Progress())
    assert abs(norm() - 0.5) < 0.05 < abs(before - 0.5)


def test_the_local_lipschitz_constant_of_a_linear_encoder_is_its_largest_singular_value(linear, monkeypatch):
    matrix, inputs, _ = linear
    defense = build()
    monkeypatch.setattr(defense.net, "posterior", lambda scaled: (scaled.flatten(1) @ matrix.T, None))
    with torch.no_grad():
        found = defense.local_lipschitz(inputs)
    assert torch.allclose(found, torch.linalg.svdvals(matrix)[0].expand(5), atol=1e-5)


def test_the_local_lipschitz_constant_bounds_how_far_a_small_step_moves_the_code(images):
    defense = build().double()
    step = torch.randn(images.shape, generator=generator(8)).double() * 1e-6
    moved = (defense.encode(images.double() + step) - defense.encode(images.double())).norm(dim=1)
    reach = defense.local_lipschitz(images.double()) * 2 * step.flatten(1).norm(dim=1)
    assert (moved <= reach * (1 + 1e-3)).all() and (moved > 0).all()


# ---------------------------------------------------------------------------------------------- training


def test_the_soft_decoder_starts_as_a_copy_of_the_hard_one():
    net = build().net
    assert training.weights_hash(net.soft) == training.weights_hash(net.hard)
    assert net.soft is not net.hard


def test_encoder_soft_and_hard_decoder_are_updated_in_turn_on_fresh_draws(monkeypatch):
    defense = build(epochs=1, batch_size=24)
    before = {part: training.weights_hash(getattr(defense.net, part)) for part in PARTS}
    drawn, moved = [], []
    sample = LQVAE._sample

    def watched(self, mean, log_variance, draws):
        moved.append({part for part in PARTS if training.weights_hash(getattr(self.net, part)) != before[part]})
        found = sample(self, mean, log_variance, draws)
        drawn.append(((found - mean) / (0.05 * (0.5 * log_variance).exp())).detach())
        return found

    monkeypatch.setattr(LQVAE, "_sample", watched)
    defense.fit(noise_data(), generator(), Progress())
    encoder = {"encoder", "mean", "log_variance"}
    assert moved == [set(), encoder, encoder | {"soft"}]
    assert len(drawn) == 3 and not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    assert torch.cat(drawn).std() == pytest.approx(1, rel=0.1), "5 % of the posterior's deviation"


def test_the_first_loss_is_the_sum_of_its_three_terms(monkeypatch, images):
    """With a net whose parts are known: mean and log-variance constant in the image, a decoder that answers 0.5."""
    defense = build(epochs=1, batch_size=24)
    weight = defense.net.mean.bias

    def posterior(scaled):
        rows = 3 * scaled.flatten(1)[:, :8] + 0 * weight.sum()  # gradient of the sum: eight threes
        return rows, torch.full_like(rows, 0.2)

    monkeypatch.setattr(defense.net, "posterior", posterior)
    monkeypatch.setattr(defense.net, "soft", _Constant())
    monkeypatch.setattr(defense.net, "hard", _Constant())
    seen = []
    monkeypatch.setattr(Progress, "checkpoint", lambda self, label, stateful, losses: seen.extend(losses))
    defense.fit(noise_data(), generator(), Progress())
    scaled = (2 * images - 1).double()
    mean = 3 * scaled.flatten(1)[:, :8]
    kl = 0.5 * (mean**2 + torch.tensor(0.2).double().exp() - 0.2 - 1).mean()
    error = (scaled - 0.5).square().mean()
    assert seen == pytest.approx([float(kl + 10 * error + 10 * (3 * 8**0.5 - 0.1) ** 2)], rel=1e-5)


class _Constant(nn.Module):
    """Answers 0.5 everywhere."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.5))

    def forward(self, bits):
        return self.value.expand(len(bits), 1, 28, 28) + 0 * bits.sum()


# ---------------------------------------------------------------------------------------------- bit flips


@pytest.fixture
def first_pixels(monkeypatch):
    """A defense whose latents are the first eight pixels."""
    defense = build()
    monkeypatch.setattr(defense, "encode", lambda images: images.flatten(1)[:, :8])
    return defense


def as_images(rows):
    images = torch.zeros(len(rows), 1, 28, 28)
    images.view(len(rows), -1)[:, :8] = torch.tensor(rows)
    return images


def test_bit_flips_are_the_share_of_bits_that_differ(first_pixels):
    clean = as_images([[0.0] * 8, [0.5] * 8, [0.05] * 4 + [0.5] * 4])
    others = as_images([[0.09] * 8, [0.05] * 2 + [0.6] * 6, [0.5] * 4 + [0.05] * 4])
    assert first_pixels.bit_flips(clean, others).tolist() == [0, 0.25, 1]


def test_the_facts_of_a_record_count_flips_and_right_answers_in_bins_of_two_percent(first_pixels, monkeypatch):
    monkeypatch.setattr(first_pixels, "local_lipschitz", lambda images: torch.arange(float(len(images))))
    clean = as_images([[0.5] * 8] * 5)
    attacked = as_images([[0.5] * 8, [0.5] * 8, [0.05] + [0.5] * 7, [0.05] * 2 + [0.5] * 6, [0.05] * 8])
    facts = first_pixels.facts(clean, attacked, torch.tensor([1.0, 0.5, 1.0, 1.0, 0.0]))
    assert facts["bit_flips"] == pytest.approx((0.125 + 0.25 + 1) / 5)
    assert facts["bit_flips_under_6_percent"] == pytest.approx(2 / 5)
    assert facts["bit_flips_images"] == (2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2)  # 0 %; 12.5 %; 25 % and 100 % in the last
    assert facts["bit_flips_correct"] == (1.5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1)
    assert facts["local_lipschitz"] == 4.0
