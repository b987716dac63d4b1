"""`purifybench submission run`: what CI does with a submission, step by step, on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import campaign, checks, claims, planning, protocols, seal, selective
from bench.defense import Defense
from bench.errors import BenchError
from bench.isolation import Isolated, Limits, box, isolated
from bench.progress import Progress, duration
from bench.protocol import USUAL_THRESHOLD
from bench.record import Cell, Store
from bench.submissions import environment, gradients, places, rules, schema, weights
from bench.submissions.schema import Submission


class StepError(BenchError):
    """A step that a submission did not pass."""


@dataclass
class Report:
    """What the steps found, for the terminal and, as Markdown, for a job's summary."""

    name: str
    say: Callable[[str], None]
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, number: int, title: str) -> Iterator[list[str]]:
        """Time a step; what it appends to the list is told with it."""
        started, notes, outcome = time.monotonic(), list[str](), "stopped"
        try:
            yield notes
            outcome = "passed"
        except BenchError as problem:
            outcome = f"FAILED: {problem}"
            raise StepError(f"step {number}, {title}: {problem}") from problem
        finally:
            seconds = duration(max(1, time.monotonic() - started))
            self.say(f"{number}. {title}: {outcome} ({seconds})")
            for note in notes:
                self.say(f"   {note}")
            told = "; ".join([outcome, *notes]).replace("|", "/")
            self.lines.append(f"| {number} | {title} | {told} | {seconds} |")

    def markdown(self) -> str:
        """The steps as a table."""
        rows = [line.replace("\n", " ") for line in self.lines]
        return "\n".join([f"## {self.name}", "", "| | step | outcome | time |", "|---|---|---|---|", *rows, ""])


@contextmanager
def opened(
    name: str, root: Path, data_root: Path | None = None, limits: Limits | None = None, *, fresh: bool = False
) -> Iterator[tuple[Submission, str | type[Defense]]]:
    """A submission and its defense: the name of one that comes with PurifyBench, else a class in a child process, which
    is ended on leaving. `fresh` gives the process a full environment, in which nothing is seen of this one."""
    folder = places.folder(name, root)
    submission = schema.read(folder / places.FILE)
    python = environment.prepare(submission, folder, fresh=fresh)
    if submission.install.included:
        yield submission, submission.name
        return
    point = environment.entry_point(python, submission, folder)
    cls = isolated(
        submission.name, point, python=python, limits=limits or Limits(), data_root=data_root, own_harness=fresh
    )
    try:
        yield submission, cls
    finally:
        cls.channel.close()


def chosen_protocol(submission: Submission, given: str | None, quick: bool) -> str:
    """The protocol asked for, or that of the submission's first data set and of its kind."""
    if given:
        return protocols.get(given).id
    dataset, kind = submission.datasets[0], submission.kind == "selective"
    known = (one for one in protocols.PROTOCOLS.values() if one.dataset == dataset and one.is_selective == kind)
    return next(one.id for one in known if ("-quick" in one.id) == quick)


