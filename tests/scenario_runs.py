"""The three scenarios, run once in a session, and the program that puts them into the docs.

`docs/refresh.py` is a program of the documentation, not of the package, and is loaded by its path.
"""

import atexit
import importlib.util
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
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def scenario_runs() -> Any:
    """The results of all three scenarios (`refresh.Runs`): about a minute on two cores."""
    directory = tempfile.TemporaryDirectory(prefix="simvm-scenarios-")
    atexit.register(directory.cleanup)
    return refresh().run_scenarios(Path(directory.name))
