"""Which of our cells answers a printed number, and what makes the two differ: the papers' names in ours, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from bench import protocols
from bench.paper_metrics import OVER_SEVERAL, Metric
from bench.protocol import AttackSpec, Protocol, Track
from leaderboard.reported import Reported

DEFENSES: Mapping[str, str] = MappingProxyType(
    {
        "none": "identity",
        "LQ-VAE": "lq_vae",
        "Defense-GAN": "defense_gan",
        "madry-adversarial-training": "pgd_training",
        "adversarial-training": "fgsm_training",
        "Identity VAE": "identity_vae",
        "MAD-VAE vanilla (Defense-VAE)": "mad_vae_vanilla",
        "MAD-VAE classification": "mad_vae_classification",
        "MAD-VAE proximity-distance": "mad_vae_distance",
        "MAD-VAE combined": "mad_vae",
        "VQVAE_0": "vq_vae",
        "VQVAE_0.25": "vq_vae_25",
        "VQVAE_0.5": "vq_vae_50",
        "VQVAE_0.75": "vq_vae_75",
        "GM-VAE supervised, no thresholds": "gm_vae",
        "GM-VAE supervised, thresholds": "gm_vae",
        "GM-VAE supervised, reclassification": "gm_vae_reclassify",
        "GM-VAE supervised, thresholds + reclassification": "gm_vae_reclassify",
        "GM-VAE semi-supervised, no thresholds": "gm_vae_semi",
        "GM-VAE semi-supervised, thresholds": "gm_vae_semi",
    }
)
"""The papers' defenses by our names. Not all are installed: one that a package adds under its name here is found."""

ATTACKS: Mapping[str, str] = MappingProxyType(
    {
        "none": "none", "FGSM": "fgsm", "Rand-FGSM": "r_fgsm", "IFGSM": "i_fgsm", "MIFGSM": "mi_fgsm",
        "MI-FGSM": "mi_fgsm", "PGD": "pgd", "DeepFool": "deepfool", "CW": "cw_l2", "Single Pixel": "single_pixel",
        "BPDA": "unclipped_step", "MIM": "mi_fgsm", "overpowered": "overpowered",
        "eq10 full white-box targeted": "towards_class",
    }
)  # fmt: skip


ATTACKS_KNOWING: Mapping[str, Track] = MappingProxyType({"eq10 full white-box targeted": "rejection"})
"""Attacks that know more than the others of their table."""


@dataclass(frozen=True)
class Counterpart:
    """The cell that answers a printed number: `spec` of `protocol`, on `defense` before `classifier`, by `metric`;
    with `also`, the further attacks of a metric over several."""

    protocol: str
    defense: str
    classifier: str
    spec: AttackSpec
    metric: Metric
    caveats: tuple[str, ...]
    also: tuple[AttackSpec, ...] = ()

    @property
    def needs_bare(self) -> bool:
        """Whether the metric asks what the classifier says of the clean image without a defense."""
        return self.metric in ("agreement", "joint")


@dataclass(frozen=True)
class _Table:
    """What the rows of one table have in common. `classifiers` renames the paper's; empty names stand for `""`."""

    protocol: str  # "{}" is the data set
    track: Track
    caveats: tuple[str, ...]
    metric: Metric = "accuracy"
    classifiers: Mapping[str, str] = field(default_factory=dict)
    by_attack: Mapping[str, str] = field(default_factory=dict)  # a caveat for one attack
    by_defense: Mapping[str, str] = field(default_factory=dict)


