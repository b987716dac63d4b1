"""The maps on a defense's page: drawn where records hold them, read in words, left out where they do not fit."""

from __future__ import annotations

import re

import fake_records
import pytest
from sites import TINY, pages, tags_of, text_of

from bench.record import Store
from leaderboard.build import build
from leaderboard.drawing import draw
from leaderboard.figures import Map, Mark
from leaderboard.latent_maps import Neighbours, neighbours

CLEAN, PGD = TINY.attacks[0], TINY.attacks[-1]
HEADING = "Where its codes lie"


@pytest.fixture
def page(tmp_path):
    """Builds the page of a defense whose clean and last cells have the given facts."""

    def built(clean: dict[str, object], attacked: dict[str, object]) -> str:
        store = Store(tmp_path / "records")
        for spec in TINY.attacks:
            facts = {CLEAN.slug: clean, PGD.slug: attacked}.get(spec.slug, {})
            store.save(fake_records.cell(TINY, "identity_vae", spec, facts=facts))
        build([store.root], tmp_path / "site")
        return next(html for name, html in pages(tmp_path / "site").items() if name.endswith("identity_vae.html"))

    return built


def labels() -> list[int]:
    return fake_records.cell(TINY, "identity_vae", PGD).outcomes.label.tolist()


def test_maps_are_drawn_and_read_in_words(page):
    own = labels()
    near = [float(label) for label in own]
    near[0] = (own[0] + 1) % 10
    html = page(fake_records.map_facts(10, attacked=False, near=own), fake_records.map_facts(10, near=near))
    text = text_of(html)
    assert HEADING in text and "Clean images" in text and "PGD, gray box, ε = 0.2" in text
    assert "The nearest clean code is of the same class for all 10 images." in text
    count = own.count(own[0])
    assert f"another class for 1 of 10 images; most often for {own[0]}s, of which 1 in {count} lies" in text
    assert "10 10 % 0.75 0.125" in text and "10 0 % – 0.125" in text
    said = re.findall(r'role="img" aria-label="(Map [^"]+)"', html)
    assert said == [
        "Map of the codes of 10 clean images, by class. The numbers are in the table.",
        "Map of the codes of 10 images, clean and under PGD (gray box) at ε = 0.2, by class. "
        "The numbers are in the table.",
    ]
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    tags_of(html)


def test_records_without_maps_show_none(page):
    numbers = {"silhouette": 0.1, "codes_moved": 0.2, "codes_astray": 0.3}
    text = text_of(page(numbers, numbers))
    assert "Its codes" in text and "distance that a code moves, median" in text and HEADING not in text


@pytest.mark.parametrize(
    "odd",
    [
        {"map.clean.x": (0.5,) * 9},
        {"map.clean.y": 0.5},
        {"map.clean.x": (2.0,) * 10},
        {"map.clean.x": (1e300,) * 10},
        {"map.clean.x": (0.1,) * 11, "map.clean.y": (0.1,) * 11},
        {"map.attacked.x": (0.5,) * 9, "map.attacked.y": (0.5,) * 9},
    ],
    ids=["lengths", "number", "outside", "far outside", "more than images", "attacked"],
)
def test_a_map_that_does_not_fit_is_left_out(page, odd):
    assert HEADING not in text_of(page({}, fake_records.map_facts(10) | odd))


@pytest.mark.parametrize("near", [(1.0,) * 9, 0.5, (-1.0,) * 10, (1e300,) * 10])
def test_neighbours_that_do_not_fit_are_left_out(page, near):
    text = text_of(page({}, fake_records.map_facts(10) | {"map.neighbour": near}))
    assert HEADING in text and "The nearest clean code" not in text and "10 – 0.75" in text


def test_the_pair_of_classes_that_is_most_often_close():
    read = neighbours([3, 3, 3, 8, 8, 1], (8.0, 8.0, 3.0, 3.0, 8.0, 1.0))
    assert read == Neighbours(total=6, astray=3, label=3, other=8, count=2, of_label=3)
    assert neighbours([3, 8], (3.0, 8.0)) == Neighbours(2, 0)
    assert neighbours([3, 8], (3.0,)) is None and neighbours([], ()) is None


def test_each_image_is_a_mark_in_its_classs_colour_and_classes_are_named_where_they_are_dense():
    clean = tuple(
        Mark(x, 0.0, label) for label, x in ((4, -1.0), (4, -0.98), (4, -0.96), (7, 1.0), (7, 0.98), (7, -1.0))
    )
    attacked = tuple(Mark(-mark.x, 0.5, mark.label) for mark in clean)
    svg = draw(Map("m", "A map", clean, attacked))
    assert svg.count("<use ") == 12
    groups = re.findall(r'<g style="fill: var\(--s(\d+)\)">((?:<use [^>]*/>\s*)+)', svg)
    assert [(colour, marks.count("<use ")) for colour, marks in groups] == [("5", 3), ("8", 3), ("5", 3), ("8", 3)]
    named = re.findall(r'<text [^>]* x="([-\d.]+)"[^>]*>(\d)</text>', svg)
    places = {name: float(x) for x, name in named}
    assert places["4"] < 60 and places["7"] > 180, "and not in the middle, where no image is"
    assert draw(Map("m", "A map", clean, attacked)) == svg
    assert "#0" not in svg
