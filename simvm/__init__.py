"""simvm: what each way of mapping guest memory costs a host, and what it does to the guests.

    scenario = simvm.load("scenarios/passthrough.toml")
    result = simvm.run(scenario)

Names are imported when first used: `import simvm` is quick and needs no compiled core.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simvm.runner import run
    from simvm.scenario.load import load

__all__ = ["__version__", "load", "run"]

__version__ = "0.1.0"

_HOMES = {"load": "simvm.scenario", "run": "simvm.runner"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simvm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
