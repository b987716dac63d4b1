"""How templates are read: escaped everywhere, strict about names, with the filters that write numbers and names."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench import papers
from bench.protocol import BUDGETS, THRESHOLDS
from bench.verdicts import RULES
from leaderboard import best_known, codes, commands, drawings, facets, formats, refusals, sentences, told, views
from leaderboard.figures import Chart, Map
from leaderboard.protocol_history import history
from leaderboard.tables import ATTACKED, BASELINE, Board
from leaderboard.works import WORKS

HERE = Path(__file__).parent
_FILTERS = (
    formats.percent, formats.percent_range, formats.decimal, formats.decimal_range, formats.signed,
    formats.signed_range, formats.points, formats.points_range, formats.p_value, formats.radius,
    formats.thousands, formats.words, formats.parameters,
    formats.web_link, formats.paper_name, formats.file_name, formats.listing,
    formats.attack_name, formats.dataset_name, formats.norm_name, formats.strength, formats.knowledge, formats.compact,
    formats.duration, formats.brief, formats.tick, formats.ratio, formats.file_size,
    formats.units, formats.level, formats.clash_name,
    views.attack_groups, views.sparkline,
    views.track_meaning, views.strongest_name, views.efforts, views.reductions, facets.answers, facets.facets,
    sentences.verdict_in_two, codes.fact_name, told.told_name,
    refusals.refusals, best_known.taken_words, best_known.isolated,
)  # fmt: skip


@cache
def environment() -> Environment:
    """The environment of all templates. Raises jinja2.UndefinedError where a template uses a name that is not given."""
    made = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FileSystemLoader(HERE / "templates"),
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update({function.__name__: function for function in _FILTERS})
    made.filters |= {
        "drawn": _drawn,
        "repeats_paper": repeats_paper,
        "board_title": board_title,
        "protocol_facts": views.facts,
        "history": history,
        "work": WORKS.get,
    }
    made.globals |= {
        "baseline_name": BASELINE, "attacked_tracks": ATTACKED, "rules": RULES, "budgets": BUDGETS,
        "command": commands.whole, "project_url": project_url, "thresholds_meaning": THRESHOLDS,
    }  # fmt: skip
    return made


def _drawn(chart: Chart | Map) -> Markup:
    """A figure's SVG, the only text that reaches a page unescaped: drawing.py puts no text of a record into it."""
    return Markup(drawings.svg(chart))


def project_url() -> str:
    """Where the installed package says that its code lies; empty where it does not say."""
    try:
        named = metadata.metadata("purifybench").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    addresses = {name.strip().lower(): address.strip() for name, _, address in (one.partition(",") for one in named)}
    chosen = (addresses[name] for name in ("issues", "repository", "source", "homepage") if name in addresses)
    return formats.web_link(next(chosen, ""))


def board_title(board: Board) -> str:
    """A board's name for people: "MNIST", "MNIST, quick", "MNIST, may refuse, quick, draft"; its id where this version
    does not know it."""
    if board.protocol is None:
        return board.id
    if repeats_paper(board):
        return board.id.removeprefix("papers-v1-").replace("-", " ") + ", as printed"
    marks = {"selective": "may refuse", "latent": "among codes", "search": "inner loops", "quick": "quick"}
    said = [words for mark, words in marks.items() if f"-{mark}" in board.id]
    said += [f"first {board.protocol.n_examples}"] if "+limit" in board.id else []
    said += ["draft"] if board.protocol.is_draft else []
    return ", ".join([formats.dataset_name(board.protocol.dataset), *said])


def repeats_paper(board: Board) -> bool:
    """Whether the board's numbers stand beside printed ones on the page "Papers"."""
    return board.id.partition("+")[0] in papers.PROTOCOLS
