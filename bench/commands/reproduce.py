"""The command that repeats a paper's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench import plugins
from bench.commands.options import DataRoot, Device, complete_defense, complete_paper, show_all, split
from bench.errors import unknown

if TYPE_CHECKING:
    from bench.record import Cell
    from leaderboard.reproduce import Ask


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A paper or one of its tables; none lists all.", autocompletion=complete_paper)
    ] = None,
    defenses: Annotated[
        list[str] | None, typer.Option(help="Measure only these, by our names.", autocompletion=complete_defense)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N images: a look.", min=1)] = None,
    recipe: Annotated[str | None, typer.Option(help="A defense's training recipe: fast, paper, ...")] = None,
    device: Device = "auto",
    records: Annotated[
        Path | None, typer.Option(help="Folder of the records. [default: results, and to look at, ./submissions]")
    ] = None,
    data_root: DataRoot = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run nothing: say what would run, compare what is in the records.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--csv", help="Also write the comparison to this file.")] = None,
) -> None:
    """Repeat a paper's evaluation as it was run, and put what it printed beside what is measured here.

    The quirks of each paper are kept and named: attacks on the bare classifier that it calls white-box, agreement
    counted as accuracy, one gradient for nine steps. Notes under each table say what makes two numbers differ. Numbers
    that cannot be measured are shown with the reason. Resumes like `run`; what is in the records is not run again.

        purifybench reproduce
        purifybench reproduce vq-vae/fig10-fgsm --limit 100 --data-root DIR
        purifybench reproduce mad-vae --defenses identity
        purifybench reproduce mad-vae --dry-run --csv mad-vae.csv
    """
    from bench.record import Store
    from bench.submissions import places
    from leaderboard import reported, terminal
    from leaderboard import reproduce as reproduction

    rows = reported.reported() if name is None else reproduction.chosen(name)
    here = reproduction.installed()
    only = {plugins.slug(one) for one in split(defenses)} or here.defenses
    for one in only - here.defenses:
        raise unknown("defense", one, here.defenses, see="purifybench list defenses")

    own = records or Path("results")
    looks_only = records is None and (dry_run or name is None)
    beside = [places.ROOT / entry / "records" for entry in places.names()] if looks_only else []

    def compared() -> tuple[reproduction.Line, ...]:
        cells: dict[tuple[str, str, str], Cell] = {}
        for cell in (cell for folder in (own, *beside) for cell in reproduction.stored(Store(folder), limit)):
            cells.setdefault((cell.record.protocol, cell.record.defense, cell.record.cell), cell)
        return reproduction.lines(rows, cells.values(), limit, here)

    if name is not None:
        failed = _answer(reproduction.asks(compared(), here, only), limit, recipe, device, own, data_root, dry_run)
    found = compared()
    show_all(*(terminal.overview(found) if name is None else terminal.comparison(found)))
    if out is not None:
        from bench.places import write_atomically

        text = reproduction.as_csv(found).encode()
        write_atomically(out, lambda file: file.write(text))
        typer.echo(f"The comparison: {out}")
    if name is not None and failed:
        raise typer.Exit(1)


def _answer(
    asks: tuple[Ask, ...], limit: int | None, recipe: str | None, on: str, records: Path, data_root: Path | None,
    dry_run: bool,
) -> bool:  # fmt: skip
    """Run what a comparison asks for, or say what would run; whether a defense failed."""
    from bench import campaign, outline, planning, progress
    from bench.record import Store

    recipes = {name: plugins.load(name).recipes for ask in asks for name in ask.defenses}
    if recipe is not None and not any(recipe in own for own in recipes.values()):
        raise unknown("recipe", recipe, {one for own in recipes.values() for one in own})
    failed = False
    for ask in asks:
        plan = planning.plan(
            ask.defenses, ask.protocol, classifier=ask.classifiers, tracks=[ask.track], attacks=ask.attacks,
            limit=limit, recipe=recipe if any(recipe in recipes[name] for name in ask.defenses) else None, on=on,
        )  # fmt: skip
        if dry_run:
            show_all(*outline.outline(plan, Store(records)))
        else:
            cells = campaign.run(plan, Store(records), data_root=data_root, progress=progress.for_terminal())
            failed |= any(cell.record.status == "failed" for cell in cells)
    return failed
