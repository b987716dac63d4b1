"""What records tell of a defense beside its answers: never at the cost of a cell."""

from __future__ import annotations

import sys

import pytest
import torch
from fakes import Fake
from torch import Generator, Tensor, nn

from bench import evaluate, training
from bench.facts import facts
from bench.progress import Progress
from bench.protocol import AttackSpec, Protocol

LABELS = torch.arange(20) % 2
OF_CODES = {"silhouette", "codes_moved", "codes_astray"}


class Codes(Fake):
    """Its code is the first pixel; it tells how many images it saw."""

    def encode(self, images: Tensor) -> Tensor:
        return images[:, :1, 0, 0]

    def facts(self, clean, attacked, correct):
        return {"seen": len(clean), "histogram": (float((clean == attacked).float().mean()), correct.mean())}


class Loud(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def of(cls, images: Tensor, progress: Progress | None = None):
    return facts(cls(nn.Flatten()), images, images, LABELS, torch.ones(20), progress or Progress())


def images(gap: float) -> Tensor:
    """Half of the first pixels is 0, half is `gap`, by label; every tenth is off by .01."""
    drawn = torch.zeros(20, 1, 4, 4)
    drawn[:, 0, 0, 0] = LABELS * gap + 0.01 * (torch.arange(20) % 10 == 0)
    return drawn


def test_separate_codes_have_a_silhouette_near_one_and_mixed_ones_near_zero():
    assert of(Codes, images(1.0))["silhouette"] > 0.98
    mixed = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert abs(of(Codes, mixed)["silhouette"]) < 0.3


def test_a_defense_adds_numbers_and_tuples_of_its_own():
    found = of(Codes, images(1.0))
    assert found["seen"] == 20 and found["histogram"] == (1.0, 1.0)


def test_without_codes_there_is_nothing():
    assert of(Fake, images(1.0)) == {}


@pytest.mark.parametrize(("value", "said"), [(float("nan"), ""), ("much", "Codes gives no facts: TypeError")])
def test_what_is_no_number_is_left_out(value, said, monkeypatch):
    progress = Loud()
    monkeypatch.setattr(Codes, "facts", lambda self, *given: {"odd": value})
    assert set(of(Codes, images(1.0), progress)) == OF_CODES
    assert said in "".join(progress.said) and bool(said) == bool(progress.said)


HOSTILE = {
    "a name that is none": {3: 1.0},
    "an empty name": {"": 1.0},
    "a long name": {"x" * 81: 1.0},
    "control characters": {"\x1b[31mred": 1.0},
    "a new line": {"a\nb": 1.0},
    "too many": {f"f{i}": 1.0 for i in range(65)},
    "too long": {"f": (0.0,) * 1001},
    "text that is a number": {"f": "1e3"},
    "text inside": {"f": ("1", 2)},
    "nested": {"f": ((1.0,),)},
    "no number": {"f": None},
    "no mapping": [("f", 1.0)],
    "a map of its own": {"map.clean.x": (0.5,) * 20},
    "a number that is too large": {"f": 10**400},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_facts_that_a_record_cannot_hold_are_refused_in_one_line(what, monkeypatch):
    progress = Loud()
    monkeypatch.setattr(Codes, "facts", lambda self, *given: HOSTILE[what])
    assert set(of(Codes, images(1.0), progress)) == OF_CODES
    (said,) = progress.said
    assert said.startswith("Codes gives no facts: ") and said.isprintable()


def test_the_silhouette_is_the_harnesss_own(monkeypatch):
    monkeypatch.setattr(Codes, "facts", lambda self, *given: {"silhouette": 0.5, "mine": 1})
    found = of(Codes, images(1.0))
    assert set(found) == {*OF_CODES, "mine"} and found["mine"] == 1.0
    assert found["silhouette"] > 0.98


def test_a_defense_that_ends_the_process_ends_nothing(monkeypatch):
    progress = Loud()
    monkeypatch.setattr(Codes, "facts", lambda self, *given: sys.exit(3))
    assert set(of(Codes, images(1.0), progress)) == OF_CODES
    assert progress.said == ["Codes gives no facts: SystemExit: 3"]


def test_what_a_defense_does_meanwhile_reaches_neither_its_classifier_nor_its_answers():
    class Swaps(Codes):
        def facts(self, clean, attacked, correct):
            self.seen = clean
            self.weight.data.fill_(7.0)
            for parameter in self.classifier.parameters():
                parameter.data.fill_(7.0)
            torch.manual_seed(7)
            return {"swapped": 1.0}

    defense = Swaps(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    defense.weight = nn.Parameter(torch.zeros(1))
    before, drawn = training.weights_hash(defense.classifier), torch.get_rng_state()
    found = facts(defense, images(1.0), images(1.0), LABELS, torch.ones(20), Progress())
    assert found["swapped"] == 1.0
    assert training.weights_hash(defense.classifier) == before and defense.weight.item() == 0
    assert not hasattr(defense, "seen") and torch.equal(torch.get_rng_state(), drawn)


def test_codes_are_told_from_where_the_clean_images_have_theirs():
    clean, labels = images(1.0), LABELS
    found = facts(Codes(nn.Flatten()), clean, 1 - clean, labels, torch.ones(20), Progress())
    assert found["codes_astray"] == 1.0 and found["codes_moved"] > 30
    still = of(Codes, clean)
    assert still["codes_astray"] == 0.0 and still["codes_moved"] == 0.0


def test_a_map_is_drawn_where_it_is_asked_for():
    found = facts(Codes(nn.Flatten()), images(1.0), images(0.5), LABELS, torch.ones(20), Progress(), with_map=True)
    parts = ("clean.x", "clean.y", "attacked.x", "attacked.y", "neighbour")
    assert {name for name in found if name.startswith("map.")} == {f"map.{part}" for part in parts}
    assert all(len(found[f"map.{part}"]) == 20 for part in parts)
    clean = facts(Codes(nn.Flatten()), images(1.0), images(1.0), LABELS, torch.ones(20), Progress(), with_map=True)
    assert {name for name in clean if name.startswith("map.")} == {"map.clean.x", "map.clean.y", "map.neighbour"}


@pytest.mark.usefixtures("trained_home")
def test_records_hold_them_whole_cells_only(tmp_path):
    class Pixels(Codes):
        def encode(self, images: Tensor) -> Tensor:
            return images

    class Broken(Codes):
        def encode(self, images: Tensor) -> Tensor:
            raise RuntimeError("no codes today")

        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            return images

    specs = (
        AttackSpec("none", "clean"), AttackSpec("fgsm", "gray_box", "linf", 0.1),
        AttackSpec("fgsm", "white_box", "linf", 0.2, (), "autograd", cascade=True),
    )  # fmt: skip
    chosen = Protocol("tiny", "digits", 32, specs, (0.1,), headline_radii=(0.1,))
    whole = evaluate(Pixels, chosen, records=tmp_path, contract=False)
    cells = {cell.record.attack + cell.record.track: cell.record for cell in whole}
    assert cells["noneclean"].facts["seen"] == 32 and cells["noneclean"].facts["histogram"][0] == 1.0
    assert cells["fgsmgray_box"].facts["histogram"][0] < 1.0
    assert cells["fgsmwhite_box"].facts == {}
    assert len(cells["noneclean"].facts["map.clean.x"]) == len(cells["fgsmgray_box"].facts["map.attacked.y"]) == 32
    assert cells["fgsmgray_box"].facts["codes_moved"] > cells["noneclean"].facts["codes_moved"] == 0
    broken = evaluate(Broken, chosen, records=tmp_path / "broken", contract=False)
    assert all(cell.record.status == "ok" and cell.record.facts == {} for cell in broken)
