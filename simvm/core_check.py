"""Loads the compiled core, or says why it cannot be used and which command mends it.

A core that is missing, that another Python compiled, or that is older than the sources beside it
would give a bare ImportError or answers of other sources. Whatever needs the core calls `load_core`
first. Checking a scenario needs no core.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from simvm.core_sources import digest, sources
from simvm.errors import CoreMissing

PACKAGE = Path(__file__).resolve().parent


def load_core() -> ModuleType:
    """The module `simvm._core`.

    Raises
    ------
    CoreMissing
        If it is not compiled, cannot be loaded, or was compiled from other sources than those
        beside it.
    """
    try:
        core = import_module("simvm._core")
    except ImportError as error:
        raise CoreMissing(f"the compiled core cannot be loaded: {error}; {_remedy()}") from error
    if Path(core.__file__ or "").resolve().parent != PACKAGE:  # of an editable install elsewhere
        raise CoreMissing(
            f"the compiled core cannot be loaded: there is none in {PACKAGE}, and"
            f" {core.__file__} belongs to another simvm; {_remedy()}"
        )
    if sources(PACKAGE) and core.source_digest() != digest(PACKAGE):
        raise CoreMissing(
            f"the compiled core {core.__file__} is stale, its sources have changed since;"
            f" {_remedy()}"
        )
    return core


def _remedy() -> str:
    checkout = PACKAGE.parent
    if (checkout / "setup.py").exists():
        return f"run `make build` in {checkout}"
    return "run `pip install --force-reinstall .` in a checkout of simvm"
