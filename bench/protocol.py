"""Protocols are data: frozen, printable, comparable, hashed. Nothing here imports torch.

A result cites a protocol's id and hash. Once published (no `-draft` in the id) a protocol never changes:
a fix becomes a new version beside the old one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
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
