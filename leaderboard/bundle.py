"""The DataTables bundle of the itables wheel, made loadable from file://. Copied at build, never committed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path


def _source() -> Path | None:
    """Where the installed itables keeps its bundle; None where it is absent. The package itself is not imported."""
    spec = importlib.util.find_spec("itables")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "html" / "dt_bundle.js"
        if path.is_file():
            return path
    return None


def classic_script() -> bytes | None:
    """A script that holds the bundle's text for site.js to import as a Blob; None where there is no bundle.

    The bundle is an ES module, and browsers refuse to import modules from file://; a classic script they do load.
    The bundle's own licence notices travel inside its text.
    """
    path = _source()
    if path is None:
        return None
    text = json.dumps(path.read_text(encoding="utf-8"))
    return f"window.purifybenchDataTables = {text};\n".encode()
