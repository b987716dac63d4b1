"""The protocols of the boards: what is run on every defense of a data set, at full size and as a quick look.

A published one (no `-draft` in its id) never changes: its hash is pinned by a test, and a fix becomes a new version
beside the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from bench.protocol import (
    ROUTES,
    THRESHOLDS,
    AttackSpec,
    Effort,
    Norm,
    Protocol,
    Route,
    Thresholds,
    Track,
    Value,
)

NORMAL = (("restarts", 1), ("step_size", 0.01), ("steps", 40))  # PGD of the papers
STEADY = (("step_size", 0.01), ("steps", 40))  # and their I-FGSM and MI-FGSM
SOURCES = ("identity", "identity_vae", "pgd_training")  # whose white-box images every defense is shown
NETS = ("classifier-B", "substitute-B")  # of attackers who have the training data, or may only ask for labels


def _blind(radii: tuple[float, ...], *, stochastic: bool = False) -> list[AttackSpec]:
    """Controls, and attackers who know the classifier alone: their images are made once for all defenses."""
    specs = [AttackSpec("none", "clean")]
    specs += [AttackSpec("none", "clean", variant="again")] if stochastic else []
    specs += [AttackSpec("uniform_noise", "clean", "linf", eps) for eps in radii]
    specs += [AttackSpec("shift", "clean"), AttackSpec("rotate", "clean")]
    specs += [AttackSpec("fgsm", "gray_box", "linf", eps) for eps in radii]
    specs += [AttackSpec("pgd", "gray_box", "linf", eps, NORMAL) for eps in radii]
    return specs


def _steps(names: tuple[str, ...], radii: tuple[float, ...]) -> list[AttackSpec]:
    """The papers' other gradient steps on the classifier alone."""
    specs = []
    for eps in radii:
        params = {"r_fgsm": (("alpha", min(0.05, eps / 2)),), "i_fgsm": STEADY, "mi_fgsm": STEADY}
        specs += [AttackSpec(name, "gray_box", "linf", eps, params[name]) for name in names]
    return specs


def _nearest(searches: int, steps: int, source: str = "") -> list[AttackSpec]:
    """The nearest images that the classifier, or the net `source`, gets wrong, however near or far."""
    track: Track = "transfer" if source else "gray_box"
    search = (("kappa", 0.0), ("searches", searches), ("steps", steps))
    deepfool = AttackSpec("deepfool", track, "l2", source=source)
    return [deepfool, AttackSpec("cw_l2", track, "l2", params=search, source=source)]


def _transfer(sources: tuple[str, ...], radii: tuple[float, ...], steps: int) -> list[AttackSpec]:
    params = (("steps", steps),)
    return [AttackSpec("apgd_margin", "transfer", "linf", eps, params, source=s) for s in sources for eps in radii]


def _papers(radii: tuple[float, ...]) -> list[AttackSpec]:
    """What the papers do with the classifier, and with nets in its place."""
    pixel = AttackSpec("single_pixel", "gray_box")
    specs = [*_steps(("r_fgsm", "i_fgsm", "mi_fgsm"), radii), *_nearest(5, 100), pixel]
    for net in NETS:
        for eps in radii:
            specs.append(AttackSpec("fgsm", "transfer", "linf", eps, source=net))
            specs.append(AttackSpec("pgd", "transfer", "linf", eps, NORMAL, source=net))
        specs += _nearest(5, 100, net)
    return specs


def _cold(radii: tuple[float, ...], steps: int, n: int, routes: tuple[Route, ...]) -> list[AttackSpec]:
    """Independent runs on the first `n` images: the columns of the tracks and the warnings read these."""
    return [
        AttackSpec(attack, "white_box", "linf", eps, (("steps", steps),), route, n_examples=n, variant="cold")
        for eps in radii
        for route in routes
        for attack in ("apgd_ce", "apgd_margin")
    ]