_LQ_NETS = "The slides do not describe classifiers A to C: those of Defense-GAN stand in."
_PGD = "The slides state no training: ours is PGD training at ε = 0.3, on Fashion-MNIST 0.1, attacked on its own net."
_LQ_ATTACKS = {
    "FGSM": "No radius is stated: ε = 0.3 used.",
    "DeepFool": "No parameters are stated: at most 50 iterations with overshoot 0.02.",
    "CW": "No parameters are stated: Defense-GAN's, one search of 100 steps at rate 10 with constant 100, kappa 0.",
}
_LQ_BASELINES = {"madry-adversarial-training": _PGD}
_LQ_WHITE = _Table(
    "papers-v1-lq-vae-{}", "gray_box", (_LQ_NETS, "Called white-box: the attacker knows the bare classifier alone."),
    by_attack=_LQ_ATTACKS, by_defense=_LQ_BASELINES,
)  # fmt: skip
_AGREEMENT = (
    "Under attack the paper counts agreement with the classifier's answer to the clean image, right or wrong, and so "
    "does the measured column."
)
_DEFENSE_VAE = "Our Defense-VAE stands in: another loss and recipe than MAD-VAE's vanilla VAE"
_ONE_GRADIENT = "Nine steps of ε / 10 along one gradient, as released: FGSM at 0.9 ε."
_JOINT = "As in the report, an image that the bare classifier gets wrong when clean counts as wrong."
_VQ = {f"VQVAE_{noise}": "In the report the purifier stays in training mode; ours does not."
       for noise in ("0", "0.25", "0.5", "0.75")}  # fmt: skip
_VQ_TABLE = _Table(
    "papers-v1-vq-vae-{}", "gray_box", (_JOINT,), "joint", {"CNet": "cnet"}, by_defense=_VQ,
    by_attack={"IFGSM": _ONE_GRADIENT, "MIFGSM": f"{_ONE_GRADIENT} Printed without a defense, 82.53 and 34.02 at "
               "ε = 0.2 and 0.3 contradict the authors' own plot."},
)  # fmt: skip

_AT_ITS_OWN = "Architecture, weights and thresholds are not stated in the paper: ours stand in, the images at its own."
_GM_VAE = _Table(
    "papers-v1-gm-vae-{}",
    "gray_box",
    (_AT_ITS_OWN,),
    classifiers={"": "A", "GM-VAE encoder": "A", "GM-VAE full": "A"},  # all images are attacked on its own net
    by_attack={
        "FGSM": "The paper does not say which loss of the encoder it differentiates: ours is the cross-entropy of "
        "minus the squared distances to the means.",
        "MIM": "CleverHans' defaults at ε = 0.3, but clipped to [0, 1], which CleverHans leaves out.",
        "PGD": "CleverHans' defaults at ε = 0.3, but clipped to [0, 1], which CleverHans leaves out.",
        "eq10 full white-box targeted": "The equation with the inverse covariance, for all nine classes; exponents, "
        "optimiser and steps are ours.",
    },
    by_defense={
        "GM-VAE supervised, reclassification": "Measured over all images: those that the thresholds accept keep the "
        "encoder's class.",
        "GM-VAE supervised, thresholds + reclassification": "No image is refused for good, as the paper counts.",
    },
)

TABLES: Mapping[str, _Table] = MappingProxyType(
    {
        "lq-vae/white-box/MNIST": _LQ_WHITE,
        "lq-vae/white-box/FMNIST": _LQ_WHITE,
        "lq-vae/black-box-deepfool/FMNIST": _Table(
            "papers-v1-lq-vae-{}", "transfer",
            (_LQ_NETS, "How the substitutes were trained is not stated: Jacobian augmentation used."),
            by_attack=_LQ_ATTACKS, by_defense=_LQ_BASELINES,
        ),
        "lq-vae/bpda": _Table(
            "papers-v1-lq-vae-{}", "white_box",
            ("Neither classifier nor steps are stated: classifier A used, with the one unclipped step of 0.15 of the "
             "released script, after which each image is stretched back to [0, 1].",),
            classifiers={"": "A"},
        ),
        "mad-vae/table1-white-box": _Table(
            "papers-v1-mad-vae-{}", "gray_box",
            (_AGREEMENT, "Called white-box: the attacker knows the bare classifier alone, here the net of the authors' "
             "code with one dense layer of 200; the paper prints two."),
            "agreement", {"MagNet-like": "magnet_madvae"},
            {"Rand-FGSM": "As released: Gaussian noise without its sign, so that images may leave the ball.",
             "CW": "With kappa 10: an image must be wrong by a margin, not just wrong."},
            {"MAD-VAE vanilla (Defense-VAE)": f"{_DEFENSE_VAE}."},
        ),
        "mad-vae/table2-black-box": _Table(
            "papers-v1-mad-vae-black-box-{}", "gray_box",
            (_AGREEMENT, "Called black-box: by the authors' code FGSM is made on the very net that is tested.",
             "B and D are the authors' ports, which differ from Defense-GAN's."),
            "agreement", {"B": "B_madvae", "D": "D_madvae"},
            by_defense={"MAD-VAE vanilla (Defense-VAE)": f"{_DEFENSE_VAE}, and trained for the net under test instead "
                        "of MagNet's."},
        ),
        "mad-vae/table3-overpowered": _Table(
            "papers-v1-mad-vae-overpowered-{}", "latent",
            ("No image is held to a distance: the paper counts them all, and so does the measured column.",
             "As released, but that the classes of the four other images of a call are targets too, and that all "
             "images run to the end."),
            classifiers={"MagNet-like": "magnet_madvae"},
            by_defense={"MAD-VAE vanilla (Defense-VAE)": f"{_DEFENSE_VAE}."},
        ),
        "gm-vae/table1": _GM_VAE,
        "gm-vae/table2-reclassification": _GM_VAE,
        "gm-vae/text": _GM_VAE,
        "vq-vae/fig10-fgsm": _VQ_TABLE,
        "vq-vae/fig11-ifgsm": _VQ_TABLE,
        "vq-vae/fig12-mifgsm": _VQ_TABLE,
    }
)  # fmt: skip

