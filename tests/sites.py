"""Small protocols, cells counted by hand, and readers of built pages, for the tests of the site."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import fake_records
import numpy as np

from bench import protocols
from bench.protocol import AttackSpec, Effort, Protocol
from bench.record import Store

QUICK = protocols.get("digits-v1-quick")
TINY = Protocol(
    id="tiny-v1", dataset="digits", n_examples=10, linf_radii=(0.1, 0.2), ranked=True, purpose="For tests.",
    headline_radii=(0.1, 0.2),
    attacks=(
        AttackSpec("none", "clean"),
        AttackSpec("pgd", "gray_box", "linf", 0.1, (("steps", 3),)),
        AttackSpec("pgd", "gray_box", "linf", 0.2, (("steps", 3),)),
    ),
)  # fmt: skip
PGD = (("steps", 3),)
DEEP = Protocol(
    id="deep-v1", dataset="digits", n_examples=10, linf_radii=(0.1, 0.2), ranked=True, headline_radii=(0.1, 0.2),
    attacks=(
        AttackSpec("none", "clean"),
        *(AttackSpec("fgsm", "gray_box", "linf", eps) for eps in (0.1, 0.2)),
        AttackSpec("apgd_margin", "transfer", "linf", 0.2, PGD, source="identity_vae"),
        AttackSpec("apgd_margin", "white_box", "linf", 0.2, PGD, "autograd", n_examples=6, variant="cold"),
        AttackSpec("apgd_margin", "white_box", "linf", 0.2, PGD, "autograd", n_examples=3, variant="twice"),
        *(AttackSpec("apgd_margin", "white_box", "linf", eps, PGD, "bpda", cascade=True) for eps in (0.1, 0.2)),
    ),
    efforts=(
        Effort("cheap", True, 6, (
            AttackSpec("none", "clean"),
            *(AttackSpec("apgd_margin", "white_box", "linf", eps, PGD, "autograd") for eps in (0.1, 0.2)),
        )),
    ),
)  # fmt: skip
VOID = {"meta", "link", "img", "br", "input", "path", "rect", "circle"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac"


def tiny_cells(store: Store, defense: str, rights: list[list[int]], **changes: object) -> None:
    """Save the three cells of TINY with the given outcome of each image."""
    for spec, right in zip(TINY.attacks, rights, strict=True):
        arrays = {"correct": np.array(right, np.float32)}
        store.save(fake_records.cell(TINY, defense, spec, arrays=arrays, **changes))


def deep_cells(store: Store, defense: str = "kmeans") -> None:
    """The cells of DEEP for a deterministic defense, counted by hand: each digit is an image, a dash not attacked."""
    for spec, right in zip(
        DEEP.attacks,
        (
            "1111111110",  # clean
            "0111111110",  # FGSM at .1
            "0011111110",  # and at .2
            "1111101110",  # transferred
            "110011----",  # cold, on the first six
            "100-------",  # twice the steps, on the first three
            "-10111111-",  # cascade at .1: what FGSM at .1 left; breaks image 2
            "----1-100-",  # cascade at .2: what stands; breaks 7 and 8
        ),
        strict=True,
    ):
        attacked = np.array([mark != "-" for mark in right])
        correct = np.array([float(mark) if mark != "-" else np.nan for mark in right], np.float32)
        distance = np.where(attacked, spec.eps or 0, np.inf).astype(np.float32)
        arrays = {"attacked": attacked, "correct": correct, "linf": distance, "l2": distance}
        made = fake_records.cell(DEEP, defense, spec, arrays=arrays)
        shown = made.outcomes.exhibits[:, : 8 if attacked[:8].all() else 0]  # pictures of all eight, or none
        store.save(fake_records.cell(DEEP, defense, spec, arrays=arrays | {"exhibits": shown}))


def pages(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): path.read_text() for path in sorted(out.rglob("*.html"))}


def text_of(html: str) -> str:
    """The visible words of a page, with single spaces."""
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", html))


def row_of(html: str, defense: str) -> str:
    """The board's row of a defense, as text."""
    rows = re.findall(r"<tr class=.*?</tr>", html, flags=re.DOTALL)
    return text_of(next(row for row in rows if f"<code>{defense}</code>" in row))


class Tags(HTMLParser):
    """Collects elements and their attributes, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()


def tags_of(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser.found
