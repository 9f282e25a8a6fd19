"""CPU parameter sets: TOML to the geometry of an MMU, each figure with its source.

The shipped sets are ``data/*.toml``; ``base.toml`` holds what they share and no
vendor publishes. A user's file has the same form and may inherit from any of them.
Left out: instruction TLBs; tables of granules other than 4 KiB, which are refused.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from simvm.errors import InvalidInput, Mistake, did_you_mean
from simvm.hardware.costs import COSTS_FILE
from simvm.hardware.figures import (
    CHOICE,
    FIGURE_MARKS,
    MAX_FILE_BYTES,
    SOURCES_FILE,
    FigureReader,
    Parameter,
    Source,
    parse_toml,
)
from simvm.hardware.geometry import (
    ENTRY_NAMES,
    POLICIES,
    DataCache,
    MmuGeometry,
    NestedTlb,
    TableFormat,
    TlbArray,
    WalkCachePart,
)

LINE_BYTES: Final = 64

_BASE: Final = "base"
_STYLES: Final = ("intel", "amd")
_TAGGING: Final = ("VPID", "ASID", "VMID", "none")
_TABLES: Final = (
    "inherits", "part", "style", "policy", "frequency", "l2_penalty", "smash", "walkers",
    "zeroing", "dram_latency", "walk_cache_latency", "l1_load", "l1_store", "l2",
    "guest_walk_cache", "host_walk_cache", "nested_tlb", "tables", "cache_l2", "cache_llc",
    "source",
)  # fmt: skip
_TABLE_KEYS: Final = ("guest_levels", "host_levels", "host_root_bits", "contiguous", "tagging")
_GRANULE_KEYS: Final = ("granule", "guest_granule", "host_granule")
"""What a file of another granule may say; none of it is a key."""
_MOST_ROOT_BITS: Final = 13
"""Of a table of 512 entries: sixteen of them one after another."""
_MOST_ADDRESS_BITS: Final = 57

_BLOCK, _GIB, _CONTIGUOUS = (ENTRY_NAMES.index(name) for name in ("2MiB", "1GiB", "64KiB"))
_MAX_ENTRIES: Final = 1 << 20
_MAX_INHERITANCE: Final = 8


@dataclass(frozen=True)
class Cpu:
    """One CPU: what its vCPUs translate with, its clock, and how fast it zeroes memory.

    Every figure stands in `parameters` under its place in the file, such as
    ``l2.4KiB+2MiB.entries``.
    """

    name: str
    part: str
    """The product that the figures are of."""
    geometry: MmuGeometry
    guest_tables: TableFormat
    """Of a guest's page table, unless a scenario says otherwise; of a container's likewise."""
    host_tables: TableFormat
    """Of the SLAT, unless a scenario says otherwise."""
    contiguous: bool
    """Whether the TLBs can use Arm's contiguous hint."""
    tagging: str
    """The tag that tells entries of one guest from those of others: VPID, ASID, VMID, or none."""
    frequency_khz: int
    zeroing_bytes_per_s: int
    """Of one core, page at a time."""
    parameters: Mapping[str, Parameter] = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)

    def guest_format(self, levels: int | None = None, *, contiguous: bool = False) -> TableFormat:
        """The format of a guest's or a container's page table of `levels` (the CPU's own)."""
        return _format(self.guest_tables, levels, contiguous)

    def host_format(self, levels: int | None = None, *, contiguous: bool = False) -> TableFormat:
        """The format of a SLAT of `levels` (by default the CPU's own).

        A root that is larger than a table belongs to the CPU's own number of levels.
        """
        return _format(self.host_tables, levels, contiguous)


def _format(own: TableFormat, levels: int | None, contiguous: bool) -> TableFormat:
    if levels is None or levels == own.levels:
        return replace(own, contiguous=contiguous)
    return TableFormat(levels, contiguous=contiguous)


def names() -> list[str]:
    """The shipped CPUs."""
    found = (item.name for item in files("simvm.hardware").joinpath("data").iterdir())
    return sorted(
        name.removesuffix(".toml")
        for name in found
        if name.endswith(".toml") and name not in (f"{_BASE}.toml", COSTS_FILE, SOURCES_FILE)
    )


def is_path(name: str) -> bool:
    """Whether the CPU `name` is the path of a file, rather than a shipped set."""
    return name not in names() and ("/" in name or "\\" in name or name.endswith(".toml"))


