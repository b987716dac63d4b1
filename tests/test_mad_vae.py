"""MAD-VAE: its losses against closed forms, its three models, its sizes."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Generator, nn
from trainings import array, asked

from bench import training
from bench.data import Dataset, Split
from bench.progress import Progress
from defenses import mad_vae, pairs
from defenses.defense_vae import attack_jobs
from defenses.mad_vae import MADVAE, MADVAEClassification, MADVAEDistance
from defenses.mad_vae_vanilla import MADVAEVanilla

MODELS = (MADVAE, MADVAEClassification, MADVAEDistance, MADVAEVanilla)
LABELS = torch.tensor([0, 2, 1, 2])


def linear(pixels: int = 784) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 10)).requires_grad_(False).eval()


def build(cls=MADVAE, pixels: int = 784, **settings) -> MADVAE:
    torch.manual_seed(0)
    return cls(linear(pixels), **{"width": 4, "latent": 8, **settings})


def seeded() -> Generator:
    return Generator().manual_seed(0)


def tiny(shape: tuple[int, int, int], n: int = 60) -> Dataset:
    """Noise with a bright stripe whose height is the class."""
    labels = torch.arange(n) % 10
    stripe = torch.arange(shape[1])[None] // 2 == labels[:, None]
    images = torch.rand(n, *shape, generator=seeded()) * 0.2 + 0.8 * stripe[:, None, :, None]
    nothing = Split(images[:0], labels[:0])
    return Dataset("tiny", Split(images, labels), nothing, nothing, tuple("0123456789"), "all of it")


@pytest.mark.parametrize("distance", ["paper", "code"])
def test_the_distance_to_other_classes_is_the_formula(distance):
    defense = build(n_classes=3, latent=2, distance=distance)
    centres = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    (defense.centres if distance == "paper" else defense.repelling).data = centres
    latents = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 4.0]])
    to_codes = torch.tensor([[5.0 + 1.0], [1.0 + 18**0.5], [3.0 + 10**0.5], [5.0 + 0.0]])[:, 0] / 2
    between = torch.tensor([5.0 + 1.0, 1.0 + 18**0.5, 5.0 + 18**0.5, 1.0 + 18**0.5]) / 2
    expected = to_codes + between if distance == "paper" else to_codes
    found = defense.distance_to_others(latents, LABELS)
    assert torch.allclose(found, expected, atol=1e-5)
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in defense.parameters())


def test_each_loss_has_its_weight():
    images = torch.rand(4, 1, 28, 28, generator=seeded())
    parts = {"classification_weight": 0.5, "proximity_weight": 0.25, "distance_weight": 0.125}

    def value(**weights: float) -> torch.Tensor:
        defense = build(**{**dict.fromkeys(parts, 0.0), **weights}).eval()
        if defense.centres is not None:
            defense.centres.data = torch.zeros_like(defense.centres)
        return defense.loss(images, images, LABELS, seeded())

    alone = value()
    whole = value(**parts)
    steps = [value(**{name: weight}) - alone for name, weight in parts.items()]
    assert torch.allclose(whole - alone, sum(steps), atol=1e-5) and all(step.abs() > 1e-4 for step in steps)
    assert torch.isclose(steps[1] / 0.25, -steps[2] / 0.125), "about one point, all centres are equally far"
    defense = build(proximity_weight=0.0, distance_weight=0.0, classification_weight=0.0).eval()
    mean, log_variance = defense.posterior(images)
    noise = torch.randn(mean.shape, generator=seeded())
    decoded, pixels = array(defense.decode(mean + (0.5 * log_variance).exp() * noise)), array(images)
    entropy = -(pixels * np.log(decoded) + (1 - pixels) * np.log(1 - decoded)).mean()
    mean, log_variance = array(mean), array(log_variance)
    divergence = (np.exp(log_variance) + mean**2 - 1 - log_variance).mean() / 2
    assert alone.item() == pytest.approx(entropy + 0.1 * divergence, rel=1e-6)


def test_the_losses_of_code_and_classifier_are_averages_over_images():
    """Cross-entropy of what the frozen classifier says of the reconstruction; distance of the sampled code, not of the
    mean, to its class's centre; the target of the reconstruction is clean, what is encoded is attacked."""
    data = tiny((1, 28, 28), 20).train
    attacked, labels = data.images.flip(0), data.labels
    defense = build(kl_weight=0.0, classification_weight=0.5, proximity_weight=0.25, distance_weight=0.0).eval()
    for layer in [*defense.vae.encoder, *defense.vae.decoder]:  # answers that differ among images
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, 0.2, generator=seeded())
    mean, log_variance = defense.posterior(attacked)
    latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=seeded())
    decoded = defense.decode(latents)
    answers, pixels, clean = array(defense.classifier(decoded)), array(decoded), array(data.images)
    answers -= np.log(np.exp(answers).sum(axis=1, keepdims=True))
    apart = np.linalg.norm(array(latents) - array(defense.centres)[labels.numpy()], axis=1)
    entropy = -(clean * np.log(pixels) + (1 - clean) * np.log(1 - pixels)).mean()
    expected = entropy - 0.5 * answers[np.arange(20), labels.numpy()].mean() + 0.25 * apart.mean()
    found = defense.loss(attacked, data.images, labels, seeded()).item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
