"""Maps of codes and how far codes move: known answers, the same map again, and codes that cannot be laid out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from bench import latent_map, protocols
from bench.protocol import AttackSpec, Protocol

LABELS = np.arange(40) % 4


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Codes (40, 4) that are one for the class, with a little noise of their own."""
    return np.eye(4)[labels] + 0.01 * np.random.default_rng(0).normal(size=(40, 4))


def places(facts, part: str) -> np.ndarray:
    return np.column_stack([facts[f"map.{part}.x"], facts[f"map.{part}.y"]])


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - others[None], axis=2).argmin(axis=1)


def test_codes_that_stay_have_moved_by_nothing_and_shifted_ones_by_the_shift():
    clean = np.array([[1.0, 0], [-1, 0], [9, 1], [9, -1]])  # two classes, a pair each, both 2 apart
    labels = np.array([0, 0, 1, 1])
    assert latent_map.moved(clean, clean, labels) == 0
    assert latent_map.moved(clean, clean + np.array([0, 3.0]), labels) == pytest.approx(1.5)
    one_far = clean + np.array([[0, 100.0], [0, 0], [0, 1], [0, 1]])
    assert latent_map.moved(clean, one_far, labels) == pytest.approx(0.5), "the median"


def test_the_unit_is_the_root_mean_square_over_all_pairs_of_a_class():
    rng = np.random.default_rng(1)
    clean, labels = rng.normal(size=(12, 3)), np.array([0] * 7 + [1] * 5)
    squares = [
        ((clean[i] - clean[j]) ** 2).sum() for i in range(12) for j in range(i) if labels[i] == labels[j]
    ]  # fmt: skip
    shifted = clean + np.array([2.0, 0, 0])
    assert latent_map.moved(clean, shifted, labels) == pytest.approx(2 / math.sqrt(np.mean(squares)))


@pytest.mark.parametrize("labels", [np.arange(3), np.zeros(3, int)])
def test_without_two_different_codes_of_a_class_nothing_is_told(labels):
    assert math.isnan(latent_map.moved(np.ones((3, 2)), np.zeros((3, 2)), labels))


def test_the_nearest_clean_code_is_another_images():
    clean, labels = np.array([[0.0], [1], [10], [12]]), np.array([3, 4, 5, 6])
    assert latent_map.neighbours(clean, clean, labels).tolist() == [4, 3, 6, 5]
    assert latent_map.neighbours(clean, clean[[3, 2, 1, 0]], labels).tolist() == [6, 5, 4, 3]


def test_a_large_cell_is_searched_among_its_first_images(monkeypatch):
    monkeypatch.setattr(latent_map, "MOST", 3)
    clean, labels = np.array([[0.0], [5], [9], [0.1]]), np.array([3, 4, 5, 6])
    assert latent_map.neighbours(clean, clean, labels).tolist() == [4, 5, 4], "and not next to the last"


def test_codes_by_class_give_one_group_a_class_and_attacked_ones_lie_where_they_went():
    clean = one_hot(LABELS)
    attacked = clean[(np.arange(40) + 1) % 40] + 0.001  # each becomes the next class
    found = latent_map.drawn(clean, attacked, (LABELS + 1) % 4)
    here, there = places(found, "clean"), places(found, "attacked")
    assert (LABELS[nearest(there, here)] == (LABELS + 1) % 4).all()
    middles = np.stack([here[label == LABELS].mean(axis=0) for label in range(4)])
    radius = max(np.linalg.norm(here[label == LABELS] - middles[label], axis=1).max() for label in range(4))
    apart = min(np.linalg.norm(middles[i] - middles[j]) for i in range(4) for j in range(i))
    assert apart > 3 * radius
    assert found["map.neighbour"] == tuple(((LABELS + 1) % 4).astype(float))
    both = np.concatenate([here, there])
    assert np.abs(both).max() == 1 and (both == both.round(3)).all()


def test_the_same_codes_give_the_same_map_and_draw_no_global_number():
    clean = one_hot(LABELS)
    np.random.seed(3)
    first = latent_map.drawn(clean, clean + 0.3, LABELS)
    after = np.random.random()
    np.random.seed(3)
    assert np.random.random() == after
    assert latent_map.drawn(clean.copy(), clean + 0.3, LABELS) == first


def test_unattacked_images_are_laid_out_alone_and_large_cells_by_their_first_images(monkeypatch):
    monkeypatch.setattr(latent_map, "MOST", 24)
    clean = one_hot(LABELS)
    found = latent_map.drawn(clean, clean, LABELS)
    assert set(found) == {"map.clean.x", "map.clean.y", "map.neighbour"}
    assert {len(values) for values in found.values()} == {24}
    again = latent_map.drawn(clean[:24], clean[:24], LABELS[:24])
    assert found == again


@pytest.mark.parametrize(
    "codes",
    [
        one_hot(LABELS)[: latent_map.LEAST - 1],
        np.ones((40, 5)),
        np.full((40, 2), np.nan),
        np.where(np.eye(40) > 0, np.inf, 0.0),
    ],
    ids=["few", "all one", "none", "infinite"],
)
def test_codes_that_cannot_be_laid_out_have_no_map(codes):
    assert latent_map.drawn(codes, codes.copy(), np.zeros(len(codes), int)) == {}


@pytest.mark.parametrize(
    "codes",
    [
        np.arange(40.0)[:, None],
        np.repeat([[0.0, 0, 1], [5, 5, 5]], 20, axis=0),
        3e38 * one_hot(LABELS),
        1e-30 * one_hot(LABELS),
    ],
    ids=["one dimension", "two codes", "huge", "tiny"],
)
def test_odd_codes_have_a_map_of_finite_places(codes):
    found = latent_map.drawn(codes, codes[::-1], LABELS)
    assert len(found) == 5 and np.isfinite(places(found, "attacked")).all()


def test_few_cells_of_a_protocol_have_a_map_and_all_at_one_radius():
    assert latent_map.mapped(protocols.get("mnist-v1")) == {
        "clean.none", "gray_box.pgd.linf-0.3", "white_box.apgd_ce.autograd.linf-0.3.cold",
    }  # fmt: skip
    for protocol in protocols.known().values():
        for stochastic in (False, True):
            view = protocol.effort("cheap", stochastic=stochastic)
            chosen = [spec for spec in view.attacks if spec.slug in latent_map.mapped(view)]
            assert bool(view.headline_radii) <= len(chosen) <= 1 + len(latent_map.TRACKS)
            assert not any(spec.cascade for spec in chosen)
            assert {spec.eps for spec in chosen} <= {None, *view.headline_radii[-1:]}


def test_a_protocol_that_quotes_no_radius_draws_no_map():
    specs = (AttackSpec("none", "clean"), AttackSpec("fgsm", "gray_box", "linf", 0.1))
    quoting = Protocol("tiny", "digits", 32, specs, (0.1,), headline_radii=(0.1,))
    assert latent_map.mapped(quoting) == {"clean.none", "gray_box.fgsm.linf-0.1"}
    assert latent_map.mapped(dataclasses.replace(quoting, headline_radii=())) == frozenset()
