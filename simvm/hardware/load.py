"""CPU parameter sets: TOML to the geometry of an MMU, each figure with its source.

The shipped sets are ``data/*.toml``; ``base.toml`` holds what they share and no
vendor publishes. A user's file has the same form and may inherit from any of them.
Left out: Zen 2, whose second-level TLB breaks 1 GiB entries into 2 MiB ones, and
Neoverse N1, whose walk caches are published nowhere.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from simvm.errors import InvalidInput, Mistake, did_you_mean
from simvm.hardware.costs import COSTS_FILE
from simvm.hardware.figures import MAX_FILE_BYTES, FigureReader, Parameter, Source, parse_toml
from simvm.hardware.geometry import (
    ORDER_NAMES,
    DataCache,
    MmuGeometry,
    NestedTlb,
    TlbArray,
    WalkCachePart,
)

LINE_BYTES: Final = 64

_BASE: Final = "base"
_STYLES: Final = ("intel", "amd")
_POLICIES: Final = ("lru", "plru")
_TABLES: Final = (
    "inherits", "part", "style", "frequency", "l2_penalty", "zeroing", "dram_latency",
    "walk_cache_latency", "l1_load", "l1_store", "l2", "guest_walk_cache", "host_walk_cache",
    "nested_tlb", "cache_l2", "cache_llc", "source",
)  # fmt: skip
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
    frequency_khz: int
    zeroing_bytes_per_s: int
    """Of one core, page at a time."""
    parameters: Mapping[str, Parameter] = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)


def names() -> list[str]:
    """The shipped CPUs."""
    found = (item.name for item in files("simvm.hardware").joinpath("data").iterdir())
    return sorted(
        name.removesuffix(".toml")
        for name in found
        if name.endswith(".toml") and name not in (f"{_BASE}.toml", COSTS_FILE)
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
        tables = isinstance(old, Mapping) and isinstance(value, Mapping) and "unit" not in value
        merged[key] = _merged(old, value) if tables and isinstance(old, Mapping) else value
    return merged


def _read(name: str, file: str, data: bytes) -> Cpu:
    tree = _inherited(file, parse_toml(data, file))
    reader = _CpuReader(file, tree)
    return reader.cpu(name)


class _CpuReader(FigureReader):
    """Reads a CPU's tables."""

    def __init__(self, file: str, tree: Mapping[str, Any]) -> None:
        super().__init__(file, tree.get("source", {}))
        self.tree = tree
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
            style=self._word("style", self.tree.get("style"), _STYLES),
            l1_load=self._tlb("l1_load"),
            l1_store=self._tlb("l1_store") if "l1_store" in self.tree else None,
            l2=self._tlb("l2"),
            l2_penalty=self._scalar("l2_penalty", "cycles"),
            guest_walk_cache=self._walk_cache("guest_walk_cache"),
            host_walk_cache=self._walk_cache("host_walk_cache"),
            nested_tlb=self._nested_tlb(),
            walk_cache_latency=self._scalar("walk_cache_latency", "cycles"),
            cache_l2=self._data_cache("cache_l2"),
            cache_llc=self._data_cache("cache_llc"),
            dram_latency=self._scalar("dram_latency", "cycles", low=1),
        )
        frequency = self._scalar("frequency", "kHz", low=1000)
        zeroing = self._scalar("zeroing", "B/s", low=1_000_000)
        if self.mistakes:
            raise InvalidInput(self.mistakes)
        used = {parameter.source for parameter in self.parameters.values()}
        sources = tuple(source for source in self.sources.values() if source.text in used)
        return Cpu(name, str(part), geometry, frequency, zeroing, self.parameters, sources)

    def _scalar(self, key: str, unit: str, low: int = 0) -> int:
        if key not in self.tree:
            fix = f'add {key} = {{ v = ..., unit = "{unit}", ... }}, or inherits = "base"'
            self.refuse(key, None, "is required", fix)
            return low
        return self.figure(key, self.tree[key], unit, low=low)

    def _word(self, key: str, value: Any, words: tuple[str, ...]) -> str:
        if value not in words:
            listed = ", ".join(words)
            self.refuse(key, value, f"must be one of {listed}", f'write {key} = "{words[0]}"')
        return str(value)

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
        policy = self._word(f"{key}.policy", table.get("policy", "lru"), _POLICIES)
        return entries, ways, policy

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
                or any(order not in ORDER_NAMES for order in orders)
                or len(set(orders)) != len(orders)
            ):
                fix = f"such as {list(ORDER_NAMES)!r}"
                self.refuse(f"{key}.orders", orders, "must list the page sizes it holds", fix)
                continue
            label = f"{key}.{'+'.join(orders)}"
            self._known(label, table, ("orders", "entries", "ways", "policy"))
            held = tuple(sorted(ORDER_NAMES.index(order) for order in orders))
            arrays.append(TlbArray(held, *self._shape(label, table)))
        self._check_banks(key, arrays)
        return tuple(arrays)

    def _check_banks(self, key: str, arrays: list[TlbArray]) -> None:
        """An order is held by one array, or by two of the same shape."""
        for order, name in enumerate(ORDER_NAMES):
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
