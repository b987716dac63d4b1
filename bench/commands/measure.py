"""Commands that train, check and measure defenses: demo, run, check, train, timing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import plugins
from bench.commands.options import (
    DataRoot,
    Defenses,
    Device,
    ProtocolId,
    Records,
    complete_attack,
    complete_classifier,
    complete_dataset,
    complete_defense,
    complete_track,
    every,
    show_all,
    split,
)
from bench.commands.site import build_site


def demo(
    out: Annotated[Path, typer.Option(help="Where records and pages go.")] = Path("purifybench-demo"),
    device: Device = "auto",
) -> None:
    """Train on real digits, attack three defenses, build the leaderboard: about four minutes on two cores.

    Uses scikit-learn's bundled digits, so it needs no network. Stop it with Ctrl-C whenever you like; the next run
    goes on where this one stopped.
    """
    from bench import campaign, planning, progress, report
    from bench.record import Store

    shown = progress.for_terminal()
    asked = planning.plan(["identity", "kmeans", "identity_vae"], "digits-v1-quick", on=device)
    cells = campaign.run(asked, Store(out / "records"), progress=shown)
    show_all(report.summary(cells, asked.protocol))
    page = build_site([out / "records"], out / "site")
    typer.echo(f"The leaderboard: {page.resolve()}")


def run(
    defenses: Defenses,
    protocol_id: ProtocolId = "digits-v1-quick",
    classifier: Annotated[
        list[str] | None, typer.Option(help="Default: the protocol's.", autocompletion=complete_classifier)
    ] = None,
    tracks: Annotated[list[str] | None, typer.Option(help="Only these tracks.", autocompletion=complete_track)] = None,
    attacks: Annotated[
        list[str] | None, typer.Option(help="Only these attacks.", autocompletion=complete_attack)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N images; such runs are never ranked.", min=1)
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A defense's training recipe: fast, paper, ...")] = None,
    seeds: Annotated[int, typer.Option(help="Train and measure each defense from so many seeds.", min=1)] = 1,
    device: Device = "auto",
    records: Records = Path("results"),
    data_root: DataRoot = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what would run, and stop.")] = False,
) -> None:
    """Measure defenses under a protocol and keep one record a cell.

    Trains what is not trained yet, says how long it will take, and resumes where an earlier run stopped: a cell that is
    in the records is not run again.

        purifybench run identity kmeans --protocol digits-v1-quick
        purifybench run all --protocol mnist-v1 --data-root DIR
    """
    from bench import campaign, outline, planning, progress, report
    from bench.record import Store

    asked = planning.plan(
        every(defenses, protocol_id), protocol_id, classifier=split(classifier), tracks=split(tracks),
        attacks=split(attacks),
        limit=limit, recipe=recipe, on=device, seeds=seeds,
    )  # fmt: skip
    if estimate:
        show_all(*outline.outline(asked, Store(records)))
        return
    cells = campaign.run(asked, Store(records), data_root=data_root, progress=progress.for_terminal())
    show_all(report.summary(cells, asked.protocol))
    typer.echo(f"Records: {records / asked.protocol.id}; next: purifybench site build --records {records}")
    if any(cell.record.status == "failed" for cell in cells):
        raise typer.Exit(1)


def check(
    name: Annotated[str, typer.Argument(help="A defense.", autocompletion=complete_defense)],
    trained: Annotated[
        bool, typer.Option("--trained", help="Train it as well, and report its clean accuracy.")
    ] = False,
    dataset: Annotated[str, typer.Option(help="For --trained.", autocompletion=complete_dataset)] = "digits",
    data_root: DataRoot = None,
) -> None:
    """Check that a defense keeps the contract, point by point, on an untrained instance: seconds, no data needed."""
    from bench import checks

    cls = plugins.load(name)
    broken = 0
    for finding in checks.run(cls):
        mark = "broken" if finding.problem else "kept  "
        typer.echo(f"{mark}  {finding.check:<34} {finding.problem or finding.meaning}")
        broken += bool(finding.problem)
    if broken:
        typer.echo(
            f"{name} breaks {broken} of {len(checks.ALL)} points; a broken contract is not evaluated",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo(f"{name} keeps all {len(checks.ALL)} points")
    if trained:
        from bench import campaign, progress

        found = campaign.clean_accuracy(name, dataset, data_root=data_root, progress=progress.for_terminal())
        typer.echo(_accuracy(*found, dataset, "A"))


def train(
    name: Annotated[str, typer.Argument(help="A defense.", autocompletion=complete_defense)],
    dataset: Annotated[str, typer.Option(help="Its data set.", autocompletion=complete_dataset)] = "digits",
    recipe: Annotated[str | None, typer.Option(help="fast, paper, ...; default: the first")] = None,
    classifier: Annotated[
        str, typer.Option(help="The classifier before it.", autocompletion=complete_classifier)
    ] = "A",
    device: Device = "auto",
    data_root: DataRoot = None,
) -> None:
    """Train a defense ahead of `run`, which would do it too. Interrupted, it resumes after the last whole epoch."""
    from bench import campaign, progress

    found = campaign.clean_accuracy(
        name,
        dataset,
        recipe=recipe,
        classifier=classifier,
        on=device,
        data_root=data_root,
        progress=progress.for_terminal(),
    )
    typer.echo(_accuracy(*found, dataset, classifier))


def _accuracy(accuracy: float, bare: float, n: int, dataset: str, classifier: str) -> str:
    """What a training came to, in one line."""
    shown = f"{n:,} validation images of {dataset}"
    return f"clean accuracy on {shown}: {accuracy:.1%}; classifier {classifier} alone: {bare:.1%}"


def timing(
    defenses: Annotated[
        list[str] | None, typer.Argument(help="Names; default: all that are trained.", autocompletion=complete_defense)
    ] = None,
    dataset: Annotated[str, typer.Option(help="Whose images.", autocompletion=complete_dataset)] = "mnist",
    classifier: Annotated[
        str, typer.Option(help="The classifier behind them.", autocompletion=complete_classifier)
    ] = "A",
    recipe: Annotated[str | None, typer.Option(help="A defense's training recipe: fast, paper, ...")] = None,
    rounds: Annotated[int, typer.Option(help="At most, of each batch; fewer once the median is sure.")] = 30,
    slow_rounds: Annotated[int, typer.Option(help="Of searches on CPU.")] = 5,
    slow_batch: Annotated[int, typer.Option(help="The largest that searches are timed at on CPU.")] = 32,
    curve: Annotated[bool, typer.Option(help="Also time shorter searches of Defense-GAN, with their accuracy.")] = True,
    score_images: Annotated[int, typer.Option(help="Images of that accuracy; 0: none.", min=0)] = 50,
    device: Device = "auto",
    records: Records = Path("results"),
    data_root: DataRoot = None,
) -> None:
    """Time trained defenses beside the classifier alone and the search of Defense-GAN, in turns in one process.

    Latency of one image, throughput at 128, the first call apart, memory, and rows through each net. Nothing is
    trained: what has no weights is left out, and said. One file a machine, in the folder `timing` of the records, which
    the site shows; times of two machines are never put into one order.

        purifybench timing --data-root DIR
        purifybench timing vq_vae defense_gan --slow-batch 4 --rounds 10
    """
    from bench import progress, report, stopwatch, timing_record
    from bench import timing as track

    names = defenses or sorted(plugins.load_all()[0])
    lengths = stopwatch.CURVE if curve else ()
    ask = stopwatch.Ask(rounds, slow_rounds, slow_batch=slow_batch, curve=lengths, score_images=score_images)
    done = track.run(
        names, dataset=dataset, classifier=classifier, recipe=recipe, on=device, data_root=data_root, ask=ask,
        progress=progress.for_terminal(),
    )  # fmt: skip
    path = timing_record.save(done, records)
    show_all(*report.timing(done))
    typer.echo(f"Times: {path}; next: purifybench site build --records {records}")
