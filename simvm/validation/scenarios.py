"""Runs the scenarios of data/scenarios, for rows that a whole simulation has to answer.

A scenario there is a file like any other: it states its question, passes `simvm check`, and its
variants are the sides of a comparison. It is run through `simvm.run`, as a user would.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import as_file, files

from simvm.results import RunResult
from simvm.runner import run as run_scenario
from simvm.scenario import Scenario, resolve

FOLDER = "scenarios"
_KEPT = 16


def names() -> list[str]:
    """The scenarios there are."""
    folder = files("simvm.validation").joinpath("data", FOLDER)
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir())


def scenario(
    name: str, variant: str | None = None, sets: Sequence[str] = (), folder: str = FOLDER
) -> Scenario:
    """One of them, or a variant of it, with settings applied.

    Parameters
    ----------
    variant
        None: the base.
    sets
        As after `--set`: `guest.web.memory=1GiB`. What makes a scenario smaller for a run that is
        not at full size goes here.
    folder
        Below data: those of `simvm.validation.fidelity` have one of their own.

    Raises
    ------
    InvalidInput
        There is none of that name, or it has mistakes.
    """
    file = files("simvm.validation").joinpath("data", folder, f"{name}.toml")
    with as_file(file) as path:
        return resolve(path, sets, variant)


def run(name: str, variant: str | None = None, sets: Sequence[str] = ()) -> RunResult:
    """The result of one of them; several rows may ask for the same. Do not change it.

    Raises
    ------
    InvalidInput
        As `scenario`.
    SimulationFailed
        An invariant did not hold.
    """
    return _run(name, variant, tuple(sets))


@lru_cache(_KEPT)
def _run(name: str, variant: str | None, sets: tuple[str, ...]) -> RunResult:
    return run_scenario(scenario(name, variant, sets))
