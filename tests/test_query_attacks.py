"""Square and SPSA, who see scores alone: closed forms, what upstream finds, defenses without gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from fakes import Detaches, Fake, Rounds
from torch import Generator, Tensor, nn

from bench import attacks, checks, classifiers, data, threat
from bench.attacks import losses, spsa, square
from bench.defense import Defense
from bench.draws import ImageDraws
from bench.progress import Progress

QUERY = ("square", "spsa")
SHORT = {"square": {"queries": 150}, "spsa": {"steps": 10, "samples": 16}}
both = pytest.mark.parametrize("name", QUERY)
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def draws(n: int, seed: int = 0) -> ImageDraws:
    return ImageDraws.derived(torch.arange(n), seed, "query test")


def attack(name: str, logits, images: Tensor, labels: Tensor, seed: int = 0, **params) -> attacks.Attacked:
    params = {"eps": 0.1, **SHORT[name], **params}
    return attacks.get(name)(logits, images, labels, draws=draws(len(images), seed), **params)


class Border(nn.Module):
    """Two classes on either side of a plane through the middle of the cube, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(64, generator=Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        score = (images - 0.5).flatten(1) @ self.weight
        return torch.stack([-score, score], dim=1)

    def images_at(self, distance: float, norm: str, n: int = 16) -> tuple[Tensor, Tensor]:
        """Images of class 1, away from the walls, at this distance from the border."""
        noise = torch.rand(n, 64, generator=Generator().manual_seed(1), dtype=torch.float64)
        images = 0.5 + 0.1 * (noise - 0.5)
        dual = self.weight.abs().sum() if norm == "linf" else self.weight.norm()
        short = distance * dual - (images - 0.5) @ self.weight
        images = images + (short / self.weight.square().sum())[:, None] * self.weight
        assert float(images.min()) > 0.1 and float(images.max()) < 0.9
        return images.view(n, 1, 8, 8), torch.ones(n, dtype=torch.int64)


class Noise(Fake):
    """Large noise from the generator."""

    stochastic = True
    differentiable = True

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return images + 0.2 * torch.randn(images.shape, generator=generator)


def linear() -> nn.Module:
    """A linear classifier of ten classes with the digits' own means as templates: right on most of them."""
    digits = data.load("digits").train
    means = torch.stack([digits.images[digits.labels == k].flatten(1).mean(dim=0) for k in range(10)])
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        net[1].weight.copy_(means)
        net[1].bias.copy_(-means.square().sum(dim=1) / 2)
    return net.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return linear()


@pytest.fixture(scope="module")
def right(net) -> tuple[Tensor, Tensor]:
    """32 digits that the linear classifier recognises."""
    digits = data.load("digits").test
    keep = (threat.predictions(net, digits.images) == digits.labels).nonzero().flatten()[:32]
    return digits.images[keep], digits.labels[keep]


# ---------------------------------------------------------------------------------------------------- the threat


def test_scores_carry_no_gradient_and_every_row_is_counted(net):
    images = checks.sixteen_digits().requires_grad_()
    target = threat.score_only(Fake(net), eot=3, seed_parts=())
    logits = target(images)
    assert not logits.requires_grad and torch.equal(logits, net(images.detach()))
    assert (target.forward_rows, target.backward_rows) == (16, 0)  # one draw of a deterministic defense


def test_a_random_defense_answers_a_query_as_it_answers_a_white_box_attacker(net):
    images = checks.sixteen_digits()
    target = threat.score_only(Noise(net), eot=3, seed_parts=("test",))
    white = threat.white_box(Noise(net), "autograd", eot=3, seed_parts=("test",))
    first = target(images)
    assert first.shape == (3, 16, 10) and target.forward_rows == 48
    assert torch.equal(first, white(images))
    assert not torch.equal(first, target(images))  # fresh draws at every query


def test_a_defense_that_opens_enable_grad_still_shows_no_gradient(net):
    class Optimises(Fake):
        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            assert not images.requires_grad
            with torch.enable_grad():
                return images.clone().requires_grad_() * 1

        def logits(self, images: Tensor, generator: Generator) -> Tensor:
            with torch.enable_grad():
                return self.classifier(self.purify(images, generator))

    images = checks.sixteen_digits().requires_grad_()
    assert not threat.score_only(Optimises(net), eot=1, seed_parts=())(images).requires_grad


# -------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("name", "norm", "above", "params"),
    [
        ("square", "linf", 1.05, {"queries": 800}),
        ("square", "l2", 1.8, {"queries": 1000, "norm": "l2"}),
        ("spsa", "linf", 1.05, {"steps": 100, "samples": 64}),
    ],
)
def test_a_linear_model_holds_below_its_distance_and_breaks_a_little_above(name, norm, above, params):
    model, distance = Border(), {"linf": 0.1, "l2": 0.4}[norm]
    images, labels = model.images_at(distance, norm)
    held = attack(name, model, images, labels, eps=0.999 * distance, **params)
    broken = attack(name, model, images, labels, eps=above * distance, **params)
    assert not bool(held.broken.any()) and bool((held.step_of_success == -1).all())
    assert bool(broken.broken.all()) and bool((broken.step_of_success > 0).all())
    assert bool((threat.predictions(model, held.images) == 1).all())
    assert bool((threat.predictions(model, broken.images) == 0).all())


