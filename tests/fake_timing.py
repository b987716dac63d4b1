"""Made-up runs of the timing track."""

from __future__ import annotations

from bench.timing_record import CLASSIFIER, REFERENCE, Entrant, Machine, Measure, Passes, Timing

PLACE = Machine(
    device="cpu", name="Some processor", cores=2, threads=1, system="Linux", tf32=False, amp=False,
    heap_pinned=True, versions={"torch": "2"},
)  # fmt: skip


def times(name: str, kind: str = "defense", *, seconds: float = 1.0, **facts) -> Entrant:
    measures = (
        Measure(batch=1, seconds=(seconds,) * 5), Measure(batch=128, seconds=(64 * seconds,) * 2, derived_from=32)
    )  # fmt: skip
    given = {"title": name.title(), "first_seconds": 9.0, "peak_memory_mb": 1234.5, "peak_memory_batch": 32}
    given |= {"measures": measures, "passes": {CLASSIFIER: Passes(forward=1, backward=0)}}
    return Entrant(name=name, kind=kind, **given | facts)


def run(*entrants: Entrant, **facts) -> Timing:
    both = (times(CLASSIFIER, "classifier", seconds=0.001), times(REFERENCE, "reference", seconds=4.0))
    given = {"dataset": "digits", "classifier": "A", "classifier_weights": "w", "machine": PLACE}
    return Timing(entrants=(*both, *entrants), **given | facts)
