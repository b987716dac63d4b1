"""Weights that a submission brings: fetched by address, held against their sha256, read as safetensors and as nothing
else."""

from __future__ import annotations

import hashlib
import io
import urllib.request
from pathlib import Path

from bench import weights
from bench.errors import BenchError
from bench.places import home, write_atomically
from bench.submissions.schema import Submission, Weights

LARGEST = 4_000_000_000  # bytes
SECONDS = 120  # without a byte


def fetch(submission: Submission) -> list[Path]:
    """The submission's weights where the harness looks for them, downloaded if they are not there.

    Raises BenchError for a download that fails, another checksum, or a file that is no safetensors.
    """
    return [_fetch(one) for one in submission.weights]


def _fetch(one: Weights) -> Path:
    path = home() / "weights" / one.file
    if path.is_file() and _sha256(path.read_bytes()) == one.sha256:
        return path
    try:
        with urllib.request.urlopen(one.url, timeout=SECONDS) as answer:
            content = answer.read(LARGEST + 1)
    except (OSError, ValueError) as problem:
        raise BenchError(f"{one.url} cannot be read ({problem}); mend the address in [[weights]]") from problem
    found = _sha256(content)
    if found != one.sha256:
        raise BenchError(f"{one.url} has the sha256 {found}, expected {one.sha256}; mend one of them in [[weights]]")
    wrong = complaint(content)
    if wrong:
        raise BenchError(f"{one.url} {wrong}; give the file that `purifybench train` wrote")
    write_atomically(path, lambda file: file.write(content))
    return path


def complaint(content: bytes) -> str:
    """What keeps bytes from being a safetensors file, from its header alone; "" if nothing does."""
    file = io.BytesIO(content)
    try:
        parts = weights.header(file)
        ends = [part["data_offsets"][1] for name, part in parts.items() if name != "__metadata__"]
        sound = max(ends, default=0) == len(content) - file.tell()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return "is no safetensors file"
    return "" if sound else "is a safetensors file of another length"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
