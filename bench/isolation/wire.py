"""Messages between parent and child: a length, a header of JSON, then the bytes of tensors. Nothing is unpickled here.

The parent trusts nothing that it receives: sizes are bounded before they are allocated, types are from a short list,
and lengths must add up.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                 torch.int8, torch.uint8, torch.bool)
}  # fmt: skip
LARGEST_HEADER = 4_000_000  # bytes
LARGEST_BODY = 4_000_000_000
_LENGTHS = struct.Struct(">QQ")


class WireError(RuntimeError):
    """What arrived is no message."""


@dataclass(frozen=True)
class Message:
    """A header, tensors, and bytes that only the child may make sense of."""

    header: Mapping[str, Any]
    tensors: Sequence[Tensor] = ()
    blob: bytes = b""


def tuples(value: Any) -> Any:
    """A value of JSON with its lists as the tuples that they were."""
    if isinstance(value, Mapping):
        return {name: tuples(part) for name, part in value.items()}
    return tuple(tuples(part) for part in value) if isinstance(value, list) else value


def send(channel: socket.socket, message: Message) -> None:
    """Send a message. Raises OSError where the other side is gone, TimeoutError where it does not listen."""
    flat = [tensor.detach().cpu().contiguous() for tensor in message.tensors]
    header = {
        **message.header,
        "tensors": [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in flat],
        "blob": len(message.blob),
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    size = sum(tensor.numel() * tensor.element_size() for tensor in flat) + len(message.blob)
    channel.sendall(_LENGTHS.pack(len(text), size) + text)
    for tensor in flat:
        if tensor.numel():
            channel.sendall(memoryview(tensor.view(-1).view(torch.uint8).numpy().data))
    if message.blob:
        channel.sendall(message.blob)


def receive(channel: socket.socket, deadline: float | None = None, most: int = LARGEST_BODY) -> Message:
    """The next message, of at most `most` bytes of tensors. Raises EOFError at the end, TimeoutError at `deadline` (of
    time.monotonic), WireError for what is no message."""
    length, size = _LENGTHS.unpack(_read(channel, _LENGTHS.size, deadline))
    if length > LARGEST_HEADER or size > most:
        raise WireError(f"sent {length + size:,} bytes, at most {most:,} were expected")
    text, body = _read(channel, length, deadline), _read(channel, size, deadline)
    try:
        header = json.loads(text)
        described = header.pop("tensors")
        blob = header.pop("blob")
        tensors, at = [], 0
        for kind, shape in described:
            dtype, n = TYPES[kind], math.prod(shape)
            if any(not isinstance(one, int) or one < 0 for one in shape):
                raise ValueError(f"the shape {shape}")
            step = n * torch.empty((), dtype=dtype).element_size()
            if at + step > size:
                raise ValueError("more tensors than bytes")
            raw = torch.frombuffer(body, dtype=torch.uint8, count=step, offset=at) if n else torch.empty(0).byte()
            copied = raw.clone()  # aligned, and the buffer may go
            flat = copied != 0 if dtype is torch.bool else copied.view(dtype)  # a boolean of any other byte is none
            tensors.append(flat.view(shape))
            at += step
        if not isinstance(blob, int) or at + blob != size:
            raise ValueError("bytes that nothing describes")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as problem:
        raise WireError(f"sent what is no message ({type(problem).__name__})") from problem
    return Message(header, tensors, bytes(body[at:]))


def _read(channel: socket.socket, size: int, deadline: float | None) -> bytearray:
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        else:
            channel.settimeout(None)
        count = channel.recv_into(view[got:])
        if count == 0:
            raise EOFError
        got += count
    return buffer
