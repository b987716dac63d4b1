"""Every attack against the invariants that make its numbers believable, and against answers known in closed form.

A new attack enters through bench.catalog.ATTACKS and is tested here without being named.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import counted, shown, taught
from torch import Tensor, nn

from bench import attack_cost, attacks, catalog, classifiers, threat
from bench.attacks import balls, losses
from bench.defense import Defense
from bench.draws import ImageDraws
from bench.protocol import AttackSpec

EPS = 0.1
FEW = {"queries": 60, "samples": 8, "steps": 3, "restarts": 2}
BUDGETED = sorted(name for name, info in catalog.ATTACKS.items() if info.norms)
# those that use gradients of the model itself; what learns a model of its own is held to what is known of that
LEARNING = sorted(name for name, info in catalog.ATTACKS.items() if info.cost()[1] > 0 and not info.learns)
FROM_IMAGE = [name for name in LEARNING if not catalog.ATTACKS[name].new_images]  # the others start elsewhere
FOOLING = [name for name in LEARNING if not catalog.ATTACKS[name].towards_image]  # the others want another image's code
LINF = [name for name in BUDGETED if name in FOOLING and "linf" in catalog.ATTACKS[name].norms]
CLIMBING = [name for name in LINF if not catalog.ATTACKS[name].minimum_norm]  # the others stop at the border
WHOLE = [name for name in LINF if not catalog.ATTACKS[name].random_part]  # what they reach on a linear model is known
every_attack = pytest.mark.parametrize("name", sorted(catalog.ATTACKS))
budgeted = pytest.mark.parametrize("name", BUDGETED)
learning = pytest.mark.parametrize("name", LEARNING)
climbing = pytest.mark.parametrize("name", CLIMBING)
whole = pytest.mark.parametrize("name", WHOLE)


def draws(n: int, seed: int = 0) -> ImageDraws:
    return ImageDraws.derived(torch.arange(n), seed, "test")


def attack(
    name: str, logits, images: Tensor, labels: Tensor, eps: float = EPS, noise: ImageDraws | None = None, **params
) -> attacks.Attacked:
    function = attacks.get(name)
    accepted = inspect.signature(function).parameters
    fewer = (
        {"targets": 2, "steps": 10, "queries": 60, "samples": 8} if sum(catalog.ATTACKS[name].cost()) > 1000 else {}
    )  # the costly ones
    arguments = {key: value for key, value in {"eps": eps, **fewer, **params}.items() if key in accepted}
    arguments |= lesson(name, logits, images, **{"eps": eps, **params})
    return function(
        shown(name, logits, images.shape[1:]), images, labels, draws=noise or draws(len(images)), **arguments
    )


def lesson(name: str, logits, images: Tensor, **settings) -> dict[str, object]:
    """What the attack learned from 12 images like these, which are the same whatever is attacked."""
    if not catalog.ATTACKS[name].learns:
        return {}
    known, _ = batch(12, tuple(images.shape[1:]))
    known = known.to(images.dtype)
    with torch.no_grad():
        classes = logits(known).shape[-1]
    return taught(name, logits, known, torch.arange(12) % classes, **settings)


def batch(n: int = 8, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> tuple[Tensor, Tensor]:
    """Random images with many pixels at exactly 0 and 1, as in MNIST."""
    generator = torch.Generator().manual_seed(3)
    images = (torch.rand(n, *shape, generator=generator) * 3 - 1).clamp(0, 1)
    return images, torch.randint(classes, (n,), generator=generator)


class Linear(nn.Module):
    """A linear classifier in float64 or float32 whose gradient is known everywhere."""

    def __init__(
        self, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, dtype: torch.dtype = torch.float32
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        size = int(np.prod(shape))
        self.weight = nn.Parameter(torch.randn(classes, size, generator=generator).to(dtype) / size**0.5)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


@functools.cache
def untrained() -> nn.Module:
    """Classifier A: dropout inside, in eval mode."""
    return classifiers.build("A")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return untrained()


@budgeted
@pytest.mark.parametrize("eps", [0.01, 1.0])
def test_invariant_1_every_image_stays_in_its_ball(name, eps, net):  # of no size: invariant 10
    images, labels = batch()
    for norm in catalog.ATTACKS[name].norms:
        found = attack(name, net, images, labels, eps, norm=norm).images
        moved = (found.double() - images.double()).flatten(1)
        distance = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
        assert float(distance.max()) <= eps + 1e-6
        assert float(distance.max()) >= 0.8 * eps or catalog.ATTACKS[name].minimum_norm  # and uses it


@pytest.mark.parametrize("norm", balls.BALLS)
@pytest.mark.parametrize("eps", [0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64)])
def test_a_ball_holds_where_all_pixels_of_an_image_are_rounded_alike(shape, eps, norm):
    """Flat pictures: the rounding errors of single pixels, each below 1e-7, add up to nearly 1e-4 if left alone."""
    flat = torch.linspace(0, 1, 64)[:, None, None, None]
    centre, away = (one.expand(64, *shape).contiguous() for one in (flat, flat.flip(0) ** 1.7))
    projected = balls.get(norm).project(away, centre, eps)
    moved = (projected.double() - centre.double()).flatten(1)
    distance = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    whole = (away.double() - centre.double()).flatten(1)
    reach = whole.abs().amax(1) if norm == "linf" else whole.norm(dim=1)
    assert float(distance.max()) <= eps + 1e-6
    assert torch.allclose(distance, reach.clamp(max=eps), atol=1e-5)


class Witnessed(NamedTuple):
    """One run of an attack at its default settings, and what stood around it before and after."""

    images: Tensor
    labels: Tensor
    found: Tensor
    images_before: Tensor
    labels_before: Tensor
    dice: tuple[object, ...]
    dice_before: tuple[object, ...]


@functools.cache
def witnessed(name: str) -> Witnessed:
    net, (images, labels) = untrained(), batch()
    before, dice = (images.clone(), labels.clone()), global_dice()
    found = attack(name, net, images, labels, noise=draws(8, seed=4)).images
    return Witnessed(images, labels, found, *before, global_dice(), dice)


def global_dice() -> tuple[object, ...]:
    """The states of the generators that nobody's own seed moves."""
    return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@every_attack