def run(
    name: str,
    root: Path,
    *,
    quick: bool = False,
    protocol_id: str | None = None,
    limit: int | None = None,
    records: Path | None = None,
    site: Path = Path("site-preview"),
    verify: int = 2,
    data_root: Path | None = None,
    device: str = "auto",
    limits: Limits | None = None,
    fresh: bool = False,
    report: Report,
    progress: Progress,
) -> list[Cell]:
    """All steps: rules, environment, contract, protocol, rules of the records, some cells again, a preview of the site.

    Returns the cells. Raises StepError at the first step that fails; what was measured until then is kept.
    """
    folder = places.folder(name, root)
    name = folder.name
    records = records or (folder / "records" if limit is None else Path("results"))
    with report.step(1, "rules of files, description and code"):
        _keep_rules(name, root, [rule for rule in rules.ALL if rule.number < 400])  # records may be half a run's
    with report.step(2, "environment and code") as notes:
        entered = opened(name, root, data_root, limits, fresh=fresh)
        submission, defense = entered.__enter__()
        weights.fetch(submission)
        if isinstance(defense, type) and issubclass(defense, Isolated):
            notes.append(f"in a process of its own: {box.describe(defense.channel.trees)}")
            if fresh:
                place = defense.channel.python.parent.parent
                notes.append(f"a full environment in {place}; delete it when you are done")
        else:
            notes.append("comes with PurifyBench: no isolation")
    try:
        with report.step(3, "contract") as notes:
            notes += _keep_contract(defense)
        chosen = protocols.get(chosen_protocol(submission, protocol_id, quick))
        chosen = chosen.limited(limit) if limit is not None else chosen
        with report.step(4, f"protocol {chosen.id}") as notes:
            asked = planning.plan([defense], chosen, classifier=submission.classifiers, on=device)
            cells = campaign.run(asked, Store(records), data_root=data_root, progress=progress)
            failed = [cell.record for cell in cells if cell.record.status == "failed"]
            notes.append(f"{len(cells)} cells in {records / chosen.id / name}, {len(failed)} failed")
            notes.append(f"sealed as {seal.chain(records / chosen.id / name)}")
            notes += [f"failed: {record.cell}: {record.error[:200]}" for record in failed[:5]]
            notes += claims_beside(submission, cells)
        if limit is None and records == folder / "records":
            with report.step(5, "rules of the records"):
                _keep_rules(name, root)
    finally:
        entered.__exit__(None, None, None)
    if verify and any(cell.record.status == "ok" for cell in cells):
        with report.step(6, f"{verify} random cells again, in a fresh process") as notes:
            notes += _verified(name, root, chosen.id, records, verify, data_root, device, fresh)
    with report.step(7, "preview of the site") as notes:
        from leaderboard.build import build

        others = [root / other / "records" for other in places.names(root) if other != name]
        found = [records, *(other for other in others if other.is_dir())]
        notes.append(str(build(found, site, submissions=[folder]).resolve()))
    return cells


def _keep_rules(name: str, root: Path, some: Sequence[rules.Rule[rules.Case]] | None = None) -> None:
    findings = rules.examine([name], root, some)[name]
    if findings:
        shown = "; ".join(str(finding) for finding in findings[:20])
        raise BenchError(f"{len(findings)} findings: {shown}")


def _keep_contract(defense: str | type[Defense]) -> list[str]:
    from bench import plugins

    cls = plugins.load(defense) if isinstance(defense, str) else defense
    broken = [finding for finding in checks.run(cls) if finding.problem]
    if broken:
        raise BenchError("; ".join(f"{finding.check}: {finding.problem}" for finding in broken))
    where = "through the seam" if issubclass(cls, Isolated) else "in this process"
    said = gradients.advice(cls)
    return [f"all {len(checks.ALL)} points kept, seen {where}", *([said] if said else [])]


def _verified(
    name: str,
    root: Path,
    protocol_id: str,
    records: Path,
    count: int,
    data_root: Path | None,
    device: str,
    fresh: bool,
) -> list[str]:
    words = [
        sys.executable, "-m", "bench.cli", "submission", "verify", name, "--root", str(root), "--records", str(records),
        "--protocol", protocol_id, "--cells", str(count), "--device", device,
        *(("--data-root", str(data_root)) if data_root else ()), *(("--fresh",) if fresh else ()),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    said = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        raise BenchError("; ".join([*said, *(done.stderr.strip().splitlines()[-3:])]))
    return said


def claims_beside(submission: Submission, cells: list[Cell]) -> list[str]:
    """What the authors claim, each beside the worst case that was measured at the same radius, where there is one."""
    if submission.kind == "selective":
        cells = selective.as_held(cells, USUAL_THRESHOLD)
    lines = []
    nets = sorted({cell.record.classifier for cell in cells})
    for net in nets:
        mine = [cell for cell in cells if cell.record.classifier == net]
        seeds = sorted({cell.record.seed for cell in mine})
        for one in claims.beside(submission.claims, [[c for c in mine if c.record.seed == seed] for seed in seeds]):
            claim, measured = one.claim, "not measured at this radius"
            if one.measured is not None:
                measured = f"worst case measured here {float(one.measured.mean()):.1%}"
            lines.append(
                f"claimed: {claim.accuracy:.1%} under {claim.attack}, {claim.norm} {claim.eps:g}, {claim.dataset} "
                f"({claim.where}); {measured}" + (f" with classifier {net}" if len(nets) > 1 else "")
            )
    return lines
