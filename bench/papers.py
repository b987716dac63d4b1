"""The papers' own evaluations as protocols: run as their authors ran them, quirks by name. Nothing here imports torch.

Each stands beside what its paper printed (leaderboard/data/reported.csv) and ranks nobody: most attackers here do not
know that a defense exists, and several attacks stop short of their budget. What a paper does not state is taken from
Defense-GAN's published settings, and said where the numbers are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from bench.boards import NORMAL, RHOS
from bench.protocol import AttackSpec, Effort, Protocol, Value

_EPS = 0.3  # the radius of nearly every table, on MNIST as on Fashion-MNIST
_FIRST = 500  # images of a transfer attack, and of the costlier CW
_CLEAN = AttackSpec("none", "clean")
_L2 = {"mnist": (0.5, 1.0, 1.5, 2.0), "fmnist": (0.25, 0.5, 1.0, 1.5)}  # budgets of attacks that have none themselves


def _params(**given: Value) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(given.items()))


_CW = _params(box="tanh", searches=1, steps=100, learning_rate=10.0, constant=100.0, kappa=0.0)  # Defense-GAN's
_DEEPFOOL = _params(steps=50, overshoot=0.02)  # CleverHans' default
_PREDICTED = _params(labels="predicted")  # CleverHans attacks away from the class that the net itself predicts


def _protocol(
    name: str, dataset: str, classifiers: tuple[str, ...], attacks: Iterable[AttackSpec], radii: tuple[float, ...],
    purpose: str,
) -> Protocol:  # fmt: skip
    specs = (_CLEAN, *attacks)
    return Protocol(
        id=f"papers-v1-{name}-{dataset}", dataset=dataset, n_examples=1000, attacks=specs, linf_radii=radii,
        l2_radii=_L2[dataset], classifiers=classifiers, headline_radii=(_EPS,) if _EPS in radii else (),
        purpose=f"{purpose} Repeats a paper's evaluation to stand beside its numbers; never ranked.",
        efforts=(Effort("medium", True, 250, specs, 5, 10), Effort("search", True, 250, specs, 1, 1)),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- LQ-VAE, slides of 2019


def _lq_vae(dataset: str) -> Protocol:
    """Every pair of a classifier and a substitute, also of one kind (A on A), which the slides leave out."""
    fgsm = AttackSpec("fgsm", "gray_box", "linf", _EPS)
    pgd = AttackSpec("pgd", "gray_box", "linf", _EPS, NORMAL)
    deepfool = AttackSpec("deepfool", "gray_box", "l2", None, _DEEPFOOL)
    cw = AttackSpec("cw_l2", "gray_box", "l2", None, _CW, n_examples=_FIRST)
    attacks = (
        *(fgsm, deepfool, cw),
        *(
            replace(spec, track="transfer", source=f"substitute-{net}", n_examples=_FIRST)
            for net in ("A", "B", "C")
            for spec in (fgsm, pgd, deepfool, cw)
        ),
        # its BPDA: one step of 0.3 on images in [-1, 1], never clipped; each image is then stretched back to [0, 1]
        AttackSpec("unclipped_step", "white_box", None, None, _params(step_size=0.15), "bpda"),
    )  # fmt: skip
    purpose = "LQ-VAE (Kyatham, Mishra and Prathosh 2019): classifiers A to C, attacked alone and through substitutes."
    return _protocol("lq-vae", dataset, ("A", "B", "C"), attacks, (_EPS,), purpose)


# ---------------------------------------------------------------------------------------------- MAD-VAE, 2020

_MAD_VAE = (
    AttackSpec("fgsm", "gray_box", "linf", _EPS),
    # its first step is a Gaussian without the sign, so that images may leave the ball: eps decides, but bounds nothing
    AttackSpec("r_fgsm", "gray_box", "linf", None, _params(alpha=0.05, eps=_EPS, signed=False)),
    AttackSpec(
        "cw_l2", "gray_box", "l2", None, n_examples=100,
        params=_params(
            box="tanh", abort_early=True, searches=9, steps=1500, learning_rate=0.01, constant=0.001, kappa=10.0
        ),
    ),
    AttackSpec("mi_fgsm", "gray_box", "linf", _EPS, _params(steps=40, step_size=0.01, decay=1.0)),
    AttackSpec("pgd", "gray_box", "linf", _EPS, NORMAL),
    AttackSpec("single_pixel", "gray_box"),  # AdverTorch's default of 100 positions is ours, too
)  # fmt: skip


# as the released code runs it, but for what would tie an image's result to its neighbours (bench.attacks.overpowered)
_OVERPOWERED = tuple(
    AttackSpec(
        "overpowered", "latent", route="autograd", variant=f"rho-{rho:g}",
        params=_params(
            rho=rho, rule="published", bound=3.998, copies=20, noise_draws=100, steps=1000, learning_rate=0.05
        ),
    )
    for rho in RHOS
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- VQ-VAE, report of 2023


def _vq_vae() -> Protocol:
    """I-FGSM and MI-FGSM as the report ran them: nine steps of a tenth of the radius along one gradient."""
    radii = (0.001, 0.005, 0.2, 0.3)
    attacks = [AttackSpec("fgsm", "gray_box", "linf", eps) for eps in radii]
    for attack, more in (("i_fgsm", {}), ("mi_fgsm", {"decay": 1.0})):
        for eps in radii:
            params = _params(steps=9, step_size=eps / 10, one_gradient=True, **more)
            attacks.append(AttackSpec(attack, "gray_box", "linf", eps, params))
    purpose = "VQ-VAE as a defense (Gupta 2023): one gradient of the bare classifier, also where nine steps are taken."
    return _protocol("vq-vae", "mnist", ("cnet",), attacks, radii, purpose)


# ---------------------------------------------------------------------------------------------- Defense-GAN and -VAE


def _defense_gan(dataset: str) -> Protocol:
    attacks = (
        AttackSpec("fgsm", "gray_box", "linf", _EPS, _PREDICTED),
        AttackSpec("r_fgsm", "gray_box", "linf", _EPS, _params(alpha=0.05, labels="predicted", signed=True)),
        AttackSpec("cw_l2", "gray_box", "l2", None, _params(**dict(_CW), labels="predicted"), n_examples=_FIRST),
        *(
            AttackSpec("fgsm", "transfer", "linf", _EPS, _PREDICTED, source=f"substitute-{net}", n_examples=_FIRST)
            for net in ("B", "E")
        ),
    )
    purpose = "Defense-GAN (Samangouei et al. 2018) and Defense-VAE (Li and Ji 2019): attacks flee the predicted class."
    return _protocol("defense-gan", dataset, ("A", "B", "C", "D"), attacks, (_EPS,), purpose)


# ---------------------------------------------------------------------------------------------- GM-VAE, 2019


def _gm_vae() -> Protocol:
    """Attackers of the encoder alone, which classifies; and one who knows all, for all nine classes (eq. 10)."""
    radii = (0.06, 0.12, 0.18, 0.24, 0.3)
    attacks = (
        *(AttackSpec("fgsm", "gray_box", "linf", eps) for eps in radii),
        # CleverHans' defaults but for its missing clip to [0, 1]
        AttackSpec("mi_fgsm", "gray_box", "linf", _EPS, _params(steps=10, step_size=0.06, labels="predicted")),
        AttackSpec("pgd", "gray_box", "linf", _EPS, _params(**dict(NORMAL), labels="predicted")),
        AttackSpec(
            "towards_class", "rejection", None, None, _params(threshold="published", targets=9, steps=200), "autograd",
            n_examples=100,
        ),
    )  # fmt: skip
    purpose = (
        "GM-VAE (Ghosh, Losalka and Black 2019): its encoder attacked alone, and all of it, at its own thresholds."
    )
    return _protocol("gm-vae", "mnist", ("A",), attacks, radii, purpose)


_ALL = (
    _gm_vae(),
    _lq_vae("mnist"),
    _lq_vae("fmnist"),
    _protocol(
        "mad-vae", "mnist", ("magnet_madvae",), _MAD_VAE, (_EPS,),
        "MAD-VAE (Morlock and Wang 2020), table 1: attacks on the bare classifier, called white-box there.",
    ),
    _protocol(
        "mad-vae-black-box", "mnist", ("A", "B_madvae", "C", "D_madvae", "E"), _MAD_VAE[:1], (_EPS,),
        "MAD-VAE (Morlock and Wang 2020), table 2: called black-box there, but FGSM is made on the very net that is "
        "tested.",
    ),
    _protocol(
        "mad-vae-overpowered", "mnist", ("magnet_madvae",), _OVERPOWERED, (),
        "MAD-VAE (Morlock and Wang 2020), table 3: the overpowered attack at four levels of noise, for a GPU.",
    ),
    _vq_vae(),
    _defense_gan("mnist"),
    _defense_gan("fmnist"),
)  # fmt: skip
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({protocol.id: protocol for protocol in _ALL})
