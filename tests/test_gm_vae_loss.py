"""GM-VAE's losses against the paper's equations, written out: what is summed, what is averaged, where the noise is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn
from trainings import SHAPES, Asked, array, asked, noise, seeded

from bench import training
from bench.data import Dataset, Split
from bench.progress import Progress
from defenses.gm_vae import GMVAE, GMVAESemi, GMVAEVariable

TINY = {"width": 4, "hidden": 16}
LABELS = np.arange(24) % 10


def built(cls: type[GMVAE] = GMVAE, **given) -> GMVAE:
    with training.global_seed(0):
        return cls(nn.Identity(), **{**cls.recipes["paper"], **TINY, **given}).eval()


def value(found: Asked, *batch: torch.Tensor) -> float:
    """The loss of a batch, by the noise of seed 5."""
    found.options["generator"].manual_seed(5)
    return float(found.batch_loss(*batch).detach())


def squared_errors(defense: GMVAE, images: torch.Tensor, deviation: np.ndarray | float) -> np.ndarray:
    """The sum of squares over each image's pixels, its code moved by the noise of seed 5, (N,)."""
    code = defense.encode(images)
    moved = array(code) + deviation * array(torch.randn(code.shape, generator=seeded(5)))
    decoded = array(defense.decode(torch.as_tensor(moved, dtype=torch.float32)))
    return ((decoded - array(images)) ** 2).sum(axis=(1, 2, 3))


def to_means(defense: GMVAE, images: torch.Tensor) -> np.ndarray:
    """The sum of squares over the latent dimensions between each image's code and each one-hot mean, (N, K)."""
    code = array(defense.encode(images))
    return ((code[:, None] - np.eye(10, code.shape[1])) ** 2).sum(axis=2)


@pytest.mark.parametrize(
    "given",
    [{}, {"variance": 0.25, "latent_weight": 3.0}, {"latent": 13, "latent_weight": 3.0}, {"shape": (3, 32, 32)}],
)
def test_equation_7_sums_over_pixels_and_dimensions_and_its_noise_is_in_the_reconstruction_alone(given):
    defense, data = built(**given), noise(given.get("shape", (1, 28, 28)))
    (found,) = asked(defense, data, seeded())
    apart = to_means(defense, data.train.images)[np.arange(24), LABELS]
    error = squared_errors(defense, data.train.images, given.get("variance", 1 / 3000) ** 0.5)
    expected = (error + given.get("latent_weight", 1500.0) * apart).mean()
    assert value(found, data.train.images, data.train.labels) == pytest.approx(expected, rel=1e-5)
    assert abs(error.sum() - squared_errors(defense, data.train.images, 0).sum()) > 1e-3, "the noise is felt"
    assert torch.equal(found.tensors[0], data.train.images) and torch.equal(found.tensors[1], data.train.labels)


def test_of_variable_entropy_each_dimension_has_its_own_noise_and_pays_for_its_variance():
    defense, data = built(GMVAEVariable, latent_weight=3.0), noise()
    nn.init.normal_(defense.nearest.encoder[-1].bias, 0, 1, generator=seeded(2))
    (found,) = asked(defense, data, seeded())
    mean, log_variance = (array(part) for part in defense.nearest.encoder(data.train.images).chunk(2, dim=1))
    assert np.ptp(log_variance) > 1
    apart = ((mean - np.eye(10)[LABELS]) ** 2).sum(axis=1)
    entropy = (np.exp(log_variance) - log_variance - 1).sum(axis=1)
    error = squared_errors(defense, data.train.images, np.exp(log_variance / 2))
    expected = (error + 3.0 * (apart + entropy)).mean()
    assert value(found, data.train.images, data.train.labels) == pytest.approx(expected, rel=1e-5)


def one_image(labels: int = 0) -> Dataset:
    """24 times the same image, all of one class."""
    data = noise()
    train = Split(data.train.images[:1].expand(24, -1, -1, -1).clone(), torch.full((24,), labels))
    return dataclasses.replace(data, train=train)


def test_equation_3_has_the_density_of_the_whole_mixture_whose_weight_grows_over_the_first_half():
    """What it adds to a batch is minus the log of the sum of exp(-alpha |f - mu_k|^2), averaged over the batch."""
    defense, data = built(GMVAESemi, latent_weight=0.7, labels_per_class=2, labelled_batch=5), noise()
    (found,) = asked(defense, data, seeded())
    losses = {}
    for share in (0.0, 0.25, 0.5, 0.9):
        assert found.options["schedule"](share) == pytest.approx((1 + np.cos(np.pi * share)) / 2)
        losses[share] = value(found, data.train.images, data.train.labels)
    density = -logsumexp(-0.7 * to_means(defense, data.train.images), axis=1).mean()
    steps = [losses[share] - losses[0.0] for share in (0.25, 0.5, 0.9)]
    assert steps == pytest.approx([density / 2, density, density], rel=1e-3)
    assert abs(density - 0.7 * to_means(defense, data.train.images).min(axis=1).mean()) > 0.1, "not the nearest mean's"


def test_of_the_unlabelled_only_the_reconstruction_counts_at_first_beside_equation_7_of_the_labelled():
    """Every image is the same one, labelled 3, and next to no noise: both batches' errors are one number."""
    defense = built(GMVAESemi, variance=1e-14, latent_weight=3.0, labels_per_class=2, labelled_batch=5)
    data = one_image(3)
    (found,) = asked(defense, data, seeded())
    found.options["schedule"](0.0)
    error = squared_errors(defense, data.train.images, 0)[0]
    apart = to_means(defense, data.train.images)[0, 3]
    misled = (data.train.labels + 4) % 10  # the batch's own labels are not looked at
    assert value(found, data.train.images, misled) == pytest.approx(2 * error + 3.0 * apart, rel=1e-5)


@pytest.mark.parametrize("cls", [GMVAE, GMVAEVariable, GMVAESemi])
def test_what_the_paper_states_and_what_ours_is_are_the_defaults(cls):
    defense = built(cls)
    assert defense.variance == 1 / 3000 and defense.latent_weight == 1500 == 0.5 / defense.variance
    assert (defense.level, defense.thresholds, defense.covariance) == (0.9973, "chi_square", "class")
    assert defense.entropy == ("variable" if cls is GMVAEVariable else "constant")
    assert defense.labels_per_class == (100 if cls is GMVAESemi else 0)
    (found,) = asked(defense, noise(), seeded())
    assert isinstance(found.options["optimizer"], torch.optim.Adam)
    assert set(found.options["optimizer"].param_groups[0]["params"]) == set(defense.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cls", [GMVAEVariable, GMVAESemi])
def test_one_step_moves_every_layer_on_images_of_any_size(cls, shape):
    options = {"labels_per_class": 1, "labelled_batch": 4} if cls is GMVAESemi else {}
    defense, data = built(cls, shape=shape, epochs=1, minimum_steps=0, batch_size=24, **options), noise(shape)
    before = {name: weight.clone() for name, weight in defense.named_parameters()}
    defense.fit(data, seeded(), Progress())
    assert all(not torch.equal(weight, before[name]) for name, weight in defense.named_parameters())
    assert defense.purify(data.test.images, seeded()).shape == data.test.images.shape
    assert defense.logits(data.test.images, seeded()).shape == (24, 10)
