"""The commands around data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.commands.options import DataRoot, complete_dataset

data_app = typer.Typer(help="Find, check and fetch data sets.", no_args_is_help=True)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="mnist or fmnist.", autocompletion=complete_dataset)],
    data_root: DataRoot = None,
    url: Annotated[str | None, typer.Option(help="A mirror: the address of a folder with the four .gz files.")] = None,
) -> None:
    """Download a data set and check it; files that are there and sound are kept."""
    from bench import data

    typer.echo(f"{name} is in {data.fetch(name, data_root, url, typer.echo)}")


@data_app.command("list")
def data_list(data_root: DataRoot = None) -> None:
    """Say which data sets are found here, and whether they are sound."""
    from bench import doctor

    for line in doctor.data(data_root):
        typer.echo(f"{line.topic.removeprefix('data '):<8} {line.text}")
