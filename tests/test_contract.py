"""The contract over every installed defense, and proof that each check can fail: a shelf of defenses that break it."""

from __future__ import annotations

import copy
import importlib
import linecache
import re
import shutil
import sys

import pytest
import torch
from torch import Generator, Tensor, nn

from bench import checks, plugins, training
from bench.data import Dataset
from bench.defense import Defense, has_door, settings, source_hash
from bench.errors import BenchError
from bench.progress import Progress


@pytest.fixture(scope="module")
def digits16() -> Tensor:
    return checks.sixteen_digits()


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(plugins.installed()))
def test_defense_keeps_the_contract(name, check, digits16):
    check(plugins.load(name), digits16)


class Honest(Defense):
    """Brightens the image a little."""

    title, paper, year = "Honest", "https://example.org/honest", 2020
    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return (0.9 * images + 0.05).clamp(0, 1)


class HonestNoise(Honest):
    """Adds noise from the generator."""

    stochastic = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        noise = torch.rand(images.shape, generator=generator, device=images.device)
        return 0.9 * images + 0.1 * noise


class HonestRefusal(Honest):
    """Refuses what is brighter than all of its validation images; its logits are on a scale of their own."""

    kind = "selective"

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("threshold", torch.ones(()))

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        def batch_loss(images: Tensor) -> Tensor:
            return (self.gain * images.mean() - 0.1).square()

        training.train(
            self, batch_loss, (data.train.images,), optimizer=torch.optim.SGD(self.parameters(), lr=0.1), epochs=100,
            batch_size=16, generator=generator, progress=progress, label="gain",
        )  # fmt: skip
        self.threshold = self.brightness(data.validation.images).amax().detach()

    def brightness(self, images: Tensor) -> Tensor:
        return self.gain * images.flatten(1).mean(dim=1)

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return 1e-6 * self.classifier(self.purify(images, generator))

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return self.brightness(images) / self.threshold


@pytest.mark.parametrize("cls", [Honest, HonestNoise, HonestRefusal], ids=lambda cls: cls.__name__)
def test_honest_defenses_have_no_finding(cls):
    assert [finding for finding in checks.run(cls) if finding.problem] == []


class Costly(Honest):
    """Takes a thousand steps, one of which proves as much."""

    brief = {"steps": 1}

    def __init__(self, classifier: nn.Module, *, steps: int = 1000) -> None:
        super().__init__(classifier)
        self.steps = steps

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        assert self.steps == 1, "this would take minutes"
        return super().purify(images, generator)


class Strange(Costly):
    """Is brief about what it does not take."""

    brief = {"stepps": 1}


def test_a_costly_defense_is_proven_with_less_of_the_same_and_measured_with_all():
    assert [finding for finding in checks.run(Costly) if finding.problem] == []
    assert settings(Costly)[1] == {"steps": 1000}
    assert all("stepps" in finding.problem for finding in checks.run(Strange) if finding.check == "images_come_back")


class Nameless(Honest):
    """No title."""

    title = ""


class NoLink(Honest):
    """A paper that is no link."""

    paper = "in press"


class Positional(Honest):
    """A hyper-parameter without a default."""

    def __init__(self, classifier: nn.Module, strength: float) -> None:
        super().__init__(classifier)


class StrangeRecipe(Honest):
    """A recipe that sets what does not exist."""

    recipes = {"fast": {"strenght": 1.0}}


class Owner(Honest):
    """Registers the classifier as its own."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.mine = classifier


class OutOfRange(Honest):
    """Returns images in [-1, 1]."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return 2 * images - 1


class Double(Honest):
    """Returns float64."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images.double()


class OnlyBatches(Honest):
    """Drops the last image of an odd batch."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images[: len(images) // 2 * 2]


class NotANumber(Honest):
    """Divides by the brightest pixel: black images become NaN."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images / images.amax(dim=(1, 2, 3), keepdim=True)


class InPlace(Honest):
    """Writes to its input."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images.mul_(0.9) if not images.requires_grad else images * 0.9


