"""What monitoring exports look like, and how their figures become used and cached bytes.

Readers of text: plain columns (:class:`Columns`), the exposition format of Prometheus with
node_exporter's ``node_memory_*`` (:class:`Exposition`), and what ``virsh domstats --balloon`` or
``virsh dommemstat`` print, record after record (:class:`Records`). A reader yields a
:class:`Row` or a `Bad` for each, and says in `said` what it made of the format.

Sources: node_exporter, ``collector/meminfo_linux.go``; Linux, Documentation/filesystems/proc.rst
(MemAvailable); libvirt, ``virDomainMemoryStatTags`` and ``virConnectGetAllDomainStats``, in KiB.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from simvm.workload.usage import FULL
from simvm.workload.usage_text import Bad, BadValue, Times, bad, number, size

KIB: Final = 1024
Value = float | int | None


class Row(NamedTuple):
    """One row: None for a value that is missing. Activity is in millionths."""

    line: int
    time_ns: int
    used: int | None
    cached: int | None = None
    activity: int | None = None


Found = Iterator[Row | Bad]
Numbered = Iterable[tuple[int, str]]


@dataclass(frozen=True)
class Formula:
    """How named figures become used and cached memory."""

    used: str
    cached: str
    needs: tuple[str, ...]
    unit: int
    take: Callable[..., tuple[float, float | None]]

    @property
    def said(self) -> str:
        """In words."""
        return f"used = {self.used}" + (f", cached = {self.cached}" if self.cached else "")

    def apply(self, figures: Mapping[str, Value]) -> tuple[int | None, int | None]:
        """(used, cached) in bytes; None where a figure that it takes is missing."""
        values = [figures.get(name) for name in self.needs]
        if any(value is None for value in values):
            return None, None
        used, cached = self.take(*values)
        return size(used, self.unit), None if cached is None else size(max(0, cached), self.unit)


_NODE: Final = (
    Formula("MemTotal - MemAvailable", "MemAvailable - MemFree",
            ("MemTotal", "MemAvailable", "MemFree"), 1, lambda t, a, f: (t - a, a - f)),
    Formula("MemTotal - MemAvailable", "the less of Cached and MemAvailable",
            ("MemTotal", "MemAvailable", "Cached"), 1, lambda t, a, c: (t - a, min(c, a))),
    Formula("MemTotal - MemAvailable", "", ("MemTotal", "MemAvailable"), 1,
            lambda t, a: (t - a, None)),
    Formula("MemTotal - MemFree - Buffers - Cached", "Buffers + Cached",
            ("MemTotal", "MemFree", "Buffers", "Cached"), 1,
            lambda t, f, b, c: (t - f - b - c, b + c)),
)  # fmt: skip
_LIBVIRT: Final = (
    Formula("available - usable", "disk_caches", ("available", "usable", "disk_caches"), KIB,
            lambda a, u, c: (a - u, c)),
    Formula("available - usable", "", ("available", "usable"), KIB, lambda a, u: (a - u, None)),
    Formula("available - unused - disk_caches", "disk_caches",
            ("available", "unused", "disk_caches"), KIB, lambda a, u, c: (a - u - c, c)),
    Formula("available - unused, the cache included", "", ("available", "unused"), KIB,
            lambda a, u: (a - u, None)),
    Formula("rss, what the host holds for it", "", ("rss",), KIB, lambda r: (r, None)),
)  # fmt: skip
"""In order of preference."""

NODE_METRIC: Final = re.compile(r"node_memory_([A-Za-z_]{1,40}?)(?:_bytes)?(\{[^}]*\})?", re.ASCII)
_BALLOON: Final = re.compile(r"(?:balloon\.)?([a-z][a-z_-]{1,30})", re.ASCII)
LIBVIRT_NAMES: Final = frozenset({
    "current", "actual", "maximum", "available", "unused", "usable", "rss", "disk_caches",
    "last_update", "swap_in", "swap_out", "major_fault", "minor_fault", "hugetlb_pgalloc",
    "hugetlb_pgfail",
})  # fmt: skip


def formula_of(formulas: tuple[Formula, ...], names: Iterable[str]) -> Formula | None:
    """The first of which all figures are there."""
    there = set(names)
    return next((each for each in formulas if there.issuperset(each.needs)), None)


class Unfit(Exception):
    """A file that is of a format, and cannot be read: its key, value, rule and fix."""


_NO_FIGURES: Final = {
    _NODE: "MemTotal and MemAvailable, or MemFree, Buffers and Cached",
    _LIBVIRT: "available and usable, available and unused, or rss",
}


def _known(formulas: tuple[Formula, ...], names: Iterable[str]) -> Formula:
    listed = sorted(names)
    found = formula_of(formulas, listed)
    if found is None:
        fix = "export these as well"
        if formulas is _LIBVIRT:
            fix = "let the guest's driver report: virsh dommemstat DOMAIN --period 10"
        raise Unfit("columns", ", ".join(listed)[:80], f"must have {_NO_FIGURES[formulas]}", fix)
    return found


# --- columns ----------------------------------------------------------------------------

_TIME_UNITS: Final = {
    "time_ns": "ns", "time_us": "us", "time_ms": "ms", "time_s": "s", "time": None,
    "timestamp": None, "ts": None, "date": None, "datetime": None,
}  # fmt: skip
_SIZE_UNITS: Final = {"": 1, "_bytes": 1, "_kib": KIB, "_mib": KIB**2, "_gib": KIB**3}


def separator_of(line: str) -> str | None:
    """What stands between the columns of a line: None for blanks."""
    counts = {mark: line.count(mark) for mark in ",;\t"}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


def cells_of(line: str, separator: str | None) -> list[str]:
    """The cells of a line. BadValue where quotes do not match."""
    if separator is None:
        return line.split()
    if '"' not in line:
        return line.split(separator)
    try:
        (cells,) = csv.reader([line], delimiter=separator, strict=True)
    except (csv.Error, ValueError):
        raise BadValue("quotes that do not match") from None
    return cells


class Columns:
    """A row a line, under names or without: time, used[, cached] in bytes.

    Columns of node_exporter and libvirt are known by their names.
    """

    def __init__(self, first: str, times: Times | None) -> None:
        self._separator = separator_of(first)
        cells = [cell.strip().strip('"') for cell in cells_of(first, self._separator)]
        self.headed = not _is_data(cells)
        names = cells if self.headed else ["time", "used_bytes", "cached_bytes"][: len(cells)]
        if len(cells) < 2 or (not self.headed and len(cells) > 3):
            rule = "has two columns, time and used bytes, or three; more need names in a first line"
            raise Unfit("columns", str(len(cells)), rule, "write a line of names above them")
        self._width = len(cells)
        self._place_time(names, times)
        self._place_figures(names)

    def _place_time(self, names: list[str], times: Times | None) -> None:
        lower = [name.lower() for name in names]
        found = [i for i, name in enumerate(lower) if name in _TIME_UNITS]
        stamps = [i for i, name in enumerate(lower) if _libvirt_name(name) == "last_update"]
        if not found and not stamps:
            raise Unfit("columns", ", ".join(names)[:80], "must have a column of times",
                        f"name it one of {', '.join(_TIME_UNITS)}")  # fmt: skip
        self._time = (found or stamps)[0]
        unit = _TIME_UNITS[lower[self._time]] if found else "s"
        self._times = times or Times(unit)

    def _place_figures(self, names: list[str]) -> None:
        plain = {name: _plain(cell) for name, cell in enumerate(names) if _plain(cell)}
        self._direct: dict[str, tuple[int, int]] = {}
        for at, what in plain.items():
            assert what is not None
            if what[0] in self._direct:
                raise Unfit("columns", names[at], "two columns say the same", "keep one of them")
            self._direct[what[0]] = (at, what[1])
        self._figures: dict[str, int] = {}
        self._formula: Formula | None = None
        taken = {self._time, *plain}
        if "used" in self._direct:
            self.kind, units = "csv", {name: unit for name, (_, unit) in self._direct.items()}
            self.said = "used in " + _unit_name(units["used"])
            if "cached" in units:
                self.said += ", cached in " + _unit_name(units["cached"])
        else:
            node = {at: _node_name(name) for at, name in enumerate(names) if _node_name(name)}
            virt = {at: _libvirt_name(name) for at, name in enumerate(names)}
            self.kind, formulas = ("node_exporter", _NODE) if node else ("libvirt", _LIBVIRT)
            for at, name in (node or virt).items():
                if name is None or at == self._time:
                    continue
                if name in self._figures:
                    rule = "has the figures of several machines"
                    raise Unfit("columns", names[at][:80], rule, "export one machine")
                self._figures[name] = at
            if not self._figures:
                raise Unfit("columns", ", ".join(names)[:80], "must have a column used_bytes",
                            "name it used_bytes, or used_kib, or export node_memory_*")  # fmt: skip
            self._formula = _known(formulas, self._figures)
            self.said = self._formula.said + (", in bytes" if node else ", in KiB")
            taken |= {self._figures[name] for name in self._formula.needs}
        rest = [name for at, name in enumerate(names) if at not in taken]
        self.left_out = ", ".join(rest)[:200]

    @property
    def times(self) -> Times:
        """What it makes of the times."""
        return self._times

    def rows(self, lines: Numbered) -> Found:
        """The rows of these lines; empty lines and those that begin with # are passed over."""
        for line, text in lines:
            if not text.strip() or text.startswith("#"):
                continue
            try:
                yield self._row(line, text)
            except BadValue as error:
                yield bad(line, text, str(error))

    def _row(self, line: int, text: str) -> Row:
        cells = cells_of(text, self._separator)
        if len(cells) != self._width:
            raise BadValue(f"{len(cells)} columns, not {self._width}")
        time = self._times.ns(cells[self._time].strip('"'))
        if self._formula is not None:
            figures = {name: number(cells[self._figures[name]]) for name in self._formula.needs}
            return Row(line, time, *self._formula.apply(figures))
        values: dict[str, int | None] = {}
        for name, (at, unit) in self._direct.items():
            value = number(cells[at])
            if value is not None and name == "activity":
                if not 0 <= value <= 1:
                    raise BadValue("an activity that is not 0 to 1")
                values[name] = round(value * FULL)
            else:
                values[name] = None if value is None else size(value, unit)
        if any(value is None for value in values.values()):
            return Row(line, time, None)
        return Row(line, time, values["used"], values.get("cached"), values.get("activity"))