def test_invariant_2_images_keep_box_shape_and_type(name):
    found, images = witnessed(name).found, witnessed(name).images
    assert found.dtype == images.dtype and found.shape == images.shape and not found.requires_grad
    assert bool(found.isfinite().all()) and float(found.min()) >= 0 and float(found.max()) <= 1


@every_attack
def test_invariant_3_the_input_is_not_written_to(name):
    seen = witnessed(name)
    assert torch.equal(seen.images, seen.images_before) and torch.equal(seen.labels, seen.labels_before)
    assert seen.found.data_ptr() != seen.images.data_ptr()


@every_attack
def test_invariant_4_the_model_is_left_as_it_was(name):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 26 * 26, 10)
    )
    model.eval()
    model[2].train()  # an odd mode of one submodule is not the attack's to mend
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = batch()
    attack(name, model, images, labels)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [False, False, True, False, False]
    assert all(parameter.grad is None for parameter in model.parameters())


@every_attack
def test_invariant_5_no_global_random_numbers_are_drawn(name):
    assert witnessed(name).dice == witnessed(name).dice_before


@every_attack
def test_invariant_6_same_seed_same_bits(name, net):
    seen = witnessed(name)
    again = attack(name, net, seen.images, seen.labels, noise=draws(8, seed=4)).images
    assert torch.equal(again, seen.found)


def test_invariant_6_other_seed_other_start(net):
    images, labels = batch()
    first, second = (attack("pgd", net, images, labels, noise=draws(8, seed), steps=1) for seed in (1, 2))
    assert not torch.equal(first.images, second.images)


@learning
@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_invariant_7_a_constant_added_to_all_logits_changes_nothing(name, shift):
    model, (images, labels) = Linear(dtype=torch.float64), batch()
    plain = attack(name, model, images.double(), labels)
    shifted = attack(name, lambda x: model(x) + shift, images.double(), labels)
    softened = attack(name, lambda x: model(x).log_softmax(dim=1), images.double(), labels)
    assert torch.allclose(plain.images, shifted.images) and torch.allclose(plain.images, softened.images)


@every_attack
def test_invariant_8_an_image_alone_is_attacked_as_in_a_batch(name):
    model, (images, labels) = Linear(dtype=torch.float64), batch()
    images = images.double()
    noise = draws(8)
    together = attack(name, model, images, labels, noise=draws(8))
    for i in range(8):
        alone = attack(name, model, images[i : i + 1], labels[i : i + 1], noise=noise.rows(torch.tensor([i])))
        assert torch.allclose(alone.images[0], together.images[i])


