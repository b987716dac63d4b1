"""`purifybench new`: a small package of one's own, copied from the template with its name put in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bench import plugins
from bench.errors import BenchError
from bench.places import write_atomically

TEMPLATE = Path(__file__).parent / "template"
GENERATED = ("__pycache__", ".egg-info", ".pyc")


def new(name: str, parent: Path) -> Path:
    """Write the package `<parent>/<name>/` for a defense called `name` (`-` reads as `_`); returns its folder.

    Raises BenchError for a name that is no slug, that an installed defense or Python module has, or whose folder is
    there already.
    """
    module = plugins.slug(name)
    if not plugins.SLUG.fullmatch(module):
        raise BenchError(
            f"{name!r} cannot name a defense; take 2 to 40 of a-z, 0-9 and -, a letter first, such as my-defense"
        )
    if module in plugins.installed():
        raise BenchError(f"a defense called {module!r} is installed already; choose another name")
    if importlib.util.find_spec(module) is not None:
        raise BenchError(f"a Python module called {module!r} can be imported already; choose another name")
    folder = parent / module.replace("_", "-")
    if folder.exists():
        raise BenchError(f"{folder} exists already; choose another name or another folder with --into")
    for path in sorted(TEMPLATE.rglob("*")):
        if path.is_file() and not any(part.endswith(GENERATED) for part in path.relative_to(TEMPLATE).parts):
            text = _named(path.read_text(), module).encode()
            write_atomically(
                folder / _named(str(path.relative_to(TEMPLATE)), module),
                lambda file, text=text: file.write(text),  # type: ignore[misc]
            )
    return folder


def _named(text: str, module: str) -> str:
    """The template's text with every form of its name replaced."""
    words = module.split("_")
    forms = {
        "my_defense": module,
        "my-defense": "-".join(words),
        "MyDefense": "".join(word.capitalize() for word in words),
        "My defense": " ".join(words).capitalize(),
    }
    for theirs, ours in forms.items():
        text = text.replace(theirs, ours)
    return text
