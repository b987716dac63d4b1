"""From per-image outcomes to what the board says: worst cases, mean robust radius, intervals, ranks. No torch here."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench import seeds
from bench.catalog import ATTACKS
from bench.protocol import AttackSpec, Protocol
from bench.record import Cell

Array = NDArray[np.float64]
TOLERANCE = 1e-6  # slack on realised norms: float32 rounding, never a bigger ball
RESAMPLES = 4000
FEWEST_TRAININGS = 3  # from which on intervals and tests are over training seeds, too


def ordered(cells: Iterable[Cell], protocol: Protocol) -> list[Cell]:
    """The cells in the order in which the protocol makes them; those that it does not name come last, by name."""
    place = {spec.slug: k for k, spec in enumerate(protocol.attacks)}
    return sorted(cells, key=lambda cell: (place.get(cell.record.spec.slug, len(place)), cell.record.cell))


def worst_versions(cells: Sequence[Cell], norm: str, radii: Sequence[float]) -> NDArray[np.intp]:
    """Which of `cells` holds the version of each image that decides at radius 0 and at each of `radii`, (1 + R, n).

    An attacked image counts at radius eps if and only if its realised distance is at most eps + 1e-6, whichever attack
    made it; the clean image counts everywhere. Of the versions that count, the worst decides: the one right on
    fewest selection draws, of equals the one of lowest margin on them (0 for a deterministic defense), of equals the
    first. Images that a cell did not attack are infinitely far away and never count. All cells must be of one defense,
    one classifier, one protocol and one seed. Raises ValueError without a clean cell.
    """
    clean = np.array([cell.record.attack == "none" and not cell.record.variant for cell in cells])
    if not clean.any():
        raise ValueError("robustness needs the clean cell (attack 'none')")
    chosen_by = np.stack([cell.outcomes.selection for cell in cells]).astype(np.float64)  # (cells, n)
    margin = np.nan_to_num(np.stack([cell.outcomes.selection_margin for cell in cells]), nan=-np.inf)
    distance = np.stack([cell.outcomes.distance(norm) for cell in cells])
    rows = []
    for eps in (-np.inf, *radii):  # at radius 0 the clean image alone
        counted = clean[:, None] | (distance <= eps + TOLERANCE)
        fewest = np.where(counted, chosen_by, np.inf)
        worst = counted & (fewest == fewest.min(axis=0))
        rows.append(np.where(worst, margin, np.inf).argmin(axis=0))
    return np.stack(rows)


def robustness(cells: Sequence[Cell], norm: str, radii: Sequence[float]) -> Array:
    """The probability that each image is still classified right at radius 0 and at each of `radii`, (1 + R, n).

    That of its worst version (`worst_versions`), taken from the fresh scoring draws: a minimum over noisy values would
    count luck as an attack. For the same reason the share of a random defense is not cut down to that of the clean
    image where chance has it above: the smaller of two noisy values is too low on average. Raises ValueError without a
    clean cell.
    """
    values = np.stack([cell.outcomes.correct for cell in cells]).astype(np.float64)  # (cells, n)
    return np.take_along_axis(values, worst_versions(cells, norm, radii), axis=0)


@dataclass(frozen=True)
class OverDraws:
    """Images by what their K fresh draws say, 1 or 0 each, in the shape of the shares that they come from.

    `every` is any-of-K: right on all draws, so that an attacker who may ask K times never sees a wrong answer; `most`
    is majority-of-K: right on more than half of them.
    """

    every: Array
    most: Array


def over_draws(shares: Array, draws: int) -> OverDraws:
    """Any-of-K and majority-of-K from the shares of K = `draws` scoring draws that were right, of any shape.

    Raises ValueError if draws < 1.
    """
    if draws < 1:
        raise ValueError(f"a share of right draws needs at least one draw, got draws = {draws}")
    every = shares > 1 - 0.5 / draws  # shares come in steps of 1 / K, rounded to float32
    return OverDraws(every.astype(np.float64), (shares > 0.5).astype(np.float64))


@dataclass(frozen=True)
class Tried:
    """Images that somebody else made against a defense, scored by the harness: every array is (n,), one entry an image.

    The arrays mean what those of `Outcomes` mean; an image of which there is none lies infinitely far away.
    """

    correct: Array
    selection: Array
    selection_margin: Array
    linf: Array
    l2: Array


def best_known(
    cells: Sequence[Cell], others: Sequence[Tried], norm: str, radii: Sequence[float]
) -> tuple[Array, NDArray[np.intp]]:
    """`robustness` with the images of `others` among the versions of each image, and which of them decides, (1 + R, n).

    A version counts by its realised distance and is chosen by its selection draws, as the cells' are; of equals the
    cells' own decides, which is -1. No image comes out better than by the cells alone: where chance would have it so on
    the scoring draws of a random defense, the cells' value stays.
    """
    worst = worst_versions(cells, norm, radii)

    def of_cells(name: str) -> Array:
        return np.take_along_axis(
            np.stack([getattr(cell.outcomes, name) for cell in cells]).astype(np.float64), worst, axis=0
        )

    values, chosen_by, margin = of_cells("correct"), of_cells("selection"), of_cells("selection_margin")
    margin = np.nan_to_num(margin, nan=-np.inf)
    found, by = values.copy(), np.full(values.shape, -1, dtype=np.intp)
    for row, eps in enumerate(radii, start=1):
        for which, other in enumerate(others):
            near = (other.linf if norm == "linf" else other.l2) <= eps + TOLERANCE
            lower = other.selection < chosen_by[row]
            lower |= (other.selection == chosen_by[row]) & (other.selection_margin < margin[row])
            taken = near & lower
            chosen_by[row] = np.where(taken, other.selection, chosen_by[row])
            margin[row] = np.where(taken, other.selection_margin, margin[row])
            found[row] = np.where(taken, np.minimum(values[row], other.correct), found[row])
            by[row] = np.where(taken, which, by[row])
    return found, by


@dataclass(frozen=True)
class Strongest:
    """The attack that broke most images: `broken` of the `total` that all attacks together broke.

    `kind` is its spec without a strength: track, attack, route, source and norm.
    """

    kind: AttackSpec
    broken: int
    total: int


def strongest(seeds: Sequence[Sequence[Cell]], eps: float) -> Strongest | None:
    """What broke most images within the Linf ball of radius `eps`, over all seeds: the first of the most in `blamed`.

    None where every right image held.
    """
    broken = blamed(seeds, eps)
    total = sum(broken.values())
    most = max(broken, key=lambda kind: broken[kind])
    return Strongest(most, broken[most], total) if total else None


def blamed(seeds: Sequence[Sequence[Cell]], eps: float) -> dict[AttackSpec, int]:
    """How many images each kind of attack broke within the Linf ball of radius `eps`, over all seeds.

    A broken image is right on most draws when clean and wrong on most when attacked. It is put down to the first cell
    that holds its worst version, so the cells of each seed must be `ordered`. Cells that differ in strength alone are
    one kind, a spec without a strength: in a cascade the smaller balls come first.
    """
    broken: dict[AttackSpec, int] = {}
    for cells in seeds:
        worst = worst_versions(cells, "linf", [eps])[1]
        clean, attacked = robustness(cells, "linf", [eps])
        fallen = worst[(clean > 0.5) & (attacked <= 0.5)]
        for index, cell in enumerate(cells):
            spec = cell.record.spec
            kind = AttackSpec(spec.attack, spec.track, spec.norm, route=spec.route, source=spec.source)
            broken[kind] = broken.get(kind, 0) + int((fallen == index).sum())
    return broken


def left_out(cells: Sequence[Cell], protocol: Protocol) -> dict[str, int]:
    """How many images each cell left out without a reason, by the cell's name; cells that owe none are not named.

    `protocol` is as the defense of `cells` meets it. A cell owes the images that its spec names; a cascade cell all of
    them but those that some cell has broken, or that are wrong when clean, at a distance in its norm that counts there.
    """
    specs = {spec.slug: spec for spec in protocol.attacks}
    wrong = np.stack([cell.outcomes.correct == 0 for cell in cells])  # (cells, n)
    nearest = {
        norm: np.where(wrong, np.stack([cell.outcomes.distance(norm) for cell in cells]), np.inf).min(axis=0)
        for norm in ("linf", "l2")
    }  # (n,) how far the nearest broken version of each image lies
    found = {}
    for cell in cells:
        spec = specs.get(cell.record.spec.slug)
        if spec is None:
            continue
        owed = np.arange(len(cell.outcomes.attacked)) < (spec.n_examples or protocol.n_examples)
        if spec.cascade and spec.norm is not None and spec.eps is not None:
            owed &= ~(nearest[spec.norm] <= spec.eps + TOLERANCE)
        count = int((owed & ~cell.outcomes.attacked).sum())
        if count:
            found[cell.record.cell] = count
    return found


def robust_radius(curve: Array, radii: Sequence[float]) -> Array:
    """Each image's share of the mean robust radius, (n,) in [0, 1], from `robustness` at 0 and at `radii`.

    The mean over images is MRR = (1 / eps_max) times the integral from 0 to eps_max of the mean robust accuracy,
    by the trapezoid rule.
    """
    points = np.array([0.0, *radii])
    return np.asarray(np.trapezoid(curve, points, axis=0) / points[-1], dtype=np.float64)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: for single deterministic accuracies. Raises ValueError if n < 1."""
    if n < 1:
        raise ValueError(f"a proportion needs at least one image, got n = {n}")
    z = float(stats.norm.ppf(0.5 + level / 2))
    share, centre = successes / n, (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * share * (1 - share) + z * z / 4)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@functools.lru_cache(maxsize=4)
