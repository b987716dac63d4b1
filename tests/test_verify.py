"""What `submission verify` holds a record to: its facts, but not where a map of its codes put the images."""

from __future__ import annotations

import pytest

from bench.submissions.verify import Comparison

FACTS = {
    "silhouette": 0.5, "codes_moved": 0.8, "codes_astray": 0.25, "map.clean.x": (0.1, -0.9, 1.0, 0.0),
    "map.neighbour": (3.0, 3.0, 7.0, 1.0),
}  # fmt: skip


def problem(make_cell, again, **changes) -> str:
    return Comparison(make_cell(facts=FACTS), make_cell(facts={**FACTS, **again}, **changes)).problem


def test_another_map_of_the_same_codes_is_no_difference(make_cell):
    assert problem(make_cell, {"map.clean.x": (0.7, 0.7, -1.0, 0.2)}) == ""
    assert Comparison(make_cell(facts={**FACTS, "map.clean.y": (1.0,)}), make_cell(facts=FACTS)).problem == ""


@pytest.mark.parametrize("name", ["silhouette", "codes_moved", "codes_astray"])
def test_the_numbers_of_the_codes_are_compared(make_cell, name):
    assert "facts differ, on the same machine" in problem(make_cell, {name: 0.4})
    elsewhere = make_cell().record.run.model_copy(update={"device": "other"})
    assert "facts differ" in problem(make_cell, {name: 0.4}, run=elsewhere)
    assert problem(make_cell, {name: FACTS[name] + 0.001}, run=elsewhere) == "", "a hundredth is borne there"


def test_what_codes_lie_beside_is_compared_and_two_equally_near_are_borne_elsewhere(make_cell):
    assert "facts differ" in problem(make_cell, {"map.neighbour": (3.0, 3.0, 7.0, 2.0)})
    elsewhere = make_cell().record.run.model_copy(update={"device": "other"})
    many = tuple(float(k % 10) for k in range(100))
    for changed, borne in ((4, True), (8, False)):
        new = (*((k + 1) % 10 for k in many[:changed]), *many[changed:])
        found = Comparison(
            make_cell(facts={**FACTS, "map.neighbour": many}),
            make_cell(facts={**FACTS, "map.neighbour": new}, run=elsewhere),
        ).problem
        assert (found == "") == borne


def test_a_record_from_before_codes_were_followed_is_confirmed(make_cell):
    old = make_cell(facts={"silhouette": 0.5})
    assert Comparison(old, make_cell(facts=FACTS)).problem == ""
    assert "facts differ" in Comparison(old, make_cell(facts={**FACTS, "silhouette": 0.4})).problem
    assert "facts differ" in Comparison(make_cell(facts=FACTS), old).problem, "what it says must be found again"