def load_cpu(name_or_path: str | Path) -> Cpu:
    """A shipped CPU by its name, or one from the TOML file at a path.

    Raises
    ------
    InvalidInput
        There is none, or its file has mistakes; all of them are reported.
    """
    text = str(name_or_path)
    if text in names():
        return _shipped(text)
    if isinstance(name_or_path, Path) or is_path(text):
        path = Path(name_or_path)
        return _read(path.stem, str(name_or_path), _file(path))
    near = difflib.get_close_matches(text[:80], names(), n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(names())}, or a TOML file"
    raise InvalidInput([Mistake("", "cpu", repr(text)[:80], "no such CPU", fix)])


@functools.cache
def _shipped(name: str) -> Cpu:
    return _read(name, f"{name}.toml", _data(name))


def _data(name: str) -> bytes:
    return files("simvm.hardware").joinpath("data", f"{name}.toml").read_bytes()


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        rule = f"must be a readable file ({error.strerror or error})"
        known = ", ".join(names())
        fix = f"correct the path, or use one of {known}"
        raise InvalidInput([Mistake(str(path), "", "", rule, fix)]) from None
    if len(data) > MAX_FILE_BYTES:
        rule = f"a parameter set has at most {MAX_FILE_BYTES} bytes"
        raise InvalidInput([Mistake(str(path), "", "", rule, "name another file")])
    return data


