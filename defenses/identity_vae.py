"""A plain variational autoencoder trained on clean images: MAD-VAE's "identity" control, and a purifier in itself."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.progress import Progress
from defenses.vae import ConvVAE, VAEPurifier, evidence_loss, sample


class IdentityVAE(VAEPurifier):
    """Images are replaced by their reconstruction by a VAE that has seen clean images only.

    Architecture of Defense-VAE, loss and optimiser of MAD-VAE's identity row (Morlock and Wang 2020, table 3): binary
    cross-entropy + 0.1 KL, both averaged, Adam 1e-3 times 0.998 after each epoch, gradient norm clipped at 1. The
    posterior mean is decoded at test, and batch normalisation uses its running statistics. The `fast` recipe has half
    the width, batches of 128 and a rate that falls to zero along a cosine, so that five epochs suffice.
    """

    title = "Identity VAE"
    paper = "https://github.com/Derek-Wds/MAD-VAE"
    year = 2020
    trained_on = "clean images"
    recipes = {
        "fast": {"width": 32, "batch_size": 128, "epochs": 5, "minimum_steps": 600, "decay": True},
        "paper": {},
    }

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 64,
        latent: int = 128,
        kl_weight: float = 0.1,
        learning_rate: float = 1e-3,
        batch_size: int = 512,
        epochs: int = 10,
        minimum_steps: int = 0,
        decay: bool = False,
    ) -> None:
        super().__init__(classifier, ConvVAE(shape, width, latent))
        self.kl_weight, self.learning_rate, self.batch_size = kl_weight, learning_rate, batch_size
        self.epochs, self.minimum_steps, self.decay = epochs, minimum_steps, decay

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train on the clean training images."""

        def batch_loss(images: Tensor) -> Tensor:
            mean, log_variance = self.vae.posterior(images)
            reconstruction = self.vae.decode(sample(mean, log_variance, generator))
            return evidence_loss(reconstruction, images, mean, log_variance, self.kl_weight)

        training.train(
            self.vae,
            batch_loss,
            (data.train.images,),
            optimizer=torch.optim.Adam(self.vae.parameters(), lr=self.learning_rate),
            epochs=self.epochs,
            minimum_steps=self.minimum_steps,
            batch_size=self.batch_size,
            schedule=training.cosine if self.decay else training.stepwise(0.998, self.epochs, lowest=0.01),
            clip_norm=1.0,
            generator=generator,
            progress=progress,
            label=f"training Identity VAE on {data.name}",
        )


class SampledIdentityVAE(IdentityVAE):
    """The Identity VAE with a latent drawn from its posterior at every call: a defense by randomness.

    The same training; only the code that is decoded is a reparameterised draw instead of the posterior mean.
    """

    title = "Identity VAE, sampled"
    stochastic = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The reconstruction from a draw of the posterior."""
        return self.decode(sample(*self.posterior(images), generator))
