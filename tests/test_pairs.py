"""Training pairs: attacked images with their clean ones, the same for whoever asks, the dear ones made once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import attacks, training
from bench.progress import Progress
from defenses.defense_vae import DefenseVAE, attack_jobs
from defenses.pairs import Job, attacked_pairs

JOBS = (Job("fgsm", {"eps": 0.2}, 0.1), Job("cw_l2", {"searches": 1, "steps": 5, "learning_rate": 0.5}, 0.05))


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False).eval()


@pytest.fixture
def net():
    return linear()


def test_each_attacked_image_knows_the_one_it_was_made_of(net, digits):
    pairs = attacked_pairs(net, digits, JOBS, Progress())
    n = round(0.1 * len(digits.train))
    assert len(pairs.attacked) == len(pairs.rows) == n + round(0.05 * len(digits.train))
    assert len(pairs.rows[:n].unique()) == n, "no image twice"
    moved = (pairs.attacked - digits.train.images[pairs.rows])[:n].abs().flatten(1).amax(dim=1)
    assert torch.allclose(moved, torch.tensor(0.2), atol=1e-6)
    assert pairs.attacked.min() >= 0 and pairs.attacked.max() <= 1


def test_the_same_job_gives_the_same_pairs_whoever_asks(net, digits):
    first = attacked_pairs(net, digits, JOBS, Progress())
    torch.manual_seed(1)
    alone = attacked_pairs(net, digits, JOBS[1:], Progress())
    assert torch.equal(first.attacked[-len(alone.rows) :], alone.attacked)
    assert torch.equal(first.rows[-len(alone.rows) :], alone.rows)


def test_dear_images_are_made_once_and_not_for_other_labels_or_nets(net, digits, monkeypatch):
    made, real = [], attacks.get

    def counting(name):
        made.append(name)
        return real(name)

    monkeypatch.setattr(attacks, "get", counting)
    attacked_pairs(net, digits, JOBS[1:], Progress())
    once = len(made)
    attacked_pairs(net, digits, JOBS[1:], Progress())
    assert len(made) == once > 0
    attacked_pairs(net, digits, JOBS[1:], Progress(), labels="predicted")
    assert len(made) == 2 * once
    attacked_pairs(linear(seed=1), digits, JOBS[1:], Progress())
    assert len(made) == 3 * once


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"cw_l2 needs a share of the images in \(0, 1\], got 1.5"):
        attack_jobs(0.5, 1.5)


def test_defense_vae_learns_from_every_kind_of_pair(net, digits):
    jobs = attack_jobs(0.02, 0.01)
    assert [job.attack for job in jobs] == ["fgsm", "r_fgsm", "cw_l2"] * 4
    assert [job.params["learning_rate"] for job in jobs[2::3]] == pytest.approx([6, 8, 10, 12])
    defense = DefenseVAE(net, width=8, sign_share=0.02, cw_share=0.01, epochs=1, batch_size=64)
    before = training.weights_hash(defense)
    defense.fit(digits, torch.Generator().manual_seed(0), Progress())
    assert training.weights_hash(defense) != before