def _checks(radii: tuple[float, ...], wide: float, steps: int, n: int, queries: int, eot: int) -> list[AttackSpec]:
    """What tells masked gradients: one step, twice the steps, scores alone, a ball in which nothing can hold."""
    specs = []
    for eps in radii:
        one, twice, asked = ((("eot", eot), *more) for more in ((), (("steps", 2 * steps),), (("queries", queries),)))
        specs += [
            AttackSpec("fgsm", "white_box", "linf", eps, one, "autograd", n_examples=n),
            AttackSpec("apgd_margin", "white_box", "linf", eps, twice, "autograd", n_examples=n, variant="twice"),
            AttackSpec("square", "query", "linf", eps, asked, n_examples=n),
        ]
    short = (("eot", eot), ("steps", 20))
    specs += [
        AttackSpec("apgd_margin", "white_box", "linf", wide, short, route, n_examples=n, variant="wide")
        for route in ROUTES[:2]
    ]
    return specs


def _cascade(radii: tuple[float, ...], hard: tuple[float, ...], l2: tuple[float, ...], steps: int) -> list[AttackSpec]:
    """From the smallest ball to the largest; at the `hard` radii also restarts, targets and the third route."""
    specs: list[AttackSpec] = []

    def add(attack: str, norm: Norm, eps: float, route: Route, variant: str = "", **params: Value) -> None:
        ordered = tuple(sorted({"steps": steps, **params}.items()))
        specs.append(AttackSpec(attack, "white_box", norm, eps, ordered, route, cascade=True, variant=variant))

    for eps in radii:
        add("apgd_margin", "linf", eps, "autograd")
        add("apgd_ce", "linf", eps, "autograd")
        add("apgd_margin", "linf", eps, "bpda")
        if eps in hard:
            add("apgd_margin", "linf", eps, "surrogate")
            add("apgd_margin", "linf", eps, "autograd", "restarts", restarts=3)
            add("apgd_t", "linf", eps, "autograd", steps=steps // 2, targets=4)
    for eps in l2:
        add("apgd_margin", "l2", eps, "autograd")
        add("apgd_margin", "l2", eps, "bpda")
    return specs


def _random(
    radii: tuple[float, ...],
    hard: tuple[float, ...],
    l2: tuple[float, ...],
    steps: int,
    eot: int,
    routes: tuple[Route, ...],
) -> list[AttackSpec]:
    """On a random defense nothing may leave early, so there is no cascade: fewer cells, each cold and on all images."""
    long, short = ((("eot", eot), ("steps", count)) for count in (steps, max(steps // 2, 20)))
    specs = []
    for eps in radii:
        specs += [AttackSpec("apgd_margin", "white_box", "linf", eps, long, "autograd")]
        specs += [AttackSpec("apgd_ce", "white_box", "linf", eps, long, "autograd")] if eps in hard else []
        for route in routes[1:]:
            if route == "bpda" or eps in hard:
                specs.append(AttackSpec("apgd_margin", "white_box", "linf", eps, short, route))
    specs += [AttackSpec("apgd_margin", "white_box", "l2", eps, short, "autograd") for eps in l2]
    return specs


@dataclass(frozen=True)
class _Radii:
    linf: tuple[float, ...]
    l2: tuple[float, ...]
    hard: tuple[float, ...]  # where the attackers spend most, and the cold runs are made
    wide: float  # so large that every image can become any other: whatever survives there hides its gradient


_INK = _Radii((0.05, 0.1, 0.15, 0.2, 0.3, 0.4), (0.5, 1.0, 1.5, 2.0), (0.1, 0.3), 0.5)
_CLOTH = _Radii((0.01, 0.02, 0.04, 0.06, 0.1, 0.2), (0.25, 0.5, 1.0, 1.5), (0.04, 0.1), 0.5)


def _full(dataset: str, n_examples: int, r: _Radii, *, ranked: bool) -> Protocol:
    fewer = n_examples // 4
    blind = [*_blind(r.linf, stochastic=True), *_papers(r.hard), *_transfer(SOURCES, r.hard, 40)]
    random = (*blind, *_checks(r.hard, r.wide, 100, 100, 300, 20), *_random(r.linf, r.hard, r.l2, 100, 20, ROUTES))
    diffusion = (*blind, *_checks(r.hard, r.wide, 50, 32, 100, 10), *_random(r.linf, r.hard, (), 50, 10, ROUTES))
    search = (*blind, *_checks(r.hard, r.wide, 50, 32, 100, 1), *_random(r.linf, r.hard, (), 50, 1, ROUTES))
    return Protocol(
        id=f"{dataset}-v1", dataset=dataset, n_examples=n_examples, linf_radii=r.linf, l2_radii=r.l2, ranked=ranked,
        headline_radii=r.hard,
        purpose="Every threat on every defense, the adaptive ones along three gradients; no latent attacks yet.",
        attacks=(
            *_blind(r.linf), *_papers(r.hard), *_transfer(SOURCES, r.hard, 40), *_cold(r.hard, 100, 200, ROUTES),
            *_checks(r.hard, r.wide, 100, 200, 1000, 1), *_cascade(r.linf, r.hard, r.l2, 100),
        ),
        efforts=(
            Effort("cheap", True, fewer, random, 20, 100),
            Effort("medium", True, fewer, diffusion, 10, 20),
            Effort("search", True, fewer, search, 4, 6),
        ),
    )  # fmt: skip


def _quick(dataset: str, r: _Radii) -> Protocol:
    radii = tuple(r.linf[i] for i in (1, 3, 4))
    hard = radii[-1:]
    few = AttackSpec("single_pixel", "gray_box", params=(("pixels", 20),))
    seen = (*_steps(("r_fgsm", "mi_fgsm"), hard), *_nearest(3, 30), few)
    blind = [*_blind(radii, stochastic=True), *seen, *_transfer(SOURCES[:1], hard, 20)]
    random = (*blind, *_checks(hard, r.wide, 20, 50, 100, 4), *_random(radii, hard, (), 20, 4, ROUTES[:2]))
    return Protocol(
        id=f"{dataset}-v1-quick", dataset=dataset, n_examples=200, linf_radii=radii, ranked=False,
        headline_radii=tuple(eps for eps in r.hard if eps in radii),
        purpose=f"Smoke test of {dataset}-v1 on 200 images, with 20 steps; never ranked.",
        attacks=(
            *_blind(radii), *seen, *_transfer(SOURCES[:1], hard, 20), *_cold(hard, 20, 100, ROUTES[:2]),
            *_checks(hard, r.wide, 20, 100, 200, 1), *_cascade(radii, (), (), 20),
        ),
        efforts=(
            Effort("cheap", True, 100, random, 10, 20),
            Effort("medium", True, 50, random, 5, 10),
            Effort("search", True, 50, random, 1, 1),
        ),
    )  # fmt: skip


def _as_a_class(steps: int, eot: int, full: bool) -> list[AttackSpec]:
    """What the GM-VAE's authors ran on it: the nearest image that passes for another class, for all nine, and noise
    that passes for one. The former with a weight of the change that is searched, which is ours; with the paper's; and
    with the covariance as printed, too. For defenses that expect something of a class.
    """
    usual: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", steps), ("targets", 9))
    searched = (("eot", eot), ("searches", 3), *usual[1:])
    printed = (("covariance", "printed"), *usual)
    noise = (("eot", eot), ("steps", 2 * steps), ("targets", 1))
    few = None if full else 40
    return [
        AttackSpec("towards_class", "rejection", params=searched, route="autograd", n_examples=few),
        AttackSpec(
            "towards_class", "rejection", params=usual, route="autograd", n_examples=few, variant="as-published"
        ),
        AttackSpec(
            "towards_class", "rejection", params=printed, route="autograd", n_examples=few and 20, variant="printed"
        ),
        AttackSpec("fooling", "rejection", params=noise, route="autograd", n_examples=few),
    ]


def _past_detectors(
    radii: tuple[float, ...], hard: tuple[float, ...], l2: tuple[float, ...], wide: float, steps: int, eot: int
) -> list[AttackSpec]:
    """Attackers who want a wrong answer that is accepted, at the threshold that the board compares at, along both
    routes at every radius, since the mean robust radius counts all of them; at the `hard` radii also at the other
    thresholds, with restarts, with twice the steps, and who know the purifier but not the detector."""
    specs = []
    usual: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", steps))
    for eps in radii:
        for attack in ("lagrangian_pgd", "orthogonal_pgd"):
            specs += [AttackSpec(attack, "rejection", "linf", eps, usual, route) for route in ROUTES[:2]]
            if eps not in hard:
                continue
            for threshold in tuple(THRESHOLDS)[1:]:
                there = (*usual, ("threshold", threshold))
                variant = f"at-{threshold.rstrip('%')}"
                specs.append(AttackSpec(attack, "rejection", "linf", eps, there, "autograd", variant=variant))
            again = (("eot", eot), ("restarts", 3), ("steps", steps))
            specs.append(AttackSpec(attack, "rejection", "linf", eps, again, "autograd", variant="restarts"))
            twice = (("eot", eot), ("steps", 2 * steps))
            specs.append(AttackSpec(attack, "rejection", "linf", eps, twice, "autograd", variant="twice"))
        if eps in hard:
            specs += [AttackSpec("apgd_margin", "white_box", "linf", eps, usual, route) for route in ROUTES[:2]]
            aimed = (*usual, ("targets", 5))
            specs.append(
                AttackSpec(
                    "lagrangian_pgd", "rejection", "linf", eps, aimed, "autograd", n_examples=100, variant="targets"
                )
            )
            asked = (("eot", eot), ("queries", 5 * steps))
            specs.append(AttackSpec("accepted_square", "query", "linf", eps, asked, n_examples=100))
    specs += _as_a_class(steps, eot, len(hard) > 1)
    for attack in ("lagrangian_pgd", "orthogonal_pgd"):
        specs.append(AttackSpec(attack, "rejection", "linf", wide, usual, "autograd", variant="wide"))
        specs += [AttackSpec(attack, "rejection", "l2", eps, usual, route) for eps in l2 for route in ROUTES[:2]]
    return specs


def _selective(dataset: str, r: _Radii, *, quick: bool, ranked: bool) -> Protocol:
    """For defenses that may refuse: on a board of their own, since an answer can be right, wrong or none."""
    radii = tuple(r.linf[i] for i in (1, 3, 4)) if quick else r.linf
    hard = radii[-1:] if quick else r.hard
    seen = _papers(r.hard) if not quick else [*_steps(("r_fgsm", "mi_fgsm"), hard), *_nearest(3, 30)]
    images, steps, l2 = (200, 40, ()) if quick else (500, 200, r.l2)
    attacks = (*_blind(radii), *seen, *_transfer(SOURCES[:1], hard, 20 if quick else 40))
    random = (*_blind(radii, stochastic=True), *seen, *_past_detectors(radii, hard, l2, r.wide, steps // 2, 10))
    return Protocol(
        id=f"{dataset}-selective-v1{'-quick' * quick}-draft", dataset=dataset, n_examples=images, linf_radii=radii,
        l2_radii=() if quick else r.l2, ranked=ranked and not quick,
        headline_radii=tuple(eps for eps in r.hard if eps in radii),
        purpose=f"Smoke test of {dataset}-selective-v1 on {images} images; never ranked." if quick else
        "Defenses that may refuse an image: accuracy, errors and refusals against attackers who know the threshold.",
        attacks=(*attacks, *_past_detectors(radii, hard, l2, r.wide, steps, 1)),
        efforts=(
            Effort("cheap", True, images // 2, random, 10, 20),
            Effort("medium", True, images // 4, random, 5, 10),
        ),
    )  # fmt: skip


RHOS = (1.0, 2.5, 3.0, 3.5)  # of the overpowered attack: how much noise its images withstand (MAD-VAE's table 3)

CONSTANTS = tuple(
    Fraction(4) ** power for power in range(-4, 5)
)  # a target-image attack's relative price of the change


def _among_codes(radii: tuple[float, ...], l2: tuple[float, ...], steps: int, eot: int) -> list[AttackSpec]:
    """What searching among codes adds to searching among pixels, in the same balls with as many steps; and attacks
    without a ball."""
    usual: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", steps))
    norms: tuple[tuple[Norm, tuple[float, ...]], ...] = (("linf", radii), ("l2", l2))
    balls = [(norm, eps) for norm, some in norms for eps in some]
    among = (("apgd_margin", "white_box"), ("latent_ball", "latent"))
    specs = [
        AttackSpec(attack, track, norm, eps, usual, route)  # type: ignore[arg-type]
        for attack, track in among
        for norm, eps in balls
        for route in ROUTES[:2]
    ]
    for rho in RHOS:
        params = (("eot", eot), ("rho", rho), ("steps", 3 * steps))
        specs.append(AttackSpec("overpowered", "latent", params=params, route="autograd", variant=f"rho-{rho:g}"))
    for norm, eps in balls:
        specs.append(AttackSpec("universal", "gray_box", norm, eps))
        specs.append(AttackSpec("universal", "white_box", norm, eps, (("eot", eot),), "autograd"))
    return [*specs, *_towards_images(radii[-1], 40, eot)]


def _towards_images(eps: float, steps: int, eot: int) -> list[AttackSpec]:
    """Codes and reconstructions brought near those of another image. Kos et al. 2018 in a ball, also as one step, also
    without the prior's part of the VAE loss; and against a classifier of the codes, also as one step. Tabacof et al.
    2016 without a ball, for each of CONSTANTS as its price relative to the way."""
    usual: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", steps), ("targets", 3))
    one: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", 1), ("targets", 3))
    forms = (
        ("latent_distance", "", usual),
        ("latent_distance", "one-step", one),
        ("vae_loss", "", usual),
        ("vae_loss", "one-step", one),
        ("vae_loss", "reconstruction", (("kl_weight", 0.0), *usual)),
    )
    specs = [
        AttackSpec(attack, "latent", "linf", eps, tuple(sorted(params)), "autograd", variant=variant)
        for attack, variant, params in forms
    ]
    for variant, count in (("", steps), ("one-step", 1)):
        params: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", count))
        specs.append(AttackSpec("latent_classifier", "latent", "linf", eps, params, "autograd", variant=variant))
    for constant in CONSTANTS:
        priced: tuple[tuple[str, Value], ...] = (
            ("constant", float(constant)), ("eot", eot), ("price", "relative"), ("steps", steps)
        )  # fmt: skip
        name = f"C-{constant}".replace("/", "_")  # 1_64: a slug is part of a file's name
        specs.append(AttackSpec("target_code", "latent", params=priced, route="autograd", n_examples=50, variant=name))
    return specs


def _latent(dataset: str, r: _Radii) -> Protocol:
    """For defenses with an encoder and a decoder: what the latent attacks add, before they enter the boards."""
    radii, l2 = tuple(r.linf[i] for i in (1, 3, 4)), r.l2[1::2]
    clean = AttackSpec("none", "clean")
    return Protocol(
        id=f"{dataset}-latent-v1-draft", dataset=dataset, n_examples=100, linf_radii=radii, l2_radii=l2, ranked=False,
        headline_radii=tuple(eps for eps in r.hard if eps in radii),
        purpose="Searching among codes beside searching among pixels, in the same balls; and the overpowered attack.",
        attacks=(clean, *_among_codes(radii, l2, 100, 1)),
        efforts=(
            Effort("cheap", True, 50, (clean, *_among_codes(radii, l2, 50, 4)), 10, 20),
            Effort("medium", True, 50, (clean, *_among_codes(radii, l2, 50, 4)), 5, 10),
        ),
    )  # fmt: skip


CODE_STEPS, CODE_RESTARTS = 200, 4  # of an attack on a search by way of the codes; as many steps again among pixels


def _in_a_hurry(
    radii: tuple[float, ...], hard: tuple[float, ...], steps: int, last_steps: int, eot: int
) -> list[AttackSpec]:
    """Attackers of an inner search, who ask it in a hurry but for the last steps: among pixels, at random and from what
    fools the classifier alone, and among the codes of a decoder with an encoder or without.

    Those that start from a blind attack count in the worst case and are no evidence: beside them nobody could tell a
    blind attacker who does better than one who sees the defense.
    """
    common: tuple[tuple[str, Value], ...] = (("eot", eot), ("last_steps", last_steps))
    usual, warm = (*common, ("steps", steps)), (*common, ("start", "gray_box"), ("steps", steps))
    codes = (*common, ("restarts", CODE_RESTARTS), ("steps", 2 * CODE_STEPS))
    specs = []
    for eps in radii:
        for route in ROUTES[:2]:
            specs.append(AttackSpec("hurried_apgd", "white_box", "linf", eps, usual, route))
            specs.append(AttackSpec("hurried_apgd", "white_box", "linf", eps, warm, route, variant="warm"))
            if eps in hard:
                specs.append(AttackSpec("hurried_apgd_ce", "white_box", "linf", eps, usual, route))
            specs += [AttackSpec(one, "latent", "linf", eps, codes, route) for one in ("searched_ball", "latent_ball")]
    return specs


def _hurried_checks(
    hard: tuple[float, ...], wide: float, steps: int, last_steps: int, queries: int, eot: int
) -> list[AttackSpec]:
    """As `_checks`, for attackers in a hurry: one step asks the whole defense."""
    common: tuple[tuple[str, Value], ...] = (("eot", eot), ("last_steps", last_steps))
    one, asked = (("eot", eot),), (("eot", eot), ("queries", queries))
    twice, short = ((*common, ("steps", count)) for count in (2 * steps, 20))
    specs = [AttackSpec("fgsm", "white_box", "linf", eps, one, route) for eps in hard for route in ROUTES[:2]]
    for eps in hard:
        specs.append(AttackSpec("hurried_apgd", "white_box", "linf", eps, twice, "autograd", variant="twice"))
        specs.append(AttackSpec("square", "query", "linf", eps, asked))
    specs += [
        AttackSpec("hurried_apgd", "white_box", "linf", wide, short, route, variant="wide") for route in ROUTES[:2]
    ]
    return specs


def _search(dataset: str, r: _Radii) -> Protocol:
    """For defenses whose purification is an inner loop: few images, since each answer is dear, and attackers who know
    how to go on with that. Some are random without being a search, so that nobody is asked for less than 4 draws."""
    radii, eot = tuple(r.linf[i] for i in (1, 3, 4)), 4
    hard = tuple(eps for eps in r.hard if eps in radii)
    shown = _transfer(("defense_gan_encoder",), hard, 40)  # the same generator, along a gradient that is true

    def attacks(steps: int, last_steps: int, queries: int, *, stochastic: bool = True) -> tuple[AttackSpec, ...]:
        return (
            *_blind(radii, stochastic=stochastic), *shown, *_in_a_hurry(radii, hard, steps, last_steps, eot),
            *_hurried_checks(hard, r.wide, steps, last_steps, queries, eot),
        )  # fmt: skip

    return Protocol(
        id=f"{dataset}-search-v1-draft", dataset=dataset, n_examples=50, linf_radii=radii, ranked=False,
        headline_radii=hard,
        purpose="Attacks on defenses that search: most steps on a cheaper search, the last ones on the whole one.",
        attacks=attacks(100, 10, 200, stochastic=False),
        efforts=(
            Effort("cheap", True, 50, attacks(50, 10, 200), 5, 10),
            Effort("medium", True, 20, attacks(40, 10, 100), 5, 10),
            Effort("search", True, 20, attacks(40, 5, 100), 2, 4),
        ),
        thresholds=Thresholds(random_images=20),  # no cell has more
    )  # fmt: skip


_ALL = (
    *(_full("digits", 500, _INK, ranked=False), _quick("digits", _INK)),
    *(_full("mnist", 1000, _INK, ranked=True), _quick("mnist", _INK)),
    *(_full("fmnist", 1000, _CLOTH, ranked=True), _quick("fmnist", _CLOTH)),
    *(_latent("digits", _INK), _latent("mnist", _INK), _latent("fmnist", _CLOTH)),
    *(_search("digits", _INK), _search("mnist", _INK), _search("fmnist", _CLOTH)),
    *(_selective("digits", _INK, quick=quick, ranked=False) for quick in (False, True)),
    *(_selective("mnist", _INK, quick=quick, ranked=True) for quick in (False, True)),
    *(_selective("fmnist", _CLOTH, quick=quick, ranked=True) for quick in (False, True)),
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({protocol.id: protocol for protocol in _ALL})
"""The protocols of the boards. `known` adds the papers' own evaluations."""
