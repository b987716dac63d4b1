"""Builds a served site anew whenever its records change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.submissions import places
from bench.timing_record import FOLDER
from leaderboard.build import build

Stamp = frozenset[tuple[Path, int, int]]


class Watcher:
    """Looks at folders of records, and writes their site into `out` when they are no longer what they were.

    What cannot be built (no record yet, a file that is not ours in `out`) is said once, and tried again after the next
    change; the old pages stay.
    """

    def __init__(
        self, folders: Sequence[Path], out: Path, say: Callable[[str], None], left_out: Sequence[str] = ()
    ) -> None:
        self._folders, self._out, self._say, self._left_out = folders, out, say, left_out
        self._seen: Stamp | None = None

    def look(self) -> bool:
        """Build if there is anything new; returns whether pages were written."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            build(self._folders, self._out, left_out=self._left_out)
        except BenchError as problem:
            self._say(f"not built: {problem}")
            return False
        self._say(f"built from {len(stamp)} files")
        return True

    def keep_looking(self, seconds: float = 1.0) -> None:
        """Look every few seconds, in a thread that ends with the program."""
        pause = threading.Event()

        def run() -> None:
            while not pause.wait(seconds):
                self.look()

        threading.Thread(target=run, daemon=True).start()

    def _stamp(self) -> Stamp:
        """Every record and array file with its time and size, and those of its submission's description and breaks; a
        file that goes while we look is one that is gone."""
        found = set()
        for folder in self._folders:
            own = folder.resolve().parent
            beside = [own / places.FILE, *(own.parent / places.BREAKS / own.name).glob("*/*")]
            is_submission = folder.name == "records" and beside[0].is_file()
            records = [*folder.glob("*/*/*.json"), *folder.glob("*/*/outcomes.npz"), *folder.glob(f"{FOLDER}/*.json")]
            for path in records + beside * is_submission:
                try:
                    state = path.stat()
                except FileNotFoundError:
                    continue
                found.add((path, state.st_mtime_ns, state.st_size))
        return frozenset(found)
