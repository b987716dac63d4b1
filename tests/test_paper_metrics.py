"""What papers count, counted by hand."""

from __future__ import annotations

import pytest

from bench.paper_metrics import METRICS, per_image

LABEL = [0, 1, 2, 3, 4]
BARE = {"label": LABEL, "predicted": [0, 1, 7, 7, 4], "correct": [1, 1, 0, 0, 1]}  # wrong on images 2 and 3
ATTACKED = {"label": LABEL, "predicted": [0, 5, 2, 7, -1], "correct": [1, 0, 1, 0, 0]}  # mends 2, fails on 4


@pytest.fixture
def cells(make_cell):
    return make_cell(ATTACKED, attack="fgsm", track="gray_box"), make_cell(BARE)


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("accuracy", [1, 0, 1, 0, 0]),
        ("agreement", [1, 0, 0, 1, 0]),  # 3 is wrong in the same way; 2 is right, which is another answer
        ("joint", [1, 0, 0, 0, 0]),  # 2 is right, but was wrong without the defense
    ],
)
def test_each_metric_counts_what_it_says(metric, values, cells):
    assert per_image(metric, *cells).tolist() == values
    assert METRICS[metric].startswith("the share of images")


@pytest.mark.parametrize(
    ("metric", "values"),
    [("answer", [1, 0, 1, 0, 0]), ("right", [1, 0, 0, 0, 0]), ("wrong", [0, 1, 0, 0, 1]), ("refused", [0, 0, 1, 1, 0])],
)
def test_of_a_defense_that_may_refuse_the_published_thresholds_decide(metric, values, make_cell):
    """Image 4 failed: no refusal saves it."""
    scores = {"rejection_score": [0.9, 0.5, 1.1, 3, 9]}
    found = make_cell(ATTACKED | scores, attack="fgsm", track="gray_box", thresholds={"published": 1.0, "1%": 0.1})
    assert per_image(metric, found).tolist() == values
    random = found.record.card.model_copy(update={"stochastic": True})
    with pytest.raises(ValueError, match="nothing of the published thresholds"):
        per_image("right", make_cell(ATTACKED, attack="fgsm", track="gray_box", card=random))


def test_only_attacked_images_count_and_the_bare_cell_may_have_more(make_cell):
    first = {name: values[:3] for name, values in ATTACKED.items()} | {"attacked": [True, True, False]}
    attacked = make_cell(first, attack="fgsm", track="gray_box")
    assert per_image("agreement", attacked, make_cell(BARE)).tolist() == [1, 0]


def test_shares_of_draws_enter_accuracy_and_joint(make_cell):
    random = make_cell(ATTACKED | {"correct": [0.5, 0, 1, 0, 0]}, attack="fgsm", track="gray_box")
    assert per_image("accuracy", random).tolist() == [0.5, 0, 1, 0, 0]
    assert per_image("joint", random, make_cell(BARE)).tolist() == [0.5, 0, 0, 0, 0]


def test_two_answers_that_are_none_do_not_agree(make_cell):
    failed = {"label": [0], "predicted": [-1], "correct": [0]}
    assert per_image("agreement", make_cell(failed), make_cell(failed)).tolist() == [0]


@pytest.mark.parametrize("metric", ["agreement", "joint"])
def test_without_the_bare_classifier_on_the_same_images_there_is_no_number(metric, make_cell, cells):
    with pytest.raises(ValueError, match="needs the clean cell of the classifier without a defense"):
        per_image(metric, cells[0])
    with pytest.raises(ValueError, match="the same images"):
        per_image(metric, cells[0], make_cell(BARE | {"label": [9, 1, 2, 3, 4]}))
    with pytest.raises(ValueError, match="the same images"):
        per_image(metric, cells[0], make_cell({name: values[:3] for name, values in BARE.items()}))
