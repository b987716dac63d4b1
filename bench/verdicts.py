"""Is this robustness or masked gradients? Numeric rules over the cells of one defense; nothing here imports torch.

A breach says that a defense was not evaluated, a warning that its accuracy under attack may be an upper bound only, a
note is for information. The rules are those of Athalye et al. (2018, arXiv:1802.00420) and Carlini et al. (2019,
arXiv:1902.06705), each with its numbers in `bench.protocol.Thresholds`. A rule whose cells are missing says nothing.
Cells of a cascade attack only what others left over: they enter the worst case and no comparison.

A cell in which the defense failed is evidence, too, for failure never helps: an answer that is not a number, or a
purified image out of [0, 1], is a wrong answer here as in every score (else a defense would hide what an attack without
gradients breaks behind answers that are not numbers). Only in the wide ball, where failure costs no accuracy, it is
left out. Where the defense or its gradient raised there is no answer at all: those images are left out, for they tell
neither that an attack is strong nor that it is weak. No evidence are void cells and those of a breach.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from bench import masked_gradients
from bench.evidence import SLACK, Case, Level, Verdict, compared, names_of, paired, striking_pairs
from bench.masked_gradients import LEVELS, NEAR
from bench.protocol import Protocol, Thresholds
from bench.record import Cell

VOID = "it is not one function"
_T = Thresholds()
_PAIRED = f"by at least {_T.gap:.0%} of the same images with p < {_T.p:g} (paired, one-sided, Holm over the rule)"
RULES: Mapping[str, str] = MappingProxyType(
    {
        "contract": "Breach: the defense breaks the contract, so it is not evaluated.",
        "unusable": "Breach: the defense could not be built or trained.",
        "blocked_gradient": (
            f"Warning: along autograd more than {_T.blocked:.0%} of the gradients taken at images not yet broken are "
            "zero, missing or not finite, under every loss, and the worst case stays more than "
            f"{_T.claim:.0%} of all images above the classifier alone: at the largest cold radius, or at any where the "
            "other routes are blocked, too. A note where the defense is broken all the same."
        ),
        "black_box_beats_white_box": (
            "Warning: an attack without the defense's gradient (gray box, transfer or query) leaves fewer images right "
            f"than every cold white-box attack of the same radius, {_PAIRED}."
        ),
        "single_step_beats_many": (
            "Warning: one white-box step leaves fewer images right than many with the same loss and route, "
            f"{_PAIRED}. A note where another cold white-box attack does as well as the one step."
        ),
        "more_steps_gain": (
            f"Warning: twice the steps leave fewer images right, {_PAIRED}. A note where another cold white-box attack "
            "does as well as twice the steps."
        ),
        "smaller_ball_beats_larger": (
            "Warning: a white-box attack of many steps leaves fewer images right than in the next larger ball, "
            f"{_PAIRED}. A note where another cold white-box attack does as well in the larger ball."
        ),
        "wide_ball_survivors": (
            "Warning: in a ball in which every image can become any other, the accuracy exceeds 1 / classes by more "
            f"than {_T.chance:.0%} with p < {_T.p:g} (binomial on the sum of the images' shares), whatever the route."
        ),
        "jitter": (
            "Warning: a shift by one pixel or a rotation by five degrees costs more than "
            f"{_T.jitter:.0%} beyond what it costs the classifier alone, p < {_T.p:g} (paired, one-sided, Holm)."
        ),
        "gives_back_clean_images": (
            f"Warning: of a cell's exhibits, attacked by {LEVELS} of 255 levels or more, over half are purified to the "
            f"clean image but for {NEAR} levels in any pixel, in a Linf ball a quarter of what the attack changed: no "
            "reconstruction is so good, the defense has the image in store."
        ),
        "hardly_random": (
            "Warning: the defense is said to be random, but in every cold cell of "
            f"{_T.random_images} images or more, one of them white-box, its draws disagree on less than "
            f"{_T.random:.0%} of the images: it was measured with the reduced effort of a random defense for nothing."
        ),
        "drift": (
            "Warning, for random defenses: the same clean images, scored again, give an accuracy that differs by at "
            f"least {_T.gap:.0%} with p < {_T.p:g} (paired, two-sided)."
        ),
        "two_functions": (
            "Warning: in a cell of a deterministic defense more than 0.5% of the images are wrong under attack and "
            "right when scored; the cell is void."
        ),
        "failed_cells": "Note: the defense failed in a cell; the images on which it did count as wrong.",
        "convergence": (
            "Note: how many more images twice the steps break, with a 95 % interval (paired, normal, half an "
            "image added to each of four counts); the test of `more_steps_gain` sees only large gains on few images."
        ),
        "bpda_is_weaker": (
            f"Note: BPDA with the identity or the defense's stand-in leaves more images right than autograd, {_PAIRED}."
        ),
        "noise_is_as_strong": (
            f"Note: uniform noise costs at least {_T.noise:.0%} and leaves at most {_T.gap:.0%} more images right than "
            "the strongest cold white-box attack of the same radius."
        ),
        "random": "Note: the defense is random; attacks and scores average over draws.",
        "reduced_budget": (
            "Note: a purification costs more than 20 forward and backward passes of the classifier, so the protocol "
            "attacks with less effort: the accuracy is an upper bound."
        ),
        "trained_on_attacks": "Note: by its card the defense was trained on more than clean images.",
    }
)


def verdicts(cells: Sequence[Cell], baseline: Sequence[Cell], protocol: Protocol) -> tuple[Verdict, ...]:
    """What the rules say, breaches first; at most one verdict a rule.

    `cells` are those of one defense, one classifier, one protocol and one seed; `baseline` those of the classifier
    without a defense (`identity`), on images that start alike. Without a baseline, what needs it is not said.
    """
    ours, bare = ([cell for cell in some if _counts(cell)] for some in (cells, baseline))
    case = Case(cells, ours, bare, protocol.thresholds)
    found = [verdict for rule in _ALL for verdict in rule(case)]
    order = list(RULES)
    levels: tuple[Level, ...] = ("breach", "warning", "note")
    return tuple(sorted(found, key=lambda verdict: (levels.index(verdict.level), order.index(verdict.rule))))


def over_seeds(pairs: Iterable[tuple[Sequence[Cell], Sequence[Cell]]], protocol: Protocol) -> tuple[Verdict, ...]:
    """The verdicts of several seeds, each given as its cells and its baseline's; what is said word for word twice is
    said once."""
    found: dict[tuple[str, str], Verdict] = {}
    for cells, baseline in pairs:
        for verdict in verdicts(cells, baseline, protocol):
            found.setdefault((verdict.rule, verdict.text), verdict)
    return tuple(found.values())


def _counts(cell: Cell) -> bool:
    """Whether a cell is evidence: not void, and not one of a breach."""
    failed, error = cell.record.status == "failed", cell.record.error
    return not (failed and (VOID in error or _BREACH.match(error)))


# ---------------------------------------------------------------------------------------------- breaches and failures


_TOLD = r"(?:under attack: )?(?:RuntimeError: )?((?:{}): .*)"
_BREACHES = {"contract": "breaks the contract", "unusable": "not built|not trained|not measured"}
_BREACH = re.compile(_TOLD.format("|".join(_BREACHES.values())), re.DOTALL)


def _contract(case: Case) -> Iterator[Verdict]:
    for rule, pattern in _BREACHES.items():
        told = re.compile(_TOLD.format(pattern), re.DOTALL)
        matches = [(cell, told.match(cell.record.error)) for cell in case.given if cell.record.status == "failed"]
        reasons = [(cell, match[1]) for cell, match in matches if match]
        if reasons:
            text = f"Not evaluated: the defense {'is ' if rule == 'unusable' else ''}{reasons[0][1]}"
            yield Verdict(rule, "breach", text, {"cells": len(reasons)}, names_of(cell for cell, _ in reasons))


def _failures(case: Case) -> Iterator[Verdict]:
    failed = [cell for cell in case.given if cell.record.status == "failed"]
    void = [cell for cell in failed if VOID in cell.record.error]
    if void:
        text = (
            f"In {len(void)} of {len(case.given)} cells the defense is wrong under attack and right when scored, "
            f"although it says to be deterministic: {void[0].record.error}."
        )
        yield Verdict("two_functions", "warning", text, {"cells": len(void)}, names_of(void))
    if failed:
        text = (
            f"The defense failed in {len(failed)} of {len(case.given)} cells, where those images count as wrong: "
            f"{failed[0].record.error}."
        )
        yield Verdict("failed_cells", "note", text, {"cells": len(failed), "all": len(case.given)}, names_of(failed))


# ---------------------------------------------------------------------------------------------- notes


def _weaker_bpda(case: Case) -> Iterator[Verdict]:
    pairs = []
    for bpda in case.white(route="bpda"):
        same = {name: getattr(bpda.record, name) for name in ("attack", "norm", "eps", "variant")}
        pairs += [paired(autograd, bpda) for autograd in case.white(route="autograd", **same)]
    striking = striking_pairs(pairs, case.t)
    if striking:
        yield compared("bpda_is_weaker", striking, case.t, "the true gradient is the better guide", level="note")


def _noise(case: Case) -> Iterator[Verdict]:
    clean = case.clean("none")
    for noise in (cell for cell in case.cells if cell.record.attack == "uniform_noise"):
        pairs = [paired(noise, white) for white in case.white(norm="linf", eps=noise.record.eps)]
        best = min((pair for pair in pairs if pair), key=lambda pair: pair.high_accuracy, default=None)
        if clean is None or best is None or best.gap < -case.t.gap - SLACK:
            continue
        if clean.outcomes.accuracy - noise.outcomes.accuracy >= case.t.noise:
            text = (
                f"Uniform noise in the Linf ball of {noise.record.eps:g} leaves {best.low_accuracy:.1%} of "
                f"{best.images} images right, the strongest white-box attack {best.high_accuracy:.1%}."
            )
            evidence = {
                "noise_accuracy": best.low_accuracy, "attack_accuracy": best.high_accuracy,
                "clean_accuracy": clean.outcomes.accuracy, "gap_threshold": case.t.gap, "loss_threshold": case.t.noise,
            }  # fmt: skip
            yield Verdict("noise_is_as_strong", "note", text, evidence, names_of((noise, best.high)))
            return


def _facts(case: Case) -> Iterator[Verdict]:
    if not case.cells:
        return
    record, card = case.cells[0].record, case.cells[0].record.card
    if card.stochastic:
        eot = max((int(cell.record.params.get("eot", 1)) for cell in case.white()), default=1)
        text = f"The defense is random: each step of an attack averages {eot} draws, each score {record.draws} others."
        yield Verdict("random", "note", text, {"eot": eot, "draws": record.draws}, ())
    if record.budget != "cheap":
        text = (
            f"Upper bound, reduced budget: a purification costs {record.units:,.0f} forward and backward passes of the "
            f"classifier (budget class {record.budget}), so attacks are shorter."
        )
        yield Verdict("reduced_budget", "note", text, {"units": record.units}, ())
    if card.has_seen_attacks:
        yield Verdict("trained_on_attacks", "note", f"Trained on {card.trained_on}, not on clean images alone.", {}, ())


_ALL: tuple[Callable[[Case], Iterator[Verdict]], ...] = (
    _contract, _failures, *masked_gradients.ALL, _weaker_bpda, _noise, _facts,
)  # fmt: skip
