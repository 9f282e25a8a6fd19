"""The one grammar of paths: ``guest.web.workload.serve.accesses``.

Keys of the scenario's tables, joined by dots; a class of guests and a phase stand
under their names. It serves ``--set`` and ``[variant]``, and with the summary's
names in place of the scenario's, ``[expect]``. A path changes a value, or a small
table such as ``host.swap`` as a whole; it never makes a class or a phase. Where a word
says which keys a table has (``kind`` of a channel), another word drops those that it has not.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel

from simvm.columns import COUNTER_NAMES, GAUGE_NAMES, PRESSURE_NAMES, VALUE_NAMES
from simvm.errors import did_you_mean
from simvm.scenario.base import words_of
from simvm.scenario.channels import ChannelSettings
from simvm.scenario.fields import NAME
from simvm.scenario.models import GuestClass, Host, Meta, Phase

_ROOTS: Final[dict[str, type[BaseModel]]] = {"scenario": Meta, "host": Host}
_MAX_PARTS: Final = 12

SUMMARY_ONLY: Final = (
    "loads_per_walk", "cycles_per_walk", "tlb_misses_per_kaccess", "peaks", "means", "totals",
    "final", "count", "memory_bytes", "slowdown_percentiles", "refault_distance",
)  # fmt: skip
"""What the summary of a host or class holds beside the columns of the timeline."""

PHASE_VALUES: Final = (
    "slowdown", "start_ns", "end_ns", "elapsed_ns", "ideal_ns", "accesses", "requests",
    "latency_ns", "service_ns", "parts", "counters", *COUNTER_NAMES,
)  # fmt: skip
"""What the summary of a phase holds."""


class PathError(ValueError):
    """A path that leads nowhere: `rule` says why, `fix` what to write."""

    def __init__(self, rule: str, fix: str) -> None:
        super().__init__(rule, fix)
        self.rule = rule
        self.fix = fix


def parse(text: str) -> tuple[str, ...]:
    """The parts of a path.

    Raises
    ------
    PathError
        It is not names joined by dots.
    """
    example = 'such as "guest.web.page_size"'
    parts = tuple(text.split("."))
    if len(parts) < 2:
        raise PathError("a path names a value, from the top, in quotes", example)
    if len(parts) > _MAX_PARTS or not all(NAME.fullmatch(part) for part in parts):
        raise PathError("a path is names joined by dots", example)
    return parts


def parse_setting(text: str) -> tuple[tuple[str, ...], Any]:
    """Path and value of ``--set PATH=VALUE``; the value is TOML, else a plain text.

    Raises
    ------
    PathError
        There is no "=", or the path is none.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise PathError("a setting is PATH=VALUE", "such as guest.web.page_size=1GiB")
    return parse(path.strip()), _value(value.strip())


def _value(text: str) -> Any:
    if "\n" in text or len(text) > 10_000:
        return text
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if set(found) == {"value"} else text


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type is made of, such as the patterns in ``Pattern | None``."""
    if annotation is ChannelSettings:
        return [*ChannelSettings.kinds.values()]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return models_in(get_args(annotation)[0])
    return [model for part in get_args(annotation) for model in models_in(part)]


def keys_of(models: list[type[BaseModel]]) -> dict[str, Any]:
    """Keys of tables of any of `models`, with the types of their values."""
    return {
        field.alias or name: field.annotation
        for model in models
        for name, field in model.model_fields.items()
    }


def assign(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Put `value` where `path` points in the raw tables of a scenario.

    Raises
    ------
    PathError
        The path leads nowhere, or to something that is no value.
    """
    table, models, rest = _enter(tree, path)
    while True:
        key = rest[0]
        known = keys_of(models)
        if key not in known:
            raise PathError(f"no such key as {key!r} there", did_you_mean(key, known))
        below = models_in(known[key])
        if below == [Phase]:
            table, models, rest = _phase(table, rest), [Phase], rest[2:]
            continue
        if len(rest) == 1:
            chosen = [model for model in models if words_of(model).get(key) == value]
            if chosen and len(models) > 1:
                for other in table.keys() - keys_of(chosen).keys():
                    del table[other]
            table[key] = value
            return
        if not below and not _has_keys(known[key]):
            raise PathError(f"{key!r} is a value and has nothing below it", "end the path there")
        table = _table(table, key)
        if not below:
            if len(rest) != 2:
                raise PathError(f"nothing lies as deep below {key!r}", "shorten the path")
            table[rest[1]] = value
            return
        models, rest = below, rest[1:]


