"""Memory that runs out is no defense's failure: the images are taken in smaller pieces, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import CrashesUnderAttack, Fake, Fills, FillsAtRandom
from torch import Generator, Tensor, nn

from bench import checks, cost, draws, memory, subjects
from bench.cache import ChunkCache
from bench.data import Split
from bench.defense import Defense
from bench.errors import BenchError
from bench.evaluation import evaluate_cell
from bench.isolation import isolated
from bench.isolation.channel import ChildError, ChildMemoryError
from bench.progress import Progress
from bench.protocol import AttackSpec, Protocol
from bench.record import Cell
from bench.work import Examples, Subject, Work

N = 24
STEPS = (("steps", 6),)
APGD = AttackSpec("apgd_margin", "white_box", "linf", 0.1, STEPS, "autograd")


class Rows(nn.Module):
    """Three classes, by products and sums of each image's own pixels: the size of a batch leaves no trace."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(3, 64, generator=Generator().manual_seed(0))
        self.weights = nn.Parameter(weights, requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1)[:, None] * self.weights).sum(dim=2)


@pytest.fixture
def examples() -> Examples:
    images = torch.rand(N, 1, 8, 8, generator=Generator().manual_seed(1))
    labels = Rows()(images**2).argmax(dim=1)
    return Examples("made up", "test", Split(images, labels), torch.arange(N), Split(images.flip(0), labels.flip(0)))


def measured(defense: Defense, spec: AttackSpec, examples: Examples, folder: Path) -> Cell:
    net = defense.classifier
    subject = Subject("fills", type(defense), defense, "paper", {}, "w", "A", "a", net, "a")
    asked = Protocol("tiny-v1", "made up", N, (spec,), (0.1,), selection_draws=2, scoring_draws=3)
    work = Work(subject, asked, spec, np.ones(N, np.bool_))
    return evaluate_cell(work, examples, ChunkCache(folder), Progress())


# ---------------------------------------------------------------------------------------------- pieces


