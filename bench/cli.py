"""The command line: arguments in, calls to the harness, errors as one line. Torch is imported only where needed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench import catalog, plugins, protocol
from bench.breaks import commands as breaks
from bench.errors import BenchError, unknown
from bench.submissions import commands as submissions

if TYPE_CHECKING:
    from bench.record import Cell
    from leaderboard.reproduce import Ask

app = typer.Typer(
    name="purifybench",
    help="A benchmark for defenses that purify or refuse images, against attackers who know them.\n\n"
    "Start with `purifybench demo` (about four minutes, no data needed), then `purifybench list defenses`, "
    "`purifybench run DEFENSE --protocol mnist-v1-quick`, `purifybench site build`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Find, check and fetch data sets.", no_args_is_help=True)
site_app = typer.Typer(help="The leaderboard as static pages.", no_args_is_help=True)
weights_app = typer.Typer(help="Trained weights: what is here, out to a folder, in from one.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(site_app, name="site")
app.add_typer(weights_app, name="weights")
app.add_typer(submissions.submission_app, name="submission")
app.add_typer(breaks.break_app, name="break")
app.command("new")(submissions.new)


def _starting(names: Iterable[str], typed: str) -> list[str]:
    return [name for name in names if name.startswith(typed)]


def _complete_defense(incomplete: str) -> list[str]:
    return _starting(plugins.installed(), incomplete)


def _complete_defense_or_all(incomplete: str) -> list[str]:
    return _starting([*plugins.installed(), "all"], incomplete)


def _complete_protocol(incomplete: str) -> list[str]:
    return _starting(protocol.known(), incomplete)


def _complete_paper(incomplete: str) -> list[str]:
    from leaderboard import reported

    return _starting(reported.names(), incomplete)


def _complete_classifier(incomplete: str) -> list[str]:
    return _starting(catalog.CLASSIFIERS, incomplete)


def _complete_attack(incomplete: str) -> list[str]:
    return _starting(catalog.ATTACKS, incomplete)


def _complete_track(incomplete: str) -> list[str]:
    return _starting(protocol.TRACKS, incomplete)


def _complete_dataset(incomplete: str) -> list[str]:
    return _starting(catalog.DATASETS, incomplete)


def _complete_weights(incomplete: str) -> list[str]:
    from bench import weights

    return _starting(sorted({found.name for found in weights.kept()}), incomplete)


def _complete_kind(incomplete: str) -> list[str]:
    return _starting(LISTS, incomplete)


Defenses = Annotated[list[str], typer.Argument(help="Names, or `all`.", autocompletion=_complete_defense_or_all)]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that holds MNIST/raw and FashionMNIST/raw.", envvar="PURIFYBENCH_DATA"),
]
Records = Annotated[Path, typer.Option(help="Folder of the records.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", autocompletion=lambda: ["auto", "cpu", "cuda"])]
ProtocolId = Annotated[str, typer.Option("--protocol", "-p", help="Its id.", autocompletion=_complete_protocol)]


def _split(values: list[str] | None) -> list[str]:
    """Names given as `--tracks a,b` or `--tracks a --tracks b`."""
    return [name.strip() for value in values or [] for name in value.split(",") if name.strip()]


def _every(defenses: list[str], protocol_id: str) -> list[str]:
    """The names given; for `all`, every defense that imports and that the protocol is for."""
    if "all" not in defenses:
        return defenses
    from bench import campaign

    sound, broken = plugins.load_all()
    for name, reason in broken.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    asked = protocol.get(protocol_id)
    return [name for name, cls in sound.items() if campaign.fits(cls, asked)]


def _print(*things: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for thing in things:
        console.print(thing, highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where records and pages go.")] = Path("purifybench-demo"),
    device: Device = "auto",
) -> None:
    """Train on real digits, attack three defenses, build the leaderboard: about four minutes on two cores.

    Uses scikit-learn's bundled digits, so it needs no network. Stop it with Ctrl-C whenever you like; the next run
    goes on where this one stopped.
    """
    from bench import campaign, progress, report
    from bench.record import Store

    shown = progress.for_terminal()
    asked = campaign.plan(["identity", "kmeans", "identity_vae"], "digits-v1-quick", on=device)
    cells = campaign.run(asked, Store(out / "records"), progress=shown)
    _print(report.summary(cells, asked.protocol))
    page = _build_site([out / "records"], out / "site")
    typer.echo(f"The leaderboard: {page.resolve()}")


@app.command()
def run(
    defenses: Defenses,
    protocol_id: ProtocolId = "digits-v1-quick",
    classifier: Annotated[
        list[str] | None, typer.Option(help="Default: the protocol's.", autocompletion=_complete_classifier)
    ] = None,
    tracks: Annotated[list[str] | None, typer.Option(help="Only these tracks.", autocompletion=_complete_track)] = None,
    attacks: Annotated[
        list[str] | None, typer.Option(help="Only these attacks.", autocompletion=_complete_attack)
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
    from bench import campaign, progress, report
    from bench.record import Store

    asked = campaign.plan(
        _every(defenses, protocol_id), protocol_id, classifier=_split(classifier), tracks=_split(tracks),
        attacks=_split(attacks),
        limit=limit, recipe=recipe, on=device, seeds=seeds,
    )  # fmt: skip
    if estimate:
        _print(*campaign.outline(asked, Store(records)))
        return
    cells = campaign.run(asked, Store(records), data_root=data_root, progress=progress.for_terminal())
    _print(report.summary(cells, asked.protocol))
    typer.echo(f"Records: {records / asked.protocol.id}; next: purifybench site build --records {records}")
    if any(cell.record.status == "failed" for cell in cells):
        raise typer.Exit(1)


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A paper or one of its tables; none lists all.", autocompletion=_complete_paper)
    ] = None,
    defenses: Annotated[
        list[str] | None, typer.Option(help="Measure only these, by our names.", autocompletion=_complete_defense)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N images: a look.", min=1)] = None,
    recipe: Annotated[str | None, typer.Option(help="A defense's training recipe: fast, paper, ...")] = None,
    device: Device = "auto",
    records: Records = Path("results"),
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
    from leaderboard import reported, terminal
    from leaderboard import reproduce as reproduction

    rows = reported.reported() if name is None else reproduction.chosen(name)
    here = reproduction.installed()
    only = {plugins.slug(one) for one in _split(defenses)} or here.defenses
    for one in only - here.defenses:
        raise unknown("defense", one, here.defenses, see="purifybench list defenses")

    def compared() -> tuple[reproduction.Line, ...]:
        return reproduction.lines(rows, reproduction.stored(Store(records), limit), limit, here)

    if name is not None:
        failed = _answer(reproduction.asks(compared(), here, only), limit, recipe, device, records, data_root, dry_run)
    found = compared()
    _print(*(terminal.overview(found) if name is None else terminal.comparison(found)))
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
    from bench import campaign, progress
    from bench.record import Store

    recipes = {name: plugins.load(name).recipes for ask in asks for name in ask.defenses}
    if recipe is not None and not any(recipe in own for own in recipes.values()):
        raise unknown("recipe", recipe, {one for own in recipes.values() for one in own})
    failed = False
    for ask in asks:
        plan = campaign.plan(
            ask.defenses, ask.protocol, classifier=ask.classifiers, tracks=[ask.track], attacks=ask.attacks,
            limit=limit, recipe=recipe if any(recipe in recipes[name] for name in ask.defenses) else None, on=on,
        )  # fmt: skip
        if dry_run:
            _print(*campaign.outline(plan, Store(records)))
        else:
            cells = campaign.run(plan, Store(records), data_root=data_root, progress=progress.for_terminal())
            failed |= any(cell.record.status == "failed" for cell in cells)
    return failed


LISTS = ("defenses", "attacks", "classifiers", "datasets", "protocols")


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help=", ".join(LISTS), autocompletion=_complete_kind)] = "defenses",
) -> None:
    """List what exists: defenses, attacks, classifiers, datasets or protocols."""
    rows: dict[str, str]
    if kind == "defenses":
        rows = {
            name: f"{point.value} ({point.dist.name if point.dist else '?'})"
            for name, point in plugins.installed().items()
        }
    elif kind == "attacks":
        rows = {name: info.title for name, info in catalog.ATTACKS.items()}
    elif kind == "classifiers":
        only = "; only for that paper's own evaluation"
        rows = {name: f"{text}{only * (name in catalog.PORTS)}" for name, text in catalog.CLASSIFIERS.items()}
    elif kind == "datasets":
        rows = dict(catalog.DATASETS)
    elif kind == "protocols":
        _list_protocols()
        return
    else:
        raise unknown("list", kind, LISTS)
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        typer.echo(f"{name:<{width}}  {text}")


def _list_protocols() -> None:
    """The ranked ones first, then the others of the boards, then the papers' own evaluations."""
    everything = protocol.known()
    width = max(map(len, everything))
    ranked = [p for p in protocol.PROTOCOLS.values() if p.ranked and not p.is_draft]
    groups = {
        "Ranked:": ranked,
        "Smoke tests, digits and drafts, not ranked:": [p for p in protocol.PROTOCOLS.values() if p not in ranked],
        "The papers' own evaluations, never ranked (purifybench reproduce compares with what they printed):": [
            p for p in everything.values() if p.id not in protocol.PROTOCOLS
        ],
    }
    for heading, members in groups.items():
        typer.echo(heading)
        for p in members:
            about = f"{p.n_examples} images of {p.dataset}, {len(p.attacks)} cells. {p.purpose}"
            typer.echo(f"  {p.id:<{width}}  {about}")


