"""PixelDefend: the PixelCNN sees all that comes before and nothing else, kept features give the levels of the whole
net, greedy choices are those worked out by hand, and purified images are likelier."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset, Split
from bench.progress import Progress
from defenses.pixel_cnn import PixelCNN
from defenses.pixel_defend import PixelDefend, to_levels

SMALL = {"width": 8, "dilations": (1, 2)}


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def build_net(shape=(1, 28, 28), width=8, dilations=(1, 2), levels=256, boost=1.0) -> PixelCNN:
    """With a `boost` the weights are larger: what is likely depends more on what came before."""
    with training.global_seed(0):
        net = PixelCNN(shape, width, dilations, levels)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(boost)
    return net


def build(shape=(1, 28, 28), **settings) -> PixelDefend:
    with training.global_seed(0):
        return PixelDefend(nn.Flatten(), shape=shape, **SMALL | settings).eval()


def noise(n: int = 4, shape=(1, 28, 28)) -> Tensor:
    return torch.rand(n, *shape, generator=seeded(1))


def of_noise(shape, n=4) -> Dataset:
    split = Split(noise(n, shape), torch.zeros(n, dtype=torch.int64))
    return Dataset("noise", split, split[:1], split[:0], ("nothing",), "test")


# ---------------------------------------------------------------------------------------------- the PixelCNN


@pytest.mark.parametrize("channels", [1, 3])
def test_a_level_is_told_from_all_before_it_and_from_nothing_else(channels):
    net, shape = build_net((channels, 6, 7), width=16), (channels, 6, 7)
    places = torch.tensor([(i * 7 + j) * channels + k for k in range(channels) for i in range(6) for j in range(7)])
    order = places.view(shape)
    levels = torch.randint(256, (8, *shape), generator=seeded(2)).float().requires_grad_()
    logits = net(levels)
    assert logits.shape == (8, *shape, 256)
    mixing = torch.randn(256, generator=seeded(3))
    for k, i, j in [(k, i, j) for k in range(channels) for i, j in [(0, 0), (0, 6), (2, 0), (3, 3), (5, 1), (5, 6)]]:
        told = (logits[:, k, i, j] @ mixing).sum()
        (gradient,) = torch.autograd.grad(told, levels, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert torch.equal(gradient.abs().amax(dim=0) > 0, order < order[k, i, j]), (k, i, j)


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 1, 2), (1, 4, 1)], ids=str)
def test_the_likelihoods_of_all_images_sum_to_1(shape):
    net = build_net(shape, levels=3, boost=2.0).double()
    images = torch.cartesian_prod(*[torch.arange(3)] * 4).view(81, *shape)
    likelihoods = 2 ** (-4 * net.bits(images).detach())
    assert float(likelihoods.sum()) == pytest.approx(1, abs=1e-12)
    assert likelihoods.max() > 1.5 * likelihoods.min()


def test_bits_per_dimension_are_those_of_the_softmax():
    net, levels = build_net((3, 4, 5)), torch.randint(256, (2, 3, 4, 5), generator=seeded(2))
    chosen = net(levels).softmax(dim=4).gather(4, levels[..., None])
    assert torch.allclose(net.bits(levels), -chosen.log2().flatten(1).mean(dim=1), atol=1e-5)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert net.bits(levels).detach().tolist() == pytest.approx([8, 8]), "256 levels, all equally likely"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=str)
def test_it_builds_and_learns_on_images_of_every_shape(shape):
    defense = build(shape, width=4, epochs=1, batch_size=2)
    before = {name: tensor.clone() for name, tensor in defense.state_dict().items()}
    defense.fit(of_noise(shape, 2), seeded(), Progress())
    assert all(not torch.equal(tensor, before[name]) for name, tensor in defense.state_dict().items())


# ---------------------------------------------------------------------------------------------- the greedy choice


def naive(net: PixelCNN, low: Tensor, high: Tensor) -> Tensor:
    """Algorithm 1 word for word: the whole net for each level. Low bounds stand where nothing is chosen yet."""
    net, chosen, every = copy.deepcopy(net).double(), low.clone(), torch.arange(net.levels)
    for i in range(low.shape[2]):
        for j in range(low.shape[3]):
            for k in range(low.shape[1]):
                inside = (every >= low[:, k, i, j, None]) & (every <= high[:, k, i, j, None])
                with torch.no_grad():
                    likely = net(chosen)[:, k, i, j].log_softmax(dim=1)
                chosen[:, k, i, j] = torch.where(inside, likely, -math.inf).argmax(dim=1)
    return chosen


@pytest.mark.parametrize(
    ("shape", "dilations"),
    [((1, 12, 11), (1, 2, 4, 1)), ((3, 6, 7), (1, 2)), ((2, 5, 3), (4, 1)), ((1, 1, 9), ()), ((1, 9, 1), (2,))],
    ids=str,
)
def test_kept_features_give_the_levels_of_the_whole_net(shape, dilations):
    net = build_net(shape, dilations=dilations, boost=3.0)
    levels = torch.randint(256, (5, *shape), generator=seeded(2))
    low, high = (levels - 60).clamp_min(0), (levels + 60).clamp_max(255)
    chosen = net.greedy(low, high)
    assert torch.equal(chosen, naive(net, low, high))
    free = net.greedy(torch.zeros_like(levels), torch.full_like(levels, 255))
    assert torch.equal(free[0], free[1]) and not torch.equal(free[:1], chosen[:1])


def test_a_prior_set_by_hand_gives_the_levels_worked_out_by_hand():
    """The likelihood falls with the distance to level 100, whatever came before."""
    defense = build((1, 1, 6), eps_defend=32)
    for parameter in defense.net.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        defense.net.heads[0][-1].bias.copy_(-(torch.arange(256) - 100).abs().float())
    images = torch.tensor([0, 90.4, 100, 131, 180, 255]).view(1, 1, 1, 6) / 255
    purified = defense.purify(images, seeded()) * 255
    assert purified.flatten().tolist() == pytest.approx([32, 100, 100, 100, 148, 223])


def test_what_was_chosen_decides_and_not_what_was_given():
    """Two levels; the upper one is likelier where the left neighbour has it. A choice is forced at two places."""
    net = build_net((1, 2, 6), width=1, dilations=(), levels=2)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        net.left.weight[0, 0, 0, -1] = 1  # the neighbour, as -1 or 1
        net.heads[0][0].weight.fill_(1)
        net.heads[0][-1].weight.copy_(torch.tensor([[0.0], [1.0]]))
        net.heads[0][-1].bias.copy_(torch.tensor([0.5, 0.0]))
    low = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).view(1, 1, 2, 6)
    high = torch.tensor([[1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]]).view(1, 1, 2, 6)
    assert net.greedy(low, high)[0, 0].tolist() == [[0, 1, 1, 1, 0, 0], [0] * 6]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8)], ids=str)
def test_purified_levels_are_whole_and_near(shape):
    images = noise(3, shape)
    for defense, eps in ((build(shape), 32 if shape[0] == 1 else 16), (build(shape, eps_defend=77), 77)):
        purified = defense.purify(images, seeded())
        levels = purified * 255
        assert purified.min() >= 0 and purified.max() <= 1 and torch.allclose(levels, levels.round(), atol=1e-4)
        moved = (levels.round() - (images * 255).round()).abs()
        assert defense.eps_defend == eps and moved.max() == eps
    assert torch.equal(build(shape, eps_defend=0).purify(images, seeded()), (images * 255).round() / 255)


def test_an_image_is_purified_alike_in_every_batch():
    defense, images = build((3, 8, 8), eps_defend=60), noise(6, (3, 8, 8))
    with torch.no_grad():
        for parameter in defense.parameters():
            parameter.mul_(3)
    together = defense.purify(images, seeded())
    assert torch.equal(torch.cat([defense.purify(image[None], seeded(5)) for image in images]), together)
    assert torch.equal(defense.purify(images[3:], seeded()), together[3:])


def test_likely_images_are_left_alone_where_a_threshold_says_so():
    images = noise(4, (1, 8, 8))
    plain = build((1, 8, 8))
    bits = plain.bits(images)
    purified, rounded = plain.purify(images, seeded()), (images * 255).round() / 255
    low, high = bits.sort().values[1:3].tolist()
    adaptive = build((1, 8, 8), clean_bits=(low + high) / 2).purify(images, seeded())
    likely = bits <= low
    assert likely.sum() == 2 and not torch.equal(rounded[likely], purified[likely])
    assert torch.equal(adaptive[likely], rounded[likely]) and torch.equal(adaptive[~likely], purified[~likely])
    on_the_spot = build((1, 8, 8), clean_bits=low).purify(images, seeded())
    assert torch.equal(on_the_spot, adaptive), "at the threshold itself an image is clean"


def test_bpda_takes_the_purifier_for_the_identity():
    with training.global_seed(1):
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    defense = PixelDefend(classifier, shape=(1, 8, 8), **SMALL).eval()
    images = noise(3, (1, 8, 8)).requires_grad_()
    assert not defense.purify(images, seeded()).requires_grad
    (found,) = torch.autograd.grad(defense.surrogate_logits(images, seeded()).square().sum(), images)
    purified = defense.purify(images, seeded()).requires_grad_()
    (expected,) = torch.autograd.grad(classifier(purified).square().sum(), purified)
    assert torch.allclose(found, expected, atol=1e-6) and expected.abs().max() > 0


# ---------------------------------------------------------------------------------------------- trained


@pytest.fixture(scope="module")
def trained(digits):
    """A defense that learned small digits for some seconds, images new to it, their bits before, and its curve."""
    defense = build((1, 14, 14), epochs=6, batch_size=32, learning_rate=2e-2)

    def small(split: Split, n: int) -> Split:
        return Split(split.images[:n, :, ::2, ::2].contiguous(), split.labels[:n])

    part = Dataset("digits", small(digits.train, 320), small(digits.validation, 16), digits.test[:0], ("?",), "test")
    curve: list[float] = []

    class Noted(Progress):
        def checkpoint(self, label, stateful, losses):
            curve[:] = losses

    before = defense.bits(part.validation.images).mean()
    defense.fit(part, seeded(), Noted())
    return defense, part.validation.images, float(before), curve


def test_training_lowers_the_bits_per_dimension_of_digits(trained):
    defense, images, before, curve = trained
    after = float(defense.bits(images).mean())
    assert before > 7.5 and after < 0.7 * before
    assert curve[-1] < 0.9 * curve[0] and curve[-1] == pytest.approx(after, rel=0.1), "the curve is in bits"


def test_purified_images_are_likelier(trained):
    defense, images, _, _ = trained
    attacked = (images + 32 / 255 * (2 * noise(16, (1, 14, 14)) - 1)).clamp(0, 1)
    purified = defense.purify(attacked, seeded())
    assert (defense.bits(attacked) > 1.05 * defense.bits(images)).all()
    assert (defense.bits(purified) < 0.8 * defense.bits(attacked)).all()


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps_defend": -1}, "whole number from 0 to 255"),
        ({"eps_defend": 0.3}, "whole number from 0 to 255"),
        ({"eps_defend": 256}, "whole number from 0 to 255"),
        ({"eps_defend": math.nan}, "whole number from 0 to 255"),
        ({"clean_bits": -0.5}, "bits per dimension from 0"),
        ({"clean_bits": math.nan}, "bits per dimension from 0"),
        ({"width": 0}, "width from 1"),
        ({"dilations": (1, 0)}, "whole numbers from 1"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_net_needs_two_levels():
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        build_net(levels=1)


def test_levels_are_the_nearest():
    assert to_levels(torch.tensor([0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 1])).tolist() == [0, 0, 1, 254, 255]
