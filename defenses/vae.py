"""What the VAE defenses share: the convolutional autoencoder (Li and Ji 2019, Defense-VAE, "VAE18") and their doors."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from bench.defense import Defense


class ConvVAE(nn.Module):
    """Encoder and decoder of Defense-VAE for images of (C, H, W) with H = W a multiple of 4 and at least 16.

    Four convolutions each way, batch normalisation throughout; `width` is 64 in the paper and `latent` 128. On 28x28
    the paper pads by 3 to reach 16x16; other sizes are halved evenly. Weights N(0, 0.02), batch norm N(1, 0.02).
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64, latent: int = 128) -> None:
        super().__init__()
        channels, height, side = shape
        if height != side or side % 4 or side < 16:
            raise ValueError(f"ConvVAE needs square images with a side that is a multiple of 4 and >= 16, got {shape}")
        pad = 3 if (side + 2) // 2 % 4 else 1  # 28 -> 16
        small = (side + 2 * pad - 4) // 2 + 1
        if small % 4 or (small - 1) * 2 - 2 * pad + 4 != side:
            pad, small = 1, side // 2
        self._bottom = (width * 4, small // 4, small // 4)
        features = width * 4 * (small // 4) ** 2
        self.encoder = nn.Sequential(
            *_down(channels, width, 5, 1, 2), *_down(width, width, 4, 2, pad),
            *_down(width, 2 * width, 4, 2, 1), *_down(2 * width, 4 * width, 4, 2, 1), nn.Flatten(),
        )  # fmt: skip
        self.mean = nn.Linear(features, latent)
        self.log_variance = nn.Linear(features, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, features), nn.ReLU(), nn.Unflatten(1, self._bottom),
            *_up(4 * width, 2 * width, 4, 2, 1), *_up(2 * width, width, 4, 2, 1), *_up(width, width, 4, 2, pad),
            nn.ConvTranspose2d(width, channels, 5, 1, 2), nn.Sigmoid(),
        )  # fmt: skip
        self.apply(_initialise)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the Gaussian posterior, each (N, latent)."""
        features = self.encoder(images)
        return self.mean(features), self.log_variance(features)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] from latents (N, latent)."""
        return self.decoder(latents)  # type: ignore[no-any-return]


class VAEPurifier(Defense):
    """A defense that replaces images by their reconstruction by `vae`, decoded from the posterior mean.

    `vae` offers `posterior(images) -> (mean, log-variance)` and `decode(latents) -> images`, as `ConvVAE` does.
    """

    differentiable = True

    def __init__(self, classifier: nn.Module, vae: ConvVAE) -> None:
        super().__init__(classifier)
        self.vae = vae

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The reconstruction from the posterior mean."""
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        """The posterior mean, (N, latent)."""
        return self.posterior(images)[0]

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (N, latent)."""
        return self.vae.posterior(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images from latents (N, latent)."""
        return self.vae.decode(latents)


def sample(mean: Tensor, log_variance: Tensor, generator: Generator) -> Tensor:
    """A reparameterised draw from the posterior, same shape as `mean`."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + (0.5 * log_variance).exp() * noise


def evidence_loss(
    reconstruction: Tensor, images: Tensor, mean: Tensor, log_variance: Tensor, kl_weight: float
) -> Tensor:
    """Binary cross-entropy averaged over pixels plus `kl_weight` times the KL divergence to N(0, I) averaged over
    images and latent dimensions (the reduction of MAD-VAE's code)."""
    reconstruction_loss = nn.functional.binary_cross_entropy(reconstruction, images)
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
    return reconstruction_loss + kl_weight * kl


def _down(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _up(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> tuple[nn.Module, ...]:
    return (
        nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1, 0.02)
