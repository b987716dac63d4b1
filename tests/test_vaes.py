"""The VAEs that others are built from, Defense-VAE and Identity VAE: their losses and numbers, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from trainings import SHAPES, Asked, array, asked, noise, seeded

from bench import training
from bench.progress import Progress
from defenses import defense_vae, pairs
from defenses.defense_vae import DefenseVAE
from defenses.identity_vae import IdentityVAE, SampledIdentityVAE
from defenses.vae import VAEPurifier, evidence_loss

SMALL = {"width": 4, "latent": 8}


def built(cls: type[VAEPurifier], shape=(1, 28, 28), **given) -> VAEPurifier:
    with training.global_seed(0):
        linear = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 10)).requires_grad_(False)
        return cls(linear, shape=shape, **{**SMALL, **given}).eval()


@pytest.fixture
def given_pairs(monkeypatch):
    """Defense-VAE gets these pairs, (attacked images, rows), and what it asked for is kept."""
    attacked = torch.rand(30, 1, 28, 28, generator=seeded(4))
    rows = torch.randperm(24, generator=seeded(4)).repeat(2)[:30]
    calls = []

    def make(classifier, data, jobs, progress, **options):
        calls.append((classifier, jobs, options))
        return pairs.Pairs(attacked, rows)

    monkeypatch.setattr(defense_vae, "attacked_pairs", make)
    return attacked, rows, calls


def terms(defense: VAEPurifier, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Binary cross-entropy of each pixel (N, C, H, W), decoded from codes drawn by seed 5, and the divergence from
    N(0, I) of each latent dimension (N, D)."""
    mean, log_variance = (array(part) for part in defense.posterior(inputs))
    drawn = mean + np.exp(log_variance / 2) * array(torch.randn(mean.shape, generator=seeded(5)))
    decoded, clean = array(defense.decode(torch.as_tensor(drawn, dtype=torch.float32))), array(targets)
    divergence = (np.exp(log_variance) + mean**2 - 1 - log_variance) / 2
    return -(clean * np.log(decoded) + (1 - clean) * np.log(1 - decoded)), divergence


def value(found: Asked, *batch: torch.Tensor) -> float:
    """The loss of a batch, by the noise of seed 5."""
    found.options["generator"].manual_seed(5)
    return float(found.batch_loss(*batch).detach())


def spread(defense: VAEPurifier) -> VAEPurifier:
    """The same with means and variances far from those of N(0, I), and layers whose answers differ among images."""
    for head in (defense.vae.mean, defense.vae.log_variance):
        nn.init.normal_(head.bias, 0.5, 1, generator=seeded(2))
    for layer in [*defense.vae.encoder, *defense.vae.decoder]:
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, 0.2, generator=seeded(2))
    images = noise().test.images
    means, variances = (array(part).std(axis=0).mean() for part in defense.posterior(images))
    assert min(means, variances, array(defense.purify(images, seeded())).std(axis=0).mean()) > 0.01
    return defense


# ---------------------------------------------------------------------------------------------- the evidence


def test_the_evidence_loss_averages_both_its_terms():
    """By hand: two images of two pixels, three latent dimensions."""
    decoded, images = np.array([[0.9, 0.2], [0.5, 0.3]]), np.array([[1.0, 0.0], [0.25, 1.0]])
    mean = np.array([[0.0, 1.0, -2.0], [3.0, 0.0, 0.5]])
    variance = np.array([[1.0, 2.0, 0.5], [1.0, 4.0, 1.0]])
    entropies = [-np.log(0.9), -np.log(0.8), -np.log(0.5), -np.log(0.3)]
    divergences = [0, 1 - np.log(2) / 2, (3.5 + np.log(2)) / 2, 4.5, (3 - np.log(4)) / 2, 0.125]
    given = [torch.from_numpy(part) for part in (decoded, images, mean, np.log(variance))]
    for weight in (0.0, 0.1, 2.0):
        expected = sum(entropies) / 4 + weight * sum(divergences) / 6
        assert evidence_loss(*given, weight).item() == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------------------------------------- Identity VAE


def test_identity_vae_averages_over_pixels_and_over_dimensions():
    data = noise()
    for weight in (0.1, 0.0):
        defense = spread(built(IdentityVAE, kl_weight=weight))
        (found,) = asked(defense, data, seeded())
        (images,) = found.tensors
        assert images is data.train.images, "clean images alone"
        entropy, divergence = terms(defense, images, images)
        assert divergence.mean() > 0.3
        assert value(found, images) == pytest.approx(entropy.mean() + weight * divergence.mean(), rel=1e-5)


def test_identity_vaes_recipes_have_the_numbers_of_mad_vaes_identity_row_and_fast_half_its_width():
    defense = built(IdentityVAE, **IdentityVAE.recipes["paper"], epochs=3000)
    (found,) = asked(defense, noise(), seeded())
    schedule = found.options["schedule"]
    assert [schedule(epoch / 3000) for epoch in (0, 1, 2, 100)] == pytest.approx([1, 0.998, 0.998**2, 0.998**100])
    assert found.rates[0] * schedule(1.0) == pytest.approx(1e-5), "the floor"
    assert published(IdentityVAE) == {
        "rate": 1e-3, "batch_size": 512, "epochs": 10, "minimum_steps": 0, "clip_norm": 1.0, "weight": 0.1,
        "widths": {64, 128, 256}, "latent": 128, "halfway": 0.998**5,
    }  # fmt: skip
    assert published(IdentityVAE, "fast") == {
        "rate": 1e-3, "batch_size": 128, "epochs": 5, "minimum_steps": 600, "clip_norm": 1.0, "weight": 0.1,
        "widths": {32, 64, 128}, "latent": 128, "halfway": 0.5,
    }  # fmt: skip
    assert SampledIdentityVAE.recipes == IdentityVAE.recipes


