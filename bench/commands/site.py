"""The commands around the leaderboard's pages: site build, serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError
from bench.submissions import commands as submissions
from bench.submissions import places

site_app = typer.Typer(help="The leaderboard as static pages.", no_args_is_help=True)


def build_site(records: list[Path], out: Path, left_out: Sequence[str] = ()) -> Path:
    """Build the pages, which say what was `left_out`; returns the first."""
    from leaderboard.build import build

    return build(records, out, left_out=left_out)


@site_app.command("build")
def site_build(
    records: Annotated[list[Path] | None, typer.Option(help="Folders of records; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the pages.")] = Path("site"),
) -> None:
    """Build the leaderboard from records: same records, same bytes. Open the printed file in a browser.

    Without --records: ./results, the times in submissions/machines, and the submissions that keep the rules of
    `purifybench submission check`; the others are named and left out.
    """
    folders, left_out = (records, []) if records else _default_records()
    typer.echo(f"The leaderboard: {build_site(folders, out, left_out).resolve()}")


def _default_records() -> tuple[list[Path], list[str]]:
    """The folders of records, and why some submissions are not among them."""
    sound, left_out = submissions.sound_records()
    found = [Path("results"), *sound, places.ROOT / places.MACHINES]
    return [folder for folder in found if folder.is_dir()] or [Path("results")], left_out


def serve(
    site: Annotated[Path, typer.Argument(help="The folder that `site build` made.")] = Path("site"),
    port: Annotated[int, typer.Option(help="0 picks a free one.", min=0, max=65535)] = 8000,
    watch: Annotated[bool, typer.Option("--watch", help="Build the site first, and anew when records change.")] = False,
    records: Annotated[list[Path] | None, typer.Option(help="Folders of records to watch; may be repeated.")] = None,
) -> None:
    """Serve the pages on this machine only, until Ctrl-C."""
    from contextlib import suppress
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if watch:
        from leaderboard.watch import Watcher

        folders, left_out = (records, []) if records else _default_records()
        watcher = Watcher(folders, site, typer.echo, left_out)
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
    with server, suppress(KeyboardInterrupt):  # nothing goes on from there
        typer.echo(f"http://127.0.0.1:{server.server_address[1]}/ serves {site}; stop with Ctrl-C")
        server.serve_forever()
