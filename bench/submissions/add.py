"""`purifybench submission add`: describe a package, a folder or an installed one, in a submission.toml.

The class is read, not imported: its facts are literals in its body, as the contract has them.
"""

from __future__ import annotations

import ast
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench import plugins
from bench.errors import BenchError
from bench.places import write_atomically
from bench.submissions import places, schema

if TYPE_CHECKING:
    from email.message import Message

FACTS = ("title", "paper", "year", "kind", "stochastic", "differentiable", "trained_on")
DEFAULTS: Mapping[str, Any] = {
    "kind": "purifier", "stochastic": False, "differentiable": False, "trained_on": "nothing",
}  # fmt: skip


@dataclass(frozen=True)
class Package:
    """What a package says of itself: the defenses that it registers, and its metadata."""

    points: Mapping[str, str]  # name -> "module:Class"
    code: Path  # the folder that its modules are in
    authors: tuple[str, ...]
    licence: str
    url: str


def add(
    source: str,
    root: Path,
    *,
    name: str | None = None,
    authors: Sequence[str] = (),
    licence: str | None = None,
    code: str | None = None,
    datasets: Sequence[str] = ("digits",),
    classifiers: Sequence[str] = ("A",),
) -> Path:
    """Write `<root>/<name>/submission.toml` for the defense in `source`; returns its path.

    `source` is a folder with a pyproject.toml, which is copied, or a pinned requirement of an installed package. What
    the package does not say is taken from the arguments. Raises BenchError for what is missing, with the option.
    """
    places.root_of(root)
    local = Path(source)
    if local.is_dir():
        package, install = of_folder(local), {"folder": places.PLUGIN}
    elif schema.PINNED.fullmatch(source):
        package, install = _of_requirement(source), {"requirement": source}
    else:
        raise BenchError(
            f"{source!r} is neither a folder nor pinned to one version; give a folder with a pyproject.toml, or "
            "NAME==VERSION, NAME @ https://...whl#sha256=DIGEST, NAME @ git+https://...@40-DIGIT-COMMIT"
        )
    chosen = _chosen(package, source, name)
    if chosen in places.RESERVED:
        holds = places.RESERVED[chosen]
        raise BenchError(f"{source} registers a defense called {chosen!r}: that folder holds {holds}; rename it")
    facts = declared(package, chosen)
    link = code or package.url
    missing = {
        "--author NAME": not (authors or package.authors),
        "--licence SPDX": not (licence or package.licence),
    }
    if any(missing.values()):
        wanted = ", ".join(option for option, absent in missing.items() if absent)
        raise BenchError(f"{source} does not say all that a submission needs; add {wanted}")
    given = {
        "name": chosen, "title": facts["title"], "authors": list(authors or package.authors), "paper": facts["paper"],
        "year": facts["year"], "kind": facts["kind"], "licence": licence or package.licence,
        "datasets": list(datasets), "classifiers": list(classifiers), "install": install,
        "facts": {fact: facts[fact] for fact in ("stochastic", "differentiable", "trained_on")},
    }  # fmt: skip
    path = root / chosen / places.FILE
    if path.exists():
        raise BenchError(f"{path} exists already; edit it, or delete it first")
    submission = schema.validate(given | ({"code": link} if link else {}), source)
    if local.is_dir():
        _copy(local, root / chosen / places.PLUGIN)
    write_atomically(path, lambda file: file.write(schema.as_toml(submission).encode()))
    return path


