"""Series for the charts, from timelines: binned, in units a reader likes.

A chart has room for some hundred points. Samples are gathered in bins that are whole
multiples of the sample interval and common to all runs, so that the runs of a
comparison are sampled at the same times. A gauge shows the last sample of its bin, a
counter its rate between the last samples of two bins (nothing is lost or counted
twice), a ratio the mean of its intervals in the bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from simvm.results import RunResult
from simvm.timeline import Timeline

MOST_POINTS: Final = 400

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit for an axis: divide by `size` to get it."""

    name: str
    size: float


_BYTES: Final = (Unit("TiB", 2.0**40), Unit("GiB", 2.0**30), Unit("MiB", 2.0**20))
_TIMES: Final = (
    Unit("h", 3600e9),
    Unit("min", 60e9),
    Unit("s", 1e9),
    Unit("ms", 1e6),
    Unit("µs", 1e3),
)


def _unit(most: float, units: tuple[Unit, ...], at_least: float) -> Unit:
    return next((unit for unit in units if most >= at_least * unit.size), units[-1])


def byte_unit(most: float) -> Unit:
    """The unit for an axis that ends at `most` bytes."""
    return _unit(most, _BYTES, 2)


def time_unit(end_ns: float) -> Unit:
    """The unit for an axis that ends at `end_ns`."""
    return _unit(end_ns, _TIMES, 2)


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one run over time; not-a-number where there is none."""

    time_ns: Floats
    value: Floats


class Sampler:
    """Reads the host rows of several runs at common times.

    Parameters
    ----------
    runs
        By variant.
    most_points
        No series is longer than this (and the bin at time 0).
    """

    def __init__(self, runs: Mapping[str, RunResult], most_points: int = MOST_POINTS) -> None:
        self._hosts: dict[str, Timeline] = {
            name: run.timeline.host() for name, run in runs.items()
        }
        self._times = {name: host.values("time_ns") for name, host in self._hosts.items()}
        steps = [np.diff(times) for times in self._times.values()]
        interval = min((float(step[step > 0].min()) for step in steps if (step > 0).any()),
                       default=1.0)
        self.end_ns = max((float(t[-1]) for t in self._times.values() if t.size), default=1.0)
        self.bin_ns = interval * max(1.0, np.ceil(self.end_ns / interval / most_points))
        self._last = {name: self._last_of_bins(times) for name, times in self._times.items()}

    @property
    def variants(self) -> list[str]:
        """The runs' names, in order."""
        return list(self._hosts)

    def bins(self, variant: str) -> list[int]:
        """The number of each point's bin, for rows that stand side by side."""
        at = self._times[variant][self._last[variant]]
        return [int(n) for n in np.ceil(at / self.bin_ns)]

    def gauge(self, variant: str, column: str) -> Series:
        """The last sample of each bin."""
        last = self._last[variant]
        return Series(self._times[variant][last], self._hosts[variant].values(column)[last])

    def rate(self, variant: str, column: str) -> Series:
        """The counter's growth per second since the bin before; none in the first."""
        counted = self.gauge(variant, column)
        value = np.full(counted.value.shape, np.nan)
        if value.size:
            value[1:] = np.diff(counted.value) / np.diff(counted.time_ns) * 1e9
        return Series(counted.time_ns, value)

    def ratio(self, variant: str, column: str) -> Series:
        """The mean over the intervals of each bin that have a value."""
        last = self._last[variant]
        cells = self._hosts[variant].values(column)
        known = ~np.isnan(cells)
        starts = np.concatenate(([0], last[:-1] + 1)) if last.size else last
        if not last.size:
            return Series(self._times[variant], cells)
        count = np.add.reduceat(known.astype(np.float64), starts)
        total = np.add.reduceat(np.where(known, cells, 0.0), starts)
        value = np.full(count.shape, np.nan)
        np.divide(total, count, out=value, where=count > 0)
        return Series(self._times[variant][last], value)

    def _last_of_bins(self, times: Floats) -> np.ndarray[Any, np.dtype[np.intp]]:
        bins = np.ceil(times / self.bin_ns)
        ends = np.ones(bins.shape, dtype=bool)
        ends[:-1] = bins[1:] != bins[:-1]
        return np.flatnonzero(ends)
