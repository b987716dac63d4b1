"""A gallery of hostile defenses, for the child process of tests/test_isolation.py: one class, many acts."""

from __future__ import annotations

import copy
import ctypes
import os
import random
import resource
import socket
import sys
import threading
import time
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from bench.defense import Defense


class Hostile(Defense):
    """Does what its setting says, and passes images through otherwise."""

    title, paper, year = "Hostile", "https://example.org", 2026
    brief = {"act": "none"}
    differentiable = True

    def __init__(self, classifier: nn.Module, *, act: str = "none", detail: str = "") -> None:
        super().__init__(classifier)
        self.act, self.detail = act, detail
        self.weight = nn.Parameter(torch.ones(1))
        if act == "exit when built":
            os._exit(3)

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        if self.act in ATTEMPTS:  # white images where it was refused, black ones where it worked
            return torch.full_like(images, float(ATTEMPTS[self.act](self)))
        return ACTS[self.act](self, images, generator)


class ExitsUnderAttack(Hostile):
    """Ends its process when somebody wants a gradient."""

    def __init__(self, classifier: nn.Module, *, act: str = "exit under attack") -> None:
        super().__init__(classifier, act=act)


class HangsUnderAttack(Hostile):
    """Gives no gradient, and takes for ever over it."""

    def __init__(self, classifier: nn.Module, *, act: str = "hang under attack") -> None:
        super().__init__(classifier, act=act)


class Tells(Hostile):
    """Has facts to tell, and remembers that it was asked."""

    def encode(self, images: Tensor) -> Tensor:
        return images[:, :, 10:12, 10:12] * self.weight

    def facts(self, clean: Tensor, attacked: Tensor, correct: Tensor) -> dict[str, object]:
        ASKED.append(correct)
        if self.act == "os._exit":
            os._exit(3)
        if self.act == "text":  # past the code of the child that makes numbers of facts
            sys.modules["__main__"]._numbers = lambda value: value
            return {"number": "1e3"}
        drawn = torch.rand(3).tolist()
        return {
            "moved": (attacked - clean).abs().mean() * self.weight, "right": tuple(correct.tolist()),
            "drawn": drawn, "asked": len(ASKED), "nothing": float("nan"),
        }  # fmt: skip


class Hurries(Hostile):
    """Dims images ten times, in a hurry once, unless its act is another; draws codes."""

    times = 10

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        for _ in range(self.times):
            images = 0.9 * images * self.weight
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents.sigmoid().view(-1, 1, 28, 28)

    def start_codes(self, images: Tensor, generator: Generator) -> Tensor:
        return torch.randn(len(images), 784, generator=generator)

    def hurried(self) -> Hostile:
        if self.act == "raise":
            raise RuntimeError("no time")
        if self.act == "os._exit":
            os._exit(3)
        if self.act == "number":
            return 3  # type: ignore[return-value]
        found = copy.deepcopy(self) if self.act == "other classifier" else copy.copy(self)
        found.times = 1
        return found


ASKED: list[Tensor] = []


def _hang_under_attack(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    if images.requires_grad:
        time.sleep(3600)
    return images


def _slow(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    time.sleep(float(self.detail))
    return images * self.weight


def _flood(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    kept = []
    while True:
        kept.append(torch.ones(2**22))  # 16 MB


def _fork(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    while True:
        if os.fork() == 0:
            time.sleep(60)


def _exit_under_attack(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    if images.requires_grad:
        os._exit(7)
    return images


def _write_to_input(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    with torch.no_grad():
        images.zero_()
    return images


def _settings(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    return images.clone()


def _print(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    print("\x1b[31mbefore the end", flush=True)
    os._exit(5)


def _forge(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    """Writes to every socket that it has."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, (2**60).to_bytes(8, "big") * 2)
        except OSError:
            continue
    return images


def _leave_a_thread(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
    return images.clone()


def _numbers(self: Hostile, images: Tensor, generator: Generator) -> Tensor:
    return (images + 0.1 * torch.rand(1) + 0.1 * random.random()).clamp(0, 1)


ACTS = {
    "none": lambda self, images, generator: images * self.weight,
    "raise": lambda self, images, generator: 1 / 0,
    "sys.exit": lambda self, images, generator: sys.exit("enough"),
    "os._exit": lambda self, images, generator: os._exit(3),
    "segfault": lambda self, images, generator: ctypes.string_at(0),
    "hang": lambda self, images, generator: time.sleep(3600),
    "hang under attack": _hang_under_attack,
    "slow": _slow,
    "memory": _flood,
    "fork": _fork,
    "print": _print,
    "forge": _forge,
    "shape": lambda self, images, generator: images[:, :, :-1],
    "type": lambda self, images, generator: images.double(),
    "no tensor": lambda self, images, generator: "images",
    "huge": lambda self, images, generator: torch.zeros(1, 1).expand(6000, 6000),
    "NaN": lambda self, images, generator: images * torch.nan,
    "range": lambda self, images, generator: images + 1,
    "write": _write_to_input,
    "settings": _settings,
    "thread": _leave_a_thread,
    "global numbers": _numbers,
    "exit under attack": _exit_under_attack,
    "detach": lambda self, images, generator: images.detach(),
    "batch": lambda self, images, generator: images.mean(dim=0, keepdim=True).expand_as(images).clone(),
}


def _network(self: Hostile) -> bool:
    try:
        socket.create_connection((self.detail.split(":")[0], int(self.detail.split(":")[1])), timeout=2).close()
    except OSError:
        return True
    return False


def _write(self: Hostile) -> bool:
    try:
        Path(self.detail).write_text("written")
    except OSError:
        return True
    return False


def _data(self: Hostile) -> bool:
    """Whether neither the folder named nor scikit-learn's digits can be read."""
    from sklearn.datasets import load_digits

    try:
        return not list(Path(self.detail).rglob("*")) and len(load_digits().data) < 1
    except (OSError, ValueError, IndexError):
        return True


def _secret(self: Hostile) -> bool:
    return self.detail not in os.environ


def _processes(self: Hostile) -> bool:
    return not Path(f"/proc/{self.detail}").exists()


def _capabilities(self: Hostile) -> bool:
    return "CapEff:\t0000000000000000" in Path("/proc/self/status").read_text()


def _private(self: Hostile) -> bool:
    """Whether a file that is its owner's alone cannot be read."""
    try:
        return not Path(self.detail).read_text()
    except OSError:
        return True


def _user(self: Hostile) -> bool:
    """Whether this is nobody's number, and the kernel counts what a user of it starts."""
    return os.getuid() == os.getgid() != 0 and resource.getrlimit(resource.RLIMIT_NPROC)[1] == int(self.detail)


ATTEMPTS = {
    "network": _network, "write a file": _write, "data": _data, "secret": _secret, "processes": _processes,
    "capabilities": _capabilities, "private file": _private, "user": _user,
}  # fmt: skip