@both
def test_more_eps_and_more_queries_find_more(name, net, right):
    longer = {"square": [{"queries": q} for q in (5, 50, 500)], "spsa": [{"steps": s, "eps": 0.1} for s in (1, 5, 25)]}

    def reached(**params) -> float:
        return float(losses.margin(net(attack(name, net, *right, **params).images), right[1]).mean())

    by_eps = [reached(eps=eps) for eps in (0.0, 0.05, 0.1, 0.2, 0.4)]
    by_queries = [reached(**params) for params in longer[name]]
    assert by_eps == sorted(by_eps) and by_queries == sorted(by_queries)


@both
@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_a_constant_added_to_all_logits_changes_nothing(name, shift):
    model = Border()
    images, labels = model.images_at(0.1, "linf")
    plain, shifted, softened = (
        attack(name, f, images, labels).images
        for f in (model, lambda x: model(x) + shift, lambda x: model(x).log_softmax(dim=1))
    )
    assert torch.allclose(plain, shifted) and torch.allclose(plain, softened)


@both
def test_another_seed_is_another_attack(name, net, right):
    assert not torch.equal(*(attack(name, net, *right, seed=seed).images for seed in (1, 2)))


# ------------------------------------------------------------------------------------- what leaves, and what is kept


@both
def test_broken_images_leave_and_cost_no_further_rows(name, net, right):
    """A stopped image is the first broken one; those that never break are attacked as if nothing had left."""
    images = torch.cat([right[0], right[0][:2]])
    labels = torch.cat([right[1], (right[1][:2] + 1) % 10])  # the last two are wrong before any query
    target = threat.Target(net)
    eps = 0.1
    stopped = attack(name, target, images, labels, eps=eps, stop_when_broken=True)
    full = attack(name, net, images, labels, eps=eps)
    assert 0.1 < float(stopped.broken.float().mean()) < 0.9
    assert torch.equal(stopped.broken, full.broken)
    assert torch.equal(stopped.step_of_success, full.step_of_success)
    assert torch.equal(stopped.broken, threat.predictions(net, stopped.images) != labels)
    assert torch.allclose(stopped.images[~full.broken], full.images[~full.broken], atol=1e-5)
    assert bool((losses.margin(net(full.images), labels) >= losses.margin(net(stopped.images), labels) - 1e-5).all())
    last = SHORT[name].get("queries", SHORT[name].get("steps"))
    looks = torch.where(stopped.broken, stopped.step_of_success, last)
    each = 1 if name == "square" else 2 * SHORT["spsa"]["samples"] + 1
    assert (target.forward_rows, target.backward_rows) == (int((looks * each + 1).sum()), 0)


