"""The commands around submissions, mounted by bench.cli. Light until one of them has work to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


def sound_records(root: Path = places.ROOT) -> list[Path]:
    """The folders of records of the submissions that keep every rule; what is found in the others is said."""
    from bench.submissions import rules

    sound = []
    for name, findings in rules.examine(places.names(root), root).items():
        if not findings:
            sound.append(root / name / "records")
        for finding in findings:
            typer.echo(f"{name} is left out: {finding}", err=True)
    return sound
