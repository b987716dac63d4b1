"""The papers behind the defenses by their link, as records hold it: title and authors' surnames, from the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Work:
    """A paper, or a report, of these authors in its order."""

    title: str
    authors: tuple[str, ...]


WORKS: Mapping[str, Work] = MappingProxyType(
    {
        "https://arxiv.org/abs/1312.6199": Work(
            "Intriguing properties of neural networks",
            ("Szegedy", "Zaremba", "Sutskever", "Bruna", "Erhan", "Goodfellow", "Fergus"),
        ),
        "https://arxiv.org/abs/1704.01155": Work(
            "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", ("Xu", "Evans", "Qi")
        ),
        "https://arxiv.org/abs/1705.09064": Work(
            "MagNet: a Two-Pronged Defense against Adversarial Examples", ("Meng", "Chen")
        ),
        "https://arxiv.org/abs/1706.06083": Work(
            "Towards Deep Learning Models Resistant to Adversarial Attacks",
            ("Madry", "Makelov", "Schmidt", "Tsipras", "Vladu"),
        ),
        "https://arxiv.org/abs/1710.10766": Work(
            "PixelDefend: Leveraging Generative Models to Understand and Defend against Adversarial Examples",
            ("Song", "Kim", "Nowozin", "Ermon", "Kushman"),
        ),
        "https://arxiv.org/abs/1711.00117": Work(
            "Countering Adversarial Images using Input Transformations", ("Guo", "Rana", "Cisse", "van der Maaten")
        ),
        "https://arxiv.org/abs/1805.06605": Work(
            "Defense-GAN: Protecting Classifiers Against Adversarial Attacks Using Generative Models",
            ("Samangouei", "Kabkab", "Chellappa"),
        ),
        "https://arxiv.org/abs/1806.00081": Work(
            "Resisting Adversarial Attacks Using Gaussian Mixture Variational Autoencoders",
            ("Ghosh", "Losalka", "Black"),
        ),
        "https://arxiv.org/abs/1812.06570": Work(
            "Defense-VAE: A Fast and Accurate Defense against Adversarial Attacks", ("Li", "Ji")
        ),
        "https://arxiv.org/abs/1903.09940": Work(
            "Variational Inference with Latent Space Quantization for Adversarial Resilience",
            ("Kyatham", "Mishra", "Prathosh"),
        ),
        "https://arxiv.org/abs/2205.07460": Work(
            "Diffusion Models for Adversarial Purification", ("Nie", "Guo", "Huang", "Xiao", "Vahdat", "Anandkumar")
        ),
        "https://github.com/Derek-Wds/MAD-VAE": Work(
            "MAD-VAE: Manifold Awareness Defense Variational Autoencoder", ("Morlock", "Wang")
        ),
        "https://github.com/Harsh-Gupta9897/VQVAE_as_Defense_Against_Adverserial_Attack": Work(
            "VQ-VAE As Defense On Adversarial Attacks", ("Gupta",)
        ),
    }
)
"""Those of the defenses that come with PurifyBench. Of another paper the link alone is shown."""
