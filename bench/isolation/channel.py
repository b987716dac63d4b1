"""The parent's side of a child process: starts it, asks it, watches it, ends it, and says why it ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench import data, places
from bench.isolation import box, stranger, wire
from bench.isolation.box import Limits
from bench.isolation.wire import Message

POLL = 0.05  # seconds between two looks at what the child uses
DIGITS = "datasets/data/digits.csv.gz"  # in scikit-learn's folder
SHOWN = 300  # characters of what a child printed last that an error repeats
Event = Callable[[Message], str]  # what the parent answers to an event: "go_on" or "stop"


class ChildError(RuntimeError):
    """The child raised, died, hung, used too much, or sent what is no answer. The message says which."""


class ChildMemoryError(ChildError, MemoryError):
    """The child says that memory ran out and lives on: it may be asked about fewer images (bench.memory)."""


class Channel:
    """One child process for one class, started when it is first asked and again after it ended.

    `generation` counts the starts: what an older child knew is gone. Not for use by several threads at once.
    """

    def __init__(
        self, name: str, point: str, python: Path, path: Sequence[Path], limits: Limits, data_root: Path | None = None
    ) -> None:
        self.name, self.point, self.python, self.limits, self.data_root = name, point, python, limits, data_root
        self.path = list(path)
        self.generation = 0
        self.failures = 0
        self.described: Message | None = None
        self.dropped: list[int] = []  # graphs and instances that nobody needs any more: told with the next request
        self.freed: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._folder: Path | None = None
        self._why = ""
        self._last = ""
        self._left: float | None = None  # seconds that the cell's answers may still take; None outside of a cell
        self._spent = ""  # why the cell gets no more answers

    def another(self) -> Channel:
        """A second child for the same class, with all limits anew; close it."""
        return Channel(self.name, self.point, self.python, self.path, self.limits, self.data_root)

    @contextlib.contextmanager
    def one_cell(self) -> Iterator[None]:
        """Inside, all answers together may take `cell_seconds`; then the child is ended, and every call raises."""
        self._left, self._spent = self.limits.cell_seconds, ""
        try:
            yield
        finally:
            self._left, self._spent = None, ""

    def start(self) -> Message:
        """What the child says of its class; starts it where none runs. Raises ChildError."""
        if self._left is not None and self._left <= 0:
            raise self._out_of_time()
        if self._process is not None and self.described is not None:
            return self.described
        if self.failures >= self.limits.failures:
            raise ChildError(f"not started again after {self.failures} ends; the last: {self._last}")
        self._launch()
        self.described = self._exchange(Message({"op": "load", "point": self.point}), self.limits.start_seconds)
        return self.described

    def ask(self, message: Message, seconds: float | None = None, event: Event | None = None, most: int = 0) -> Message:
        """The child's answer, of at most `most` bytes of tensors (0: as many as a message may have). Raises ChildError;
        where the child ended, the next call starts another."""
        self.start()
        started, seconds = time.monotonic(), seconds or self.limits.call_seconds
        try:
            return self._exchange(message, seconds if self._left is None else min(seconds, self._left), event, most)
        finally:
            if self._left is not None:
                self._left -= time.monotonic() - started

    def _exchange(self, message: Message, seconds: float, event: Event | None = None, most: int = 0) -> Message:
        assert self._socket is not None
        dropped, self.dropped = self.dropped, []
        freed, self.freed = self.freed, []
        deadline = time.monotonic() + seconds
        try:
            self._socket.settimeout(seconds)
            wire.send(
                self._socket, Message({**message.header, "drop": dropped, "free": freed}, message.tensors, message.blob)
            )
            answer = wire.receive(self._socket, deadline, most or wire.LARGEST_BODY)
            while event is not None and "event" in answer.header:
                wire.send(self._socket, Message({"op": event(answer)}))
                answer = wire.receive(self._socket, deadline, most or wire.LARGEST_BODY)
        except TimeoutError as problem:
            if seconds == self._left:
                raise self._out_of_time() from problem
            raise self._failed(f"gave no answer within {seconds:g} s and was ended") from problem
        except (EOFError, OSError) as problem:
            raise self._failed(self._ending()) from problem
        except wire.WireError as problem:
            raise self._failed(str(problem)) from problem
        if "error" in answer.header:
            kind = ChildMemoryError if answer.header.get("full") is True else ChildError
            raise kind(printable(answer.header["error"], 2000))
        return answer

    @property
    def trees(self) -> list[Path]:
        """The folders that the child imports from."""
        return stranger.imported_from(self.python, self.path)

    def _launch(self) -> None:
        parent, child = socket.socketpair()
        self._folder = Path(tempfile.mkdtemp(prefix="purifybench-child-"))
        self._folder.chmod(0o777)
        threads = torch.get_num_threads()
        words = [
            *(str(self.python), "-W", "ignore", "-m", "bench.isolation.child"),
            *(str(child.fileno()), str(self.limits.file_mb), str(2 * self.limits.threads), str(threads)),
        ]
        variables = box.environment(self._folder, threads)
        variables["PYTHONPATH"] = os.pathsep.join(map(str, self.path))
        self._why = ""
        boxed = box.command(words, self._folder, hidden(self.data_root, self.python), self.trees)
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                boxed, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=variables,
                cwd=self._folder, pass_fds=[child.fileno()], start_new_session=True,
            )  # fmt: skip
        child.close()
        self._socket = parent
        self.generation += 1
        threading.Thread(target=self._watch, args=(self._process, self._output), daemon=True).start()

    @property
    def _output(self) -> Path:
        """What the child prints; beside its folder, out of its reach."""
        assert self._folder is not None
        return self._folder.with_name(f"{self._folder.name}.log")

    def _watch(self, process: subprocess.Popen[bytes], output: Path) -> None:
        """End the child when it uses too much, for as long as it lives; it prints to `output`."""
        most = self.limits
        while process.poll() is None:
            used = box.usage(process.pid)
            with contextlib.suppress(OSError):
                if output.stat().st_size > most.file_mb * 2**20:
                    self._why = f"printed more than {most.file_mb} MB"
            if used.threads > most.threads:
                self._why = f"ran more than {most.threads} threads and processes"
            elif used.memory_mb > most.memory_mb:
                self._why = f"used more than {most.memory_mb:,.0f} MB of memory"
            if self._why:
                box.end(process)
                return
            time.sleep(POLL)

    def _ending(self) -> str:
        """Why a child is no longer there."""
        assert self._process is not None
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return self._why or "closed its channel and was ended"
        if self._why:
            return f"{self._why} and was ended"
        if status < 0 or status > 128:
            return f"was killed by signal {-status if status < 0 else status - 128}"
        return f"ended itself with status {status}"

    def _failed(self, why: str) -> ChildError:
        said = self._said()
        self.close()
        self.failures += 1
        self._last = f"the process of {self.name} {why}{said}"
        return ChildError(self._last)

    def _out_of_time(self) -> ChildError:
        """End the child, once a cell."""
        if not self._spent:
            self._spent = str(
                self._failed(f"took more than {self.limits.cell_seconds:g} s over one cell and was ended")
            )
        return ChildError(self._spent)

    def _said(self) -> str:
        """The last line that the child printed."""
        if self._folder is None:  # it ended before
            return ""
        try:
            with self._output.open("rb") as file:
                file.seek(max(0, self._output.stat().st_size - 4000))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f"; it printed last: {printable(lines[-1], SHOWN)}" if lines else ""

    def close(self) -> None:
        """End the child, and all that it started."""
        if self._process is not None:
            box.end(self._process)
        if self._socket is not None:
            self._socket.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._output.unlink(missing_ok=True)
        self._process = self._socket = self._folder = self.described = None
        self.dropped, self.freed = [], []


def printable(text: object, most: int) -> str:
    """What a child said, on one line, without control characters, cut."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def hidden(data_root: Path | None = None, python: Path | None = None) -> list[Path]:
    """Files and folders with test images, which no child shall see; `python` is the child's interpreter."""
    kept = places.home().resolve()
    found = [kept / "chunks", kept / "weights", *(root.resolve() for root in data.roots(data_root))]
    sklearn = importlib.util.find_spec("sklearn")
    if sklearn is not None and sklearn.origin is not None:
        found.append(Path(sklearn.origin).parent / DIGITS)
    if python is not None:  # whose environment may have a scikit-learn of its own
        found += python.parent.parent.glob(f"lib/python*/site-packages/sklearn/{DIGITS}")
    return list(dict.fromkeys(path for path in found if path.exists()))


def home_of(package: str) -> Path:
    """The folder that a package of ours is imported from."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent.parent