class GlobalNoise(Honest):
    """Draws from torch's global generator."""

    stochastic = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return 0.9 * images + 0.1 * torch.rand_like(images)


class Undeclared(HonestNoise):
    """Random, and says it is not."""

    stochastic = False


class PretendsNoise(Honest):
    """Deterministic, and says it is random, to be averaged over."""

    stochastic = True


class BatchMean(Honest):
    """Subtracts a statistic of the batch."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return (images - 0.1 * images.mean(dim=0, keepdim=True)).clamp(0, 1)


class ByPlace(Honest):
    """Darkens every second image of a batch."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images * torch.where(torch.arange(len(images)) % 2 == 0, 1.0, 0.9)[:, None, None, None]


class TrainingBatchNorm(Honest):
    """Batch normalisation left in training mode, as in released code of Defense-VAE."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.norm = nn.BatchNorm2d(1)

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        self.norm.train()
        return self.norm(images).sigmoid()


class Remembers(Honest):
    """Mixes in the last image it saw."""

    last: Tensor | None = None

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        last, self.last = self.last, images.detach()[:1]
        return images if last is None else (0.9 * images + 0.1 * last).clamp(0, 1)


class GradModeSniffer(Honest):
    """Purifies well only while nobody asks for gradients."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images * 0.1 if torch.is_grad_enabled() else images


class Rounds(Honest):
    """Rounds, and says that it is differentiable."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images.round()


class Detached(Honest):
    """Detaches, and says that it is differentiable."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images.detach()


class DeadSurrogate(Honest):
    """Not differentiable, with a stand-in that is constant."""

    differentiable = False

    def approximate(self, images: Tensor, generator: Generator) -> Tensor:
        return torch.zeros_like(images)


class HalfOverride(Honest):
    """Overrides logits alone."""

    differentiable = False

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.classifier(images).round()


class FalseSurrogate(Honest):
    """A surrogate of another value than the defense."""

    def surrogate_logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.classifier(images) + 1


class Tampers(Honest):
    """Changes the shared classifier."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        with torch.no_grad():
            next(self.classifier.parameters()).add_(0.1)
        return images


class WakesClassifier(Honest):
    """Puts the shared classifier in training mode."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        self.classifier.train()
        return images


class LearnsNothing(Honest):
    """Has a fit that does not learn."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.scale = nn.Parameter(torch.ones(()))

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        return None


class NoWeights(Honest):
    """Learns into a plain attribute that no checkpoint holds."""

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        self.mean = data.train.images.mean()


class PlainAttribute(Honest):
    """Learns a brightness into a plain attribute beside its weights."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.shift, self.learned = nn.Parameter(torch.zeros(())), 0.0

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        self.shift.data.fill_(0.01)
        self.learned = 0.1

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return (0.8 * images + self.shift + self.learned).clamp(0, 1)


class OddLatents(Honest):
    """A decoder of another size than the images."""

    def encode(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, None, None, :]


class OneStartCode(OddLatents):
    """Draws the same code whatever the generator says."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents.view(-1, 1, 28, 28)

    def start_codes(self, images: Tensor, generator: Generator) -> Tensor:
        return torch.zeros(len(images), 784)


class InAHurry(Honest):
    """Hurries in some way that is none."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.gain, self.work = nn.Parameter(torch.full((1,), 0.9)), 4

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        for _ in range(self.work):
            images = self.gain * images + 0.05
        return images.clamp(0, 1)

    def hurried(self) -> Defense:
        found = copy.copy(self)
        found.work = 2
        return found


class HurriesWithOtherWeights(InAHurry):
    """Shows attackers another defense."""

    def hurried(self) -> Defense:
        found = copy.deepcopy(self)
        found.gain = nn.Parameter(torch.full((1,), 0.1))
        return found


class HurriesItself(InAHurry):
    """Is in a hurry from then on."""

    def hurried(self) -> Defense:
        self.work = 1
        return self


