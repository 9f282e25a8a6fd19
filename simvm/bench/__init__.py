"""How fast the simulator is and how much memory it takes, measured on the machine at hand.

`core` is the throughput of the compiled core, `memory` what one backed page costs. Only
ratios carry over to other machines: `vs_read` compares with NumPy reading the same
accesses once. Left out: whole scenarios, and other simulators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from simvm.core_check import load_core
from simvm.errors import UsageError, did_you_mean
from simvm.units import human_bytes, human_count

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["PARTS", "Progress", "run", "tables"]

PARTS: Final = ("core", "memory")

Progress = Callable[[str, int, int], None]
"""Told before each step: what it is, steps done, steps in all."""


def run(
    only: str | None = None,
    cases: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    rounds: int = 3,
    accesses: int = 2_000_000,
) -> dict[str, Any]:
    """Measure.

    Parameters
    ----------
    only
        One of `PARTS`; by default both, or with `cases` the core.
    cases
        Cases of the core, as ``"stream/config"``, or all with this stream or this config.
    rounds, accesses
        How often each case is run, and how many accesses that takes.

    Returns
    -------
    dict
        ``cases``: a list with ``stream``, ``config``, ``accesses``, ``accesses_per_s``,
        ``read_per_s`` (of NumPy), ``vs_read`` (the quotient of these) and
        ``tlb_misses_per_access``. ``memory``: real bytes for each simulated page that the
        host backs, ``bytes_per_backed_4k_page`` and ``bytes_per_backed_2m_page``.

    Raises
    ------
    UsageError
        There is no such part or case.
    CoreMissing
        The compiled core cannot be used.
    """
    if only is not None and only not in PARTS:
        raise UsageError(f"bench has no part {only[:80]!r}: {did_you_mean(only, PARTS)}")
    if only == "memory" and cases:
        raise UsageError("--case names cases of the core, which --only memory leaves out")
    from simvm.bench import memory, throughput

    chosen = throughput.choose(cases or ())
    core = load_core()
    data: dict[str, Any] = {}
    if only in (None, "core"):
        data["cases"] = throughput.measure(core, chosen, rounds, accesses, progress)
    if only == "memory" or (only is None and not cases):
        data["memory"] = memory.measure(progress)
    return data


def tables(data: dict[str, Any]) -> RenderableType:
    """The tables of what `run` gave."""
    from rich.console import Group
    from rich.table import Table

    shown: list[RenderableType] = []
    if "cases" in data:
        table = Table("stream", "config", title="core")
        for head in ("accesses/s", "share of read speed", "TLB misses per access"):
            table.add_column(head, justify="right")
        for case in data["cases"]:
            table.add_row(
                case["stream"], case["config"], human_count(case["accesses_per_s"]),
                f"{case['vs_read']:.4f}", f"{case['tlb_misses_per_access']:.4f}",
            )  # fmt: skip
        shown.append(table)
    if "memory" in data:
        table = Table("measure", title="memory")
        table.add_column("real memory", justify="right")
        for name, value in data["memory"].items():
            table.add_row(name, human_bytes(round(value)))
        shown.append(table)
    return Group(*shown)
