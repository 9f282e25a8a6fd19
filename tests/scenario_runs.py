"""The scenarios that ship, run once in a session, and the program that puts them into the docs.

`docs/refresh.py` is a program of the documentation, not of the package.
"""

import atexit
import importlib
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@cache
def refresh() -> ModuleType:
    """`docs/refresh.py` as a module."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module("docs.refresh")


@cache
def scenario_runs() -> Any:
    """The results of all of them (`refresh.Runs`): a minute and a half on two cores."""
    directory = tempfile.TemporaryDirectory(prefix="simvm-scenarios-")
    atexit.register(directory.cleanup)
    return refresh().run_scenarios(Path(directory.name))
