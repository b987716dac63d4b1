"""LQ-VAE: a VAE whose latent is cut to bits by a fixed quantizer, behind an encoder held to a small Lipschitz constant
(Kyatham, Mishra and Prathosh 2019, arXiv:1903.09940)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.defense import Defense
from bench.progress import Progress

PENALTIES = ("sum", "jacobian")
SLOPE = 500.0  # of the soft quantizer
CHUNK = 256
MEASURED = 32  # images whose Jacobian is taken for a record: it costs a backward pass per latent dimension


def hard_bits(latents: Tensor, tau: float) -> Tensor:
    """H(z) = sign(tau^2 - z^2): +1 where |z| < tau, else -1; same shape, no gradient."""
    return torch.where(latents.abs() < tau, 1.0, -1.0)


def soft_bits(latents: Tensor, tau: float, slope: float = SLOPE) -> Tensor:
    """The soft quantizer, softsign(slope (tau^2 - z^2)), in (-1, 1); same shape."""
    return nn.functional.softsign(slope * (tau**2 - latents.square()))


def gradient_norm(images: Tensor, means: Tensor, kind: str, directions: int, generator: Generator) -> Tensor:
    """The norm, for each image, of the derivative of its means (N, D) by its pixels, (N,); differentiable.

    "sum": of the gradient of the sum of the D means, as the released code has it. "jacobian": the Frobenius norm of the
    Jacobian, which bounds the Lipschitz constant; from `directions` random orthonormal directions of the latent, scaled
    to give its square without bias (Hoffman et al. 2019, arXiv:1908.02729), exact where they are D. `means` must be
    computed from `images`, which must require a gradient.
    """
    latent = means.shape[1]
    if kind == "sum":
        rows = torch.ones(1, latent, device=means.device)
    else:
        random = torch.randn(latent, latent, generator=generator, device=means.device)
        rows = torch.linalg.qr(random)[0][:directions] * math.sqrt(latent / directions)  # (directions, D)
    gradients = [
        torch.autograd.grad(means, images, row.expand_as(means), create_graph=True)[0].flatten(1) for row in rows
    ]
    return torch.cat(gradients, dim=1).square().sum(dim=1).clamp_min(1e-12).sqrt()


class LQNet(nn.Module):
    """Encoder and two decoders of LQ-VAE for images of (C, H, W) in [-1, 1], H and W multiples of 4.

    Convolutions of 3x3 and leaky ReLU 0.2 throughout, `width` and twice that many channels, a hidden layer of `hidden`.
    Other than in TensorFlow, the padding of strided convolutions is the same on all sides. The soft decoder starts as
    a copy of the hard one (Algorithm 1).
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64, latent: int = 64, hidden: int = 1024) -> None:
        super().__init__()
        channels, height, side = shape
        if height % 4 or side % 4:
            raise ValueError(f"LQ-VAE needs images with sides that are multiples of 4, got {shape}")
        bottom = (2 * width, height // 4, side // 4)
        features = math.prod(bottom)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1), _leaky(), nn.Conv2d(width, width, 3, 2, 1), _leaky(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), _leaky(), nn.Conv2d(2 * width, 2 * width, 3, 1, 1), _leaky(),
            nn.Flatten(), nn.Linear(features, hidden), _leaky(),
        )  # fmt: skip
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.hard = nn.Sequential(
            nn.Linear(latent, hidden), _leaky(), nn.Linear(hidden, features), _leaky(), nn.Unflatten(1, bottom),
            nn.ConvTranspose2d(2 * width, 2 * width, 3, 1, 1), _leaky(),
            nn.ConvTranspose2d(2 * width, 2 * width, 3, 2, 1, 1), _leaky(),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), _leaky(),
            nn.ConvTranspose2d(width, channels, 3, 1, 1), nn.Tanh(),
        )  # fmt: skip
        self.soft = copy.deepcopy(self.hard)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the Gaussian posterior, each (N, latent)."""
        features = self.encoder(images)
        return self.mean(features), self.log_variance(features)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Those of the encoder and its heads."""
        return [p for part in (self.encoder, self.mean, self.log_variance) for p in part.parameters()]


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


