"""Files of a user's own that register objects, named by an environment variable.

Worker processes inherit the variable, and so find what the process before them found.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from firefly_cl.errors import ConfigurationError, FireflyError

VARIABLE = "FIREFLY_IMPORT"
"""Paths of Python files, separated as in PATH."""

_imported: set[Path] = set()


def import_own_files() -> None:
    """Import the files that VARIABLE names, each once; raises ConfigurationError."""
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        path = Path(name).expanduser().resolve()
        if path in _imported:
            continue
        _imported.add(path)  # a file may ask for what others have registered
        called = f"firefly_own_{len(_imported)}_{path.stem}"  # torch.py stands in nobody's way
        spec = importlib.util.spec_from_file_location(called, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ConfigurationError(f"{VARIABLE} names {path}, no Python file: correct it")
        module = sys.modules[called] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except FireflyError:
            raise
        except Exception as error:
            del sys.modules[called]
            why = str(error).strip().partition("\n")[0]
            raise ConfigurationError(
                f"{path}, which {VARIABLE} names, cannot be imported ({type(error).__name__}: "
                f"{why}): correct it"
            ) from error
