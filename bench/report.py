"""Records as tables on a terminal, for `run`, `demo`, `show` and `compare`. Numbers come from bench.statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench import selective, statistics
from bench.errors import BenchError
from bench.evidence import Verdict
from bench.protocol import THRESHOLDS, USUAL_THRESHOLD, AttackSpec, Protocol
from bench.record import Cell, Record
from bench.timing_record import CLASSIFIER, REFERENCE, Timing
from bench.verdicts import over_seeds


def percent(share: float) -> str:
    """A share as people read it: 97.3 %."""
    return f"{100 * share:.1f} %"


def accuracy(cell: Cell) -> str:
    """A cell's accuracy with its 95 % interval, on the images that it attacked; what became of them in a cascade."""
    mask, outcomes = cell.outcomes.attacked, cell.outcomes
    attacked = int(mask.sum())
    if cell.record.cascade:
        return f"attacked {attacked} of {len(mask)}, broke {int((outcomes.correct[mask] <= 0.5).sum())}"
    if not attacked:
        return "–"
    low, high = statistics.accuracy_interval(outcomes.correct[mask].astype(np.float64))
    return f"{percent(outcomes.accuracy)} [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True)
class _Group:
    """The cells of one defense on one classifier, and the protocol as that defense meets it."""

    cells: Sequence[Cell]
    effort: Protocol
    verdicts: tuple[Verdict, ...] = ()

    def found(self, level: str) -> list[Verdict]:
        """The verdicts of one level."""
        return [verdict for verdict in self.verdicts if verdict.level == level]

    @property
    def name(self) -> str:
        record = self.cells[0].record
        return f"{record.card.title} ({record.defense})"

    @property
    def seeds(self) -> list[list[Cell]]:
        """The cells of each seed that count, in the protocol's order; only seeds that have their clean cell."""
        wanted = {spec.slug for spec in self.effort.attacks}
        counted = [cell for cell in self.cells if cell.record.spec.slug in wanted]
        by_seed = [[c for c in counted if c.record.seed == seed] for seed in sorted({c.record.seed for c in counted})]
        sound = (cells for cells in by_seed if any(cell.record.spec.slug == "clean.none" for cell in cells))
        return [statistics.ordered(cells, self.effort) for cells in sound]

    @property
    def is_whole(self) -> bool:
        """Whether no cell is missing, and none has left out an image that it should have attacked."""
        present = {(cell.record.spec.slug, cell.record.seed) for cell in self.cells}
        seeds = {cell.record.seed for cell in self.cells}
        has_all = all((spec.slug, seed) in present for spec in self.effort.attacks for seed in seeds)
        return has_all and not any(statistics.left_out(cells, self.effort) for cells in self.seeds)


def _groups(cells: Sequence[Cell], protocol: Protocol) -> list[_Group]:
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.record.defense, cell.record.classifier), []).append(cell)
    groups = {}
    for key, group in found.items():
        record = group[0].record
        groups[key] = _Group(
            group, protocol.effort(record.budget, stochastic=record.card.stochastic, doors=record.card.doors)
        )
    return [_judged(group, groups.get(("identity", classifier))) for (_, classifier), group in groups.items()]


def _judged(group: _Group, bare: _Group | None) -> _Group:
    """The group with its verdicts, seed by seed against `identity` on the same classifier."""
    baselines = (bare.seeds if bare else []) or [[]]
    pairs = ((cells, baselines[k % len(baselines)]) for k, cells in enumerate(group.seeds))
    return replace(group, verdicts=over_seeds(pairs, group.effort))


def summary(cells: Sequence[Cell], protocol: Protocol) -> Group:
    """What a run found: the numbers of each defense, what broke most images, and whether to believe it."""
    stored = cells
    if protocol.is_selective:
        cells = selective.as_held(cells, USUAL_THRESHOLD)
    groups = _groups(cells, protocol)
    whole = all(group.is_whole for group in groups)
    what = "worst case of all attacks" if whole else "worst case of the selected attacks: not a result"
    table = Table(title=f"{protocol.id}, {what}", caption=_caveat(protocol), caption_justify="left")
    table.add_column("defense")
    radii = [f"Linf {eps:g}" for eps in protocol.linf_radii]
    for heading in ("classifier", "n", "clean", *radii, "mean robust radius"):
        table.add_column(heading, justify="right")
    for group in groups:
        _add_row(table, group, protocol)
    answers = _answers(_groups(stored, protocol), protocol) if protocol.is_selective else ()
    return Group(table, *answers, *_strongest(groups, protocol), *distortions(cells, protocol), *_verdicts(groups))


