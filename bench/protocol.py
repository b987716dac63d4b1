"""Protocols are data: frozen, printable, comparable, hashed. Nothing here imports torch.

A result cites a protocol's id and hash. Once published (no `-draft` in the id) a protocol never changes:
a fix becomes a new version beside the old one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from bench import seeds, sources
from bench.catalog import ATTACKS, DOORS
from bench.errors import BenchError, unknown
from bench.sources import Source

Track = Literal["clean", "gray_box", "transfer", "white_box", "latent", "query", "rejection"]
Norm = Literal["linf", "l2"]
Route = Literal["", "autograd", "bpda", "surrogate"]
ROUTES: tuple[Route, ...] = ("autograd", "bpda", "surrogate")
Budget = Literal["cheap", "medium", "search"]
Value = int | float | str | bool

BUDGETS: Mapping[Budget, float] = MappingProxyType({"cheap": 20, "medium": 1000, "search": math.inf})
"""Budget classes, and the most units that a purification of the class costs. A unit is one forward and backward pass of
the classifier for one image: see bench.cost, which measures it."""

USUAL_THRESHOLD = "1%"
THRESHOLDS: Mapping[str, str] = MappingProxyType(
    {
        USUAL_THRESHOLD: "set by the harness, so that one clean validation image in a hundred is refused",
        "5%": "set by the harness, so that five clean validation images in a hundred are refused",
        "published": "the defense's own, as its paper chooses it",
    }
)
"""Where a selective defense refuses: images of a higher rejection score. Boards compare at the first."""

TRACKS: Mapping[str, str] = MappingProxyType(
    {
        "clean": "The attacker does nothing; uniform noise of the same size stands beside as a control.",
        "gray_box": "The attacker knows the classifier and its weights, and does not know that a defense exists.",
        "transfer": "The attacker shows images made white-box on another model: a defense of the same classifier, or a "
        "net of the attacker's own, trained on the same data or on labels that the bare classifier (a substitute) or "
        "the defended one (an imitation) answered.",
        "white_box": "The attacker knows the classifier, the defense and their weights, but not its random draws.",
        "latent": "The attacker knows the classifier, the defense and their weights, and searches among what the "
        "decoder can draw.",
        "query": "The attacker sees the scores of the defended classifier and nothing else.",
        "rejection": "The attacker knows everything, also when the defense refuses an image, and wants a wrong answer "
        "that is accepted.",
    }
)


@dataclass(frozen=True)
class AttackSpec:
    """One attack at one strength: `attack` names a function of bench.attacks, `params` are its keyword arguments.

    `eps` is the radius on the [0, 1] scale in the given `norm`; None for attacks without a budget. `route` says along
    which gradient a white-box attack differentiates the defense (bench.threat), `source` what the images of a transfer
    attack are made on: a defense, or a net of the attacker's own (bench.sources). With `("labels", "predicted")` among
    its parameters the attack is given the attacked model's own classes instead of the true ones, as CleverHans does
    unless told; scores are by true labels all the same. `n_examples` limits a cell to the protocol's first images. A
    `cascade` cell attacks only the images that no cell before it has broken within its ball; it counts in the worst
    case alone, all others are cold: independent of one another. `variant` tells cells apart that share everything else.
    """

    attack: str
    track: Track
    norm: Norm | None = None
    eps: float | None = None
    params: tuple[tuple[str, Value], ...] = ()
    route: Route = ""
    source: str = ""
    n_examples: int | None = None
    cascade: bool = False
    variant: str = ""

    @property
    def slug(self) -> str:
        """A readable name, unique within a protocol: `gray_box.pgd.linf-0.3`."""
        source = f"from-{self.source}" if self.source else ""
        radius = f"{self.norm}-{self.eps:g}" if self.norm and self.eps is not None else ""
        return ".".join(filter(None, (self.track, self.attack, self.route, source, radius, self.variant)))

    @property
    def knows_defense(self) -> bool:
        """Whether the attacker sees the defense or its scores: what is attacked is what is scored."""
        return self.track in ("white_box", "latent", "query", "rejection")

    @property
    def origin(self) -> Source | None:
        """What the images of a transfer attack are made on. Raises BenchError for a source that cannot be."""
        return sources.parse(self.source) if self.source else None

    @property
    def imitates_defense(self) -> bool:
        """Whether the images are made on a net that learned from the defense's answers."""
        return self.origin is not None and self.origin.is_own

    @property
    def is_shared(self) -> bool:
        """Whether all defenses of a classifier are shown the same images; others are made for one defense."""
        return not (self.knows_defense or self.imitates_defense)

    @property
    def predicts_labels(self) -> bool:
        """Whether the attack is given the attacked model's classes instead of the true ones."""
        return dict(self.params).get("labels") == "predicted"

    @property
    def settings(self) -> dict[str, Value]:
        """The keyword arguments of the attack's function: `eot`, `labels` and `threshold` are for the harness."""
        return {name: value for name, value in self.params if name not in ("eot", "labels", "threshold")}

    @property
    def threshold(self) -> str:
        """Which of a selective defense's thresholds holds in the cell: one of THRESHOLDS."""
        return str(dict(self.params).get("threshold", USUAL_THRESHOLD))

    def eot(self, *, stochastic: bool) -> int:
        """The draws that each step of the attack averages over: 1 for a deterministic defense."""
        return int(dict(self.params).get("eot", 1)) if stochastic else 1

    def cell(self, classifier: str, seed: int) -> str:
        """The name of the cell in which a classifier is attacked so, from one seed."""
        return f"{classifier}.{self.slug}.seed{seed}"


