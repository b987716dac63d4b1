"""MagNet: its two scores, its thresholds and its loss against arithmetic by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from trainings import array, asked, noise, seeded

from bench import training
from bench.data import Split
from bench.progress import Progress
from defenses import magnet
from defenses.magnet import MagNet

SHAPES = [(1, 28, 28), (3, 32, 32)]


def built(shape=(1, 28, 28), **given) -> MagNet:
    with training.global_seed(0):
        return MagNet(nn.Flatten(), shape=shape, **given).eval()


def errors(defense: MagNet, images: torch.Tensor) -> np.ndarray:
    """Of each image the mean squared error of the first autoencoder and the mean absolute one of the second, (N, 2)."""
    first, second = (array(images) - array(net(images)) for net in (defense.reformer, defense.second))
    return np.stack([(first**2).mean(axis=(1, 2, 3)), np.abs(second).mean(axis=(1, 2, 3))], axis=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_score_is_the_larger_of_the_two_errors_over_their_thresholds(shape):
    defense, images = built(shape), noise(shape).test.images
    expected = errors(defense, images)
    assert np.abs(expected[:, 0] - expected[:, 1]).min() > 0.01, "or the detectors could not be told apart"
    assert np.allclose(array(defense._errors(images)), expected, atol=1e-6)
    for thresholds in ([0.05, 10.0], [10.0, 0.2], list(np.median(expected, axis=0))):
        defense.thresholds = torch.tensor(thresholds, dtype=torch.float32)
        found = array(defense.rejection_score(images, seeded()))
        assert found.shape == (24,) and np.allclose(found, (expected / thresholds).max(axis=1), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_are_reformed_by_the_first_autoencoder_whose_layers_are_the_authors(shape):
    defense, images = built(shape), noise(shape).test.images
    reformed = defense.purify(images, seeded())
    assert torch.equal(reformed, defense.reformer(images)) and reformed.shape == images.shape
    assert 0 < reformed.min() <= reformed.max() < 1
    channels = shape[0]
    layers = {
        "reformer": [(channels, 3), "AvgPool2d", (3, 3), (3, 3), "Upsample", (3, 3), (3, channels)],
        "second": [(channels, 3), (3, 3), (3, channels)],
    }
    for name, expected in layers.items():
        modules = [one for one in getattr(defense, name) if not isinstance(one, nn.Sigmoid)]
        assert expected == [
            (one.in_channels, one.out_channels) if isinstance(one, nn.Conv2d) else type(one).__name__ for one in modules
        ]
        convolutions = [one for one in modules if isinstance(one, nn.Conv2d)]
        assert all(one.kernel_size == (3, 3) and not one.bias.any() for one in convolutions)
        assert sum(isinstance(one, nn.Sigmoid) for one in getattr(defense, name)) == len(convolutions)


@pytest.mark.parametrize(("n", "drop_rate", "dropped"), [(999, 0.001, 0), (1999, 0.001, 1), (150, 0.1, 15), (70, 0, 0)])
def test_each_threshold_drops_the_whole_number_of_images_below_its_share(n, drop_rate, dropped, monkeypatch):
    """The errors are the images' first two pixels, in different orders."""
    defense = built(drop_rate=drop_rate)
    images = torch.zeros(n, 1, 28, 28)
    for pixel in (0, 1):
        images[:, 0, 0, pixel] = (torch.randperm(n, generator=seeded(pixel)) + 1) / n
    monkeypatch.setattr(defense, "_errors", lambda some: some[:, 0, 0, :2])
    defense.thresholds = defense._chosen(images)
    over = images[:, 0, 0, :2] > defense.thresholds
    assert over.sum(dim=0).tolist() == [dropped, dropped]
    assert defense.thresholds.tolist() == pytest.approx([(n - dropped) / n] * 2, abs=1e-7), "an error that was seen"
    assert torch.equal(defense.rejection_score(images, seeded()) > 1, over.any(dim=1))


