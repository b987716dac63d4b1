"""Attacks towards a target image where the answer is known: linear encoders with orthonormal rows, and pixels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.distributions import Normal, kl_divergence

from bench import attack_cost, attacks, catalog, draws, protocols, threat
from bench.attacks import Logits, target_images
from bench.attacks.target_images import Seen
from bench.data import Split
from bench.defense import Defense
from bench.protocol import AttackSpec

SHAPE, CODE = (1, 4, 4), 5


class Pixels:
    """A model of its logits whose codes are the pixels in a row, off by a half, and which knows some images."""

    def __init__(self, logits: Logits, known: tuple[Tensor, Tensor]) -> None:
        self._logits = self.classifier = logits
        self.known_images, self.known_labels = known

    def __call__(self, images: Tensor) -> Tensor:
        return self._logits(images.clone())

    def classify(self, images: Tensor) -> Tensor:
        return self._logits(images.clone())

    def encode(self, images: Tensor) -> Tensor:
        return images.flatten(1) - 0.5

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        return None

    def decode(self, latents: Tensor) -> Tensor:
        return (latents + 0.5).view(-1, *SHAPE)


class Linear(Pixels):
    """Codes A(x - 1/2) with A orthonormal, decoded by its transpose; the class is that of the nearest mean.

    With a `variance` there is a posterior of that variance around the codes.
    """

    def __init__(self, classes: int = 2, *, variance: float | None = None, each: int = 1) -> None:
        made = torch.randn(16, CODE, generator=Generator().manual_seed(0), dtype=torch.float64)
        self.weight = torch.linalg.qr(made).Q.T.contiguous()  # (CODE, 16)
        self.means = 0.3 * torch.eye(CODE, dtype=torch.float64)[:classes]
        self.variance = variance
        noise = 0.01 * torch.randn(classes * each, CODE, generator=Generator().manual_seed(4), dtype=torch.float64)
        labels = torch.arange(classes).repeat(each)
        known = ((self.means[labels] + noise) @ self.weight + 0.5).view(-1, *SHAPE)
        super().__init__(lambda images: -torch.cdist(self.encode(images), self.means), (known, labels))

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        codes = self.encode(images)
        return None if self.variance is None else (codes, torch.full_like(codes, self.variance).log())

    def decode(self, latents: Tensor) -> Tensor:
        return (latents @ self.weight + 0.5).view(-1, *SHAPE)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Images in the middle of the box whose codes are near the mean of class 0."""
    noise = 0.02 * torch.randn(10, 16, generator=Generator().manual_seed(1), dtype=torch.float64)
    model = Linear()
    return (0.5 + model.means[0] @ model.weight + noise).view(10, *SHAPE), torch.zeros(10, dtype=torch.int64)


def first_pixels(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :3]


def attacked(name: str, model, images, noise: draws.ImageDraws | None = None, **given) -> attacks.Attacked:
    noise = noise or draws.ImageDraws.derived(torch.arange(len(images[0])), "test")
    return attacks.get(name)(model, *images, draws=noise, **given)


def way(model: Linear, images) -> Tensor:
    """What is missing between the codes of the images and that of the one target, (N, CODE)."""
    return model.encode(model.known_images[1:2]) - model.encode(images[0])


def lengths(found: attacks.Attacked, images) -> Tensor:
    return (found.images - images[0]).flatten(1).norm(dim=1)


# ---------------------------------------------------------------------------------------------- at the least change


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("goal", ["distance", "divergence", "as_published"])
def test_without_a_posterior_the_answer_is_that_of_ridge_regression(goal, constant, images):
    """min |A (x + d) - z|^2 + C |d|^2 is at d = A'(z - A x) / (1 + C), where the walls are far."""
    model = Linear()
    found = attacked("target_code", model, images, goal=goal, constant=constant)
    best = way(model, images) @ model.weight / (1 + constant)
    assert torch.allclose((found.images - images[0]).flatten(1), best, atol=1e-7)
    short = lengths(found, images)
    assert torch.allclose(found.told["distortion"], short)
    to_target = (model.known_images[1] - images[0]).flatten(1).norm(dim=1)
    assert torch.allclose(found.told["relative_distortion"], short / to_target)
    left = torch.full((10,), constant / (1 + constant), dtype=torch.float64)
    assert torch.allclose(found.told["relative_code_distance"], left**2, atol=1e-7)
    assert torch.allclose(found.told["relative_reconstruction_distance"], left, atol=1e-7)
    assert torch.allclose(-found.losses[-1], constant / (1 + constant) * way(model, images).square().sum(dim=1))


