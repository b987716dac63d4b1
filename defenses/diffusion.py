"""Diffusion purification (DiffPure, Nie et al. 2022): noise drowns the attack, a denoiser brings the image back."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench import training
from bench.data import Dataset
from bench.defense import Defense
from bench.errors import BenchError
from bench.progress import Progress

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

LEVELS = 1_000  # of noise, the last one nearly pure


class Diffusion(Defense):
    """Images are noised up to level t* of a diffusion and denoised again, in fewer steps than there are levels.

    The denoiser is trained on clean images as in Ho et al. 2020 (arXiv:2006.11239, algorithm 1): a U-Net with the time
    embedded predicts the noise in images on [-1, 1], mean squared error, 1,000 levels with variances from 1e-4 to 0.02
    in equal steps. An image is purified as in DiffPure with a discrete diffusion: noised to `noise_level` by equation 4
    of Ho et al., then `denoising_steps` ancestral steps (their equation 7, the smaller variance, the predicted image
    clipped to its range) over levels in equal distances, down to the image that the last step predicts. Net and
    schedule come from diffusers.

    The papers have no model for 28x28. Unsaid and chosen here: the net (three resolutions, no attention, group
    normalisation over groups of 8 maps), and t*, which must drown a change of 0.3 and not the digit: DiffPure takes a
    tenth of the levels against 8/255 on CIFAR-10, here it is 0.3 of them. The weights are the last ones, not a moving
    average. The `fast` recipe has a quarter of the width, learns only the lower half of the levels, denoises in 10
    steps, and its rate falls from 1e-3 along a cosine.

    The true route differentiates every step, each computed again on the way back so that memory does not grow with
    their number; BPDA follows Lee and Kim 2023 (arXiv:2303.09051): the gradient of a process with the same noise and
    only `surrogate_steps` steps, without the clip, which stops gradients at black and white.
    """

    title = "DiffPure"
    paper = "https://arxiv.org/abs/2205.07460"
    year = 2022
    stochastic = True
    differentiable = True
    trained_on = "clean images"
    recipes = {
        "fast": {
            "widths": (16, 32, 32), "layers": 1, "learned_levels": LEVELS // 2, "denoising_steps": 10,
            "learning_rate": 1e-3, "epochs": 8, "minimum_steps": 1_500, "decay": True,
        },
        "paper": {},
    }  # fmt: skip
    brief: ClassVar[dict[str, Any]] = {"widths": (8, 8), "denoising_steps": 2, "surrogate_steps": 1}

    def __init__(
        self,
        classifier: nn.Module,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        widths: tuple[int, ...] = (64, 128, 128),
        layers: int = 2,
        noise_level: int = 300,
        denoising_steps: int = 100,
        surrogate_steps: int = 5,
        learned_levels: int = LEVELS,
        learning_rate: float = 2e-4,
        batch_size: int = 128,
        epochs: int = 100,
        minimum_steps: int = 0,
        decay: bool = False,
    ) -> None:
        """`widths`: feature maps at each resolution, the first one whole, each next one halved; multiples of 8.
        `layers`: residual blocks at each. `learned_levels`: noise above them is never seen in training.

        Raises ValueError for steps or levels that do not go together and sides that cannot be halved so often,
        BenchError without diffusers.
        """
        super().__init__(classifier)
        if not 1 <= surrogate_steps <= denoising_steps <= noise_level <= learned_levels <= LEVELS:
            raise ValueError(
                "diffusion needs 1 <= surrogate_steps <= denoising_steps <= noise_level <= learned_levels <= "
                f"{LEVELS}, got {surrogate_steps}, {denoising_steps}, {noise_level}, {learned_levels}"
            )
        channels, *sides = shape
        if any(side % 2 ** (len(widths) - 1) for side in sides):
            raise ValueError(f"{len(widths)} widths need sides that halve {len(widths) - 1} times, got {shape}")
        try:
            from diffusers.models.unets.unet_2d import UNet2DModel
        except ImportError as problem:
            raise BenchError(f"DiffPure needs diffusers ({problem}): pip install 'purifybench[defenses]'") from problem
        self.net = UNet2DModel(
            in_channels=channels, out_channels=channels, layers_per_block=layers, block_out_channels=widths,
            down_block_types=("DownBlock2D",) * len(widths), up_block_types=("UpBlock2D",) * len(widths),
            norm_num_groups=8, add_attention=False,
        )  # fmt: skip
        self.noise_level, self.denoising_steps, self.surrogate_steps = noise_level, denoising_steps, surrogate_steps
        self.learned_levels, self.learning_rate, self.batch_size = learned_levels, learning_rate, batch_size
        self.epochs, self.minimum_steps, self.decay = epochs, minimum_steps, decay

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train the denoiser on the clean training images."""
        schedule = _schedule()

        def batch_loss(images: Tensor) -> Tensor:
            device = images.device
            noise = torch.randn(images.shape, generator=generator, device=device)
            levels = torch.randint(self.learned_levels, (len(images),), generator=generator, device=device)
            noised = schedule.add_noise(2 * images - 1, noise, levels)  # type: ignore[arg-type]
            return nn.functional.mse_loss(self.net(noised, levels).sample, noise)

        training.train(
            self.net, batch_loss, (data.train.images,),
            optimizer=torch.optim.Adam(self.net.parameters(), lr=self.learning_rate), epochs=self.epochs,
            minimum_steps=self.minimum_steps, batch_size=self.batch_size, clip_norm=1.0,
            schedule=training.cosine if self.decay else training.constant,
            generator=generator, progress=progress, label=f"training the denoiser of {self.title} on {data.name}",
        )  # fmt: skip

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The image that the denoising ends in."""
        return self._denoised(images, generator, self.denoising_steps).clamp(0, 1)

    def approximate(self, images: Tensor, generator: Generator) -> Tensor:
        """The end of a shorter denoising from the same noise, not clipped."""
        return self._denoised(images, generator, self.surrogate_steps, clip=False)

    def hurried(self) -> Diffusion:
        """Half of the denoising steps, at most 10 and no fewer than BPDA's, over the same levels of noise."""
        found = copy.copy(self)
        found.denoising_steps = max(min(self.denoising_steps // 2, 10), self.surrogate_steps)
        return found

    def _denoised(self, images: Tensor, generator: Generator, steps: int, clip: bool = True) -> Tensor:
        levels = [self.noise_level * left // steps - 1 for left in range(steps, 0, -1)]
        schedule = _schedule(levels, clip)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        seeds = torch.randint(2**63 - 1, (steps,), generator=generator, device=images.device).tolist()

        def step(noised: Tensor, level: int, seed: int) -> Tensor:
            own = Generator(noised.device).manual_seed(seed)  # the same numbers when it is computed again
            predicted = self.net(noised, level).sample
            return schedule.step(predicted, level, noised, generator=own, return_dict=False)[0]  # type: ignore[no-any-return, union-attr]

        first = torch.tensor(levels[0], device=images.device)
        current = schedule.add_noise(2 * images - 1, noise, first)  # type: ignore[arg-type]
        for level, seed in zip(levels, seeds, strict=True):
            if torch.is_grad_enabled() and current.requires_grad:
                current = checkpoint(step, current, level, seed, use_reentrant=False, preserve_rng_state=False)
            else:
                current = step(current, level, seed)
        return (current + 1) / 2


def _schedule(levels: list[int] | None = None, clip: bool = True) -> DDPMScheduler:
    """The noise of all LEVELS levels, and the steps over those of `levels`, the noisiest first."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    schedule = DDPMScheduler(LEVELS, 1e-4, 0.02, "linear", variance_type="fixed_small", clip_sample=clip)
    if levels is not None:
        schedule.set_timesteps(timesteps=levels)
    return schedule  # type: ignore[no-any-return]