def _is_data(cells: list[str]) -> bool:
    """Whether a first line is a row: its cells are values, not names."""
    try:
        Times().ns(cells[0])
        for cell in cells[1:]:
            number(cell)
    except BadValue:
        return False
    return True


def _plain(name: str) -> tuple[str, int] | None:
    """What a column of plain bytes is, and its unit."""
    lower = name.lower()
    if lower == "activity":
        return "activity", 1
    for what in ("used", "cached"):
        if lower.startswith(what) and lower[len(what) :] in _SIZE_UNITS:
            return what, _SIZE_UNITS[lower[len(what) :]]
    return None


def _unit_name(unit: int) -> str:
    return {1: "bytes", KIB: "KiB", KIB**2: "MiB", KIB**3: "GiB"}[unit]


def _node_name(name: str) -> str | None:
    found = NODE_METRIC.fullmatch(name.strip())
    return found[1] if found else None


def _libvirt_name(name: str) -> str | None:
    found = _BALLOON.fullmatch(name.strip().lower())
    plain = found[1].replace("-", "_") if found else ""
    return plain if plain in LIBVIRT_NAMES else None


# --- samples with a time each -----------------------------------------------------------

_SAMPLE: Final = re.compile(
    r"node_memory_([A-Za-z_]{1,40}?)(?:_bytes)?(\{[^}]*\})?\s+(\S{1,40})(?:\s+(\S{1,40}))?\s*",
    re.ASCII,
)


