"""What a defense's page says of its codes: the facts in the records, and nothing where there are none."""

from __future__ import annotations

import re

import fake_records
import pytest
from sites import HOSTILE, TINY, pages, tags_of, text_of

from bench.record import Store
from leaderboard.build import build
from leaderboard.codes import share

IMAGES, RIGHT = (6.0, 3.0, 1.0), (6.0, 1.5, 0.0)


@pytest.fixture
def page(tmp_path):
    """Builds the page of a defense whose cells have the given facts."""

    def built(**facts: object) -> str:
        store = Store(tmp_path / "records")
        for defense, given in (("identity", {}), ("lq_vae", facts)):
            for spec in TINY.attacks:
                store.save(fake_records.cell(TINY, defense, spec, facts=given))
        build([store.root], tmp_path / "site")
        return next(html for name, html in pages(tmp_path / "site").items() if name.endswith("lq_vae.html"))

    return built


def test_numbers_become_columns_and_the_flips_a_histogram(page):
    html = page(silhouette=0.123456, bit_flips=0.05, bit_flips_images=IMAGES, bit_flips_correct=RIGHT)
    text = text_of(html)
    assert "Its codes" in text and "silhouette of the codes by class" in text and "0.123" in text
    said = "Images by flipped bits; 0–2 %: 6, 100.0 % right; 2–4 %: 3, 50.0 % right; 4 % or more: 1, ≤ 79.3 % right"
    assert f'role="img" aria-label="{said}"' in html.replace("\u202f", " ")
    assert "0–2 % 2–4 % 4 % or more" in text and "3 50&#8239;% 13–87" in text  # the same as a table, with intervals
    bars = [(float(bar["y"]), float(bar["height"])) for tag, bar in tags_of(html) if bar.get("class") == "value"][:3]
    assert [height / bars[0][1] for _, height in bars] == pytest.approx([1, 1 / 2, 1 / 6], abs=0.01)
    assert len({round(y + height, 1) for y, height in bars}) == 1  # all stand on one line
    tags_of(html)


def test_shares_of_images_have_an_interval_and_other_numbers_have_none(page):
    html = page(bit_flips_under_6_percent=0.9, bit_flips=0.05, bit_flips_images=IMAGES, bit_flips_correct=RIGHT)
    (row,) = re.findall(r"<tr><td>clean</td>.*?</tr>", html, flags=re.DOTALL)[:1]
    assert "10 0.05 90.0\u202f% 59.6–98.2" in text_of(row)  # images, mean, share, interval
    assert share(0.905, 200).n == 200 and share(0.9051, 200) is None and share(0.5, 0) is None


def test_without_facts_nothing_is_said(page):
    assert "Its codes" not in page()


def test_a_name_from_a_record_is_text(page):
    html = page(**{HOSTILE: 1.0})
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html


def test_histograms_that_do_not_fit_are_left_out(page):
    assert "Bits that an attack flips" not in page(bit_flips=0.1, bit_flips_images=IMAGES, bit_flips_correct=(1.0,))


def test_the_loss_of_each_epoch_is_drawn(tmp_path):
    store = Store(tmp_path / "records")
    for spec in TINY.attacks:
        losses = {"training it on digits": (0.9, 0.5, 0.4)} if spec.attack == "none" else {}
        store.save(fake_records.cell(TINY, "identity", spec, training=losses))
    build([store.root], tmp_path / "site")
    html = next(html for name, html in pages(tmp_path / "site").items() if name.endswith("identity.html"))
    assert "Training loss of each epoch: training it on digits. The numbers are in the record" in html
    tags_of(html)
