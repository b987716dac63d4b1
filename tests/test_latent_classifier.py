"""A classifier on codes, attacked through the encoder: where its decision is known, so is what the attack must do."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from bench import attacks, catalog, draws, threat
from bench.attacks.latent_classifier import learn
from bench.data import Split

SIDE = 8


class TwoCodes:
    """A linear autoencoder with two codes, the mean of the left half of an image and that of the right; the class is
    whether the left half is bright. The decoder paints each half in one grey."""

    def encode(self, images: Tensor) -> Tensor:
        return torch.stack([images[..., : SIDE // 2].mean(dim=(1, 2, 3)), images[..., SIDE // 2 :].mean((1, 2, 3))], 1)

    def classifier(self, images: Tensor) -> Tensor:
        return torch.stack([0.5 - self.encode(images)[:, 0], self.encode(images)[:, 0] - 0.5], dim=1)

    def target(self, known: Split) -> threat.Codes:
        return threat.Codes(self.classifier, self, known)  # type: ignore[arg-type]


def split(n: int, seed: int) -> Split:
    """Images whose left half is around .3 or .7 by their class, and whose right half has any grey."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    left = (0.3 + 0.4 * labels)[:, None, None, None].expand(n, 1, SIDE, SIDE // 2)
    right = torch.rand(n, 1, 1, 1, generator=generator).expand_as(left)
    noise = 0.1 * (torch.rand(n, 1, SIDE, SIDE, generator=generator) - 0.5)
    return Split((torch.cat([left, right], dim=3) + noise).clamp(0, 1), labels)


KNOWN = split(600, seed=1)


@pytest.fixture(scope="module")
def learned() -> dict[str, Tensor]:
    return dict(taught())


def taught(of: Split = KNOWN, seed: int = 0, **settings) -> dict[str, Tensor]:
    return learn(TwoCodes().target(of), of.images, of.labels, generator=draws.generator("cpu", seed), **settings)


def attack(images: Tensor, labels: Tensor, learned: dict[str, Tensor], **settings) -> attacks.Attacked:
    noise = draws.ImageDraws.derived(torch.arange(len(images)), "test")
    return attacks.get("latent_classifier")(
        TwoCodes().target(KNOWN), images, labels, draws=noise, learned=learned, **settings
    )


def test_it_learns_the_class_and_tells_how_well(learned):
    assert float(learned["held_out_accuracy"]) == 1.0
    shuffled = Split(KNOWN.images, KNOWN.labels[torch.randperm(600, generator=torch.Generator().manual_seed(0))])
    assert 0.3 < float(taught(shuffled)["held_out_accuracy"]) < 0.7, "what is told was not trained on"
    found = attack(KNOWN.images[:4], KNOWN.labels[:4], learned, eps=0.1)
    assert found.told["latent_classifier_accuracy"].tolist() == [1.0] * 4


@pytest.mark.parametrize("steps", [1, 40])
def test_every_pixel_of_the_half_that_decides_is_pushed_to_the_wall_of_the_ball(learned, steps):
    test = split(50, seed=2)
    found = attack(test.images, test.labels, learned, eps=0.1, steps=steps)
    towards = torch.where(test.labels == 1, -0.1, 0.1)[:, None, None, None]
    half = slice(0, SIDE // 2)
    assert torch.allclose(found.images[..., half], test.images[..., half] + towards, atol=1e-6)
    assert float((found.images - test.images).abs().max()) <= 0.1 + 1e-6


def test_images_fall_beyond_the_distance_of_the_known_border_and_not_within(learned):
    """The border is at .5, .2 from the mean of either class."""
    test = split(200, seed=3)
    for norm, distance in (("linf", 0.2), ("l2", 0.2 * (SIDE * SIDE / 2) ** 0.5)):
        held = attack(test.images, test.labels, learned, eps=0.8 * distance, norm=norm).images
        broken = attack(test.images, test.labels, learned, eps=1.2 * distance, norm=norm).images
        assert float((threat.predictions(TwoCodes().classifier, held) == test.labels).float().mean()) > 0.98
        assert float((threat.predictions(TwoCodes().classifier, broken) == test.labels).float().mean()) < 0.02
        moved = (broken - test.images).flatten(1)
        assert float((moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)).max()) <= 1.2 * distance + 1e-6


def test_it_neither_sees_the_defense_nor_other_images(learned):
    """The answers of the defense change nothing, and an image's result is its own."""
    test = split(8, seed=4)
    target = TwoCodes().target(KNOWN)
    target._logits = lambda images: pytest.fail("the defense was asked")
    noise = draws.ImageDraws.derived(torch.arange(8), "test")
    function = functools.partial(attacks.get("latent_classifier"), target, eps=0.1, learned=learned, steps=5)
    found = function(test.images, test.labels, draws=noise).images
    alone = function(test.images[3:4], test.labels[3:4], draws=noise.rows(torch.tensor([3]))).images
    assert torch.equal(alone[0], found[3])


def test_the_same_known_images_and_seed_give_the_same_weights_and_rows_are_counted():
    target = TwoCodes().target(KNOWN)
    settings = {"known": 300, "epochs": 2}
    first = learn(target, KNOWN.images, KNOWN.labels, generator=draws.generator("cpu", 3), **settings)
    info = catalog.ATTACKS["latent_classifier"]
    assert (target.forward_rows, target.backward_rows) == info.learning_cost(known=300) == (301, 0)
    again, other = taught(seed=3, **settings), taught(seed=4, **settings)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["hidden"], other["hidden"])
    assert all(tensor.requires_grad is False for tensor in first.values())


@pytest.mark.parametrize("wrong", [{"known": 1}, {"held_out": 1.0}, {"hidden": 0}, {"epochs": 0}], ids=str)
def test_settings_that_make_no_sense_are_refused(wrong, learned):
    with pytest.raises(ValueError, match="latent_classifier needs known >= 2"):
        taught(**wrong)
    with pytest.raises(ValueError, match="eps >= 0 and steps >= 1"):
        attack(KNOWN.images[:2], KNOWN.labels[:2], learned, eps=-0.1)