@budgeted
def test_invariant_9_pixels_at_exactly_0_and_1_can_move(name):
    model, (images, _) = Linear(), batch()
    moved = attack(name, model, images, threat.predictions(model, images), steps=100).images != images
    assert float(moved[images == 0].float().mean()) > 0.3
    assert float(moved[images == 1].float().mean()) > 0.3


@pytest.mark.parametrize("name", sorted(set(CLIMBING) & set(WHOLE)))
def test_invariant_10_on_a_linear_model_the_optimum_is_reached(name):
    """Two classes, w.x - t: the best Linf attack moves every pixel by eps against the sign of w, clipped to the box."""
    images, _ = batch(16)
    weight = Linear().weight.detach()[0]
    labels = torch.ones(16, dtype=torch.int64)

    def logits(x: Tensor) -> Tensor:
        score = x.flatten(1) @ weight
        return torch.stack([-score, score], dim=1)

    best = torch.clamp(images.flatten(1) - EPS * weight.sign(), 0, 1) @ weight
    reached = attack(name, logits, images, labels).images.flatten(1) @ weight
    start = images.flatten(1) @ weight
    assert bool(((start - reached) >= 0.99 * (start - best)).all())


@pytest.mark.parametrize("name", [name for name in FOOLING if "l2" in catalog.ATTACKS[name].norms])
def test_invariant_10_in_l2_a_linear_model_breaks_at_its_true_distance(name):
    """Inside the box the L2 distance to a linear border is score / |w|: just below holds, just above breaks."""
    generator = torch.Generator().manual_seed(0)
    images = 0.5 + 0.1 * (torch.rand(32, 1, 8, 8, generator=generator) - 0.5)
    weight = torch.randn(64, generator=generator)
    distance = 0.5
    offset = images.flatten(1) @ weight - distance * weight.norm()

    def logits(x: Tensor) -> Tensor:
        score = x.flatten(1) @ weight - offset[: len(x)]
        return torch.stack([-score, score], dim=1)

    labels = torch.ones(32, dtype=torch.int64)
    fine = {"step_size": 0.05, "steps": 100, "learning_rate": 0.005}
    held = attack(name, logits, images, labels, distance * 0.99, norm="l2", **fine)
    broken = attack(name, logits, images, labels, distance * 1.01, norm="l2", **fine)
    assert bool((threat.predictions(logits, held.images) == 1).all())
    assert bool((threat.predictions(logits, broken.images) == 0).all())


@whole
def test_invariant_10_a_margin_just_below_the_optimum_breaks_and_one_just_above_holds(name):
    """Images away from the box's walls at distance d of a linear border: eps slightly below d holds, above breaks."""
    generator = torch.Generator().manual_seed(0)
    images = 0.5 + 0.1 * (torch.rand(32, 1, 8, 8, generator=generator) - 0.5)
    weight = torch.randn(64, generator=generator)
    distance = 0.2  # in Linf: score / |w|_1
    offset = images.flatten(1) @ weight - distance * weight.abs().sum()

    def logits(x: Tensor) -> Tensor:
        score = x.flatten(1) @ weight - offset[: len(x)]
        return torch.stack([-score, score], dim=1)

    labels = torch.ones(32, dtype=torch.int64)
    held = attack(name, logits, images, labels, distance * 0.99)
    broken = attack(name, logits, images, labels, distance * 1.01)
    assert bool((threat.predictions(logits, held.images) == 1).all())
    assert bool((threat.predictions(logits, broken.images) == 0).all())
    assert bool((held.step_of_success == -1).all()) and bool((broken.step_of_success > 0).all())


@budgeted
def test_invariant_10_no_budget_no_change(name, net):
    images, labels = batch()
    assert torch.equal(attack(name, net, images, labels, eps=0.0).images, images)


