"""BibTeX for whoever quotes a number: the benchmark with its protocols' hashes, and the papers of the defenses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.record import Card
from leaderboard.exports import latex
from leaderboard.formats import listing, web_link
from leaderboard.tables import Board
from leaderboard.works import WORKS


def bibtex(boards: Sequence[Board]) -> bytes:
    """One entry for PurifyBench, and one for each defense that the records hold, under its name."""
    known = [f"{board.id} (sha256 {board.protocol.hash[:16]})" for board in boards if board.protocol]
    cards = {row.defense: row.card for board in boards for row in (*board.rows, *board.others)}
    entries = [_entry("purifybench", {
        "title": "{PurifyBench}: a benchmark for defenses that purify or refuse images",
        "author": "{The PurifyBench authors}",
        "note": f"Protocols {listing(known)}" if known else "",
    })]  # fmt: skip
    entries += [_entry(re.sub(r"[^A-Za-z0-9_.-]", "-", name), _paper(cards[name])) for name in sorted(cards)]
    return "\n".join(entries).encode()


def _paper(card: Card) -> dict[str, str]:
    """A card's paper: its title and authors where they are known, else an entry that names the defense and says so."""
    address = web_link(card.paper)
    found = re.search(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", address)
    arxiv = {"eprint": found[1], "archiveprefix": "arXiv"} if found else {}
    url = re.sub(r"[{}\\\s]", "", address)
    work = WORKS.get(card.paper)
    if work is not None:
        authors = " and ".join(f"{{{latex(name)}}}" for name in work.authors)
        return {"title": f"{{{latex(work.title)}}}", "author": authors, "year": str(card.year), **arxiv, "url": url}
    title = f"The paper of the defense {{{latex(card.title)}}}"
    note = "The records hold neither the paper's title nor its authors: copy them from its page"
    return {"title": title, "year": str(card.year), **arxiv, "url": url, "note": note}


def _entry(key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{{key},", *lines, "}", ""])
