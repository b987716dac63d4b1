"""Attacks on defenses whose purification is a search, where the answer is known: a linear generator, a linear
classifier of its codes, and an inner loop that hides its gradient."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from fakes import OwnLoop
from test_latent_attacks import ROWS, SHAPE, TwoClasses
from torch import Generator, Tensor

from bench import attack_cost, attacks, catalog, draws, evaluate, protocols, threat
from bench.attacks import Attacked, latent_ball, losses
from bench.data import Split
from bench.defense import Defense
from bench.protocol import AttackSpec

REACH = ROWS[0].abs().sum()  # how far the first code moves with every pixel by one


class Searches(Defense):
    """The image of a linear generator that comes closest to the given one, by descent from the code 0 that no gradient
    passes; in a hurry five moves that one does. With `inverts` the image is taken for its negative, so that the
    identity, as a stand-in for purify, leads the wrong way."""

    title, paper, year = "Searches", "https://example.org", 2020

    def __init__(self, *, moves: int = 30, inverts: bool = False) -> None:
        super().__init__(TwoClasses())
        self.moves, self.inverts, self.hides, self.rows_seen = moves, inverts, True, 0

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        self.rows_seen += len(images)
        aim = 1 - images if self.inverts else images
        latents = torch.zeros(len(images), len(ROWS), dtype=images.dtype)
        for _ in range(self.moves):
            latents = latents - 0.25 * 2 * (self.decode(latents) - aim).flatten(1) @ ROWS.T.to(images)
        pure = self.decode(latents)
        return pure.detach() if self.hides else pure

    def decode(self, latents: Tensor) -> Tensor:
        return 0.5 + (latents @ ROWS.to(latents)).view(-1, *SHAPE)

    def start_codes(self, images: Tensor, generator: Generator) -> Tensor:
        return 0.1 * torch.randn(len(images), len(ROWS), generator=generator, dtype=images.dtype)

    def hurried(self) -> Searches:
        self.quick = copy.copy(self)  # kept, so that a test may look at it
        self.quick.moves, self.quick.hides, self.quick.rows_seen = 5, False, 0
        return self.quick


class OtherWhenHurried(Searches):
    """In a hurry it takes each image for its negative, and so gets all of them wrong."""

    def hurried(self) -> Searches:
        quick = copy.copy(self)
        quick.inverts = True
        return quick


class AsMuch(Searches):
    """Works as much in a hurry."""

    def hurried(self) -> Searches:
        return self


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Images of class 0, their first code from -0.02 to -0.4: the box is far."""
    codes = torch.zeros(20, len(ROWS), dtype=torch.float64)
    codes[:, 0] = -torch.linspace(0.02, 0.4, 20, dtype=torch.float64)
    return Searches().decode(codes), torch.zeros(20, dtype=torch.int64)


def noise(n: int) -> draws.ImageDraws:
    return draws.ImageDraws.derived(torch.arange(n), "test")


def target(defense: Defense, images: Tensor, route: str = "autograd", eot: int = 1) -> threat.Codes:
    known = Split(images, torch.zeros(len(images), dtype=torch.int64))
    return threat.through_codes(defense, route, eot=eot, seed_parts=(), known=known)


def attacked(
    name: str, defense: Defense, images: tuple[Tensor, Tensor], route: str = "autograd", **settings: object
) -> Attacked:
    asked = target(defense, images[0], route)
    return attacks.get(name)(asked, *images, draws=noise(len(images[0])), **settings)


def breakable(images: Tensor, eps: float) -> Tensor:
    """Which images the Linf ball of `eps` holds a version of whose nearest drawn image is of class 1."""
    first = (images.flatten(1) - 0.5) @ ROWS[0]
    return first.abs() / REACH < eps