def of_folder(folder: Path) -> Package:
    """What the pyproject.toml of a folder says. Raises BenchError."""
    path = folder / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text())["project"]
        points = dict(project.get("entry-points", {}).get(plugins.GROUP, {}))
        authors = tuple(str(author["name"]) for author in project.get("authors", []) if "name" in author)
        licence = project.get("license", "")
        urls = [url for url in project.get("urls", {}).values() if str(url).startswith("https://")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BenchError(
            f"{path} cannot be used ({type(problem).__name__}: {problem}); `purifybench new` writes one"
        ) from problem
    if isinstance(licence, dict):
        licence = licence.get("text", "")
    code = folder / "src" if (folder / "src").is_dir() else folder
    return Package(points, code, authors, str(licence), str(urls[0]) if urls else "")


def _of_requirement(requirement: str) -> Package:
    named = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*?(?===| ?@)", requirement)
    assert named is not None  # PINNED matched
    try:
        found = metadata.distribution(named.group())
    except metadata.PackageNotFoundError as problem:
        raise BenchError(
            f"{named.group()} is not installed here; pip install '{requirement}', then add it"
        ) from problem
    version = requirement.partition("==")[2]
    if version and found.version != version:
        raise BenchError(
            f"{named.group()} {found.version} is installed, but {requirement} is to be added; install that"
        )
    points = {point.name: point.value for point in found.entry_points if point.group == plugins.GROUP}
    urls = [line.partition(",")[2].strip() for line in found.metadata.get_all("Project-URL") or []]
    said = cast("Message", found.metadata)
    authors = said.get("Author")
    licence = said.get("License-Expression") or said.get("License") or ""
    link = next((url for url in urls if url.startswith("https://")), "")
    return Package(points, Path(str(found.locate_file(""))), (authors,) if authors else (), licence, link)


def _chosen(package: Package, source: str, name: str | None) -> str:
    wanted = plugins.slug(name) if name else next(iter(package.points), "")
    if wanted not in package.points:
        there = f"registers {', '.join(package.points)}" if package.points else "registers no defense"
        raise BenchError(
            f'{source} {there} under [project.entry-points."{plugins.GROUP}"]'
            + (f", expected {wanted!r}" if wanted else "; add the line NAME = 'module:Class'")
        )
    if name is None and len(package.points) > 1:
        raise BenchError(f"{source} registers {', '.join(package.points)}; choose one with --name")
    return wanted


def declared(package: Package, name: str) -> dict[str, Any]:
    """The facts in the body of the class that an entry point names, and the defaults of those that it leaves out."""
    module, _, attribute = package.points[name].partition(":")
    base = package.code.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    path = next((path for path in candidates if path.is_file()), candidates[0])
    try:
        tree = ast.parse(path.read_text())
    except (OSError, SyntaxError, ValueError, RecursionError) as problem:
        raise BenchError(
            f"{path} cannot be read ({problem}); the entry point {name} names module {module}"
        ) from problem
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            facts = {**DEFAULTS, **_literals(node)}
            absent = [fact for fact in FACTS if fact not in facts]
            if absent:
                raise BenchError(f"{path}: class {attribute} does not set {', '.join(absent)}; write them in its body")
            return facts
    raise BenchError(f"{path} defines no class {attribute}, which the entry point {name} names")


def _literals(body: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in body.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            try:
                value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except (ValueError, TypeError, RecursionError):
                continue
            if isinstance(target, ast.Name):
                found[target.id] = value
            elif isinstance(target, ast.Tuple) and isinstance(value, tuple) and len(value) == len(target.elts):
                found |= {t.id: v for t, v in zip(target.elts, value, strict=True) if isinstance(t, ast.Name)}
    return {name: value for name, value in found.items() if name in FACTS}


def _copy(source: Path, target: Path) -> None:
    """The package's own files; what is there already and differs is an error, so that nothing is lost."""
    if source.resolve() == target.resolve():
        return
    if target.exists():
        raise BenchError(f"{target} exists already; delete it first to copy {source} again")
    for path in places.own_files(source):
        if path.is_symlink():
            raise BenchError(f"{path} is a symbolic link, expected a file; a submission holds files only")
        parts = path.relative_to(source).parts
        if any(part.startswith(".") for part in parts) or parts[0] in ("build", "dist", "results", "site", "venv"):
            continue
        into = target / path.relative_to(source)
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, into)