NOT_REPEATED: Mapping[str, str] = MappingProxyType(
    {
        "lq-vae/white-box/CelebA": "there is no protocol on CelebA",
        "lq-vae/black-box-cw/CelebA": "there is no protocol on CelebA",
        "lq-vae/slide-illustrations": "numbers on example slides, of a few images each, not of a test set",
    }
)
"""Tables that no protocol repeats, and why."""

_PROTOCOL_DATASETS = {"MNIST": "mnist", "FMNIST": "fmnist"}


def counterpart(row: Reported) -> Counterpart | str:
    """What answers a row that is no average, or the reason why nothing of this benchmark does."""
    table = TABLES.get(row.table)
    if table is None:
        return NOT_REPEATED[row.table]
    if row.dataset not in _PROTOCOL_DATASETS:
        return f"there is no protocol on {row.dataset}"
    if row.defense not in DEFENSES:
        return f"{row.defense} is not a defense of this benchmark"
    if row.attack not in ATTACKS:
        return f"{row.attack} is more than one cell"
    chosen = protocols.get(table.protocol.format(_PROTOCOL_DATASETS[row.dataset]))
    is_clean = row.attack == "none"
    on_itself = table.track == "gray_box" and bool(row.substitute)  # the substitute is the net under test
    net = row.substitute if on_itself else row.classifier
    metric = _metric(row, table, is_clean)
    spec, *also = _specs(row, table, chosen)
    assert bool(also) == (metric in OVER_SEVERAL), f"{row} is answered by {1 + len(also)} cells"
    notes = (table.by_attack.get(row.attack), table.by_defense.get(row.defense))
    caveats = (*table.caveats, *(note for note in notes if note))
    return Counterpart(
        chosen.id, DEFENSES[row.defense], table.classifiers.get(net, net), spec, metric, caveats, tuple(also)
    )


def _metric(row: Reported, table: _Table, is_clean: bool) -> Metric:
    """What the row counts: of a defense that may refuse, at its own thresholds or without any."""
    if row.source == "gm-vae":
        if row.defense.endswith((", no thresholds", "reclassification")):
            return "answer"
        shares: Mapping[str, Metric] = {"accuracy": "right", "error": "wrong", "rejection": "refused"}
        return shares[row.metric]
    if row.setting == "overpowered":
        return "every" if row.metric == "original_accuracy" else "pooled"
    return "accuracy" if is_clean and table.metric == "agreement" else table.metric


def _specs(row: Reported, table: _Table, chosen: Protocol) -> tuple[AttackSpec, ...]:
    """The attack of the protocol that the row names; all its strengths where the row counts over them."""
    knows_all = ATTACKS_KNOWING.get(row.attack, table.track)
    track = "clean" if row.attack == "none" else knows_all
    source = f"substitute-{row.substitute}" if track == "transfer" else ""
    return tuple(
        spec
        for spec in chosen.attacks
        if (spec.attack, spec.track, spec.source) == (ATTACKS[row.attack], track, source)
        and (row.epsilon is None or spec.eps in (None, row.epsilon))
    )