@climbing
def test_invariant_10_more_budget_more_loss(name):
    model, (images, labels) = Linear(), batch()
    losses = [
        nn.functional.cross_entropy(model(attack(name, model, images, labels, eps).images), labels)
        for eps in (0.0, 0.05, 0.1, 0.2, 0.4)
    ]
    assert all(b > a for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_the_margin_attack_sees_through_a_saturated_softmax(temperature):
    """Logits a thousand times larger leave the cross-entropy without a gradient in float32, not the margin."""
    model, (images, _) = Linear(), batch(32)
    labels = threat.predictions(model, images)
    found = attack("apgd_margin", lambda x: model(x) / temperature, images, labels, eps=0.3, steps=20).images
    assert bool((threat.predictions(model, found) != labels).all())


def test_apgd_returns_broken_images_and_knows_them(net):
    images, _ = batch(16)
    labels = threat.predictions(net, images)
    for name in ("apgd_ce", "apgd_margin"):
        result = attack(name, net, images, labels, eps=0.2, steps=10, restarts=2)
        assert torch.equal(result.broken, threat.predictions(net, result.images) != labels)
        assert torch.equal(result.broken, result.step_of_success >= 0)


def test_apgd_is_at_least_as_strong_as_torchattacks_at_equal_steps():
    """Mean margin over images after 20 steps, several seeds: ours may not be weaker than theirs beyond their spread."""
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.Tanh(), nn.Linear(64, 10)).eval()
    images, _ = batch(64)
    labels = threat.predictions(net, images)

    def loss(found: Tensor) -> float:
        return float(losses.cross_entropy(net(found), labels).mean().detach())

    for norm, their_norm, eps in (("linf", "Linf", 0.02), ("l2", "L2", 0.4)):
        theirs = []
        for seed in range(3):
            state = torch.random.get_rng_state()
            attacker = torchattacks.APGD(net, norm=their_norm, eps=eps, steps=20, loss="ce", seed=seed)
            theirs.append(loss(attacker(images, labels)))
            torch.random.set_rng_state(state)
        ours = [
            loss(attack("apgd_ce", net, images, labels, eps, draws(64, seed), norm=norm, steps=20).images)
            for seed in range(3)
        ]
        assert min(ours) >= min(theirs) - 0.02 * abs(min(theirs)), (norm, ours, theirs)


def test_apgd_finds_a_higher_loss_than_pgd_on_the_same_steps(net):
    images, labels = batch(16)
    for eps in (0.05, 0.3):
        pgd, apgd = (
            attack(name, net, images, labels, eps, steps=40).losses.amax(0).mean() for name in ("pgd", "apgd_ce")
        )
        assert apgd >= 0.99 * pgd


def test_losses_agree_with_their_definitions():
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]])
    right, wrong = torch.tensor([0]), torch.tensor([1])
    assert torch.allclose(losses.cross_entropy(logits, wrong), nn.functional.cross_entropy(logits, wrong))
    assert losses.margin(logits, right).tolist() == [-1.5] and losses.margin(logits, wrong).tolist() == [3.0]
    assert torch.allclose(losses.dlr(logits, right), torch.tensor([-0.75])) and losses.dlr(logits, wrong) > 0
    assert losses.true_gap(logits, right).tolist() == [1.5]
    with pytest.raises(ValueError, match="at least 3 classes"):
        losses.dlr(logits[:, :2], right)
    with pytest.raises(ValueError, match="did you mean margin"):
        losses.get("margins")


def test_losses_of_draws_are_averaged_as_losses():
    """Two draws of logits that cancel: the mean of the losses is not the loss of the mean."""
    logits = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]])  # (draws, N, K)
    label = torch.tensor([0])
    expected = nn.functional.cross_entropy(logits[:, 0], label.expand(2))
    assert torch.allclose(losses.mean_over_draws(losses.cross_entropy(logits, label)), expected)
    assert not bool(losses.is_broken(logits, label))  # one of two draws is not more than half


def test_invariant_10_more_steps_never_lose(net):
    """PGD keeps the highest-loss iterate, so a longer run with the same start is at least as good on every image."""
    images, labels = batch()
    runs = [attack("pgd", net, images, labels, steps=steps) for steps in (1, 2, 5, 20)]
    worst = torch.stack([run.losses.amax(dim=0) for run in runs])
    assert bool((worst[1:] >= worst[:-1]).all())
    restarted = attack("pgd", net, images, labels, steps=5, restarts=3).losses.amax(dim=0)
    assert bool((restarted >= runs[2].losses.amax(dim=0)).all())