def _complete_thing(incomplete: str) -> list[str]:
    return _starting(_things(), incomplete)


def _things() -> list[str]:
    """Every name that `show` explains."""
    return [*plugins.installed(), *protocol.known(), *catalog.ATTACKS, *catalog.CLASSIFIERS, *catalog.DATASETS]


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A defense, a protocol or an attack.", autocompletion=_complete_thing)],
    records: Records = Path("results"),
) -> None:
    """Show a protocol's cells, an attack, or a defense with all that was measured of it."""
    if name.partition("+")[0] in protocol.known():
        _show_protocol(protocol.get(name))
    elif name in catalog.ATTACKS:
        info = catalog.ATTACKS[name]
        forward, backward = info.cost()
        typer.echo(f"{info.title}\n{info.function}, version {info.version}\nnorms: {', '.join(info.norms) or 'none'}")
        typer.echo(
            f"cost per image at default settings: {forward} forward, {backward} backward rows\n{info.paper}".strip()
        )
        if info.learns:
            forward, backward = info.learning_cost()
            typer.echo(f"learns once a cell, at default settings: {forward:,} forward, {backward:,} backward rows")
    elif plugins.slug(name) in plugins.installed():
        _show_defense(plugins.slug(name), records)
    else:
        raise unknown("defense, protocol or attack", name, [*plugins.installed(), *protocol.known(), *catalog.ATTACKS])


