"""Attackers who know the defense: routes, draws, selection, and a shelf of defenses that only hide their gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import (
    CrashesUnderAttack,
    Detaches,
    Explodes,
    FixedNoise,
    NaNUnderAttack,
    Noise,
    OwnLoop,
    Rounds,
    Saturates,
    Sniffs,
)
from torch import Generator, Tensor, nn

from bench import checks, classifiers, evaluate, plugins, protocols, statistics, threat
from bench.defense import Defense
from bench.errors import BenchError
from bench.protocol import ROUTES, AttackSpec
from bench.record import Cell

BUDGET = (("eot", 4), ("steps", 20))
RADIUS = 0.3
WHITE = replace(
    protocols.get("digits-v1-quick"),
    id="white",
    n_examples=32,
    linf_radii=(RADIUS,),
    headline_radii=(RADIUS,),
    efforts=(),
    attacks=(
        AttackSpec("none", "clean"),
        *(AttackSpec("apgd_margin", "white_box", "linf", RADIUS, BUDGET, route) for route in ROUTES),
    ),
)


pytestmark = [pytest.mark.usefixtures("trained_home"), pytest.mark.slow]


def measure(cls: type[Defense] | str, records: Path, n_examples: int = 32) -> dict[str, Cell]:
    """The cells by route; "" is the clean one."""
    asked = replace(WHITE, n_examples=n_examples)
    return {cell.record.route: cell for cell in evaluate(cls, asked, records=records, contract=False)}


def accuracy(cell: Cell) -> float:
    return float(cell.outcomes.correct.mean())


def test_the_undefended_classifier_falls_along_both_routes(tmp_path):
    cells = measure("identity", tmp_path)
    assert accuracy(cells[""]) > 0.6
    assert accuracy(cells["autograd"]) == accuracy(cells["bpda"]) == 0
    assert np.array_equal(cells["autograd"].outcomes.linf, cells["bpda"].outcomes.linf)


@pytest.mark.parametrize("cls", [Rounds, Detaches, OwnLoop, Explodes, Saturates, FixedNoise, Noise])
def test_a_defense_that_only_hides_its_gradient_falls(cls, tmp_path):
    cells = measure(cls, tmp_path)
    assert {cell.record.status for cell in cells.values()} == {"ok"}
    worst = statistics.robustness(list(cells.values()), "linf", [RADIUS]).mean(axis=1)
    assert worst[0] > 0.5 and worst[1] < 0.1


@pytest.mark.parametrize("cls", [Rounds, Detaches, OwnLoop])
def test_along_autograd_alone_it_would_look_robust(cls, tmp_path):
    """Why every route is run whatever a defense declares: without a gradient the attack goes nowhere."""
    cells = measure(cls, tmp_path)
    assert accuracy(cells["autograd"]) > 0.4
    assert cells["autograd"].record.backward_rows in (0, 32 * 20)
    assert accuracy(cells["bpda"]) < 0.1


def test_a_crash_under_attack_counts_against_the_defense(tmp_path):
    cells = measure(CrashesUnderAttack, tmp_path)
    assert cells[""].record.status == "ok"
    crashed = cells["autograd"].record
    assert crashed.status == "failed" and "under attack: RuntimeError: no gradients here" in crashed.error
    assert accuracy(cells["autograd"]) == 0 and bool((cells["autograd"].outcomes.predicted == -1).all())
    assert crashed.loss_curve == ()
    worst = statistics.robustness(list(cells.values()), "linf", [RADIUS])
    assert worst[1].sum() == 0


def test_a_defense_that_shows_attackers_another_function_is_voided(tmp_path):
    """What the attack saw broken scores as right on far more than 0.5 % of the images."""
    record = measure(Sniffs, tmp_path)["autograd"].record
    assert record.status == "failed" and "it is not one function" in record.error


def test_two_runs_of_a_random_defense_agree_to_the_byte(tmp_path, monkeypatch):
    runs = []
    for name in ("first", "second"):
        monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path / name / "home"))
        cells = measure(Noise, tmp_path / name / "records", n_examples=8)
        runs.append([(cell.record.lasting(), cell.outcomes.sha256()) for cell in cells.values()])
    assert runs[0] == runs[1]


def test_draws_are_folded_into_the_batch_and_counted():
    images = checks.sixteen_digits()
    defense = Noise(classifiers.build("A"))
    target = threat.white_box(defense, "autograd", eot=3, seed_parts=("test",))
    attacked = images.clone().requires_grad_()
    logits = target(attacked)
    assert logits.shape == (3, 16, 10) and (target.forward_rows, target.backward_rows) == (48, 0)
    logits.sum().backward()
    assert target.backward_rows == 48 and attacked.grad is not None
    again = threat.white_box(defense, "autograd", eot=3, seed_parts=("test",))
    with torch.no_grad():
        assert torch.equal(again(images), logits)  # repeatable
        assert not torch.equal(again(images), logits)  # and fresh at every call
        assert not torch.equal(logits[0], logits[1])


def test_eot_gradients_are_the_mean_over_draws_in_closed_form():
    """Linear logits w.(x + noise): every draw has the gradient w, so has their mean, whatever the noise."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 2, bias=False))

    class Additive(Noise):
        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            return images + torch.randn(images.shape, generator=generator)

    images = checks.sixteen_digits()[:2].requires_grad_()
    target = threat.white_box(Additive(linear), "autograd", eot=8, seed_parts=())
    (gradient,) = torch.autograd.grad(target(images)[..., 0].mean(dim=0).sum(), images)
    assert torch.allclose(gradient.flatten(1), linear[1].weight[0].expand(2, -1), atol=1e-6)