@every_attack
@pytest.mark.parametrize("params", [{}, {"steps": 3}, {"steps": 3, "restarts": 2}], ids=str)
def test_invariant_11_the_declared_cost_is_what_is_spent(name, params):
    images, labels = batch(5)[0], torch.full((5,), 3)
    function = attacks.get(name)
    accepted = inspect.signature(function).parameters
    fewer = {"queries": 60, "samples": 8}
    params = {key: value for key, value in {**fewer, **params}.items() if key in accepted}
    model, right = Linear(), nn.functional.one_hot(labels[0], 10)
    certain = lambda x: 1e-3 * model(x) + 10 * right  # noqa: E731 - so nothing leaves early
    target, given = counted(name, certain), lesson(name, model, images, eps=EPS)
    given |= params | ({"eps": EPS} if "eps" in accepted else {})
    function(target, images, labels, draws=draws(5), **given)
    forward, backward = catalog.ATTACKS[name].cost(**params)
    once = catalog.ATTACKS[name].once(known=20, **params)
    assert (target.forward_rows, target.backward_rows) == (5 * forward + once, 5 * backward)


@every_attack
def test_invariant_11_only_what_asks_a_random_defense_is_sent_in_every_draw(name):
    images, labels = batch(5)[0], torch.full((5,), 3)
    function = attacks.get(name)
    params = {key: value for key, value in FEW.items() if key in inspect.signature(function).parameters}
    model, right = Linear(), nn.functional.one_hot(labels[0], 10)
    certain = lambda x: (1e-3 * model(x) + 10 * right).expand(3, -1, -1)  # noqa: E731 - three draws
    target, given = counted(name, certain), lesson(name, model, images, eps=EPS)
    radius = {"eps": EPS} if "eps" in inspect.signature(function).parameters else {}
    function(target, images, labels, draws=draws(5), **given, **radius, **params)
    spec = AttackSpec(name, "latent", params=(("eot", 3), *params.items()))
    forward, backward = attack_cost.each_image(spec, stochastic=True)
    once = catalog.ATTACKS[name].once(known=20, **params)
    assert (target.forward_rows, target.backward_rows) == (5 * forward + once, 5 * backward)


@pytest.mark.parametrize("name", [name for name, info in catalog.ATTACKS.items() if info.learns])
def test_invariant_11_also_while_it_learns(name):
    learn, model, known = attacks.learner(name), Linear(), batch(20)[0]
    assert learn is not None
    target = counted(name, lambda x: model(x).expand(3, -1, -1))
    taken = {"eps": EPS, "epochs": 2}
    settings = {key: value for key, value in taken.items() if key in inspect.signature(learn).parameters}
    learn(target, known, torch.arange(20) % 10, generator=torch.Generator().manual_seed(0), **settings)
    spec = AttackSpec(name, "latent", params=(("eot", 3), ("known", 20), ("epochs", 2)))
    assert (target.forward_rows, target.backward_rows) == attack_cost.learning(spec, stochastic=True)


@every_attack
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 5)], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_invariant_12_any_channels_classes_and_batch(name, shape, classes, n):
    images, labels = batch(n, shape, classes)
    result = attack(name, Linear(shape, classes), images, labels, steps=5)
    assert result.images.shape == images.shape and result.step_of_success.shape == (n,)
    assert result.losses.shape[1] == n


@pytest.mark.parametrize("name", FROM_IMAGE)
def test_success_is_the_first_step_at_which_the_model_is_wrong(name):
    model, (images, labels) = Linear(), batch(64)
    right = threat.predictions(model, images)
    result = attack(name, model, images, labels, eps=1e-4, random_start=False)
    assert bool((right != labels).any()) and bool((result.step_of_success[right != labels] == 0).all())
    wide = 0.5 if name in LINF else 5.0
    broken = attack(name, model, images, right, eps=wide)
    assert bool((broken.step_of_success >= 0).all()) or catalog.ATTACKS[name].towards_image


def test_fgsm_agrees_with_torchattacks_bit_for_bit(net):
    torchattacks = pytest.importorskip("torchattacks")
    images, labels = batch()
    theirs = torchattacks.FGSM(net, eps=0.2)(images, labels)
    assert torch.equal(attack("fgsm", net, images, labels, eps=0.2).images, theirs)


def test_pgd_agrees_with_torchattacks_at_equal_settings(net):
    torchattacks = pytest.importorskip("torchattacks")
    images, labels = batch(16)
    theirs = torchattacks.PGD(net, eps=0.2, alpha=0.01, steps=30, random_start=False)(images, labels)
    settings = {"steps": 30, "step_size": 0.01, "random_start": False}
    last = attack("pgd", net, images, labels, eps=0.2, keep_worst=False, **settings).images
    same = (last - theirs).abs().flatten(1).amax(dim=1) < 1e-5
    assert bool(same.all())  # one flipped sign would differ by at least 0.01
    ours = attack("pgd", net, images, labels, eps=0.2, **settings).images
    loss = [nn.functional.cross_entropy(net(x), labels, reduction="none").detach() for x in (ours, theirs)]
    assert bool((loss[0] >= loss[1] - 1e-5).all())


