"""What exists, by name, with one line each: data sets, classifiers, attacks. Torch-free, for --help and completion.

Defenses are not here: they are found by entry point (plugins.py). A test holds every name against its implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
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
        "D": "two layers of 200 units with dropout, no convolution (Defense-GAN, model D)",
        "E": "two layers of 200 units, no convolution (Defense-GAN, model E)",
        "F": "model B without dropout (Defense-GAN, model F)",
        "magnet": "four 3x3 convolutions in two stages, two layers of 200 units (MagNet's code)",
        "B_madvae": "model B with padding 5, 512 features and channel dropout on the input (MAD-VAE's code)",
        "D_madvae": "model D with a second dropout (MAD-VAE's code)",
        "magnet_madvae": "magnet with padding 1, one layer of 200 units, no dropout, which MAD-VAE attacks (its code)",
        "cnet": "two 3x3 convolutions, pooling, 128 units, PyTorch's MNIST example (code of the VQ-VAE report)",
    }
)

PORTS = ("B_madvae", "D_madvae", "magnet_madvae", "cnet")
"""Classifiers as one paper's code has them, other than printed or than the rest has them: for its own evaluation."""


def _nothing(**params: object) -> tuple[int, int]:
    return 0, 0


@dataclass(frozen=True)
class AttackInfo:
    """Where an attack lives (`module:function`), its version (part of every cell's key), and what it is.

    `cost` maps the attack's parameters to the rows it sends forward and backward for each image and draw: all where no
    image leaves early, and for at least as many wrong classes as it tries. `undrawn` are those of them that ask an
    encoder, a decoder or the bare classifier by themselves, and so are sent once, however many draws a random defense
    is asked for; `hurried` are those that ask a defense in a hurry, or as a whole if it cannot. `fixed` are the
    function's arguments that make this attack out of it. A `minimum_norm` attack looks for the nearest broken image,
    however large the ball. One with a `random_part` spends part of the ball on noise, so that even a linear model does
    not fall to all of it. One that goes `past_detector` needs a defense's slack beside its logits
    (bench.threat.acceptance). One that `needs` optional methods of the contract is not applicable to a
    defense without all of them; one `through_codes` is given the encoder and the decoder beside the logits
    (bench.threat.through_codes). Of one that `may_change_class`, having no small ball, records also tell how many
    images no longer show their label (bench.class_change). One that makes `new_images` leaves the clean ones behind:
    what it makes has no true class. One `towards_image` wants an image to be taken for another one and does not look at
    the loss of a classifier: that it fools even a linear one is not in its hands. `once` maps the parameters to the
    rows that a call sends forward whatever the number of its images. One that `learns` (`module:function`, see
    bench.attacks.learner) does so from known images, once a cell, and `learning_cost` are the rows that it sends
    forward and backward then, `learning_undrawn` those that are sent once. `strength` names the parameter that a sweep
    varies: an attack has the same random numbers at all its values, as at all radii.
    """

    function: str
    version: int
    norms: tuple[str, ...]
    title: str
    paper: str
    cost: Callable[..., tuple[int, int]]
    undrawn: Callable[..., tuple[int, int]] = _nothing
    hurried: Callable[..., tuple[int, int]] = _nothing
    fixed: Mapping[str, str] = field(default_factory=dict)
    minimum_norm: bool = False
    random_part: bool = False
    past_detector: bool = False
    needs: tuple[str, ...] = ()
    through_codes: bool = False
    may_change_class: bool = False
    new_images: bool = False
    strength: str = ""
    towards_image: bool = False
    once: Callable[..., int] = lambda **_: 0
    learns: str = ""
    learning_cost: Callable[..., tuple[int, int]] = _nothing
    learning_undrawn: Callable[..., tuple[int, int]] = _nothing


def _iterative(default_steps: int) -> Callable[..., tuple[int, int]]:
    """A look at the start and after each step, the last one without a gradient, for each restart."""

    def cost(steps: int = default_steps, restarts: int = 1, **other: object) -> tuple[int, int]:
        return restarts * (steps + 1), restarts * steps

    return cost


def _in_steps(steps: int = 40, one_gradient: bool = False, **other: object) -> tuple[int, int]:
    """A look at the start and after each step; all steps along one gradient are computed as one."""
    return _iterative(1 if one_gradient else steps)()


def _two_gradients(steps: int = 100, restarts: int = 1, targets: int = 0, **other: object) -> tuple[int, int]:
    """A look at the clean image, then for each restart, and each class that is aimed at, one at the start and after
    each step, each but the last with two backward passes."""
    runs = restarts * max(targets, 1)
    return 1 + runs * (steps + 1), runs * 2 * steps