def test_bpda_has_the_true_value_and_the_gradient_at_the_purified_image():
    net = classifiers.build("A")
    defense, images = Rounds(net), checks.sixteen_digits()
    attacked = images.clone().requires_grad_()
    target = threat.white_box(defense, "bpda", eot=1, seed_parts=())
    logits = target(attacked)
    purified = defense.purify(images, Generator()).requires_grad_()
    assert torch.allclose(logits, net(purified), atol=1e-5)
    (ours,) = torch.autograd.grad(logits.square().sum(), attacked)
    (theirs,) = torch.autograd.grad(net(purified).square().sum(), purified)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_unknown_route_suggests_the_nearest():
    with pytest.raises(BenchError, match="did you mean autograd"):
        threat.white_box(plugins.load("identity")(nn.Flatten()), "autograds", eot=1, seed_parts=())


def test_twenty_attacks_that_do_nothing_leave_a_random_defense_its_true_accuracy(make_cell):
    """A simulated defense right with probability .764 on every draw: choosing the worst of 21 versions on their own
    scoring draws would claim far less; choosing on other draws and scoring on fresh ones does not."""
    rng = np.random.default_rng(0)
    n, cells = 1000, []
    for k in range(21):
        selection, correct = (rng.binomial(draws, 0.764, n) / draws for draws in (10, 20))
        attack = {"attack": "pgd", "track": "white_box", "norm": "linf", "eps": 0.1, "route": "bpda"} if k else {}
        arrays = {"correct": correct, "selection": selection, "linf": np.full(n, 0.1 if k else 0.0)}
        cells.append(make_cell(arrays, draws=20, **attack))
    worst = statistics.robustness(cells, "linf", [0.1])
    low, high = statistics.bootstrap(worst[1])
    assert low <= 0.764 <= high
    naive = np.min([cell.outcomes.correct for cell in cells], axis=0).mean()
    assert naive < 0.62


def test_nan_under_attack_gains_nothing(tmp_path):
    """An attack counts NaN as broken, as scoring does; where scoring then sees a right answer, the cell is voided."""
    record = measure(NaNUnderAttack, tmp_path)["autograd"].record
    assert record.status == "failed" and "it is not one function" in record.error


def test_a_model_that_writes_to_its_input_does_not_move_the_attacks_images():
    images = checks.sixteen_digits()
    before = images.clone()
    target = threat.gray_box(lambda x: x.mul_(0).flatten(1)[:, :10])
    with torch.no_grad():
        target(images)
    assert torch.equal(images, before)
