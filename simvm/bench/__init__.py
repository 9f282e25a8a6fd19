"""How fast the simulator is and how much memory it takes, measured on the machine at hand.

`core` is the throughput of the compiled core, `scale` that of whole scenarios, `memory` what
one backed page costs. Only ratios carry over to other machines: `vs_read` compares with
NumPy reading the same accesses once, `vs_libcachesim` and `vs_pycachesim` with other
simulators given the same accesses (`simvm.bench.peers`), `vs_bare_core` a scenario with the
core alone (`simvm.bench.scale`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from simvm.core_check import load_core
from simvm.errors import UsageError, did_you_mean
from simvm.units import human_bytes, human_count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["PARTS", "Progress", "run", "tables"]

PARTS: Final = ("core", "scale", "memory")

Progress = Callable[[str, int, int], None]
"""Told before each step: what it is, steps done, steps in all."""


def run(
    only: str | None = None,
    cases: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    rounds: int = 5,
    accesses: int = 2_000_000,
) -> dict[str, Any]:
    """Measure.

    Parameters
    ----------
    only
        One of `PARTS`; by default all, or with `cases` what these are of.
    cases
        Cases of the core, as ``"stream/config"``, or all with this stream or this config; or
        whole scenarios by their name (``uniform`` and ``hot`` with ``only="scale"``, since
        streams have these names too). Without them scenarios that take minutes run only for
        ``only="scale"``.
    rounds, accesses
        How often each case of the core is run, and how many accesses that takes.

    Returns
    -------
    dict
        ``cases``: a list with ``stream``, ``config``, ``accesses``, ``accesses_per_s`` and
        ``tlb_misses_per_access``; of ``libcachesim``, ``pycachesim`` and ``read`` (NumPy)
        ``X_per_s`` and ``vs_X``, the median of what it took over what the case beside it
        took: null where it is not installed. ``peers``: their versions. ``scale``: a list
        with ``case``, ``guests``, ``simulated_s``, ``accesses``, ``events``, ``wall_s``, each
        rate of a scenario and what it is compared with (``accesses_per_s``,
        ``bare_core_per_s`` and ``vs_bare_core``, null where accesses are sampled;
        ``events_per_s``, ``bare_simpy_per_s`` and ``vs_bare_simpy``), ``peak_rss_bytes`` and
        ``rss_limit_bytes``. ``memory``: real bytes
        for each simulated page that the host backs, ``bytes_per_backed_4k_page`` and
        ``bytes_per_backed_2m_page``, and at the most for each backed GiB,
        ``peak_bytes_per_backed_gib_at_4k`` and ``peak_bytes_per_backed_gib_at_2m``.

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
        raise UsageError("--case names cases of core and scale, which --only memory leaves out")
    core = load_core()
    from simvm.bench import memory, peers, scale, throughput

    known: dict[str, Collection[str]] = {"core": throughput.known(), "scale": scale.CASES}
    chosen = _homes(cases or (), {part: known[part] for part in known if only in (None, part)})
    parts = {part for part in PARTS if only in (None, part)}
    if cases:
        parts = set(chosen)
    data: dict[str, Any] = {}
    if "core" in parts:
        those = throughput.choose(chosen.get("core", ()))
        data["cases"] = throughput.measure(core, those, rounds, accesses, progress)
        data["peers"] = {peer.name: peers.version(peer) for peer in peers.PEERS}
    if "scale" in parts:
        unnamed = scale.SHORT if only is None else tuple(scale.CASES)
        data["scale"] = scale.measure(progress, chosen.get("scale", unnamed))
    if "memory" in parts:
        data["memory"] = memory.measure(progress)
    return data


def _homes(
    cases: Sequence[str], known: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """Names of cases by the first part that knows them."""
    from simvm.bench.throughput import no_case

    chosen: dict[str, list[str]] = {}
    for name in cases:
        home = next((part for part, names in known.items() if name in names), None)
        if home is None:
            raise no_case(name, chain.from_iterable(known.values()))
        chosen.setdefault(home, []).append(name)
    return chosen


def tables(data: dict[str, Any]) -> RenderableType:
    """The tables of what `run` gave."""
    from rich.console import Group

    shown: list[RenderableType] = []
    if "cases" in data:
        shown.append(_cases(data["cases"], data["peers"]))
    if "scale" in data:
        shown.append(_scale(data["scale"]))
    if "memory" in data:
        shown.append(_memory(data["memory"]))
    return Group(*shown)


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    for head in texts:
        table.add_column(head, no_wrap=True)
    for head in numbers:
        table.add_column(head, justify="right")
    return table


def _cases(cases: Sequence[dict[str, Any]], peers: dict[str, str | None]) -> Table:
    from rich.text import Text

    from simvm.bench.peers import INSTALL

    table = _table(
        "core: accesses per second, and how many times those of other simulators that is",
        ("stream", "config"),
        ("accesses/s", *(f"\u00d7 {name}" for name in peers), "% of a read", "TLB misses/access"),
    )
    for case, after in zip(cases, [*cases[1:], None], strict=True):
        ratios = [case[f"vs_{name}"] for name in peers]
        table.add_row(
            case["stream"], case["config"], human_count(case["accesses_per_s"]),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            f"{100 * case['vs_read']:.2f}", f"{case['tlb_misses_per_access']:.4f}",
            end_section=after is not None and after["stream"] != case["stream"],
        )  # fmt: skip
    missing = [name for name, found in peers.items() if found is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        table.caption = Text(f"{' and '.join(missing)} {verb} not installed: {INSTALL}")
    return table


def _scale(cases: Sequence[dict[str, Any]]) -> Table:
    table = _table(
        "scale: whole scenarios, the core alone on the same accesses, and SimPy alone",
        ("case",),
        ("guests", "simulated", "wall", "accesses/s", "core alone", "of core", "events/s",
         "SimPy alone", "of SimPy", "peak memory", "limit"),
    )  # fmt: skip
    for case in cases:
        table.add_row(
            case["case"], str(case["guests"]), f"{case['simulated_s']:.2f} s",
            f"{case['wall_s']:.2f} s", human_count(round(case["accesses_per_s"])),
            *(("-", "-") if case["bare_core_per_s"] is None else
              (human_count(round(case["bare_core_per_s"])), f"{case['vs_bare_core']:.0%}")),
            human_count(round(case["events_per_s"])),
            human_count(round(case["bare_simpy_per_s"])), f"{case['vs_bare_simpy']:.1%}",
            human_bytes(case["peak_rss_bytes"]), human_bytes(case["rss_limit_bytes"]),
        )  # fmt: skip
    return table


def _memory(measures: dict[str, float]) -> Table:
    table = _table("memory", ("measure",), ("real memory",))
    for name, value in measures.items():
        table.add_row(name, human_bytes(round(value)))
    return table