class HurriesSlowly(InAHurry):
    """Works more for attackers than for anybody."""

    def hurried(self) -> Defense:
        found = copy.copy(self)
        found.work = 9
        return found


class HurriesBlindly(InAHurry):
    """Shows attackers no gradient."""

    def hurried(self) -> Defense:
        found = copy.copy(self)
        found.purify = lambda images, generator: images.detach()
        return found


class HurriesOutOfRange(InAHurry):
    """Leaves [0, 1] in a hurry."""

    def hurried(self) -> Defense:
        found = copy.copy(self)
        found.purify = lambda images, generator: 2 * images
        return found


class SelectiveInName(Honest):
    """Says it refuses, and cannot."""

    kind = "selective"


class ScoreWithoutGradient(SelectiveInName):
    """A score that no attacker may climb."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return images.detach().flatten(1).mean(dim=1)


class ThresholdFromTestImages(SelectiveInName):
    """Refuses so that no test image is: there is none to look at."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.register_buffer("threshold", torch.ones(1))

    def fit(self, data, generator: Generator, progress) -> None:
        self.threshold = data.test.images.mean().view(1)

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return images.flatten(1).mean(dim=1) / self.threshold


class ScoresThatBoundNothing(SelectiveInName):
    """Tells attackers that every class accepts what it refuses."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return 2 + images.flatten(1).mean(dim=1)

    def class_scores(self, images: Tensor, generator: Generator) -> Tensor:
        return images.flatten(1).mean(dim=1)[:, None, None].expand(-1, 10, 2)


class ScoresOfOneClass(ScoresThatBoundNothing):
    """Has one score for each image."""

    def class_scores(self, images: Tensor, generator: Generator) -> Tensor:
        return self.rejection_score(images, generator)


class ScoreOfTheBatch(HonestRefusal):
    """Refuses what is brighter than the other images of the batch, on a scale of millionths."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        brightness = self.brightness(images)
        return 1e-6 * brightness / brightness.mean()


class LogitsOfTheBatch(HonestRefusal):
    """Takes the mean of the batch off its logits."""

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        logits = self.classifier(images)
        return logits - logits.mean(dim=0, keepdim=True)


class ScoreSniffsGradMode(HonestRefusal):
    """Accepts all while somebody asks for gradients."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        score = super().rejection_score(images, generator)
        return 0.5 * score if torch.is_grad_enabled() else score


class UndeclaredScore(HonestRefusal):
    """Refuses at random, and says that it does not."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        drawn = torch.rand(len(images), generator=generator, device=images.device)
        return super().rejection_score(images, generator) + 0.1 * drawn


class ScoreOfGlobalNoise(HonestRefusal):
    """Refuses at random, by numbers that no seed of the harness gives."""

    stochastic = True

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return super().rejection_score(images, generator) + 0.1 * torch.rand(len(images))


class ScoreRemembersFirst(HonestRefusal):
    """Compares every batch with the first one that it saw."""

    first: Tensor | None = None

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        brightness = self.brightness(images)
        if self.first is None:
            self.first = brightness.detach().mean()
        return brightness / self.first


class ScoreOfTheLastPurified(HonestRefusal):
    """Scores what was purified last, in the belief that these are the same images."""

    last: Tensor | None = None

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        self.last = super().purify(images, generator)
        return self.last

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.classifier(Honest.purify(self, images, generator))

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return self.brightness(self.purify(images, generator) if self.last is None else self.last)


class ScoreWritesToItsInput(HonestRefusal):
    """Takes the mean off the caller's images."""

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        if not images.requires_grad:
            images.mul_(0.9)
        return super().rejection_score(images, generator)


class PlainThreshold(HonestRefusal):
    """Keeps the threshold that it sets after its training where no checkpoint looks."""

    limit = 1.0

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        super().fit(data, generator, progress)
        self.limit = 2 * float(self.threshold)

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        return self.brightness(images) / self.limit


def test_a_defense_that_hurries_honestly_has_no_finding():
    assert [finding for finding in checks.run(InAHurry) if finding.problem] == []


