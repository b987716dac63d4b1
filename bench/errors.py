"""Errors that are the user's to mend: one line that says what came, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(ValueError):
    """A mistake outside our code (a name, a file, a defense); the command line prints it without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str], *, see: str | None = None) -> BenchError:
    """An error for a name that does not exist: the nearest ones, else all, and the command that lists them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names) or 'none'}"
    return BenchError(f"no {kind} is called {name!r}; {hint}" + (f" ({see} lists them)" if see else ""))
