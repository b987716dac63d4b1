"""Whether every board has the cells that each warning reads: evidence is planted in them, and the rule must speak.

A rule whose cells are missing says nothing, and silence must not read as clean. What a board cannot say stands below by
name. The papers' protocols rank nobody and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import verdicts
from bench.boards import PROTOCOLS
from bench.catalog import ATTACKS
from bench.protocol import AttackSpec, Protocol
from bench.record import Card, Cell

BLIND = ("gray_box", "transfer", "query")
KNOWING = ("white_box", "rejection", "latent")


def _wrong(*which: Callable[[AttackSpec, Protocol], bool]) -> Callable[[AttackSpec, Protocol], float]:
    return lambda spec, view: float(not any(one(spec, view) for one in which))


def _is_smallest(spec: AttackSpec, view: Protocol) -> bool:
    cold = [
        one.eps
        for one in view.attacks
        if one.track in KNOWING and one.norm == "linf" and not one.cascade and one.eps is not None
    ]
    return spec.track in KNOWING and spec.eps == min(cold)


PLANTED: dict[str, Callable[[AttackSpec, Protocol], float]] = {
    "blocked_gradient": _wrong(),  # and every gradient is zero
    "black_box_beats_white_box": _wrong(lambda spec, _: spec.track in BLIND),
    "single_step_beats_many": _wrong(lambda spec, _: spec.attack == "fgsm" and spec.track in KNOWING),
    "more_steps_gain": _wrong(lambda spec, _: spec.variant == "twice"),
    "convergence": _wrong(),
    "smaller_ball_beats_larger": _wrong(_is_smallest),
    "wide_ball_survivors": _wrong(),
    "jitter": _wrong(lambda spec, _: spec.attack in ("shift", "rotate")),
    "gives_back_clean_images": _wrong(),
    "noise_is_as_strong": _wrong(
        lambda spec, _: spec.attack == "uniform_noise", lambda spec, _: spec.track in KNOWING and spec.eps is not None
    ),
    "bpda_is_weaker": _wrong(lambda spec, _: spec.route == "autograd"),
    "hardly_random": _wrong(),
    "drift": _wrong(lambda spec, _: spec.variant == "again"),
}
"""What share of its images a cell keeps, of 0 and 1, so that the rule must speak if it has its cells."""
ONLY_RANDOM = {"hardly_random", "drift"}

UNSAID: dict[str, set[str]] = {
    "quick, cheap, deterministic": {"smaller_ball_beats_larger"},  # one radius has cold runs
    "quick, search, random": {"hardly_random"},  # scored on one draw
    "selective": {"single_step_beats_many"},  # no attacker past a detector takes a single step
    # what they add to the boards, which have the controls
    "latent": {
        "single_step_beats_many", "more_steps_gain", "convergence", "wide_ball_survivors", "jitter",
        "noise_is_as_strong", "drift",
    },
}  # fmt: skip
"""The rules that a kind of board has no cells for: there silence means nothing. A new board has all of them."""


MOST = 40  # images of a cell: evidence on so many is evidence on more


@pytest.fixture
def made(make_cell) -> Callable[..., list[Cell]]:
    """The cells of a view of a protocol, all right; those with gradients found a share `blocked` of them of no use."""

    def make(view: Protocol, *, stochastic: bool, blocked: float = 0.0) -> list[Cell]:
        card = Card(title="Made up", paper="https://example.org", year=2020, summary="Nothing.", stochastic=stochastic)
        n, cells = min(view.n_examples, MOST), []
        for spec in view.attacks:
            has_gradient = ATTACKS[spec.attack].cost(**dict(spec.params))[1] > 0 and spec.track in KNOWING
            attacked = np.arange(n) < (spec.n_examples or n)
            near = {norm: (spec.eps or 0.0) if spec.norm in (None, norm) else np.inf for norm in ("linf", "l2")}
            arrays: dict[str, NDArray[Any]] = {
                "correct": np.where(attacked, 1, np.nan), "attacked": attacked, "label": np.arange(n) % 10,
                **{norm: np.where(attacked, distance, np.inf) for norm, distance in near.items()},
            }  # fmt: skip
            facts = {
                name: getattr(spec, name)
                for name in ("track", "attack", "norm", "eps", "route", "source", "variant", "cascade")
            }
            draws = view.scoring_draws if stochastic else 1
            cells.append(
                make_cell(
                    arrays, **facts, params=dict(spec.params), draws=draws, card=card,
                    blocked=blocked if has_gradient else None,
                )
            )  # fmt: skip
        return cells

    return make


def planted(cells: list[Cell], view: Protocol, rule: str) -> list[Cell]:
    """The cells with the evidence that the rule looks for."""
    return [
        replace(cell, outcomes=replace(cell.outcomes, correct=cell.outcomes.correct * share, exhibits=exhibits(rule)))
        for cell, share in ((cell, np.float32(PLANTED[rule](cell.record.spec, view))) for cell in cells)
    ]


def exhibits(rule: str) -> NDArray[np.uint8]:
    """Clean, attacked and purified images, 8 each; given back to the last bit where the rule asks for it."""
    clean, attacked = np.zeros((8, 1, 2, 2), np.uint8), np.full((8, 1, 2, 2), 80, np.uint8)
    return np.stack([clean, attacked, clean if rule == "gives_back_clean_images" else attacked])


def views(whole: Protocol) -> Iterator[tuple[str, bool, Protocol]]:
    """The protocol as each kind of defense meets it that has an effort of its own."""
    yield "cheap", False, whole.effort("cheap", stochastic=False)
    for one in whole.efforts:
        for stochastic in (False, True) if one.budget != "cheap" else (True,):
            yield one.budget, stochastic, whole.effort(one.budget, stochastic=stochastic)


def unsaid(whole: Protocol, budget: str, stochastic: bool) -> set[str]:
    """The rules that have no cells here, as UNSAID has them."""
    kind = f"quick, {budget}, {'random' if stochastic else 'deterministic'}"
    kinds = [name for name in ("selective", "latent") if f"-{name}-" in whole.id]
    kinds += [kind] if whole.id.endswith("-v1-quick") else []
    missing = set().union(*(UNSAID.get(kind, set()) for kind in kinds))
    return missing if stochastic else missing - ONLY_RANDOM


CASES = [
    pytest.param(
        view, budget, stochastic, whole, id=f"{whole.id}-{budget}-{'random' if stochastic else 'deterministic'}"
    )
    for whole in PROTOCOLS.values()
    if whole.dataset == "mnist" or "-search-" in whole.id  # the others differ by their radii and sizes
    for budget, stochastic, view in views(whole)
]


def test_the_boards_of_other_data_sets_have_the_same_cells_at_other_radii():
    def shape(whole: Protocol) -> list[object]:
        return [
            {(spec.track, spec.attack, spec.route, spec.variant, spec.cascade) for spec in view.attacks}
            for *_, view in views(whole)
        ]

    for name, whole in PROTOCOLS.items():
        if "-search-" not in name and whole.dataset == "digits":
            assert shape(whole) == shape(PROTOCOLS[name.replace("digits", "mnist")])
            assert shape(whole) == shape(PROTOCOLS[name.replace("digits", "fmnist")])


@pytest.mark.parametrize(("view", "budget", "stochastic", "whole"), CASES)
def test_every_rule_speaks_where_its_evidence_is_planted(view, budget, stochastic, whole, made):
    ours = made(view, stochastic=stochastic)
    blocked = made(view, stochastic=stochastic, blocked=1.0)
    alone = [
        replace(cell, outcomes=replace(cell.outcomes, correct=cell.outcomes.correct * (cell.record.track == "clean")))
        for cell in made(view, stochastic=False)
    ]
    silent = set()
    for rule in PLANTED:
        cells = planted(blocked if rule == "blocked_gradient" else ours, view, rule)
        if rule not in {verdict.rule for verdict in verdicts.verdicts(cells, alone, view)}:
            silent.add(rule)
    asked = silent if stochastic else silent - ONLY_RANDOM
    assert asked == unsaid(whole, budget, stochastic)
