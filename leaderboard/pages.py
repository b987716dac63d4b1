"""From boards to files: which pages there are, what each template is given. What they say is in templates/."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Protocol

from bench.protocol import TRACKS
from bench.submissions.schema import Submission
from bench.timing_record import Timing
from leaderboard import archive, bundle, defense_page, exports, formats, latency, protocol_page, timing_page, views
from leaderboard.attack_page import attack_pages
from leaderboard.breakers import toll
from leaderboard.citations import bibtex
from leaderboard.compare import comparisons, matrix
from leaderboard.environment import HERE, environment, repeats_paper
from leaderboard.paper_tables import paper_tables
from leaderboard.reported import PAPERS
from leaderboard.sentences import summary
from leaderboard.tables import Board, Row

_DATASETS = ("mnist", "fmnist", "digits")  # the order of boards that are otherwise alike
_EXPORTS = {"csv": exports.as_csv, "json": exports.as_json, "tex": exports.as_latex}
_ALL_RECORDS = "records/all.zip"
_NONE: Mapping[str, Submission] = MappingProxyType({})
ENOUGH = 4  # ranked rows to open the site with
Files = dict[str, bytes]


class Render(Protocol):
    """Writes a page: the template's name, the page's path, and what the template is given."""

    def __call__(self, template: str, path: str, **values: object) -> None: ...


def site(
    boards: Sequence[Board],
    problems: Sequence[str],
    submissions: Mapping[str, Submission] = _NONE,
    timings: Sequence[Timing] = (),
) -> Files:
    """Every file of the site by its relative path; `boards` must not be empty. `submissions` are by defense: what they
    claim, and whether they come with PurifyBench. `timings` are the runs of the timing track."""
    boards = sorted(boards, key=_prominence)
    files = {f"assets/{path.name}": path.read_bytes() for path in sorted((HERE / "static").iterdir())}
    script = bundle.classic_script()
    if script is not None:
        files["assets/datatables.js"] = script
    made = environment()
    shared = {"boards": boards, "problems": problems, "has_bundle": script is not None}

    def render(template: str, path: str, **values: object) -> None:
        root = "../" * path.count("/")
        text = made.get_template(template).render(root=root, here=path, **shared, **values)
        files[path] = re.sub(r"\n\s*\n", "\n", text).encode()  # blank lines are what templates leave of their loops

    tables = paper_tables(cell for board in boards for row in _rows(board) for cell in row.cells)
    front = _front(boards)
    others = [summary(board) for board in boards if board is not front]
    render(
        "index.html.j2", "index.html", board=front, summary=summary(front),
        others=[one for one in others if one is not None], **_board_values(front, timings),
    )  # fmt: skip
    render("timing.html.j2", "timing.html", sections=timing_page.sections(timings, boards))
    for timing in timings:
        files[f"timing/{timing.file_name}"] = timing_page.as_json(timing)
    render("papers.html.j2", "papers.html", papers=PAPERS, tables=tables)
    render("about.html.j2", "about.html")
    render("warnings.html.j2", "warnings.html", concerned=_concerned(boards))
    render("dispute.html.j2", "dispute.html")
    attacks = attack_pages(boards)
    render("attacks.html.j2", "attacks.html", attacks=attacks, toll=toll(boards))
    for attack in attacks:
        render("attack.html.j2", f"attack/{formats.file_name(attack.name)}.html", attack=attack)
    protocols = protocol_page.shown(boards)
    render("protocols.html.j2", "protocols.html", protocols=protocols, tracks=TRACKS)
    render("submit.html.j2", "submit.html", suggested=protocol_page.suggested(protocols))
    for protocol in protocols:
        path = f"protocol/{formats.file_name(protocol.id)}"
        thresholds, run = asdict(protocol.thresholds), {attack.name for attack in attacks}
        render("protocol.html.j2", f"{path}.html", protocol=protocol, thresholds=thresholds, run=run)
        files[f"{path}.json"] = protocol_page.as_json(protocol)
    compared = _compare(boards, render)
    for board in boards:
        files |= _board_files(board, timings, render)
        for defense, rows in _by_defense(board).items():
            path = f"defense/{formats.file_name(board.id)}/{formats.file_name(defense)}.html"
            values = {**_facts(board), **defense_page.values(board, rows, tables, submissions.get(defense))}
            render("defense.html.j2", path, board=board, is_compared=(board.id, defense) in compared, **values)
    files |= _records(boards)
    files["purifybench.bib"] = bibtex(boards)
    render("downloads.html.j2", "downloads.html", size=len(files[_ALL_RECORDS]))
    return files


def _board_files(board: Board, timings: Sequence[Timing], render: Render) -> Files:
    """Renders the page of a board, and returns its rows for other programs."""
    name = f"board/{formats.file_name(board.id)}"
    render("board.html.j2", f"{name}.html", board=board, **_board_values(board, timings))
    return {f"{name}.{end}": form(board) for end, form in _EXPORTS.items()} if board.protocol is not None else {}


def _records(boards: Sequence[Board]) -> Files:
    """The records of each defense in a zip, and all of them in one."""
    files, folders = Files(), []
    for board in boards:
        for defense, rows in _by_defense(board).items():
            folders.append(archive.folder([cell for row in rows for cell in row.recorded]))
            name = f"records/{formats.file_name(board.id)}/{formats.file_name(defense)}.zip"
            files[name] = archive.zipped(folders[-1:])
    return {**files, _ALL_RECORDS: archive.zipped(folders)}


def _compare(boards: Sequence[Board], render: Render) -> set[tuple[str, str]]:
    """The page on which to choose two defenses, and one for every defense against all others of its board; returns the
    board and the name of each of these."""
    found = [(board, comparisons(board)) for board in boards if board.protocol]
    found = [(board, [one for one in all_of_it if one.others]) for board, all_of_it in found]
    shown = [(board, some, matrix(some)) for board, some in found if some]
    render("compare.html.j2", "compare.html", compared=shown)
    for board, some, _ in shown:
        for defense in sorted({one.row.defense for one in some}):
            own = [one for one in some if one.row.defense == defense]
            path = f"compare/{formats.file_name(board.id)}/{formats.file_name(defense)}.html"
            render("compare_one.html.j2", path, board=board, defense=defense, card=own[0].row.card, found=own)
    return {(board.id, one.row.defense) for board, some, _ in shown for one in some}


def _rows(board: Board) -> Iterable[Row]:
    return (*board.rows, *board.others)


def _by_defense(board: Board) -> dict[str, list[Row]]:
    """The rows of each defense, in alphabetical order, each in the board's."""
    names = sorted({row.defense for row in _rows(board)})
    return {name: [row for row in _rows(board) if row.defense == name] for name in names}


