"""Statistics, held against numbers counted by hand, against scipy, and against simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bench import statistics

# Four images. Image 0 always holds; 1 falls to the first attack at .1; 2 only to a weak attack that left a larger
# ball; 3 is wrong from the start, although an attack makes it right.
CORRECT = {"clean": [1, 1, 1, 0], "pgd .1": [1, 0, 1, 1], "pgd .3": [1, 1, 0, 1]}
LINF = {"clean": [0, 0, 0, 0], "pgd .1": [0.1] * 4, "pgd .3": [0.3, 0.3, 0.2, 0.3]}


@pytest.fixture
def cells(make_cell):
    def attacked(name, eps):
        arrays = {"correct": CORRECT[name], "linf": LINF[name], "l2": [20 * d for d in LINF[name]]}
        return make_cell(arrays, track="gray_box", attack="pgd", norm="linf", eps=eps)

    return [make_cell({"correct": CORRECT["clean"]}), attacked("pgd .1", 0.1), attacked("pgd .3", 0.3)]


# ---------------------------------------------------------------------------------------------- worst case


def test_the_worst_image_inside_the_ball_decides(cells):
    assert statistics.robustness(cells, "linf", [0.05, 0.1, 0.2, 0.3]).tolist() == [
        [1, 1, 1, 0],  # clean
        [1, 1, 1, 0],  # nothing lies within .05
        [1, 0, 1, 0],  # image 1 falls
        [1, 0, 0, 0],  # image 2 falls to the image made for .3, which lies at .2
        [1, 0, 0, 0],
    ]


def test_no_attacked_image_beats_the_clean_one(cells):
    curve = statistics.robustness(cells, "linf", [0.1, 0.2, 0.3])
    assert (curve[:, 3] == 0).all()


def test_an_image_outside_its_ball_does_not_count_whatever_its_cell_claims(make_cell, cells):
    outside = make_cell(
        {"correct": [0] * 4, "linf": [0.1001] * 4}, attack="pgd", norm="linf", eps=0.1, track="gray_box"
    )
    with_it = statistics.robustness([cells[0], outside], "linf", [0.1, 0.2])
    assert with_it[1].tolist() == [1, 1, 1, 0]
    assert with_it[2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("excess", "counts"), [(0.9e-6, True), (3e-6, False)])
def test_rounding_is_forgiven_and_no_more(excess, counts, make_cell):
    attacked = make_cell({"correct": [0], "linf": [0.1 + excess]}, attack="pgd", norm="linf", eps=0.1, track="gray_box")
    curve = statistics.robustness([make_cell({"correct": [1]}), attacked], "linf", [0.1])
    assert curve[1, 0] == (0 if counts else 1)


def test_linf_and_l2_are_separate_balls(make_cell):
    """An image within Linf .1 lies at L2 2.8 here: it breaks the one claim and says nothing of the other."""
    attacked = make_cell(
        {"correct": [0], "linf": [0.1], "l2": [2.8]}, attack="pgd", norm="linf", eps=0.1, track="gray_box"
    )
    both = [make_cell({"correct": [1]}), attacked]
    assert statistics.robustness(both, "linf", [0.1])[1, 0] == 0
    assert statistics.robustness(both, "l2", [0.5, 2.0]).tolist() == [[1], [1], [1]]
    assert statistics.robustness(both, "l2", [2.8])[1, 0] == 0


def test_shares_of_random_defenses_are_kept_as_shares(make_cell):
    attacked = make_cell(
        {"correct": [0.3, 0.9], "linf": [0.1, 0.1]}, attack="pgd", norm="linf", eps=0.1, track="gray_box"
    )
    curve = statistics.robustness([make_cell({"correct": [0.7, 0.8]}), attacked], "linf", [0.1])
    assert curve == pytest.approx(np.array([[0.7, 0.8], [0.3, 0.8]]))


def test_without_the_clean_cell_there_is_no_robustness(cells):
    with pytest.raises(ValueError, match="robustness needs the clean cell"):
        statistics.robustness(cells[1:], "linf", [0.1])


# ---------------------------------------------------------------------------------------------- over K draws


@pytest.mark.parametrize("draws", [2, 3, 5, 6, 20, 100, 1000])
def test_any_and_majority_of_k_count_right_draws(draws):
    right = np.arange(draws + 1)
    shares = (right.astype(np.float32) / np.float32(draws)).astype(np.float64)  # as records keep them
    found = statistics.over_draws(shares, draws)
    assert found.every.tolist() == [float(count == draws) for count in right]
    assert found.most.tolist() == [float(2 * count > draws) for count in right]


def test_over_draws_any_is_the_hardest_and_of_one_draw_all_are_the_same():
    shares = np.random.default_rng(13).integers(0, 11, (3, 40)) / 10
    found = statistics.over_draws(shares, 10)
    assert found.every.shape == shares.shape
    assert (found.every <= found.most).all() and (found.every <= shares).all()
    single = statistics.over_draws(np.array([0.0, 1.0]), 1)
    assert single.every.tolist() == single.most.tolist() == [0, 1]
    with pytest.raises(ValueError, match="at least one draw, got draws = 0"):
        statistics.over_draws(shares, 0)


# ---------------------------------------------------------------------------------------------- mean robust radius


def test_the_mean_robust_radius_is_a_trapezoid(cells):
    radii = [0.1, 0.2, 0.4]
    curve = statistics.robustness(cells, "linf", radii)
    # image 1: right at 0, wrong from .1 on: .1 / 2 / .4; image 2: right until .1, falls at .2: (.1 + .1 / 2) / .4
    assert statistics.robust_radius(curve, radii) == pytest.approx([1, 0.125, 0.375, 0])


def test_unequal_steps_weigh_by_their_width():
    curve = np.array([[1.0], [0.8], [0.2]])  # at 0, .1 and .5
    expected = (0.1 * (1 + 0.8) / 2 + 0.4 * (0.8 + 0.2) / 2) / 0.5
    assert statistics.robust_radius(curve, [0.1, 0.5]) == pytest.approx([expected])


# ---------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (0, 1), (694, 1000), (999, 1000)])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_wilson_agrees_with_scipy(successes, n, level):
    theirs = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    assert statistics.wilson(successes, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_as_newcombe_printed_it():
    """Newcombe (1998), table I, method 3: 81 of 263 and 15 of 148."""
    assert statistics.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert statistics.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_none_of_a_thousand_is_at_most_0_4_percent():
    low, high = statistics.wilson(0, 1000)
    assert low == 0
    assert high == pytest.approx(0.00383, abs=1e-5)


def test_a_proportion_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one image, got n = 0"):
        statistics.wilson(0, 0)


def test_right_or_wrong_gets_wilson_and_shares_get_the_bootstrap():
    zeros_and_ones, shares = np.array([0.0] * 30 + [1.0] * 70), np.array([0.0] * 30 + [0.9] * 70)
    assert statistics.accuracy_interval(zeros_and_ones) == statistics.wilson(70, 100)
    assert statistics.accuracy_interval(shares) == statistics.bootstrap(shares)
    assert statistics.accuracy_interval(np.ones(5)) == statistics.wilson(5, 5)


def test_the_bootstrap_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).random(400)
    low, high = statistics.bootstrap(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.05)
    wider = statistics.bootstrap(values, level=0.99)
    assert wider[0] < low
    assert high < wider[1]


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = []
    for _ in range(300):  # shares of 10 draws, 80 images, true mean .6
        low, high = statistics.bootstrap(generator.binomial(10, 0.6, 80) / 10)
        covered.append(low <= 0.6 <= high)
    assert 0.91 <= np.mean(covered) <= 0.98  # .95 within three standard errors, a little less for small n


def test_the_bootstrap_gives_the_same_interval_every_time():
    values = np.random.default_rng(2).random(50)
    np.random.seed(1)
    first = statistics.bootstrap(values)
    np.random.seed(2)
    assert statistics.bootstrap(values) == first


def test_values_that_do_not_vary_have_an_interval_without_width():
    assert statistics.bootstrap(np.full(20, 0.25)) == pytest.approx((0.25, 0.25))


# ---------------------------------------------------------------------------------------------- ranks


def uncorrelated(means, spread=1.0, n=400):
    """One row of n values for each mean, with exactly this mean and standard deviation and no correlation at all."""
    noise = np.random.default_rng(3).normal(size=(n, len(means)))
    basis, _ = np.linalg.qr(np.column_stack([np.ones(n), noise]))
    return np.array(means)[:, None] + spread * math.sqrt(n) * basis[:, 1:].T


def three(z_upper, z_lower):
    """Entries a > b > c: the paired difference is z_upper standard errors between a and b, z_lower between b and c."""
    error = math.sqrt(2 / 400)
    rows = uncorrelated([(z_upper + z_lower) * error, z_lower * error, 0])
    assert np.mean(rows[0] - rows[1]) / (np.std(rows[0] - rows[1]) / 20) == pytest.approx(z_upper)
    return dict(zip("abc", rows, strict=True))


def test_one_entry_is_first():
    assert statistics.ranks({"a": np.array([0.0, 1.0])}) == {"a": 1}
    assert statistics.ranks({"a": np.array([1.0])}) == {"a": 1}
    assert statistics.ranks({}) == {}


def test_identical_entries_tie():
    values = np.random.default_rng(4).random(100)
    assert statistics.ranks({"a": values, "b": values.copy(), "c": values.copy()}) == {"a": 1, "b": 1, "c": 1}


def test_clearly_separated_entries_are_first_second_and_third():
    assert statistics.ranks(three(9, 9)) == {"a": 1, "b": 2, "c": 3}
    assert statistics.ranks(dict(reversed(three(9, 9).items()))) == {"a": 1, "b": 2, "c": 3}


def test_entries_that_differ_by_noise_tie():
    assert statistics.ranks(three(0.5, 0.7)) == {"a": 1, "b": 1, "c": 1}


def test_two_that_tie_share_a_rank_and_the_next_is_third():
    assert statistics.ranks(three(0.3, 9)) == {"a": 1, "b": 1, "c": 3}


def test_the_difference_is_paired():
    """Two defenses whose accuracies vary widely between images, one better by a hair on almost every image."""
    images = np.random.default_rng(5).random(300)
    better = images + 0.01 + 0.02 * np.random.default_rng(6).normal(size=300)
    assert stats.ttest_ind(images, better).pvalue > 0.3
    assert statistics.ranks({"a": images, "b": better}) == {"a": 2, "b": 1}


def test_holm_stops_at_the_first_pair_that_misses_its_level():
    # two-sided p: a-c (4.2) .00003 <= .05 / 3, then 2.1 gives .036 > .05 / 2: a and b tie, b and c tie, a beats c.
    # Without correction all three would be apart.
    assert statistics.ranks(three(2.1, 2.1)) == {"a": 1, "b": 1, "c": 2}


def test_holm_is_kinder_than_bonferroni():
    # p: a-c (4.47) .00001 <= .05 / 3, a-b (2.32) .020 <= .05 / 2, b-c (2.15) .032 <= .05: all apart.
    # Bonferroni would hold the last two against .05 / 3 and tie them.
    assert statistics.ranks(three(2.32, 2.15)) == {"a": 1, "b": 2, "c": 3}


def test_a_stricter_level_ties_more():
    assert statistics.ranks(three(2.32, 2.15), level=0.001) == {"a": 1, "b": 1, "c": 2}


def test_equal_entries_are_seldom_called_different():
    """The family-wise error: 200 times five honest twins, of which at most about 5 % may be told apart."""
    generator = np.random.default_rng(7)
    false_alarms = 0
    for _ in range(200):
        entries = {name: generator.random(60) for name in "abcde"}
        false_alarms += max(statistics.ranks(entries).values()) > 1
    assert false_alarms <= 20  # 5 % of 200 is 10; above 20 has probability .002


# ---------------------------------------------------------------------------------------------- training seeds


def trainings(generator, luck, images=None, seed_count=3, truth=0.5):
    """Shares (S, n) of `seed_count` trainings on the same images, whose true means are `truth` but for their luck."""
    images = generator.normal(scale=0.1, size=80) if images is None else images  # a standard error of .011
    return np.array([truth + images + luck * generator.normal() for _ in range(seed_count)])


@pytest.mark.parametrize("luck", [0.0, 0.02, 0.1])  # times sqrt(1/3): none, a standard error of the images, five
def test_intervals_over_trainings_cover_what_another_training_would_find(luck):
    generator = np.random.default_rng(9)
    covered, images_alone = [], []
    for _ in range(400):
        values = trainings(generator, luck)
        low, high = statistics.share_interval(values)
        covered.append(low <= 0.5 <= high)
        low, high = statistics.bootstrap(values.mean(axis=0))
        images_alone.append(low <= 0.5 <= high)
    assert 0.92 <= np.mean(covered) <= 0.99  # .95 within three standard errors; a little more where both matter
    assert np.mean(images_alone) < {0.0: 0.99, 0.02: 0.88, 0.1: 0.4}[luck]


def test_the_luck_of_trainings_has_the_standard_error_of_their_mean_by_student():
    means = np.array([0.3, 0.5, 0.4, 0.65])
    low, high = np.quantile(statistics.training_luck(means), [0.025, 0.975])
    half = stats.t.ppf(0.975, 3) * np.std(means, ddof=1) / 2
    assert (low, high) == pytest.approx((-half, half), rel=0.1)
    together = statistics.training_luck(np.stack([means, 2 * means], axis=1))
    assert together.shape == (statistics.RESAMPLES, 2) and together[:, 1] == pytest.approx(2 * together[:, 0])


def test_trainings_of_two_rows_are_not_paired_and_those_of_one_row_are_always_the_same():
    means = np.array([0.3, 0.5, 0.4])
    one, other = statistics.training_luck(means, "one"), statistics.training_luck(means, "other")
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
    assert (one == statistics.training_luck(means, "one")).all()


def test_two_seeds_change_nothing_but_the_mean():
    values = np.random.default_rng(10).random((2, 50))
    assert statistics.share_interval(values) == statistics.bootstrap(values.mean(axis=0))
    assert statistics.share_interval(values[:1]) == statistics.bootstrap(values[0])
    means = statistics.resampled_means(values[0] - values[1])
    assert statistics.p_value(0.1, means, (values[:, :25].mean(axis=1),)) == statistics.p_value(0.1, means)
    entries = {"a": values[0], "b": values[1] - 0.05}
    assert statistics.ranks(entries, trainings={"a": values, "b": values}) == statistics.ranks(entries)


def test_an_interval_over_trainings_stays_within_shares():
    low, high = statistics.share_interval(np.array([[0.0] * 9 + [0.1], [0.9] * 10, [1.0] * 10]))
    assert (low, high) == (0, 1)
    unanimous = np.array([[1.0] * 7 + [0.0] * 3] * 3)
    assert statistics.share_interval(unanimous, is_proportion=True) == statistics.wilson(7, 10)


def test_entries_that_differ_by_the_luck_of_their_training_alone_tie():
    """Per-image differences are tiny, those of trainings are not: by images alone, most twins would be told apart."""
    generator = np.random.default_rng(11)
    told_apart, by_images_alone = 0, 0
    for _ in range(200):
        images = generator.normal(scale=0.1, size=80)  # the same for both
        by_seed = {name: trainings(generator, 0.05, images) for name in "ab"}
        by_seed = {name: values + 0.02 * generator.normal(size=values.shape) for name, values in by_seed.items()}
        entries = {name: values.mean(axis=0) for name, values in by_seed.items()}
        told_apart += statistics.ranks(entries, trainings=by_seed) != {"a": 1, "b": 1}
        by_images_alone += statistics.ranks(entries) != {"a": 1, "b": 1}
    assert told_apart <= 20 and by_images_alone > 150  # 5 % of 200 is 10; above 20 has probability .002


def test_a_gap_that_no_training_explains_still_ranks():
    generator = np.random.default_rng(12)
    by_seed = {name: trainings(generator, 0.01, truth=truth) for name, truth in (("a", 0.8), ("b", 0.3))}
    entries = {name: values.mean(axis=0) for name, values in by_seed.items()}
    assert statistics.ranks(entries, trainings=by_seed) == {"a": 1, "b": 2}


def test_the_test_over_trainings_alone_is_welch_s():
    """Where every image has the same gap, only trainings vary."""
    first, second = np.array([0.50, 0.56, 0.53]), np.array([0.48, 0.41, 0.52, 0.44])
    gap = float(first.mean() - second.mean())
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    found = statistics.p_value(gap, np.full(statistics.RESAMPLES, gap), (first, second))
    assert found == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------- entries of two lengths


def test_entries_of_different_lengths_are_compared_on_the_first_images():
    """The long entry is far better, but only on images that the short one does not have."""
    generator = np.random.default_rng(8)
    short = generator.random(50)
    long = np.concatenate([short + 0.001 * generator.normal(size=50), np.full(450, 5.0)])
    assert statistics.ranks({"short": short, "long": long}) == {"short": 1, "long": 1}
    other = np.concatenate([short - 0.5, np.full(450, 5.0)])
    assert statistics.ranks({"short": short, "other": other}) == {"short": 1, "other": 2}
    assert statistics.ranks({"long": long, "other": other}) == {"long": 1, "other": 2}


def test_entries_of_one_length_rank_as_before_whatever_their_order():
    entries = three(2.32, 2.15)
    assert statistics.ranks({name: entries[name] for name in "cab"}) == {"a": 1, "b": 2, "c": 3}


def test_paired_differences_are_those_of_the_first_images():
    assert statistics.paired(np.array([3.0, 2.0, 9.0]), np.array([1.0, 1.0])).tolist() == [2, 1]


# ---------------------------------------------------------------------------------------------- what broke most


@pytest.fixture
def attacked(make_cell):
    def make(marks, eps, attack="pgd", track="gray_box", **changes):
        """A cell from one mark an image: 0 broken, 1 right, - not attacked."""
        mask = [mark != "-" for mark in marks]
        arrays = {
            "attacked": mask, "correct": [float(mark) if mark != "-" else math.nan for mark in marks],
            "linf": [eps if hit else math.inf for hit in mask],
        }  # fmt: skip
        return make_cell(arrays, attack=attack, track=track, norm="linf", eps=eps, **changes)

    return make


def test_images_that_were_not_attacked_count_as_they_were(make_cell, attacked):
    cells = [make_cell({"correct": [1, 1, 1, 0]}), attacked("0---", 0.1), attacked("-01-", 0.2, cascade=True)]
    assert statistics.robustness(cells, "linf", [0.1, 0.2]).tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]]


def test_an_image_is_put_down_to_the_first_attack_that_broke_it(make_cell, attacked):
    white = {"track": "white_box", "route": "autograd"}
    cells = [
        make_cell({"correct": [1, 1, 1, 1, 0]}),
        attacked("01111", 0.1, "fgsm"),
        attacked("00111", 0.1, **white),
        attacked("--01-", 0.2, **white, cascade=True),  # the same attack in a larger ball
        attacked("00000", 0.5),  # outside
    ]
    found = statistics.strongest([cells], 0.2)
    assert (found.kind.attack, found.kind.route, found.broken, found.total) == ("pgd", "autograd", 2, 3)
    assert found.kind.eps is None and not found.kind.cascade
    assert statistics.strongest([cells], 0.1).broken == 1  # a tie goes to the first
    assert statistics.strongest([cells], 0.1).kind.attack == "fgsm"
    assert statistics.strongest([cells, cells], 0.2).total == 6
    assert statistics.strongest([cells], 0.05) is None


def test_a_second_look_at_the_clean_images_is_not_the_clean_cell(make_cell):
    again = make_cell({"correct": [0.0]}, variant="again")
    with pytest.raises(ValueError, match="needs the clean cell"):
        statistics.robustness([again], "linf", [0.1])
    curve = statistics.robustness([again, make_cell({"correct": [1.0]})], "linf", [0.1])
    assert curve[0].tolist() == [1]


def test_of_versions_equally_wrong_on_the_selection_draws_the_lowest_margin_decides(make_cell):
    """With few draws many versions are never right; the share alone would take whichever came first."""
    card = {"attack": "pgd", "track": "gray_box", "norm": "linf", "eps": 0.1}
    clean = make_cell({"correct": [1.0, 1.0], "selection": [1, 1]})
    weak = make_cell({"correct": [0.2, 0.3], "selection": [0, 0], "selection_margin": [-1, -3]}, **card)
    strong = make_cell({"correct": [0.1, 0.4], "selection": [0, 0], "selection_margin": [-2, -2]}, **card)
    for cells in ([clean, weak, strong], [clean, strong, weak]):
        assert statistics.robustness(cells, "linf", [0.1])[1].tolist() == pytest.approx([0.1, 0.3])
    failed = make_cell({"correct": [0, 0], "selection": [0, 0], "selection_margin": [np.nan, np.nan]}, **card)
    assert not statistics.robustness([clean, strong, failed], "linf", [0.1])[1].any()


# ---------------------------------------------------------------------------------------------- without a budget


def test_distortion_is_where_images_break_and_accuracy_at_fixed_budgets(make_cell):
    # 0 is wrong when clean; 1 breaks at .4, 2 at 1.5; 3 holds although it was moved by 3; 4 is not attacked
    clean = make_cell({"correct": [0, 1, 1, 1, 1]})
    arrays = {
        "correct": [1, 0, 0, 1, math.nan], "l2": [0.1, 0.4, 1.5, 3, math.inf], "attacked": [True] * 4 + [False],
    }  # fmt: skip
    found = make_cell(arrays, attack="deepfool", track="gray_box", norm="l2", eps=None)
    assert statistics.is_unbounded(found) and not statistics.is_unbounded(clean)
    far = statistics.distortion(clean, found, [0.3, 0.5, 2.0])
    assert far.median == pytest.approx((0.4 + 1.5) / 2)  # of 0, .4, 1.5 and infinity
    assert far.accuracies.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert statistics.distortion(clean, found, []).accuracies.shape == (0, 4)


def test_an_attack_that_breaks_less_than_half_has_an_infinite_median(make_cell):
    clean, held = make_cell({"correct": [1, 1, 1]}), {"correct": [0, 1, 1], "l2": [1, 1, 1]}
    found = make_cell(held, attack="cw_l2", track="gray_box", norm="l2", eps=None)
    assert statistics.distortion(clean, found, [1.0]).median == math.inf


# ---------------------------------------------------------------------------------------------- images of others


def _tried(correct, linf, selection=None, margin=None):
    values = [np.array(correct if given is None else given, float) for given in (correct, selection)]
    margins = np.zeros(len(linf)) if margin is None else np.array(margin, float)
    return statistics.Tried(*values, margins, np.array(linf, float), 20 * np.array(linf, float))


def test_images_of_others_lower_what_is_known_within_their_distance(cells):
    others = [_tried([1, 0, 0, 1], [0.1, 0.1, 0.2, 0.1]), _tried([0, 1, 1, 1], [0.2, np.inf, np.inf, np.inf])]
    found, by = statistics.best_known(cells, others, "linf", [0.05, 0.1, 0.2])
    assert found.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert by.tolist() == [[-1] * 4, [-1] * 4, [-1] * 4, [1, -1, -1, -1]], "image 2 fell at .2 to the cells already"
    assert (
        statistics.best_known(cells, others, "l2", [1.0, 3.0])[0] == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0]]
    ).all()


def test_without_images_of_others_the_worst_case_is_what_is_known(cells):
    for others in ([], [_tried([0] * 4, [np.inf] * 4)]):
        found, by = statistics.best_known(cells, others, "linf", [0.1, 0.3])
        assert (found == statistics.robustness(cells, "linf", [0.1, 0.3])).all() and (by == -1).all()


def test_no_image_of_others_raises_what_is_known_however_the_draws_fall(make_cell):
    rng = np.random.default_rng(0)
    n = 50

    def shares():
        return rng.integers(0, 11, n) / 10

    clean = make_cell({"correct": np.ones(n), "linf": np.zeros(n), "l2": np.zeros(n), "selection": np.ones(n)})
    attacked = make_cell(
        {"correct": shares(), "selection": shares(), "linf": np.full(n, 0.1), "l2": np.ones(n)}, attack="pgd",
        norm="linf", eps=0.1, track="white_box",
    )  # fmt: skip
    worst = statistics.robustness([clean, attacked], "linf", [0.1])
    several = [_tried(shares(), np.full(n, 0.1), shares(), rng.normal(size=n)) for _ in range(4)]
    for count in range(1, 5):
        found, by = statistics.best_known([clean, attacked], several[:count], "linf", [0.1])
        assert (found <= worst).all() and (found[1] < worst[1]).any()
        assert (found[1][by[1] == -1] == worst[1][by[1] == -1]).all()