def tried(fits: int, n: int) -> tuple[list[int], list[int]]:
    """The sizes that are tried on `n` rows where so many fit, and the rows that come back."""
    sizes: list[int] = []

    def work(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > fits:
            raise torch.OutOfMemoryError("full")
        return rows

    return sizes, torch.cat(memory.in_pieces(work, torch.arange(n), "who")).tolist()


def test_pieces_are_halved_until_they_fit_and_a_size_that_was_too_large_is_not_tried_again():
    assert tried(64, 10) == ([10], list(range(10)))
    assert tried(3, 10) == ([10, 5, 3, 3, 3, 1], list(range(10)))
    assert tried(1, 3) == ([3, 2, 1, 1, 1], [0, 1, 2])
    assert memory.in_pieces(lambda rows: rows, torch.arange(0), "who") == []


def test_a_single_row_that_does_not_fit_ends_the_run_with_one_line():
    with pytest.raises(BenchError) as ended:
        tried(0, 4)
    assert "who: out of memory for a single image on cpu (OutOfMemoryError: full)" in str(ended.value)
    assert "the same command again" in str(ended.value) and "\n" not in str(ended.value)


def test_what_a_full_memory_raises_is_known_from_what_else_is_raised():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**60)
    assert memory.is_full(cpu.value), "torch's own words"
    for problem in (MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")):
        assert memory.is_full(problem)
    said = ChildError("the process of x ended itself with status 3; it printed last: can't allocate memory")
    for problem in (RuntimeError("no gradients here"), ValueError("can't allocate memory"), said):
        assert not memory.is_full(problem), "words that a child printed are no proof"
    with pytest.raises(RuntimeError, match="other"):
        memory.in_pieces(lambda rows: (_ for _ in ()).throw(RuntimeError("other")), torch.arange(4), "who")


# ---------------------------------------------------------------------------------------------- cells

SPECS = [
    AttackSpec("none", "clean"),
    APGD,
    AttackSpec("pgd", "gray_box", "linf", 0.1, STEPS),
    AttackSpec("apgd_ce", "white_box", "linf", 0.1, (*STEPS, ("restarts", 2)), "bpda"),
    AttackSpec("hurried_apgd", "white_box", "linf", 0.1, (("last_steps", 2), *STEPS), "autograd"),
    AttackSpec("square", "query", "linf", 0.1, (("queries", 20),)),
    AttackSpec("pgd", "white_box", "linf", 0.1, (("labels", "predicted"), *STEPS), "autograd"),
    AttackSpec("universal", "gray_box", "linf", 0.1),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.slug)
def test_a_cell_in_pieces_is_the_cell_in_one_bit_for_bit(spec, examples, tmp_path):
    whole = measured(Fills(Rows(), fits=N), spec, examples, tmp_path / "whole")
    assert whole.record.status == "ok"
    for name, settings in (("gpu", {"fits": 5}), ("cpu", {"fits": 1, "on_cpu": True})):
        pieces = measured(Fills(Rows(), **settings), spec, examples, tmp_path / name)
        assert pieces.record.lasting() == whole.record.lasting()
        assert pieces.outcomes.sha256() == whole.outcomes.sha256()
    assert spec.track == "clean" or whole.outcomes.accuracy < 1, "the attack does something"


def test_of_a_net_whose_rounding_depends_on_the_batch_only_last_digits_differ(examples, tmp_path):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
    net = nn.Sequential(*layers).eval().requires_grad_(False)
    once = replace(APGD, params=(("steps", 1),))  # further steps would carry a rounded sign on
    whole, pieces = (measured(Fills(net, fits=fits), once, examples, tmp_path / str(fits)).outcomes for fits in (N, 7))
    assert np.allclose(whole.margin, pieces.margin, atol=1e-5) and np.array_equal(whole.correct, pieces.correct)


def test_the_chunk_that_is_kept_is_the_one_of_the_whole(examples, tmp_path):
    for name, fits in (("whole", N), ("pieces", 5)):
        measured(Fills(Rows(), fits=fits), APGD, examples, tmp_path / name)
    kept = [sorted(path.name for path in (tmp_path / name).rglob("*.npz")) for name in ("whole", "pieces")]
    assert kept[0] == kept[1] and len(kept[0]) == 1


def test_a_random_defense_in_pieces_is_repeatable_and_no_failure(examples, tmp_path):
    spec = replace(APGD, params=(("eot", 4), *STEPS))  # 24 images in 4 draws, of which 8 rows fit
    cells = [measured(FillsAtRandom(Rows(), fits=8), spec, examples, tmp_path / name) for name in "ab"]
    assert cells[0].record.status == "ok" and cells[0].record.lasting() == cells[1].record.lasting()
    whole = measured(FillsAtRandom(Rows(), fits=4 * N), spec, examples, tmp_path / "whole")
    assert (whole.record.forward_rows, whole.record.backward_rows) == (
        cells[0].record.forward_rows, cells[0].record.backward_rows,
    )  # fmt: skip
    assert abs(whole.outcomes.accuracy - cells[0].outcomes.accuracy) < 0.2


@pytest.mark.parametrize("spec", [SPECS[0], APGD], ids=lambda spec: spec.slug)
def test_where_not_one_image_fits_the_run_ends_and_no_cell_has_failed(spec, examples, tmp_path):
    with pytest.raises(BenchError, match=rf"^fills, {spec.slug}: out of memory for a single image on cpu"):
        measured(Fills(Rows(), fits=0), spec, examples, tmp_path)


def test_memory_that_runs_out_as_an_attack_learns_ends_the_run_too(examples, tmp_path):
    spec = AttackSpec("universal", "white_box", "linf", 0.1, (), "autograd")
    with pytest.raises(BenchError, match="as the attack learned: out of memory"):
        measured(Fills(Rows(), fits=5), spec, examples, tmp_path)


class FailsBeyond(Fills):
    """In pieces that fit it raises for one image, which no memory would help."""

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        found = super().purify(images, generator)
        if images.requires_grad and bool((images.mean(dim=(1, 2, 3)) > 0.55).any()):
            raise RuntimeError("too bright")
        return found


@pytest.mark.parametrize("defense", [FailsBeyond(Rows()), FailsBeyond(Rows(), fits=N), CrashesUnderAttack(Rows())])
def test_other_failures_still_count_against_the_defense(defense, examples, tmp_path):
    cell = measured(defense, APGD, examples, tmp_path)
    assert cell.record.status == "failed" and cell.record.error.startswith("under attack: RuntimeError: ")
    assert not cell.outcomes.correct.any(), "in pieces as in one"


# ---------------------------------------------------------------------------------------------- before the cells


def test_a_defense_that_does_not_fit_is_neither_unusable_nor_cheap_nor_in_breach(digits):
    net = Rows()
    with pytest.raises(torch.OutOfMemoryError):
        cost.purification_units(Fills(net, fits=3), net, examples_of(16))
    with pytest.raises(BenchError, match="Fills, held to its contract: out of memory"):
        list(checks.run(Fills))

    class NoRoom(Fake):
        def __init__(self, classifier: nn.Module) -> None:
            raise torch.OutOfMemoryError("full")

    with pytest.raises(BenchError, match="no_room was not built: out of memory"):
        subjects.trained_subject(("no_room", NoRoom), "A", net, "a", digits, None, Progress())


def examples_of(n: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=Generator().manual_seed(2))


@pytest.mark.slow
def test_a_child_whose_memory_is_full_says_so_and_lives_on(examples, tmp_path):
    cls = isolated("fills", "fakes:Fills", path=[Path(__file__).parent])
    try:
        there = cls(nn.Flatten(), fits=5)
        images = examples_of(6)
        with pytest.raises(ChildMemoryError, match="OutOfMemoryError: CUDA out of memory"):
            there.purify(images, draws.generator("cpu", 0))
        generation = cls.channel.generation
        assert torch.equal(there.purify(images[:5], draws.generator("cpu", 0)), images[:5] ** 2)
        assert cls.channel.generation == generation, "the same child"
        cell = measured(there, APGD, examples, tmp_path)
        assert cell.record.status == "ok"
    finally:
        cls.channel.close()
