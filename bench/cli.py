"""The command line: what is mounted where, errors as one line. The commands are in bench/commands/, those around
submissions and breaks beside what they do. Torch is imported only where needed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench.breaks import commands as breaks
from bench.commands import data, look, measure, reproduce, site, weights
from bench.commands.options import DataRoot
from bench.errors import BenchError
from bench.submissions import commands as submissions

app = typer.Typer(
    name="purifybench",
    help="A benchmark for defenses that purify or refuse images, against attackers who know them.\n\n"
    "Start with `purifybench demo` (about four minutes, no data needed), then `purifybench list defenses`, "
    "`purifybench run DEFENSE --protocol mnist-v1-quick`, `purifybench site build`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.data_app, name="data")
app.add_typer(site.site_app, name="site")
app.add_typer(weights.weights_app, name="weights")
app.add_typer(submissions.submission_app, name="submission")
app.add_typer(breaks.break_app, name="break")
app.command("new")(submissions.new)
app.command()(measure.demo)
app.command()(measure.run)
app.command()(reproduce.reproduce)
app.command("list")(look.list_)
app.command()(look.show)
app.command()(look.compare)
app.command()(measure.check)
app.command()(measure.train)
app.command()(measure.timing)
app.command()(site.serve)


@app.command()
def doctor(data_root: DataRoot = None) -> None:
    """Look at this installation: versions, device, data, plugins, packages that shadow one another."""
    from bench import doctor as examination

    worst = False
    for line in examination.examine(data_root):
        typer.echo(f"{line.state:<8} {line.topic:<20} {line.text}")
        worst |= line.state == "problem"
    if worst:
        raise typer.Exit(1)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"purifybench {version('purifybench')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console command: our own errors become one line and exit status 2, Ctrl-C says what is kept."""
    try:
        app()
    except BenchError as problem:
        typer.echo(f"error: {problem}", err=True)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130:  # how typer ends after Ctrl-C
            typer.echo("stopped; what was finished is kept, and the same command goes on from there", err=True)
        raise


if __name__ == "__main__":
    main()
