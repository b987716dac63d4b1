"""Attacks against other implementations at equal settings, where those are installed (the extra `peers`)."""

from __future__ import annotations

import sys
import types
import warnings

import pytest
import torch
from torch import Tensor, nn

from bench import attacks, threat
from bench.attacks import losses
from bench.data import Dataset
from bench.draws import ImageDraws


def attack(name: str, net: nn.Module, images: Tensor, labels: Tensor, **params) -> Tensor:
    draws = ImageDraws.derived(torch.arange(len(images)), "test")
    return attacks.get(name)(net, images, labels, draws=draws, **params).images


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("foolbox")


@pytest.fixture
def adv_lib(monkeypatch):
    """adv-lib's attacks; it imports visdom for pictures that are not drawn here."""
    stub = types.ModuleType("visdom")
    stub.Visdom = object
    monkeypatch.setitem(sys.modules, "visdom", stub)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("adv_lib.attacks", reason="needs pip install --no-deps adv-lib tqdm")


@pytest.fixture(scope="module")
def net(digits: Dataset) -> nn.Module:
    """A small net trained on digits for seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(10):
            for rows in torch.randperm(len(digits.train.images)).split(64):
                optimizer.zero_grad()
                losses.cross_entropy(net(digits.train.images[rows]), digits.train.labels[rows]).mean().backward()
                optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch(digits: Dataset, net: nn.Module) -> tuple[Tensor, Tensor]:
    images = digits.test.images[:60]
    return images, threat.predictions(net, images)


def median(net: nn.Module, found: Tensor, images: Tensor, labels: Tensor) -> float:
    """The median L2 distance, where an image that is not broken is infinitely far."""
    distance = (found - images).flatten(1).norm(dim=1)
    return float(torch.where(threat.predictions(net, found) != labels, distance, torch.inf).median())


@pytest.mark.parametrize("steps, size", [(10, 0.02), (40, 0.01)])
def test_i_fgsm_is_foolbox_s(steps, size, foolbox, net, batch):
    theirs = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=size, steps=steps, random_start=False)
    model, criterion = foolbox.PyTorchModel(net, bounds=(0, 1)), foolbox.criteria.Misclassification(batch[1])
    found = theirs.run(model, batch[0], criterion, epsilon=0.3)
    assert torch.allclose(attack("i_fgsm", net, *batch, eps=0.3, steps=steps, step_size=size), found, atol=1e-6)


def test_i_fgsm_is_torchattacks(net, batch):
    torchattacks = pytest.importorskip("torchattacks")
    found = torchattacks.BIM(net, eps=0.2, alpha=0.01, steps=30)(*batch)
    assert torch.allclose(attack("i_fgsm", net, *batch, eps=0.2, steps=30, step_size=0.01), found, atol=1e-6)


def test_mi_fgsm_is_torchattacks(net, batch):
    torchattacks = pytest.importorskip("torchattacks")
    found = torchattacks.MIFGSM(net, eps=0.3, alpha=0.01, steps=40, decay=1.0)(*batch)
    ours = attack("mi_fgsm", net, *batch, eps=0.3)
    same = (ours - found).abs().flatten(1).amax(dim=1) < 1e-5
    assert float(same.float().mean()) > 0.95  # a sum of gradients near zero may take another sign by rounding


def test_deepfool_is_as_near_as_foolbox_s(foolbox, net, batch):
    model, criterion = foolbox.PyTorchModel(net, bounds=(0, 1)), foolbox.criteria.Misclassification(batch[1])
    theirs = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02).run(model, batch[0], criterion)
    assert median(net, attack("deepfool", net, *batch), *batch) <= 1.02 * median(net, theirs, *batch)


def test_deepfool_is_as_near_as_adv_lib_s(adv_lib, net, batch):
    theirs = adv_lib.deepfool.df(net, *batch, steps=50, overshoot=0.02)
    assert median(net, attack("deepfool", net, *batch), *batch) <= 1.02 * median(net, theirs, *batch)


SEARCH = {"searches": 6, "steps": 200, "learning_rate": 0.02, "constant": 0.1}


@pytest.mark.parametrize("box", ["clip", "tanh"])
def test_carlini_wagner_is_as_near_as_foolbox_s(box, foolbox, net, batch):
    theirs = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, steps=200, stepsize=0.02, initial_const=0.1, abort_early=False
    )
    model, criterion = foolbox.PyTorchModel(net, bounds=(0, 1)), foolbox.criteria.Misclassification(batch[1])
    found = theirs.run(model, batch[0], criterion)
    assert median(net, attack("cw_l2", net, *batch, **SEARCH, box=box), *batch) <= 1.02 * median(net, found, *batch)


@pytest.mark.parametrize("box", ["clip", "tanh"])
def test_carlini_wagner_is_as_near_as_adv_lib_s(box, adv_lib, net, batch):
    found = adv_lib.carlini_wagner_l2(
        net, *batch, learning_rate=0.02, initial_const=0.1, binary_search_steps=6, max_iterations=200, abort_early=False
    )
    assert median(net, attack("cw_l2", net, *batch, **SEARCH, box=box), *batch) <= 1.02 * median(net, found, *batch)
