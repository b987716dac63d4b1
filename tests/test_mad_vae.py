"""MAD-VAE: its losses against closed forms, its three models, its sizes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Generator, nn

from bench import training
from bench.data import Dataset, Split
from bench.progress import Progress
from defenses import mad_vae, pairs
from defenses.mad_vae import MADVAE, MADVAEClassification, MADVAEDistance
from defenses.mad_vae_vanilla import MADVAEVanilla
from defenses.vae import evidence_loss

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
    decoded = defense.decode(mean + (0.5 * log_variance).exp() * noise)
    assert torch.isclose(alone, evidence_loss(decoded, images, mean, log_variance, 0.1))


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


def test_recipes_differ_where_the_papers_models_do():
    asked = SimpleNamespace(**{cls.__name__: cls.recipes for cls in MODELS})
    for name in ("fast", "paper"):
        assert asked.MADVAEClassification[name]["proximity_weight"] == 0
        assert asked.MADVAEDistance[name]["classification_weight"] == 0
        assert not any(
            asked.MADVAEVanilla[name][f"{loss}_weight"] for loss in ("classification", "proximity", "distance")
        )
    assert [job.params.get("kappa") for job in mad_vae.PAPER_JOBS[-3:]] == [5, 10, 15]


@pytest.mark.parametrize(("setting", "value"), [("pairs", "own"), ("distance", "squared")])
def test_an_unknown_choice_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"MAD-VAE's {setting} is one of .*, got '{value}'"):
        build(**{setting: value})
