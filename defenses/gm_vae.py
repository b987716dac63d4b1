"""GM-VAE: a variational autoencoder with one Gaussian a class as its prior, which classifies, refuses and searches."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from scipy.special import gammaincinv, ndtri
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.defense import Defense
from bench.device import chunk_size
from bench.progress import Progress
from defenses.vae import sample

TINY = 1e-12  # under a root, whose slope at 0 is infinite
RIDGE = 1e-6  # on the diagonal of a covariance before it is inverted


class GMVAE(Defense):
    """An encoder that puts every image near the mean of its class, and a decoder that must give the image back.

    Ghosh, Losalka and Black 2019 (AAAI). The prior has one Gaussian for each class, with the one-hot vectors as means.
    The label is that of the nearest mean. An image is refused where its code lies beyond the chi-square value of the
    predicted class's Gaussian, or where it is reconstructed worse than that class's training images. The encoder's
    entropy is constant: codes are trained with noise of variance 1/3000 (eq. 7).

    There is no public code and the paper states no architecture, weight of the latent term, optimiser settings or
    thresholds. Ours are the hyper-parameters below; as thresholds both distances are taken as norms, as in the criteria
    of the paper's section 3.4. `purify` gives the reconstruction, which no answer comes from. The `fast` recipe has
    half the width and 6 epochs.
    """

    title = "GM-VAE"
    paper = "https://arxiv.org/abs/1806.00081"
    year = 2019
    kind = "selective"
    differentiable = True
    trained_on = "clean images"
    recipes = MappingProxyType(
        {"fast": MappingProxyType({"width": 16, "epochs": 6}), "paper": MappingProxyType({})},
    )

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        latent: int = 10,
        width: int = 32,
        hidden: int = 128,
        entropy: str = "constant",
        variance: float = 1 / 3000,
        latent_weight: float = 1500.0,
        covariance: str = "class",
        thresholds: str = "chi_square",
        level: float = 0.9973,
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 30,
        minimum_steps: int = 600,
        labels_per_class: int = 0,
        labelled_batch: int = 64,
        search_steps: int = 100,
        search_rate: float = 0.05,
    ) -> None:
        """`entropy` of the encoder is "constant", with noise of `variance` (stated for MNIST), or "variable";
        `latent_weight` is the paper's alpha: half the inverse of that variance. `covariance` is what the Mahalanobis
        distance divides by: that of the training codes predicted as a "class" around its mean, or the "encoder"'s
        constant one. `level` is that of the 3-sigma rule in one dimension: `thresholds` by "chi_square" are the
        chi-square value for the distance, and the mean and 3 standard deviations for the error; those from "training"
        are what this share of a class's training images stay below in either, which refuses far fewer, since codes have
        heavier tails than a Gaussian. `labels_per_class` are used of the training images, 0 for all. `search_steps` and
        `search_rate` are of `reclassify`. Raises ValueError for sides that are no multiple of 4, fewer latent
        dimensions than classes, choices other than these and a level outside (0, 1).
        """
        super().__init__(classifier)
        channels, height, side = shape
        if height % 4 or side % 4:
            raise ValueError(f"GM-VAE halves images twice and needs sides that are multiples of 4, got {shape}")
        if latent < classes:
            raise ValueError(f"GM-VAE needs a latent dimension for each class, got {latent} for {classes}")
        for what, given, choices in (
            ("entropy", entropy, ("constant", "variable")),
            ("covariance", covariance, ("class", "encoder")),
            ("thresholds", thresholds, ("training", "chi_square")),
        ):
            if given not in choices:
                raise ValueError(f"GM-VAE needs {what} {' or '.join(map(repr, choices))}, got {given!r}")
        if not 0 < level < 1:
            raise ValueError(f"GM-VAE needs 0 < level < 1, got {level}")
        bottom = (2 * width, height // 4, side // 4)
        features = 2 * width * (height // 4) * (side // 4)
        codes = latent * (2 if entropy == "variable" else 1)
        encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, codes),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, features), nn.ReLU(), nn.Unflatten(1, bottom),
            nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip
        self.nearest = NearestMean(encoder, torch.eye(classes, latent))
        object.__setattr__(self, "classifier", self.nearest)  # its own: attackers of it know no decoder
        self.whitening: Tensor
        self.farthest: Tensor
        self.worst_error: Tensor
        self.register_buffer("whitening", torch.eye(latent).repeat(classes, 1, 1))  # until fit: all is accepted
        self.register_buffer("farthest", torch.full((classes,), 10.0))
        self.register_buffer("worst_error", torch.full((classes,), float(channels * height * side) ** 0.5))
        self.entropy, self.variance, self.latent_weight, self.covariance = entropy, variance, latent_weight, covariance
        self.thresholds, self.level, self.learning_rate, self.batch_size = thresholds, level, learning_rate, batch_size
        self.epochs, self.minimum_steps = epochs, minimum_steps
        self.labels_per_class, self.labelled_batch = labels_per_class, labelled_batch
        self.search_steps, self.search_rate = search_steps, search_rate

    # ------------------------------------------------------------------------------------------ training

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train on the clean training images; both thresholds of each class come from those predicted as it."""
        images, labels = data.train.images, data.train.labels
        known = self._known(labels, generator) if self.labels_per_class else None
        grown = 0.0  # how far the weight of what has no label has come

        def schedule(share: float) -> float:
            nonlocal grown
            grown = min(1.0, 2 * share)
            return training.cosine(share)

        def supervised(images: Tensor, labels: Tensor) -> Tensor:
            """Equation 7."""
            code, log_variance = self.posterior(images)
            apart = self._distances(code).gather(1, labels[:, None]).squeeze(1)
            return (self._reconstruction(images, code, log_variance, generator) + self.latent_weight * apart).mean()

        def unsupervised(images: Tensor) -> Tensor:
            """Equation 3: the density of the whole mixture in the place of that of one class."""
            code, log_variance = self.posterior(images)
            apart = -(-self.latent_weight * self._distances(code)).logsumexp(dim=1)
            return (self._reconstruction(images, code, log_variance, generator) + grown * apart).mean()

        def batch_loss(some: Tensor, their_labels: Tensor) -> Tensor:
            if known is None:
                return supervised(some, their_labels)
            drawn = torch.randint(len(known), (self.labelled_batch,), generator=generator, device=known.device)
            return unsupervised(some) + supervised(images[known[drawn]], labels[known[drawn]])

        training.train(
            self, batch_loss, (images, labels),
            optimizer=torch.optim.Adam(self.parameters(), lr=self.learning_rate), epochs=self.epochs,
            minimum_steps=self.minimum_steps, batch_size=self.batch_size, schedule=schedule, generator=generator,
            progress=progress, label=f"training {self.title} on {data.name}",
        )  # fmt: skip
        self.set_thresholds(images)

    def _known(self, labels: Tensor, generator: Generator) -> Tensor:
        """The rows of the images whose labels are used, `labels_per_class` of each class at random."""
        order = torch.randperm(len(labels), generator=generator, device=labels.device)
        return torch.cat([order[labels[order] == k][: self.labels_per_class] for k in range(len(self.means))])

    def _reconstruction(self, images: Tensor, code: Tensor, log_variance: Tensor, generator: Generator) -> Tensor:
        """The squared error of each image's reconstruction from a noisy code, (N,), and where the variances are the
        encoder's own what they cost."""
        error = _squared(self.decode(sample(code, log_variance, generator)) - images)
        if self.entropy == "constant":
            return error
        return error + self.latent_weight * (log_variance.exp() - log_variance - 1).sum(dim=1)

    @torch.no_grad()
    def set_thresholds(self, images: Tensor) -> None:
        """The covariance of each class's codes, the largest Mahalanobis distance and the largest reconstruction error
        that it may have, from images (N, C, H, W) by the class that they are predicted as; a class with too few of them
        gets those of all."""
        chunks = torch.split(images, chunk_size(images.device))
        codes = torch.cat([self.encode(chunk) for chunk in chunks])
        errors = torch.cat([self._error(chunk, self.encode(chunk)) for chunk in chunks])
        predicted = self._distances(codes).argmin(dim=1)
        away = codes - self.means[predicted]
        identity = torch.eye(codes.shape[1], device=codes.device)
        for k in range(len(self.means)):
            mine = predicted == k
            mine = mine if int(mine.sum()) > 2 * codes.shape[1] else torch.ones_like(mine)
            spread = away[mine].T @ away[mine] / mine.sum() if self.covariance == "class" else self.variance * identity
            lower = torch.linalg.cholesky(spread + RIDGE * identity)
            self.whitening[k] = torch.linalg.solve_triangular(lower, identity, upper=False)
            distances = (_squared(away[mine] @ self.whitening[k].T) + TINY).sqrt()
            if self.thresholds == "training":
                self.farthest[k] = distances.quantile(self.level)
                self.worst_error[k] = errors[mine].quantile(self.level)
            else:
                self.farthest[k] = float(2 * gammaincinv(codes.shape[1] / 2, self.level)) ** 0.5
                self.worst_error[k] = errors[mine].mean() + float(ndtri((1 + self.level) / 2)) * errors[mine].std()

    # ------------------------------------------------------------------------------------------ answers

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The reconstruction, which the error is measured against."""
        return self.decode(self.encode(images))

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        """Minus the squared distances of the code to the means, (N, K). Over twice the variance they would be the log
        of Bayes' rule (eq. 8), whose softmax saturates and hides the gradient from attacks."""
        return self.classifier(images)  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Tensor:
        """The posterior mean, (N, D)."""
        return self.posterior(images)[0]

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (N, D); the latter constant unless the entropy is variable."""
        code = self.nearest.encoder(images)
        if self.entropy == "variable":
            mean, log_variance = code.chunk(2, dim=1)
            return mean, log_variance.clamp(-12, 4)
        return code, torch.full_like(code, self.variance).log()

    def decode(self, latents: Tensor) -> Tensor:
        """Images from codes (N, D)."""
        return self.decoder(latents)  # type: ignore[no-any-return]

    def class_scores(self, images: Tensor, generator: Generator) -> Tensor:
        """The Mahalanobis distance of the code to each mean and the reconstruction error, over the class's thresholds,
        (N, K, 2)."""
        code = self.encode(images)
        return self._scores(code, self._error(images, code))

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        """The larger of the two scores of the predicted class, (N,)."""
        scores, predicted = self.class_scores(images, generator), self.classifier(images).argmax(dim=1)
        return _of_class(scores, predicted)

    @property
    def means(self) -> Tensor:
        """The means of the mixture, (K, D): one-hot vectors."""
        return self.nearest.means

    def _distances(self, codes: Tensor) -> Tensor:
        return _to_means(codes, self.means)

    def _error(self, images: Tensor, codes: Tensor) -> Tensor:
        return (_squared(images - self.decode(codes)) + TINY).sqrt()

    def _scores(self, codes: Tensor, errors: Tensor) -> Tensor:
        away = codes[:, None] - self.means  # (N, K, D)
        within = (_squared(torch.einsum("kij,nkj->nki", self.whitening, away), 2) + TINY).sqrt() / self.farthest
        return torch.stack([within, errors[:, None] / self.worst_error], dim=2)

    # ------------------------------------------------------------------------------------------ reclassification

    def reclassify(self, images: Tensor) -> Found:
        """The code whose decoded image lies nearest to each image (section 3.5), searched by Adam from every mean at
        once; its class is that of the nearest mean. Codes are searched row by row: no image's depends on another's."""
        n, k = len(images), len(self.means)
        codes = self.means.repeat(n, 1).requires_grad_()  # (N * K, D)
        targets = images.detach().repeat_interleave(k, dim=0)
        optimizer = torch.optim.Adam([codes], lr=self.search_rate)
        best, least = codes.detach().clone(), torch.full((n * k,), torch.inf, device=images.device)
        for step in range(self.search_steps + 1):
            with torch.enable_grad():
                error = _squared(self.decode(codes) - targets)
                (codes.grad,) = torch.autograd.grad(error.sum(), codes)
            nearer = error.detach() < least
            best = torch.where(nearer[:, None], codes.detach(), best)
            least = torch.where(nearer, error.detach(), least)
            if step < self.search_steps:
                optimizer.step()
        chosen = least.view(n, k).argmin(dim=1) + k * torch.arange(n, device=images.device)
        code = best[chosen]
        scores = self._scores(code, self._error(images, code))  # the gradient of a minimum is that of its value
        logits = -self._distances(code)
        return Found(code, logits, _of_class(scores, logits.argmax(dim=1)))


@dataclass(frozen=True)
class Found:
    """What a search found for each image: the code (N, D), minus its squared distances to the means (N, K), and its
    rejection score (N,), beyond 1 for what no code explains: a fooling image."""

    code: Tensor
    logits: Tensor
    score: Tensor


class GMVAEReclassify(GMVAE):
    """The GM-VAE that gives refused images a second look: it searches the decoder's images for the nearest one.

    An image that the thresholds refuse gets the class of the nearest code that the search finds, and is refused for
    good where that code, too, lies beyond them: its score is the smaller one. The answers of the search have no
    gradient; BPDA takes the encoder's.
    """

    title = "GM-VAE, reclassifying"
    differentiable = False

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        """Those of the encoder, and of the search where the thresholds refuse."""
        logits = super().logits(images, generator)
        refused = self._refused(images, generator)
        if bool(refused.any()):
            logits = logits.clone()
            logits[refused] = self.reclassify(images[refused]).logits
        return logits

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        """That of the encoder's code, and of the code that the search found where the thresholds refuse."""
        score = super().rejection_score(images, generator)
        refused = self._refused(images, generator)
        if bool(refused.any()):
            score = score.clone()
            score[refused] = torch.minimum(score[refused], self.reclassify(images[refused]).score)
        return score

    def surrogate_logits(self, images: Tensor, generator: Generator) -> Tensor:
        """The value of `logits` with the gradient of the encoder's."""
        return self.true_value(images, generator, images)

    def _refused(self, images: Tensor, generator: Generator) -> Tensor:
        with torch.no_grad():
            return GMVAE.rejection_score(self, images, generator) > 1