def _show_protocol(chosen: protocol.Protocol) -> None:
    typer.echo(f"{chosen.id}  (sha256 {chosen.hash[:16]})\n{chosen.purpose}")
    typer.echo(
        f"{chosen.n_examples} images of {chosen.dataset}, classifier {'/'.join(chosen.classifiers)}, seed {chosen.seed}"
    )
    for track in chosen.tracks:
        typer.echo(f"\n{track}: {protocol.TRACKS[track]}")
        for spec in chosen.select((track,)):
            typer.echo(f"  {_about_spec(spec)}".rstrip())
    for effort in chosen.efforts:
        kind = "random" if effort.stochastic else "deterministic"
        typer.echo(
            f"\n{effort.budget} and {kind}: {effort.n_examples} images, {len(effort.attacks)} cells, of its own:"
        )
        for spec in effort.attacks:
            if not spec.is_shared:
                typer.echo(f"  {_about_spec(spec)}")


def _about_spec(spec: protocol.AttackSpec) -> str:
    facts = [f"{k}={v}" for k, v in spec.params]
    facts += [f"made on {spec.origin.words}"] if spec.origin and spec.origin.is_net else []
    facts += [f"first {spec.n_examples} images"] * bool(spec.n_examples) + ["what is left"] * spec.cascade
    return f"{spec.slug:<48} {', '.join(facts)}"


