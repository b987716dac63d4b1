"""The curve of a target-image attack and its area, counted by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.distortion_curve import distortion_curve


def test_mixing_with_the_target_has_an_area_of_a_half():
    curve = distortion_curve([(share, 1 - share) for share in (0.1, 0.25, 0.5, 0.9)])
    assert curve.area == pytest.approx(0.5)
    assert curve.points[0] == (0, 1) and curve.points[-1] == (1, 0)


def test_the_area_is_counted_by_trapezoids():
    curve = distortion_curve([(0.5, 0.2)])
    assert curve.points == ((0, 1), (0.5, 0.2), (1, 0)) and curve.area == pytest.approx(0.5 * 0.6 + 0.5 * 0.1)


def test_the_order_of_the_cells_and_what_is_worse_than_less_distortion_do_not_count():
    cells = [(0.5, 0.2), (0.2, 0.6), (0.3, 0.9), (1.3, 0.0), (0.7, 0.2), (0.0, 1.0)]
    curve = distortion_curve(cells)
    assert curve == distortion_curve(cells[::-1]) and curve.points == ((0, 1), (0.2, 0.6), (0.5, 0.2), (1, 0))


def test_who_is_fooled_for_less_has_the_smaller_area():
    areas = [distortion_curve([(cost, 0.1)]).area for cost in (0.05, 0.2, 0.6)]
    assert areas == sorted(areas) and areas[0] < 0.1
    assert distortion_curve([(0.0, 0.0)]).area == 0


@pytest.mark.parametrize("cells", [[], [(float("nan"), 0.5)], [(0.5, float("inf"))], [(-0.1, 0.5)]], ids=str)
def test_numbers_that_make_no_sense_are_refused(cells):
    with pytest.raises(ValueError, match="distortion"):
        distortion_curve(cells)


def test_it_needs_no_torch():
    code = "import bench.distortion_curve, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("cells", "told"),
    [([(0.1, 0.9), (0.8, 0.1)], True), ([(0.0, 0.0)], True), ([(0.54, 0.4), (0.8, 0.2)], False), ([(1.4, 0.0)], False)],
)
def test_an_area_over_a_gap_is_not_told(cells, told):
    assert distortion_curve(cells).is_told == told