def _inherited(file: str, tree: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """`tree` with what it inherits below it."""
    parent = tree.get("inherits")
    if parent is None:
        return tree
    known = [*names(), _BASE]
    if parent not in known or depth >= _MAX_INHERITANCE:
        fix = did_you_mean(str(parent), known)
        rule = "must name a shipped parameter set"
        raise InvalidInput([Mistake(file, "inherits", repr(parent)[:80], rule, fix)])
    below = _inherited(parent, parse_toml(_data(parent), parent), depth + 1)
    return _merged(below, tree)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, table by table; figures and lists are replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _is_figure(value):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _is_figure(table: Mapping[str, Any]) -> bool:
    return any(mark in table for mark in FIGURE_MARKS)


def _read(name: str, file: str, data: bytes) -> Cpu:
    tree = _inherited(file, parse_toml(data, file))
    reader = _CpuReader(file, tree)
    return reader.cpu(name)


class _CpuReader(FigureReader):
    """Reads a CPU's tables."""

    def __init__(self, file: str, tree: Mapping[str, Any]) -> None:
        super().__init__(file, tree.get("source", {}))
        self.tree = tree
        self._policy_of_all: Parameter | None = None
        for key in tree:
            if key not in _TABLES:
                fix = did_you_mean(key, _TABLES)
                self.refuse(key, tree[key], "no such key in a parameter set", fix)

    def cpu(self, name: str) -> Cpu:
        """The CPU; raises InvalidInput with every mistake that was found."""
        part = self.tree.get("part", name)
        if not isinstance(part, str):
            self.refuse("part", part, "must be a text", "put it in quotes")
        geometry = MmuGeometry(
            style=self.choice("style", self.tree.get("style"), _STYLES),
            l1_load=self._tlb("l1_load"),
            l1_store=self._tlb("l1_store") if "l1_store" in self.tree else None,
            l2=self._tlb("l2"),
            l2_penalty=self._scalar("l2_penalty", "cycles"),
            smash="smash" in self.tree and self.choice("smash", self.tree["smash"], (False, True)),
            walkers=self._scalar("walkers", "walkers", low=1),
            guest_walk_cache=self._walk_cache("guest_walk_cache"),
            host_walk_cache=self._walk_cache("host_walk_cache"),
            nested_tlb=self._nested_tlb(),
            walk_cache_latency=self._scalar("walk_cache_latency", "cycles"),
            cache_l2=self._data_cache("cache_l2"),
            cache_llc=self._data_cache("cache_llc"),
            dram_latency=self._scalar("dram_latency", "cycles", low=1),
        )
        guest, host, contiguous, tagging = self._page_tables()
        frequency = self._scalar("frequency", "kHz", low=1000)
        zeroing = self._scalar("zeroing", "B/s", low=1_000_000)
        self._check_smash(geometry)
        self._check_contiguous(geometry, contiguous)
        if self.mistakes:
            raise InvalidInput(self.mistakes)
        used = {parameter.cites for parameter in self.parameters.values()}
        sources = tuple(source for source in self.sources.values() if source.key in used)
        return Cpu(
            name, str(part), geometry, guest, host, contiguous, tagging, frequency, zeroing,
            self.parameters, sources,
        )  # fmt: skip

    def _scalar(self, key: str, unit: str, low: int = 0) -> int:
        if key not in self.tree:
            fix = f'add {key} = {{ v = ..., unit = "{unit}", ... }}, or inherits = "base"'
            self.refuse(key, None, "is required", fix)
            return low
        return self.figure(key, self.tree[key], unit, low=low)

    def _page_tables(self) -> tuple[TableFormat, TableFormat, bool, str]:
        """The formats of guest and host, the contiguous hint, and the tag of TLB entries."""
        table = dict(self._table("tables"))
        for key in _GRANULE_KEYS:
            if key in table:
                rule = "scenarios run with tables of the 4KiB granule alone"
                fix = "remove it; simvm walk takes --guest-granule and --host-granule"
                self.refuse(f"tables.{key}", table.pop(key), rule, fix)
        self._known("tables", table, _TABLE_KEYS)
        numbers: dict[str, int] = {}
        for key, unit, low, high in (
            ("guest_levels", "levels", 3, 5), ("host_levels", "levels", 2, 5),
            ("host_root_bits", "bits", 0, _MOST_ROOT_BITS),
        ):  # fmt: skip
            numbers[key] = self.figure(f"tables.{key}", table.get(key), unit, low=low)
            if numbers[key] > high:
                rule = f"must be {low} to {high}"
                self.refuse(f"tables.{key}", numbers[key], rule, f"write {high} or less")
        guest = TableFormat(numbers["guest_levels"])
        host = TableFormat(numbers["host_levels"], root_bits=numbers["host_root_bits"])
        if host.address_bits > _MOST_ADDRESS_BITS >= TableFormat(host.levels).address_bits:
            rule = f"a SLAT of {host.levels} levels reaches {_MOST_ADDRESS_BITS} bits at most"
            fix = f"write {host.root_bits - host.address_bits + _MOST_ADDRESS_BITS} or less"
            self.refuse("tables.host_root_bits", host.root_bits, rule, fix)
        contiguous = self.choice("tables.contiguous", table.get("contiguous"), (False, True))
        tagging = self.choice("tables.tagging", table.get("tagging"), _TAGGING)
        return guest, host, contiguous, tagging

    def _check_smash(self, geometry: MmuGeometry) -> None:
        """What smashes holds 2 MiB and not 1 GiB in L2, and 1 GiB in L1."""
        if not geometry.smash:
            return
        l2 = {order for array in geometry.l2 for order in array.orders}
        l1 = {order for array in geometry.l1_load for order in array.orders}
        if _GIB in l2 or _BLOCK not in l2 or _GIB not in l1:
            rule = "a TLB that smashes holds 1GiB in L1, and 2MiB but not 1GiB in L2"
            self.refuse("smash", True, rule, "correct the arrays, or remove smash")

    def _check_contiguous(self, geometry: MmuGeometry, contiguous: bool) -> None:
        arrays = (*geometry.l1_load, *(geometry.l1_store or ()), *geometry.l2)
        if contiguous and not any(_CONTIGUOUS in array.orders for array in arrays):
            rule = "a TLB that uses the contiguous hint holds entries of 64KiB"
            self.refuse("tables.contiguous", True, rule, 'add "64KiB" to the orders of an array')

    def _list(self, key: str) -> list[Mapping[str, Any]]:
        value = self.tree.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            self.refuse(key, value, "must be tables", f"write [[{key}]]")
            return []
        return value

    def _table(self, key: str) -> Mapping[str, Any]:
        value = self.tree.get(key, {})
        if not isinstance(value, Mapping):
            self.refuse(key, value, "must be a table", f"write [{key}]")
            return {}
        return value

    def _shape(self, key: str, table: Mapping[str, Any], low: int = 1) -> tuple[int, int, str]:
        """Entries, ways and policy of a set-associative structure."""
        entries = self.figure(f"{key}.entries", table.get("entries"), "entries", low=low)
        if entries > _MAX_ENTRIES:
            fix = f"write {_MAX_ENTRIES} or less"
            self.refuse(f"{key}.entries", entries, "too many entries for a TLB", fix)
            entries = low
        ways = self.figure(
            f"{key}.ways", table.get("ways"), "ways", low=1, full=max(entries, 1)
        )
        if entries % ways:
            fix = 'write a divisor of entries, or "full"'
            self.refuse(f"{key}.ways", ways, f"must divide the {entries} entries", fix)
        return entries, ways, self._policy(f"{key}.policy", table)

    def _policy(self, key: str, table: Mapping[str, Any]) -> str:
        """How a structure replaces: as it says itself, else as the whole CPU does."""
        if "policy" in table:
            return str(self.choice(key, table["policy"], POLICIES))
        if self._policy_of_all is None:
            self.choice("policy", self.tree.get("policy"), POLICIES)
            known = self.parameters.pop("policy", None)
            self._policy_of_all = known or Parameter("policy", POLICIES[0], CHOICE, "assumed", "")
        self.parameters[key] = replace(self._policy_of_all, name=key)
        return str(self._policy_of_all.value)

    def _known(self, key: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for name in table:
            if name not in known:
                self.refuse(f"{key}.{name}", table[name], "no such key", did_you_mean(name, known))

    def _tlb(self, key: str) -> tuple[TlbArray, ...]:
        arrays: list[TlbArray] = []
        for table in self._list(key):
            orders = table.get("orders")
            if (
                not isinstance(orders, list)
                or not orders
                or any(order not in ENTRY_NAMES for order in orders)
                or len(set(orders)) != len(orders)
            ):
                fix = f"such as {list(ENTRY_NAMES)!r}"
                self.refuse(f"{key}.orders", orders, "must list the page sizes it holds", fix)
                continue
            label = f"{key}.{'+'.join(orders)}"
            if f"{label}.entries" in self.parameters:
                label += "#2"  # the other bank of two alike
            self._known(label, table, ("orders", "entries", "ways", "policy"))
            held = tuple(sorted(ENTRY_NAMES.index(order) for order in orders))
            arrays.append(TlbArray(held, *self._shape(label, table)))
        self._check_banks(key, arrays)
        return tuple(arrays)

    def _check_banks(self, key: str, arrays: list[TlbArray]) -> None:
        """An order is held by one array, or by two of the same shape."""
        for order, name in enumerate(ENTRY_NAMES):
            holding = [array for array in arrays if order in array.orders]
            shapes = {(array.entries, array.ways) for array in holding}
            if len(holding) > 2 or len(shapes) > 1:
                rule = f"{name} must be held by one array, or by two of the same shape"
                self.refuse(key, len(holding), rule, "merge the arrays, or make them alike")

    def _walk_cache(self, key: str) -> tuple[WalkCachePart, ...]:
        parts: dict[int, WalkCachePart] = {}
        for table in self._list(key):
            level = table.get("level")
            if not isinstance(level, int) or level not in range(2, 6) or level in parts:
                fix = "write each of the levels 2 to 5 once at most"
                self.refuse(f"{key}.level", level, "must be a table level of its own", fix)
                continue
            label = f"{key}.{level}"
            self._known(label, table, ("level", "entries", "ways", "policy"))
            parts[level] = WalkCachePart(level, *self._shape(label, table))
        return tuple(parts.values())

    def _nested_tlb(self) -> NestedTlb:
        table = self._table("nested_tlb")
        if not table:
            return NestedTlb()
        self._known("nested_tlb", table, ("entries", "ways", "policy"))
        return NestedTlb(*self._shape("nested_tlb", table, low=0))

    def _data_cache(self, key: str) -> DataCache:
        table = self._table(key)
        if not table:
            return DataCache()
        self._known(key, table, ("bytes", "ways", "latency"))
        size = self.figure(f"{key}.bytes", table.get("bytes"), "B", low=LINE_BYTES)
        ways = self.figure(f"{key}.ways", table.get("ways"), "ways", low=1)
        latency = self.figure(f"{key}.latency", table.get("latency"), "cycles", low=1)
        whole = size - size % (LINE_BYTES * ways)  # the nominal value of a range need not fit
        if not whole or size > 1 << 36:
            fix = f"write {LINE_BYTES * ways} to 2^36"
            self.refuse(f"{key}.bytes", size, "must hold at least one line in each way", fix)
        return DataCache(whole, ways, latency)
