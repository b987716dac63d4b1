"""3xx: the code of a submission, read and not run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bench import plugins
from bench.errors import BenchError
from bench.submissions import add, places, schema
from bench.submissions.rules.base import Case, Objection, ours, rule

BACKENDS = ("setuptools.build_meta", "hatchling.build", "flit_core.buildapi", "poetry.core.masonry.api", "pdm.backend")
FACTS = ("title", "paper", "year", "kind")


@rule(301)
def code_is_there(case: Case) -> Iterator[Objection]:
    """The folder that [install] names exists."""
    named = case.submission.install.folder if case.submission else None
    if named and case.plugin is None:
        yield case.folder / places.FILE, f"install.folder = {named!r}", "a folder beside it", "add the code's folder"


@rule(302)
def package_is_described(case: Case) -> Iterator[Objection]:
    """The code's pyproject.toml names the package and its version."""
    if case.plugin is None:
        return
    path, project = case.plugin / "pyproject.toml", case.project.get("project")
    if not case.project:
        yield path, "no TOML", "a package's description", "see what `purifybench new` writes"
    elif not isinstance(project, dict) or not all(isinstance(project.get(key), str) for key in ("name", "version")):
        yield path, "no [project] with name and version as text", "both", "write them; a version is not computed here"


@rule(303)
def name_is_registered(case: Case) -> Iterator[Objection]:
    """The package registers the defense under the submission's name, and no other name."""
    if case.plugin is None or not case.project:
        return
    path, points = case.plugin / "pyproject.toml", _points(case)
    if list(points) != [case.name]:
        expected = f'{case.name} = "module:Class" and no other'
        found = f"the names {', '.join(map(str, points)) or 'none'} under {plugins.GROUP}"
        yield path, found, expected, f'write it under [project.entry-points."{plugins.GROUP}"]'


@rule(304)
def class_is_there(case: Case) -> Iterator[Objection]:
    """The class that the entry point names is in the code, with its facts as plain values."""
    if case.plugin is None or case.name not in _points(case):
        return
    try:
        _facts(case)
    except BenchError as problem:
        yield case.plugin, str(problem), "the class with its facts", "mend the entry point or the class"


@rule(305)
def facts_agree(case: Case) -> Iterator[Objection]:
    """What the class declares is what submission.toml says."""
    try:
        facts = _facts(case) if case.plugin and case.name in _points(case) else {}
    except BenchError:
        return  # rule 304
    said = case.submission
    for fact, value in facts.items():
        given = getattr(said if fact in FACTS else said.facts if said else None, fact, None)
        if given != value:
            yield case.folder / places.FILE, f"{fact} = {given!r}", f"the class's {value!r}", "make them agree"


@rule(306)
def nothing_else_is_registered(case: Case) -> Iterator[Objection]:
    """The package registers defenses only: no commands, no plugins of other programs."""
    project = case.project.get("project", {})
    if case.plugin is None or not isinstance(project, dict):
        return
    groups = project.get("entry-points", {})
    others = [group for group in groups if group != plugins.GROUP] if isinstance(groups, dict) else ["entry-points"]
    for group in [*others, *(key for key in ("scripts", "gui-scripts") if project.get(key))]:
        yield case.plugin / "pyproject.toml", f"entries under {group}", f"{plugins.GROUP} only", "remove them"


@rule(307)
def builds_by_a_known_backend(case: Case) -> Iterator[Objection]:
    """The package is built by a known backend, without code of its own."""
    if case.plugin is None or not case.project:
        return
    system = case.project.get("build-system", {})
    backend = system.get("build-backend") if isinstance(system, dict) else None
    if backend not in BACKENDS or "backend-path" in system:
        found = f"build-backend = {backend!r}" + " with backend-path" * ("backend-path" in (system or {}))
        yield case.plugin / "pyproject.toml", found, f"one of {', '.join(BACKENDS)}", "take setuptools.build_meta"
    for name in ("setup.py", "setup.cfg", "hatch_build.py", "MANIFEST.in", "conftest.py", "sitecustomize.py"):
        for path in case.files:
            if path.name == name and path.is_relative_to(case.plugin):
                yield path, "a file that runs or steers outside the class", "pyproject.toml alone", "remove it"
    tool = case.project.get("tool", {})
    hooks = tool.get("hatch", {}).get("build", {}).get("hooks") if isinstance(tool, dict) else None
    if hooks or (isinstance(tool, dict) and "cmdclass" in tool.get("setuptools", {})):
        yield case.plugin / "pyproject.toml", "build hooks", "none", "remove them"


@rule(308)
def dependencies_are_named(case: Case) -> Iterator[Objection]:
    """Dependencies come from the package index, or from an address that is pinned."""
    project = case.project.get("project", {})
    for one in project.get("dependencies", []) if isinstance(project, dict) else []:
        if not isinstance(one, str) or (("@" in one or "/" in one) and not schema.PINNED.fullmatch(one)):
            expected = "NAME, NAME>=VERSION, or an address pinned by sha256 or commit"
            yield case.plugin or case.folder, f"the dependency {one!r}", expected, "name it or pin it"


@rule(309)
def no_path_files(case: Case) -> Iterator[Objection]:
    """No .pth file: Python would run its lines at every start."""
    for path in case.files:
        if path.suffix == ".pth":
            yield path, "a file that Python runs at every start", "none", "remove it"


@rule(310)
def included_means_included(case: Case) -> Iterator[Objection]:
    """`included = true` is for the defenses that come with PurifyBench."""
    if case.submission and case.submission.install.included and case.name not in ours():
        found, expected = "install.included = true", f"it for {', '.join(sorted(ours()))} only"
        yield case.folder / places.FILE, found, expected, "give a folder or a requirement"


@rule(311)
def no_name_is_taken(case: Case) -> Iterator[Objection]:
    """The package and its modules take no name that others use."""
    if case.plugin is None:
        return
    taken = {"bench", "defenses", "leaderboard", "torch", "numpy", "scipy", "sklearn", "pydantic", "typer", "tests"}
    for path in case.plugin.iterdir():
        if path.stem in taken and (path.suffix == ".py" or (path / "__init__.py").exists()):
            yield path, f"a module called {path.stem}", "a name of its own", f"rename it, {case.name} for example"
    project = case.project.get("project", {})
    name = project.get("name") if isinstance(project, dict) else None
    if isinstance(name, str) and re.sub("[-_.]+", "-", name).lower() in {"purifybench", *taken}:
        yield case.plugin / "pyproject.toml", f"name = {name!r}", "a name of its own", f"take {case.name}"


def _points(case: Case) -> dict[str, Any]:
    project = case.project.get("project", {})
    points = project.get("entry-points", {}) if isinstance(project, dict) else {}
    found = points.get(plugins.GROUP, {}) if isinstance(points, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _facts(case: Case) -> dict[str, Any]:
    assert case.plugin is not None
    return add.declared(add.of_folder(case.plugin), case.name)
