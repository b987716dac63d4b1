"""A shelf of defenses that only hide: a gradient, a state, the test images. Each falls, is stopped or is warned of.

The board's attackers and verdicts are tried on them: tests/test_white_box.py and tests/test_verdicts_on_fakes.py.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from bench import data
from bench.defense import Defense


class Fake(Defense):
    """The base of the fakes below: passes images through."""

    title, paper, year = "Fake", "https://example.org", 2020

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images


class Rounds(Fake):
    """Rounds to 4 levels: the true gradient is zero."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return (images * 3).round() / 3


class Detaches(Fake):
    """No gradient at all reaches the images."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images.detach()


class OwnLoop(Fake):
    """An inner optimisation with its gradient written by hand: nothing for autograd to follow."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        with torch.no_grad():
            found = torch.full_like(images, 0.5)
            for _ in range(50):
                found -= 0.2 * (found - images)
            return found


class Explodes(Fake):
    """The value of the image, with a gradient that is not finite."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        zero = (images - images.detach()).sqrt()
        return images.detach() + torch.nan_to_num(zero) * 0 + zero.detach().nan_to_num() * 0


class Saturates(Fake):
    """Logits so large that the softmax underflows: the cross-entropy has no gradient, the margin has."""

    differentiable = True

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return 1e4 * self.classifier(images)


class FixedNoise(Fake):
    """Noise from a private generator with a fixed seed: deterministic, and useless."""

    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        noise = torch.rand(images.shape[1:], generator=Generator().manual_seed(0)) - 0.5  # the same for every image
        return (images + 0.2 * noise).clamp(0, 1)


class Noise(Fake):
    """Large noise from the generator."""

    stochastic = True
    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator)
        return (images + 0.3 * noise).clamp(0, 1)


class CrashesUnderAttack(Fake):
    """Raises as soon as somebody wants a gradient."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        if images.requires_grad:
            raise RuntimeError("no gradients here")
        return images


class Sniffs(Fake):
    """Shows attackers another function than the scorer."""

    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return 1 - images if images.requires_grad else images


class NaNUnderAttack(Fake):
    """Logits that are not a number wherever somebody wants a gradient, so that no loss compares."""

    differentiable = True

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.classifier(images) * (torch.nan if images.requires_grad else 1.0)


class Misleads(Fake):
    """The classifier itself, with a gradient that points the wrong way along both doors that an attacker may use."""

    differentiable = True

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.classifier(2 * images.detach() - images)

    def surrogate_logits(self, images: Tensor, generator: Generator) -> Tensor:
        return self.logits(images, generator)


class MisleadsAtRandom(Misleads):
    """The same behind noise: what counts as survival in a wide ball is a share of draws."""

    stochastic = True

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        return super().logits(images + 0.1 * torch.randn(images.shape, generator=generator), generator)


class LooksUp(Fake):
    """The test image that is nearest to the input: it knows the answers."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.known = data.load("digits").test.images

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        with torch.no_grad():
            known = self.known.to(images.device)
            return known[torch.cdist(images.flatten(1), known.flatten(1)).argmin(dim=1)]


class LooksUpWithNoise(LooksUp):
    """The same, a grey level or two off: no image is given back to the last bit."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        noise = torch.rand(images.shape[1:], generator=Generator().manual_seed(0)).to(images.device)
        return (super().purify(images, generator) + (2 * noise - 1) * 2 / 255).clamp(0, 1)


class LooksUpAtRandom(LooksUp):
    """The same, called random: fresh noise that changes no answer buys a shorter attack."""

    stochastic = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        return (super().purify(images, generator) + noise / 255).clamp(0, 1)


class NaNOnOneImage(Misleads):
    """Misleads, and fails on the darkest images: one failed image shall not silence what the others tell."""

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        found = super().logits(images, generator)
        return torch.where(images.mean(dim=(1, 2, 3))[:, None] < 0.2, torch.nan, found)


class MixesBatch(Fake):
    """Brightens towards the mean of the batch: what an image becomes depends on the others."""

    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return 0.8 * images + 0.2 * images.mean(dim=0, keepdim=True)


class Remembers(Fake):
    """Drifts a little further at every call."""

    differentiable = True
    calls = 0

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        self.calls += 1
        return images * (0.5 + 0.5 / self.calls)


class TrainsAtTest(Fake):
    """Batch normalisation left in training mode: batch statistics, and a state that moves."""

    differentiable = True

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.norm = nn.BatchNorm2d(1)

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return self.norm.train()(images).sigmoid()


class Fills(Fake):
    """Has memory for no more than `fits` images at once; squares them, so that each image's answer is its own."""

    differentiable = True

    def __init__(self, classifier: nn.Module, *, fits: int = 5, on_cpu: bool = False) -> None:
        super().__init__(classifier)
        self.fits, self.on_cpu = fits, on_cpu

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        if len(images) > self.fits:
            full = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
            raise RuntimeError(full) if self.on_cpu else torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return images**2


class FillsAtRandom(Fills):
    """The same behind noise."""

    stochastic = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator).to(images)
        return (super().purify(images, generator) + 0.3 * noise).clamp(0, 1)


def random_net(pixels: int, hidden: int, between: nn.Module) -> nn.Module:
    """A net of two layers and 6 classes in float64, so that the size of a batch leaves no trace in the last digits."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), between, nn.Linear(hidden, 6)).double().eval()
    for parameter in layers.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return layers.requires_grad_(False)
