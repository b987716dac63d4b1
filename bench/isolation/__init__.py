"""Submitted code in a process of its own: the parent attacks it, scores it, and never imports it.

`isolated` gives a class like any other defense; each of its methods asks the child process, in which the plugin lives.
Labels, loss, attacked images and scores stay in the parent. A child that hangs, dies or floods memory is ended, the
call raises, the cell is recorded as failed, and the next cell starts a new child. docs/isolation.md says what this
stops and what it does not.
"""

from __future__ import annotations

from bench.isolation.box import Limits
from bench.isolation.proxy import Isolated, isolated

__all__ = ["Isolated", "Limits", "isolated"]
