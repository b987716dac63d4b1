"""VQ-VAE as a purifier, with or without noise on its input: "VQVAE as Defense Against Adversarial Attack" (2023)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from bench import training
from bench.data import Dataset
from bench.defense import Defense
from bench.errors import BenchError
from bench.progress import Progress

SOFTNESS = 0.5  # an attacker's choice: on a trained net this breaks most images


class VQNet(nn.Module):
    """The autoencoder of van den Oord et al. 2017 (arXiv:1711.00937) for images of (C, H, W) with H and W multiples of
    4: codes of `code_size` numbers at a quarter of the resolution, each from a codebook of `codes`.

    The quantizer is that of vector-quantize-pytorch, its codebook an exponential moving average with `decay`. Raises
    BenchError without that package, ValueError for other shapes.
    """

    def __init__(
        self, shape: tuple[int, int, int], width: int = 128, codes: int = 512, code_size: int = 64, decay: float = 0.99
    ) -> None:
        super().__init__()
        channels, height, side = shape
        if height % 4 or side % 4:
            raise ValueError(f"VQ-VAE needs images with sides that are multiples of 4, got {shape}")
        try:
            from vector_quantize_pytorch import VectorQuantize
        except ImportError as problem:
            raise BenchError(
                f"VQ-VAE needs vector-quantize-pytorch ({problem}): pip install 'purifybench[defenses]'"
            ) from problem
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1), Residual(width), Residual(width), nn.ReLU(),
            nn.Conv2d(width, code_size, 1),
        )  # fmt: skip
        self.quantizer = VectorQuantize(
            code_size, codes, decay=decay, eps=1e-5, accept_image_fmap=True, rotation_trick=False, commitment_weight=1.0
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code_size, width, 3, 1, 1), Residual(width), Residual(width), nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(width // 2, channels, 4, 2, 1),
        )  # fmt: skip
        book = self.quantizer._codebook
        nn.init.uniform_(book.embed, -math.sqrt(3), math.sqrt(3))  # unit variance
        book.embed_avg.copy_(book.embed)  # the average starts there with the weight of one code each

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """In training: reconstructions (N, C, H, W), not clipped, and the commitment loss. In training mode this moves
        the codebook."""
        codes, _, commitment = self.quantizer(self.encoder(images))
        return self.decoder(codes), commitment

    def quantize(self, latents: Tensor) -> Tensor:
        """The nearest vectors of the codebook to latents (N, code_size, H / 4, W / 4); the backward pass takes the
        quantizer for the identity. The codebook stays as it is."""
        codes = self.quantizer(latents.detach(), freeze_codebook=True)[0].detach()
        return codes + (latents - latents.detach())  # type: ignore[no-any-return]

    def soft_quantize(self, latents: Tensor) -> Tensor:
        """A differentiable stand-in for `quantize`, same shape: the mean of the codebook under a softmax over minus the
        squared distances, its temperature the share SOFTNESS of the distance to the nearest code."""
        flat = latents.movedim(1, 3)  # (N, H / 4, W / 4, code_size)
        book: Tensor = self.quantizer.codebook  # (codes, code_size)
        distances = flat.square().sum(dim=3, keepdim=True) - 2 * flat @ book.T + book.square().sum(dim=1)
        temperature = SOFTNESS * distances.detach().amin(dim=3, keepdim=True).clamp_min(1e-6)
        codes: Tensor = (-distances / temperature).softmax(dim=3) @ book  # (N, H / 4, W / 4, code_size)
        return codes.movedim(3, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Images (N, C, H, W) from codes, clipped to [0, 1]."""
        return self.decoder(codes).clamp(0, 1)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """ReLU, 3x3 to a quarter of the width, ReLU, 1x1 back, and the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width // 4, 3, 1, 1, bias=False),
            nn.ReLU(), nn.Conv2d(width // 4, width, 1, bias=False),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        return features + self.change(features)  # type: ignore[no-any-return]


class VQVAE(Defense):
    """Images are replaced by their reconstruction by a VQ-VAE that has seen clean images only.

    Architecture, loss (mean squared error + 0.25 times the commitment loss) and optimiser of the report's code: Adam
    2e-4, batches of 128, 6 epochs; a codebook of 512 x 64 that starts uniform with unit variance, its average with
    decay 0.99. Three things differ. The report's code leaves the net in training mode at test, so that every attacked
    image moves the codebook and the next answer; here nothing moves. The decoder has no output activation, so the
    reconstruction is clipped to [0, 1], as the contract asks. And the codebook's average starts with weight one a code
    (the library's way) where the code starts at zero and corrects the bias.

    The quantizer has no gradient, and the library's none in eval mode. Here the true-gradient route passes it straight
    through, as training does, and BPDA has a soft assignment to the codes, which breaks far more images than the
    identity would. The `fast` recipe has half the width and a rate that falls from 1e-3 along a cosine.
    """

    title = "VQ-VAE"
    paper = "https://github.com/Harsh-Gupta9897/VQVAE_as_Defense_Against_Adverserial_Attack"
    year = 2023
    differentiable = True
    trained_on = "clean images"
    recipes = {
        "fast": {"width": 64, "learning_rate": 1e-3, "minimum_steps": 600, "decay": True},
        "paper": {},
    }  # fmt: skip
    noise: ClassVar[float] = 0.0  # sigma of what is added to the input, at training and at test

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 128,
        codes: int = 512,
        code_size: int = 64,
        codebook_decay: float = 0.99,
        commitment: float = 0.25,
        learning_rate: float = 2e-4,
        batch_size: int = 128,
        epochs: int = 6,
        minimum_steps: int = 0,
        decay: bool = False,
    ) -> None:
        super().__init__(classifier)
        self.net = VQNet(shape, width, codes, code_size, codebook_decay)
        self.commitment, self.learning_rate, self.batch_size = commitment, learning_rate, batch_size
        self.epochs, self.minimum_steps, self.decay = epochs, minimum_steps, decay

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train on the clean training images, the noise added to the input alone."""

        def batch_loss(images: Tensor) -> Tensor:
            reconstruction, commitment = self.net.reconstruct(self.noisy(images, generator))
            return nn.functional.mse_loss(reconstruction, images) + self.commitment * commitment

        training.train(
            self.net,
            batch_loss,
            (data.train.images,),
            optimizer=torch.optim.Adam(self.net.parameters(), lr=self.learning_rate),
            epochs=self.epochs,
            minimum_steps=self.minimum_steps,
            batch_size=self.batch_size,
            schedule=training.cosine if self.decay else training.constant,
            generator=generator,
            progress=progress,
            label=f"training {self.title} on {data.name}",
        )

    def noisy(self, images: Tensor, generator: Generator) -> Tensor:
        """Images with Gaussian noise added, not clipped: what the encoder sees."""
        if not self.noise:
            return images
        return images + self.noise * torch.randn(images.shape, generator=generator, device=images.device)

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The reconstruction from the nearest codes, of the image with fresh noise where there is noise."""
        return self.decode(self.encode(self.noisy(images, generator)))

    def approximate(self, images: Tensor, generator: Generator) -> Tensor:
        """The reconstruction from soft codes, not clipped: pixels beyond black and white keep a gradient."""
        latents = self.encode(self.noisy(images, generator))
        return self.net.decoder(self.net.soft_quantize(latents))  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Tensor:
        """What is quantized, (N, code_size, H / 4, W / 4), without noise."""
        return self.net.encoder(images)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """Images from latents: quantizer and decoder."""
        return self.net.decode(self.net.quantize(latents))


class VQVAENoise25(VQVAE):
    """A VQ-VAE that adds Gaussian noise of deviation 0.25 to its input, at training and at test."""

    title = "VQ-VAE, noise 0.25"
    stochastic = True
    noise = 0.25


class VQVAENoise50(VQVAE):
    """A VQ-VAE that adds Gaussian noise of deviation 0.5 to its input, at training and at test."""

    title = "VQ-VAE, noise 0.5"
    stochastic = True
    noise = 0.5


class VQVAENoise75(VQVAE):
    """A VQ-VAE that adds Gaussian noise of deviation 0.75 to its input, at training and at test."""

    title = "VQ-VAE, noise 0.75"
    stochastic = True
    noise = 0.75