@dataclass(frozen=True)
class Effort:
    """What a protocol spends on one kind of defense: of one budget class, deterministic or random."""

    budget: Budget
    stochastic: bool
    n_examples: int
    attacks: tuple[AttackSpec, ...]
    selection_draws: int = 10
    scoring_draws: int = 20


@dataclass(frozen=True)
class Thresholds:
    """The numbers of bench.verdicts. Accuracies, gaps and shares are fractions in [0, 1]."""

    gap: float = 0.01  # the least difference of two accuracies that counts
    p: float = 0.01  # and its largest paired p-value, after Holm over the pairs of a rule
    blocked: float = 0.1  # share of an attack's looks without a usable gradient
    claim: float = 0.1  # accuracy under attack beyond that of the classifier without the defense
    chance: float = 0.05  # accuracy above chance where every image can become any other
    jitter: float = 0.05  # loss under a small shift or rotation beyond that of the classifier alone
    noise: float = 0.05  # loss under uniform noise that is worth a word
    random: float = 0.01  # share of a cell's images on which the draws of a random defense disagree
    random_images: int = 30  # and the least images of such a cell


@dataclass(frozen=True)
class Protocol:
    """What is measured, on which images, with which attacks, from which seed.

    `attacks`, `n_examples` and the draws are what a cheap deterministic defense is measured with; `efforts` are those
    of the others, and `effort` gives the protocol as one kind of defense meets it. `ranked` protocols may rank
    defenses; quick, limited and digits ones never do. The images are the first `n_examples` of one fixed permutation of
    the test split of `dataset`.
    """

    id: str
    dataset: str
    n_examples: int
    attacks: tuple[AttackSpec, ...]
    linf_radii: tuple[float, ...]
    l2_radii: tuple[float, ...] = ()
    classifiers: tuple[str, ...] = ("A",)
    selection_draws: int = 10  # of a random defense: they choose each image's worst version
    scoring_draws: int = 20  # fresh ones, averaged, that score the chosen version
    seed: int = 0
    ranked: bool = False
    purpose: str = ""
    efforts: tuple[Effort, ...] = ()
    whole: str = ""  # the hash of the protocol that this one is the view of
    thresholds: Thresholds = Thresholds()
    headline_radii: tuple[float, ...] = ()  # the Linf radii that results are quoted at, beside the mean robust radius

    def __post_init__(self) -> None:
        """Raises ValueError for two cells of one name, radii that do not grow from above 0, headlines not measured, and
        sources and kinds of labels that do not exist."""
        for attacks in (self.attacks, *(effort.attacks for effort in self.efforts)):
            slugs = [spec.slug for spec in attacks]
            twins = sorted({slug for slug in slugs if slugs.count(slug) > 1})
            if twins:
                raise ValueError(f"{self.id} has two cells called {twins[0]}; one would overwrite the other")
            for spec in attacks:
                labels = dict(spec.params).get("labels", "predicted")
                if labels != "predicted":
                    raise ValueError(f"{self.id}, {spec.slug}: labels are {labels!r}; expected 'predicted', or nothing")
                _ = spec.origin
        for radii in (self.linf_radii, self.l2_radii):
            if list(radii) != sorted(set(radii)) or any(eps <= 0 for eps in radii):
                raise ValueError(f"{self.id} has radii {radii}; they must grow from above 0")
        if not set(self.headline_radii) <= set(self.linf_radii):
            raise ValueError(f"{self.id} quotes results at {self.headline_radii}, but measures at {self.linf_radii}")

    @property
    def is_draft(self) -> bool:
        """Whether the protocol may still change: its numbers are not to be quoted."""
        return self.id.partition("+")[0].endswith("-draft")

    @property
    def hash(self) -> str:
        """A sha256 over everything that decides a number (`purpose` is prose and left out)."""
        return self.whole or seeds.digest({**dataclasses.asdict(self), "purpose": ""})

    def effort(self, budget: str, *, stochastic: bool, doors: Collection[str] = DOORS) -> Protocol:
        """The protocol as a defense of this budget class meets it: the same id and hash, its own attacks and images.

        Attacks that need an optional method of the contract that is not among its `doors` are not applicable to it.
        """
        view = self._spent(budget, stochastic)
        applicable = tuple(spec for spec in view.attacks if set(ATTACKS[spec.attack].needs) <= set(doors))
        return dataclasses.replace(view, attacks=applicable)

    def _spent(self, budget: str, stochastic: bool) -> Protocol:
        kinds: dict[tuple[str, bool], Effort] = {(one.budget, one.stochastic): one for one in self.efforts}
        chosen = kinds.get((budget, stochastic)) or kinds.get((budget, not stochastic))
        if chosen is None or (budget == "cheap" and chosen.stochastic != stochastic):
            return dataclasses.replace(self, efforts=(), whole=self.hash)
        return dataclasses.replace(
            self, n_examples=chosen.n_examples, attacks=chosen.attacks, selection_draws=chosen.selection_draws,
            scoring_draws=chosen.scoring_draws, efforts=(), whole=self.hash,
        )  # fmt: skip

    @property
    def every_attack(self) -> tuple[AttackSpec, ...]:
        """The attacks of all efforts, each slug once."""
        found: dict[str, AttackSpec] = {}
        for spec in (*self.attacks, *(spec for effort in self.efforts for spec in effort.attacks)):
            found.setdefault(spec.slug, spec)
        return tuple(found.values())

    def looks(self, *, stochastic: bool) -> int:
        """How often each attacked image is shown to a defense to score it."""
        return self.selection_draws + self.scoring_draws if stochastic else 1

    @property
    def tracks(self) -> tuple[str, ...]:
        """The tracks that occur, in the order of TRACKS."""
        present = {spec.track for spec in self.attacks}
        return tuple(track for track in TRACKS if track in present)

    @property
    def doors(self) -> tuple[str, ...]:
        """The optional methods of the contract that some of its attacks need."""
        return tuple(sorted({door for spec in self.every_attack for door in ATTACKS[spec.attack].needs}))

    @property
    def is_selective(self) -> bool:
        """Whether the protocol is for defenses that may refuse images."""
        return any(spec.track == "rejection" for spec in self.every_attack)

    def limited(self, n_examples: int) -> Protocol:
        """The same protocol on fewer images: a different id, so never mixed with the full one, and never ranked."""
        if not n_examples >= 1:
            raise BenchError(f"--limit must be at least 1, got {n_examples}")
        if n_examples >= self.n_examples:
            return self
        efforts = tuple(
            dataclasses.replace(effort, n_examples=min(effort.n_examples, n_examples)) for effort in self.efforts
        )
        return dataclasses.replace(
            self, id=f"{self.id}+limit{n_examples}", n_examples=n_examples, ranked=False, efforts=efforts,
            purpose=f"{self.purpose} Limited to {n_examples} images: a look, not a result.".strip(),
        )  # fmt: skip

    def select(self, tracks: tuple[str, ...] = (), attacks: tuple[str, ...] = ()) -> Iterator[AttackSpec]:
        """The specs of the given tracks and attacks (empty: all); unknown names raise BenchError."""
        for kind, wanted, known in (
            ("track", tracks, set(self.tracks)),
            ("attack", attacks, {spec.attack for spec in self.attacks}),
        ):
            for name in wanted:
                if name not in known:
                    raise unknown(f"{kind} of {self.id}", name, known, see=f"purifybench show {self.id}")
        return iter(self.among(tracks, attacks))

    def among(self, tracks: tuple[str, ...], attacks: tuple[str, ...]) -> tuple[AttackSpec, ...]:
        """The specs of the given tracks and attacks (empty: all); none for names that do not occur."""
        return tuple(
            spec
            for spec in self.attacks
            if (not tracks or spec.track in tracks) and (not attacks or spec.attack in attacks)
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
    that passes for one; the former also with the covariance as printed. For defenses that expect something of a class.
    """
    usual: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", steps), ("targets", 9))
    printed = (("covariance", "printed"), *usual)
    noise = (("eot", eot), ("steps", 2 * steps), ("targets", 1))
    few = None if full else 40
    return [
        AttackSpec("towards_class", "rejection", params=usual, route="autograd", n_examples=few),
        AttackSpec(
            "towards_class", "rejection", params=printed, route="autograd", n_examples=few and 20, variant="printed"
        ),
        AttackSpec("fooling", "rejection", params=noise, route="autograd", n_examples=few),
    ]


def _past_detectors(
    radii: tuple[float, ...], hard: tuple[float, ...], l2: tuple[float, ...], wide: float, steps: int, eot: int
) -> list[AttackSpec]:
    """Attackers who want a wrong answer that is accepted, at the threshold that the board compares at; at the `hard`
    radii also at the others, with restarts, with twice the steps, along BPDA, and who know the purifier but not the
    detector."""
    specs = []
    usual: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", steps))
    for eps in radii:
        for attack in ("lagrangian_pgd", "orthogonal_pgd"):
            specs.append(AttackSpec(attack, "rejection", "linf", eps, usual, "autograd"))
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
            specs.append(AttackSpec(attack, "rejection", "linf", eps, usual, "bpda"))
        if eps in hard:
            specs += [AttackSpec("apgd_margin", "white_box", "linf", eps, usual, route) for route in ROUTES[:2]]
            asked = (("eot", eot), ("queries", 5 * steps))
            specs.append(AttackSpec("accepted_square", "query", "linf", eps, asked, n_examples=100))
    specs += _as_a_class(steps, eot, len(hard) > 1)
    for attack in ("lagrangian_pgd", "orthogonal_pgd"):
        specs.append(AttackSpec(attack, "rejection", "linf", wide, usual, "autograd", variant="wide"))
        specs += [AttackSpec(attack, "rejection", "l2", eps, usual, "autograd") for eps in l2]
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
    Fraction(4) ** power for power in (-3, -2, -1, 0, 1, 2, 3, 5, 7)
)  # the price of the change to a target-image attack


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
        params = (("rho", rho), ("steps", 3 * steps))
        specs.append(AttackSpec("overpowered", "latent", params=params, route="autograd", variant=f"rho-{rho:g}"))
    specs += [
        AttackSpec("universal", "gray_box", "linf", radii[-1]),
        AttackSpec("universal", "white_box", "linf", radii[-1], (("eot", eot),), "autograd"),
    ]
    return [*specs, *_towards_images(radii[-1], 40, eot)]


def _towards_images(eps: float, steps: int, eot: int) -> list[AttackSpec]:
    """Codes and reconstructions brought near those of another image. Kos et al. 2018 in a ball: also as one step,
    without the prior's part of the VAE loss, and against a classifier of the codes. Tabacof et al. 2016 without a ball,
    for each of CONSTANTS as its price."""
    usual: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", steps), ("targets", 3))
    one: tuple[tuple[str, Value], ...] = (("eot", eot), ("steps", 1), ("targets", 3))
    forms = (
        ("latent_distance", "", usual),
        ("latent_distance", "one-step", one),
        ("vae_loss", "", usual),
        ("vae_loss", "reconstruction", (("kl_weight", 0.0), *usual)),
    )
    specs = [
        AttackSpec(attack, "latent", "linf", eps, tuple(sorted(params)), "autograd", variant=variant)
        for attack, variant, params in forms
    ]
    specs.append(AttackSpec("latent_classifier", "latent", "linf", eps, (("eot", eot), ("steps", steps)), "autograd"))
    for constant in CONSTANTS:
        params = (("constant", float(constant)), ("eot", eot), ("steps", steps))
        price = str(constant).replace("/", "_")  # 1_64: a slug is part of a file's name
        specs.append(
            AttackSpec("target_code", "latent", params=params, route="autograd", n_examples=50, variant=f"C-{price}")
        )
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


_ALL = (
    *(_full("digits", 500, _INK, ranked=False), _quick("digits", _INK)),
    *(_full("mnist", 1000, _INK, ranked=True), _quick("mnist", _INK)),
    *(_full("fmnist", 1000, _CLOTH, ranked=True), _quick("fmnist", _CLOTH)),
    *(_latent("digits", _INK), _latent("mnist", _INK), _latent("fmnist", _CLOTH)),
    *(_selective("digits", _INK, quick=quick, ranked=False) for quick in (False, True)),
    *(_selective("mnist", _INK, quick=quick, ranked=True) for quick in (False, True)),
    *(_selective("fmnist", _CLOTH, quick=quick, ranked=True) for quick in (False, True)),
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({protocol.id: protocol for protocol in _ALL})
"""The protocols of the boards. `known` adds the papers' own evaluations."""


def known() -> Mapping[str, Protocol]:
    """Every protocol by id: those of the boards, then those that repeat a paper's own evaluation (bench.papers)."""
    from bench import papers  # it builds on this module

    return {**PROTOCOLS, **papers.PROTOCOLS}


def get(protocol_id: str) -> Protocol:
    """The protocol of that id, or a limited one from `ID+limitN`; raises BenchError that suggests the nearest one."""
    base, _, count = protocol_id.partition("+limit")
    protocols = known()
    if base not in protocols or (count and not count.isdecimal()):
        raise unknown("protocol", protocol_id, protocols, see="purifybench list protocols")
    return protocols[base].limited(int(count)) if count else protocols[base]
