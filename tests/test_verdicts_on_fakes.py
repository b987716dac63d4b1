"""Attackers and verdicts together, on trained models: fakes fall, are stopped or warned of; honest defenses are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
from torch import nn

from bench import evaluate, protocols, statistics
from bench.defense import Defense
from bench.evidence import Verdict
from bench.progress import Progress
from bench.protocol import AttackSpec, Protocol
from bench.record import Cell
from bench.verdicts import verdicts
from defenses.identity_vae import IdentityVAE, SampledIdentityVAE
from defenses.pgd_training import PGDTraining


def _small(attacks: Sequence[AttackSpec], eps: float) -> tuple[AttackSpec, ...]:
    """Without the cascade and attacks that have no radius, on which no verdict rests, and of the others those of radius
    .3, at `eps`, and those in the wide ball."""
    controls = [spec for spec in attacks if spec.track == "clean" and spec.eps is None]
    independent = [spec for spec in attacks if not spec.cascade]
    near = [replace(spec, eps=eps) for spec in independent if spec.eps == 0.3]
    return (*controls, *near, *(spec for spec in independent if spec.eps == 0.5))


def _at(eps: float) -> Protocol:
    """The quick protocol on few images at one radius, and in the wide ball."""
    quick = protocols.get("digits-v1-quick").limited(64)
    return replace(
        quick, id=f"fakes-{eps:g}", attacks=_small(quick.attacks, eps), linf_radii=(eps,), headline_radii=(eps,),
        efforts=tuple(replace(e, n_examples=32, attacks=_small(e.attacks, eps)) for e in quick.efforts),
    )  # fmt: skip


QUICK, NEAR = _at(0.3), _at(0.1)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("trained_home")]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the classifier alone is measured once for all tests here."""
    return tmp_path_factory.mktemp("records")


Judged = tuple[dict[str, Verdict], float]


@pytest.fixture
def judge(records: Path, tmp_path: Path) -> Callable[..., Judged]:
    """Measures a defense: its verdicts by rule, and its worst case at the protocol's radius."""

    def measured(cls: str | type[Defense], folder: Path, protocol: Protocol, attacks: Sequence[str]) -> list[Cell]:
        return evaluate(cls, protocol, attacks=attacks, records=folder, contract=False, progress=Progress())

    def judged(cls: str | type[Defense], protocol: Protocol = QUICK, bare: Sequence[str] = ()) -> Judged:
        """`bare` names the attacks on the classifier alone, all unless told: it is what a rule compares with."""
        cells, baseline = measured(cls, tmp_path, protocol, ()), measured("identity", records, protocol, bare)
        card = cells[0].record.card
        view = protocol.effort(cells[0].record.budget, stochastic=card.stochastic)
        worst = statistics.robustness(cells, "linf", protocol.linf_radii)[1].mean()
        return {verdict.rule: verdict for verdict in verdicts(cells, baseline, view)}, float(worst)

    return judged


def rules(found: dict[str, Verdict], level: str) -> Sequence[str]:
    return [rule for rule, verdict in found.items() if verdict.level == level]


class SmallVAE(IdentityVAE):
    """An Identity VAE that is trained in seconds."""

    recipes = {"small": {"width": 12, "batch_size": 128, "epochs": 5, "minimum_steps": 200, "decay": True}}


class SmallSampledVAE(SampledIdentityVAE):
    """The same with a sampled code."""

    recipes = SmallVAE.recipes


class SmallPGDTraining(PGDTraining):
    """A small net that PGD images harden in seconds."""

    recipes = {"small": {}}

    def __init__(self, classifier: nn.Module, *, eps: float = 0.1, epochs: int = 15) -> None:
        super().__init__(
            classifier, eps=eps, epochs=epochs, steps=5, step_share=0.3, batch_size=64, learning_rate=3e-3,
            minimum_steps=1, decay=True,
        )  # fmt: skip
        convolution, hidden = nn.Conv2d(1, 8, 4, 4), nn.Linear(8 * 49, 64)
        self.net = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), hidden, nn.ReLU(), nn.Linear(64, 10))
        object.__setattr__(self, "classifier", self.net)


@pytest.mark.parametrize("cls", ["identity", "kmeans", SmallVAE, SmallSampledVAE])
def test_an_honest_defense_carries_no_warning(cls, judge):
    found, _ = judge(cls)
    assert rules(found, "breach") == rules(found, "warning") == []


def test_a_net_that_holds_carries_no_warning(judge):
    """The hard case for the rules: right where the classifier alone is wrong (34 % at .1), and without a trick."""
    found, worst = judge(SmallPGDTraining, NEAR, ["none", "shift", "rotate", "fgsm", "apgd_margin"])
    assert worst > 0.45
    assert rules(found, "breach") == rules(found, "warning") == []


@pytest.mark.parametrize("cls", [fakes.Rounds, fakes.Detaches, fakes.OwnLoop, fakes.Explodes])
def test_without_a_gradient_it_falls_to_another_route_and_the_note_says_so(cls, judge):
    found, worst = judge(cls)
    assert worst < 0.05 and rules(found, "warning") == []
    assert found["blocked_gradient"].level == "note" and found["blocked_gradient"].evidence["blocked_autograd"] > 0.9


@pytest.mark.parametrize("cls", [fakes.Saturates, fakes.FixedNoise, fakes.Noise])
def test_what_only_looks_hard_falls(cls, judge):
    found, worst = judge(cls)
    assert worst < 0.05 and rules(found, "warning") == []


def test_gradients_that_mislead_are_seen_by_attackers_who_need_none(judge):
    found, worst = judge(fakes.Misleads)
    assert worst < 0.05
    assert {"black_box_beats_white_box", "wide_ball_survivors"} <= set(rules(found, "warning"))


def test_one_failed_image_silences_nothing(judge):
    found, worst = judge(fakes.NaNOnOneImage)
    assert worst < 0.05 and found["failed_cells"].level == "note"
    assert {"black_box_beats_white_box", "wide_ball_survivors"} <= set(rules(found, "warning"))


def test_draws_that_agree_are_not_random(judge):
    found, _ = judge(fakes.LooksUpAtRandom)
    assert {"hardly_random", "gives_back_clean_images"} <= set(rules(found, "warning"))


def test_a_random_defense_survives_no_wide_ball_unseen(judge):
    found, _ = judge(fakes.MisleadsAtRandom)
    assert "wide_ball_survivors" in rules(found, "warning") and "hardly_random" not in found


@pytest.mark.parametrize("cls", [fakes.LooksUp, fakes.LooksUpWithNoise])
def test_a_defense_that_knows_the_test_images_is_found_out(cls, judge):
    found, _ = judge(cls)
    assert "gives_back_clean_images" in rules(found, "warning")


@pytest.mark.parametrize("cls", [fakes.Sniffs, fakes.NaNUnderAttack])
def test_two_functions_are_a_warning(cls, judge):
    found, _ = judge(cls)
    assert "two_functions" in rules(found, "warning")


def test_a_crash_under_attack_is_told(judge):
    found, worst = judge(fakes.CrashesUnderAttack)
    assert worst == 0 and found["failed_cells"].level == "note"


@pytest.mark.parametrize("cls", [fakes.MixesBatch, fakes.Remembers, fakes.TrainsAtTest])
def test_what_breaks_the_contract_is_not_evaluated(cls, tmp_path):
    cells = evaluate(cls, QUICK, attacks=["none"], records=tmp_path, progress=Progress())
    (breach, failed) = verdicts(cells, [], QUICK)
    assert (breach.rule, breach.level, failed.rule) == ("contract", "breach", "failed_cells")
