"""The GM-VAE's own attacks where the answer is known: a linear encoder with orthonormal rows and its transpose."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from bench import attacks, draws, statistics, threat
from bench.boards import PROTOCOLS
from bench.catalog import ATTACKS
from bench.defense import Defense
from bench.work import card

SHAPE, CLASSES = (1, 4, 4), 3
GAIN = 4  # of the code on the image, so that all means lie inside the box


class Linear(Defense):
    """Codes 4 A(x - 1/2) with A orthonormal, one-hot means, and half the distance as the score of each class.

    The decoder is A's transpose, so that the error is the part of an image that no code reaches; it counts `strict`.
    """

    title, paper, year, kind, differentiable = "Linear", "https://example.org", 2020, "selective", True

    def __init__(self, *, radius: float = 0.5, strict: float = 0.0) -> None:
        super().__init__(nn.Identity())
        made = torch.randn(16, CLASSES, generator=Generator().manual_seed(0), dtype=torch.float64)
        self.register_buffer("rows", torch.linalg.qr(made).Q.T.contiguous())  # (K, 16)
        self.register_buffer("means", torch.eye(CLASSES, dtype=torch.float64))
        self.radius, self.strict = radius, strict

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images

    def encode(self, images: Tensor) -> Tensor:
        return GAIN * (images.flatten(1) - 0.5) @ self.rows.T

    def distances(self, images: Tensor) -> Tensor:
        return (self.encode(images)[:, None] - self.means).norm(dim=2)

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return -self.distances(images)

    def class_scores(self, images: Tensor, generator: Generator) -> Tensor:
        apart = images.flatten(1) - 0.5
        error = self.strict * (apart - apart @ self.rows.T @ self.rows).norm(dim=1)
        return torch.stack([self.distances(images) / self.radius, error[:, None].expand(-1, CLASSES)], dim=2)

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        scores = self.class_scores(images, generator)
        return scores[torch.arange(len(images)), self.distances(images).argmin(dim=1)].amax(dim=1)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Images in the middle of the box, near the mean of class 0 as far as codes go."""
    rows = Linear().rows
    noise = 0.02 * torch.randn(12, 16, generator=Generator().manual_seed(1), dtype=torch.float64)
    return (0.5 + 0.5 / GAIN * rows[0] + noise).view(12, *SHAPE), torch.zeros(12, dtype=torch.int64)


def attacked(name: str, defense: Defense, images, threshold: float = 1.0, **given) -> attacks.Attacked:
    target = threat.class_acceptance(defense, threshold=threshold, eot=1, seed_parts=())
    noise = draws.ImageDraws.derived(torch.arange(len(images[0])), "test")
    return attacks.get(name)(target, *images, draws=noise, **given)


def away(found: attacks.Attacked, images) -> Tensor:
    return (found.images - images[0]).flatten(1).norm(dim=1)


@pytest.mark.parametrize("variance", [1.0, 0.5])
@pytest.mark.parametrize("covariance", ["inverse", "printed"])
def test_where_nothing_is_accepted_the_minimum_of_eq_10_is_returned(covariance, variance, images):
    """With exponents of 1, gain g and weight w on the squared distance D^2 of the code: wgD / (1 + wg^2) away."""

    class RefusesAll(Linear):
        def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
            return 9 + images.flatten(1)[:, 0]

    defense, threshold = RefusesAll(), 0.5
    settings = {"covariance": covariance, "variance": variance, "code_exponent": 1.0, "error_exponent": 1.0}
    how = {"targets": 1, "steps": 200, "learning_rate": 0.005}
    found = attacked("towards_class", defense, images, threshold, **how, **settings)
    weight = (variance**2 if covariance == "printed" else 1.0) / (threshold * defense.radius) ** 2
    aim = defense.distances(images[0])[:, 1:].min(dim=1).values  # of the likeliest wrong class
    assert not found.broken.any() and (found.step_of_success == -1).all()
    best = aim * weight * GAIN / (1 + weight * GAIN**2)
    along = ((found.images - images[0]).flatten(1) @ defense.rows.T).norm(dim=1)
    assert torch.allclose(along, best, rtol=0.03)
    assert (away(found, images) <= 1.25 * best).all()  # Adam takes a way round


def test_the_nearest_accepted_image_of_any_wrong_class_is_found(images):
    """It lies on the way to the nearest wrong mean, `radius` before it."""
    defense = Linear(radius=0.3)
    found = attacked("towards_class", defense, images, targets=2, steps=200, learning_rate=0.002)
    nearest = (defense.distances(images[0])[:, 1:].min(dim=1).values - defense.radius) / GAIN
    assert found.broken.all() and (found.step_of_success > 0).all()
    assert (away(found, images) >= nearest - 1e-9).all() and (away(found, images) <= 1.4 * nearest).all()
    scores = defense.rejection_score(found.images, Generator())
    assert (scores <= 1).all() and (defense.distances(found.images).argmin(dim=1) != 0).all()
    strict = attacked("towards_class", Linear(radius=0.3, strict=1e3), images, targets=2, steps=50)
    assert not strict.broken.any()  # the noise of the images itself is refused


