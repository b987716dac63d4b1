"""Defense-VAE: a VAE that learns to turn attacked images back into clean ones (Li and Ji 2019, arXiv:1812.06570)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.progress import Progress
from defenses.pairs import Job, attacked_pairs
from defenses.vae import ConvVAE, VAEPurifier, sample

STRENGTHS = (0.2, 0.25, 0.3, 0.35)  # eps of FGSM and R-FGSM; for CW it stands for a learning rate of 6, 8, 10, 12


def attack_jobs(sign_share: float, cw_share: float) -> tuple[Job, ...]:
    """The attacks that Defense-VAE learns from: each strength of FGSM and R-FGSM on the one share of the training
    images, of CW on the other."""
    once: dict[str, float | str] = {"searches": 1, "steps": 100, "constant": 100.0, "box": "tanh"}
    jobs = []
    for strength in STRENGTHS:
        jobs.append(Job("fgsm", {"eps": strength}, sign_share))
        jobs.append(Job("r_fgsm", {"eps": strength, "alpha": 0.05}, sign_share))
        jobs.append(Job("cw_l2", {**once, "learning_rate": 40 * strength - 2}, cw_share))
    return tuple(jobs)


class DefenseVAE(VAEPurifier):
    """Images are replaced by the reconstruction of a VAE trained on pairs of attacked and clean images.

    The pairs are made on the bare classifier by FGSM, R-FGSM (alpha 0.05, sign of the noise) and CW (one search of
    100 steps, constant 100), each at four strengths, against the classifier's own predictions, as the released code
    does: 12 x 60,000 pairs; here the training split gives 12 x 50,000. Binary cross-entropy summed over pixels plus
    `kl_weight` times the KL divergence, 0 by default as in the released code (the paper's objective has the term);
    Adam 5e-4, batches of 16, 5 epochs. At test the posterior mean is decoded. The released code leaves batch
    normalisation in training mode, so that all 10,000 test images are normalised together; here it uses its running
    statistics, as an image alone must get the same answer. The `fast` recipe has half the width and 60,000 pairs (5,000
    of them by CW), batches of 64 and a rate that falls along a cosine for 2 epochs.
    """

    title = "Defense-VAE"
    paper = "https://arxiv.org/abs/1812.06570"
    year = 2019
    per_classifier = True
    trained_on = "FGSM, R-FGSM and CW images of its classifier"
    version = 2
    recipes = {
        "fast": {
            "width": 32, "sign_share": 0.1375, "cw_share": 0.025, "batch_size": 64, "learning_rate": 1e-3, "epochs": 2,
            "minimum_steps": 600, "decay": True,
        },
        "paper": {},
    }  # fmt: skip

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 64,
        latent: int = 128,
        sign_share: float = 1.0,
        cw_share: float = 1.0,
        kl_weight: float = 0.0,
        learning_rate: float = 5e-4,
        batch_size: int = 16,
        epochs: int = 5,
        minimum_steps: int = 0,
        decay: bool = False,
    ) -> None:
        """`sign_share` and `cw_share`: the share of the training images that each strength of FGSM and R-FGSM, and of
        CW, is run on. Raises ValueError unless they lie in (0, 1]."""
        super().__init__(classifier, ConvVAE(shape, width, latent))
        self.jobs, self.kl_weight = attack_jobs(sign_share, cw_share), kl_weight
        self.learning_rate, self.batch_size, self.epochs = learning_rate, batch_size, epochs
        self.minimum_steps, self.decay = minimum_steps, decay

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Attack the training images, then train on the pairs."""
        pairs = attacked_pairs(self.classifier, data, self.jobs, progress, labels="predicted")

        def batch_loss(attacked: Tensor, clean: Tensor) -> Tensor:
            mean, log_variance = self.vae.posterior(attacked)
            reconstruction = self.vae.decode(sample(mean, log_variance, generator))
            error = nn.functional.binary_cross_entropy(reconstruction, clean, reduction="sum")
            kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
            return (error + self.kl_weight * kl) / len(clean)  # Adam's steps do not feel the factor

        training.train(
            self.vae,
            batch_loss,
            (pairs.attacked, data.train.images[pairs.rows]),
            optimizer=torch.optim.Adam(self.vae.parameters(), lr=self.learning_rate),
            epochs=self.epochs,
            minimum_steps=self.minimum_steps,
            batch_size=self.batch_size,
            schedule=training.cosine if self.decay else training.constant,
            generator=generator,
            progress=progress,
            label=f"training Defense-VAE on {data.name}",
        )