@pytest.mark.parametrize("goal, halves", [("divergence", 1), ("as_published", 2)])
def test_with_a_posterior_the_divergence_is_minimised(goal, halves, images):
    """Of equal variances v it is |z - z'|^2 / 2v; as published the deviation stands where v belongs, and no half."""
    variance = 0.04
    model = Linear(variance=variance)
    weight = 1 / (2 * variance) if halves == 1 else 1 / variance**0.5
    found = attacked("target_code", model, images, goal=goal, constant=3.0)
    best = way(model, images) @ model.weight * weight / (weight + 3)
    assert torch.allclose((found.images - images[0]).flatten(1), best, atol=1e-7)
    assert torch.allclose(
        found.told["relative_code_distance"], torch.full((10,), (3 / (weight + 3)) ** 2, dtype=torch.float64)
    )


def test_the_walls_hold(images):
    """With pixels as codes, C = 1 and a target in the middle of the way, every pixel goes half of it."""
    model = Pixels(
        first_pixels, (torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, *SHAPE).double(), torch.arange(2))
    )
    found = attacked("target_code", model, images, constant=1.0).images
    assert torch.allclose(found, (images[0] + 1) / 2)
    free = attacked("target_code", model, (images[0] * 0 + 0.9, images[1]), constant=0.0)
    assert torch.allclose(free.images, torch.ones_like(free.images)) and float(free.images.max()) <= 1


class Curved(Linear):
    """A curved encoder with a posterior, and a decoder that draws with sigmoids."""

    def __init__(self) -> None:
        super().__init__(3, each=4)
        generator = Generator().manual_seed(2)
        self.hidden, self.heads, self.out = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((16, 12), (12, 2 * CODE), (CODE, 16))
        )

    def encode(self, images: Tensor) -> Tensor:
        return self.posterior(images)[0]

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = ((images.flatten(1) @ self.hidden).tanh() @ self.heads / 3).chunk(2, dim=1)
        return mean, log_variance - 2

    def decode(self, latents: Tensor) -> Tensor:
        return (latents @ self.out).sigmoid().view(-1, *SHAPE)


@pytest.mark.parametrize("goal", ["divergence", "as_published", "vae_loss"])
def test_a_dearer_change_is_a_smaller_one_and_gains_less(goal, images):
    model, noise = Curved(), torch.rand(10, *SHAPE, generator=Generator().manual_seed(3), dtype=torch.float64)
    found = [
        attacked("target_code", model, (noise, images[1]), goal=goal, constant=2.0**power, steps=60)
        for power in (-10, -2, 2, 20)
    ]
    for cheap, dear in itertools.pairwise(found):
        assert float(cheap.told["distortion"].mean()) > float(dear.told["distortion"].mean())
        assert goal != "divergence" or (
            float(cheap.told["relative_code_distance"].mean()) < float(dear.told["relative_code_distance"].mean())
        )
    assert float(found[-1].told["distortion"].max()) < 1e-3
    assert goal != "divergence" or float(found[0].told["relative_code_distance"].mean()) < 0.05
    few, many = (attacked("target_code", model, (noise, images[1]), goal=goal, steps=steps) for steps in (3, 30))
    assert bool((many.losses[-1] >= few.losses[-1]).all()) and torch.equal(few.losses, many.losses[:4])


class Longer(Linear):
    """The same codes, a thousand times as long: distances between them are a million times as large."""

    def encode(self, images: Tensor) -> Tensor:
        return 1000 * super().encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents / 1000)


@pytest.mark.parametrize("power", [-4, 0, 4])
def test_a_relative_price_does_not_know_how_long_codes_are(power, images):
    """In closed form: of a way w of which A keeps all but its part across the rows, the share 1 / (1 + C / k) is gone,
    k being the kept share of w^2, as the code comes near in squares."""
    given = {"price": "relative", "constant": 4.0**power, "steps": 60}
    model = Linear()
    found, longer = (attacked("target_code", one, images, **given) for one in (model, Longer()))
    assert torch.allclose(found.images, longer.images, atol=1e-6)
    change, gap = (found.images - images[0]).flatten(1), way(model, images)
    target = (model.known_images[1] - images[0]).flatten(1)  # of the other class there is one
    kept = gap.square().sum(dim=1) / target.square().sum(dim=1)
    assert torch.allclose(change, gap / (1 + 4.0**power * kept[:, None]) @ model.weight, atol=1e-5)
    assert (found.told["relative_distortion"] <= 4.0 ** (-power / 2)).all()


