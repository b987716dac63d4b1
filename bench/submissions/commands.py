"""The commands around submissions, mounted by bench.cli. Light until one of them has work to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError
from bench.submissions import places

submission_app = typer.Typer(help="Submit a defense: describe, check, measure and verify it.", no_args_is_help=True)


def new(
    name: Annotated[str, typer.Argument(help="The name of the defense: my-defense.")],
    into: Annotated[Path, typer.Option(help="The folder in which the package's folder is made.")] = Path(),
) -> None:
    """Write a small installable package with one defense that keeps the contract: a place to start.

    purifybench new my-defense && pip install -e my-defense && purifybench check my-defense
    """
    from bench.submissions import scaffold

    folder = scaffold.new(name, into)
    typer.echo(f"{folder} holds a defense; next: pip install -e {folder} && purifybench check {folder.name}")


Root = Annotated[Path, typer.Option(help="The folder of all submissions.")]


def _split(values: list[str] | None) -> list[str]:
    return [name.strip() for value in values or [] for name in value.split(",") if name.strip()]


@submission_app.command()
def add(
    source: Annotated[str, typer.Argument(help="A folder with a pyproject.toml, or a pinned requirement.")],
    name: Annotated[str | None, typer.Option(help="Which of the package's defenses.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="May be repeated. Default: the package's.")] = None,
    licence: Annotated[str | None, typer.Option(help="An SPDX identifier. Default: the package's.")] = None,
    code: Annotated[str | None, typer.Option(help="An https link. Default: the package's first.")] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="Default: digits.")] = None,
    classifiers: Annotated[list[str] | None, typer.Option(help="Default: A.")] = None,
    root: Root = places.ROOT,
) -> None:
    """Describe a defense in submissions/NAME/submission.toml; a folder is copied beside it.

    A requirement names one version: NAME==VERSION, NAME @ https://...whl#sha256=..., NAME @ git+https://...@COMMIT.
    Claims and weights are added to the file by hand; `purifybench submission schema` says what it may hold.

        purifybench submission add ./my-defense --code https://example.org/my-defense
        purifybench submission add my-defense==0.1.0
    """
    from bench.submissions import add as adding

    path = adding.add(
        source, root, name=name, authors=tuple(author or ()), licence=licence, code=code,
        datasets=_split(datasets) or ("digits",), classifiers=_split(classifiers) or ("A",),
    )  # fmt: skip
    typer.echo(f"{path} describes {path.parent.name}; add claims and weights to it if there are any")


@submission_app.command("schema")
def schema_() -> None:
    """Print the JSON schema of submission.toml."""
    from bench.submissions import schema

    typer.echo(schema.json_schema(), nl=False)


@submission_app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Submissions; none or `all` means every one.")] = None,
    root: Root = places.ROOT,
    rules_only: Annotated[bool, typer.Option("--list", help="Print the rules and stop.")] = False,
) -> None:
    """Check submissions by numbered rules: files, description, code and records. Nothing of them is run.

    CI and `purifybench site build` apply the same rules. What a defense does when it runs: `purifybench check`.
    """
    from bench.submissions import rules

    if rules_only:
        for one in rules.ALL:
            typer.echo(f"S{one.number}  {one.meaning}")
        return
    places.root_of(root)
    every = places.names(root)
    chosen = every if not names or "all" in names else [places.folder(name, root).name for name in names]
    refused = 0
    for name, findings in rules.examine(chosen, root).items():
        refused += bool(findings)
        for finding in findings:
            typer.echo(str(finding), err=True)
        verdict = f"refused, {len(findings)} findings" if findings else f"keeps all {len(rules.ALL)} rules"
        typer.echo(f"{name}: {verdict}")
    if refused:
        raise typer.Exit(1)


def sound_records(root: Path = places.ROOT) -> tuple[list[Path], list[str]]:
    """The folders of records of the submissions that keep every rule; and why each of the others is left out, in lines
    that are also said."""
    from bench.submissions import rules

    found = rules.examine(places.names(root), root)
    left_out = [f"{name} is left out: {finding}" for name, findings in found.items() for finding in findings]
    for line in left_out:
        typer.echo(line, err=True)
    return [root / name / "records" for name, findings in found.items() if not findings], left_out


Name = Annotated[str, typer.Argument(help="The submission's name.")]
Records = Annotated[Path | None, typer.Option(help="Folder of the records. Default: the submission's own.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder that holds MNIST/raw.", envvar="PURIFYBENCH_DATA")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", help="A full environment, not one over this: 6 GB, some minutes of pip; kept for the next time."
    ),
]


@submission_app.command()
def run(
    name: Name,
    quick: Annotated[bool, typer.Option("--quick", help="The quick protocol of its first data set.")] = False,
    protocol_id: Annotated[str | None, typer.Option("--protocol", "-p", help="Another protocol.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N images: a look.", min=1)] = None,
    verify_cells: Annotated[int, typer.Option("--verify", help="How many cells are measured again.", min=0)] = 2,
    records: Records = None,
    site: Annotated[Path, typer.Option(help="Where the preview of the site goes.")] = Path("site-preview"),
    call_seconds: Annotated[float, typer.Option(help="The longest that one answer may take.", min=1)] = 300,
    cell_seconds: Annotated[
        float, typer.Option(help="The longest that all answers of a cell may take.", min=1)
    ] = 14400,
    memory_mb: Annotated[float, typer.Option(help="The most memory that the defense may use.", min=500)] = 6000,
    fresh: Fresh = False,
    summary: Annotated[Path | None, typer.Option(help="Append the steps as a Markdown table to this file.")] = None,
    root: Root = places.ROOT,
    data_root: DataRoot = None,
    device: Device = "auto",
) -> None:
    """Do what CI does: rules, environment, contract, protocol, two cells again, a preview of the site.

    The defense runs in a process of its own, in an environment over this one, or with --fresh in one that sees nothing
    of this one. docs/isolation.md says what that stops.

        purifybench submission run my-defense --quick
    """
    from bench import progress
    from bench.isolation import Limits
    from bench.submissions import run as steps

    report = steps.Report(name, typer.echo)
    try:
        steps.run(
            name, root, quick=quick, protocol_id=protocol_id, limit=limit, records=records, site=site,
            verify=verify_cells, data_root=data_root, device=device, report=report, progress=progress.for_terminal(),
            limits=Limits(call_seconds=call_seconds, cell_seconds=cell_seconds, memory_mb=memory_mb), fresh=fresh,
        )  # fmt: skip
    finally:
        if summary is not None:
            with summary.open("a") as file:
                file.write(report.markdown())


@submission_app.command()
def verify(
    name: Name,
    protocol_id: Annotated[str | None, typer.Option("--protocol", "-p", help="Default: every one measured.")] = None,
    cells: Annotated[int, typer.Option(help="How many random cells of each protocol.", min=1)] = 2,
    cell: Annotated[list[str] | None, typer.Option(help="These cells, by the names of their records.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Score the attacked images of this PURIFYBENCH_HOME; default: attack again.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Choose the cells by this seed.")] = None,
    fresh: Fresh = False,
    records: Records = None,
    root: Root = places.ROOT,
    data_root: DataRoot = None,
    device: Device = "auto",
) -> None:
    """Measure some cells of a submission again and compare them with its records.

    Every attack is run again from its seed, or with --images its images are scored again. On the same machine with the
    same versions records must be the same; elsewhere at most one image of a hundred may come out otherwise.
    """
    from bench.submissions import run as steps
    from bench.submissions import verify as verification

    folder = places.folder(name, root)
    stored = records or folder / "records"
    protocols = [protocol_id] if protocol_id else sorted(path.parent.name for path in stored.glob(f"*/{folder.name}"))
    if not protocols:
        raise BenchError(f"there are no records of {folder.name} in {stored}; purifybench submission run {name}")
    wanted = {one: cell or verification.choose(stored, folder.name, one, cells, seed) for one in protocols}
    refused = False
    with steps.opened(name, root, data_root, fresh=fresh) as (_, defense):
        for one, chosen in wanted.items():
            for found in verification.again(
                defense, folder.name, stored, one, chosen, images=images, data_root=data_root, device=device
            ):
                refused |= bool(found.problem)
                verdict = found.problem or "confirmed"
                typer.echo(f"{one} {found.record.record.cell}: {verdict}")
    if refused:
        raise typer.Exit(1)
