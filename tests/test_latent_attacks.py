"""Attacks through codes where the answer is known: a linear encoder and decoder with orthonormal rows, a linear
classifier of the codes."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from bench import attacks, class_change, draws, threat
from bench.attacks import Attacked
from bench.data import Split
from bench.defense import Defense

SHAPE, DIM = (1, 4, 4), 3
ROWS = torch.linalg.qr(torch.randn(16, DIM, generator=Generator().manual_seed(0), dtype=torch.float64)).Q.T


class TwoClasses(nn.Module):
    """Logits whose difference is linear: class 1 where the first code is positive, by `scale` an unit."""

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        first = (images.flatten(1) - 0.5) @ ROWS[0].to(images)
        return torch.stack([torch.zeros_like(first), self.scale * first], dim=1)


class Linear(Defense):
    """Codes A(x - 1/2) and the decoder A's transpose: an image is purified to its part in the span of the rows."""

    title, paper, year, differentiable = "Linear", "https://example.org", 2020, True

    def __init__(self, *, hidden: bool = False) -> None:
        super().__init__(TwoClasses())
        self.hidden = hidden

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        pure = self.decode(self.encode(images))
        return pure.detach() if self.hidden else pure

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ ROWS.T.to(images)

    def decode(self, latents: Tensor) -> Tensor:
        return 0.5 + (latents @ ROWS.to(latents)).view(-1, *SHAPE)