def test_thresholds_come_from_the_first_validation_images_and_from_no_others(monkeypatch):
    """Training and test images are not even numbers; of 24 validation images only 20 are looked at."""
    assert magnet.VALIDATION == 5000
    monkeypatch.setattr(magnet, "VALIDATION", 20)
    data = noise()
    unknown = Split(torch.full_like(data.train.images, torch.nan), data.train.labels)
    spoiled = data.validation.images.clone()
    spoiled[20:] = torch.nan
    poisoned = dataclasses.replace(
        data, train=unknown, validation=Split(spoiled, data.validation.labels), test=unknown
    )  # fmt: skip
    defense = built(drop_rate=0.1)
    asked(defense, poisoned, seeded())
    expected = np.sort(errors(defense, data.validation.images[:20]), axis=0)[17]
    assert np.allclose(array(defense.thresholds), expected, atol=1e-6)


def test_both_autoencoders_learn_to_remove_one_draw_of_noise_that_is_clipped():
    data = noise()
    data.train.images[0] = 0.5
    first, second = asked(built(), data, seeded(3))
    noisy = first.tensors[0]
    expected = array(data.train.images) + 0.1 * array(torch.randn(data.train.images.shape, generator=seeded(3)))
    assert (expected < 0).any() and (expected > 1).any()
    assert np.allclose(array(noisy), expected.clip(0, 1), atol=1e-6)
    assert float((noisy[0] - 0.5).std()) == pytest.approx(0.1, rel=0.1)
    for training_of in (first, second):
        assert torch.equal(training_of.tensors[0], noisy) and training_of.tensors[1] is data.train.images
        once, again = (training_of.batch_loss(*training_of.tensors) for _ in range(2))
        assert torch.equal(once, again), "no noise is drawn in training"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_is_the_mean_squared_error_and_the_weighted_squares_of_all_activations(shape):
    """Nets without weights: each activation is a half, so the squares are a quarter of their number."""
    data, (channels, height, side) = noise(shape), shape
    pixels = height * side
    activations = [3 * pixels + 2 * 3 * pixels // 4 + 3 * pixels + channels * pixels, (3 + 3 + channels) * pixels]
    for weight in (1e-3, 0.0):
        defense = built(shape, activity=weight)
        for parameter in defense.parameters():
            nn.init.zeros_(parameter)
        for training_of, number in zip(asked(defense, data, seeded()), activations, strict=True):
            noisy, clean = (part[:5] for part in training_of.tensors)
            expected = ((0.5 - array(clean)) ** 2).mean() + weight * 0.25 * 5 * number
            assert training_of.batch_loss(noisy, clean).item() == pytest.approx(expected, rel=1e-5)


def test_the_numbers_are_those_of_the_authors_code():
    defense = built(**MagNet.recipes["paper"])
    assert (defense.noise, defense.drop_rate, defense.activity) == (0.1, 0.001, 1e-9)
    trainings = asked(defense, noise(), seeded())
    assert [one.module for one in trainings] == [defense.reformer, defense.second]
    for one in trainings:
        assert isinstance(one.options["optimizer"], torch.optim.Adam) and one.rates == [1e-3]
        assert (one.options["epochs"], one.options["batch_size"]) == (100, 256)
    assert dict(MagNet.recipes["fast"]) == {"epochs": 20}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_step_moves_every_layer_and_the_thresholds(shape):
    defense, data = built(shape, epochs=1, batch_size=24), noise(shape)
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    defense.fit(data, seeded(), Progress())
    assert all(not torch.equal(value, before[name]) for name, value in defense.state_dict().items())
    assert np.allclose(array(defense.thresholds), errors(defense, data.validation.images).max(axis=0), atol=1e-6)
    assert (defense.rejection_score(data.validation.images, seeded()) <= 1).all(), "24 images are too few to drop one"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shape": (1, 27, 28)}, "even sides"),
        ({"drop_rate": 1.0}, "0 <= drop_rate < 1"),
        ({"drop_rate": -0.1}, "0 <= drop_rate < 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        built(**wrong)