def test_an_absolute_price_does(images):
    found, longer = (attacked("target_code", one, images, constant=1.0, steps=60) for one in (Linear(), Longer()))
    assert float(longer.told["distortion"].mean()) > 1.5 * float(found.told["distortion"].mean())


# ---------------------------------------------------------------------------------------------- measures


def posteriors(n: int = 6) -> list[Seen]:
    generator = Generator().manual_seed(5)
    parts = torch.randn(2, 2, n, CODE, generator=generator, dtype=torch.float64)
    return [Seen(torch.empty(n, 0), mean, log_variance) for mean, log_variance in parts]


def test_the_divergence_is_that_of_torch():
    seen, target = posteriors()
    ours, theirs = (Normal(one.codes, (0.5 * one.log_variance).exp()) for one in (seen, target))
    assert torch.allclose(target_images.divergence(seen, target), kl_divergence(ours, theirs).sum(dim=1))
    assert torch.equal(target_images.divergence(seen, seen), torch.zeros(6, dtype=torch.float64))


def test_the_published_divergence_is_not_lowest_at_the_target():
    one = lambda mean, log_variance: Seen(torch.empty(1, 0), torch.tensor([[mean]]), torch.tensor([[log_variance]]))  # noqa: E731
    four = torch.tensor(4.0).log().item()
    found = target_images.published_divergence(one(1.0, 0.0), one(3.0, four))  # (1 + 4) / 2 + log 4 - 0 - 1/2
    assert torch.allclose(found, torch.tensor([2 + four]))
    assert target_images.published_divergence(one(0.0, 0.5), one(0.0, 0.0)) < target_images.published_divergence(
        one(0.0, 0.0), one(0.0, 0.0)
    )


def test_the_vae_loss_is_the_negative_evidence_bound():
    model = Curved()
    images = torch.rand(6, *SHAPE, generator=Generator().manual_seed(6), dtype=torch.float64)
    seen = Seen.by(model, images)
    target = images.flip(0)
    error = nn.functional.binary_cross_entropy(model.decode(seen.codes), target, reduction="none").flatten(1).sum(dim=1)
    prior = kl_divergence(Normal(seen.codes, (0.5 * seen.log_variance).exp()), Normal(0.0, 1.0)).sum(dim=1)
    assert torch.allclose(target_images.vae_loss(model, seen, target), error + prior, rtol=1e-3)
    assert torch.allclose(target_images.vae_loss(model, seen, target, 0.25), error + prior / 4, rtol=1e-3)
    plain = Seen(images, seen.codes, None)
    assert torch.allclose(target_images.vae_loss(model, plain, target), error, rtol=1e-3)


# ---------------------------------------------------------------------------------------------- in a ball


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.2, 1.0])
def test_in_an_l2_ball_the_code_goes_straight_to_the_target_as_far_as_it_may(eps, images):
    model = Linear()
    found = attacked("latent_distance", model, images, eps=eps, norm="l2", steps=200)
    gap = way(model, images)
    best = (gap * (eps / gap.norm(dim=1, keepdim=True)).clamp(max=1)) @ model.weight
    assert torch.allclose((found.images - images[0]).flatten(1), best, atol=6e-3)
    assert bool((lengths(found, images) <= eps + 1e-9).all())


@pytest.mark.parametrize("name", ["latent_distance", "vae_loss"])
@pytest.mark.parametrize("eps", [0.05, 0.2, 0.4])
def test_in_a_linf_ball_around_pixels_each_goes_to_the_target_as_far_as_it_may(name, eps, images):
    known = torch.rand(2, *SHAPE, generator=Generator().manual_seed(7), dtype=torch.float64)
    model = Pixels(first_pixels, (known, torch.arange(2)))
    found = attacked(name, model, images, eps=eps, steps=100)
    best = images[0] + (known[1] - images[0]).clamp(-eps, eps)
    assert torch.allclose(found.images, best, atol=0.02 * eps)