class LQVAE(Defense):
    """Images are replaced by what a decoder makes of 64 bits: whether each latent mean lies within 0.1 of zero.

    The encoder minimises KL (averaged over the latent) + 10 MSE of a second, soft decoder + 10 (n - 0.1)^2, n the norm
    of a gradient; then the soft decoder and the hard one, which alone is used at test, minimise their own MSE. Three
    RMSProp of rate 3e-4, in this order, each on a fresh draw of z = mean + 0.5 tau deviation noise: 5 % of the
    posterior's deviation, although the KL uses all of it. Batches of 64; 10,000 steps and the rest of their epoch. All
    as in the released code, which works on [-1, 1]; n is measured in its units.

    Slides and code differ in n: the slides write the norm of the encoder's derivative, the code takes the gradient of
    the *sum* of the 64 means, which leaves their differences free. Recipes `fast` and `paper` follow the code; `slides`
    is `paper` with the Frobenius norm of the Jacobian, estimated from one random direction. The slides' sums of squares
    are averages in the code, and so here. TensorFlow's RMSProp is imitated by its decay of 0.9 and a floor of 1e-5. The
    code samples the latent at test, too; here the mean is used, as the contract asks.

    H has no gradient. In the true-gradient route it has the soft quantizer's, and the decoder is differentiated at the
    hard bits; BPDA has the authors' stand-in, the hard decoder at soft bits. On a trained net both break more than
    twice as many images as the identity does, or a gradient straight through the sign. The `fast` recipe has half the
    width and a rate that falls from 1e-3 along a cosine.
    """

    title = "LQ-VAE"
    paper = "https://arxiv.org/abs/1903.09940"
    year = 2019
    differentiable = True
    trained_on = "clean images"
    recipes = {
        "fast": {"width": 32, "hidden": 512, "learning_rate": 1e-3, "epochs": 5, "minimum_steps": 600, "decay": True},
        "paper": {},
        "slides": {"penalty": "jacobian"},
    }  # fmt: skip

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 64,
        latent: int = 64,
        hidden: int = 1024,
        tau: float = 0.1,
        lipschitz: float = 0.1,
        penalty: str = "sum",
        penalty_weight: float = 10.0,
        directions: int = 1,
        error_weight: float = 10.0,
        learning_rate: float = 3e-4,
        batch_size: int = 64,
        epochs: int = 13,
        minimum_steps: int = 10_000,
        decay: bool = False,
    ) -> None:
        """`lipschitz` is what the norm is driven to, K. `penalty` and `directions` are those of `gradient_norm`. Raises
        ValueError for another penalty and for directions outside 1 to `latent`."""
        if penalty not in PENALTIES or not 1 <= directions <= latent:
            raise ValueError(
                f"LQ-VAE needs a penalty of {' or '.join(PENALTIES)} and 1 to {latent} directions, got {penalty!r} and "
                f"{directions}"
            )
        super().__init__(classifier)
        self.net = LQNet(shape, width, latent, hidden)
        self.tau, self.lipschitz, self.penalty, self.directions = tau, lipschitz, penalty, directions
        self.penalty_weight, self.error_weight = penalty_weight, error_weight
        self.learning_rate, self.batch_size, self.epochs = learning_rate, batch_size, epochs
        self.minimum_steps, self.decay = minimum_steps, decay

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train on the clean training images: encoder, soft decoder and hard decoder in turn. The loss that is shown is
        the encoder's."""
        net = self.net

        def encoder_loss(images: Tensor) -> Tensor:
            scaled = (2 * images - 1).requires_grad_()
            mean, log_variance = net.posterior(scaled)
            norm = gradient_norm(scaled, mean, self.penalty, self.directions, generator)
            kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
            drawn = self._sample(mean, log_variance, generator)
            error = nn.functional.mse_loss(net.soft(soft_bits(drawn, self.tau)), scaled.detach())
            penalty = (norm - self.lipschitz).square().mean()
            return kl + self.error_weight * error + self.penalty_weight * penalty

        def decoder_loss(images: Tensor, *, hard: bool) -> Tensor:
            scaled = 2 * images - 1
            with torch.no_grad():
                drawn = self._sample(*net.posterior(scaled), generator)
            made = net.hard(hard_bits(drawn, self.tau)) if hard else net.soft(soft_bits(drawn, self.tau))
            return self.error_weight * nn.functional.mse_loss(made, scaled)

        def rmsprop(parameters: list[nn.Parameter]) -> torch.optim.RMSprop:
            return torch.optim.RMSprop(parameters, lr=self.learning_rate, alpha=0.9, eps=1e-5)

        schedule = training.cosine if self.decay else _published_rate
        training.train(
            net,
            encoder_loss,
            (data.train.images,),
            optimizer=rmsprop(net.encoder_parameters()),
            epochs=self.epochs,
            minimum_steps=self.minimum_steps,
            batch_size=self.batch_size,
            schedule=schedule,
            generator=generator,
            progress=progress,
            label=f"training LQ-VAE on {data.name}",
            also=[
                training.Update(rmsprop(list(net.soft.parameters())), partial(decoder_loss, hard=False), schedule),
                training.Update(rmsprop(list(net.hard.parameters())), partial(decoder_loss, hard=True), schedule),
            ],
        )

    def _sample(self, mean: Tensor, log_variance: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + 0.5 * self.tau * (0.5 * log_variance).exp() * noise

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """What the hard decoder makes of the bits of the posterior mean."""
        return self.decode(self.encode(images))

    def approximate(self, images: Tensor, generator: Generator) -> Tensor:
        """The hard decoder behind the soft quantizer: the authors' own attack differentiates this."""
        return self._unscaled(self.net.hard(soft_bits(self.encode(images), self.tau)))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (N, latent)."""
        return self.net.posterior(2 * images - 1)

    def encode(self, images: Tensor) -> Tensor:
        """The posterior mean, (N, latent), before the quantizer."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Images from latents (N, latent): the bits, with the soft quantizer's gradient, then the hard decoder."""
        soft = soft_bits(latents, self.tau)
        return self._unscaled(self.net.hard(hard_bits(latents, self.tau) + (soft - soft.detach())))

    @staticmethod
    def _unscaled(images: Tensor) -> Tensor:
        return (images + 1) / 2

    def bits(self, images: Tensor) -> Tensor:
        """The code of each image, +1 and -1, (N, latent)."""
        return hard_bits(self.encode(images), self.tau)

    def bit_flips(self, images: Tensor, others: Tensor) -> Tensor:
        """The share of the bits in which each image and its counterpart in `others` differ, (N,) in [0, 1]."""
        return (self.bits(images) != self.bits(others)).float().mean(dim=1)

    def facts(self, clean: Tensor, attacked: Tensor, correct: Tensor) -> Mapping[str, float | tuple[float, ...]]:
        """How many bits an attack flips, and the encoder's local Lipschitz constant, the largest at few clean images.

        `bit_flips` is the mean share; of the histogram `bit_flips_images`, in bins of 2 % of the bits from [0, 2 %) on
        and all from 20 % in the last, `bit_flips_correct` is the part that is classified correctly (the slides' bars).
        """
        chunks = zip(torch.split(clean, CHUNK), torch.split(attacked, CHUNK), strict=True)
        flips = torch.cat([self.bit_flips(*chunk) for chunk in chunks]).double()
        bins = (flips * 50 + 1e-6).long().clamp_max(10)
        images = torch.bincount(bins, minlength=11)
        right = torch.bincount(bins, correct.double(), minlength=11)
        return {
            "bit_flips": float(flips.mean()),
            "bit_flips_under_6_percent": float((flips < 0.06).double().mean()),
            "bit_flips_images": tuple(float(n) for n in images),
            "bit_flips_correct": tuple(float(n) for n in right),
            "local_lipschitz": float(self.local_lipschitz(clean[:MEASURED]).max()),
        }

    def local_lipschitz(self, images: Tensor) -> Tensor:
        """The spectral norm of the Jacobian of the means by the image on [-1, 1], (N,): the encoder's Lipschitz
        constant at each image, in the units of `lipschitz`."""
        with torch.enable_grad():
            scaled = (2 * images - 1).detach().requires_grad_()
            mean = self.net.posterior(scaled)[0]
            rows = [
                torch.autograd.grad(mean[:, one].sum(), scaled, retain_graph=True)[0].flatten(1)
                for one in range(mean.shape[1])
            ]
        jacobians = torch.stack(rows, dim=1)  # (N, latent, C * H * W)
        return torch.linalg.matrix_norm(jacobians, ord=2)  # type: ignore[no-any-return]


def _published_rate(share: float) -> float:
    return math.pow(0.98, share)
