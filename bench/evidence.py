"""What the rules of bench.verdicts look at, what they compare, and what they say. Nothing here imports torch.

Cells of a cascade attack only what others left over: they enter the worst case and no comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.paired_tests import Array, holm, sign_flip
from bench.protocol import Thresholds
from bench.record import Cell

Level = Literal["breach", "warning", "note"]
NOT_FINITE = "purified images or logits were not finite, or left [0, 1]"  # all that such a cell's record says
SLACK = 1e-6  # on differences of accuracies, whose shares are float32


@dataclass(frozen=True)
class Verdict:
    """What one rule of RULES found.

    `text` is a sentence for the reader of the board, `evidence` the numbers that the rule compared and its thresholds,
    `cells` the names of the cells that they come from.
    """

    rule: str
    level: Level
    text: str
    evidence: Mapping[str, float]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What the rules look at: cells of the defense and of the classifier alone that are evidence, and all `given`."""

    given: Sequence[Cell]
    cells: Sequence[Cell]
    baseline: Sequence[Cell]
    t: Thresholds

    @cached_property
    def knowing(self) -> str:
        """The track whose attackers know everything: past a detector one that ignores it counts among the blind."""
        return "rejection" if any(cell.record.track == "rejection" for cell in self.cells) else "white_box"

    def white(self, **facts: Any) -> list[Cell]:
        """Cold white-box cells whose records have these facts; wide balls and doubled steps are apart."""
        facts = {"track": self.knowing, **facts}
        return [cell for cell in self.cells if cell.record.variant in ("", "cold") and has_facts(cell, facts)]

    def clean(self, attack: str, variant: str = "", *, baseline: bool = False) -> Cell | None:
        """The clean cell of `attack`, of the defense or of the baseline."""
        facts = {"track": "clean", "attack": attack, "variant": variant}
        return next((cell for cell in (self.baseline if baseline else self.cells) if has_facts(cell, facts)), None)


@dataclass(frozen=True)
class Pair:
    """Two cells on the images that both judge; `p` is that of `low` leaving fewer right than `high` by chance."""

    low: Cell
    high: Cell
    images: int
    failed: int  # those on which the defense gave no sound answer under `low`
    low_accuracy: float
    high_accuracy: float
    p: float

    @property
    def gap(self) -> float:
        return self.high_accuracy - self.low_accuracy


def paired(low: Cell, high: Cell) -> Pair | None:
    """None where the two have no image in common, or where on over half of those one of them has no answer."""
    attacked, both = low.outcomes.attacked & high.outcomes.attacked, judged_by(low) & judged_by(high)
    if not both.any() or 2 * both.sum() < attacked.sum():
        return None
    failed, gaps = int((both & unanswered(low)).sum()), gaps_of(low, high)
    left, right = (float(cell.outcomes.correct[both].mean(dtype=np.float64)) for cell in (low, high))
    return Pair(low, high, int(both.sum()), failed, left, right, sign_flip(gaps))


def gaps_of(low: Cell, high: Cell) -> Array:
    """By how much more of its draws each image that both judge is right under `high`."""
    both = judged_by(low) & judged_by(high)
    return high.outcomes.correct[both].astype(np.float64) - low.outcomes.correct[both]


def striking_pairs(pairs: Iterable[Pair | None], t: Thresholds) -> list[Pair]:
    """The pairs whose gap is large and significant, the largest gap first."""
    present = [pair for pair in pairs if pair is not None]
    fallen = holm([pair.p for pair in present], t.p)
    kept = [pair for pair, falls in zip(present, fallen, strict=True) if falls and pair.gap >= t.gap - SLACK]
    return sorted(kept, key=lambda pair: -pair.gap)


def compared(rule: str, pairs: Sequence[Pair], t: Thresholds, meaning: str, level: Level = "warning") -> Verdict:
    """The verdict of a rule on its striking pairs, of which the first is told; `meaning` ends the sentence."""
    pair = pairs[0]
    low, high = pair.low.record, pair.high.record
    text = (
        f"Under {named_attack(pair.low)} {pair.low_accuracy:.1%} of {pair.images} images stay right, under "
        f"{named_attack(pair.high)} {pair.high_accuracy:.1%} ({in_words(pair.p)}"
        f"{f'; on {pair.failed} the defense failed' if pair.failed else ''}"
        f"{f', and {len(pairs) - 1} more such pairs' if len(pairs) > 1 else ''}): {meaning}."
    )
    evidence = {
        "low_accuracy": pair.low_accuracy, "high_accuracy": pair.high_accuracy, "gap": pair.gap, "p": pair.p,
        "images": pair.images, "failed": pair.failed, "pairs": len(pairs), "gap_threshold": t.gap, "p_threshold": t.p,
    }  # fmt: skip
    return Verdict(rule, level, text, evidence, (low.cell, high.cell))


def unanswered(cell: Cell) -> NDArray[np.bool_]:
    """The attacked images on which the defense gave no sound answer on the first draw, nor a right one ever, (n,)."""
    outcomes = cell.outcomes
    nothing = np.isnan(outcomes.margin) & (outcomes.predicted < 0) & (outcomes.correct == 0)
    return outcomes.attacked & nothing if cell.record.status == "failed" else np.zeros_like(outcomes.attacked)


def judged_by(cell: Cell) -> NDArray[np.bool_]:
    """The attacked images with an answer, sound or not, (n,); where something raised, a failed one may be none."""
    return (
        cell.outcomes.attacked if cell.record.error in ("", NOT_FINITE) else cell.outcomes.attacked & ~unanswered(cell)
    )


def has_facts(cell: Cell, facts: Mapping[str, Any]) -> bool:
    """Whether a cell is cold and its record has these values."""
    return not cell.record.cascade and all(getattr(cell.record, name) == value for name, value in facts.items())


def radii_of(cells: Iterable[Cell]) -> list[float]:
    """The radii of the cells, each once, rising."""
    return sorted({cell.record.eps for cell in cells if cell.record.eps is not None})


def at_radius(cells: Iterable[Cell], eps: float) -> list[Cell]:
    """The cells of one radius."""
    return [cell for cell in cells if cell.record.eps == eps]


def names_of(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The names under which the store keeps the cells."""
    return tuple(cell.record.cell for cell in cells)


def named_attack(cell: Cell) -> str:
    """An attack in a sentence: `apgd_margin (white box, bpda, Linf 0.3)`."""
    record = cell.record
    ball = f"{(record.norm or '').capitalize()} {record.eps:g}" if record.eps is not None else ""
    about = (record.track.replace("_", " "), record.route, f"from {record.source}" * bool(record.source), ball)
    return f"{record.attack} ({', '.join(filter(None, (*about, record.variant)))})"


def in_words(p: float) -> str:
    """A p-value in a sentence."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