def _targeted(steps: int = 100, targets: int = 9, searches: int = 1, **other: object) -> tuple[int, int]:
    """A look at the clean image, then a run for each search towards each class that is aimed at."""
    forward, backward = _iterative(steps)(restarts=targets * searches)
    return 1 + forward, backward


def _hurried(
    steps: int = 40, restarts: int = 1, last_steps: int = 10, start: str = "random", **other: object
) -> tuple[int, int]:
    """As `_iterative` in a hurry, and once more for the last steps; where it starts blind, that too, and two looks at
    where the last steps begin."""
    forward, backward = _iterative(40)(steps, restarts)
    blind_forward, blind_backward = _blind_start(start)
    looks = 2 if start == "gray_box" else 0
    return forward + last_steps + 1 + blind_forward + looks, backward + last_steps + blind_backward


def _blind_start(start: str = "random", **other: object) -> tuple[int, int]:
    """Of `_hurried`: PGD of 40 steps on the bare classifier."""
    return _iterative(40)() if start == "gray_box" else (0, 0)


def _through_codes(steps: int = 100, restarts: int = 1, last_steps: int = 0, **other: object) -> tuple[int, int]:
    """For each restart the code of the image, decoder and model at each step of the first half, both with a backward
    pass, then the model at the start and after each step of the rest; and so once more for the last steps."""
    half = steps // 2
    forward, backward = restarts * (1 + 2 * half + steps - half + 1), restarts * (2 * half + steps - half)
    return forward + last_steps + (last_steps > 0), backward + last_steps


def _answers_among_codes(steps: int = 100, restarts: int = 1, last_steps: int = 0, **other: object) -> tuple[int, int]:
    """Of `_through_codes`, where there are last steps: for each restart the model at each step of the first half, at
    the start and after each step of the rest."""
    return (restarts * (steps + 1), restarts * steps) if last_steps else (0, 0)