class GMVAEVariable(GMVAE):
    """The GM-VAE whose encoder chooses its own variances, which the paper compares with (figure 5).

    The prior's term is then a divergence from Gaussians of unit variance around the means, the usual one, with the
    weight kept: alpha (|f - mu|^2 + sum of s^2 - log s^2). The paper does not give its loss.
    """

    title = "GM-VAE, variable entropy"
    recipes = MappingProxyType(
        {name: MappingProxyType({**recipe, "entropy": "variable"}) for name, recipe in GMVAE.recipes.items()}
    )


class GMVAESemi(GMVAE):
    """The GM-VAE that knows the labels of 100 training images a class, chosen at random.

    The others learn from their reconstruction and the density of the whole mixture (eq. 3), in the weight of eq. 7's
    term. Not stated, so ours: each batch holds `labelled_batch` labelled images beside the others, and the mixture's
    weight grows from 0 over the first half, as codes otherwise gather around means that no label chose.
    """

    title = "GM-VAE, semi-supervised"
    recipes = MappingProxyType(
        {name: MappingProxyType({**recipe, "labels_per_class": 100}) for name, recipe in GMVAE.recipes.items()}
    )


class NearestMean(nn.Module):
    """Minus the squared distances (N, K) of an encoder's codes to the class means: all that classifies an image."""

    means: Tensor

    def __init__(self, encoder: nn.Module, means: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("means", means)

    def forward(self, images: Tensor) -> Tensor:
        codes = self.encoder(images)[:, : self.means.shape[1]]  # without variances
        return -_to_means(codes, self.means)


def _of_class(scores: Tensor, classes: Tensor) -> Tensor:
    """The larger of the two scores (N, K, 2) that each image has for its class, (N,)."""
    return scores.gather(1, classes[:, None, None].expand(-1, 1, scores.shape[2])).amax(dim=(1, 2))


def _to_means(codes: Tensor, means: Tensor) -> Tensor:
    """Squared distances (N, K) of codes (N, D) to means (K, D)."""
    return _squared(codes[:, None] - means, 2)


def _squared(change: Tensor, start: int = 1) -> Tensor:
    """The squared length over all dimensions from `start` on."""
    return change.flatten(start).square().sum(dim=start)