@both
def test_nothing_leaves_where_the_model_answers_with_draws(name, net, right):
    target = threat.score_only(Noise(net), eot=2, seed_parts=())
    result = attack(name, target, *right, eps=0.3, stop_when_broken=True)
    forward, _ = attacks.ATTACKS[name].cost(**SHORT[name])
    assert target.forward_rows == 2 * 32 * forward and not bool(result.broken.any())


@pytest.mark.parametrize("queries", [1, 7, 199, 200, 450])
def test_square_records_its_best_loss_at_a_bounded_number_of_queries(queries, net, right):
    result = attack("square", net, *right, queries=queries)
    assert result.losses.shape == (min(queries + 1, square.CURVE_POINTS), 32)
    assert torch.equal(result.losses[0], losses.margin(net(right[0]), right[1]))
    assert bool((result.losses[2:] >= result.losses[1:-1]).all())
    best = torch.maximum(result.losses[0], result.losses[-1])
    assert torch.allclose(best, losses.margin(net(result.images), right[1]), atol=1e-5)


@both
@both_norms
def test_images_that_all_break_at_once_end_the_attack(name, norm, net, right):
    wrong = (right[1] + 1) % 10
    target = threat.Target(net)
    params = {"norm": norm} if name == "square" else {}
    result = attack(name, target, right[0], wrong, eps=1e-4, stop_when_broken=True, **params)
    assert target.forward_rows == 32 and bool(result.broken.all()) and bool((result.step_of_success == 0).all())
    assert torch.equal(result.losses[0], result.losses[-1])


# --------------------------------------------------------------------------------------------------- their insides