@pytest.mark.parametrize("cls", MODELS)
def test_each_model_builds_and_learns_on_images_of_any_size(cls, shape, monkeypatch):
    made = pairs.Pairs(tiny(shape).train.images.flip(0), torch.arange(60).flip(0))
    monkeypatch.setattr(mad_vae, "attacked_pairs", lambda *given, **options: made)
    defense = build(cls, pixels=torch.Size(shape).numel(), shape=shape, epochs=1, batch_size=30, **_weights(cls))
    before = {name: value.clone() for name, value in defense.named_parameters()}
    defense.fit(tiny(shape), seeded(), Progress())
    moved = {name for name, value in defense.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before), "every part learns"
    images = tiny(shape).train.images[:3]
    assert defense.purify(images, seeded()).shape == images.shape
    assert ("centres" in before) == (cls in (MADVAE, MADVAEDistance))


def _weights(cls: type[MADVAE]) -> dict[str, float]:
    return {name: value for name, value in cls.recipes["paper"].items() if name.endswith("_weight")}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_both_sets_of_centres_move_by_their_own_rates_which_fall_to_a_tenth_each_epoch(shape, monkeypatch):
    """The code's distance, an epoch a step: a centre goes towards its class's codes by 0.5 times the weight times the
    mean unit vector, a repelling one away from the other classes' by 1e-4 times; nothing is clipped."""
    rows = torch.arange(60).flip(0)
    monkeypatch.setattr(mad_vae, "attacked_pairs", lambda *_, **__: pairs.Pairs(tiny(shape).train.images[rows], rows))
    weights = {"proximity_weight": 2.0, "distance_weight": 3000.0}  # as published the latter's steps are below 1e-9
    defense = build(pixels=torch.Size(shape).numel(), shape=shape, distance="code", epochs=3, batch_size=60, **weights)
    seen, measure = [], defense.distance_to_others

    def watched(latents, labels):
        seen.append((array(latents), labels.numpy(), array(defense.centres), array(defense.repelling)))
        return measure(latents, labels)

    monkeypatch.setattr(defense, "distance_to_others", watched)
    networks = {name: value.clone() for name, value in defense.vae.named_parameters()}
    defense.fit(tiny(shape), seeded(), Progress())
    assert all(not torch.equal(value, networks[name]) for name, value in defense.vae.named_parameters())
    after = [
        *((centres, repelling) for *_, centres, repelling in seen[1:]),
        (array(defense.centres), array(defense.repelling)),
    ]
    assert len(seen) == 3
    for epoch, ((latents, labels, *before), moved) in enumerate(zip(seen, after, strict=True)):
        own = labels == np.arange(10)[:, None]  # (K, N)
        rates = (-0.5 * 2 * 0.1**epoch * own / 60, 1e-4 * 3000 * 0.1**epoch * ~own / 9 / 60)
        for start, end, rate in zip(before, moved, rates, strict=True):
            towards = start[:, None] - latents  # (K, N, D)
            units = towards / np.linalg.norm(towards, axis=2, keepdims=True)
            step = (rate[:, :, None] * units).sum(axis=1)
            assert np.abs(step).max() > 1e-4 and np.allclose(end - start, step, atol=3e-6)


def test_proximity_draws_the_codes_of_a_class_together():
    data = tiny((1, 28, 28))
    images, labels = data.train.images, data.train.labels

    def nearest_centre(weight: float) -> float:
        defense = build(proximity_weight=weight, distance_weight=1e-4, classification_weight=0.0, width=8)
        training.train(
            defense, lambda x, y: defense.loss(x, x, y, generator), (images, labels),
            optimizer=torch.optim.Adam(defense.parameters(), lr=3e-3), epochs=30, batch_size=60,
            generator=(generator := seeded()), progress=Progress(), label="codes",
        )  # fmt: skip
        defense.train()  # so few steps leave no running statistics to rely on
        with torch.no_grad():
            nearest = torch.cdist(defense.encode(images), defense.centres).argmin(dim=1)
        return float((nearest == labels).float().mean())

    assert nearest_centre(0.3) > 0.9 > nearest_centre(1e-6) + 0.3


