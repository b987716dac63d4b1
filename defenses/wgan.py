"""A Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028) of Defense-GAN's size."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.progress import Progress
from defenses.latent_search import frozen


class Crop(nn.Module):
    """The upper left (H, W) of feature maps."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, features: Tensor) -> Tensor:
        return features[..., : self.height, : self.width]


class ImageGenerator(nn.Module):
    """Codes (N, latent) to images (N, C, H, W) in [0, 1], H and W multiples of 4: a linear layer and three transposed
    convolutions 5x5 that double the side; 4 -> 8, cropped to 7 -> 14 -> 28. No batch normalisation.

    Raises ValueError for other shapes.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64, latent: int = 128) -> None:
        super().__init__()
        channels, height, side = shape
        if height % 4 or side % 4:
            raise ValueError(f"the GAN needs images with sides that are multiples of 4, got {shape}")
        self.latent = latent
        bottom = (4 * width, math.ceil(height / 8), math.ceil(side / 8))
        self.layers = nn.Sequential(
            nn.Linear(latent, math.prod(bottom)), nn.ReLU(), nn.Unflatten(1, bottom),
            nn.ConvTranspose2d(4 * width, 2 * width, 5, 2, 2, output_padding=1), nn.ReLU(),
            Crop(height // 4, side // 4),
            nn.ConvTranspose2d(2 * width, width, 5, 2, 2, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 5, 2, 2, output_padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)  # type: ignore[no-any-return]


def features(shape: tuple[int, int, int], width: int, outputs: int) -> nn.Sequential:
    """Images (N, C, H, W) to (N, outputs): three convolutions 5x5 that halve the side, and a linear layer. The critic,
    with one output, and the encoder, with as many as a code has numbers."""
    channels, height, side = shape
    for _ in range(3):
        height, side = (height + 1) // 2, (side + 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, 2, 2), nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 5, 2, 2), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, 5, 2, 2), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(4 * width * height * side, outputs),
    )  # fmt: skip


def gradient_penalty(critic: nn.Module, real: Tensor, made: Tensor, share: Tensor) -> Tensor:
    """The mean over images of (1 - the norm of the critic's gradient)^2 at `share` (N,) of the way from `real` to
    `made`, both (N, C, H, W): a scalar with a graph. The norm is that of an image's whole gradient; Defense-GAN's code
    takes it of every column of the image by itself."""
    share = share.view(-1, 1, 1, 1)
    between = (real + share * (made - real)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()  # type: ignore[no-any-return]


def train(
    net: ImageGenerator,
    critic: nn.Module,
    images: Tensor,
    *,
    steps: int,
    critic_steps: int,
    batch_size: int,
    learning_rate: float,
    decay: bool,
    penalty: float,
    generator: Generator,
    progress: Progress,
    label: str,
) -> list[float]:
    """Train the generator for `steps` of its own, each after `critic_steps` of the critic, on `images` (n, C, H, W);
    the critic's mean loss by epoch: minus the estimated distance, and the penalty. Adam with betas 0.5 and 0.9."""

    def codes(like: Tensor) -> Tensor:
        return torch.randn(len(like), net.latent, generator=generator, device=like.device)

    def critic_loss(real: Tensor) -> Tensor:
        with torch.no_grad():
            made = net(codes(real))
        real_score, made_score = critic(torch.cat([real, made])).chunk(2)
        share = torch.rand(len(real), generator=generator, device=real.device)
        apart = gradient_penalty(critic, real, made, share)
        return made_score.mean() - real_score.mean() + penalty * apart  # type: ignore[no-any-return]

    def generator_loss(real: Tensor) -> Tensor:
        with frozen(critic):
            return -critic(net(codes(real))).mean()  # type: ignore[no-any-return]

    def adam(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=learning_rate, betas=(0.5, 0.9))

    schedule = training.cosine if decay else training.constant
    return training.train(
        nn.ModuleDict({"generator": net, "critic": critic}), critic_loss, (images,), optimizer=adam(critic),
        also=[training.Update(adam(net), generator_loss, schedule, every=critic_steps)], schedule=schedule,
        epochs=1, minimum_steps=steps * critic_steps, batch_size=batch_size, generator=generator, progress=progress,
        label=label,
    )  # fmt: skip
