"""Tiny PNG files for exhibits, written by hand so that the same pixels always give the same bytes."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(image: NDArray[np.uint8]) -> bytes:
    """The PNG of one image (C, H, W); three channels are colour, anything else shows its first channel in grey."""
    channels, height, width = image.shape
    is_colour = channels == 3
    pixels = image.transpose(1, 2, 0) if is_colour else image[0][:, :, None]  # (H, W, 3 or 1)
    lines = b"".join(b"\x00" + np.ascontiguousarray(line).tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if is_colour else 0, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")


def data_uri(image: NDArray[np.uint8]) -> str:
    """The PNG of one image (C, H, W) as the value of an `src` attribute."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()
