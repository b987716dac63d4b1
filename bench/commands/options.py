"""What several commands share: their options, how names are completed, given and printed. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import catalog, plugins, protocols
from bench.protocol import TRACKS


def starting(names: Iterable[str], typed: str) -> list[str]:
    """The names that begin as what was typed."""
    return [name for name in names if name.startswith(typed)]


def complete_defense(incomplete: str) -> list[str]:
    """Names of installed defenses."""
    return starting(plugins.installed(), incomplete)


def complete_defense_or_all(incomplete: str) -> list[str]:
    """The same, or `all`."""
    return starting([*plugins.installed(), "all"], incomplete)


def complete_protocol(incomplete: str) -> list[str]:
    """Ids of protocols."""
    return starting(protocols.known(), incomplete)


def complete_paper(incomplete: str) -> list[str]:
    """Papers and their tables."""
    from leaderboard import reported

    return starting(reported.names(), incomplete)


def complete_classifier(incomplete: str) -> list[str]:
    """Names of classifiers."""
    return starting(catalog.CLASSIFIERS, incomplete)


def complete_attack(incomplete: str) -> list[str]:
    """Names of attacks."""
    return starting(catalog.ATTACKS, incomplete)


def complete_track(incomplete: str) -> list[str]:
    """Names of tracks."""
    return starting(TRACKS, incomplete)


def complete_dataset(incomplete: str) -> list[str]:
    """Names of data sets."""
    return starting(catalog.DATASETS, incomplete)


def complete_weights(incomplete: str) -> list[str]:
    """Whose trained weights are here."""
    from bench import weights

    return starting(sorted({found.name for found in weights.kept()}), incomplete)


Defenses = Annotated[list[str], typer.Argument(help="Names, or `all`.", autocompletion=complete_defense_or_all)]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that holds MNIST/raw and FashionMNIST/raw.", envvar="PURIFYBENCH_DATA"),
]
Records = Annotated[Path, typer.Option(help="Folder of the records.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", autocompletion=lambda: ["auto", "cpu", "cuda"])]
ProtocolId = Annotated[str, typer.Option("--protocol", "-p", help="Its id.", autocompletion=complete_protocol)]


def split(values: list[str] | None) -> list[str]:
    """Names given as `--tracks a,b` or `--tracks a --tracks b`."""
    return [name.strip() for value in values or [] for name in value.split(",") if name.strip()]


def every(defenses: list[str], protocol_id: str) -> list[str]:
    """The names given; for `all`, every defense that imports and that the protocol is for."""
    if "all" not in defenses:
        return defenses
    from bench import planning

    sound, broken = plugins.load_all()
    for name, reason in broken.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    asked = protocols.get(protocol_id)
    return [name for name, cls in sound.items() if planning.fits(cls, asked)]


def show_all(*things: Any) -> None:
    """Print text and tables, 160 columns wide where there is no terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for thing in things:
        console.print(thing, highlight=False)
