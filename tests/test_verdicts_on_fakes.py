"""Attackers and verdicts together, on trained models: fakes fall, are stopped or warned of; honest defenses are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import fakes
import pytest

from bench import evaluate, protocols, statistics
from bench.defense import Defense
from bench.evidence import Verdict
from bench.progress import Progress
from bench.protocol import AttackSpec
from bench.record import Cell
from bench.verdicts import verdicts
from defenses.identity_vae import IdentityVAE, SampledIdentityVAE


def _small(attacks: Sequence[AttackSpec]) -> tuple[AttackSpec, ...]:
    """Without the cascade and attacks that have no radius, on which no verdict rests, and the smaller radii."""
    controls = [spec for spec in attacks if spec.track == "clean" and spec.eps is None]
    return (*controls, *(spec for spec in attacks if not spec.cascade and spec.eps in (0.3, 0.5)))


QUICK = protocols.get("digits-v1-quick").limited(64)
QUICK = replace(
    QUICK, id="fakes", attacks=_small(QUICK.attacks), linf_radii=(0.3,), headline_radii=(0.3,),
    efforts=tuple(replace(e, n_examples=32, attacks=_small(e.attacks)) for e in QUICK.efforts),
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("trained_home")]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the classifier alone is measured once for all tests here."""
    return tmp_path_factory.mktemp("records")


Judged = tuple[dict[str, Verdict], float]


@pytest.fixture
def judge(records: Path, tmp_path: Path) -> Callable[[str | type[Defense]], Judged]:
    """Measures a defense: its verdicts by rule, and its worst case at Linf .3."""

    def measured(cls: str | type[Defense], folder: Path) -> list[Cell]:
        return evaluate(cls, QUICK, records=folder, contract=False, progress=Progress())

    def judged(cls: str | type[Defense]) -> Judged:
        cells, baseline = measured(cls, tmp_path), measured("identity", records)
        card = cells[0].record.card
        view = QUICK.effort(cells[0].record.budget, stochastic=card.stochastic)
        worst = statistics.robustness(cells, "linf", [0.3])[1].mean()
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


@pytest.mark.parametrize("cls", ["identity", "kmeans", SmallVAE, SmallSampledVAE])
def test_an_honest_defense_carries_no_warning(cls, judge):
    found, _ = judge(cls)
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
