"""What README says of the scenarios: the closing table of one, and a sentence for each finding.

Every number comes from the results of a run (`docs/refresh.py`). Where a finding no longer holds,
tests/test_scenarios.py fails, and its sentence has to be written anew here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from simvm.results import Timeline
from simvm.units import human_bytes

if TYPE_CHECKING:
    from docs.refresh import Runs

KIB = 1 << 10


class Interval:
    """What happened on the host between two samples of a run."""

    def __init__(self, timeline: Timeline, first: int, last: int) -> None:
        self._timeline = timeline
        self._first = first
        self._last = last

    def change(self, counter: str) -> float:
        """How much a counter grew."""
        values = self._timeline.values(counter)
        return float(values[self._last] - values[self._first])

    @property
    def loads_per_walk(self) -> float:
        return self.change("walk_loads") / self.change("walks")

    @property
    def misses_per_kaccess(self) -> float:
        return 1000 * self.change("tlb_misses") / self.change("accesses")

    @property
    def slowdown(self) -> float:
        return self.change("elapsed_ns") / self.change("ideal_ns")


def before_swapping(timeline: Timeline) -> Interval:
    """From the start to the last sample at which nothing had been swapped out."""
    quiet = [row for row, pages in enumerate(timeline.values("swap_outs")) if pages == 0]
    return Interval(timeline, 0, quiet[-1])


def last_of(timeline: Timeline, share: float) -> Interval:
    """The last part of a run, as a share of its simulated time."""
    times = timeline.values("time_ns")
    start = times[-1] * (1 - share)
    return Interval(timeline, int((times <= start).sum()) - 1, len(times) - 1)


def closing_table(answer: str) -> str:
    """A command's table without the blanks around it."""
    lines = [line.rstrip() for line in answer.splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def worked_example(runs: Runs) -> str:
    """The command that `make demo` runs, and what it prints."""
    return (
        "```console\n$ python -m simvm scenario scenarios/passthrough.toml --out runs/passthrough\n"
        f"{closing_table(runs.answers['passthrough'])}```\n"
    )


def findings(runs: Runs) -> str:
    """What the scenarios show, in their own numbers."""
    return "\n".join([*_passthrough(runs), "", *_overcommit(runs), "", *_trace(runs), ""])


def _passthrough(runs: Runs) -> Iterator[str]:
    rows = runs.comparison("passthrough")
    base, thp, hugetlb, small, container = (
        rows[name] for name in ("base", "thp", "hugetlb", "pages_4k", "container")
    )
    peaks = {name: runs.summary("passthrough", name)["host"]["peaks"] for name in rows}
    yield "`scenarios/passthrough.toml`, with 2 MiB host pages in all variants but `pages_4k`:"
    yield ""
    yield (
        "- **The same TLB reach as THP.** An entry covers the smaller of the guest's and the "
        f"host's page, 2 MiB in both: {base['tlb_misses_per_kaccess']:.1f} misses per 1,000 "
        f"accesses in `base`, {thp['tlb_misses_per_kaccess']:.1f} in `thp`."
    )
    yield (
        f"- **Shorter walks.** {base['loads_per_walk']:.2f} loads and "
        f"{base['cycles_per_walk']:.1f} cycles a walk in `base`, {thp['loads_per_walk']:.2f} and "
        f"{thp['cycles_per_walk']:.1f} in `thp`; slowdown {base['slowdown']:.2f}× against "
        f"{thp['slowdown']:.2f}×."
    )
    yield (
        f"- **Smaller tables.** Page tables peak at {_kib(base['peak_tables_bytes'])} against "
        f"{_kib(thp['peak_tables_bytes'])}, of which the guests' own are "
        f"{_kib(peaks['base']['guest_tables_bytes'])} against "
        f"{_kib(peaks['thp']['guest_tables_bytes'])}. Larger is what THP keeps in reserve to split "
        "its pages, in the guest as well as in the host: deposited tables peak at "
        f"{human_bytes(base['peak_deposited_tables_bytes'])} against "
        f"{human_bytes(thp['peak_deposited_tables_bytes'])}."
    )
    yield (
        "- **1 GiB pages that the guest zeroes back all of each page.** `hugetlb` backs "
        f"{human_bytes(hugetlb['peak_backed_bytes'])} at its peak, `base` "
        f"{human_bytes(base['peak_backed_bytes'])} for the same work at the same slowdown "
        f"({hugetlb['slowdown']:.2f}× and {base['slowdown']:.2f}×): only what is touched, in 2 MiB "
        f"pieces. `thp` backs {human_bytes(thp['peak_backed_bytes'])}: the saving is over hugetlb."
    )
    yield (
        "- **Freed memory goes back.** Memory that is backed though free in the guest peaks at "
        f"{human_bytes(peaks['base']['stranded_bytes'])} in `base`, at "
        f"{human_bytes(peaks['thp']['stranded_bytes'])} in `thp`, which has no channel."
    )
    yield (
        f"- **A container walks least.** {container['loads_per_walk']:.2f} loads and "
        f"{container['cycles_per_walk']:.1f} cycles a walk, slowdown {container['slowdown']:.2f}×: "
        "passthrough shortens the first dimension, and only a container is without the second."
    )
    yield (
        f"- **4 KiB pages** hold {human_bytes(small['peak_backed_bytes'])}, because each record of "
        "64 KiB is used in its first page alone; they take "
        f"{small['loads_per_walk']:.2f} loads and {small['cycles_per_walk']:.0f} cycles a walk, "
        f"miss {small['tlb_misses_per_kaccess']:.0f} times in 1,000 accesses, and slow the guests "
        f"down {small['slowdown']:.2f}×."
    )


def _overcommit(runs: Runs) -> Iterator[str]:
    rows = runs.comparison("overcommit")
    base, roomy, slow = (rows[name] for name in ("base", "roomy", "slow_swap"))
    host = runs.host("overcommit", "base")
    large, small = host.values("backed_2m_bytes"), host.values("backed_4k_bytes")
    first, last = before_swapping(host), last_of(host, 0.1)
    yield "`scenarios/overcommit.toml`, 12 GiB promised on a host of 8 GiB, and `roomy` on 16 GiB:"
    yield ""
    yield (
        "- **Reclaim breaks the host's huge pages.** Memory backed by 2 MiB pages peaks at "
        f"{human_bytes(round(large.max()))} and ends at {human_bytes(round(large[-1]))}; that "
        f"backed by 4 KiB pages grows from {human_bytes(round(small[0]))} to "
        f"{human_bytes(round(small[-1]))}."
    )
    yield (
        f"- **Walks get longer and guests slower.** {base['loads_per_walk']:.2f} loads a walk "
        f"against {roomy['loads_per_walk']:.2f}, {base['tlb_misses_per_kaccess']:.0f} misses per "
        f"1,000 accesses against {roomy['tlb_misses_per_kaccess']:.0f}, slowdown "
        f"{base['slowdown']:.2f}× against {roomy['slowdown']:.2f}×; {slow['slowdown']:.2f}× with a "
        "swap device of ten times the latency."
    )
    yield (
        "- **It outlasts the swapping.** In the last tenth of the run "
        f"{last.change('swap_ins'):,.0f} pages come back from swap, yet a walk takes "
        f"{last.loads_per_walk:.2f} loads (before the first page was swapped: "
        f"{first.loads_per_walk:.2f}), 1,000 accesses miss "
        f"{last.misses_per_kaccess:.0f} times, and the slowdown is {last.slowdown:.2f}×."
    )


def _trace(runs: Runs) -> Iterator[str]:
    rows = runs.comparison("trace")
    base, thp, small, container = (
        rows[name] for name in ("base", "thp", "pages_4k", "container")
    )
    yield "`scenarios/trace.toml`, a recording of GNU `sort` that four guests replay:"
    yield ""
    yield (
        "- **A program with good locality hardly walks under large pages.** "
        f"{base['tlb_misses_per_kaccess']:.2f} misses per 1,000 accesses in `base` and "
        f"{thp['tlb_misses_per_kaccess']:.2f} in `thp`, "
        f"{small['tlb_misses_per_kaccess']:.1f} in `pages_4k`; translation costs "
        f"{_share(runs, 'base'):.1%} and {_share(runs, 'pages_4k'):.1%} of the ideal time."
    )
    yield (
        f"- **Nearly all of its slowdown is first touches**, {base['slowdown']:.2f}× in `base`, "
        f"{thp['slowdown']:.2f}× in `thp`, {small['slowdown']:.2f}× in `pages_4k` and "
        f"{container['slowdown']:.2f}× in `container`: the host zeroes what it backs, and in `thp` "
        "and `pages_4k` the guest zeroes it again."
    )


def _share(runs: Runs, variant: str) -> float:
    """Translation over ideal time in the recorded program's phase."""
    totals = runs.summary("trace", variant)["host"]["totals"]
    return float(totals["translation_ns"] / totals["ideal_ns"])


def _kib(count: int) -> str:
    return f"{count // KIB} KiB"
