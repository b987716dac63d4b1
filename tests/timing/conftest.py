"""What timings have in common: the float mode in which numbers are measured, and a file that names the machine."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Beside what pytest-benchmark tells of the machine, under "torch": the device and its name, threads, TF32 and
    automatic mixed precision, and the versions, as `purifybench timing` records them."""
    from bench import device, timing

    machine_info["torch"] = timing.machine(device.prepare("auto")).model_dump(mode="json")
