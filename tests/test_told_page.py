"""What attacks without a small ball tell, on a defense's page: a table by attack, pooled over strengths, a curve."""

from __future__ import annotations

import re

import fake_records
import numpy as np
import pytest
from sites import pages, tags_of, text_of

from bench import protocols
from bench.record import TOLD, Store
from leaderboard.build import build

CHOSEN = protocols.get("digits-latent-v1-draft+limit10")
LATENT = [spec for spec in CHOSEN.attacks if spec.attack in ("none", "overpowered", "target_code", "latent_distance")]
RIGHT = {"rho-1": 9, "rho-2.5": 8, "rho-3": 7, "rho-3.5": 6}  # of ten images, the first ones


def facts(**told: float) -> dict[str, float]:
    return {f"{TOLD}{name}": value for name, value in told.items()}


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("told")
    store = Store(folder / "records")
    for spec in LATENT:
        arrays = {"correct": (np.arange(10) < RIGHT.get(spec.variant, 10)).astype(np.float32)}
        told = {}
        if spec.attack == "overpowered":
            told = facts(in_bound=1.0, fooled=0.9, class_changed_by_both=0.25)
        elif spec.attack == "target_code":
            share = 1 / (1 + float(dict(spec.params)["constant"]))
            told = facts(relative_distortion=share, relative_reconstruction_distance=1 - share)
        elif spec.attack == "latent_distance":
            told = facts(relative_code_distance=0.5)
        store.save(fake_records.cell(CHOSEN, "identity_vae", spec, facts={"silhouette": 0.25, **told}, arrays=arrays))
    build([store.root], folder / "site")
    return next(html for name, html in pages(folder / "site").items() if name.endswith("identity_vae.html"))


def section(html: str, attack: str) -> str:
    (found,) = re.findall(rf'id="[^"]*-told-{attack}".*?</table>', html, flags=re.DOTALL)
    return text_of(found)


def test_the_overpowered_attack_is_counted_over_its_strengths(html):
    text = section(html, "overpowered")
    assert "fool the bare classifier" in text and "another class to both" in text and "may be right" in text
    assert "ρ = 1 10 90" in text and "pooled 10 75" in text and "right under every one 10 60" in text


def test_images_far_away_are_shown_at_up_to_three_strengths(html):
    """No ball holds them, so the pictures of the worst case within each radius leave them out."""
    (told,) = re.findall(r'id="[^"]*-told-overpowered".*?(?=<h3|$)', html, flags=re.DOTALL)
    strips = re.findall(r'<details class="showcase">.*?</details>', told, flags=re.DOTALL)
    names = [text_of(strip).split("the first images")[0].strip() for strip in strips]
    assert names[0] == "ρ = 1" and len(set(names)) == 3 and all(name.startswith("ρ = ") for name in names)
    assert all(strip.count("<img") == 3 * strip.count("<figure") > 0 for strip in strips)


def test_accuracy_falls_with_the_distance_that_counts(html):
    assert 'aria-label="Accuracy where an image counts as attacked only within so much L2' in html


def test_a_sweep_of_prices_becomes_a_curve_with_its_area(html):
    text = section(html, "target_code")
    assert "price 1/64" in text and "pooled" not in text
    assert 'aria-label="What is left of the distance to the target image, by the size of the change' in html
    assert "reconstruction, area 0.50" in text_of(html)  # it goes along the line from (0, 1) to (1, 0)
    tags_of(html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_inside_a_ball_no_image_changes_its_class(html):
    text = section(html, "latent_distance")
    assert "may be right" not in text and "one step" in text and "pooled" not in text


def test_what_attacks_tell_is_no_fact_of_the_codes(html):
    (codes,) = re.findall(r'id="[^"]*-codes".*?</table>', html, flags=re.DOTALL)
    assert "silhouette" in text_of(codes) and "relative" not in text_of(codes) and "fool" not in text_of(codes)