def _has_keys(annotation: Any) -> bool:
    """Whether values of a type are tables of keys of any name, such as costs, or may be."""
    return get_origin(annotation) is dict or any(map(_has_keys, get_args(annotation)))


def _enter(
    tree: dict[str, Any], path: tuple[str, ...]
) -> tuple[dict[str, Any], list[type[BaseModel]], tuple[str, ...]]:
    """The table that the head of a path names, its model, and what is left of the path."""
    head = path[0]
    if head in _ROOTS:
        return _table(tree, head), [_ROOTS[head]], path[1:]
    if head != "guest":
        words = [*_ROOTS, "guest"]
        raise PathError(f"a path begins with one of {', '.join(words)}", did_you_mean(head, words))
    classes = _table(tree, "guest")
    if path[1] not in classes:
        raise PathError(f"no class of guests {path[1]!r}", did_you_mean(path[1], classes))
    if len(path) < 3:
        fix = f'such as "guest.{path[1]}.page_size"'
        raise PathError("a path names a value, not a class of guests", fix)
    return _table(classes, path[1]), [GuestClass], path[2:]


def _table(parent: dict[str, Any], key: str) -> dict[str, Any]:
    found = parent.setdefault(key, {})
    if not isinstance(found, dict):
        raise PathError(f"{key!r} is no table in the file", f"write {key} as a table")
    return found


def _phase(guest: Mapping[str, Any], rest: tuple[str, ...]) -> dict[str, Any]:
    """The phase that ``workload.NAME.…`` names."""
    phases = guest.get("workload", [])
    named = {
        phase["name"]: phase
        for phase in (phases if isinstance(phases, list) else [])
        if isinstance(phase, dict) and isinstance(phase.get("name"), str)
    }
    if len(rest) < 3:
        fix = 'such as "guest.web.workload.serve.accesses"'
        raise PathError("a path names a value of a phase", fix)
    if rest[1] not in named:
        raise PathError(f"no phase {rest[1]!r}", did_you_mean(rest[1], named))
    return named[rest[1]]


def check_summary_path(path: tuple[str, ...], tree: Mapping[str, Any]) -> None:
    """Hold that a path of ``[expect]`` names what a summary of this scenario can hold.

    Raises
    ------
    PathError
        It cannot.
    """
    rest = path[1:]
    known_names = {
        *VALUE_NAMES,
        *(f"{prefix}_{name}" for prefix in ("peak", "mean") for name in GAUGE_NAMES),
        *(f"peak_{name}" for name in PRESSURE_NAMES),
        *SUMMARY_ONLY,
    }
    if path[0] == "guest":
        classes = tree.get("guest", {})
        guest = classes.get(path[1]) if isinstance(classes, Mapping) else None
        if not isinstance(guest, Mapping):
            known = classes if isinstance(classes, Mapping) else {}
            raise PathError(f"no class of guests {path[1]!r}", did_you_mean(path[1], known))
        rest = path[2:]
        if rest[:1] == ("workload",):
            _phase(guest, rest)
            rest, known_names = rest[2:], set(PHASE_VALUES)
    elif path[0] != "host":
        fix = 'such as "guest.web.slowdown" or "host.oom_kills"'
        raise PathError("a path into the summary begins with guest or host", fix)
    if not rest or rest[0] not in known_names:
        word = rest[0] if rest else ""
        raise PathError(f"a summary has no {word!r}", did_you_mean(word, sorted(known_names)))
