"""What a rule is, what it finds, and the case that it looks at: a submission's folder, read once for all rules."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from bench import plugins
from bench.record import Cell, Store
from bench.submissions import places, schema
from bench.submissions.schema import Submission, SubmissionError

LARGEST_TEXT = 1_000_000  # bytes of a file that is read as text
LARGEST_ARRAYS, MOST_ARRAYS = 1_000_000_000, 20_000  # bytes unpacked, and members, of an archive of arrays


@dataclass(frozen=True)
class Finding:
    """What a rule objects to: the file, what was found, what was expected, and what to do."""

    number: int
    file: str
    found: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"S{self.number} {self.file}: found {self.found}, expected {self.expected}; {self.fix}"


Objection = tuple[Path | str, str, str, str]  # file, found, expected, fix


class Looked(Protocol):
    """Whatever rules look at: a folder among the submissions in `root`."""

    @property
    def folder(self) -> Path:
        """What is looked at."""
        ...

    @property
    def root(self) -> Path:
        """The folder of all submissions."""
        ...


What = TypeVar("What", bound=Looked)


@dataclass(frozen=True)
class Case:
    """A submission's folder among the others in `root`; what several rules need is read once."""

    folder: Path
    known: dict[str, Case]  # the cases read so far, by name
    is_proposed: bool = False  # whether this is one that was asked about; the others are on the board already

    @classmethod
    def of(cls, folder: Path, known: dict[str, Case]) -> Case:
        """The case of a folder, from those that are known already."""
        return known.setdefault(folder.name, cls(folder, known))

    @property
    def root(self) -> Path:
        """The folder of all submissions."""
        return self.folder.parent

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @cached_property
    def files(self) -> list[Path]:
        """All files of the folder; symbolic links are among them and not followed."""
        return list(places.own_files(self.folder))

    @cached_property
    def parsed(self) -> Submission | list[str]:
        """The description, or what is wrong with it."""
        try:
            return schema.read(self.folder / places.FILE)
        except SubmissionError as problem:
            return problem.problems

    @property
    def submission(self) -> Submission | None:
        """The description; None where it cannot be read, which rule 201 says."""
        return self.parsed if isinstance(self.parsed, Submission) else None

    @property
    def plugin(self) -> Path | None:
        """The folder of the code, where there is one."""
        named = self.submission.install.folder if self.submission else None
        return self.folder / named if named and (self.folder / named).is_dir() else None

    @cached_property
    def project(self) -> Mapping[str, Any]:
        """The plugin's pyproject.toml; empty where there is none or it cannot be read, which rule 302 says."""
        import tomllib

        text = self.text(self.plugin / "pyproject.toml") if self.plugin else None
        try:
            return tomllib.loads(text or "")
        except (tomllib.TOMLDecodeError, RecursionError):
            return {}

    @cached_property
    def store(self) -> Store:
        """The submission's records."""
        return Store(self.folder / "records")

    @cached_property
    def cells(self) -> list[Cell]:
        """All sound cells; none where something among the records is nothing to be read."""
        return list(self.store.cells()) if self.can_be_read else []

    @cached_property
    def can_be_read(self) -> bool:
        """Whether the records are files of bearable size, none of them a link; if not, rule 103, 105 or 111 says so."""
        files = [path for path in self.files if path.is_relative_to(self.folder / "records")]
        plain = all(path.is_file() and not path.is_symlink() for path in files)
        small = plain and all(path.stat().st_size <= LARGEST_TEXT for path in files if path.name != "outcomes.npz")
        return small and all(map(is_bearable, self.archives))

    @property
    def archives(self) -> list[Path]:
        """The files of arrays."""
        return [path for path in self.files if path.name == "outcomes.npz" and path.is_file() and not path.is_symlink()]

    def path_of(self, cell: Cell) -> Path:
        """The record's file."""
        record = cell.record
        return self.store.folder(record.protocol, record.defense) / f"{record.cell}.json"

    @cached_property
    def others(self) -> Mapping[str, Case]:
        """The other submissions by name, read as far as a rule looks at them."""
        return {name: Case.of(self.root / name, self.known) for name in places.names(self.root) if name != self.name}

    def came_after(self, other: Case) -> bool:
        """Whether this is the later of two submissions that are alike, as far as files can tell.

        What comes with PurifyBench was there before all others, and what is on the board before what is proposed. Of
        two that are equal in this the one of a later year is the later one, and in the same year that of the later
        name: one of them has to be named, and who was first a reviewer sees in the history.
        """
        return self._place > other._place

    @cached_property
    def _place(self) -> tuple[bool, bool, int, str]:
        said = self.submission
        comes_along = said is not None and said.install.included and self.name in ours()
        return not comes_along, self.is_proposed, said.year if said else 9999, self.name

    def text(self, path: Path) -> str | None:
        """A file's text; None where it is no small file of UTF-8."""
        try:
            if path.is_symlink() or path.stat().st_size > LARGEST_TEXT:
                return None
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def json(self, path: Path) -> Any:
        """A file's JSON; None where it holds none."""
        try:
            return json.loads(self.text(path) or "")
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True)
class Rule(Generic[What]):
    """A numbered rule: `meaning` is one line for people, `look` yields what it objects to."""

    number: int
    meaning: str
    look: Callable[[What], Iterator[Objection]]

    def findings(self, case: What) -> Iterator[Finding]:
        """What the rule objects to in a case; files are named from the folder of submissions."""
        try:
            objections = list(self.look(case))
        except Exception as problem:  # what no rule foresaw is no reason to let it pass
            found = f"what no rule foresaw ({type(problem).__name__}: {problem})"
            objections = [(case.folder, found, "files that the rules can read", "compare with other submissions")]
        for file, found, expected, fix in objections:
            path = Path(file)
            inside = path.is_relative_to(case.root)
            shown = f"{case.root.name}/{path.relative_to(case.root)}" if inside else f"{path}"
            printable = "".join(c if c.isprintable() else "?" for c in shown)
            yield Finding(self.number, printable, found, expected, fix)


def ours() -> set[str]:
    """The defenses that the package purifybench registers."""
    try:
        points = metadata.distribution("purifybench").entry_points
    except metadata.PackageNotFoundError:
        return set()
    return {point.name for point in points if point.group == plugins.GROUP}


def is_bearable(path: Path) -> bool:
    """Whether a file is a zip archive that unpacks to no more than memory bears."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return sum(member.file_size for member in members) <= LARGEST_ARRAYS and len(members) <= MOST_ARRAYS


def rule(number: int) -> Callable[[Callable[[What], Iterator[Objection]]], Rule[What]]:
    """Makes a rule of a function, whose docstring's first line is the meaning."""

    def made(look: Callable[[What], Iterator[Objection]]) -> Rule[What]:
        return Rule(number, (look.__doc__ or "").strip().splitlines()[0], look)

    return made
