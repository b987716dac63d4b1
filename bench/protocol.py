"""Protocols are data: frozen, printable, comparable, hashed. Nothing here imports torch.

A result cites a protocol's id and hash. Once published (no `-draft` in the id) a protocol never changes:
a fix becomes a new version beside the old one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bench import seeds
from bench.errors import BenchError, unknown

Track = Literal["clean", "gray_box", "white_box"]
Norm = Literal["linf", "l2"]
Route = Literal["", "autograd", "bpda"]
ROUTES: tuple[Route, ...] = ("autograd", "bpda")
Value = int | float | str | bool

TRACKS: Mapping[str, str] = MappingProxyType(
    {
        "clean": "The attacker does nothing; uniform noise of the same size stands beside as a control.",
        "gray_box": "The attacker knows the classifier and its weights, and does not know that a defense exists.",
        "white_box": "The attacker knows the classifier, the defense and their weights, but not its random draws.",
    }
)


@dataclass(frozen=True)
class AttackSpec:
    """One attack at one strength: `attack` names a function of bench.attacks, `params` are its keyword arguments.

    `eps` is the radius on the [0, 1] scale in the given `norm`; None for attacks without a budget. `route` says along
    which gradient a white-box attack differentiates the defense: see bench.threat.
    """

    attack: str
    track: Track
    norm: Norm | None = None
    eps: float | None = None
    params: tuple[tuple[str, Value], ...] = ()
    route: Route = ""

    @property
    def slug(self) -> str:
        """A readable name, unique within a protocol: `gray_box.pgd.linf-0.3`."""
        route = f".{self.route}" if self.route else ""
        radius = f".{self.norm}-{self.eps:g}" if self.norm and self.eps is not None else ""
        return f"{self.track}.{self.attack}{route}{radius}"

    @property
    def knows_defense(self) -> bool:
        """Whether the attacker sees the defense: such images belong to one defense, all others are shared."""
        return self.track == "white_box"

    def eot(self, *, stochastic: bool) -> int:
        """The draws that each step of the attack averages over: 1 for a deterministic defense."""
        return int(dict(self.params).get("eot", 1)) if stochastic else 1

    def cell(self, classifier: str, seed: int) -> str:
        """The name of the cell in which a classifier is attacked so, from one seed."""
        return f"{classifier}.{self.slug}.seed{seed}"


@dataclass(frozen=True)
class Protocol:
    """What is measured, on which images, with which attacks, from which seed.

    `ranked` protocols may rank defenses; quick, limited and digits ones never do. The images are the first
    `n_examples` of one fixed permutation of the test split of `dataset`.
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

    def __post_init__(self) -> None:
        """Raises ValueError for two cells of one name and for radii that do not grow from above 0."""
        slugs = [spec.slug for spec in self.attacks]
        twins = sorted({slug for slug in slugs if slugs.count(slug) > 1})
        if twins:
            raise ValueError(f"{self.id} has two cells called {twins[0]}; one would overwrite the other")
        for radii in (self.linf_radii, self.l2_radii):
            if list(radii) != sorted(set(radii)) or any(eps <= 0 for eps in radii):
                raise ValueError(f"{self.id} has radii {radii}; they must grow from above 0")

    @property
    def is_draft(self) -> bool:
        """Whether the protocol may still change: its numbers are not to be quoted."""
        return self.id.partition("+")[0].endswith("-draft")

    @property
    def hash(self) -> str:
        """A sha256 over everything that decides a number (`purpose` is prose and left out)."""
        return seeds.digest({**dataclasses.asdict(self), "purpose": ""})

    def looks(self, *, stochastic: bool) -> int:
        """How often each attacked image is shown to a defense to score it."""
        return self.selection_draws + self.scoring_draws if stochastic else 1

    @property
    def tracks(self) -> tuple[str, ...]:
        """The tracks that occur, in the order of TRACKS."""
        present = {spec.track for spec in self.attacks}
        return tuple(track for track in TRACKS if track in present)

    def limited(self, n_examples: int) -> Protocol:
        """The same protocol on fewer images: a different id, so never mixed with the full one, and never ranked."""
        if not n_examples >= 1:
            raise BenchError(f"--limit must be at least 1, got {n_examples}")
        if n_examples >= self.n_examples:
            return self
        return dataclasses.replace(
            self, id=f"{self.id}+limit{n_examples}", n_examples=n_examples, ranked=False,
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
        return (
            spec
            for spec in self.attacks
            if (not tracks or spec.track in tracks) and (not attacks or spec.attack in attacks)
        )


def _draft_attacks(radii: tuple[float, ...], l2_radii: tuple[float, ...]) -> tuple[AttackSpec, ...]:
    specs = [AttackSpec("none", "clean")]
    specs += [AttackSpec("uniform_noise", "clean", "linf", eps) for eps in radii]
    specs += [AttackSpec("fgsm", "gray_box", "linf", eps) for eps in radii]
    steps = (("restarts", 1), ("step_size", 0.01), ("steps", 40))
    specs += [AttackSpec("pgd", "gray_box", "linf", eps, steps) for eps in radii]
    budget = (("eot", 4), ("steps", 20))  # eot: draws per step, for random defenses alone
    for route in ROUTES:
        for attack in ("apgd_ce", "apgd_margin"):
            specs += [AttackSpec(attack, "white_box", "linf", eps, budget, route) for eps in radii]
    specs += [AttackSpec("apgd_margin", "white_box", "l2", eps, budget, "autograd") for eps in l2_radii]
    return tuple(specs)


_DIGIT_RADII = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
_FASHION_RADII = (0.01, 0.02, 0.04, 0.06, 0.1, 0.2)


def _draft(
    dataset: str, n_examples: int, radii: tuple[float, ...], l2: tuple[float, ...], *, ranked: bool
) -> list[Protocol]:
    kept = tuple(radii[i] for i in (1, 3, 4))
    full = Protocol(
        id=f"{dataset}-v1-draft", dataset=dataset, n_examples=n_examples, attacks=_draft_attacks(radii, l2),
        linf_radii=radii, l2_radii=l2, ranked=ranked,
        purpose="Draft: white-box attacks of 20 steps from one start, no latent and no query attacks yet.",
    )  # fmt: skip
    quick = Protocol(
        id=f"{dataset}-v1-quick-draft", dataset=dataset, n_examples=200, attacks=_draft_attacks(kept, ()),
        linf_radii=kept, l2_radii=(), ranked=False,
        purpose="Smoke test of the draft on 200 images; never ranked.",
    )  # fmt: skip
    return [full, quick]


_ALL = (
    *_draft("digits", 500, _DIGIT_RADII, (0.5, 1.0, 1.5, 2.0), ranked=False),
    *_draft("mnist", 1000, _DIGIT_RADII, (0.5, 1.0, 1.5, 2.0), ranked=True),
    *_draft("fmnist", 1000, _FASHION_RADII, (0.25, 0.5, 1.0, 1.5), ranked=True),
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({protocol.id: protocol for protocol in _ALL})


def get(protocol_id: str) -> Protocol:
    """The protocol of that id, or a limited one from `ID+limitN`; raises BenchError that suggests the nearest one."""
    base, _, count = protocol_id.partition("+limit")
    if base not in PROTOCOLS or (count and not count.isdecimal()):
        raise unknown("protocol", protocol_id, PROTOCOLS, see="purifybench list protocols")
    return PROTOCOLS[base].limited(int(count)) if count else PROTOCOLS[base]
