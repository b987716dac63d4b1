"""A submission that keeps every rule, made from the template, and a published protocol of few cells."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bench import protocols
from bench.record import Card
from bench.submissions import add, scaffold

NAME, PROTOCOL = "soft_focus", "tiny-v1"
PAPER = "https://arxiv.org/abs/1805.06605"
CARD = Card(
    title="Soft focus", paper=PAPER, year=2026, differentiable=True,
    summary="Moves each pixel towards the mean of its 3x3 neighbourhood.",
)  # fmt: skip
_WHOLE = protocols.get("digits-v1-quick")
_SLUGS = ("clean.none", "gray_box.fgsm.linf-0.1", "gray_box.pgd.linf-0.1", "white_box.apgd_ce.autograd.linf-0.1")
TINY = dataclasses.replace(
    _WHOLE, id=PROTOCOL, n_examples=24, efforts=(), attacks=tuple(a for a in _WHOLE.attacks if a.slug in _SLUGS),
    linf_radii=(0.1,), headline_radii=(0.1,),
)  # fmt: skip


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file that holds it."""
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new))


def make(top: Path) -> Path:
    """A folder of submissions with one in it, and no records."""
    root = top / "submissions"
    root.mkdir()
    package = scaffold.new(NAME, top)
    edit(package / "soft_focus.py", "https://example.org/paper", PAPER)
    add.add(str(package), root, authors=["Ada"])
    return root
