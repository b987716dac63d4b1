"""The commands around submissions, mounted by bench.cli. Light until one of them has work to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
