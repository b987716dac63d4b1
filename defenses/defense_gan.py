"""Defense-GAN (Samangouei et al. 2018): the image of a GAN that is closest to the given one, found by descent.

`defense_gan_short` searches less, `defense_gan_encoder` starts where an encoder points.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.defense import Defense
from bench.draws import ImageDraws
from bench.progress import Progress
from defenses import wgan
from defenses.latent_search import Descent, Found, frozen, replay, search

FAST: dict[str, Any] = {
    "width": 32, "gan_steps": 3_000, "critic_steps": 2, "gan_rate": 4e-4, "decay": True,
}  # fmt: skip
BRIEF = {"width": 4, "search_steps": 6}


class DefenseGAN(Defense):
    """Images are replaced by the closest that a GAN can make: the best of R searches of L steps for its code.

    A WGAN with gradient penalty learns the clean images: a generator of three transposed convolutions, codes of 128
    numbers, 200,000 steps of Adam at 1e-4 on batches of 50, each after 5 of the critic. An image is purified by descent
    in the code, L = 200 steps of rate 10 and momentum 0.7 from R = 10 starts drawn from N(0, 1/128), on the mean
    squared difference of its own pixels; the restart that comes closest is decoded.

    As in the released code the last step's move is not used and the rate never falls. Unlike it, the penalty takes the
    norm of an image's whole gradient, not that of each column. The `fast` recipe has half the width and 3,000 steps,
    each after 2 of the critic, at a rate that falls from 4e-4 along a cosine.

    The search ends in a code that no gradient reaches, so the released white-box attacks saw none. Here the true route
    has the gradient of the best restart's last `unrolled` moves, and BPDA takes the purifier for the identity (Athalye
    et al. 2018, arXiv:1802.00420); attackers of the code have `decode`.
    """

    title = "Defense-GAN"
    paper = "https://arxiv.org/abs/1805.06605"
    year = 2018
    stochastic = True
    trained_on = "clean images"
    recipes = {"fast": FAST, "paper": {}}
    brief: ClassVar[dict[str, Any]] = {**BRIEF, "restarts": 3, "unrolled": 2}

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 64,
        latent: int = 128,
        gan_steps: int = 200_000,
        critic_steps: int = 5,
        penalty: float = 10.0,
        gan_rate: float = 1e-4,
        batch_size: int = 50,
        decay: bool = False,
        search_steps: int = 200,
        restarts: int = 10,
        search_rate: float = 10.0,
        momentum: float = 0.7,
        start_variance: float = 1 / 128,
        unrolled: int = 10,
    ) -> None:
        """Raises ValueError for a search without a step or a start."""
        super().__init__(classifier)
        if restarts < 1:
            raise ValueError(f"a search needs at least 1 start, got {restarts}")
        self.gan = wgan.ImageGenerator(shape, width, latent)
        self.shape, self.width = shape, width
        self.gan_steps, self.critic_steps, self.penalty = gan_steps, critic_steps, penalty
        self.gan_rate, self.batch_size, self.decay = gan_rate, batch_size, decay
        self.descent = Descent(search_steps, search_rate, momentum)
        self.restarts, self.start_variance = restarts, start_variance
        self.unrolled = min(unrolled, search_steps - 1)

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train the GAN on the clean training images; the critic is not kept."""
        with training.global_seed(generator.initial_seed()):
            critic = wgan.features(self.shape, self.width, 1).to(data.train.images.device)
        wgan.train(
            self.gan, critic, data.train.images, steps=self.gan_steps, critic_steps=self.critic_steps,
            batch_size=self.batch_size, learning_rate=self.gan_rate, decay=self.decay, penalty=self.penalty,
            generator=generator, progress=progress, label=f"training the GAN of {self.title} on {data.name}",
        )  # fmt: skip

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The closest image found, with the gradient of the last moves where the images ask for one."""
        starts = self.starts(images, generator)
        with frozen(self.gan):
            found = search(self.decode, images, starts, self.descent, tail=self.unrolled)
            if not (torch.is_grad_enabled() and images.requires_grad):
                return found.images
            again = replay(self.decode, images, self.before(starts, found), self.descent, self.unrolled)
        return found.images + (again - again.detach())  # type: ignore[no-any-return]

    def starts(self, images: Tensor, generator: Generator) -> Tensor:
        """The codes from which the searches start, (N, R, latent): random numbers of each image's own."""
        own = torch.randint(2**63 - 1, (len(images),), generator=generator, device=images.device)
        normal = ImageDraws(own).normal(self.restarts, self.gan.latent)
        return math.sqrt(self.start_variance) * normal

    def before(self, starts: Tensor, found: Found) -> tuple[Tensor, Tensor]:
        """Codes and velocities, (N, latent) each, of the best restarts, `unrolled` moves before their end."""
        return found.tail

    def hurried(self) -> DefenseGAN:
        """Half the steps from a fifth of the starts, 100 from 2 for the paper's 200 from 10, with the gradient of as
        many last moves. A shorter search, such as 25 steps from 1 start, often ends at another image than the whole."""
        found = copy.copy(self)
        found.descent = replace(self.descent, steps=max(self.descent.steps // 2, 1))
        found.restarts = max(self.restarts // 5, 1)
        found.unrolled = min(self.unrolled, found.descent.steps - 1)
        return found

    def start_codes(self, images: Tensor, generator: Generator) -> Tensor:
        """Codes as those from which the searches start, (N, latent)."""
        drawn = torch.randn(len(images), self.gan.latent, generator=generator, device=images.device)
        return math.sqrt(self.start_variance) * drawn

    def decode(self, latents: Tensor) -> Tensor:
        """Images from codes (N, latent)."""
        return self.gan(latents)  # type: ignore[no-any-return]


class DefenseGANShort(DefenseGAN):
    """Defense-GAN with a tenth of the search: 2 starts of 100 steps, what an attacker of the whole can afford."""

    title = "Defense-GAN, short search"
    recipes = {name: {**recipe, "search_steps": 100, "restarts": 2} for name, recipe in DefenseGAN.recipes.items()}


class DefenseGANEncoder(DefenseGAN):
    """Defense-GAN with one short search that starts where an encoder points: deterministic, and differentiable.

    The hybrid of Zhu et al. 2016 (arXiv:1609.03552). An encoder of the critic's architecture learns to invert the
    trained generator: the mean squared difference of pixels on training images plus `code_weight` times that of codes
    on images that the generator makes of codes from N(0, I). 25 steps from there, all of them differentiated along the
    true route; BPDA takes the encoder's first guess for the result.
    """

    title = "Defense-GAN, encoder start"
    stochastic = False
    differentiable = True
    recipes = {"fast": {**FAST, "encoder_epochs": 2}, "paper": {}}
    brief = BRIEF

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 64,
        latent: int = 128,
        gan_steps: int = 200_000,
        critic_steps: int = 5,
        penalty: float = 10.0,
        gan_rate: float = 1e-4,
        batch_size: int = 50,
        decay: bool = False,
        search_steps: int = 25,
        search_rate: float = 10.0,
        momentum: float = 0.7,
        encoder_epochs: int = 20,
        encoder_steps: int = 600,
        encoder_rate: float = 1e-3,
        code_weight: float = 0.01,
    ) -> None:
        """`encoder_steps`: the least steps of the encoder's training, for small data sets."""
        super().__init__(
            classifier, shape=shape, width=width, latent=latent, gan_steps=gan_steps, critic_steps=critic_steps,
            penalty=penalty, gan_rate=gan_rate, batch_size=batch_size, decay=decay, search_steps=search_steps,
            restarts=1, search_rate=search_rate, momentum=momentum, unrolled=search_steps - 1,
        )  # fmt: skip
        self.encoder = wgan.features(shape, width, latent)
        self.encoder_epochs, self.encoder_steps = encoder_epochs, encoder_steps
        self.encoder_rate, self.code_weight = encoder_rate, code_weight

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train the GAN, then the encoder in front of its generator."""
        super().fit(data, generator, progress)

        def batch_loss(images: Tensor) -> Tensor:
            codes = torch.randn(len(images), self.gan.latent, generator=generator, device=images.device)
            with frozen(self.gan):
                missed = nn.functional.mse_loss(self.decode(self.encode(images)), images)
            with torch.no_grad():
                made = self.decode(codes)
            return missed + self.code_weight * nn.functional.mse_loss(self.encode(made), codes)

        training.train(
            self.encoder, batch_loss, (data.train.images,),
            optimizer=torch.optim.Adam(self.encoder.parameters(), lr=self.encoder_rate), epochs=self.encoder_epochs,
            minimum_steps=self.encoder_steps, batch_size=128, schedule=training.cosine, generator=generator,
            progress=progress, label=f"training the encoder of {self.title} on {data.name}",
        )  # fmt: skip

    def starts(self, images: Tensor, generator: Generator) -> Tensor:
        """The encoder's code, (N, 1, latent)."""
        return self.encode(images)[:, None]

    def before(self, starts: Tensor, found: Found) -> tuple[Tensor, Tensor]:
        """Where the encoder pointed, with its gradient, at rest."""
        return starts[:, 0], torch.zeros_like(starts[:, 0])

    def encode(self, images: Tensor) -> Tensor:
        """The encoder's code, (N, latent)."""
        return self.encoder(images)  # type: ignore[no-any-return]

    def approximate(self, images: Tensor, generator: Generator) -> Tensor:
        """The image of the encoder's code, without a search."""
        return self.decode(self.encode(images))