def test_the_window_shrinks_on_the_published_schedule():
    """AutoAttack's p over 10,000 queries on 28 x 28 pixels, and the side it gives."""
    search, shape = square.SEARCHES["linf"], torch.Size((1, 1, 28, 28))
    sides = {query: search.side(0.8, query / 10_000, shape) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 8001)}
    assert sides == {0: 25, 10: 25, 11: 18, 51: 13, 201: 9, 501: 6, 1001: 4, 2001: 3, 8001: 1}
    l2 = square.SEARCHES["l2"]
    assert [l2.side(0.1, progress, shape) for progress in (0.0, 0.002, 0.9)] == [9, 7, 3]  # odd, at least 3
    assert l2.side(0.8, 0.0, torch.Size((1, 1, 4, 50))) == 4  # no longer than the shorter side


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 9])
def test_a_double_pyramid_has_length_one_and_two_signs(side):
    pyramids = square._double_pyramid(side)
    assert pyramids.shape == (side, side) and abs(float(pyramids.norm()) - 1) < 1e-12
    assert bool((pyramids[: side // 2] > 0).all()) and bool((pyramids[side // 2 :] < 0).all())


def test_a_pyramid_stacks_rectangles_around_its_centre():
    expected = torch.full((3, 5), 1 / 9, dtype=torch.float64)
    expected[:, 1:4] += 1 / 4
    expected[1, 2] += 1
    assert torch.allclose(square._pyramid(3, 5), expected / expected.norm())


def test_windows_reach_every_corner_and_lie_within_the_image():
    images = torch.zeros(4000, 2, 6, 9)
    window = square._window(images, draws(4000).uniform(2), 3)
    images[window] = 1
    assert bool((images.sum(dim=(1, 2, 3)) == 2 * 9).all())
    assert bool((images.mean(dim=0) > 0).all())


def test_every_l2_proposal_spends_the_whole_radius():
    """Away from the walls of [0, 1] the change has the length eps before and after a move of mass."""
    images = torch.full((50, 3, 12, 12), 0.5, dtype=torch.float64)
    noise = draws(50)
    start = square._tiles(images, 0.3, noise)
    moved = square._move_mass(images, start, 0.3, 5, noise)
    for found in (start, moved):
        assert torch.allclose((found - images).flatten(1).norm(dim=1), torch.tensor(0.3, dtype=torch.float64))
    assert not torch.allclose(start, moved)


def test_spsa_estimates_a_linear_gradient():
    """The mean over directions of (w.v) v is w: the estimate's error falls as the square root of their number."""
    model = Border()
    images, labels = model.images_at(0.1, "linf", 4)
    for samples in (100, 6400):
        slope = spsa._slope(model, images, labels, losses.margin, 0.01, samples, draws(4), 1)
        error = (slope.flatten(1) + 2 * model.weight).norm(dim=1) / (2 * model.weight).norm()
        assert bool((error < 2 * (63 / samples) ** 0.5).all()) and bool((error > 0).all())


def test_spsa_does_not_depend_on_how_its_directions_are_sliced(monkeypatch):
    model = Border()
    images, labels = model.images_at(0.1, "linf")
    found = []
    for rows in (1, 100, 10**6):
        monkeypatch.setattr(spsa, "SLICE_ROWS", rows)
        found.append(attack("spsa", model, images, labels).images)
    assert torch.allclose(found[0], found[1]) and torch.allclose(found[0], found[2])


def test_spsa_slices_count_the_draws_of_a_random_defense(net, right):
    seen = []

    def logits(images: Tensor) -> Tensor:
        seen.append(len(images))
        return net(images).expand(16, -1, -1)

    attack("spsa", logits, *right, samples=40, steps=1)
    assert max(seen) * 16 <= spsa.SLICE_ROWS


@both
def test_every_query_is_an_image(name, net, right):
    def strict(images: Tensor) -> Tensor:
        assert float(images.min()) >= 0 and float(images.max()) <= 1
        return net(images)

    attack(name, strict, *right, eps=0.3)


def test_spsa_can_cross_the_ball_whatever_its_steps(net, right):
    """A rate of 0.01 and one step, a default in the wild, moves 0.01 of an eps of 0.3."""
    for steps in (1, 5):
        found = attack("spsa", net, *right, eps=0.3, steps=steps).images
        assert float((found - right[0]).abs().amax()) > 0.299


@both
def test_nan_counts_as_broken(name, right):
    result = attack(name, lambda x: torch.full((len(x), 10), torch.nan), *right)
    assert bool(result.broken.all()) and bool((result.step_of_success == 0).all())
    assert bool(result.images.isfinite().all())


@pytest.mark.parametrize("wrong", [{"eps": -0.1}, {"queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}], ids=str)
def test_square_refuses_settings_that_make_no_sense(wrong, net, right):
    with pytest.raises(ValueError, match="square needs eps >= 0"):
        attack("square", net, *right, **wrong)


def test_square_knows_two_norms(net, right):
    with pytest.raises(ValueError, match="no norm is called 'l1'"):
        attack("square", net, *right, norm="l1")


@pytest.mark.parametrize(
    "wrong", [{"eps": -0.1}, {"steps": 0}, {"samples": 0}, {"delta": 0.5}, {"learning_rate": 0.0}], ids=str
)
def test_spsa_refuses_settings_that_make_no_sense(wrong, net, right):
    with pytest.raises(ValueError, match="spsa needs eps >= 0"):
        attack("spsa", net, *right, **wrong)


# ------------------------------------------------------------------------------------------------ hidden gradients


def accuracy(defense: Defense, images: Tensor, labels: Tensor, eot: int = 50) -> float:
    """The mean over fresh draws that no attack has seen."""
    logits = threat.score_only(defense, eot=eot, seed_parts=("fresh",))(images)
    return float((logits.argmax(dim=-1) == labels).float().mean())


@pytest.mark.parametrize(("cls", "delta"), [(Rounds, 0.2), (Detaches, 0.01)])
def test_where_gradients_lead_nowhere_scores_do(cls, delta, net, right):
    """PGD by autograd leaves most images right; Square and SPSA (with a delta as wide as a level) break most."""
    defense = cls(net)
    by_gradient = threat.white_box(defense, "autograd", eot=1, seed_parts=())
    pgd = attacks.get("pgd")(by_gradient, *right, eps=0.2, draws=draws(32), steps=20, loss="margin")
    assert accuracy(defense, pgd.images, right[1]) > 0.7
    for name, params in (("square", {"queries": 300}), ("spsa", {"steps": 40, "samples": 64, "delta": delta})):
        target = threat.score_only(defense, eot=1, seed_parts=())
        found = attack(name, target, *right, eps=0.2, **params)
        assert accuracy(defense, found.images, right[1]) < 0.3 and target.backward_rows == 0


@pytest.mark.parametrize(
    ("name", "params"), [("square", {"queries": 300}), ("spsa", {"steps": 40, "samples": 64, "delta": 0.2})]
)
def test_scores_averaged_over_draws_break_a_noisy_defense(name, params, net, right):
    defense = Noise(net)
    target = threat.score_only(defense, eot=4, seed_parts=("attack",))
    found = attack(name, target, *right, eps=0.2, **params)
    assert accuracy(defense, right[0], right[1]) > 0.9
    assert accuracy(defense, found.images, right[1]) < 0.4


# -------------------------------------------------------------------------------------------------------- upstream


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "theirs", "eps", "p_init"), [("linf", "Linf", 0.12, 0.8), ("l2", "L2", 4.0, 0.1)])
def test_square_finds_what_upstream_finds_for_the_same_rows(norm, theirs, eps, p_init, digits, trained_home):
    """AutoAttack's own Square (pyautoattack) on classifier A: robust accuracy and rows agree within their spread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upstream = pytest.importorskip("pyautoattack.square").SquareAttack
    model, _ = classifiers.trained("A", digits, Progress())
    images, labels, queries = digits.test.images[:64], digits.test.labels[:64], 100
    reached: dict[str, list[tuple[float, int]]] = {"ours": [], "theirs": []}
    for seed in (0, 1):
        target = threat.Target(model)
        with torch.random.fork_rng():  # it seeds the global generator
            attacker = upstream(target, norm=theirs, n_queries=queries - 1, eps=eps, p_init=p_init, seed=seed)
            found = attacker.perturb(images, labels)
        unbroken = threat.predictions(model, images) == labels
        rows = target.forward_rows - int(unbroken.sum())  # it looks once more at what it attacked
        reached["theirs"].append((robust(model, found, labels), rows))
        target = threat.Target(model)
        params = {"eps": eps, "norm": norm, "queries": queries, "stop_when_broken": True}
        result = attack("square", target, images, labels, seed, **params)
        reached["ours"].append((robust(model, result.images, labels), target.forward_rows))
    ours, ours_rows = torch.tensor(reached["ours"], dtype=torch.float64).mean(dim=0).tolist()
    theirs_, theirs_rows = torch.tensor(reached["theirs"], dtype=torch.float64).mean(dim=0).tolist()
    clean = robust(model, images, labels)
    assert ours < clean - 0.1 and abs(ours - theirs_) < 0.1, reached
    assert abs(ours_rows - theirs_rows) < 0.1 * theirs_rows, reached


def robust(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((threat.predictions(model, images) == labels).float().mean())


def test_square_and_upstream_spend_the_same_rows_where_nothing_breaks(net, right):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upstream = pytest.importorskip("pyautoattack.square").SquareAttack
    theirs, ours = threat.Target(net), threat.Target(net)
    with torch.random.fork_rng():
        upstream(theirs, n_queries=19, eps=1e-5).perturb(*right)
    attack("square", ours, *right, eps=1e-5, queries=20)
    assert ours.forward_rows == theirs.forward_rows - 32 == 32 * 21  # it looks once more at what it attacked