def _show_defense(name: str, records: Path) -> None:
    from bench import report
    from bench.defense import settings
    from bench.record import Store
    from leaderboard.gather import known

    cls = plugins.load(name)
    facts = f"stochastic: {cls.stochastic}, differentiable: {cls.differentiable}, trained on {cls.trained_on}"
    typer.echo(f"{cls.title} ({name}), {cls.year}, {cls.paper}\n\n{(cls.__doc__ or '').strip()}\n\n{facts}")
    for recipe in cls.recipes:
        typer.echo(
            f"recipe {recipe}: {', '.join(f'{k}={v}' for k, v in settings(cls, recipe)[1].items()) or 'no settings'}"
        )
    by_protocol: dict[str, list[Cell]] = {}
    for cell in Store(records).cells(defense=name):
        by_protocol.setdefault(cell.record.protocol, []).append(cell)
    for protocol_id, cells in by_protocol.items():
        typer.echo(f"\n{protocol_id}")
        _print(report.details(cells))
        measured_under = known(protocol_id)
        _print(*(report.distortions(cells, measured_under) if measured_under else ()))
    if not by_protocol:
        typer.echo(f"\nNothing measured in {records}; purifybench run {name}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A defense.", autocompletion=_complete_defense)],
    second: Annotated[str, typer.Argument(help="Another.", autocompletion=_complete_defense)],
    protocol_id: ProtocolId = "digits-v1-quick",
    records: Records = Path("results"),
) -> None:
    """Compare two defenses cell by cell, image by image, from their records."""
    from bench import report
    from bench.record import Store

    found: list[list[Cell]] = []
    for name in (first, second):
        cells = list(Store(records).cells(protocol_id, plugins.slug(name)))
        if not cells:
            raise BenchError(
                f"no records of {name} under {protocol_id} in {records}; purifybench run {name} -p {protocol_id}"
            )
        found.append(cells)
    _print(report.comparison(*found))


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A defense.", autocompletion=_complete_defense)],
    trained: Annotated[
        bool, typer.Option("--trained", help="Train it as well, and report its clean accuracy.")
    ] = False,
    dataset: Annotated[str, typer.Option(help="For --trained.", autocompletion=_complete_dataset)] = "digits",
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

        accuracy, bare = campaign.clean_accuracy(name, dataset, data_root=data_root, progress=progress.for_terminal())
        typer.echo(f"clean accuracy on {dataset}'s validation split: {accuracy:.1%}; classifier A alone: {bare:.1%}")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A defense.", autocompletion=_complete_defense)],
    dataset: Annotated[str, typer.Option(help="Its data set.", autocompletion=_complete_dataset)] = "digits",
    recipe: Annotated[str | None, typer.Option(help="fast, paper, ...; default: the first")] = None,
    classifier: Annotated[
        str, typer.Option(help="The classifier before it.", autocompletion=_complete_classifier)
    ] = "A",
    device: Device = "auto",
    data_root: DataRoot = None,
) -> None:
    """Train a defense ahead of `run`, which would do it too. Interrupted, it resumes after the last whole epoch."""
    from bench import campaign, progress

    accuracy, bare = campaign.clean_accuracy(
        name,
        dataset,
        recipe=recipe,
        classifier=classifier,
        on=device,
        data_root=data_root,
        progress=progress.for_terminal(),
    )
    typer.echo(
        f"clean accuracy on {dataset}'s validation split: {accuracy:.1%}; classifier {classifier} alone: {bare:.1%}"
    )


@app.command()
def timing(
    defenses: Annotated[
        list[str] | None, typer.Argument(help="Names; default: all that are trained.", autocompletion=_complete_defense)
    ] = None,
    dataset: Annotated[str, typer.Option(help="Whose images.", autocompletion=_complete_dataset)] = "mnist",
    classifier: Annotated[
        str, typer.Option(help="The classifier behind them.", autocompletion=_complete_classifier)
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
    _print(*report.timing(done))
    typer.echo(f"Times: {path}; next: purifybench site build --records {records}")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="mnist or fmnist.", autocompletion=_complete_dataset)],
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


WeightNames = Annotated[
    list[str] | None, typer.Argument(help="Of which defenses or nets; default: all.", autocompletion=_complete_weights)
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
        _print(table)
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


def _build_site(records: list[Path], out: Path) -> Path:
    from leaderboard.build import build

    return build(records, out)


@site_app.command("build")
def site_build(
    records: Annotated[list[Path] | None, typer.Option(help="Folders of records; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the pages.")] = Path("site"),
) -> None:
    """Build the leaderboard from records: same records, same bytes. Open the printed file in a browser.

    Without --records: ./results and the submissions that keep the rules of `purifybench submission check`; the others
    are named and left out.
    """
    typer.echo(f"The leaderboard: {_build_site(records or _default_records(), out).resolve()}")


def _default_records() -> list[Path]:
    found = [Path("results"), *submissions.sound_records()]
    return [folder for folder in found if folder.is_dir()] or [Path("results")]


@app.command()
def serve(
    site: Annotated[Path, typer.Argument(help="The folder that `site build` made.")] = Path("site"),
    port: Annotated[int, typer.Option(help="0 picks a free one.", min=0, max=65535)] = 8000,
    watch: Annotated[bool, typer.Option("--watch", help="Build the site first, and anew when records change.")] = False,
    records: Annotated[list[Path] | None, typer.Option(help="Folders of records to watch; may be repeated.")] = None,
) -> None:
    """Serve the pages on this machine only, until Ctrl-C."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if watch:
        from leaderboard.watch import Watcher

        watcher = Watcher(records or _default_records(), site, typer.echo)
        watcher.look()
        watcher.keep_looking()
    if not (site / "index.html").exists():
        raise BenchError(f"{site} holds no index.html; run `purifybench site build --out {site}`")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(site)))
    except OSError as problem:
        raise BenchError(
            f"port {port} cannot be used ({problem.strerror}); choose another with --port, or 0"
        ) from problem
    with server:
        typer.echo(f"http://127.0.0.1:{server.server_address[1]}/ serves {site}; stop with Ctrl-C")
        server.serve_forever()


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