def test_a_weight_of_the_change_that_is_searched_breaks_what_the_weight_of_one_leaves_refused(images):
    """With exponents of 1 and a weight of 1 the code ends 1 / (1 + 16 / 36) of its way before the mean."""

    class Strict(Linear):
        """Accepts a twentieth of the way."""

        def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
            return 20 * super().rejection_score(images, generator)

    defense = Strict(radius=6.0)
    how = {"targets": 1, "steps": 150, "learning_rate": 0.005, "code_exponent": 1.0, "error_exponent": 1.0}
    fixed, light, searched, longer = (
        attacked("towards_class", defense, images, **how, **given)
        for given in ({}, {"change_weight": 0.01}, {"searches": 3}, {"searches": 5})
    )
    assert not fixed.broken.any() and light.broken.all() and searched.broken.all() and longer.broken.all()
    assert (away(longer, images) <= away(searched, images)).all()
    nearest = (defense.distances(images[0])[:, 1:].min(dim=1).values - 0.3) / GAIN
    assert (away(searched, images) >= nearest - 1e-9).all() and (away(longer, images) <= 1.4 * nearest).all()


@pytest.mark.parametrize("searches", [1, 3])
def test_it_costs_the_rows_that_the_catalog_says(searches, images):
    target = threat.class_acceptance(Linear(), threshold=1.0, eot=1, seed_parts=())
    noise = draws.ImageDraws.derived(torch.arange(len(images[0])), "test")
    given = {"targets": 2, "steps": 5, "searches": searches}
    attacks.get("towards_class")(target, *images, draws=noise, **given)
    forward, backward = (rows * len(images[0]) for rows in ATTACKS["towards_class"].cost(**given))
    assert (target.forward_rows, target.backward_rows) == (forward, backward)


@pytest.mark.parametrize("wrong", [{"searches": 0}, {"change_weight": 0.0}])
def test_weights_that_make_no_sense_are_refused(wrong, images):
    with pytest.raises(ValueError, match="change_weight > 0 and searches >= 1"):
        attacked("towards_class", Linear(), images, **wrong)


def test_the_harness_threshold_widens_what_is_accepted(images):
    defense = Linear(radius=0.3)
    reached = [
        away(attacked("towards_class", defense, images, threshold, steps=200, learning_rate=0.005), images)
        for threshold in (0.5, 1.0, 1.5)
    ]
    assert (reached[0] > reached[1]).all() and (reached[1] > reached[2]).all()


def test_noise_becomes_an_image_that_is_accepted_as_a_class_other_than_the_label(images):
    defense = Linear(radius=0.3, strict=1.2)
    found = attacked("fooling", defense, images, steps=400)
    broken = found.broken
    assert float(broken.float().mean()) > 0.5
    distances = defense.distances(found.images)
    assert (distances.argmin(dim=1) != images[1]).all() and (distances[broken].min(dim=1).values <= 0.3).all()
    apart = (found.images.flatten(1) - 0.5)[broken]
    assert ((apart - apart @ defense.rows.T @ defense.rows).norm(dim=1) <= 1 / 1.2).all()  # of the noise it is more
    assert len(set(distances.argmin(dim=1).tolist())) == 2  # the class is drawn for each image
    short = [attacked("fooling", defense, (some, images[1]), steps=5).images for some in (images[0], 1 - images[0])]
    assert torch.equal(*short)  # the clean image has no part


def test_a_random_defense_proves_nothing_by_one_look(images):
    class Random(Linear):
        stochastic = True

        def class_scores(self, images: Tensor, generator: Generator) -> Tensor:
            drawn = torch.rand(len(images), generator=generator, dtype=torch.float64)
            return super().class_scores(images, generator) + drawn[:, None, None] / 10

    target = threat.class_acceptance(Random(), threshold=1.0, eot=3, seed_parts=())
    assert target(images[0]).shape == (3, 12, 3 * CLASSES + 1)
    noise = draws.ImageDraws.derived(torch.arange(12), "test")
    found = attacks.get("towards_class")(target, *images, draws=noise, steps=50)
    assert not found.broken.any() and (found.step_of_success >= 0).any()


@pytest.mark.parametrize(
    "wrong", [{"targets": 0}, {"steps": 0}, {"learning_rate": 0.0}, {"covariance": "inverted"}, {"code_exponent": 0.0}]
)
@pytest.mark.parametrize("name", ["towards_class", "fooling"])
def test_settings_that_make_no_sense_are_refused(name, wrong, images):
    with pytest.raises(ValueError, match="attacks towards a class need"):
        attacked(name, Linear(), images, **wrong)


def test_the_attacks_are_applicable_to_defenses_with_the_door_alone():
    plain = type("Plain", (Linear,), {"class_scores": Defense.class_scores})
    selective = PROTOCOLS["digits-selective-v1-draft"]
    assert card(Linear, selective).doors == ("class_scores",)
    assert card(plain, selective).doors == card(Linear, PROTOCOLS["digits-v1"]).doors == ()
    for asked in (one for one in PROTOCOLS.values() if one.is_selective):
        for stochastic in (False, True):
            whole = asked.effort("cheap", stochastic=stochastic)
            without = asked.effort("cheap", stochastic=stochastic, doors=())
            assert whole.hash == without.hash == asked.hash
            left_out = {spec.attack for spec in whole.attacks} - {spec.attack for spec in without.attacks}
            asking = {name for name, info in ATTACKS.items() if "class_scores" in info.needs}
            assert left_out == asking == {"towards_class", "fooling"}


def test_how_far_a_fooling_image_lies_from_the_clean_one_says_nothing(make_cell):
    far = {"track": "rejection", "route": "autograd", "norm": None, "eps": None}
    assert statistics.is_unbounded(make_cell(attack="towards_class", **far))
    assert not statistics.is_unbounded(make_cell(attack="fooling", **far))