@pytest.mark.parametrize("name", ["latent_distance", "vae_loss"])
def test_one_step_is_fgsm(name, images):
    model, eps = Curved(), 0.1
    found = attacked(name, model, images, eps=eps, steps=1, targets=1, known=3)
    looked = images[0].clone().requires_grad_()
    gaps = torch.cdist(model.encode(looked), model.encode(model.known_images[:3]))[:, 1:]
    target = model.known_images[1:3][gaps.argmin(dim=1)]
    value = gaps.amin(dim=1).square() if name == "latent_distance" else target_images.vae_loss(
        model, Seen.by(model, looked), target
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(value.sum(), looked)
    assert torch.allclose(found.images, (images[0] - eps * gradient.sign()).clamp(0, 1))


@pytest.mark.parametrize("norm, radii", [("linf", (0.02, 0.05, 0.1, 0.15)), ("l2", (0.05, 0.2, 0.4, 0.6))])
@pytest.mark.parametrize("name", ["latent_distance", "vae_loss"])
def test_a_larger_ball_and_more_steps_come_nearer(name, norm, radii, images):
    model, noise = Curved(), torch.rand(10, *SHAPE, generator=Generator().manual_seed(3), dtype=torch.float64)
    images = noise, images[1]
    found = [attacked(name, model, images, eps=eps, norm=norm, targets=1) for eps in radii]
    for small, large in itertools.pairwise(found):
        assert float(large.losses.amax(dim=0).mean()) > float(small.losses.amax(dim=0).mean())
    once = attacked(name, model, images, eps=radii[-1], norm=norm, targets=1, steps=1)
    assert bool((found[-1].losses.amax(dim=0) >= once.losses.amax(dim=0)).all())


def test_of_several_targets_one_that_fools_the_defense_is_kept(images):
    """The nearest code belongs to a class that the defense never answers."""
    model = Linear(3)
    decoy = torch.cat([images[0][:1] + 0.001, model.known_images])
    model.known_images, model.known_labels = decoy, torch.tensor([7, 0, 1, 2])
    held = attacked("latent_distance", model, images, eps=0.5, targets=1)
    assert not held.broken.any() and (held.step_of_success == -1).all()
    target, quick = (threat.Codes(model, model, Split(decoy, model.known_labels)) for _ in range(2))
    for counted in (target, quick):
        counted.posterior = model.posterior
    found = attacked("latent_distance", target, images, eps=0.5, targets=3)
    assert found.broken.all() and (found.step_of_success == 40).all()
    assert (model(found.images).argmax(dim=1) != 0).all()
    stopped = attacked("latent_distance", quick, images, eps=0.5, targets=3, stop_when_broken=True)
    assert stopped.broken.all() and quick.forward_rows < 0.8 * target.forward_rows


def test_an_image_that_is_wrong_when_clean_does_not_come_out_right(images):
    """The only other class that is known is the one that the defense should answer."""
    model = Linear(2)
    model.known_labels = torch.tensor([2, 1])
    wrong = images[0], torch.ones(10, dtype=torch.int64)  # the defense answers 0
    model.known_images = model.known_images[[1, 0]]  # what is called 2 looks like 1
    found = attacked("latent_distance", model, wrong, eps=0.5)
    assert torch.equal(found.images, images[0]) and found.broken.all() and (found.step_of_success == 0).all()
    assert (found.told["relative_code_distance"] == 1).all() and (found.told["distortion"] == 0).all()
    paid = attacked("target_code", model, wrong, constant=0.01)
    assert not paid.broken.any() and (paid.step_of_success == 0).all()


def test_answers_with_draws_prove_nothing(images):
    model = Linear(3)
    one = model._logits
    model._logits = lambda x: one(x).repeat(3, 1, 1)
    found = attacked("latent_distance", model, images, eps=0.5)
    assert not found.broken.any() and (found.step_of_success == 40).all()


@pytest.mark.parametrize("name", ["latent_distance", "vae_loss", "target_code"])
def test_a_gradient_that_leads_nowhere_leaves_evidence(name):
    class Rounded(Curved):
        def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return super().posterior((images * 4).round() / 4)

    settings = {"constant": 0.0} if name == "target_code" else {"eps": 0.02}
    noise = torch.rand(10, *SHAPE, generator=Generator().manual_seed(3), dtype=torch.float64)  # like no known image
    for model in (Curved(), Rounded()):
        found = attacked(name, model, (noise, threat.predictions(model, noise)), steps=5, **settings)
        right = found.step_of_success != 0
        assert right.any() and (found.looks[right] >= 5).all()
        assert (found.blocked[right] == float(type(model) is Rounded)).all()


# ---------------------------------------------------------------------------------------------- whom to be like


def chosen(model, images, **given) -> Tensor:
    settings = {"targets": 2, "choice": "nearest", "known": 500, **given}
    noise = draws.ImageDraws.derived(torch.arange(len(images[0])), "test")
    seen = Seen.by(model, images[0])
    return target_images._targets(model, seen, images[1], noise, *settings.values())


def test_the_nearest_images_of_the_other_classes_are_chosen(images):
    model = Linear(5, each=8)
    labels = torch.arange(10) % 5
    order = chosen(model, (images[0], labels), targets=4)
    found = model.known_labels[order]
    assert bool((found.sort(dim=1).values == torch.tensor([[k for k in range(5) if k != one] for one in labels])).all())
    far = torch.cdist(model.encode(images[0]), model.encode(model.known_images))
    near = far.gather(1, order)
    assert bool((near.diff(dim=1) >= 0).all())
    for i, one in enumerate(labels):
        assert near[i, 0] == far[i, model.known_labels != one].min()
    assert bool((chosen(model, (images[0], labels), targets=9) == order).all())  # or as many as there are
    assert int(chosen(model, (images[0], labels), known=10).max()) < 10


def test_random_targets_are_the_image_s_own(images):
    model, labels = Linear(5, each=8), torch.arange(10) % 5
    order = chosen(model, (images[0], labels), choice="random")
    assert len(set(order[:, 0].tolist())) > 4 and bool((model.known_labels[order] != labels[:, None]).all())
    noise = draws.ImageDraws.derived(torch.arange(10), "test").rows(torch.tensor([7]))
    alone = target_images._targets(model, Seen.by(model, images[0][7:8]), labels[7:8], noise, 2, "random", 500)
    assert torch.equal(alone[0], order[7])


@pytest.mark.parametrize("name", ["latent_distance", "vae_loss", "target_code"])
@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"steps": 0}, "need"), ({"eps": -1.0}, "need"), ({"constant": -1.0}, "need"), ({"targets": 0}, "need"),
        ({"kl_weight": -1.0}, "need"),
        ({"known": 1}, "at least two classes"), ({"choice": "near"}, "did you mean nearest"),
        ({"goal": "distanc"}, "did you mean distance"), ({"price": "relativ"}, "did you mean relative"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(name, wrong, said, images):
    if ("eps" in wrong) == (name == "target_code") and ("eps" in wrong or "constant" in wrong):
        return
    if {"constant", "price"} & set(wrong) and name != "target_code":
        return
    radius = {"eps": 0.1} if name != "target_code" else {}
    with pytest.raises(ValueError, match=said):
        attacked(name, Linear(), images, **{**radius, **wrong})


# ---------------------------------------------------------------------------------------------- defenses


class Drawing(Defense):
    """Curved as a defense, with a posterior and a classifier behind the reconstruction."""

    title, paper, year, differentiable = "Drawing", "https://example.org", 2020, True

    def __init__(self) -> None:
        head = nn.Linear(16, 3, dtype=torch.float64).requires_grad_(False)
        super().__init__(nn.Sequential(nn.Flatten(), head))
        self.model = Curved()

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        return self.posterior(images)[0]

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.posterior(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("latent_distance", {"eps": 0.1}), ("vae_loss", {"eps": 0.1}),
        ("target_code", {}), ("target_code", {"price": "relative"}),
    ],
)  # fmt: skip
def test_of_a_defense_with_a_posterior_the_declared_rows_are_spent(name, more, images):
    model = Curved()
    target = threat.through_codes(
        Drawing(), "autograd", eot=1, seed_parts=(), known=Split(model.known_images, model.known_labels)
    )
    found = attacked(name, target, images, steps=6, targets=2, choice="nearest", **more)
    info = catalog.ATTACKS[name]
    forward, backward = info.cost(steps=6, targets=2, **more)
    once = info.once(known=len(model.known_labels), choice="nearest")
    assert (target.forward_rows, target.backward_rows) == (10 * forward + once, 10 * backward)
    with torch.no_grad():
        assert torch.equal(found.broken, target(found.images).argmax(dim=1) != 0)
    assert all(values.shape == (10,) and bool(values.isfinite().all()) for values in found.told.values())


def test_an_estimate_holds_the_known_images_of_every_chunk():
    asked = protocols.get("digits-v1").limited(130)  # in three chunks
    near, far = (
        AttackSpec("target_code", "latent", params=(("choice", choice), ("known", 40)), route="autograd")
        for choice in ("nearest", "random")
    )
    assert attack_cost.rows([near], asked)[0] == attack_cost.rows([far], asked)[0] + 3 * 40
