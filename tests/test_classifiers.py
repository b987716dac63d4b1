"""The classifiers of Defense-GAN and MagNet and their ports, layer by layer, parameter by parameter, by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from bench import classifiers, training
from bench.catalog import CLASSIFIERS, PORTS
from bench.errors import BenchError
from bench.progress import Progress

# Sizes on 28x28: model A keeps 28 (padding 2), then (28 - 5) // 2 + 1 = 12, so 64 * 12 * 12 = 9216 features.
# Model B: (28 + 2 * 3 - 8) // 2 + 1 = 14, (14 - 6) // 2 + 1 = 5, 5 - 5 + 1 = 1, so 128 features.
# Model C keeps 28 (padding 1), then 12 like A. D and E see the 784 pixels, F is B.
# MagNet's: 28, 26, 24, pooled 12, 10, 8, pooled 4, so 64 * 16 = 1024; MAD-VAE's with padding 1: 28, 14, 7, so 3136.
# MAD-VAE's B: (28 + 2 * 5 - 8) // 2 + 1 = 16, 6, 2, so 128 * 4 = 512 features. cnet: 26, 24, pooled 12, so 9216.
_STRIDED = (64 * 64 + 64) + (64 * 128 * 36 + 128) + (128 * 128 * 25 + 128)
_DENSE = (784 * 200 + 200) + (200 * 200 + 200) + (200 * 10 + 10)
_STAGES = (32 * 9 + 32) + (32 * 32 * 9 + 32) + (32 * 64 * 9 + 64) + (64 * 64 * 9 + 64)
PARAMETERS = {
    "A": (64 * 25 + 64) + (64 * 64 * 25 + 64) + (9216 * 128 + 128) + (128 * 10 + 10),
    "B": _STRIDED + (128 * 10 + 10),
    "C": (128 * 9 + 128) + (128 * 64 * 25 + 64) + (9216 * 128 + 128) + (128 * 10 + 10),
    "D": _DENSE,
    "E": _DENSE,
    "F": _STRIDED + (128 * 10 + 10),
    "magnet": _STAGES + (1024 * 200 + 200) + (200 * 200 + 200) + (200 * 10 + 10),
    "B_madvae": _STRIDED + (512 * 10 + 10),
    "D_madvae": _DENSE,
    "magnet_madvae": _STAGES + (3136 * 200 + 200) + (200 * 10 + 10),
    "cnet": (32 * 9 + 32) + (32 * 64 * 9 + 64) + (9216 * 128 + 128) + (128 * 10 + 10),
}
FEATURES = {
    "A": 9216, "B": 128, "C": 9216, "D": 784, "E": 784, "F": 128, "magnet": 1024, "B_madvae": 512, "D_madvae": 784,
    "magnet_madvae": 3136, "cnet": 9216,
}  # fmt: skip
DROPOUT = {  # the rate, and what stands right before it
    "A": [(0.25, nn.Flatten), (0.5, nn.ReLU)],
    "B": [(0.2, None), (0.5, nn.ReLU)],
    "C": [(0.25, nn.Flatten), (0.5, nn.ReLU)],
    "D": [(0.5, nn.ReLU)],
    "E": [],
    "F": [],
    "magnet": [(0.5, nn.ReLU)],
    "B_madvae": [(0.2, None), (0.5, nn.ReLU)],
    "D_madvae": [(0.5, nn.ReLU), (0.25, nn.ReLU)],
    "magnet_madvae": [],
    "cnet": [(0.25, nn.MaxPool2d), (0.5, nn.ReLU)],
}
WHOLE_CHANNELS = {("B_madvae", 0.2), ("cnet", 0.25)}
_OF_B = [(8, 2), (6, 2), (5, 1)]
KERNELS = {  # size, stride
    "A": [(5, 1), (5, 2)], "B": _OF_B, "C": [(3, 1), (5, 2)], "D": [], "E": [], "F": _OF_B, "magnet": [(3, 1)] * 4,
    "B_madvae": _OF_B, "D_madvae": [], "magnet_madvae": [(3, 1)] * 4, "cnet": [(3, 1)] * 2,
}  # fmt: skip


def layers(name: str, kind: type) -> list:
    return [layer for layer in classifiers.build(name) if isinstance(layer, kind)]


def test_the_catalog_names_exactly_what_can_be_built():
    assert set(CLASSIFIERS) == set(classifiers.BUILDERS) == set(PARAMETERS) == set(FEATURES) == set(KERNELS)
    assert set(PORTS) < set(CLASSIFIERS)


@pytest.mark.parametrize("name", PORTS)
def test_ports_are_listed_as_such(name, command):
    _, out, _ = command("list", "classifiers")
    (line,) = (line for line in out.splitlines() if line.split()[0] == name)
    assert "only for that paper's own evaluation" in line
    assert "own evaluation" not in next(line for line in out.splitlines() if line.startswith("B "))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_the_paper_implies(name):
    assert sum(parameter.numel() for parameter in classifiers.build(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", FEATURES)
def test_convolutions_leave_the_features_that_the_sizes_give(name):
    assert layers(name, nn.Linear)[0].in_features == FEATURES[name]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_and_strides(name):
    convolutions = layers(name, nn.Conv2d)
    assert [(layer.kernel_size, layer.stride) for layer in convolutions] == [
        ((size, size), (stride, stride)) for size, stride in KERNELS[name]
    ]


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_rates_and_places(name):
    net = list(classifiers.build(name))
    drops = [(i, layer) for i, layer in enumerate(net) if isinstance(layer, nn.Dropout | nn.Dropout2d)]
    assert [(layer.p, type(net[i - 1]) if i else None) for i, layer in drops] == DROPOUT[name]
    assert {(name, layer.p) for _, layer in drops if isinstance(layer, nn.Dropout2d)} == {
        one for one in WHOLE_CHANNELS if one[0] == name
    }


@pytest.mark.parametrize("name", classifiers.BUILDERS)
def test_every_net_trains_without_a_warning(name):
    net = classifiers.build(name).train()
    with training.global_seed(0):
        assert net(torch.rand(2, 1, 28, 28)).isfinite().all()


def test_dropout_on_the_input_of_b_drops_pixels_and_not_images_or_channels():
    dropout = classifiers.build("B").train()[0]
    with training.global_seed(0):
        dropped = dropout(torch.ones(4, 3, 50, 50)).eq(0).float()
    for share in (*dropped.mean(dim=(1, 2, 3)), *dropped.mean(dim=(0, 2, 3))):
        assert share == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((3, 32, 32), 7), ((3, 64, 64), 2)])
def test_logits_have_a_row_an_image_and_a_column_a_class(name, shape, classes):
    net = classifiers.build(name, shape, classes)
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    logits = net(images)
    assert logits.shape == (3, classes)
    assert torch.allclose(net(images[1:2]), logits[1:2], atol=1e-6)
    assert (logits.sum(dim=1) - 1).abs().max() > 1e-3, "these would be probabilities"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_new_classifier_is_in_eval_mode(name):
    assert not any(module.training for module in classifiers.build(name).modules())


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = training.weights_hash(classifiers.build("B", seed=3))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert training.weights_hash(classifiers.build("B", seed=3)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert training.weights_hash(classifiers.build("B", seed=4)) != first


def test_an_unknown_classifier_is_refused_with_what_there_is():
    with pytest.raises(
        BenchError, match=r"no classifier is called 'Z'; there are: A, B, B_madvae, C, .* \(purifybench list"
    ):
        classifiers.build("Z")


@pytest.fixture
def few_digits(digits, monkeypatch):
    """64 training images and one optimizer step."""
    monkeypatch.setattr(classifiers, "RECIPE", {**classifiers.RECIPE, "epochs": 1, "minimum_steps": 1})
    return dataclasses.replace(digits, train=digits.train[:64])


def test_a_trained_classifier_is_frozen_and_in_eval_mode(few_digits):
    net, found = classifiers.trained("C", few_digits, Progress())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in net.modules())
    assert found == training.weights_hash(net)
    assert found != training.weights_hash(classifiers.build("C"))


def test_training_looks_at_nothing_but_the_training_split(few_digits):
    other = dataclasses.replace(few_digits, validation=few_digits.test[:9], test=few_digits.validation[:3])
    hashes = set()
    for seen in (few_digits, other):
        net = classifiers.build("B", seen.shape)
        classifiers.fit(net, seen, torch.Generator().manual_seed(0), Progress())
        hashes.add(training.weights_hash(net))
    assert len(hashes) == 1
