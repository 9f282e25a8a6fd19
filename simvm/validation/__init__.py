"""Compares what the simulator does with what is published: figures, and laws with their inputs.

Each check takes one table of `data/published.toml`, runs the parts of the simulator that the
table speaks of, and gives a row for each figure. A miss is reported as openly as a hit. What a
whole simulation has to answer is a scenario in `data/scenarios` (`scenarios.run`).
Adding a check means a module with a function that yields rows, a table, and one line here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from typing import Any, Final

from simvm.core_check import load_core
from simvm.errors import UsageError, did_you_mean
from simvm.validation.rows import Check, Published, counts, headline

__all__ = ["CHECKS", "Progress", "counts", "headline", "published", "run"]

Progress = Callable[[str, int, int], None]
"""Told before each check, and at the end: its name, checks done, checks in all."""

CHECKS: Final[Mapping[str, tuple[str, str]]] = {
    "walk_loads": ("walks", "load_rows"),
    "format_loads": ("walks", "load_rows"),
    "tlb_entry": ("walks", "entry_rows"),
    "format_entries": ("walks", "entry_rows"),
    "page_table_bytes": ("tables", "table_rows"),
    "format_bytes": ("tables", "format_rows"),
    "first_touch": ("touches", "touch_rows"),
    "cache_laws": ("caches", "hit_rows"),
    "replacement_laws": ("caches", "hit_rows"),
    "set_laws": ("caches", "set_rows"),
    "tlb_simulator": ("misses", "miss_rows"),
    "gups": ("gups", "hit_rows"),
    "gups_1g": ("gups", "twin_rows"),
    "walk_caches": ("walk_caches", "load_rows"),
    "working_set": ("working_sets", "working_set_rows"),
    "fault_queue": ("queueing", "open_rows"),
    "closed_queue": ("queueing", "closed_rows"),
    "backing_time": ("backing", "fault_rows"),
    "zeroing_once": ("zeroing", "saving_rows"),
    "demand_fault_scaling": ("demand_faults", "scaling_rows"),
    "resize": ("resize", "reclaim_rows"),
    "write_free_staggered": ("staggered", "series_rows"),
}
"""The module and function of each check, by its table in the data."""


def published() -> dict[str, Published]:
    """What the checks compare with, by check."""
    text = files("simvm.validation").joinpath("data", "published.toml").read_text("utf-8")
    return tomllib.loads(text)


def run(
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    full: bool = True,
    against: Mapping[str, Published] | None = None,
) -> list[dict[str, Any]]:
    """Run the checks, all or those named; one row for each figure.

    Parameters
    ----------
    only
        Names of checks, as in `CHECKS`.
    full
        False: statistical checks take a fifth of their samples.
    against
        Other figures than those shipped.

    Returns
    -------
    list of dict
        ``target``, ``published``, ``simulated``, ``error`` (simulated less published, a
        share of it where ``measure`` is ``"relative"``), ``tolerance``, ``within``,
        ``source``, ``class``: ``"identity"``, ``"calibrated"`` or ``"predicted"``,
        ``inputs``: what the simulated side depends on, and ``note``: what explains a known
        difference. Of an order both sides are texts such as ``"a > b"``, ``tolerance`` is
        ``"direction"`` and ``error`` the number of pairs (``measure`` is ``"pairs"``) that
        stand otherwise.

    Raises
    ------
    UsageError
        There is no such check.
    CoreMissing
        The compiled core cannot be used.
    """
    names = list(CHECKS) if only is None else list(dict.fromkeys(only))
    for name in names:
        if name not in CHECKS:
            raise UsageError(f"there is no check {name[:80]!r}: {did_you_mean(name, CHECKS)}")
    core = load_core()
    tables = published() if against is None else against
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(names):
        if progress is not None:
            progress(name, done, len(names))
        rows.extend(row.as_dict() for row in _check(name)(core, tables[name], full))
    if progress is not None:
        progress("", len(names), len(names))
    return rows


def _check(name: str) -> Check:
    module, function = CHECKS[name]
    check: Check = getattr(import_module(f"simvm.validation.{module}"), function)
    return check