def _prominence(board: Board) -> tuple[object, ...]:
    """The order of boards: known before unknown, papers' evaluations behind the others, full before quick and limited,
    those of defenses that may refuse behind the others, ranked before draft, then by name."""
    protocol = board.protocol
    if protocol is None:
        return (True, board.id)
    place = _DATASETS.index(protocol.dataset) if protocol.dataset in _DATASETS else len(_DATASETS)
    is_small = ("+limit" in board.id, "-quick" in board.id)
    kind = (protocol.is_selective, not protocol.ranked, protocol.is_draft)
    return (False, repeats_paper(board), *is_small, *kind, place, board.id)


def _front(boards: Sequence[Board]) -> Board:
    """The board that the site opens with: the most prominent one that ranks some, or else that has filled up, with at
    least half as many rows with numbers as the fullest."""
    filled = [sum(row.mrr is not None for row in board.rows) for board in boards]
    ranked = (board for board in boards if sum(row.rank is not None for row in board.rows) >= ENOUGH)
    full = (board for board, rows in zip(boards, filled, strict=True) if 2 * rows >= max(filled))
    return next(ranked, None) or next(full)


def _facts(board: Board) -> dict[str, object]:
    return {"facts": views.facts(board.protocol) if board.protocol else None}


def _concerned(boards: Sequence[Board]) -> dict[str, list[tuple[Board, Row]]]:
    """The rows with a verdict of each rule."""
    found: dict[str, list[tuple[Board, Row]]] = {}
    for board in boards:
        for row in board.rows:
            for rule in dict.fromkeys(verdict.rule for verdict in row.verdicts):
                found.setdefault(rule, []).append((board, row))
    return found


def _board_values(board: Board, timings: Sequence[Timing]) -> dict[str, object]:
    chart = views.board_chart(board, "board") if board.protocol else None
    return {"chart": chart, "times": latency.times(timings, board), **_facts(board)}