class Exposition:
    """Scrapes of node_exporter one after another, each sample with its time in ms."""

    kind = "node_exporter"
    left_out = ""

    def __init__(self, times: Times | None) -> None:
        self.times = times or Times("ms")
        self.said = ""
        self._formula: Formula | None = None
        self._labels: str | None = None

    def rows(self, lines: Numbered) -> Found:
        """A row for each time."""
        figures: dict[str, Value] = {}
        first, time = 0, None
        for line, text in lines:
            if not text.startswith("node_memory_"):
                continue  # a comment, or another metric
            try:
                name, value, at = self._sample(text)
            except BadValue as error:
                yield bad(line, text, str(error))
                continue
            if time is not None and (at != time or name in figures):
                yield from self._flush(first, time, figures)
                figures = {}
            if not figures:
                first, time = line, at
            figures[name] = value
        if time is not None and figures:
            yield from self._flush(first, time, figures)

    def _sample(self, text: str) -> tuple[str, Value, int]:
        found = _SAMPLE.fullmatch(text)
        if found is None:
            raise BadValue("no sample")
        name, labels, value, stamp = found.groups()
        if self._labels is None:
            self._labels = labels or ""
        if (labels or "") != self._labels:
            rule = "has the figures of several machines"
            raise Unfit("labels", (labels or "none")[:80], rule, "export one machine")
        if stamp is None:
            fix = "export with timestamps, or as CSV with a column of times"
            raise Unfit("samples", text[:60], "must have a time each", fix)
        return name, number(value), self.times.ns(stamp)

    def _flush(self, line: int, time: int, figures: Mapping[str, Value]) -> Found:
        if self._formula is None:
            self._formula = _known(_NODE, figures)
            self.said = f"{self._formula.said}, in bytes"
        try:
            yield Row(line, time, *self._formula.apply(figures))
        except BadValue as error:
            yield bad(line, "", f"{self._formula.said}: {error}")


