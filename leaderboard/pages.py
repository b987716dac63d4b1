"""From boards to files: which pages there are, what each template is given. What they say is in templates/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench import papers
from bench.protocol import BUDGETS
from bench.verdicts import RULES
from leaderboard import bundle, formats, views
from leaderboard.facets import answers, facets
from leaderboard.figures import Chart
from leaderboard.paper_tables import paper_tables
from leaderboard.reported import PAPERS
from leaderboard.tables import ATTACKED, BASELINE, Board, Row

_HERE = Path(__file__).parent
_DATASETS = ("mnist", "fmnist", "digits")  # the order of boards that are otherwise alike
_FILTERS = (
    formats.percent, formats.percent_range, formats.decimal, formats.decimal_range, formats.signed,
    formats.signed_range, formats.radius, formats.thousands, formats.words, formats.parameters,
    formats.web_link, formats.paper_name, formats.file_name, formats.listing,
    formats.attack_name, formats.dataset_name, formats.norm_name, formats.knowledge, formats.compact,
    formats.duration, formats.units, formats.level, formats.clash_name, views.attack_groups, views.sparkline,
    views.track_meaning, views.strongest_name, views.efforts, views.reductions, answers, facets,
)  # fmt: skip


def _environment() -> Environment:
    loader = FileSystemLoader(_HERE / "templates")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=loader, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update({function.__name__: function for function in _FILTERS})
    environment.filters |= {"drawn": _drawn, "repeats_paper": repeats_paper}
    environment.globals |= {"baseline_name": BASELINE, "attacked_tracks": ATTACKED, "rules": RULES, "budgets": BUDGETS}
    return environment


def _drawn(chart: Chart) -> Markup:
    """A chart's SVG, the only text that reaches a page unescaped: figures.py puts no text of a record into it."""
    return Markup(chart.svg)


def site(boards: Sequence[Board], problems: Sequence[str]) -> dict[str, bytes]:
    """Every file of the site by its relative path; `boards` must not be empty."""
    boards = sorted(boards, key=_prominence)
    files = {f"assets/{path.name}": path.read_bytes() for path in sorted((_HERE / "static").iterdir())}
    script = bundle.classic_script()
    if script is not None:
        files["assets/datatables.js"] = script
    environment = _environment()
    shared = {"boards": boards, "problems": problems, "has_bundle": script is not None}

    def render(template: str, path: str, **values: object) -> None:
        root = "../" * path.count("/")
        text = environment.get_template(template).render(root=root, here=path, **shared, **values)
        files[path] = text.encode()

    render("index.html.j2", "index.html", board=boards[0], **_board_values(boards[0]))
    cells = [cell for board in boards for row in (*board.rows, *board.others) for cell in row.cells]
    render("papers.html.j2", "papers.html", papers=PAPERS, tables=paper_tables(cells))
    render("about.html.j2", "about.html", facts=_all_facts(boards), command=_command)
    for board in boards:
        name = formats.file_name(board.id)
        render("board.html.j2", f"board/{name}.html", board=board, **_board_values(board))
        if board.protocol is not None:
            files[f"board/{name}.csv"] = views.as_csv(board)
        for defense in sorted({row.defense for row in (*board.rows, *board.others)}):
            path = f"defense/{name}/{formats.file_name(defense)}.html"
            rows = [row for row in (*board.rows, *board.others) if row.defense == defense]
            sections = [_section(row, board, f"r{k}") for k, row in enumerate(rows)]
            render("defense.html.j2", path, board=board, card=rows[0].card, defense=defense, sections=sections,
                   command=_command(board.id, defense), **_facts(board))  # fmt: skip
    return files


def repeats_paper(board: Board) -> bool:
    """Whether the board's numbers stand beside printed ones on the page "Papers"."""
    return board.id.partition("+")[0] in papers.PROTOCOLS


def _prominence(board: Board) -> tuple[object, ...]:
    """The order of boards: known before unknown, papers' evaluations behind the others, full before quick and limited,
    ranked before draft, then by name."""
    protocol = board.protocol
    if protocol is None:
        return (True, board.id)
    place = _DATASETS.index(protocol.dataset) if protocol.dataset in _DATASETS else len(_DATASETS)
    is_small = ("+limit" in board.id, "-quick" in board.id)
    return (False, repeats_paper(board), *is_small, not protocol.ranked, protocol.is_draft, place, board.id)


def _facts(board: Board) -> dict[str, object]:
    return {"facts": views.facts(board.protocol) if board.protocol else None}


def _all_facts(boards: Sequence[Board]) -> dict[str, views.Facts]:
    return {board.id: views.facts(board.protocol) for board in boards if board.protocol}


def _board_values(board: Board) -> dict[str, object]:
    chart = views.board_chart(board, "board") if board.protocol else None
    return {"chart": chart, "command": _command(board.id, "<defense>"), **_facts(board)}


def _section(row: Row, board: Board, name: str) -> dict[str, object]:
    """What a defense's page shows of one row; `name` is unique on the page."""
    return {
        "name": name,
        "row": row,
        "chart": views.defense_chart(row, board, f"{name}a"),
        "curves": views.curves_chart(row, f"{name}l"),
        "showcases": views.showcases(row),
        "opened": row.effort.headline_radii[0] if row.effort and row.effort.headline_radii else None,
        "distortions": views.distortions(row),
        "lines": views.cell_lines(row),
        "first": row.cells[0].record,
        "weights": _weights(row),
        "versions": _versions(row),
    }


def _weights(row: Row) -> list[tuple[int, str]]:
    """The hashes of the defense's weights by seed; empty strings where it has none."""
    return sorted({(cell.record.seed, cell.record.weights) for cell in row.cells})


def _versions(row: Row) -> list[str]:
    """The software, devices and commits that the cells cite, each once."""
    runs = [cell.record.run for cell in row.cells]
    names = {f"{name} {version}" for run in runs for name, version in run.versions.items()}
    commits = {f"commit {run.commit[:12]}" for run in runs if run.commit}
    return sorted(names) + sorted({f"on {run.device}" for run in runs}) + sorted(commits)


def _command(protocol_id: str, defense: str) -> str:
    """The command that makes the records again."""
    base, _, limit = protocol_id.partition("+limit")
    return f"purifybench run {defense} --protocol {base}" + (f" --limit {limit}" if limit else "")
