"""Settings of the machine that must be the same for every measured number: device, float mode, the C heap."""

from __future__ import annotations

import ctypes
import platform

import torch

from bench.errors import BenchError

CHUNK_CPU, CHUNK_GPU = 64, 4096  # images per chunk: the unit of resume, so fixed


def pin_heap() -> bool:
    """Keep freed memory inside the process on Linux; returns whether the C library took the setting.

    glibc returns large blocks to the kernel at every free, so each step of an attack pays for fresh pages again
    (up to a factor of two at batch 256). Never mapping and never trimming avoids that.
    """
    if platform.system() != "Linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))


def prepare(device: str = "auto") -> torch.device:
    """The device to compute on ("auto": a GPU if there is one), with TF32 off, cuDNN deterministic, the heap pinned.

    Raises BenchError for a device that this machine or this build of torch does not have.
    """
    pin_heap()
    if device not in ("auto", "cpu", "cuda"):
        raise BenchError(f"--device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch finds no GPU here; use --device cpu, or see `purifybench doctor`")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return torch.device(chosen)


def chunk_size(device: torch.device) -> int:
    """Images per chunk on this device."""
    return CHUNK_CPU if device.type == "cpu" else CHUNK_GPU


def synchronize(device: torch.device) -> None:
    """Wait for all work that the device has been given, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_mb() -> float:
    """The largest resident size of this process so far, in MiB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if platform.system() == "Linux" else 1024**2)