# --- records ----------------------------------------------------------------------------

RECORD_LINE: Final = re.compile(
    r"\s*(?:balloon\.)?([a-z][a-z_-]{1,30})(?:\s*=\s*|\s+)(\S{1,40})\s*", re.ASCII
)

_STAMP: Final = re.compile(r"\d{9,19}(?:\.\d{1,9})?|\d{4}-\d\d-\d\d[T ][\d:.,+Z-]{1,30}", re.ASCII)


class Records:
    """What virsh prints of a domain, again and again; KiB. A time of its own line comes before.

    Without such lines, the time is when the guest's driver last reported (last_update, in s).
    """

    kind = "libvirt"
    left_out = ""

    def __init__(self, times: Times | None) -> None:
        self.times = times or Times("s")
        self._given = Times()
        self.said = ""
        self._formula: Formula | None = None
        self._domain: str | None = None
        self._line = 0
        self._stamp: str | None = None
        self._record: dict[str, str] = {}

    def rows(self, lines: Numbered) -> Found:
        """A row for each record, which ends where a key comes again, or another one begins."""
        for line, raw in lines:
            text = raw.strip()
            found = RECORD_LINE.fullmatch(text)
            name = found[1].replace("-", "_") if found else ""
            if name in LIBVIRT_NAMES:
                assert found is not None
                if name in self._record:
                    yield from self._flush()
                self._line = self._line if self._record else line
                self._record[name] = found[2]
                continue
            yield from self._flush()
            if text.startswith("Domain:"):
                domain = text.partition(":")[2].strip()
                if self._domain is not None and domain != self._domain:
                    rule = "has the figures of several domains"
                    raise Unfit("Domain", domain[:80], rule, "import one domain at a time")
                self._domain = domain
            elif _STAMP.fullmatch(text):
                self._stamp = text
        yield from self._flush()

    def _flush(self) -> Found:
        if not self._record:
            return
        record, self._record = self._record, {}
        stamp, self._stamp = self._stamp, None
        try:
            figures = {name: number(text) for name, text in record.items()}
            if self._formula is None:
                self._formula = _known(_LIBVIRT, figures)
                self.said = f"{self._formula.said}, in KiB"
            if stamp is not None:
                self.times = self._given
                time = self._given.ns(stamp)
            elif "last_update" in record:
                time = self.times.ns(record["last_update"])
            else:
                raise BadValue("a record without a time")
            yield Row(self._line, time, *self._formula.apply(figures))
        except BadValue as error:
            yield bad(self._line, stamp or "", str(error))