def test_the_paper_recipe_attacks_all_training_images_nine_times_with_their_labels(monkeypatch):
    jobs = mad_vae.PAPER_JOBS
    assert [job.attack for job in jobs] == ["fgsm"] * 3 + ["r_fgsm"] * 3 + ["cw_l2"] * 3
    assert [job.params for job in jobs[:3]] == [{"eps": eps} for eps in (0.25, 0.3, 0.35)]
    assert [job.params for job in jobs[3:6]] == [{"eps": eps, "alpha": 0.05} for eps in (0.25, 0.3, 0.35)]
    assert [job.params["kappa"] for job in jobs[6:]] == [5, 10, 15]
    for job in jobs[6:]:
        assert (job.params["searches"], job.params["steps"], job.params["learning_rate"]) == (9, 1500, 0.01)
        assert job.params["box"] == "tanh"
    assert {job.share for job in jobs} == {1.0}
    calls = given(monkeypatch)
    for cls in MODELS:
        asked(build(cls, **cls.recipes["paper"]), tiny((1, 28, 28)), seeded())
        assert calls.pop() == (jobs, {}), "attacked_pairs takes the true labels unless told otherwise"
        asked(build(cls, pairs="defense-vae"), tiny((1, 28, 28)), seeded())
        assert calls.pop() == (attack_jobs(0.1375, 0.025), {"labels": "predicted"})
    assert inspect.signature(pairs.attacked_pairs).parameters["labels"].default == "true"


def given(monkeypatch) -> list:
    """What is asked of `attacked_pairs`, jobs and options, which gives one pair for each image."""
    calls = []

    def make(classifier, data, jobs, progress, **options):
        calls.append((jobs, options))
        return pairs.Pairs(data.train.images, torch.arange(len(data.train)))

    monkeypatch.setattr(mad_vae, "attacked_pairs", make)
    return calls


@pytest.mark.parametrize(
    ("cls", "epochs", "weights"),
    [
        (MADVAE, 10, (0.1, 0.01, 1e-5)),
        (MADVAEClassification, 10, (0.1, 0.0, 0.0)),
        (MADVAEDistance, 5, (0.0, 0.01, 1e-4)),
        (MADVAEVanilla, 5, (0.0, 0.0, 0.0)),
    ],
)
def test_the_recipes_have_the_numbers_of_the_papers_models(cls, epochs, weights, monkeypatch):
    given(monkeypatch)
    for recipe in ("paper", "fast"):
        with training.global_seed(0):
            defense = cls(linear(), **{**cls.recipes[recipe], "distance": "code"})
        assert (defense.classification_weight, defense.proximity_weight, defense.distance_weight) == weights
        assert defense.kl_weight == 0.1 and defense.vae.mean.out_features == 128
        (found,) = asked(defense, tiny((1, 28, 28)), seeded())
        options, beside = found.options, found.options["also"]
        assert type(options["optimizer"]) is torch.optim.Adam and options["clip_norm"] == 1
        assert set(options["optimizer"].param_groups[0]["params"]) == set(defense.vae.parameters())
        assert found.rates == ([1e-3, 0.5, 1e-4] if weights[1] else [1e-3])
        assert all(type(one.optimizer) is torch.optim.SGD and one.batch_loss is None for one in beside)
        if recipe == "paper":
            assert (options["epochs"], options["batch_size"], options["minimum_steps"]) == (epochs, 512, 0)
            assert [options["schedule"](n / epochs) for n in range(3)] == pytest.approx([1, 0.998, 0.998**2])
            falls = [[one.schedule(n / epochs) for n in range(3)] for one in beside]
            assert falls == [pytest.approx([1, 0.1, 0.01])] * len(beside)
            assert defense.vae.encoder[0].out_channels == 64 and cls(linear()).repelling is None, "the paper's distance"
        else:
            assert (options["epochs"], options["batch_size"], options["minimum_steps"]) == (3, 128, 600)
            assert options["schedule"](0.5) == pytest.approx(0.5) and defense.vae.encoder[0].out_channels == 32


def test_centres_start_from_the_normal_distribution_and_the_two_sets_apart():
    defense = build(latent=500, distance="code")
    for centres in (array(defense.centres), array(defense.repelling)):
        assert centres.mean() == pytest.approx(0, abs=0.05) and centres.std() == pytest.approx(1, abs=0.05)
    assert not torch.equal(defense.centres, defense.repelling)


@pytest.mark.parametrize(("setting", "value"), [("pairs", "own"), ("distance", "squared")])
def test_an_unknown_choice_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"MAD-VAE's {setting} is one of .*, got '{value}'"):
        build(**{setting: value})