def _codes_alone(steps: int = 100, restarts: int = 1, **other: object) -> tuple[int, int]:
    """Of `_through_codes`: for each restart the code of the image, and the decoder at each step of the first half."""
    return restarts * (1 + steps // 2), restarts * (steps // 2)


def _with_search(cost: Callable[..., tuple[int, int]]) -> Callable[..., tuple[int, int]]:
    """The same, where each restart finds the code of the image by search: in place of the encoder the decoder at every
    step of every start, and once more without a backward pass."""

    def searched(restarts: int = 1, search_steps: int = 100, starts: int = 4, **params: object) -> tuple[int, int]:
        forward, backward = cost(restarts=restarts, **params)
        forward += restarts * (starts * (search_steps + 1) - 1)
        return forward, backward + restarts * starts * search_steps

    return searched


def _overpowered(
    steps: int = 300, copies: int = 4, noise_draws: int = 2, rule: str = "projected", **other: object
) -> tuple[int, int]:
    """As `_overpowered_alone`, and the defense at the start and after each step for every copy, unless as published."""
    forward, backward = _overpowered_alone(steps, copies, noise_draws)
    asked = 0 if rule == "published" else copies
    return forward + (steps + 1) * asked, backward + steps * asked


def _overpowered_alone(steps: int = 300, copies: int = 4, noise_draws: int = 2, **other: object) -> tuple[int, int]:
    """The image and its code; at the start and after each step every copy, drawn and under each noise; the result under
    16 of them. Copies that may be done are looked at once more."""
    each = copies * (1 + noise_draws)
    return 2 + (steps + 1) * each + 16, steps * each


def _square(queries: int = 5000, **other: object) -> tuple[int, int]:
    """The clean image and every query; fewer where broken images leave the batch."""
    return queries + 1, 0


def _accepted_square(queries: int = 1000, **other: object) -> tuple[int, int]:
    """As `_square`, and once more the clean image, for the sizes of margin and slack."""
    return queries + 2, 0


def _spsa(steps: int = 100, samples: int = 128, **other: object) -> tuple[int, int]:
    """A look at the start and after each step, and two queries a direction; fewer where broken images leave."""
    return steps * (2 * samples + 1) + 1, 0


def _boundary(steps: int = 100, restarts: int = 1, classes: int = 10, **other: object) -> tuple[int, int]:
    """A look at the clean image, then two a step, with a backward pass for each wrong class."""
    return 1 + restarts * 2 * steps, restarts * steps * (classes - 1)


def _targeted_boundary(steps: int = 100, targets: int = 9, **other: object) -> tuple[int, int]:
    """A look at the clean image, then for each wrong class two a step, one of them with a backward pass."""
    return 1 + targets * 2 * steps, targets * steps


def _deepfool(steps: int = 50, candidates: int = 10, **other: object) -> tuple[int, int]:
    """A look at the clean image, at each step with a backward pass for each wrong class, and at the result."""
    return 2 + steps, steps * (candidates - 1)


def _carlini_wagner(searches: int = 9, steps: int = 100, **other: object) -> tuple[int, int]:
    """A look at the clean image, after each step of each search but without a gradient after its last, and at the
    result."""
    return 2 + searches * steps, 1 + searches * (steps - 1)


def _target_image(default_steps: int, default_targets: int, default_goal: str) -> Callable[..., tuple[int, int]]:
    """A look at the clean image, its code and its reconstruction; then for each target its own two, a look at the code,
    for the VAE's loss also at the reconstruction, at the start and after each step, and three at the result. A relative
    price wants the goal at the clean and at the target image first."""

    def cost(
        steps: int = default_steps,
        targets: int = default_targets,
        goal: str = default_goal,
        price: str = "absolute",
        **other: object,
    ) -> tuple[int, int]:
        each = 2 if goal == "vae_loss" else 1
        last = 0 if default_goal == "divergence" else each  # in a ball no gradient is computed after the last step
        looks = steps + 1 + 2 * (price == "relative")
        return 3 + targets * (each * looks + 5), targets * (each * (steps + 1) - last)

    return cost


def _but_for_answers(cost: Callable[..., tuple[int, int]], default_targets: int) -> Callable[..., tuple[int, int]]:
    """Of `_target_image`: all but the defense's answers to the clean image and to what each target gave."""

    def undrawn(targets: int = default_targets, **params: object) -> tuple[int, int]:
        forward, backward = cost(targets=targets, **params)
        return forward - 1 - targets, backward

    return undrawn


def _nearest_known(default: str) -> Callable[..., int]:
    """The known images, all encoded where the nearest is looked for."""

    def once(known: int = 500, choice: str = default, **other: object) -> int:
        return known if choice == "nearest" else 0

    return once


def _single_pixel(pixels: int = 100, **other: object) -> tuple[int, int]:
    """A look at the clean image, then two a pixel."""
    return 1 + 2 * pixels, 0


def _universal_learns(known: int = 500, epochs: int = 10, **other: object) -> tuple[int, int]:
    """Each known image there and back in every epoch, and once more forward before, between and after them."""
    return known * (2 * epochs + 1), known * epochs


def _codes_learn(known: int = 5000, **other: object) -> tuple[int, int]:
    """Each known image through the encoder, and one through the classifier, whose classes are counted."""
    return known + 1, 0


_LATENT_DISTANCE, _VAE_LOSS = _target_image(40, 3, "distance"), _target_image(40, 3, "vae_loss")
_TARGET_CODE = _target_image(100, 1, "divergence")

ATTACKS: Mapping[str, AttackInfo] = MappingProxyType(
    {
        "none": AttackInfo(
            "bench.attacks.controls:none", 1, (), "No attack: the clean images", "", cost=lambda **_: (0, 0)
        ),
        "uniform_noise": AttackInfo(
            "bench.attacks.controls:uniform_noise", 1, ("linf",), "Uniform noise, a control without any knowledge", "",
            cost=lambda **_: (0, 0),
        ),
        "shift": AttackInfo(
            "bench.attacks.controls:shift", 1, (), "Moved by one pixel, a control without any knowledge", "",
            cost=lambda **_: (0, 0),
        ),
        "rotate": AttackInfo(
            "bench.attacks.controls:rotate", 1, (), "Turned by 5 degrees, a control without any knowledge", "",
            cost=lambda **_: (0, 0),
        ),
        "fgsm": AttackInfo(
            "bench.attacks.gradient_steps:fgsm", 1, ("linf",), "Fast gradient sign method (Goodfellow et al. 2015)",
            "https://arxiv.org/abs/1412.6572", cost=lambda **_: (2, 1),
        ),
        "r_fgsm": AttackInfo(
            "bench.attacks.gradient_steps:r_fgsm", 1, ("linf",), "FGSM from a random corner (Tramer et al. 2018)",
            "https://arxiv.org/abs/1705.07204", cost=lambda **_: (2, 1), random_part=True,
        ),
        "i_fgsm": AttackInfo(
            "bench.attacks.gradient_steps:i_fgsm", 1, ("linf",), "FGSM in small steps, BIM (Kurakin et al. 2017)",
            "https://arxiv.org/abs/1607.02533", cost=_in_steps,
        ),
        "mi_fgsm": AttackInfo(
            "bench.attacks.gradient_steps:mi_fgsm", 1, ("linf",), "I-FGSM with momentum (Dong et al. 2018)",
            "https://arxiv.org/abs/1710.06081", cost=_in_steps,
        ),
        "unclipped_step": AttackInfo(
            "bench.attacks.unclipped_step:unclipped_step", 1, (), "One unclipped step, then rescaled (LQ-VAE's code)",
            "https://arxiv.org/abs/1903.09940", cost=lambda **_: (2, 1),
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
        "apgd_t": AttackInfo(
            "bench.attacks.apgd:apgd_t", 1, ("linf", "l2"), "Auto-PGD on the targeted DLR (Croce and Hein 2020)",
            "https://arxiv.org/abs/2003.01690", cost=_targeted,
        ),
        "hurried_apgd": AttackInfo(
            "bench.attacks.hurried:hurried_apgd", 1, ("linf", "l2"),
            "Auto-PGD on the margin of a defense in a hurry, the last steps on the whole one",
            "https://arxiv.org/abs/1802.00420", cost=_hurried, undrawn=_blind_start, hurried=_iterative(40),
            fixed={"loss": "margin"},
        ),
        "hurried_apgd_ce": AttackInfo(
            "bench.attacks.hurried:hurried_apgd", 1, ("linf", "l2"),
            "Auto-PGD on the cross-entropy of a defense in a hurry, the last steps on the whole one",
            "https://arxiv.org/abs/1802.00420", cost=_hurried, undrawn=_blind_start, hurried=_iterative(40),
            fixed={"loss": "cross_entropy"},
        ),
        "fab": AttackInfo(
            "bench.attacks.fab:fab", 1, ("linf", "l2"), "Fast adaptive boundary attack (Croce and Hein 2020)",
            "https://arxiv.org/abs/1907.02044", cost=_boundary, minimum_norm=True,
        ),
        "fab_t": AttackInfo(
            "bench.attacks.fab:fab_t", 1, ("linf", "l2"), "Fast adaptive boundary attack, one class after another",
            "https://arxiv.org/abs/1907.02044", cost=_targeted_boundary, minimum_norm=True,
        ),
        "deepfool": AttackInfo(
            "bench.attacks.deepfool:deepfool", 1, ("l2",), "DeepFool (Moosavi-Dezfooli et al. 2016)",
            "https://arxiv.org/abs/1511.04599", cost=_deepfool, minimum_norm=True,
        ),
        "cw_l2": AttackInfo(
            "bench.attacks.carlini_wagner:cw_l2", 1, ("l2",), "The L2 attack of Carlini and Wagner (2017)",
            "https://arxiv.org/abs/1608.04644", cost=_carlini_wagner, minimum_norm=True,
        ),
        "single_pixel": AttackInfo(
            "bench.attacks.single_pixel:single_pixel", 1, (), "One random pixel, labels only (AdverTorch, 2019)",
            "https://arxiv.org/abs/1902.07623", cost=_single_pixel,
        ),
        "lagrangian_pgd": AttackInfo(
            "bench.attacks.acceptance:accepted_pgd", 2, ("linf", "l2"),
            "PGD towards a wrong answer that is accepted, with a multiplier for each image",
            "https://arxiv.org/abs/1705.07263", cost=_two_gradients, fixed={"rule": "lagrangian"}, past_detector=True,
        ),
        "orthogonal_pgd": AttackInfo(
            "bench.attacks.acceptance:accepted_pgd", 1, ("linf", "l2"),
            "Orthogonal PGD past a detector (Bryniarski et al. 2021)",
            "https://arxiv.org/abs/2106.15023", cost=_two_gradients, fixed={"rule": "orthogonal"}, past_detector=True,
        ),
        "accepted_square": AttackInfo(
            "bench.attacks.acceptance:accepted_square", 1, ("linf", "l2"),
            "Square Attack towards a wrong answer that is accepted, by scores alone",
            "https://arxiv.org/abs/1912.00049", cost=_accepted_square, past_detector=True,
        ),
        "towards_class": AttackInfo(
            "bench.attacks.class_targets:towards_class", 1, (),
            "The nearest image that is accepted as a wrong class (GM-VAE's eq. 10, 2019)",
            "https://arxiv.org/abs/1806.00081", cost=partial(_targeted, steps=200), past_detector=True,
            needs=("class_scores",),
        ),
        "fooling": AttackInfo(
            "bench.attacks.class_targets:fooling", 1, (),
            "Noise that is accepted as a class (GM-VAE's eq. 11, 2019)",
            "https://arxiv.org/abs/1806.00081", cost=partial(_targeted, steps=500, targets=1),
            past_detector=True, needs=("class_scores",), new_images=True,
        ),
        "latent_ball": AttackInfo(
            "bench.attacks.latent_ball:latent_ball", 1, ("linf", "l2"),
            "A search among codes for what the decoder draws, pulled into the ball; then Auto-PGD from there",
            "https://arxiv.org/abs/1712.09196", cost=_through_codes, undrawn=_codes_alone,
            needs=("decode", "encode"), through_codes=True, hurried=_answers_among_codes,
        ),
        "searched_ball": AttackInfo(
            "bench.attacks.latent_ball:latent_ball", 1, ("linf", "l2"),
            "The same through a decoder without an encoder: the code to start from is found by search",
            "https://arxiv.org/abs/1712.09196", cost=_with_search(_through_codes), undrawn=_with_search(_codes_alone),
            fixed={"start": "search"}, needs=("decode", "start_codes"), through_codes=True,
            hurried=_answers_among_codes,
        ),
        "overpowered": AttackInfo(
            "bench.attacks.overpowered:overpowered", 3, (),
            "What the decoder draws near the image, wrong even under noise (Jalal et al. 2017)",
            "https://arxiv.org/abs/1712.09196", cost=_overpowered, undrawn=_overpowered_alone,
            needs=("decode", "encode"), through_codes=True, may_change_class=True, strength="rho",
        ),
        "latent_distance": AttackInfo(
            "bench.attacks.target_images:in_ball", 1, ("linf", "l2"),
            "The code of another image, in a ball (latent attack of Kos et al. 2018)",
            "https://arxiv.org/abs/1702.06832", cost=_LATENT_DISTANCE, undrawn=_but_for_answers(_LATENT_DISTANCE, 3),
            fixed={"goal": "distance"}, needs=("encode", "decode"), through_codes=True, towards_image=True,
            once=_nearest_known("nearest"),
        ),
        "vae_loss": AttackInfo(
            "bench.attacks.target_images:in_ball", 1, ("linf", "l2"),
            "The reconstruction of another image, in a ball (L_VAE attack of Kos et al. 2018)",
            "https://arxiv.org/abs/1702.06832", cost=_VAE_LOSS, undrawn=_but_for_answers(_VAE_LOSS, 3),
            fixed={"goal": "vae_loss"}, needs=("encode", "decode"), through_codes=True, towards_image=True,
            once=_nearest_known("nearest"),
        ),
        "target_code": AttackInfo(
            "bench.attacks.target_images:penalised", 2, (),
            "The code of another image at the least change (Tabacof et al. 2016)",
            "https://arxiv.org/abs/1612.00155", cost=_TARGET_CODE, undrawn=_but_for_answers(_TARGET_CODE, 1),
            needs=("encode", "decode"), through_codes=True, towards_image=True, once=_nearest_known("random"),
            may_change_class=True, strength="constant",
        ),
        "universal": AttackInfo(
            "bench.attacks.universal:universal", 1, ("linf", "l2"),
            "One change for all images (Moosavi-Dezfooli et al. 2017; Shafahi et al. 2020)",
            "https://arxiv.org/abs/1610.08401", cost=lambda **_: (2, 0),
            learns="bench.attacks.universal:learn", learning_cost=_universal_learns,
        ),
        "latent_classifier": AttackInfo(
            "bench.attacks.latent_classifier:latent_classifier", 1, ("linf", "l2"),
            "A classifier of the codes, attacked through the encoder (Kos et al. 2018)",
            "https://arxiv.org/abs/1702.06832", cost=_iterative(40), undrawn=_iterative(40), needs=("encode",),
            through_codes=True, learns="bench.attacks.latent_classifier:learn", learning_cost=_codes_learn,
            learning_undrawn=_codes_learn,
        ),
        "square": AttackInfo(
            "bench.attacks.square:square", 1, ("linf", "l2"),
            "Square Attack, random search on scores (Andriushchenko et al. 2020)",
            "https://arxiv.org/abs/1912.00049", cost=_square,
        ),
        "spsa": AttackInfo(
            "bench.attacks.spsa:spsa", 1, ("linf",), "SPSA, gradients estimated from scores (Uesato et al. 2018)",
            "https://arxiv.org/abs/1802.05666", cost=_spsa,
        ),
    }
)  # fmt: skip

DOORS: tuple[str, ...] = tuple(sorted({door for info in ATTACKS.values() for door in info.needs}))
"""The optional methods of the contract that decide which attacks are applicable."""
