"""Where a number comes from: the machine, the versions, the commit. No part of what two runs must have in common."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from bench import device
from bench.record import Run


def of(place: torch.device, attack_seconds: float, scoring_seconds: float) -> Run:
    """The block of a record that tells of this run, on the device `place`."""
    peak = torch.cuda.max_memory_allocated(place) / 2**20 if place.type == "cuda" else device.peak_memory_mb()
    return Run(
        attack_seconds=round(attack_seconds, 3),
        scoring_seconds=round(scoring_seconds, 3),
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        threads=torch.get_num_threads(),
        peak_memory_mb=round(peak, 1),
        versions=versions(),
        commit=commit(),
    )


@cache
def versions() -> dict[str, str]:
    """The versions that a number may depend on."""
    found = {name: metadata.version(name) for name in ("numpy", "torch")}
    return {"purifybench": metadata.version("purifybench"), "python": platform.python_version(), **found}


@cache
def commit() -> str:
    """The commit that this code is of; empty outside of a repository."""
    here = Path(__file__).parent
    answer = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
    )  # fmt: skip
    return answer.stdout.strip() if answer.returncode == 0 and (here.parent / ".git").exists() else ""