SHELF = [
    (Nameless, "facts", "title"),
    (NoLink, "facts", "expected a link"),
    (Positional, "builds_from_keywords", "keyword-only"),
    (StrangeRecipe, "builds_from_keywords", "strenght"),
    (Owner, "classifier_is_not_a_child", "owns the classifier"),
    (OutOfRange, "images_come_back", r"values in \[-1, 1\], expected \[0, 1\]"),
    (Double, "images_come_back", "float64"),
    (OnlyBatches, "images_come_back", r"\(0, 1, 28, 28\)"),
    (NotANumber, "images_come_back", "not finite"),
    (InPlace, "input_is_unchanged", "changed its input"),
    (GlobalNoise, "same_seed_same_output", "same generator"),
    (GlobalNoise, "global_randomness_is_untouched", "global generator"),
    (Undeclared, "randomness_is_declared", "set stochastic = True"),
    (PretendsNoise, "randomness_is_declared", "set stochastic = False"),
    (BatchMean, "rows_are_independent", "others change"),
    (ByPlace, "rows_are_independent", "differs by"),
    (TrainingBatchNorm, "stateless", "changed its weights or buffers"),
    (Remembers, "stateless", "keep no state"),
    (GradModeSniffer, "grad_mode_makes_no_difference", "grad mode"),
    (Rounds, "gradient_reaches_the_images", "zero for 16 of 16"),
    (Detached, "gradient_reaches_the_images", "no gradient"),
    (DeadSurrogate, "gradient_reaches_the_images", "surrogate_logits has no gradient"),
    (HalfOverride, "surrogate_has_the_true_value", "override surrogate_logits too"),
    (FalseSurrogate, "surrogate_has_the_true_value", "off by"),
    (Tampers, "classifier_is_untouched", "weights"),
    (WakesClassifier, "classifier_is_untouched", "training mode"),
    (LearnsNothing, "fit_learns", "changed no weights"),
    (NoWeights, "fit_learns", "no weights"),
    (PlainAttribute, "weights_hold_what_fit_learned", "register_buffer"),
    (OddLatents, "latent_doors", r"decode\(encode\(images\)\)"),
    (OneStartCode, "start_codes", "follow from the generator"),
    (HurriesWithOtherWeights, "hurried", "other weights"),
    (HurriesItself, "hurried", "set nothing on self"),
    (HurriesSlowly, "hurried", "must spend less"),
    (HurriesBlindly, "hurried", "no finite, nonzero gradient"),
    (HurriesOutOfRange, "hurried", r"leaves \[0, 1\]"),
    (SelectiveInName, "rejection_score", "go together"),
    (ScoreWithoutGradient, "rejection_score", "no finite, nonzero gradient"),
    (ThresholdFromTestImages, "fit_learns", "not finite"),
    (ScoreOfTheBatch, "rows_are_independent", "rejection_score: image 0 changes"),
    (LogitsOfTheBatch, "rows_are_independent", "logits: image 0 changes"),
    (ScoreSniffsGradMode, "grad_mode_makes_no_difference", "rejection_score differs"),
    (UndeclaredScore, "randomness_is_declared", "set stochastic = True"),
    (ScoreOfGlobalNoise, "same_seed_same_output", "rejection_score differs"),
    (ScoreOfGlobalNoise, "global_randomness_is_untouched", "global generator"),
    (ScoreRemembersFirst, "stateless", "rejection_score: the same images give another answer"),
    (ScoreOfTheLastPurified, "stateless", "rejection_score: the same images give another answer"),
    (ScoreWritesToItsInput, "input_is_unchanged", "rejection_score changed its input"),
    (PlainThreshold, "weights_hold_what_fit_learned", "rejection_score: with the saved weights"),
    (ScoresThatBoundNothing, "class_scores", "larger by"),
    (ScoresOfOneClass, "class_scores", r"expected \(16, 10, 2\)"),
]