def _answers(groups: Sequence[_Group], protocol: Protocol) -> Iterator[Table]:
    """Right, wrong and refused at each threshold, clean and at the headline radii."""
    caption = "Accepted and right / accepted and wrong / refused, in %; each attacked image at its worst version."
    table = Table(title="what becomes of the images", caption=caption, caption_justify="left")
    table.add_column("defense")
    table.add_column("refuses")
    for heading in ("n", "clean", *(f"Linf {eps:g}" for eps in protocol.headline_radii)):
        table.add_column(heading, justify="right")
    for group in groups:
        if group.found("breach") or not group.seeds:
            continue
        for threshold in THRESHOLDS:
            try:
                found = [selective.worst(cells, "linf", protocol.headline_radii, threshold) for cells in group.seeds]
            except ValueError:  # of a random defense only the cells' own threshold is known
                continue
            parts = np.mean([(one.right, one.wrong, one.refused) for one in found], axis=0).mean(axis=2)  # (3, 1 + R)
            shares = [" / ".join(f"{100 * share:.1f}" for share in part) for part in parts.T]
            table.add_row(group.name, threshold, str(group.cells[0].record.n_examples), *shares)
    if table.rows:
        yield table


def _add_row(table: Table, group: _Group, protocol: Protocol) -> None:
    record = group.cells[0].record
    failed = sum(cell.record.status == "failed" for cell in group.cells)
    costly = "" if record.budget == "cheap" else "upper bound, reduced budget"
    warned = (
        "not evaluated" if group.found("breach") else "upper bound, unverified" if group.found("warning") else costly
    )
    name = ", ".join(filter(None, (group.name, warned, f"{failed} cells failed" if failed else "")))
    seeds = group.seeds
    if not seeds or group.found("breach"):
        table.add_row(name, record.classifier, str(record.n_examples), *["–"] * (len(protocol.linf_radii) + 2))
        return
    curves = [statistics.robustness(cells, "linf", protocol.linf_radii) for cells in seeds]
    curve = np.mean(curves, axis=0)
    radius = statistics.robust_radius(curve, protocol.linf_radii)
    by_seed = np.array([statistics.robust_radius(one, protocol.linf_radii).mean() for one in curves])
    low, high = statistics.bootstrap(radius, luck=statistics.training_luck(by_seed))
    shares = [percent(float(share)) for share in curve.mean(axis=1)]
    mean = f"{radius.mean():.3f} [{low:.3f}, {high:.3f}]" if group.is_whole else "–"
    table.add_row(name, record.classifier, str(record.n_examples), *shares, mean)


def _strongest(groups: Sequence[_Group], protocol: Protocol) -> Iterator[Table]:
    """What broke most images of each defense at the headline radii."""
    groups = [group for group in groups if group.seeds and not group.found("breach")]
    if not protocol.headline_radii or not groups:
        return
    table = Table(title="broke most right images, the first attack that broke one counting")
    table.add_column("defense")
    for eps in protocol.headline_radii:
        table.add_column(f"Linf {eps:g}")
    for group in groups:
        found = [statistics.strongest(group.seeds, eps) for eps in protocol.headline_radii]
        said = [f"{_called(one.kind)}: {one.broken} of {one.total}" if one else "none fell" for one in found]
        table.add_row(group.name, *said)
    yield table


def _called(kind: AttackSpec) -> str:
    source = f"from {kind.source}" if kind.source else ""
    return f"{kind.attack} ({' '.join(filter(None, (kind.track, kind.route, source)))})"


def _verdicts(groups: Sequence[_Group]) -> Iterator[Text]:
    """Breaches and warnings in full, notes by name."""
    for group in groups:
        for level, style in (("breach", "bold red"), ("warning", "yellow")):
            for verdict in group.found(level):
                yield Text(f"{level}: {group.name}, {verdict.rule}. {verdict.text}", style=style)
        notes = ", ".join(verdict.rule for verdict in group.found("note"))
        if notes:
            yield Text(f"notes: {group.name}, {notes}", style="dim")


def distortions(cells: Sequence[Cell], protocol: Protocol) -> Iterator[Table]:
    """How far attacks without a budget went, and the accuracy at fixed L2 budgets; no table where there are none.

    `cells` are those of one or more defenses; each is compared with its own clean cell of the same seed.
    """
    clean = {_whose(cell): cell for cell in cells if cell.record.spec.slug == "clean.none"}
    found = [cell for cell in cells if statistics.is_unbounded(cell) and _whose(cell) in clean]
    if not found:
        return
    caption = "Median L2 to break: 0 where an image is wrong when clean, infinite where it stays right."
    table = Table(title="attacks without a budget", caption=caption, caption_justify="left")
    for heading in ("defense", "classifier", "attack"):
        table.add_column(heading)
    for heading in ("n", "median L2 to break", *(f"right at L2 {eps:g}" for eps in protocol.l2_radii)):
        table.add_column(heading, justify="right")
    for cell in found:
        record, far = cell.record, statistics.distortion(clean[_whose(cell)], cell, protocol.l2_radii)
        median = f"{far.median:.3f}" if np.isfinite(far.median) else "∞"
        shares = [percent(float(share)) for share in far.accuracies.mean(axis=1)]
        n, name = int(cell.outcomes.attacked.sum()), f"{_called(record.spec)} {record.variant}".strip()
        table.add_row(record.defense, record.classifier, name, str(n), median, *shares)
    yield table


