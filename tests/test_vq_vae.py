"""VQ-VAE: it quantizes to the nearest code, learns codes in training only, and draws its noise from the generator."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn
from trainings import asked

from bench import training
from bench.data import Dataset, Split
from bench.errors import BenchError
from bench.progress import Progress
from defenses.vq_vae import VQVAE, VQNet, VQVAENoise25, VQVAENoise50, VQVAENoise75

SMALL = {"width": 8, "codes": 32, "code_size": 4}
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_data(shape, n=24):
    images = torch.rand(n, *shape, generator=generator(1))
    split = Split(images, torch.zeros(n, dtype=torch.int64))
    return Dataset("noise", split, split[:4], split[:0], ("nothing",), "test")


def build(cls=VQVAE, shape=(1, 28, 28), **options):
    """A small net, neither black all over nor, with codes of its own making, blind to its input."""
    with training.global_seed(0):
        defense = cls(nn.Flatten(), shape=shape, **SMALL | options).eval()
    nn.init.constant_(defense.net.decoder[-1].bias, 0.5)
    latents = defense.encode(torch.rand(2, *shape, generator=generator(9))).detach()
    book = defense.net.quantizer._codebook
    book.embed[0] = latents.permute(0, 2, 3, 1).reshape(-1, 4)[:32]
    book.embed_avg.copy_(book.embed)
    return defense


@pytest.fixture(scope="module")
def images():
    return noise_data((1, 28, 28)).train.images


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cls", [VQVAE, VQVAENoise50], ids=lambda cls: cls.__name__)
def test_it_builds_learns_and_purifies_images_of_every_shape(cls, shape):
    defense, data = build(cls, shape, epochs=1, batch_size=8), noise_data(shape)
    before = {name: tensor.clone() for name, tensor in defense.state_dict().items()}
    defense.fit(data, generator(), Progress())
    after = defense.state_dict()
    assert not torch.equal(after["net.quantizer._codebook.embed"], before["net.quantizer._codebook.embed"])
    assert all(not torch.equal(after[name], before[name]) for name in dict(defense.named_parameters()))
    purified = defense.purify(data.train.images, generator())
    assert purified.shape == data.train.images.shape and 0 <= purified.min() <= purified.max() <= 1
    assert defense.encode(data.train.images).shape == (24, 4, shape[1] // 4, shape[2] // 4)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 30, 30\)"):
        VQNet((1, 30, 30))


def test_without_the_quantizer_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(BenchError, match=r"pip install 'purifybench\[defenses\]'"):
        build()


# ---------------------------------------------------------------------------------------------- the quantizer


def test_codes_are_the_nearest_vectors_of_the_codebook():
    net = build().net
    latents = torch.randn(5, 4, 7, 7, generator=generator(2))
    book = net.quantizer.codebook  # (32, 4)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = (flat[:, None] - book).square().sum(dim=2).argmin(dim=1)
    assert len(set(nearest.tolist())) > 10
    expected = book[nearest].view(5, 7, 7, 4).permute(0, 3, 1, 2)
    assert torch.equal(net.quantize(latents), expected)
    assert torch.equal(net.quantize(expected), expected), "a code is its own nearest"


def test_the_gradient_passes_straight_through_the_quantizer(images):
    defense = build()
    weights = torch.randn(24, 4, 7, 7, generator=generator(3))
    latents = defense.encode(images).detach().requires_grad_()
    (gradient,) = torch.autograd.grad((defense.net.quantize(latents) * weights).sum(), latents)
    assert torch.equal(gradient, weights)

    codes = defense.net.quantize(latents).detach().requires_grad_()
    (by_codes,) = torch.autograd.grad(defense.net.decode(codes).square().sum(), codes)
    attacked = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad((defense.encode(attacked) * by_codes).sum(), attacked)
    (found,) = torch.autograd.grad(defense.purify(attacked, generator()).square().sum(), attacked)
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, atol=1e-6)


def test_soft_codes_weigh_the_codebook_by_distance():
    """Two codes at squared distances 1 and 4, temperature 0.5 times 1: weights in the proportion of e^-2 to e^-8."""
    net = VQNet((1, 28, 28), width=8, codes=2, code_size=1)
    net.quantizer._codebook.embed[0, :, 0] = torch.tensor([1.0, -2.0])
    share = 1 / (1 + math.exp(-6))
    assert net.soft_quantize(torch.zeros(1, 1, 1, 1)).item() == pytest.approx(share * 1 + (1 - share) * -2, abs=1e-6)


def test_bpda_differentiates_soft_codes_of_the_same_draw_and_keeps_the_value(images):
    defense = build(VQVAENoise25)
    attacked = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(defense.surrogate_logits(attacked, generator(4)).sum(), attacked)
    soft = defense.net.decoder(defense.net.soft_quantize(defense.encode(defense.noisy(attacked, generator(4)))))
    (expected,) = torch.autograd.grad(soft.sum(), attacked)  # the classifier is the identity
    assert (expected.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert torch.allclose(found, expected, atol=1e-6)
    value = defense.surrogate_logits(images, generator(4))
    assert torch.allclose(value, defense.logits(images, generator(4)), atol=1e-6)


def test_the_codebook_starts_uniform_with_unit_variance_and_its_average_there():
    with training.global_seed(0):
        book = VQNet((1, 28, 28), width=8).quantizer._codebook
    assert book.embed.shape == (1, 512, 64)
    assert book.embed.abs().max() <= 3**0.5 and book.embed.var() == pytest.approx(1, abs=0.02)
    assert torch.equal(book.embed, book.embed_avg) and (book.cluster_size == 1).all()


def test_the_codebook_moves_in_training_and_never_in_eval_mode(images):
    defense = build()
    before = training.weights_hash(defense)
    for batch in (images, 1 - images):
        defense.purify(batch.clone().requires_grad_(), generator()).sum().backward()
        defense.decode(defense.encode(batch))
    assert training.weights_hash(defense) == before
    defense.train()
    defense.net.reconstruct(images)
    assert training.weights_hash(defense) != before


def test_one_training_step_moves_a_code_by_the_moving_average(images):
    """cluster size 0.99 * 1 + 0.01 * count; code = average / size, its Laplace smoothing by eps = 1e-5 included."""
    defense = build()
    book = defense.net.quantizer._codebook
    before = book.embed[0].clone()
    latents = defense.encode(images).detach()
    nearest = defense.net.quantizer(latents)[1].flatten()
    defense.train().net.reconstruct(images)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    counts = torch.bincount(nearest, minlength=32).float()
    sums = torch.zeros(32, 4).index_add(0, nearest, flat)
    size = 0.99 + 0.01 * counts
    smoothed = (size + 1e-5) / (size.sum() + 32e-5) * size.sum()
    assert torch.allclose(book.embed[0], (0.99 * before + 0.01 * sums) / smoothed[:, None], atol=1e-5)


# ---------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_the_mean_squared_error_and_a_quarter_of_the_commitment(monkeypatch, images):
    """A net that answers 0.5 and says 8 of its commitment."""
    defense = build(epochs=1, batch_size=24)
    nothing = 0 * next(defense.net.parameters()).sum()
    monkeypatch.setattr(defense.net, "reconstruct", lambda some: (0.5 + 0 * some + nothing, 8 + nothing))
    (found,) = asked(defense, noise_data((1, 28, 28)), generator())
    error = float((images.double() - 0.5).square().mean())
    assert found.batch_loss(images).item() == pytest.approx(error + 0.25 * 8, rel=1e-6)
    heavier = build(commitment=0.5)
    monkeypatch.setattr(heavier.net, "reconstruct", lambda some: (some, torch.tensor(8.0)))
    (found,) = asked(heavier, noise_data((1, 28, 28)), generator())
    assert found.batch_loss(images).item() == pytest.approx(0.5 * 8)


def test_the_commitment_is_the_mean_squared_distance_to_the_nearest_codes_and_moves_the_encoder_alone(images):
    defense = build()
    latents, codes = defense.encode(images).detach() + 0.1, defense.net.quantizer.codebook.clone()
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    apart = (flat[:, None] - codes).square().sum(dim=2).amin(dim=1)
    defense.train().net.encoder = _Gives(latents.requires_grad_())
    reconstruction, commitment = defense.net.reconstruct(images)
    assert commitment.item() == pytest.approx(float(apart.mean()) / 4, rel=1e-5) and commitment > 1e-4
    (gradient,) = torch.autograd.grad(commitment, latents, retain_graph=True)
    nearest = codes[(flat[:, None] - codes).square().sum(dim=2).argmin(dim=1)].view(24, 7, 7, 4).permute(0, 3, 1, 2)
    assert torch.allclose(gradient, 2 * (latents - nearest) / latents.numel(), atol=1e-8)
    assert torch.autograd.grad(reconstruction.sum(), latents)[0].abs().max() > 0, "the error moves the encoder, too"
    assert not any(one.requires_grad for one in defense.net.quantizer.parameters())


class _Gives(nn.Module):
    """Gives these latents, whatever the images."""

    def __init__(self, latents):
        super().__init__()
        self.latents = latents

    def forward(self, images):
        return self.latents


@pytest.mark.parametrize(("recipe", "rate", "width", "halfway"), [("paper", 2e-4, 128, 1), ("fast", 1e-3, 64, 0.5)])
def test_the_recipes_have_the_numbers_of_the_reports_code_and_fast_half_its_width(recipe, rate, width, halfway):
    with training.global_seed(0):
        defense = VQVAE(nn.Flatten(), **VQVAE.recipes[recipe])
    (found,) = asked(defense, noise_data((1, 28, 28)), generator())
    assert type(found.options["optimizer"]) is torch.optim.Adam and found.rates == [rate]
    assert (found.options["batch_size"], found.options["epochs"]) == (128, 6)
    assert found.options["schedule"](0.5) == pytest.approx(halfway)
    assert defense.commitment == 0.25 and defense.net.quantizer._codebook.decay == 0.99
    assert defense.net.quantizer.codebook.shape == (512, 64)
    sizes = [(one.out_channels, one.kernel_size[0]) for one in defense.net.encoder if isinstance(one, nn.Conv2d)]
    assert sizes == [(width // 2, 4), (width, 4), (width, 3), (64, 1)]


# ---------------------------------------------------------------------------------------------- the noise


@pytest.mark.parametrize(("cls", "sigma"), [(VQVAENoise25, 0.25), (VQVAENoise50, 0.5), (VQVAENoise75, 0.75)])
def test_the_noise_has_its_deviation_and_comes_from_the_generator_alone(cls, sigma, images):
    defense = build(cls)
    with training.global_seed(1):
        first = defense.noisy(images, generator(4)), defense.purify(images, generator(4))
    with training.global_seed(2):
        state = torch.get_rng_state()
        second = defense.noisy(images, generator(4)), defense.purify(images, generator(4))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    added = first[0] - images
    assert added.std() == pytest.approx(sigma, rel=0.02) and added.mean() == pytest.approx(0, abs=0.02)
    assert first[0].min() < 0 and first[0].max() > 1, "not clipped"
    assert cls.stochastic and not torch.equal(first[1], defense.purify(images, generator(5)))


def test_without_noise_the_image_itself_is_encoded(images):
    defense = build()
    assert defense.noisy(images, generator()) is images
    assert not VQVAE.stochastic and torch.equal(
        defense.purify(images, generator()), defense.purify(images, generator(1))
    )


def test_the_noise_is_drawn_in_training_too_and_the_target_is_clean(images, monkeypatch):
    """A net that returns its input has the loss sigma^2."""
    defense = build(VQVAENoise25, epochs=2)
    weight = next(defense.net.parameters())
    monkeypatch.setattr(defense.net, "reconstruct", lambda noisy: (noisy + 0 * weight.sum(), 0 * weight.sum()))
    seen = []
    monkeypatch.setattr(Progress, "checkpoint", lambda self, label, stateful, losses: seen.append(losses[-1]))
    defense.fit(noise_data((1, 28, 28)), generator(), Progress())
    assert seen == pytest.approx([0.25**2] * 2, rel=0.03)
    assert seen[0] != seen[1], "fresh noise each epoch"
