"""Defense-GAN: the search is the released code's, an image's own, and survives a full memory; the GAN learns."""

from __future__ import annotations

import pytest
import torch
from released import tiled_search
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench import training
from bench.data import Dataset, Split
from bench.progress import Progress
from defenses import wgan
from defenses.defense_gan import DefenseGAN, DefenseGANEncoder, DefenseGANShort
from defenses.latent_search import Descent, frozen, replay, search

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]
SMALL = {"width": 4, "latent": 8, "search_steps": 5}


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def build(cls=DefenseGAN, shape=(1, 28, 28), **settings):
    own = {} if cls is DefenseGANEncoder else {"restarts": 3, "unrolled": 2}
    with training.global_seed(0):
        return cls(nn.Flatten(), shape=shape, **SMALL | own | settings).eval()


def noise(n: int = 6, shape=(1, 28, 28)) -> Tensor:
    return torch.rand(n, *shape, generator=seeded(1))


# ---------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_the_search_is_that_of_the_released_code(steps):
    defense, images = build(), noise()
    starts = torch.randn(6, 3, 8, generator=seeded(2)) * 0.3
    expected, errors = tiled_search(defense.decode, images, starts, steps)
    found = search(defense.decode, images, starts, Descent(steps))
    assert torch.allclose(found.images, expected, atol=1e-6)
    assert torch.allclose(found.errors, errors.amin(dim=1), atol=1e-7)
    assert torch.allclose(defense.decode(found.latents), expected, atol=1e-6)
    assert len(set(errors.argmin(dim=1).tolist())) > 1, "not the same restart wins everywhere"


def test_the_search_finds_the_code_of_an_image_that_can_be_made():
    torch.manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(16, 3))[0] * 0.5

    def decode(latents: Tensor) -> Tensor:
        return (latents @ mixing.T).view(-1, 1, 4, 4)

    codes = torch.randn(5, 3)
    found = search(decode, decode(codes), torch.zeros(5, 2, 3), Descent(200))
    assert torch.allclose(found.latents, codes, atol=1e-4) and found.errors.max() < 1e-9


def test_a_restart_that_runs_away_is_not_chosen():
    def decode(latents: Tensor) -> Tensor:
        return torch.where(latents > 5, torch.nan, latents).view(-1, 1, 1, 1)

    starts = torch.tensor([[[9.0], [0.5]], [[0.25], [9.0]]])
    found = search(decode, torch.zeros(2, 1, 1, 1), starts, Descent(1))
    assert found.images.flatten().tolist() == [0.5, 0.25]


def test_an_image_found_depends_on_no_other():
    defense, images = build(search_steps=20), noise()
    starts = defense.starts(images, seeded())
    together = search(defense.decode, images, starts, defense.descent)
    others = images.clone()
    others[1:] = 1 - others[1:]
    assert torch.allclose(search(defense.decode, others, starts, defense.descent).images[0], together.images[0])
    for rows in (slice(0, 1), slice(2, 6)):
        part = search(defense.decode, images[rows], starts[rows], defense.descent)
        assert torch.allclose(part.images, together.images[rows], atol=1e-5)
        assert torch.allclose(part.errors, together.errors[rows], atol=1e-6)


def test_starts_are_an_images_own_and_narrow():
    defense = build(latent=128, restarts=10)
    starts = defense.starts(noise(200), seeded())
    assert starts.shape == (200, 10, 128)
    assert float(starts.var()) == pytest.approx(1 / 128, rel=0.02) and abs(float(starts.mean())) < 1e-3
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[0, 0], starts[0, 1])
    assert torch.equal(defense.starts(noise(50), seeded()), starts[:50]), "a smaller batch draws the same"
    assert not torch.equal(defense.starts(noise(50), seeded(1)), starts[:50])


