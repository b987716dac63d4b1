"""The numbered checks of a submission: the same for the command line, for CI and for the site.

1xx files, 2xx submission.toml, 3xx code, 4xx records; 5xx are those of breaks, in bench.breaks. A rule is a function
that yields what it objects to; nothing of the submission is imported or unpickled here. What a defense does when it
runs is for bench.checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.submissions import places
from bench.submissions.rules import card, code, files, records
from bench.submissions.rules.base import Case, Finding, Rule

__all__ = ["ALL", "Case", "Finding", "Rule", "examine"]

ALL: tuple[Rule[Case], ...] = tuple(
    sorted(
        (
            value
            for module in (files, card, code, records)
            for value in vars(module).values()
            if isinstance(value, Rule)
        ),
        key=lambda rule: rule.number,
    )
)


def examine(
    names: Iterable[str], root: Path = places.ROOT, rules: Sequence[Rule[Case]] | None = None
) -> dict[str, list[Finding]]:
    """All that the rules (ALL unless told) object to in the submissions `names` under `root`, by name.

    Those that are not named are taken to be on the board already: where one of them and a named one are alike, the
    named one is objected to; of two named ones, the later (`Case.came_after`).
    """
    names, cases = list(names), dict[str, Case]()
    for name in names:
        cases[name] = Case(root / name, cases, is_proposed=True)
    return {
        name: [finding for rule in rules or ALL for finding in rule.findings(Case.of(root / name, cases))]
        for name in names
    }