@pytest.mark.parametrize("wrong", [{"eps": -0.1}, {"steps": 0}, {"step_size": 0.0}, {"restarts": 0}], ids=str)
def test_pgd_refuses_settings_that_make_no_sense(wrong, net):
    images, labels = batch(2)
    with pytest.raises(ValueError, match="pgd needs eps >= 0"):
        attack("pgd", net, images, labels, **wrong)


def test_an_unknown_attack_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean pgd"):
        attacks.get("pdg")


def test_counting_covers_every_row_and_changes_nothing(net):
    target = threat.Target(net)
    images, _ = batch(6)
    images.requires_grad_()
    logits = target(images)
    assert torch.equal(logits, net(images)) and (target.forward_rows, target.backward_rows) == (6, 0)
    logits.sum().backward()
    assert target.backward_rows == 6
    with torch.no_grad():
        target(images[:2])
    assert (target.forward_rows, target.backward_rows) == (8, 6)


# ---------------------------------------------------------------------------------------------- jitter


def test_a_shift_moves_each_image_by_one_pixel_in_any_of_eight_directions():
    images = torch.zeros(64, 3, 9, 7)
    images[:, :, 4, 3] = 1
    moved = attack("shift", None, images, torch.zeros(64, dtype=torch.int64)).images
    places = {tuple(image[0].nonzero()[0].tolist()) for image in moved}
    assert places == {(4 + dy, 3 + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx}
    assert torch.equal(moved.flatten(1).sum(dim=1), torch.full((64,), 3.0)), "nothing is blurred"


def test_a_rotation_turns_by_five_degrees_either_way():
    images = torch.zeros(32, 1, 61, 61)
    images[:, :, 29:32, 55:58] = 1  # far from the centre, on the horizontal
    moved = attack("rotate", None, images, torch.zeros(32, dtype=torch.int64)).images[:, 0]
    rows = torch.arange(61.0)[:, None]
    height = (moved * (rows - 30)).sum(dim=(1, 2)) / moved.sum(dim=(1, 2))
    assert torch.allclose(
        height.abs(), torch.full((32,), 26 * float(torch.sin(torch.deg2rad(torch.tensor(5.0))))), atol=0.1
    )
    assert {bool(h > 0) for h in height} == {True, False}


# ---------------------------------------------------------------------------------------------- draws


class Loses(Defense):
    """NaN in the first of ten draws."""

    title, paper, year, stochastic = "Loses", "https://example.org", 2020, True

    def purify(self, images: Tensor, generator: torch.Generator) -> Tensor:
        lost = len(images) // 10
        return torch.cat([images[:lost] * torch.nan, images[lost:]])


def test_a_draw_that_is_lost_neither_freezes_nor_blinds_an_attack(net):
    """One NaN draw in ten: the mean goes on over the others, and the gradient is theirs."""
    images, labels = batch(6)
    seen = attacks.look(threat.white_box(Loses(net), "autograd", eot=10, seed_parts=()), images, labels, losses.margin)
    plain = attacks.look(net, images, labels, losses.margin)
    assert torch.allclose(seen.loss, plain.loss, atol=1e-5)
    assert torch.equal(seen.gradient.sign(), plain.gradient.sign()) and not seen.blocked.any()
    nothing = attacks.look(lambda x: net(x).repeat(3, 1, 1) * torch.nan, images, labels, losses.margin)
    assert nothing.loss.isinf().all() and nothing.broken.all()


def test_no_draw_drowns_the_others_by_its_scale(net):
    logits = net(batch(6)[0])
    loud = torch.stack([logits, 1e6 * logits.flip(1), 1e-6 * logits])
    even = losses.evened(loud)
    extent = even.amax(dim=-1) - even.amin(dim=-1)
    assert torch.allclose(extent, extent[:1].expand_as(extent), rtol=1e-4)
    assert torch.equal(even.argmax(dim=-1), loud.argmax(dim=-1))
    alike = logits.repeat(4, 1, 1)
    assert torch.allclose(losses.evened(alike), alike), "draws of one scale stay as they are"
    assert torch.equal(losses.evened(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