def _resampling_weights(n: int) -> Array:
    generator = np.random.default_rng(seeds.derive("bootstrap", n))
    return generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n  # (RESAMPLES, n)


def resampled_means(values: Array) -> Array:
    """The mean of each row of `values` (..., n) on each resample of the images from a fixed seed, (RESAMPLES, ...).

    Rows of equal n share the resamples, so the means of a difference are the difference of the means.
    """
    return np.asarray(_resampling_weights(values.shape[-1]) @ values.T, dtype=np.float64)


@functools.lru_cache(maxsize=64)
def _multipliers(seed_count: int, row: str) -> Array:
    generator = np.random.default_rng(seeds.derive("bootstrap trainings", seed_count, row))
    drawn = generator.standard_normal((RESAMPLES, seed_count))
    student = stats.t.ppf(0.975, seed_count - 1) / stats.norm.ppf(0.975)
    centred = drawn - drawn.mean(axis=1, keepdims=True)
    return np.asarray(student * centred / np.sqrt(seed_count * (seed_count - 1)), dtype=np.float64)


def training_luck(means: Array, row: str = "") -> Array:
    """What other training seeds might add to the mean over S of them, a draw for each resample, (RESAMPLES, ...).

    `means` (S, ...) holds one mean over images for each seed. Of fewer than three the draws are zero: their spread is
    not known. They come from a bootstrap with normal multipliers whose stream is named by `row`: images are paired
    between two rows, trainings are not. Few seeds need care twice: the sum of squares is divided by S - 1 (seeds drawn
    with replacement spread too little, by sqrt(S / (S - 1))), and Student's quantile takes the normal's place (the
    spread is itself uncertain). Three seeds drawn with replacement would give at best an interval from the least to the
    largest, which holds the truth three times of four.
    """
    if len(means) < FEWEST_TRAININGS:
        return np.zeros((RESAMPLES, *means.shape[1:]))
    drawn = _multipliers(len(means), row) @ means.reshape(len(means), -1)  # (RESAMPLES, ...)
    return np.asarray(drawn.reshape(RESAMPLES, *means.shape[1:]), dtype=np.float64)