@pytest.mark.parametrize("cls, check, says", SHELF, ids=lambda x: x.__name__ if isinstance(x, type) else None)
def test_a_broken_contract_is_found_by_the_right_check(cls, check, says):
    findings = {finding.check: finding.problem for finding in checks.run(cls)}
    assert findings[check], f"{check} found nothing"
    assert re.search(says, findings[check]), findings[check]


def test_every_check_is_proved_able_to_fail():
    unproved = {check.__name__.removeprefix("check_") for check in checks.ALL} - {check for _, check, _ in SHELF}
    assert unproved == {"logits"}  # a wrong shape of logits is shown in test_evaluation


def test_the_classifier_is_not_part_of_a_defense():
    net = nn.Linear(2, 2)
    defense = Honest(net)
    assert defense.classifier is net and list(defense.parameters()) == [] and defense.state_dict() == {}
    defense.train()
    net.eval()
    defense.train()
    assert not net.training


def test_a_missing_door_says_that_it_is_missing(digits16):
    defense = Honest(nn.Flatten())
    with pytest.raises(NotImplementedError, match="Honest has no encoder"):
        defense.encode(digits16)
    assert not has_door(defense, "encode") and has_door(OddLatents, "encode")


def test_settings_come_from_defaults_shape_and_recipe():
    cls = plugins.load("identity_vae")
    name, chosen = settings(cls, None, (3, 32, 32))
    assert name == "fast" and chosen["shape"] == (3, 32, 32) and chosen["width"] == 32 and chosen["latent"] == 128
    assert settings(cls, "paper")[1]["width"] == 64
    with pytest.raises(BenchError, match="did you mean paper"):
        settings(cls, "papier")


