"""The commands around breaks, mounted by bench.cli. Light until one of them has work to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError
from bench.submissions import places
from bench.submissions.commands import DataRoot, Device, Root

break_app = typer.Typer(help="Break an entry: adversarial images against it, checked and scored.", no_args_is_help=True)
Names = Annotated[list[str] | None, typer.Argument(help="ENTRY or ENTRY/NAME; none means every break.")]
OTHER_NETS = 3  # the exit status of `verify` where only the nets differ


@break_app.command()
def images(
    dataset: Annotated[str, typer.Argument(help="digits, mnist or fmnist.")],
    out: Annotated[Path, typer.Argument(help="The npz to write.")],
    against: Annotated[str | None, typer.Option(help="Also say which images of this entry still stand.")] = None,
    norm: Annotated[str, typer.Option(help="With --against: linf or l2.")] = "linf",
    eps: Annotated[float, typer.Option(help="With --against: the radius, for pixels in [0, 1].")] = 0.1,
    classifier: Annotated[str, typer.Option(help="With --against: the classifier behind the defense.")] = "A",
    root: Root = places.ROOT,
    data_root: DataRoot = None,
) -> None:
    """Write the clean images that a break may attack, with labels and indices: index i is row i.

    The same in Python: images, _ = bench.data.load("mnist").examples(1000, seed=0). With --against, `standing` (n,)
    marks the images that the entry's records leave right within the radius: the only ones worth attacking.
    """
    from bench.breaks import add as adding

    case = adding.about(root, against, dataset, norm, eps, classifier) if against else None
    count, standing = adding.write_images(dataset, out, data_root, against=case)
    typer.echo(f"{out} holds the {count} images, labels and indices of {dataset}; quick protocols use the first ones")
    if standing is not None:
        typer.echo(f"{standing} of them are right in the worst case of {against} at {norm} {eps:g}: `standing`")


@break_app.command()
def add(
    npz: Annotated[Path, typer.Argument(help="images (n, C, H, W) float32 or uint8, and indices (n,).")],
    against: Annotated[str, typer.Option(help="The submission that is broken.")],
    dataset: Annotated[str, typer.Option(help="digits, mnist or fmnist.")],
    norm: Annotated[str, typer.Option(help="linf or l2.")],
    eps: Annotated[float, typer.Option(help="The radius, for pixels in [0, 1].")],
    author: Annotated[str, typer.Option(help="Who made the images.")],
    classifier: Annotated[str, typer.Option(help="The classifier behind the defense.")] = "A",
    name: Annotated[str | None, typer.Option(help="The break's name. Default: author, norm and eps.")] = None,
    paper: Annotated[str | None, typer.Option(help="An https link.")] = None,
    code: Annotated[str | None, typer.Option(help="An https link.")] = None,
    note: Annotated[str, typer.Option(help="How they were made, in a line.")] = "",
    root: Root = places.ROOT,
    data_root: DataRoot = None,
    device: Device = "auto",
) -> None:
    """Check adversarial images, show them to the defense, and keep them in submissions/breaks/ENTRY/NAME.

    The defense is scored as under a protocol's own attacks, in a process of its own unless it comes with PurifyBench.
    `purifybench break images` writes the clean images with their indices.

        purifybench break add found.npz --against kmeans --dataset mnist --norm linf --eps 0.1 --author "Ada Example"
    """
    from bench import progress
    from bench.breaks import add as adding

    given = {
        "entry": against, "name": name, "author": author, "dataset": dataset, "norm": norm, "eps": eps,
        "classifier": classifier, "note": note, "paper": paper, "code": code,
    }  # fmt: skip
    done = adding.add(npz, root, given, data_root=data_root, on=device, progress=progress.for_terminal())
    for protocol, found in done.effects.items():
        typer.echo(
            f"{protocol}: {found.images} of the images are among its own; {found.right} of these were still right at "
            f"{norm} {eps:g}, and {found.broken} of them are broken"
        )
    typer.echo(f"{done.folder} holds the break; next: purifybench site build, and a pull request with that folder")


@break_app.command()
def check(
    names: Names = None,
    root: Root = places.ROOT,
    data_root: DataRoot = None,
    rules_only: Annotated[bool, typer.Option("--list", help="Print the rules and stop.")] = False,
) -> None:
    """Check breaks by numbered rules: files, images, distances and results. Nothing of them is run.

    `purifybench site build` applies the same rules, without the data: there the distances in the result count.
    """
    from bench.breaks import rules, schema

    if rules_only:
        for one in rules.ALL:
            typer.echo(f"S{one.number}  {one.meaning}")
        return
    from bench.breaks import add as adding

    places.root_of(root)
    known: rules.Records = {}
    clean, refused = adding.clean(data_root, lambda line: typer.echo(line, err=True)), False
    for folder in schema.chosen(names or [], root):
        _, found = rules.examine(folder, root, clean, known)
        for finding in found:
            typer.echo(str(finding), err=True)
        refused |= bool(found)
        typer.echo(f"{_shown(folder)}: " + (f"refused, {len(found)} findings" if found else "keeps all rules"))
    if refused:
        raise typer.Exit(1)


@break_app.command()
def verify(names: Names = None, root: Root = places.ROOT, data_root: DataRoot = None, device: Device = "auto") -> None:
    """Score breaks again and compare with their results. Status 1 where one differs, 3 where other nets are here.

    Only the nets that the entry's records are of can confirm a result; `purifybench weights import` takes them in.
    """
    from bench import progress
    from bench.breaks import add as adding
    from bench.breaks import schema

    places.root_of(root)
    statuses = {0}
    for folder in schema.chosen(names or [], root):
        try:
            problem, other_nets = adding.again(
                folder, root, data_root=data_root, on=device, progress=progress.for_terminal()
            )
        except BenchError as refused:
            problem, other_nets = f"refused: {refused}", False
        typer.echo(f"{_shown(folder)}: {problem or 'confirmed'}")
        statuses.add(OTHER_NETS if other_nets else 1 if problem else 0)
    status = 1 if 1 in statuses else max(statuses)
    if status:
        raise typer.Exit(status)


def _shown(folder: Path) -> str:
    """A break's name, printable."""
    return "".join(c if c.isprintable() else "?" for c in f"{folder.parent.name}/{folder.name}")
