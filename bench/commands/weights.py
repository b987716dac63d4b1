"""The commands around trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import complete_weights, show_all
from bench.errors import BenchError

weights_app = typer.Typer(help="Trained weights: what is here, out to a folder, in from one.", no_args_is_help=True)


WeightNames = Annotated[
    list[str] | None, typer.Argument(help="Of which defenses or nets; default: all.", autocompletion=complete_weights)
]


@weights_app.command("list")
def weights_list(names: WeightNames = None) -> None:
    """List trained weights: data set, seed, epochs, the loss after the last one, size."""
    from rich.table import Table

    from bench import places, weights

    table = Table("Weights", "Data set", "Seed", "Classifier", "Epochs", "Last loss", "MB", "File")
    found = weights.kept(names or [])
    for one in found:
        key, epochs = one.key, sum(len(losses) for losses in one.losses.values())
        table.add_row(
            one.name, str(key.get("dataset", "")), str(key.get("seed", "")), str(key.get("classifier", ""))[:8],
            str(epochs), f"{weights.last_loss(one):.4g}", f"{one.size / 1e6:.1f}", one.path.name,
        )  # fmt: skip
    if found:
        show_all(table)
    else:
        typer.echo(f"no weights in {places.home() / 'weights'} yet; `purifybench train` makes some")


@weights_app.command("export")
def weights_export(
    folder: Annotated[Path, typer.Argument(help="Where to; made if it does not exist.")], names: WeightNames = None
) -> None:
    """Copy trained weights to a folder, to give them away."""
    from bench import weights

    for copy in weights.export(folder, names or []):
        typer.echo(f"{copy}")


@weights_app.command("import")
def weights_import(
    folder: Annotated[Path, typer.Argument(help="A folder of weights, or one file.", exists=True)],
) -> None:
    """Take in weights that `export` wrote. A file that is damaged, or that nothing here would use, is refused."""
    from bench import weights

    refused = 0
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]:
        try:
            typer.echo(f"{path.name}: {weights.take(path)}")
        except BenchError as problem:
            refused += 1
            typer.echo(f"refused: {problem}", err=True)
    if refused:
        raise typer.Exit(1)
