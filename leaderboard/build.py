"""Builds the site: records in, a folder of static files out. Same records, same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.record import Store
from leaderboard import drawings, folder, pages, tables
from leaderboard.best_known import with_breaks
from leaderboard.gather import gather


def build(
    stores: Sequence[Store] | Sequence[Path],
    out: Path,
    *,
    submissions: Sequence[Path] = (),
    left_out: Sequence[str] = (),
) -> Path:
    """Write the site of all records in `stores` (or in the folders that they name) into `out`; returns its index.html.

    Claims, breaks and how to install a defense are those of the folders of `submissions`, and of the submissions that
    `stores` belong to. The site needs no server: it works from file:// and under any address. Files that do not count
    are named on the pages, beside what the caller has `left_out` before. Raises BenchError if there is no sound record
    at all, or if `out` holds anything that we did not write.
    """
    gathered = gather(stores, submissions)
    if not gathered.cells:
        looked = ", ".join(str(store.root if isinstance(store, Store) else store) for store in stores) or "no folder"
        torn = f"; {len(gathered.problems)} unusable: {gathered.problems[0]}" if gathered.problems else ""
        raise BenchError(
            f"there are no records to show in {looked}{torn}. Make some with "
            "`purifybench run identity --protocol digits-v1-quick` or `purifybench demo`, then build again"
        )
    boards = [tables.board(protocol_id, cells) for protocol_id, cells in gathered.cells.items()]
    boards = [with_breaks(board, gathered.breaks) for board in boards]
    problems = (*left_out, *gathered.problems)
    kept = drawings.Drawings(drawings.kept_in(out))
    with drawings.drawing_into(kept):
        files = pages.site(boards, problems, gathered.submissions, gathered.timings)
    folder.publish({**files, drawings.FILE: kept.packed()}, out)
    return out / "index.html"
