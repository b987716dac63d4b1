"""Colour quantisation by k-means, separately on each image: a defense without any training."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from bench.defense import Defense


class KMeans(Defense):
    """Each pixel becomes the mean of its cluster among the image's own k colours.

    From the report "VQ-VAE as Defense Against Adversarial Attack" (2023), which runs k = 20 clusters for 20 iterations
    on FGSM only. There the centres start at U(0, 5) although pixels lie in [0, 1], so most clusters stay empty; here
    they start evenly between the image's darkest and brightest value (in each channel), which needs no random
    numbers. An empty cluster keeps its centre. All images of a batch are clustered at once.
    """

    title = "k-means"
    paper = "https://github.com/Harsh-Gupta9897/VQVAE_as_Defense_Against_Adverserial_Attack"
    year = 2023
    differentiable = True

    def __init__(self, classifier: nn.Module, *, k: int = 20, iterations: int = 20) -> None:
        """`k` clusters for each image, `iterations` of Lloyd's algorithm. Raises ValueError if either is below 1."""
        super().__init__(classifier)
        if k < 1 or iterations < 1:
            raise ValueError(f"k-means needs k >= 1 and iterations >= 1, got k = {k}, iterations = {iterations}")
        self.k, self.iterations = k, iterations

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """The clustered images. The gradient is that of the cluster means with the assignment held fixed."""
        pixels = images.flatten(2).transpose(1, 2)  # (N, P, C)
        with torch.no_grad():
            darkest, brightest = (
                pixels.amin(dim=1, keepdim=True),
                pixels.amax(dim=1, keepdim=True),
            )  # (N, 1, C)
            place = torch.linspace(0, 1, self.k, device=images.device, dtype=images.dtype)[None, :, None]
            centres = darkest + (brightest - darkest) * place  # (N, k, C)
            for _ in range(self.iterations):
                cluster = self._nearest(pixels, centres)
                centres = self._means(pixels, cluster, centres)
            cluster = self._nearest(pixels, centres)
        centres = self._means(pixels, cluster, centres)
        purified = centres.gather(1, cluster[:, :, None].expand_as(pixels))  # (N, P, C)
        return purified.transpose(1, 2).reshape(images.shape).clamp(0, 1)

    def _nearest(self, pixels: Tensor, centres: Tensor) -> Tensor:
        if pixels.shape[2] == 1:  # on a line the sorted centres' midpoints are the borders
            ordered, order = centres.squeeze(2).sort(dim=1)  # (N, k)
            borders = (ordered[:, 1:] + ordered[:, :-1]) / 2
            return order.gather(1, torch.searchsorted(borders.contiguous(), pixels.squeeze(2).contiguous()))  # (N, P)
        return torch.cdist(pixels, centres).argmin(dim=2)  # (N, P)

    def _means(self, pixels: Tensor, cluster: Tensor, centres: Tensor) -> Tensor:
        spread = cluster[:, :, None].expand_as(pixels)
        sums = torch.zeros_like(centres).scatter_add(1, spread, pixels)
        counts = torch.zeros_like(centres).scatter_add(1, spread, torch.ones_like(pixels))
        return torch.where(counts > 0, sums / counts.clamp(min=1), centres)  # (N, k, C)