def test_the_source_hash_sees_code_and_not_prose(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "from bench.defense import Defense\n"
        "class D(Defense):\n"
        '    """{}"""\n'
        "    def purify(self, images, generator):\n"
        "        return images * {}  # {}\n"
    )
    hashes = []
    for i, (doc, factor, comment) in enumerate([("a", 1, "x"), ("b", 1, "y"), ("a", 2, "x")]):
        (tmp_path / f"made_up_{i}.py").write_text(code.format(doc, factor, comment))
        importlib.invalidate_caches()
        hashes.append(source_hash(importlib.import_module(f"made_up_{i}").D))
        del sys.modules[f"made_up_{i}"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_source_hash_follows_helpers_of_the_same_package_and_code_without_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "made_up_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "entry.py").write_text(
        "from bench.defense import Defense\nfrom made_up_package.helper import clean\n"
        "class D(Defense):\n    def purify(self, images, generator):\n        return clean(images)\n"
    )
    hashes = []
    for factor in ("1.00", "0.50"):
        (package / "helper.py").write_text(f"def clean(images):\n    return images * {factor}\n")
        for name in [name for name in sys.modules if name.startswith("made_up_package")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        linecache.clearcache()
        hashes.append(source_hash(importlib.import_module("made_up_package.entry").D))
        shutil.rmtree(package / "__pycache__", ignore_errors=True)
    assert hashes[0] != hashes[1]

    for imported in ("from made_up_package.table import K", "from .table import K", "from . import table"):
        lazily = f"def clean(images):\n    {imported}\n    return images\n"
        for place in (imported + "\ndef clean(images):\n    return images\n", lazily):
            (package / "helper.py").write_text(place)
            seen = set()
            for constant in (3, 300):
                (package / "table.py").write_text(f"K = {constant}\n")
                for name in [name for name in sys.modules if name.startswith("made_up_package")]:
                    del sys.modules[name]
                importlib.invalidate_caches()
                linecache.clearcache()
                seen.add(source_hash(importlib.import_module("made_up_package.entry").D))
                shutil.rmtree(package / "__pycache__", ignore_errors=True)
            assert len(seen) == 2, place

    def typed_in(body: str) -> type[Defense]:
        space = {"__name__": "nowhere", "Defense": Defense}
        exec(f"class D(Defense):\n    def purify(self, images, generator):\n        return {body}\n", space)
        return space["D"]

    assert source_hash(typed_in("images")) == source_hash(typed_in("images")) != source_hash(typed_in("images * 0"))


@pytest.mark.parametrize("default", [nn.ReLU, float("nan"), {"a": 1}], ids=str)
def test_a_hyper_parameter_that_no_record_can_hold_is_an_error(default):
    class Odd(Honest):
        """A strange default."""

        def __init__(self, classifier: nn.Module, *, strength: object = default) -> None:
            super().__init__(classifier)

    with pytest.raises(BenchError, match="cannot be written to a record"):
        settings(Odd)
    with pytest.raises(BenchError, match="has no default"):
        settings(Positional)


def test_kmeans_agrees_with_lloyd_done_by_hand():
    """Pixels 0, .1, .9, 1 and k = 2: centres .05 and .95. With one colour for each pixel nothing changes."""
    image = torch.tensor([0.0, 0.1, 0.9, 1.0]).view(1, 1, 2, 2)
    cls = plugins.load("kmeans")
    generator = Generator()
    two = cls(nn.Flatten(), k=2).purify(image, generator)
    assert torch.allclose(two.flatten(), torch.tensor([0.05, 0.05, 0.95, 0.95]))
    assert torch.allclose(cls(nn.Flatten(), k=20).purify(image, generator), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_kmeans_agrees_with_scikit_learn(channels):
    """From the same start, an independent implementation of Lloyd's algorithm ends in the same image."""
    from sklearn.cluster import KMeans as Reference

    images = checks.sixteen_digits()[:4].expand(-1, channels, -1, -1).clone()
    images += 0.2 * torch.rand(images.shape, generator=Generator().manual_seed(0))
    images = images.clamp(0, 1)
    ours = plugins.load("kmeans")(nn.Flatten(), k=4, iterations=50).purify(images, Generator())
    for image, purified in zip(images, ours, strict=True):
        pixels = image.flatten(1).T.numpy()
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        start = low + (high - low) * torch.linspace(0, 1, 4).numpy()[:, None]
        reference = Reference(4, init=start, n_init=1, max_iter=50, tol=0, algorithm="lloyd").fit(pixels)
        expected = torch.from_numpy(reference.cluster_centers_[reference.labels_]).float().T.view(image.shape)
        assert torch.allclose(purified, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=str)
def test_the_vae_builds_and_steps_on_every_size(shape):
    from defenses.vae import ConvVAE, evidence_loss, sample

    vae, images = ConvVAE(shape, width=4, latent=8), torch.rand(3, *shape)
    mean, log_variance = vae.posterior(images)
    reconstruction = vae.decode(sample(mean, log_variance, Generator()))
    assert mean.shape == log_variance.shape == (3, 8) and reconstruction.shape == images.shape
    evidence_loss(reconstruction, images, mean, log_variance, 0.1).backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_the_vae_has_the_papers_size():
    """Encoder 5*5*64 + 4*4*(64*64 + 64*128 + 128*256), heads 2 * (4096 + 1) * 128, and the decoder mirrored."""
    from defenses.vae import ConvVAE

    convolutions = 25 * 64 + 16 * (64 * 64 + 64 * 128 + 128 * 256)
    norms = 2 * (64 + 64 + 128 + 256) + 2 * (128 + 64 + 64)
    linear = 2 * (4096 + 1) * 128 + (128 + 1) * 4096
    decoder = 16 * (256 * 128 + 128 * 64 + 64 * 64) + 25 * 64 + 1
    total = sum(parameter.numel() for parameter in ConvVAE((1, 28, 28)).parameters())
    assert total == convolutions + norms + linear + decoder


@pytest.mark.parametrize("shape", [(1, 28, 27), (1, 30, 30), (1, 8, 8)], ids=str)
def test_the_vae_refuses_sizes_it_cannot_halve(shape):
    from defenses.vae import ConvVAE

    with pytest.raises(ValueError, match="square images"):
        ConvVAE(shape)