class TestALinearGenerator:
    @pytest.mark.parametrize("eps", [0.025, 0.045, 0.075])
    @pytest.mark.parametrize("stop", [False, True])
    def test_just_what_the_ball_can_break_is_broken(self, images, eps, stop):
        """The answer depends on the first code alone, so the worst image moves each pixel along its sign."""
        known = breakable(images[0], eps)
        assert 0 < known.sum() < 20
        for name in ("hurried_apgd", "searched_ball"):
            found = attacked(name, Searches(), images, eps=eps, steps=40, last_steps=5, stop_when_broken=stop)
            assert torch.equal(found.broken, known)
            assert torch.equal(found.step_of_success >= 0, known)
            assert (found.images - images[0]).abs().max() <= eps + 1e-9
        without = attacked("searched_ball", Searches(), images, "bpda", eps=eps, steps=40)
        assert torch.equal(without.broken, known), "and where the whole is asked all along"

    def test_the_code_found_is_the_one_of_the_nearest_drawn_image(self, images):
        """Also of images that the generator cannot draw: least squares."""
        beside = (images[0] + 0.05 * torch.randn(20, *SHAPE, generator=Generator().manual_seed(1))).double()
        search = latent_ball._Search(steps=200, starts=3)
        found = latent_ball._nearest(target(Searches(), beside), beside, noise(20), search)
        assert torch.allclose(found, (beside.flatten(1) - 0.5) @ ROWS.T, atol=1e-3)

    def test_of_several_starts_the_best_is_kept(self, images):
        class Wavy(Searches):
            def decode(self, latents: Tensor) -> Tensor:
                return super().decode(latents + 0.2 * torch.sin(40 * latents))

        asked = target(Wavy(), images[0])

        def missed(starts: int) -> float:
            search = latent_ball._Search(steps=60, starts=starts)
            found = latent_ball._nearest(asked, images[0], noise(20), search)
            return float((Wavy().decode(found) - images[0]).square().sum())

        errors = [missed(starts) for starts in (1, 4, 16)]
        assert errors[0] > 2 * errors[1] > 2 * errors[2]

    def test_starts_are_an_images_own(self, images):
        asked = target(Searches(), images[0])
        together = asked.start_codes(images[0], 4, noise(20))
        assert together.shape == (20, 4, len(ROWS)) and len({tuple(row.tolist()) for row in together[:, 0]}) == 20
        some = noise(20).rows(torch.tensor([3, 11]))
        assert torch.equal(asked.start_codes(images[0][[3, 11]], 4, some), together[[3, 11]])
        again = noise(20)
        asked.start_codes(images[0], 4, again)
        assert not torch.equal(asked.start_codes(images[0], 4, again), together), "another restart has other ones"
        assert asked.start_codes(images[0][:0], 4, noise(0)).shape == (0, 4, len(ROWS))


class TestASearchThatHidesItsGradient:
    EPS = 0.09

    def test_the_usual_routes_leave_it_standing(self, images):
        """But for the first few images, which a random start breaks."""
        defense, shown = Searches(inverts=True), (1 - images[0], images[1])
        blind = attacked("apgd_margin", defense, shown, eps=self.EPS, steps=40)
        assert not blind.broken[3:].any() and float(blind.blocked[3:].min()) == 1
        astray = attacked("apgd_margin", defense, shown, "bpda", eps=self.EPS, steps=40)
        assert not astray.broken[3:].any()

    @pytest.mark.parametrize("name", ["hurried_apgd", "searched_ball"])
    def test_in_a_hurry_it_shows_the_way(self, name, images):
        defense, shown = Searches(inverts=True), (1 - images[0], images[1])
        known = breakable(shown[0], self.EPS)
        assert known.sum() == 15
        assert torch.equal(attacked(name, defense, shown, eps=self.EPS, steps=40, last_steps=3).broken, known)


