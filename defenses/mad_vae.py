"""MAD-VAE: a denoising VAE with codes drawn to class centres, held to the classifier's answers (Morlock and Wang)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.progress import Progress
from bench.training import Update
from defenses.defense_vae import attack_jobs
from defenses.pairs import Job, attacked_pairs
from defenses.vae import ConvVAE, VAEPurifier, evidence_loss, sample

PAPER_JOBS = (
    *(Job("fgsm", {"eps": eps}) for eps in (0.25, 0.3, 0.35)),
    *(Job("r_fgsm", {"eps": eps, "alpha": 0.05}) for eps in (0.25, 0.3, 0.35)),
    *(
        Job("cw_l2", {"kappa": kappa, "searches": 9, "steps": 1500, "learning_rate": 0.01, "box": "tanh"})
        for kappa in (5.0, 10.0, 15.0)
    ),
)
FAST = {
    "width": 32, "pairs": "defense-vae", "batch_size": 128, "epochs": 3, "minimum_steps": 600, "decay": True,
}  # fmt: skip


class MADVAE(VAEPurifier):
    """Images are replaced by the reconstruction of a VAE trained on attacked images, by four losses at once.

    Section 5 of the report and its released code: reconstruction and KL divergence as in the Identity VAE, with the
    clean image as the target; 0.1 times the cross-entropy of the frozen classifier on the reconstruction; 0.01 times
    the Euclidean distance of the sampled code to a learned centre of its class (proximity); minus `distance_weight`
    times a distance to the centres of the other classes. That distance is, in the paper, the mean over the other
    classes j of |z - c_j| + |c_i - c_j|, about the proximity's own centres; in the code the mean of |z - c'_j|, about a
    second, independent set. `distance` chooses; the weight 1e-5 is that of the code's combined model. Adam 1e-3 times
    0.998 after each epoch with the gradient's norm clipped at 1; the centres start from N(0, I), each set with its own
    SGD: rate 0.5 (proximity) and 1e-4 (distance), a tenth of it after each epoch.

    Unlike the code, whose second head is the standard deviation itself and may be negative, that head is the
    log-variance, and encoder and decoder are clipped together. The `paper` recipe makes nine sets of the training
    images on the bare classifier, with the true labels: FGSM and R-FGSM at eps .25, .3, .35, CW at confidence 5, 10, 15
    (nine searches of 1,500 steps). There the code adds R-FGSM's first noise without a sign, we with it; its CW begins
    its searches at the constant 1e-3, ours at 1; and its centres' rates stop falling at 1e-5, ours do not. `fast` has
    half the width, Defense-VAE's pairs, batches of 128 and a rate that falls along a cosine for 3 epochs.
    """

    title = "MAD-VAE"
    paper = "https://github.com/Derek-Wds/MAD-VAE"
    year = 2020
    per_classifier = True
    trained_on = "FGSM, R-FGSM and CW images of its classifier"
    recipes = {"fast": FAST, "paper": {}}

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        n_classes: int = 10,
        width: int = 64,
        latent: int = 128,
        pairs: Literal["mad-vae", "defense-vae"] = "mad-vae",
        kl_weight: float = 0.1,
        classification_weight: float = 0.1,
        proximity_weight: float = 0.01,
        distance_weight: float = 1e-5,
        distance: Literal["paper", "code"] = "paper",
        learning_rate: float = 1e-3,
        proximity_rate: float = 0.5,
        distance_rate: float = 1e-4,
        batch_size: int = 512,
        epochs: int = 10,
        minimum_steps: int = 0,
        decay: bool = False,
    ) -> None:
        """Raises ValueError for an unknown `pairs` or `distance`."""
        for name, value, known in (
            ("pairs", pairs, ("mad-vae", "defense-vae")),
            ("distance", distance, ("paper", "code")),
        ):
            if value not in known:
                raise ValueError(f"MAD-VAE's {name} is one of {', '.join(known)}, got {value!r}")
        super().__init__(classifier, ConvVAE(shape, width, latent))
        clustered = bool(proximity_weight or distance_weight)
        self.centres = nn.Parameter(torch.randn(n_classes, latent)) if clustered else None
        apart = clustered and distance == "code"
        self.repelling = nn.Parameter(torch.randn(n_classes, latent)) if apart else None
        self.pairs, self.kl_weight, self.classification_weight = pairs, kl_weight, classification_weight
        self.proximity_weight, self.distance_weight = proximity_weight, distance_weight
        self.learning_rate, self.proximity_rate, self.distance_rate = learning_rate, proximity_rate, distance_rate
        self.batch_size, self.epochs, self.minimum_steps, self.decay = batch_size, epochs, minimum_steps, decay

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Attack the training images, then train on the pairs."""
        if self.pairs == "mad-vae":
            pairs = attacked_pairs(self.classifier, data, PAPER_JOBS, progress)
        else:
            fast = attack_jobs(sign_share=0.1375, cw_share=0.025)
            pairs = attacked_pairs(self.classifier, data, fast, progress, labels="predicted")

        def batch_loss(attacked: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
            return self.loss(attacked, clean, labels, generator)

        fall = training.stepwise(0.1, self.epochs)
        sets = ((self.centres, self.proximity_rate), (self.repelling, self.distance_rate))
        also = [Update(torch.optim.SGD([kept], lr=rate), schedule=fall) for kept, rate in sets if kept is not None]
        training.train(
            self,
            batch_loss,
            (pairs.attacked, data.train.images[pairs.rows], data.train.labels[pairs.rows]),
            optimizer=torch.optim.Adam(self.vae.parameters(), lr=self.learning_rate),
            also=also,
            epochs=self.epochs,
            minimum_steps=self.minimum_steps,
            batch_size=self.batch_size,
            schedule=training.cosine if self.decay else training.stepwise(0.998, self.epochs, lowest=0.01),
            clip_norm=1.0,
            generator=generator,
            progress=progress,
            label=f"training {self.title} on {data.name}",
        )

    def loss(self, attacked: Tensor, clean: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """The loss of a batch, attacked and clean (N, C, H, W), labels (N,): a scalar."""
        mean, log_variance = self.vae.posterior(attacked)
        latents = sample(mean, log_variance, generator)
        reconstruction = self.vae.decode(latents)
        loss = evidence_loss(reconstruction, clean, mean, log_variance, self.kl_weight)
        if self.classification_weight:
            answers = self.classifier(reconstruction)
            loss = loss + self.classification_weight * nn.functional.cross_entropy(answers, labels)
        if self.centres is not None:
            loss = loss + self.proximity_weight * (latents - self.centres[labels]).norm(dim=1).mean()
            loss = loss - self.distance_weight * self.distance_to_others(latents, labels).mean()
        return loss

    def distance_to_others(self, latents: Tensor, labels: Tensor) -> Tensor:
        """How far each code lies from the other classes' centres, (N,): the paper's term or the code's."""
        centres = self.centres if self.repelling is None else self.repelling
        assert centres is not None
        distances = torch.cdist(latents, centres)
        if self.repelling is None:
            distances = distances + _distances(centres)[labels]
        others = torch.ones_like(distances).scatter_(1, labels[:, None], 0.0)
        return (distances * others).sum(dim=1) / (len(centres) - 1)


class MADVAEClassification(MADVAE):
    """MAD-VAE with the classification loss alone: no centres are learned."""

    title = "MAD-VAE, classification"
    recipes = {
        name: {**recipe, "proximity_weight": 0.0, "distance_weight": 0.0} for name, recipe in MADVAE.recipes.items()
    }


class MADVAEDistance(MADVAE):
    """MAD-VAE with the proximity and distance losses alone: the classifier is not asked.

    The code gives the distance ten times the weight that it has in the combined model, and trains for 5 epochs.
    """

    title = "MAD-VAE, proximity and distance"
    recipes = {
        "fast": {**FAST, "classification_weight": 0.0, "distance_weight": 1e-4},
        "paper": {"classification_weight": 0.0, "distance_weight": 1e-4, "epochs": 5},
    }


def _distances(centres: Tensor) -> Tensor:
    """All distances between centres, (K, K), with a gradient of zero, not NaN, on the diagonal."""
    differences = centres[:, None] - centres[None]
    same = torch.eye(len(centres), dtype=torch.bool, device=centres.device)
    distances: Tensor = torch.linalg.vector_norm(differences.masked_fill(same[..., None], 1.0), dim=-1)
    return distances.masked_fill(same, 0.0)
