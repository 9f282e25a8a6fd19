"""What a trace is like: footprint, working set over time, and reuse of its pages.

Reuse is counted in accesses, not in distinct pages: how many accesses lie between
two touches of the same 4 KiB page, in classes of powers of two. Working sets are
distinct 4 KiB pages in equal parts of the trace. Time, of which a trace knows
nothing, is left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simvm.workload.page_set import PageSet
from simvm.workload.trace import TraceFile, check_footprint, open_trace

WINDOWS = 20


def trace_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a trace, reading all of it once.

    Returns
    -------
    dict
        Ready for JSON: the header's facts; ``accesses``, ``write_share``,
        ``distinct_4k_pages``, ``distinct_2m_pages``, ``distinct_1g_pages`` (in the
        program's own addresses), ``touched_bytes``, ``region_bytes``, ``file_bytes``;
        ``working_set``, `WINDOWS` equal parts (fewer in a trace of fewer accesses) with
        their distinct and the cumulative 4 KiB pages; ``first_touches``; ``reuse``,
        where a class counts touches `from_accesses` to `to_accesses` (inclusive) after
        the last touch of the same page.

    Raises
    ------
    InvalidInput
        The file is no whole trace, or its content disagrees with its header.
    """
    trace = open_trace(path)
    seen = PageSet()
    scan = _Scan(trace)
    for page, _line, _kind in trace.records():
        seen.add(page)
        scan.add(page)
    check_footprint(trace, seen)
    header = trace.header
    return {
        **header.model_dump(mode="json", exclude={"segments"}),
        "accesses": header.accesses,
        "write_share": header.writes / header.accesses,
        "touched_bytes": header.distinct_4k_pages << 12,
        "region_bytes": header.region_bytes,
        "file_bytes": Path(path).stat().st_size,
        "segments": [segment.model_dump() for segment in header.segments],
        "working_set": scan.working_set(),
        "first_touches": scan.first_touches,
        "reuse": scan.reuse(),
    }


class _Scan:
    """Last touch of every page, and what follows from it.

    The two arrays span the region, yet take memory only where pages are touched:
    the operating system backs zeroed pages when they are first written.
    """

    def __init__(self, trace: TraceFile) -> None:
        pages = trace.region_bytes >> 12
        self._touched_at = np.zeros(pages, dtype=np.int64)  # access number, from 1; 0: never
        self._window_of = np.zeros(pages, dtype=np.uint8)  # window number, from 1
        self._done = 0
        windows = min(WINDOWS, trace.accesses)
        self._bounds = [trace.accesses * w // windows for w in range(windows + 1)]
        self._distinct = [0] * windows
        self._new = [0] * windows
        self._reuse = np.zeros(64, dtype=np.int64)

    @property
    def first_touches(self) -> int:
        return sum(self._new)

    def add(self, page: NDArray[np.int64]) -> None:
        """Count the next accesses, window by window."""
        while len(page):
            window = int(np.searchsorted(self._bounds, self._done, side="right")) - 1
            part = page[: self._bounds[window + 1] - self._done]
            self._count(part, window)
            self._done += len(part)
            page = page[len(part) :]

    def _count(self, page: NDArray[np.int64], window: int) -> None:
        order = np.argsort(page, kind="stable")
        ordered = page[order]
        number = order + (self._done + 1)
        first = np.ones(len(page), dtype=bool)
        first[1:] = ordered[1:] != ordered[:-1]
        distinct = ordered[first]

        before = np.empty_like(number)
        before[1:] = number[:-1]
        before[first] = self._touched_at[distinct]
        again = before > 0
        gaps = number[again] - before[again]
        # frexp gives the bit length; exact, as gaps are below 2^53
        self._reuse += np.bincount(np.frexp(gaps.astype(np.float64))[1] - 1, minlength=64)

        self._new[window] += len(distinct) - int(np.count_nonzero(self._touched_at[distinct]))
        self._distinct[window] += int(np.count_nonzero(self._window_of[distinct] != window + 1))
        self._window_of[distinct] = window + 1
        last = np.ones(len(page), dtype=bool)
        last[:-1] = first[1:]
        self._touched_at[distinct] = number[last]

    def working_set(self) -> list[dict[str, int]]:
        cumulative = np.cumsum(self._new).tolist()
        return [
            {
                "from_access": self._bounds[w],
                "to_access": self._bounds[w + 1],
                "distinct_4k_pages": self._distinct[w],
                "cumulative_4k_pages": cumulative[w],
            }
            for w in range(len(self._distinct))
        ]

    def reuse(self) -> list[dict[str, int]]:
        classes = np.flatnonzero(self._reuse)
        top = int(classes[-1]) + 1 if len(classes) else 0
        return [
            {
                "from_accesses": 1 << b,
                "to_accesses": (2 << b) - 1,
                "touches": int(self._reuse[b]),
            }
            for b in range(top)
        ]