class TestTheLastSteps:
    def test_what_fools_it_in_a_hurry_alone_is_not_broken(self, images):
        for name in ("hurried_apgd", "searched_ball"):
            found = attacked(name, OtherWhenHurried(), images, eps=0.001, steps=10, last_steps=3)
            assert not found.broken.any() and bool((found.step_of_success == -1).all())
            quick = target(OtherWhenHurried(), images[0]).hurried(found.images)
            assert losses.is_broken(quick, images[1]).all()

    def test_they_mend_what_the_hurried_search_gets_wrong(self, images):
        """In a hurry it takes images for their negatives: the first steps lead away, the last ones lead back, the
        further the more there are."""
        settings = {"eps": 0.09, "steps": 5}
        broken = [
            attacked("hurried_apgd", OtherWhenHurried(), images, "bpda", **settings, last_steps=last).broken
            for last in (1, 2, 4, 60)
        ]
        assert torch.equal(broken[-1], breakable(images[0], 0.09))
        counts = [int(found.sum()) for found in broken]
        assert counts == sorted(counts) and counts[0] < counts[-1]

    def test_where_it_works_as_much_in_a_hurry_the_first_steps_are_those_of_auto_pgd(self, images):
        for route in ("autograd", "bpda"):
            plain = attacked("apgd_margin", AsMuch(), images, route, eps=0.045, steps=12)
            found = attacked("hurried_apgd", AsMuch(), images, route, eps=0.045, steps=12, last_steps=4)
            assert torch.equal(found.losses[:13], plain.losses) and len(found.losses) == 13 + 5
            assert torch.equal(found.losses[13], plain.losses.amax(dim=0)), "they go on from the best"
            assert bool((found.broken | ~plain.broken).all())

    def test_a_defense_that_cannot_hurry_is_asked_as_a_whole(self, images):
        plain = type("Plain", (Searches,), {"hurried": Defense.hurried})
        settings = {"eps": 0.045, "steps": 12, "last_steps": 4}
        found = [attacked("searched_ball", cls(), images, "bpda", **settings) for cls in (plain, AsMuch)]
        assert torch.equal(found[0].images, found[1].images)

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("hurried_apgd", {"eps": -1.0}), ("hurried_apgd", {"steps": 0}), ("hurried_apgd", {"last_steps": 0}),
            ("hurried_apgd", {"restarts": 0}), ("searched_ball", {"search_steps": 0}), ("searched_ball", {"starts": 0}),
            ("hurried_apgd", {"start": "clean"}), ("searched_ball", {"last_steps": -1}),
            ("latent_ball", {"start": "anywhere"}),
        ],
        ids=str,
    )  # fmt: skip
    def test_settings_that_make_no_sense_are_refused(self, name, wrong, images):
        with pytest.raises(ValueError, match="(hurried_apgd|latent_ball) needs"):
            attacked(name, Searches(), images, **{"eps": 0.1, **wrong})


class TestABlindStart:
    """In a hurry the defense takes images for their negatives, which leads astray; the classifier alone does not."""

    SETTINGS = {"eps": 0.05, "steps": 12, "last_steps": 1}

    @staticmethod
    def blind(images: tuple[Tensor, Tensor], eps: float, norm: str = "linf", step_size: float = 0.01) -> Attacked:
        return attacks.get("pgd")(
            TwoClasses(), *images, eps=eps, norm=norm, steps=40, step_size=step_size, draws=noise(len(images[0]))
        )

    @pytest.mark.parametrize("name", ["hurried_apgd", "hurried_apgd_ce"])
    @pytest.mark.parametrize("stop", [False, True])
    def test_what_the_blind_attack_breaks_is_broken_image_by_image(self, name, stop, images):
        whole = target(OtherWhenHurried(), images[0])
        blind = losses.is_broken(whole(self.blind(images, 0.05).images), images[1])
        cold, warm = (
            attacked(name, OtherWhenHurried(), images, **self.SETTINGS, start=start, stop_when_broken=stop)
            for start in ("random", "gray_box")
        )
        assert 5 < blind.sum() < 20 and bool((blind & ~cold.broken).any()), "a start at random falls short of it"
        assert bool((warm.broken | ~blind).all())
        assert torch.equal(losses.is_broken(whole(warm.images), images[1]), warm.broken)
        assert (warm.images - images[0]).abs().max() <= 0.05 + 1e-9

    def test_it_loses_nothing_where_a_hurry_shows_the_way(self, images):
        defense, shown = Searches(inverts=True), (1 - images[0], images[1])
        settings = {"eps": 0.09, "steps": 40, "last_steps": 3, "start": "gray_box"}
        found = attacked("hurried_apgd", defense, shown, **settings)
        assert torch.equal(found.broken, breakable(shown[0], 0.09)), "though the blind attack leads the wrong way"

    def test_it_stays_in_an_l2_ball_and_goes_on_at_random_in_further_restarts(self, images):
        blind = self.blind(images, 0.2, "l2").images
        settings = {"eps": 0.2, "norm": "l2", "steps": 12, "last_steps": 1, "start": "gray_box"}
        found = attacked("hurried_apgd", OtherWhenHurried(), images, **settings, restarts=3)
        assert (found.images - images[0]).flatten(1).norm(dim=1).max() <= 0.2 + 1e-9
        broken = losses.is_broken(target(OtherWhenHurried(), images[0])(blind), images[1])
        assert broken.any() and bool((found.broken | ~broken).all())

    def test_a_target_without_a_classifier_says_so(self, images):
        with pytest.raises(ValueError, match="no bare classifier"):
            threat.Target(TwoClasses()).classify(images[0])

    def test_a_random_defense_begins_where_its_mean_loss_is_higher(self, images):
        class Random(OtherWhenHurried):
            stochastic = True

        asked = threat.white_box(Random(), "autograd", eot=3, seed_parts=())
        settings = {**self.SETTINGS, "start": "gray_box", "draws": noise(20)}
        found = attacks.get("hurried_apgd")(asked, *images, **settings)
        assert not found.broken.any(), "one lucky draw proves nothing"
        blind = self.blind(images, 0.05).images
        whole = target(Random(), images[0])
        one, other = (losses.true_gap(whole(some), images[1]) for some in (found.images, blind))
        assert bool((one <= other + 1e-9).all())


