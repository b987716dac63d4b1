"""Memory that runs out is the machine's fault and no defense's: smaller pieces where there can be some, else an end.

What is known here: how a full memory shows, and how work on the rows of a batch goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from bench.errors import BenchError

Made = TypeVar("Made")
_SIGNS = (
    "can't allocate memory",  # the CPU's allocator, in a plain RuntimeError
    "CUDA error: out of memory",  # the driver, past torch's own allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_PLAIN = (RuntimeError, getattr(torch, "AcceleratorError", RuntimeError))  # no subclass: those have words of their own
_SHOWN = 200  # characters of what was raised that an error repeats


def is_full(problem: BaseException) -> bool:
    """Whether what was raised says that this machine has too little memory, on GPU or CPU."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return type(problem) in _PLAIN and any(sign in str(problem) for sign in _SIGNS)


def ended(who: str, problem: BaseException, smaller: str = "") -> BenchError:
    """The error of a run that ends because memory is full: `who` was at work, and how `smaller` its pieces were."""
    said = next(iter(str(problem).splitlines()), "")[:_SHOWN]
    return BenchError(
        f"{who}: out of memory{smaller} ({type(problem).__name__}: {said}); this is not held against the defense: free "
        "memory, or take another --device, and run the same command again, which goes on from what is kept"
    )


def in_pieces(work: Callable[[Tensor], Made], rows: Tensor, who: str) -> list[Made]:
    """What `work` makes of the `rows` (N,), at once or in pieces, in order: where memory runs out, of half the size.

    A size that was too large is not tried again on these rows. Nothing of a try that ran out is kept. Raises BenchError
    where memory does not suffice for a single row; all else that `work` raises passes through.
    """
    made, first, size = [], 0, len(rows)
    while first < len(rows):
        try:
            made.append(work(rows[first : first + size]))
            first += size
            continue
        except Exception as problem:
            if not is_full(problem):
                raise
            full = ended(who, problem, f" for a single image on {rows.device.type}")
        if size == 1:  # outside of the except block, which would keep what the try held
            raise full
        size = (size + 1) // 2
        if rows.is_cuda:
            torch.cuda.empty_cache()
    return made
