"""Commands that say what exists and what was measured: list, show, compare."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench import catalog, plugins, protocols
from bench.commands.options import ProtocolId, Records, complete_defense, show_all, starting
from bench.errors import BenchError, unknown
from bench.protocol import TRACKS, AttackSpec, Protocol

if TYPE_CHECKING:
    from bench.record import Cell


LISTS = ("defenses", "attacks", "classifiers", "datasets", "protocols")


def _complete_kind(incomplete: str) -> list[str]:
    return starting(LISTS, incomplete)


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
    everything = protocols.known()
    width = max(map(len, everything))
    ranked = [p for p in protocols.PROTOCOLS.values() if p.ranked and not p.is_draft]
    groups = {
        "Ranked:": ranked,
        "Smoke tests, digits and drafts, not ranked:": [p for p in protocols.PROTOCOLS.values() if p not in ranked],
        "The papers' own evaluations, never ranked (purifybench reproduce compares with what they printed):": [
            p for p in everything.values() if p.id not in protocols.PROTOCOLS
        ],
    }
    for heading, members in groups.items():
        typer.echo(heading)
        for p in members:
            about = f"{p.n_examples} images of {p.dataset}, {len(p.attacks)} cells. {p.purpose}"
            typer.echo(f"  {p.id:<{width}}  {about}")


def _complete_thing(incomplete: str) -> list[str]:
    return starting(_things(), incomplete)


def _things() -> list[str]:
    """Every name that `show` explains."""
    return [*plugins.installed(), *protocols.known(), *catalog.ATTACKS, *catalog.CLASSIFIERS, *catalog.DATASETS]


def show(
    name: Annotated[str, typer.Argument(help="A defense, a protocol or an attack.", autocompletion=_complete_thing)],
    records: Records = Path("results"),
) -> None:
    """Show a protocol's cells, an attack, or a defense with all that was measured of it."""
    if name.partition("+")[0] in protocols.known():
        _show_protocol(protocols.get(name))
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
        raise unknown("defense, protocol or attack", name, [*plugins.installed(), *protocols.known(), *catalog.ATTACKS])


def _show_protocol(chosen: Protocol) -> None:
    typer.echo(f"{chosen.id}  (sha256 {chosen.hash[:16]})\n{chosen.purpose}")
    typer.echo(
        f"{chosen.n_examples} images of {chosen.dataset}, classifier {'/'.join(chosen.classifiers)}, seed {chosen.seed}"
    )
    for track in chosen.tracks:
        typer.echo(f"\n{track}: {TRACKS[track]}")
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


def _about_spec(spec: AttackSpec) -> str:
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
    typer.echo(f"{cls.title} ({name}), {cls.year}, {cls.paper}\n\n{inspect.cleandoc(cls.__doc__ or '')}\n\n{facts}")
    for recipe in cls.recipes:
        typer.echo(
            f"recipe {recipe}: {', '.join(f'{k}={v}' for k, v in settings(cls, recipe)[1].items()) or 'no settings'}"
        )
    by_protocol: dict[str, list[Cell]] = {}
    for cell in Store(records).cells(defense=name):
        by_protocol.setdefault(cell.record.protocol, []).append(cell)
    for protocol_id, cells in by_protocol.items():
        typer.echo(f"\n{protocol_id}")
        show_all(report.details(cells))
        measured_under = known(protocol_id)
        show_all(*(report.distortions(cells, measured_under) if measured_under else ()))
    if not by_protocol:
        typer.echo(f"\nNothing measured in {records}; purifybench run {name}")


def compare(
    first: Annotated[str, typer.Argument(help="A defense.", autocompletion=complete_defense)],
    second: Annotated[str, typer.Argument(help="Another.", autocompletion=complete_defense)],
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
    show_all(report.comparison(*found))
