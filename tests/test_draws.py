"""Noise that belongs to an image: held against SplitMix64 in unbounded integers, and against what chance would do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from bench import draws, seeds
from bench.draws import ImageDraws

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]


def finaliser(z: int) -> int:
    """Steele, Lea and Flood (2014), in plain integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference(seed: int, draw: int, size: int) -> list[float]:
    """What `uniform` promises: the top 24 bits of the finaliser at stream + counter, the draw in the counter's top."""
    stream = finaliser((seed & MASK) ^ 0x5851F42D4C957F2D)
    counters = (j + (draw << 40) for j in range(size))
    return [(finaliser((stream + counter * GOLDEN) & MASK) >> 40) / 2**24 for counter in counters]


def many(n: int) -> ImageDraws:
    return ImageDraws.derived(torch.arange(n), 0, "a test")


def test_the_reference_is_splitmix64():
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + GOLDEN) & MASK
        outputs.append(finaliser(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_agrees_with_plain_integers_bit_for_bit():
    image_draws = ImageDraws(torch.tensor(SEEDS))
    for draw in range(3):
        expected = torch.tensor([reference(seed, draw, 6) for seed in SEEDS]).view(-1, 1, 2, 3)
        assert torch.equal(image_draws.uniform(1, 2, 3), expected)


def test_a_draw_number_skips_the_draws_before_it():
    expected = torch.tensor([reference(seed, 2**20, 5) for seed in SEEDS])
    assert torch.equal(ImageDraws(torch.tensor(SEEDS), draw=2**20).uniform(5), expected)


def test_normal_is_box_and_muller_on_two_draws():
    normal = ImageDraws(torch.tensor(SEEDS)).normal(4)
    for row, seed in zip(normal, SEEDS, strict=True):
        first, second = reference(seed, 0, 4), reference(seed, 1, 4)
        expected = [
            math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v) for u, v in zip(first, second, strict=True)
        ]
        assert row.tolist() == pytest.approx(expected, abs=1e-5)


def test_an_image_draws_the_same_alone_in_any_batch_and_in_any_order():
    whole = many(16).uniform(3, 4)
    order = torch.tensor([5, 0, 15])
    assert torch.equal(ImageDraws.derived(order, 0, "a test").uniform(3, 4), whole[order])
    assert torch.equal(ImageDraws.derived(order[:1], 0, "a test").uniform(3, 4), whole[[5]])


@pytest.mark.parametrize("keep", [torch.tensor([3, 1]), torch.tensor([False, True, False, True, False])])
def test_rows_go_on_where_the_whole_batch_stood(keep):
    batch = many(5)
    batch.uniform(2)
    subset = batch.rows(keep)
    assert torch.equal(subset.normal(7), batch.normal(7)[keep])
    assert torch.equal(subset.uniform(7), batch.uniform(7)[keep])


def test_taking_rows_leaves_the_batch_where_it_is():
    batch, untouched = many(5), many(5)
    batch.rows(torch.tensor([2])).uniform(9)
    assert torch.equal(batch.uniform(9), untouched.uniform(9))


def test_every_draw_image_and_purpose_has_other_numbers():
    batch = many(4)
    first, second = batch.uniform(100), batch.uniform(100)
    other_purpose = ImageDraws.derived(torch.arange(4), 0, "another test").uniform(100)
    other_seed = ImageDraws.derived(torch.arange(4), 1, "a test").uniform(100)
    rows = torch.cat([first, second, other_purpose, other_seed]).numpy()
    equal_values = [np.mean(a == b) for i, a in enumerate(rows) for b in rows[:i]]
    assert max(equal_values) < 0.02  # 24 bits: even one equal value in 100 is rare


def test_uniform_is_uniform_on_0_1_without_1():
    sample = many(1000).uniform(200).flatten().numpy().astype(np.float64)
    assert sample.dtype == np.float64
    assert sample.min() >= 0
    assert sample.max() < 1
    assert stats.kstest(sample, "uniform").pvalue > 0.001
    assert sample.mean() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / sample.size))
    assert sample.var() == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / sample.size))


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-24])
def test_the_most_extreme_uniform_draws_make_finite_normal_ones(extreme, monkeypatch):
    monkeypatch.setattr(ImageDraws, "uniform", lambda self, *shape: torch.full((1, *shape), extreme))
    assert many(1).normal(1).isfinite().all()


def test_normal_is_standard_normal():
    sample = many(1000).normal(200).flatten().numpy().astype(np.float64)
    assert np.isfinite(sample).all()
    assert stats.kstest(sample, "norm").pvalue > 0.001
    assert sample.mean() == pytest.approx(0, abs=4 / math.sqrt(sample.size))
    assert sample.std() == pytest.approx(1, abs=4 / math.sqrt(2 * sample.size))
    assert stats.kurtosis(sample) == pytest.approx(0, abs=4 * math.sqrt(24 / sample.size))


def test_neither_images_nor_draws_nor_neighbouring_pixels_are_correlated():
    batch = many(40)
    first, second = batch.uniform(10_000).numpy(), batch.uniform(10_000).numpy()
    limit = 5 / math.sqrt(10_000)
    between_images = np.corrcoef(first)[np.triu_indices(40, k=1)]
    assert np.abs(between_images).max() < limit
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(first, second, strict=True)) < limit
    assert max(abs(np.corrcoef(row[1:], row[:-1])[0, 1]) for row in first) < limit


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(3, dtype=torch.int32), torch.zeros(3, 1).long()])
def test_other_seeds_than_a_row_of_int64_are_refused(bad):
    with pytest.raises(TypeError, match=r"int64 \(N,\), got"):
        ImageDraws(bad)


def test_a_generator_depends_on_all_its_parts_and_on_nothing_else():
    first = draws.generator("cpu", 0, "score", "mnist", 64)
    torch.manual_seed(1)  # the global state is not read
    assert torch.equal(
        torch.rand(5, generator=first), torch.rand(5, generator=draws.generator("cpu", 0, "score", "mnist", 64))
    )
    others = [
        (1, "score", "mnist", 64),
        (0, "train", "mnist", 64),
        (0, "score", "fmnist", 64),
        (0, "score", "mnist", 0),
    ]
    starts = {draws.generator("cpu", *parts).initial_seed() for parts in others}
    assert len(starts | {first.initial_seed()}) == 5


def test_derived_seeds_fit_torch_and_tell_nested_parts_apart():
    found = [seeds.derive("a", "b"), seeds.derive("ab"), seeds.derive(("a", "b")), seeds.derive("b", "a")]
    assert len(set(found)) == 4
    assert all(0 <= seed < 2**63 for seed in found)


def test_a_seed_is_pinned_since_published_numbers_hang_on_it():
    # printf '[0,"examples","mnist"]' | sha256sum
    assert seeds.digest(0, "examples", "mnist").startswith("f1feb1b49fd05070b3e117181efcb8ad")
    assert seeds.derive(0, "examples", "mnist") == 0xF1FEB1B49FD05070 // 2