class TestWhatIsSpent:
    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("hurried_apgd", {}), ("hurried_apgd", {"start": "gray_box"}),
            ("searched_ball", {"search_steps": 7, "starts": 2}),
        ],
        ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("restarts", [1, 2])
    def test_rows_of_both_phases_are_counted_and_declared(self, name, more, restarts, images):
        params = {"steps": 6, "last_steps": 3, "restarts": restarts, **more}
        defense = Searches(inverts=True)
        asked = target(defense, images[0], "bpda")
        attacks.get(name)(asked, *images, eps=0.001, draws=noise(20), **params)
        spec = AttackSpec(name, "latent", params=tuple(params.items()))
        forward, backward = attack_cost.each_image(spec)
        assert (asked.forward_rows, asked.backward_rows) == (20 * forward, 20 * backward)
        quick, alone = attack_cost.hurried(spec)[0], catalog.ATTACKS[name].undrawn(**params)[0]
        assert (defense.quick.rows_seen, defense.rows_seen) == (20 * quick, 20 * (forward - quick - alone))
        assert defense.rows_seen == 20 * (4 + 2 * ("start" in more))

    def test_a_random_defense_answers_a_hurried_attack_in_as_many_draws(self, images):
        class Random(Searches):
            stochastic = True

        defense = Random()
        asked = target(defense, images[0], eot=3)
        assert asked.hurried(images[0]).shape == asked(images[0]).shape == (3, 20, 2)
        assert asked.forward_rows == 120 and defense.rows_seen == defense.quick.rows_seen == 60


class HurriedLoop(OwnLoop):
    """The same loop, in a hurry with a gradient."""

    def hurried(self) -> Defense:
        found = copy.copy(self)
        found.purify = lambda images, generator: 0.5 + (1 - 0.5**3) * (images - 0.5)
        return found


@pytest.mark.slow
@pytest.mark.usefixtures("trained_home")
def test_a_cell_is_scored_on_the_whole_and_says_what_both_phases_spent(tmp_path):
    params = (("last_steps", 2), ("steps", 10))
    specs = [AttackSpec("hurried_apgd", "white_box", "linf", 0.3, params, route) for route in ("autograd", "bpda")]
    asked = replace(
        protocols.get("digits-v1-quick"), id="hurried", n_examples=16, linf_radii=(0.3,), headline_radii=(0.3,),
        efforts=(), attacks=(AttackSpec("none", "clean"), *specs),
    )  # fmt: skip
    cells = evaluate(HurriedLoop, asked, records=tmp_path, contract=False)
    assert [cell.record.status for cell in cells] == ["ok"] * 3
    clean, *under = [float(cell.outcomes.correct.mean()) for cell in cells]
    assert clean > 0.5 and min(under) < 0.2
    along_autograd = cells[1].record
    assert along_autograd.backward_rows < along_autograd.forward_rows <= 16 * (11 + 3)
    assert along_autograd.forward_rows > 16 * 11
    again = evaluate(HurriedLoop, asked, records=tmp_path / "again", contract=False)
    assert [cell.record.lasting() for cell in again] == [cell.record.lasting() for cell in cells]
    plain = evaluate(OwnLoop, asked, records=tmp_path, contract=False)
    assert len(plain) == 3, "who cannot hurry is attacked all the same"
    assert float(plain[2].outcomes.correct.mean()) < 0.2
