"""PurifyBench's harness. `from bench import evaluate` measures a defense from a notebook; the rest are modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.campaign import evaluate
    from bench.defense import Defense

__all__ = ["Defense", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import lazily: `import bench` costs no torch."""
    if name == "evaluate":
        from bench.campaign import evaluate

        return evaluate
    if name == "Defense":
        from bench.defense import Defense

        return Defense
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
