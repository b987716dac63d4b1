"""The drafts for defenses whose purification is a search: who attacks them how, with how many draws, at what cost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import attack_cost, catalog
from bench.boards import PROTOCOLS
from bench.protocol import Protocol


def views(dataset: str) -> Iterator[tuple[str, bool, Protocol]]:
    """The draft as each kind of defense meets it."""
    chosen = PROTOCOLS[f"{dataset}-search-v1-draft"]
    for budget in ("cheap", "medium", "search"):
        for stochastic in (False, True):
            yield budget, stochastic, chosen.effort(budget, stochastic=stochastic)


datasets = pytest.mark.parametrize("dataset", catalog.DATASETS)


@datasets
def test_the_drafts_ask_every_kind_of_defense_in_a_hurry_and_among_codes(dataset):
    for budget, stochastic, view in views(dataset):
        for name in ("hurried_apgd", "searched_ball", "latent_ball"):
            mine = [spec for spec in view.attacks if spec.attack == name and spec.variant in ("", "warm")]
            assert {spec.eps for spec in mine} == set(view.linf_radii)
            assert {spec.route for spec in mine} == {"autograd", "bpda"}
            assert all(dict(spec.params)["last_steps"] >= (5 if budget == "search" else 10) for spec in mine)
        assert not stochastic or view.scoring_draws >= (4 if budget == "search" else 10)
        warm = {(spec.eps, spec.route) for spec in view.attacks if dict(spec.params).get("start") == "gray_box"}
        assert warm == {(spec.eps, spec.route) for spec in view.attacks if spec.attack == "hurried_apgd"} - {
            (0.5, "autograd"), (0.5, "bpda"),
        }, "from a blind start everywhere but in the wide ball"  # fmt: skip
    without = PROTOCOLS[f"{dataset}-search-v1-draft"].effort("medium", stochastic=True, doors=())
    assert {spec.track for spec in without.attacks} == {"clean", "gray_box", "transfer", "white_box", "query"}


@datasets
def test_no_random_defense_meets_a_draft_with_fewer_than_four_draws_a_step(dataset):
    """A random defense that is no search may cost as much as one: efforts go by cost alone."""
    for _, _, view in views(dataset):
        seeing = [spec for spec in view.attacks if spec.knows_defense]
        assert seeing and all(spec.eot(stochastic=True) >= 4 for spec in seeing)


@datasets
def test_the_drafts_show_what_is_made_along_the_gradient_of_an_encoder(dataset):
    for _, _, view in views(dataset):
        made = {spec.eps for spec in view.attacks if spec.source == "defense_gan_encoder"}
        assert made == set(view.headline_radii) != set()


STEP_SECONDS, WHOLE, QUICK, REPLAYED = 0.002, 200, 100, 40
"""A made-up table for Defense-GAN on a GPU: seconds of a decoder there and back, those that its kernels take to start,
whatever the batch; and in such steps a whole search, a hurried one, and the gradient of the last ten moves."""


@datasets
def test_by_a_made_up_table_a_gpu_runs_the_draft_on_a_search_in_an_hour(dataset):
    view = PROTOCOLS[f"{dataset}-search-v1-draft"].effort("search", stochastic=True, doors=("decode", "start_codes"))
    steps = 0
    for spec in view.attacks:
        rows, undrawn = attack_cost.each_image(spec), catalog.ATTACKS[spec.attack].undrawn(**dict(spec.params))
        quick = attack_cost.hurried(spec)
        if spec.knows_defense:
            whole = [one - two - three for one, two, three in zip(rows, quick, undrawn, strict=True)]
            steps += quick[0] * QUICK + whole[0] * WHOLE
            steps += (quick[1] + whole[1]) * REPLAYED * (spec.route == "autograd")
        steps += view.looks(stochastic=True) * WHOLE
    assert 0.3 < steps * STEP_SECONDS / 3600 < 1.5
    together = max(dict(spec.params).get("restarts", 1) for spec in view.attacks) * view.n_examples * 4 * 10
    assert together <= 4096, "in one batch"