class Syncs(TorchDispatchMode):
    """Notes what reads a value back from the device, or makes a tensor whose size depends on one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket.__name__ in WAITING:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")


def test_the_search_reads_nothing_back_from_the_device():
    defense, images = build(), noise()
    with Syncs() as watched, torch.no_grad():
        defense.purify(images, seeded())
    assert watched.found == []
    with Syncs() as watched:
        float(images.sum())
    assert watched.found, "the watch sees a reading"


def test_weights_are_frozen_inside_and_as_before_outside():
    defense, images = build(), noise()
    asked: list[bool] = []

    def decode(latents: Tensor) -> Tensor:
        asked.extend(p.requires_grad for p in defense.gan.parameters())
        return defense.gan(latents)

    defense.decode = decode
    first = next(defense.gan.parameters()).requires_grad_(False)
    with torch.no_grad():
        defense.purify(images, seeded())
    assert asked and not any(asked)
    rest = list(defense.gan.parameters())[1:]
    assert not first.requires_grad and all(p.requires_grad and p.grad is None for p in rest)
    with pytest.raises(KeyError), frozen(defense.gan):
        raise KeyError
    assert all(p.requires_grad for p in rest)


# ---------------------------------------------------------------------------------------------- a full memory


class Full:
    """A decoder on a device that holds so many rows."""

    def __init__(self, decode, most: int, error: RuntimeError) -> None:
        self.decode, self.most, self.error, self.rows = decode, most, error, []

    def __call__(self, latents: Tensor) -> Tensor:
        if len(latents) > self.most:
            raise self.error
        self.rows.append(len(latents))
        return self.decode(latents)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["GPU", "CPU"])
@pytest.mark.parametrize("most", [9, 5, 1])
def test_out_of_memory_halves_the_batch_and_goes_on(most, error):
    defense, images = build(), noise()
    starts = torch.randn(6, 5, 8, generator=seeded(3)) * 0.3
    expected = search(defense.decode, images, starts, defense.descent, tail=2)
    decode = Full(defense.decode, most, error)
    found = search(decode, images, starts, defense.descent, tail=2)
    assert max(decode.rows) <= most
    for got, wanted in ((found.images, expected.images), (found.latents, expected.latents)):
        assert torch.allclose(got, wanted, atol=1e-5)
    assert torch.allclose(found.tail[0], expected.tail[0], atol=1e-5)


def test_what_does_not_fit_at_all_and_other_errors_pass_through():
    defense, images = build(), noise()
    starts = defense.starts(images, seeded())
    with pytest.raises(torch.OutOfMemoryError):
        search(Full(defense.decode, 0, ERRORS[0]), images, starts, defense.descent)
    broken = Full(defense.decode, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        search(broken, images, starts, defense.descent)


# ---------------------------------------------------------------------------------------------- what attackers see


@pytest.mark.parametrize("cls", [DefenseGAN, DefenseGANShort, DefenseGANEncoder], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_every_shape_come_back_with_a_gradient(cls, shape):
    defense, images = build(cls, shape), noise(2, shape)
    with torch.no_grad():
        quiet = defense.purify(images, seeded())
    assert quiet.shape == images.shape and 0 <= quiet.min() <= quiet.max() <= 1
    attacked = images.clone().requires_grad_()
    loud = defense.purify(attacked, seeded())
    assert torch.equal(loud.detach(), quiet)
    (gradient,) = torch.autograd.grad(loud.square().sum(), attacked)
    assert gradient.isfinite().all() and gradient.flatten(1).abs().amax(dim=1).min() > 0


def test_the_encoder_start_has_its_true_gradient():
    """Against the slope of the answers, in double precision."""
    defense, images = build(DefenseGANEncoder, search_steps=8).double(), noise(2).double()
    with torch.no_grad():
        for parameter in defense.parameters():
            parameter.mul_(2)  # far from linear
    weights = torch.randn(images.shape, generator=seeded(4), dtype=torch.float64)
    way = torch.randn(images.shape, generator=seeded(5), dtype=torch.float64)

    def answer(given: Tensor) -> Tensor:
        return (defense.purify(given, seeded()) * weights).sum()

    attacked = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(answer(attacked), attacked)
    with torch.no_grad():
        slope = (answer(images + 1e-5 * way) - answer(images - 1e-5 * way)) / 2e-5
    assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_the_true_route_has_the_gradient_of_the_best_restarts_last_moves():
    defense, images = build().double(), noise(3).double()
    descent = Descent(6)
    starts = torch.randn(3, 4, 8, generator=seeded(6), dtype=torch.float64)
    found = search(defense.decode, images, starts, descent, tail=2)
    again = replay(defense.decode, images, found.tail, descent, 2)
    assert torch.allclose(again, found.images, atol=1e-12)
    attacked = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(replay(defense.decode, attacked, found.tail, descent, 2).sum(), attacked)
    way = torch.randn(images.shape, generator=seeded(5), dtype=torch.float64)
    ends = [
        replay(defense.decode, images + step * way, found.tail, descent, 2).sum().detach() for step in (1e-5, -1e-5)
    ]
    assert float((gradient * way).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_bpda_takes_the_purifier_for_the_identity_or_the_encoders_guess():
    images = noise().requires_grad_()
    assert build().approximate(images, seeded()) is images
    defense = build(DefenseGANEncoder)
    assert torch.equal(defense.approximate(images, seeded()), defense.decode(defense.encode(images)))


def test_the_short_search_is_a_tenth():
    whole, short = (cls(nn.Flatten(), **cls.recipes["paper"]) for cls in (DefenseGAN, DefenseGANShort))
    assert whole.descent.steps * whole.restarts == 2000 == 10 * short.descent.steps * short.restarts
    assert (whole.descent.learning_rate, whole.descent.momentum, whole.start_variance) == (10, 0.7, 1 / 128)


def test_in_a_hurry_it_searches_a_tenth_with_the_same_weights():
    whole = build(search_steps=200, restarts=10, unrolled=10)
    quick = whole.hurried()
    assert (quick.descent.steps, quick.restarts, quick.unrolled) == (100, 2, 10)
    assert (whole.descent.steps, whole.restarts) == (200, 10)
    assert quick.gan is whole.gan and quick.classifier is whole.classifier
    short = build(DefenseGANShort, search_steps=100, restarts=2).hurried()
    assert (short.descent.steps, short.restarts) == (50, 1)
    images = noise()
    as_built = build(search_steps=100, restarts=2, unrolled=10)
    as_built.load_state_dict(whole.state_dict())
    with torch.no_grad():
        assert torch.equal(quick.purify(images, seeded()), as_built.purify(images, seeded()))


def test_the_encoder_start_differentiates_all_of_its_shorter_search():
    quick = build(DefenseGANEncoder, search_steps=9).hurried()
    assert (quick.descent.steps, quick.restarts, quick.unrolled) == (4, 1, 3)
    images = noise()
    with torch.no_grad():
        quiet = quick.purify(images, seeded())
        again = replay(quick.decode, images, quick.before(quick.starts(images, seeded()), None), quick.descent, 3)
    assert torch.allclose(again, quiet, atol=1e-6)


def test_codes_to_start_from_are_those_of_the_search():
    codes = build(latent=128).start_codes(noise(200), seeded())
    assert codes.shape == (200, 128) and float(codes.var()) == pytest.approx(1 / 128, rel=0.03)


def test_senseless_searches_are_refused():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        build(search_steps=0)
    with pytest.raises(ValueError, match="at least 1 start, got 0"):
        build(restarts=0)
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 30, 30\)"):
        build(shape=(1, 30, 30))


# ---------------------------------------------------------------------------------------------- the GAN


def test_the_penalty_takes_the_norm_of_an_images_whole_gradient():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    nn.init.constant_(critic[1].weight, 0.5)  # a gradient of norm 0.5 * sqrt(12), and of 1 along each column of four
    real, made = noise(5, (1, 4, 3)), noise(5, (1, 4, 3)).flip(0)
    found = wgan.gradient_penalty(critic, real, made, torch.rand(5))
    assert float(found.detach()) == pytest.approx((0.5 * 12**0.5 - 1) ** 2)


def stripes(n: int = 32) -> Dataset:
    images = torch.zeros(n, 1, 28, 28)
    images[..., 8:20, 10:18] = 1.0
    split = Split(images, torch.zeros(n, dtype=torch.int64))
    return Dataset("stripes", split, split[:4], split[:0], ("stripe",), "all of it")


LEARNING = {"gan_steps": 40, "critic_steps": 2, "batch_size": 8, "gan_rate": 3e-3, "search_steps": 20}


@pytest.fixture(scope="module")
def learned() -> DefenseGANEncoder:
    defense = build(DefenseGANEncoder, **LEARNING, encoder_epochs=1, encoder_steps=20, encoder_rate=5e-3)
    defense.fit(stripes(), seeded(), Progress())
    return defense


def test_the_gan_learns_what_the_images_look_like_and_the_encoder_where(learned):
    images, fresh = stripes().train.images[:4], build(DefenseGANEncoder, **LEARNING)

    def missed(defense, door):
        return float((door(defense) - images).square().mean())

    with torch.no_grad():
        made = {"code": lambda d: d.decode(torch.randn(4, 8, generator=seeded(7)))}
        made |= {"guess": lambda d: d.approximate(images, seeded()), "end": lambda d: d.purify(images, seeded())}
        before, after = ({name: missed(d, door) for name, door in made.items()} for d in (fresh, learned))
    assert after["code"] < 0.5 * before["code"]
    assert after["guess"] <= after["code"] + 1e-3
    assert after["end"] <= after["guess"] + 1e-6
    assert not learned.training and not any(module.training for module in learned.modules())


def test_only_what_purifies_is_kept(learned):
    assert {name.split(".")[0] for name in learned.state_dict()} == {"gan", "encoder"}
    assert {name.split(".")[0] for name in build().state_dict()} == {"gan"}


def test_the_same_seed_trains_the_same_gan():
    def train(seed: int) -> str:
        defense = build(**{**LEARNING, "gan_steps": 3})
        with training.global_seed(seed):  # the global generator decides nothing
            defense.fit(stripes(), seeded(), Progress())
        return training.weights_hash(defense)

    assert train(1) == train(2)