def published(cls: type[VAEPurifier], recipe: str = "paper") -> dict[str, object]:
    """What a recipe asks of the training loop, and the sizes of its net."""
    with training.global_seed(0):
        defense = cls(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), **cls.recipes[recipe])
    (found,) = asked(defense, noise(), seeded())
    optimizer = found.options["optimizer"]
    assert type(optimizer) is torch.optim.Adam and found.module is defense.vae
    assert set(optimizer.param_groups[0]["params"]) == set(defense.vae.parameters())
    options = {name: found.options.get(name) for name in ("batch_size", "epochs", "minimum_steps", "clip_norm")}
    convolutions = [layer for layer in defense.vae.encoder if isinstance(layer, nn.Conv2d)]
    return {
        **options, "rate": found.rates[0], "weight": defense.kl_weight, "latent": defense.vae.mean.out_features,
        "widths": {layer.out_channels for layer in convolutions}, "halfway": found.options["schedule"](0.5),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- Defense-VAE


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_defense_vae_sums_over_pixels_and_dimensions_and_its_target_is_the_clean_image(weight, given_pairs):
    attacked, rows, _ = given_pairs
    defense, data = spread(built(DefenseVAE, kl_weight=weight)), noise()
    (found,) = asked(defense, data, seeded())
    assert torch.equal(found.tensors[0], attacked) and torch.equal(found.tensors[1], data.train.images[rows])
    entropy, divergence = terms(defense, attacked, data.train.images[rows])
    expected = (entropy.sum() + weight * divergence.sum()) / 30  # the code does not divide: Adam does not feel it
    assert value(found, *found.tensors) == pytest.approx(expected, rel=1e-5)


def test_defense_vaes_recipes_have_the_numbers_of_its_code_and_a_tenth_of_its_pairs(given_pairs):
    _, _, calls = given_pairs
    assert published(DefenseVAE) == {
        "rate": 5e-4, "batch_size": 16, "epochs": 5, "minimum_steps": 0, "clip_norm": None, "weight": 0.0,
        "widths": {64, 128, 256}, "latent": 128, "halfway": 1.0,
    }  # fmt: skip
    assert published(DefenseVAE, "fast") == {
        "rate": 1e-3, "batch_size": 64, "epochs": 2, "minimum_steps": 600, "clip_norm": None, "weight": 0.0,
        "widths": {32, 64, 128}, "latent": 128, "halfway": 0.5,
    }  # fmt: skip
    for _, jobs, options in calls:
        assert options == {"labels": "predicted"}
        assert [job.params["eps"] for job in jobs if job.attack == "fgsm"] == [0.2, 0.25, 0.3, 0.35]
        random = [(job.params["eps"], job.params["alpha"]) for job in jobs if job.attack == "r_fgsm"]
        assert random == [(0.2, 0.05), (0.25, 0.05), (0.3, 0.05), (0.35, 0.05)]
        cw = [job.params for job in jobs if job.attack == "cw_l2"]
        assert [params["learning_rate"] for params in cw] == pytest.approx([6, 8, 10, 12])
        assert {(params["searches"], params["steps"], params["constant"]) for params in cw} == {(1, 100, 100.0)}
        assert len(jobs) == 12
    paper, fast = (jobs for _, jobs, _ in calls)
    assert sum(round(job.share * 50_000) for job in paper) == 12 * 50_000
    assert sum(round(job.share * 50_000) for job in fast) == 60_000
    assert sum(round(job.share * 50_000) for job in fast if job.attack == "cw_l2") == 5_000


# ---------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cls", [DefenseVAE, IdentityVAE, SampledIdentityVAE], ids=lambda cls: cls.__name__)
def test_one_step_moves_every_layer_on_images_of_any_size(cls, shape):
    """Defense-VAE makes its own pairs here, by all of its attacks; without a weight of the KL divergence, too, the
    variances learn, as codes are drawn."""
    given = {"sign_share": 0.1, "cw_share": 0.05} if cls is DefenseVAE else {}
    defense, data = built(cls, shape, epochs=1, batch_size=24, **given), noise(shape)
    before = {name: weight.clone() for name, weight in defense.named_parameters()}
    defense.fit(data, seeded(), Progress())
    assert all(not torch.equal(weight, before[name]) for name, weight in defense.named_parameters())
    images = data.test.images
    purified = defense.purify(images, seeded())
    assert purified.shape == images.shape and 0 <= purified.min() <= purified.max() <= 1
    mean, log_variance = defense.posterior(images)
    assert mean.shape == log_variance.shape == (24, 8)
    decodes_the_mean = torch.allclose(purified, defense.decode(mean))
    assert decodes_the_mean == (cls is not SampledIdentityVAE)
