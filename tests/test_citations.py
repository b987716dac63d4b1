"""What is known of the papers behind the defenses, and how they are cited."""

from __future__ import annotations

import fake_records
from sites import HOSTILE, TINY

from bench import plugins
from leaderboard import citations, tables
from leaderboard.works import WORKS


def test_the_paper_of_every_defense_that_comes_along_is_known_with_its_authors():
    links = {plugins.load(name).paper for name in plugins.installed()}
    assert links <= set(WORKS), "add it to leaderboard/works.py"
    assert all(work.title and work.authors and all(work.authors) for work in WORKS.values())


def test_a_citation_has_title_and_authors_where_they_are_known_and_else_says_so():
    cells = [
        fake_records.cell(TINY, name, spec, card=fake_records.card(name, paper=link, title=HOSTILE))
        for name, link in (("known", "https://arxiv.org/abs/1705.09064"), ("unknown", "https://example.org/paper"))
        for spec in TINY.attacks
    ]
    text = citations.bibtex([tables.board(TINY.id, cells)]).decode()
    known, unknown = text.split("@misc{unknown")
    assert "author = {{Meng} and {Chen}}" in known and "Two-Pronged" in known and "eprint = {1705.09064}" in known
    assert "copy them from its page" in unknown and "url = {https://example.org/paper}" in unknown
