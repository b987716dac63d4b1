"""1xx: which files a submission may hold: a checkout on any system and a reader must bear them."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from bench import plugins
from bench.submissions import places
from bench.submissions.rules.base import Case, Objection, is_bearable, rule

AGAIN = "run the cells again"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,119}")
LARGEST_FILE, LARGEST_NPZ, LARGEST_FOLDER = 1_000_000, 20_000_000, 60_000_000  # bytes
MOST_FILES = 3_000
UNPICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".npy", ".h5", ".onnx", ".safetensors")
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".whl", ".egg", ".jar")
COMPILED = (".so", ".pyd", ".dll", ".dylib", ".exe", ".o", ".a", ".pyc", ".pyo")
MAGIC = {
    b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle",
    b"PK\x03\x04": "a zip archive", b"\x7fELF": "a program", b"MZ": "a program", b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a numpy array", b"\xcf\xfa\xed\xfe": "a program",
}  # fmt: skip
HIDDEN = re.compile("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff]")  # order-changing and invisible characters


@rule(101)
def folder_name(case: Case) -> Iterator[Objection]:
    """The folder's name is a slug."""
    if not plugins.SLUG.fullmatch(case.name):
        fix = f"rename it to {re.sub('[^a-z0-9]+', '_', case.name.lower()).strip('_') or 'my_defense'}"
        yield case.folder, repr(case.name), "2 to 40 of a-z, 0-9 and _, a letter first", fix
    elif case.name in places.RESERVED:
        expected = f"another name: that folder holds {places.RESERVED[case.name]}"
        yield case.folder, repr(case.name), expected, "rename it"


@rule(102)
def has_a_description(case: Case) -> Iterator[Objection]:
    """There is a submission.toml."""
    if not (case.folder / places.FILE).is_file():
        yield case.folder, f"no {places.FILE}", "one", "write it with `purifybench submission add`"


@rule(103)
def no_links(case: Case) -> Iterator[Objection]:
    """No file is a symbolic link or a device."""
    for path in case.files:
        if path.is_symlink() or not path.is_file():
            kind = "a symbolic link" if path.is_symlink() else "no regular file"
            yield path, kind, "a file", "replace it by the file itself"


@rule(104)
def files_have_a_place(case: Case) -> Iterator[Objection]:
    """Files lie where files of a submission lie."""
    install = case.submission.install.folder if case.submission else places.PLUGIN
    for path in case.files:
        parts = path.relative_to(case.folder).parts
        sound = parts in ((places.FILE,), ("README.md",)) or (parts[0] == install and len(parts) > 1)
        if parts[0] == "records":
            sound = len(parts) == 4 and (path.suffix == ".json" or path.name == "outcomes.npz")
        if not sound:
            expected = f"{places.FILE}, README.md, the folder of the code, or records/<protocol>/<name>/<cell>.json"
            yield path, "a file that has no place there", expected, "remove it or move it"


@rule(105)
def files_are_small(case: Case) -> Iterator[Objection]:
    """No file is larger than 1 MB, arrays of outcomes 20 MB."""
    for path in case.files:
        most = LARGEST_NPZ if path.name == "outcomes.npz" else LARGEST_FILE
        size = path.lstat().st_size
        if size > most:
            yield (
                path,
                f"{size:,} bytes",
                f"at most {most:,}",
                "leave it out; weights go to [[weights]]",
            )


@rule(106)
def folder_is_small(case: Case) -> Iterator[Objection]:
    """The folder holds at most 60 MB in at most 3,000 files."""
    size = sum(path.lstat().st_size for path in case.files)
    if size > LARGEST_FOLDER or len(case.files) > MOST_FILES:
        found, expected = f"{size:,} bytes in {len(case.files):,} files", f"{LARGEST_FOLDER:,} in {MOST_FILES:,}"
        yield case.folder, found, f"at most {expected}", "remove what the defense does not need"


@rule(107)
def no_weights_or_archives(case: Case) -> Iterator[Objection]:
    """No weights, archives or compiled code are committed, whatever they are called."""
    for path in case.files:
        if path.name == "outcomes.npz" or path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            start = file.read(8)
        kind = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), "")
        suffix = path.suffix.lower()
        if suffix in UNPICKLED:
            kind = kind or f"weights ({suffix})"
        elif suffix in PACKED + COMPILED:
            kind = kind or f"packed or compiled code ({suffix})"
        if kind:
            fix = "remove it; weights are safetensors files given by address and sha256 in [[weights]]"
            yield path, kind, "source, text or records", fix


@rule(108)
def names_are_plain(case: Case) -> Iterator[Objection]:
    """Names of files are plain: letters, digits and . _ + = -, no leading dot or dash."""
    for path in case.files:
        odd = next((part for part in path.relative_to(case.folder).parts if not PLAIN.fullmatch(part)), None)
        if odd is not None:
            yield path, f"the name {odd!r}", "letters, digits and . _ + = -, a letter or digit first", "rename it"


@rule(109)
def names_differ_by_more_than_case(case: Case) -> Iterator[Objection]:
    """No two names differ only in upper and lower case."""
    seen: dict[str, Path] = {}
    for path in case.files:
        twin = seen.setdefault(str(path).lower(), path)
        if twin != path:
            yield path, f"a name that some systems take for {twin.name}", "names that differ otherwise", "rename one"


@rule(110)
def text_is_what_it_seems(case: Case) -> Iterator[Objection]:
    """Text files are UTF-8 without characters that hide or reorder text."""
    for path in case.files:
        if path.name == "outcomes.npz" or path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size > LARGEST_FILE:
            continue  # rule 105
        text = case.text(path)
        hidden = HIDDEN.search(text) if text is not None else None
        if text is None:
            yield path, "bytes that are not UTF-8", "text", "save it as UTF-8 or remove it"
        elif hidden or "\x00" in text:
            found = f"the invisible character U+{ord(hidden.group()) if hidden else 0:04X}"
            yield path, found, "text that reads as it runs", "remove that character"


@rule(111)
def arrays_are_arrays(case: Case) -> Iterator[Objection]:
    """outcomes.npz holds plain arrays named after cells: nothing to unpickle, no path that leads out."""
    for path in case.archives:
        if not is_bearable(path):
            yield path, "no archive of arrays, or one that unpacks to too much", "what the harness wrote", AGAIN
            continue
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename
                if not name.endswith(".npy") or ".." in Path(name).parts or name.startswith("/") or "\\" in name:
                    yield path, f"a member called {name!r}", "CELL/ARRAY.npy", AGAIN
                    continue
                try:
                    header = _header(archive, member)
                except (
                    zipfile.BadZipFile,
                    zlib.error,
                    OSError,
                    RuntimeError,
                    EOFError,
                    NotImplementedError,
                ) as problem:
                    yield path, f"{name}, which cannot be read ({problem})", "an array", AGAIN
                    continue
                if not header.startswith(b"\x93NUMPY") or b"O" in header.partition(b"descr")[2].partition(b",")[0]:
                    yield path, f"{name} with objects to unpickle, or no array", "plain numbers", AGAIN


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The part of an array file that says what it holds."""
    with archive.open(member) as file:
        start = file.read(12)
        return start + file.read(min(int.from_bytes(start[8:10], "little"), 4096))
