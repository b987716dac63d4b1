"""What exists, by name, with one line each: data sets, classifiers, attacks. Torch-free, for --help and completion.

Defenses are not here: they are found by entry point (plugins.py). A test holds every name against its implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

DATASETS: Mapping[str, str] = MappingProxyType(
    {
        "digits": "scikit-learn's digits, 1,797 real scans enlarged to 1x28x28; bundled, needs no network",
        "mnist": "MNIST, 70,000 handwritten digits, 1x28x28 (LeCun, Cortes and Burges)",
        "fmnist": "Fashion-MNIST, 70,000 articles of clothing, 1x28x28 (Xiao, Rasul and Vollgraf 2017)",
    }
)

CLASSIFIERS: Mapping[str, str] = MappingProxyType(
    {
        "A": "two convolutions of 64 channels, the classifier most papers attack (Defense-GAN, model A)",
        "B": "three wide strided convolutions behind dropout on the input (Defense-GAN, model B)",
        "C": "128 then 64 channels, 3x3 then 5x5 kernels (Defense-GAN, model C)",
    }
)


@dataclass(frozen=True)
class AttackInfo:
    """Where an attack lives (`module:function`), its version (part of every cell's key), and what it is.

    `cost` maps the attack's parameters to the rows it sends forward and backward for each image and draw. `fixed` are
    the function's arguments that make this attack out of it.
    """

    function: str
    version: int
    norms: tuple[str, ...]
    title: str
    paper: str
    cost: Callable[..., tuple[int, int]]
    fixed: Mapping[str, str] = field(default_factory=dict)


def _iterative(default_steps: int) -> Callable[..., tuple[int, int]]:
    """A look at the start and after each step, the last one without a gradient, for each restart."""

    def cost(steps: int = default_steps, restarts: int = 1, **other: object) -> tuple[int, int]:
        return restarts * (steps + 1), restarts * steps

    return cost


ATTACKS: Mapping[str, AttackInfo] = MappingProxyType(
    {
        "none": AttackInfo(
            "bench.attacks.controls:none", 1, (), "No attack: the clean images", "", cost=lambda **_: (0, 0)
        ),
        "uniform_noise": AttackInfo(
            "bench.attacks.controls:uniform_noise", 1, ("linf",), "Uniform noise, a control without any knowledge", "",
            cost=lambda **_: (0, 0),
        ),
        "fgsm": AttackInfo(
            "bench.attacks.gradient_steps:fgsm", 1, ("linf",), "Fast gradient sign method (Goodfellow et al. 2015)",
            "https://arxiv.org/abs/1412.6572", cost=lambda **_: (2, 1),
        ),
        "pgd": AttackInfo(
            "bench.attacks.gradient_steps:pgd", 1, ("linf", "l2"), "Projected gradient descent (Madry et al. 2018)",
            "https://arxiv.org/abs/1706.06083", cost=_iterative(40),
        ),
        "apgd_ce": AttackInfo(
            "bench.attacks.apgd:apgd", 1, ("linf", "l2"), "Auto-PGD on the cross-entropy (Croce and Hein 2020)",
            "https://arxiv.org/abs/2003.01690", cost=_iterative(100), fixed={"loss": "cross_entropy"},
        ),
        "apgd_margin": AttackInfo(
            "bench.attacks.apgd:apgd", 1, ("linf", "l2"), "Auto-PGD on the margin of the logits",
            "https://arxiv.org/abs/2003.01690", cost=_iterative(100), fixed={"loss": "margin"},
        ),
    }
)  # fmt: skip