def _whose(cell: Cell) -> tuple[str, str, int]:
    return cell.record.defense, cell.record.classifier, cell.record.seed


def details(cells: Sequence[Cell]) -> Table:
    """One row for each cell of one defense."""
    table = Table()
    for heading in ("on", "track", "attack", "budget"):
        table.add_column(heading)
    table.add_column("accuracy, 95 % interval", justify="right", no_wrap=True)
    for heading in ("n", "median Linf", "median L2", "forward rows", "backward rows", "blocked", "status"):
        table.add_column(heading, justify="right")
    for cell in cells:
        record, outcomes = cell.record, cell.outcomes
        mask = outcomes.attacked
        budget = f"{record.norm} {record.eps:g}" if record.norm and record.eps is not None else "–"
        source = _source(record)
        linf, l2 = (f"{np.median(d[mask]):.3f}" if mask.any() else "–" for d in (outcomes.linf, outcomes.l2))
        table.add_row(
            record.classifier,
            " ".join(filter(None, (record.track, record.route, source))),
            f"{record.attack} {record.variant}".strip(),
            budget, accuracy(cell), str(int(mask.sum())), linf, l2,
            f"{record.forward_rows:,}", f"{record.backward_rows:,}",
            "–" if record.blocked is None else percent(record.blocked),
            record.status if record.status == "ok" else f"failed: {record.error}",
        )  # fmt: skip
    return table


def _source(record: Record) -> str:
    """What images were made on, with what is known of a net: "from imitation-B, agrees on 94.1 %, 4,800 queries"."""
    agrees = "" if record.source_agreement is None else f"agrees on {percent(record.source_agreement)}"
    asked = f"{record.source_queries:,} queries" if record.source_queries else ""
    return ", ".join(filter(None, (f"from {record.source}" if record.source else "", agrees, asked)))


def comparison(first: Sequence[Cell], second: Sequence[Cell]) -> Table:
    """Cell by cell, two defenses on the same images: the paired difference with its bootstrap interval.

    Cells of a cascade attack what each defense left over and have no pair.

    Raises BenchError if they share no cell.
    """
    theirs = {cell.record.cell: cell for cell in second if not cell.record.cascade and cell.outcomes.attacked.any()}
    cold = [cell for cell in first if not cell.record.cascade and cell.outcomes.attacked.any()]
    pairs = [(cell, theirs[cell.record.cell]) for cell in cold if cell.record.cell in theirs]
    if not pairs:
        raise BenchError("the two share no cell of one protocol; run both under the same one")
    names = [pairs[0][0].record.defense, pairs[0][1].record.defense]
    table = Table(title=f"{names[0]} against {names[1]}, {pairs[0][0].record.protocol}")
    for heading in ("cell", "n", *names, "difference, 95 % interval"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for mine, other in pairs:
        n = min(len(mine.outcomes.attacked), len(other.outcomes.attacked))
        both = mine.outcomes.attacked[:n] & other.outcomes.attacked[:n]
        ours, others = (cell.outcomes.correct[:n][both].astype(np.float64) for cell in (mine, other))
        low, high = statistics.bootstrap(ours - others)
        values = f"{100 * (ours - others).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
        name = mine.record.cell.removesuffix(f".seed{mine.record.seed}")
        table.add_row(name, str(len(ours)), percent(float(ours.mean())), percent(float(others.mean())), values)
    return table


def _caveat(protocol: Protocol) -> str:
    return protocol.purpose if not protocol.ranked or protocol.is_draft else ""


def timing(run: Timing) -> Iterator[Table | str]:
    """One run of the timing track: the quickest first, noisy rows marked, and who was left out."""
    machine = run.machine
    yield f"{machine.name}, {machine.threads} threads, torch {machine.versions.get('torch', '?')}; {run.dataset}"
    table = Table(
        "", "First call", "1 image: median", "IQR", "p95", "128: images/s", "x classifier",
        "search takes x", "Units", "MiB",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    search = run.entrant(REFERENCE)
    for one in sorted(run.entrants, key=lambda one: one.measures[0].median):
        single, many = one.at(1), one.at(128)
        low, high = single.quartiles if single else (0.0, 0.0)
        table.add_row(
            Text(one.title), _time(one.first_seconds), *(
                (_time(single.median) + "~" * single.is_noisy, _time(high - low), _time(single.p95)) if single
                else ("–", "–", "–")
            ),
            "–" if many is None else f"{many.images_per_second:,.3g}{'*' * bool(many.derived_from)}"
            f"{'~' * many.is_noisy}",
            _times(run.ratio(one, CLASSIFIER, 1)), _times(run.ratio(search, one.name, 1) if search else None),
            f"{one.units:,.3g}",
            f"{one.peak_memory_mb:,.0f}",
        )  # fmt: skip
    yield table
    yield "~ noisy: the interquartile range is above 5 % of the median. * derived from a smaller batch."
    for name, reason in run.left_out.items():
        yield f"left out: {name}: {reason}"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:,.3g}"