class NeedsImages(Linear):
    """Cannot be shown an empty batch."""

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images.view(len(images), -1).view(-1, *SHAPE))

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        assert len(images), "nothing was sent"
        return super().logits(images, generator)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Images of class 0, their first code from -0.02 to -0.4, in the span of the rows: the box is far."""
    codes = torch.zeros(20, DIM, dtype=torch.float64)
    codes[:, 0] = -torch.linspace(0.02, 0.4, 20, dtype=torch.float64)
    return Linear().decode(codes), torch.zeros(20, dtype=torch.int64)


def attacked(
    name: str, defense: Defense, images: tuple[Tensor, Tensor], route: str = "autograd", **settings: object
) -> Attacked:
    known = Split(*images)
    target = threat.through_codes(defense, route, eot=1, seed_parts=(), known=known)
    noise = draws.ImageDraws.derived(torch.arange(len(images[0])), "test")
    return attacks.get(name)(target, *images, draws=noise, **settings)


class TestInsideTheBall:
    def test_an_image_is_broken_just_where_the_ball_reaches_the_other_class(self, images):
        """The nearest image of the other class lies where the first code is 0, along the first row."""
        distance = -Linear().encode(images[0])[:, 0]
        for eps in (0.11, 0.21, 0.31):  # no image lies right at the edge
            found = attacked("latent_ball", Linear(), images, norm="l2", eps=eps, steps=60)
            assert torch.equal(found.broken, distance < eps)
            assert (found.images - images[0]).flatten(1).norm(dim=1).max() <= eps + 1e-9
            reached = distance / ROWS[0].abs().sum()
            found = attacked("latent_ball", Linear(), images, norm="linf", eps=0.25 * eps, steps=60)
            assert torch.equal(found.broken, reached < 0.25 * eps)

    def test_codes_lead_past_a_purifier_without_a_gradient_along_bpda(self, images):
        blind = attacked("latent_ball", Linear(hidden=True), images, norm="l2", eps=0.5, steps=20)
        assert not blind.broken.any() and float(blind.blocked.min()) == 1
        assert attacked("latent_ball", Linear(hidden=True), images, "bpda", norm="l2", eps=0.5, steps=20).broken.all()

    def test_images_leave_where_one_answer_is_proof_and_no_result_changes(self, images):
        whole, early = (
            attacked("latent_ball", Linear(), images, norm="l2", eps=0.2, steps=40, restarts=2, stop_when_broken=stop)
            for stop in (False, True)
        )
        assert torch.equal(whole.broken, early.broken) and torch.equal(whole.step_of_success, early.step_of_success)
        assert torch.allclose(whole.losses[:, ~whole.broken], early.losses[:, ~whole.broken])

    def test_a_batch_that_is_broken_among_codes_sends_nothing_more(self, images):
        found = attacked("latent_ball", NeedsImages(), images, norm="l2", eps=2.0, steps=40, stop_when_broken=True)
        assert found.broken.all() and found.losses.shape == (41, 20)
        assert (found.step_of_success < 20).all()

    @pytest.mark.parametrize("wrong", [{"eps": -1.0}, {"steps": 1}, {"restarts": 0}, {"learning_rate": 0.0}])
    def test_settings_that_make_no_sense_are_refused(self, wrong, images):
        with pytest.raises(ValueError, match="latent_ball needs"):
            attacked("latent_ball", Linear(), images, **{"eps": 0.1, **wrong})


class TestOverpowered:
    def test_what_is_drawn_loses_by_the_margin_and_stays_inside_the_bound(self, images):
        """Without noise class 1 wins by 1 where the first code is 0.1, `distance + 0.1` away."""
        distance = -Linear().encode(images[0])[:, 0]
        found = attacked("overpowered", Linear(), images, rho=0.0, bound=0.3, steps=300, learning_rate=0.01)
        clear = (distance - 0.2).abs() > 1e-6  # at 0.2 it is on the bound
        assert torch.equal((found.step_of_success >= 0)[clear], (distance < 0.2)[clear])
        assert (found.images - images[0]).flatten(1).norm(dim=1).max() <= 0.3 + 1e-9
        first = Linear().encode(found.images)[:, 0]
        assert (first[found.step_of_success >= 0] >= 0.1 - 1e-9).all()
        near = distance < 0.29  # the rest of them is wrong by less, or cannot be
        assert torch.equal(found.told["fooled"][near], torch.ones(int(near.sum()), dtype=torch.float64))
        assert found.told["in_bound"].min() == 1

    def test_what_comes_back_is_drawn_by_the_decoder(self, images):
        found = attacked("overpowered", Linear(), images, rho=0.1, bound=0.3, steps=30)
        again = Linear().decode(Linear().encode(found.images))
        assert torch.allclose(found.images, again)

    def test_a_wider_bound_and_more_steps_never_fool_fewer(self, images):
        def fooled(**settings: object) -> float:
            found = attacked("overpowered", Linear(), images, rho=0.1, learning_rate=0.01, **settings)
            return float(found.told["fooled"].sum())

        bounds = [fooled(bound=bound, steps=100) for bound in (0.05, 0.2, 0.4, 0.8)]
        assert bounds == sorted(bounds) and bounds[0] < bounds[-1] == 20
        lengths = [fooled(bound=0.3, steps=steps) for steps in (3, 10, 30, 100)]
        assert lengths == sorted(lengths) and lengths[0] < lengths[-1]

    def test_more_noise_asks_for_more(self, images):
        """The mean margin over noise is the margin itself on a linear model, so noise costs nothing there; behind a
        net that bends it does."""

        class Bent(TwoClasses):
            def forward(self, images: Tensor) -> Tensor:
                outside = (images.flatten(1) - 0.5) @ (torch.eye(16, dtype=torch.float64) - ROWS.T @ ROWS)
                straight = super().forward(images)
                return torch.stack([2 * outside.norm(dim=1), straight[:, 1]], dim=1)  # noise speaks for class 0

        done = []
        for rho in (0.0, 0.5, 2.0):
            defense = Linear()
            object.__setattr__(defense, "classifier", Bent())
            found = attacked("overpowered", defense, images, rho=rho, bound=0.4, steps=150, learning_rate=0.01)
            done.append(int((found.step_of_success > 0).sum()))
        assert done == sorted(done, reverse=True) and done[0] > done[-1]

    def test_as_published_it_finds_the_same_easy_images_and_never_stops_early(self, images):
        near = (images[0][:5], images[1][:5])
        settings = {"rho": 0.1, "bound": 0.5, "steps": 60, "learning_rate": 0.01, "copies": 2}
        found = attacked("overpowered", Linear(), near, rule="published", **settings)
        assert (found.step_of_success > 0).all() and found.told["in_bound"].min() == 1
        assert not torch.equal(found.losses[-1], found.losses[-2])

    @pytest.mark.parametrize("route", ["autograd", "bpda"])
    def test_a_purifier_that_pulls_back_falls_all_the_same(self, images, route):
        """What fools the classifier is pulled back by 0.15; as published, nobody asks the defense."""

        class PullsBack(Linear):
            def purify(self, images: Tensor, generator: Generator) -> Tensor:
                codes = self.encode(images)
                return self.decode(codes - torch.eye(DIM, dtype=codes.dtype)[0] * 0.15)

        def found(**settings: object) -> tuple[Tensor, Attacked]:
            settings = {"rho": 0.1, "bound": 0.8, "steps": 150, "learning_rate": 0.01, **settings}
            result = attacked("overpowered", PullsBack(), images, route, **settings)
            return PullsBack().logits(result.images, Generator())[:, 1] > 0, result

        fooled, result = found()
        assert fooled.all() and (result.step_of_success > 0).all()
        assert result.told["in_bound"].min() == result.told["fooled"].min() == 1
        narrow, result = found(bound=0.45)  # class 1 begins 0.15 and the image's own distance away
        distance = -Linear().encode(images[0])[:, 0]
        clear = (distance - 0.3).abs() > 0.02
        assert torch.equal(narrow[clear], (distance < 0.3)[clear])

    @pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
    def test_an_answer_that_is_no_number_is_no_shelter(self, images, value):
        """It is wrong when it is scored: an image inside the bound with such an answer must not be given up."""

        class Sheltered(Linear):
            def logits(self, images: Tensor, generator: Generator) -> Tensor:
                return super().logits(images, generator) + torch.tensor([value, 0.0], dtype=images.dtype)

        found = attacked("overpowered", Sheltered(), images, rho=0.0, bound=0.8, steps=60, learning_rate=0.02)
        assert found.told["in_bound"].min() == found.told["fooled"].min() == 1

    def test_where_the_bound_is_out_of_reach_the_nearest_version_comes_back(self, images):
        """Of images beside the span of the rows what is drawn stays 0.2 away; a bound of 0.1 holds nothing."""
        beside = torch.linalg.qr(torch.cat([ROWS, torch.eye(16, dtype=torch.float64)[:1]]).T).Q[:, -1]
        away = (images[0] + 0.2 * beside.view(1, *SHAPE), images[1])
        found = attacked("overpowered", Linear(), away, rho=0.0, bound=0.1, steps=40, learning_rate=0.02, copies=3)
        assert found.told["in_bound"].max() == 0
        distance = (found.images - away[0]).flatten(1).norm(dim=1)
        assert torch.allclose(distance, torch.full_like(distance, 0.2))  # the code of the image itself is nearest
        floats = (away[0].float(), away[1])
        again = attacked("overpowered", Linear().float(), floats, rho=0.0, bound=0.1, steps=40, learning_rate=0.02)
        assert torch.allclose((again.images - floats[0]).flatten(1).norm(dim=1), torch.tensor(0.2), atol=1e-5)

    def test_as_published_the_surest_version_comes_back_not_the_first(self, images):
        near = (images[0][:5].float(), images[1][:5])
        settings = {"rho": 0.0, "bound": 2.0, "steps": 60, "learning_rate": 0.01, "copies": 2, "rule": "published"}
        found = attacked("overpowered", Linear().float(), near, **settings)
        margin = TwoClasses()(found.images)[:, 1]
        best = found.losses.amax(dim=0)  # at any step: none lies outside the bound here
        assert torch.allclose(margin, best, atol=1e-3) and (margin > 1.5).all()

    def test_a_decoder_without_a_gradient_leaves_evidence(self, images):
        class Detached(Linear):
            def decode(self, latents: Tensor) -> Tensor:
                return super().decode(latents).detach()

        assert float(attacked("overpowered", Detached(), images, steps=5).blocked.min()) == 1

    @pytest.mark.parametrize(
        "wrong", [{"rho": -1.0}, {"bound": 0.0}, {"copies": 0}, {"steps": 0}, {"rule": "own"}, {"noise_draws": 0}]
    )
    def test_settings_that_make_no_sense_are_refused(self, wrong, images):
        with pytest.raises(ValueError, match="overpowered needs"):
            attacked("overpowered", Linear(), images, **wrong)


class Bent(Defense):
    """Codes that bend, of half as many numbers as pixels, and a small net of three classes behind them."""

    title, paper, year, differentiable = "Bent", "https://example.org", 2020, True

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
            net.extend([nn.Linear(32, 3)])
        for weight in net.parameters():
            weight.requires_grad_(False).mul_(2.5)
        super().__init__(net.double())
        self.rows = torch.linalg.qr(torch.randn(16, 8, generator=Generator().manual_seed(2), dtype=torch.float64)).Q.T

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        return torch.asinh(4 * (images.flatten(1) - 0.5) @ self.rows.T)

    def decode(self, latents: Tensor) -> Tensor:
        return (0.5 + torch.sinh(latents) / 4 @ self.rows).view(-1, *SHAPE)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("latent_ball", {"norm": "linf", "eps": 0.06}),
        ("latent_ball", {"norm": "l2", "eps": 0.2}),
        ("latent_distance", {"eps": 0.1}),
        ("overpowered", {"rho": 0.1, "bound": 0.3}),
    ],
)
def test_ten_times_as_many_steps_gain_hardly_anything(name, settings):
    """At the length that the drafts give them, or less: an attack on codes is judged by its own goal, the others by the
    share of the images that they break."""
    defense = Bent()
    n, usual = {"latent_ball": (100, 100), "latent_distance": (100, 40), "overpowered": (50, 100)}[name]
    codes = 0.8 * torch.randn(n, 8, generator=Generator().manual_seed(3), dtype=torch.float64)
    images = defense.decode(codes).clamp(0, 1)
    labels = defense.logits(images, Generator()).argmax(dim=1)

    def reached(steps: int) -> float:
        found = attacked(name, defense, (images, labels), steps=steps, **settings)
        if name == "latent_distance":
            return 1 - float(found.told["relative_code_distance"].mean())
        return float((defense.logits(found.images, Generator()).argmax(dim=1) != labels).double().mean())

    share, longer = reached(usual), reached(10 * usual)
    assert 0.1 < share < 0.95 and longer - share <= 0.02


class TestDoors:
    @pytest.mark.parametrize("name", ["latent_ball", "overpowered", "latent_distance", "target_code"])
    @pytest.mark.parametrize(
        ("door", "given", "says"),
        [
            ("encode", lambda codes: codes * torch.nan, "encode gave numbers that are not finite"),
            ("encode", lambda codes: codes[:1], "encode gave .* for 20 rows"),
            ("decode", lambda drawn: drawn / 0, "decode gave numbers that are not finite"),
            ("decode", lambda drawn: drawn.flatten(1), "decode gave .* expected"),
        ],
        ids=["NaN codes", "one code for all", "infinite images", "flat images"],
    )
    def test_a_door_that_gives_garbage_ends_the_attack(self, name, door, given, says, images):
        broken = type("Broken", (Linear,), {door: lambda self, value: given(getattr(Linear, door)(self, value))})
        settings = {"eps": 0.1} if name in ("latent_ball", "latent_distance") else {}
        labels = torch.arange(20) % 2
        with pytest.raises(ValueError, match=says):
            attacked(name, broken(), (images[0], labels), **settings)

    def test_images_beyond_black_and_white_are_clipped(self, images):
        class Bright(Linear):
            def decode(self, latents: Tensor) -> Tensor:
                return 3 * super().decode(latents)

        found = attacked("overpowered", Bright(), images, steps=3)
        assert found.images.max() <= 1


class TestClassChange:
    def test_the_neighbours_vote_and_the_nearest_decides_a_tie(self):
        values = torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0, 0.5])[:, None, None, None]
        training = Split(values, torch.tensor([3, 3, 4, 7, 7, 9]))
        asked = torch.tensor([0.05, 0.95, 0.16])[:, None, None, None]
        assert class_change.nearest_class(asked, training, 3).tolist() == [3, 7, 3]
        assert class_change.nearest_class(asked, training, 1).tolist() == [3, 7, 4]
        assert class_change.nearest_class(asked, training, 2).tolist() == [3, 7, 4]  # one vote each: 0.2 is nearest

    def test_pieces_of_the_training_set_do_not_matter(self, monkeypatch):
        generator = Generator().manual_seed(0)
        training = Split(torch.rand(50, 1, 3, 3, generator=generator), torch.arange(50) % 7)
        asked = torch.rand(9, 1, 3, 3, generator=generator)
        whole = class_change.nearest_class(asked, training)
        monkeypatch.setattr(class_change, "CHUNK", 4)
        assert torch.equal(class_change.nearest_class(asked, training), whole)

    def test_a_change_counts_where_both_see_it(self):
        images = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None, None, None]
        training = Split(torch.tensor([0.0] * 5 + [1.0] * 5)[:, None, None, None], torch.arange(10) // 5)
        net_says = torch.tensor([0, 1, 0, 1])
        judge = class_change.Judge(lambda x: nn.functional.one_hot(net_says, 2), training)
        found = judge(images, torch.zeros(4, dtype=torch.int64))
        assert found == {
            "class_changed_by_net": 0.5, "class_changed_by_neighbours": 0.5, "class_changed_by_both": 0.25,
        }  # fmt: skip
