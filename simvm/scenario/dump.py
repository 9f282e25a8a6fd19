"""A resolved scenario as TOML, as JSON for its digest, and as a list of its values."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from simvm.hardware import format_cost, load_costs, load_cpu
from simvm.hardware.load import is_path
from simvm.scenario.fields import NAME
from simvm.scenario.models import BUILTIN_TRACE, Scenario
from simvm.scenario.swap import NvmeSwap, ZswapSwap, p99_of

_INLINE_WIDTH: Final = 100


def tables(scenario: Scenario) -> dict[str, Any]:
    """The scenario as the tables of its file: sizes and times as text, absent values left out."""
    tree: dict[str, Any] = scenario.model_dump(mode="json", by_alias=True, exclude_none=True)
    if not tree["host"]["costs"]:
        del tree["host"]["costs"]
    expected = tree.pop("expect")
    tree["expect"] = {**expected.pop("base", {}), **expected}
    return {key: value for key, value in tree.items() if value or key not in ("variant", "expect")}


def to_toml(scenario: Scenario, relative_to: Path | None = None) -> str:
    """The scenario as a file that :func:`simvm.scenario.load` reads to the same scenario.

    Parameters
    ----------
    relative_to
        The folder that the text will be written to: paths of files become relative to it.
        Without it they stay as they are, from the root.
    """
    tree = tables(scenario)
    if relative_to is not None:
        _each_file(tree, lambda file: os.path.relpath(file, relative_to).replace(os.sep, "/"))
    lines: list[str] = []
    _write_table(lines, (), tree)
    return "\n".join(lines).strip("\n") + "\n"


def digest(scenario: Scenario) -> str:
    """SHA-256 of what decides a run: all values, without variants and expectations.

    A file counts by its content, wherever it lies.
    """
    tree = scenario.model_dump(mode="python", by_alias=True, exclude={"variants", "expect"})
    _each_file(tree, lambda file: f"sha256:{file_digest(file)}")
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(file: str) -> str:
    """SHA-256 of a file's content; read anew only when the file has changed."""
    state = os.stat(file)
    return _file_digest(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _file_digest(file: str, _size: int, _mtime_ns: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _each_file(tree: dict[str, Any], change: Any) -> None:
    """Replace every path of a file in the tables."""
    if is_path(tree["host"]["cpu"]):
        tree["host"]["cpu"] = change(tree["host"]["cpu"])
    for guest in tree["guest"].values():
        for phase in guest["workload"]:
            pattern = phase.get("pattern")
            if pattern and pattern["kind"] == "trace" and pattern["file"] != BUILTIN_TRACE:
                pattern["file"] = change(pattern["file"])
            usage = phase.get("usage")
            if usage and usage["kind"] == "recorded":
                usage["file"] = change(usage["file"])


def values(scenario: Scenario) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every value of the scenario, with its path, as its file would write it."""
    tree = tables(scenario)
    tree.pop("variant", None)
    tree.pop("expect", None)
    yield from _leaves((), tree)


def defaults(scenario: Scenario) -> dict[tuple[str, ...], tuple[str, str]]:
    """What the scenario leaves to the sets of its CPU and costs: by path, text and origin."""
    found = {place: (text, "CPU") for place, text in _cpu_defaults(scenario).items()}
    return found | {place: (text, "cost set") for place, text in _cost_defaults(scenario).items()}


def _cpu_defaults(scenario: Scenario) -> dict[tuple[str, ...], str]:
    cpu = load_cpu(scenario.host.cpu)
    found: dict[tuple[str, ...], str] = {}
    if scenario.host.table_levels is None:
        found["host", "table_levels"] = _scalar(cpu.host_tables.levels)
    for name, guest in scenario.guests.items():
        if guest.table_levels is None:
            found["guest", name, "table_levels"] = _scalar(cpu.guest_tables.levels)
    return found


def _cost_defaults(scenario: Scenario) -> dict[tuple[str, ...], str]:
    swap = scenario.host.swap
    if not isinstance(swap, NvmeSwap | ZswapSwap):
        return {}
    costs = load_costs(scenario.host.costs)
    found = {
        "latency": ("nvme_latency", costs.nvme_latency_ns),
        "latency_p99": ("nvme_latency_p99", p99_of(swap, costs)),
        "parallelism": ("nvme_parallelism", costs.nvme_parallelism),
        "bandwidth": ("nvme_bandwidth", costs.nvme_bandwidth_bytes_per_s),
    }
    return {
        ("host", "swap", key): _scalar(format_cost(name, value))
        for key, (name, value) in found.items()
        if getattr(swap, key) is None
    }


def _leaves(at: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves((*at, key), below)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for phase in value:
            for key, below in phase.items():
                yield from _leaves((*at, phase["name"], key), below)
    elif value != []:
        yield at, _scalar(value)


# --- TOML -------------------------------------------------------------------------------


def _write_table(lines: list[str], path: tuple[str, ...], table: Mapping[str, Any]) -> None:
    """Values first, then the tables below, each under its heading."""
    below: list[tuple[str, Any]] = []
    for key, value in table.items():
        listed = isinstance(value, list) and value and isinstance(value[0], Mapping)
        if listed or (isinstance(value, Mapping) and _heading(path, key)):
            below.append((key, value))
        elif value != []:
            lines.append(f"{_key(key)} = {_inline(value)}")
    for key, value in below:
        name = ".".join(_key(part) for part in (*path, key))
        for item in value if isinstance(value, list) else [value]:
            if isinstance(value, list) or any(not isinstance(x, Mapping) for x in item.values()):
                lines += ["", f"[[{name}]]" if isinstance(value, list) else f"[{name}]"]
            _write_table(lines, (*path, key), item)


def _heading(path: tuple[str, ...], key: str) -> bool:
    """Whether a table has a heading of its own; the small ones are written in one line."""
    return not path or path in (("guest",), ("variant",), ("expect",)) or (*path, key) == (
        "host",
        "costs",
    )


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_inline(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return _text(str(value))


def _text(value: str) -> str:
    # JSON's escapes are TOML's too, but for DEL, which JSON leaves alone.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _key(key: str) -> str:
    return key if NAME.fullmatch(key) else _text(key)