def bootstrap(values: Array, level: float = 0.95, luck: Array | float = 0.0) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values` (n,), resampled over images from a fixed seed; with
    `luck` (RESAMPLES,) over trainings, too (`training_luck`)."""
    low, high = np.quantile(resampled_means(values) + luck, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def accuracy_interval(values: Array) -> tuple[float, float]:
    """Wilson's interval where every value is 0 or 1 (a proportion), the bootstrap's where they are shares."""
    return share_interval(values[None], is_proportion=True)


def share_interval(by_seed: Array, *, is_proportion: bool = False) -> tuple[float, float]:
    """The interval of the mean of shares `by_seed` (S, n) in [0, 1]: over images, and over seeds where there are three.

    It is the bootstrap's; Wilson's for an accuracy (`is_proportion`) where every image is always right or always wrong.
    """
    values = by_seed.mean(axis=0)  # (n,)
    if is_proportion and np.isin(values, (0.0, 1.0)).all():
        return wilson(float(values.sum()), len(values))
    low, high = bootstrap(values, luck=training_luck(by_seed.mean(axis=1)))
    return (low, high) if len(by_seed) < FEWEST_TRAININGS else (max(0.0, low), min(1.0, high))


def ranks(
    entries: Mapping[str, Array], level: float = 0.05, trainings: Mapping[str, Array] = MappingProxyType({})
) -> dict[str, int]:
    """The rank of each entry: 1 + the number of entries that are significantly better. Ties share a rank.

    `entries` maps names to per-image values (n,), higher is better; `trainings` to the same by training seed (S, n),
    where an entry has several. All pairs are compared on the images that both have (the first ones: entries may differ
    in length) by the paired difference of means (`p_value`), two-sided, Holm-corrected at `level` over all pairs.
    """
    names = list(entries)
    pairs = [(first, second) for i, first in enumerate(names) for second in names[:i]]
    gaps, p_values = [], []
    for first, second in pairs:
        gap = paired(entries[first], entries[second])
        gaps.append(float(gap.mean()))
        by_seed = [trainings[name][:, : len(gap)].mean(axis=1) for name in (first, second) if name in trainings]
        p_values.append(p_value(gaps[-1], resampled_means(gap), by_seed))
    beaten = dict.fromkeys(names, 0)
    for k, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > level / (len(pairs) - k):
            break
        first, second = pairs[index]
        beaten[second if gaps[index] > 0 else first] += 1
    return {name: 1 + beaten[name] for name in names}


def p_value(gap: float, means: Array, trainings: Sequence[Array] = ()) -> float:
    """How probable a difference of means as large as `gap` is between equals: two-sided, its error the standard
    deviation of its resampled `means`, normal.

    `trainings` holds, for each of the two that has several training seeds, its means by seed (S,). From three seeds on
    their standard errors come on top, and Student's distribution with Welch's degrees of freedom (Welch 1947,
    Biometrika 34) takes the normal's place: the luck of a training is no difference.
    """
    error = float(np.std(means))
    if gap == 0:
        return 1.0
    several = [by_seed for by_seed in trainings if len(by_seed) >= FEWEST_TRAININGS]
    spreads = [float(np.var(by_seed, ddof=1)) / len(by_seed) for by_seed in several]
    if any(spreads):
        total = error**2 + sum(spreads)
        freedom = total**2 / sum(part**2 / (len(one) - 1) for part, one in zip(spreads, several, strict=True))
        return float(2 * stats.t.sf(abs(gap) / np.sqrt(total), freedom))
    return float(2 * stats.norm.sf(abs(gap) / error)) if error else 0.0


def paired(first: Array, second: Array) -> Array:
    """The differences `first` - `second` on the images that both have: the first ones of one fixed permutation."""
    n = min(len(first), len(second))
    return first[:n] - second[:n]


@dataclass(frozen=True)
class Distortion:
    """How far an attack without a budget had to go, in L2.

    `median` is over the images of the distance at which each breaks: 0 where it is wrong when clean, infinite where it
    is right on most draws of the attacked version. `accuracies` (R, n) says how right each image is at fixed budgets.
    """

    median: float
    accuracies: Array


def is_unbounded(cell: Cell) -> bool:
    """Whether the attack had no budget (DeepFool, CW, one pixel): accuracy alone then says nothing of its distance."""
    new = cell.record.attack in ATTACKS and ATTACKS[cell.record.attack].new_images  # no distance of the clean one's
    return cell.record.track != "clean" and cell.record.eps is None and not new


def distortion(clean: Cell, cell: Cell, radii: Sequence[float]) -> Distortion:
    """The distortion of `cell` on the images that it attacked, `clean` being the same defense without an attack.

    At an L2 budget an image counts at its attacked version if that lies within, else at its clean one (`robustness`).
    """
    mask = cell.outcomes.attacked
    wrong_before, wrong_after = (one.outcomes.correct[mask] <= 0.5 for one in (clean, cell))
    breaks_at = np.where(wrong_before, 0, np.where(wrong_after, cell.outcomes.l2[mask], np.inf))
    curve = robustness([clean, cell], "l2", radii)[1:, mask]
    return Distortion(float(np.median(breaks_at)) if mask.any() else np.inf, curve)
