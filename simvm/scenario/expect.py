"""Expectations: conditions such as ``"< 1.3"`` on values of a run's summary.

A path names the value: ``host.oom_kills``, ``guest.web.slowdown``,
``guest.web.peak_backed_bytes``, ``guest.web.workload.serve.slowdown``. A quantity
may carry its unit (``"< 20GiB"``, ``"< 3us"``, ``"> 5M"``); the summary holds bytes,
nanoseconds and counts.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from simvm import units
from simvm.errors import did_you_mean
from simvm.units import UnitError

_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION: Final = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*(\S.{0,59}?)\s*")
_NUMBER: Final = re.compile(r"-?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Condition:
    """An operator and the number on its right."""

    operator: str
    bound: int | float
    text: str

    def holds(self, value: float) -> bool:
        """Whether `value` fulfils it; not-a-number never does."""
        return not math.isnan(value) and _OPERATORS[self.operator](value, self.bound)


def parse_condition(text: Any) -> Condition:
    """The condition that `text` writes.

    Raises
    ------
    UnitError
        It has no operator, or no number (a unit is B to TiB, ns to d, or k, M, G).
    """
    found = _CONDITION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        listed = " ".join(_OPERATORS)
        rule = f"must be an operator ({listed}) and a number, as a text"
        raise UnitError(str(text)[:60], rule, 'such as "< 1.3" or "== 0"')
    return Condition(found[1], _bound(found[2]), text)


def _bound(text: str) -> int | float:
    if _NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    for parse in (units.parse_count, units.parse_bytes, units.parse_ns):
        try:
            return parse(text)
        except UnitError:
            continue
    rule = "must end in a number, with a unit or without"
    raise UnitError(text, rule, 'such as "< 1.3", "< 20GiB" or "<= 3us"')


def find(summary: Mapping[str, Any], path: Sequence[str]) -> float:
    """The number in a run's summary that `path` names.

    The host's values stand under ``host``, those of a class under ``guest.NAME``.
    ``peak_X`` and ``mean_X`` are X under ``peaks`` and ``means``; a bare name is looked
    up in the totals as well; ``slowdown.p99`` is over guests and intervals. A phase
    (``guest.NAME.workload.PHASE.X``) is taken over all guests and repetitions: sums, the
    quotient of sums for the slowdown, the worst for latency and service time.

    Raises
    ------
    LookupError
        There is none; the message says what there is.
    """
    whole, rest = ".".join(path), list(path[1:])
    if path[:1] == ["host"] or path[:1] == ("host",):
        at = summary["host"]
    elif len(path) > 1 and path[0] == "guest":
        at, rest = _among(summary["classes"], path[1], whole, "class"), rest[1:]
        if rest[:1] == ["workload"]:
            return _phase_value(summary["guests"], path[1], rest[1:], whole)
    else:
        raise LookupError(f"{whole} is neither host.… nor guest.CLASS.…")
    if rest[:1] == ["slowdown"] and len(rest) > 1:
        rest[0] = "slowdown_percentiles"
    while rest:
        at = _step(at, rest.pop(0), whole)
    return _number(at, whole)


def _number(value: Any, whole: str) -> float:
    if value is None:
        raise LookupError(f"{whole} has no value in this run")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LookupError(f"{whole} is no number in the summary")
    return value


def _among(known: Mapping[str, Any], word: str, whole: str, what: str) -> Any:
    if word not in known:
        raise LookupError(f"{whole}: no {what} {word!r}: {did_you_mean(word, sorted(known))}")
    return known[word]


def _step(at: Any, word: str, whole: str) -> Any:
    """What stands under `word` in a part of the summary."""
    if not isinstance(at, Mapping):
        raise LookupError(f"{whole} has nothing below a number")
    if word in at:
        return at[word]
    totals = at.get("totals", {})
    found = {
        **totals,
        **{f"peak_{name}": value for name, value in at.get("peaks", {}).items()},
        **{f"mean_{name}": value for name, value in at.get("means", {}).items()},
    }
    return _among({**at, **found}, word, whole, "value")


def _phase_value(
    guests: Sequence[Mapping[str, Any]], class_: str, rest: Sequence[str], whole: str
) -> float:
    """A value of a phase over all guests of a class and all repetitions."""
    records = [
        record for guest in guests if guest["class"] == class_ for record in guest["phases"]
    ]
    names = {record["name"]: None for record in records}
    if len(rest) < 2:
        raise LookupError(f"{whole} names no value of a phase")
    _among(names, rest[0], whole, "phase that ran")
    chosen = [record for record in records if record["name"] == rest[0]]
    if rest[1:] == ["slowdown"]:
        ideal = sum(record["ideal_ns"] for record in chosen)
        elapsed = sum(record["elapsed_ns"] for record in chosen)
        return _number(elapsed / ideal if ideal else None, whole)
    values: list[float] = []
    for record in chosen:
        at: Any = {**record["counters"], **record["parts"], **record}
        for word in rest[1:]:
            at = _step(at, word, whole)
        values.append(_number(at, whole))
    return max(values) if rest[1] in ("latency_ns", "service_ns") else sum(values)


def failures(summary: Mapping[str, Any], expected: Mapping[str, str]) -> list[str]:
    """What does not hold of `expected` (path -> condition), one text each."""
    failed = []
    for path, text in expected.items():
        condition = parse_condition(text)
        try:
            value = find(summary, path.split("."))
        except LookupError as error:
            failed.append(f"{path} {text}: {error.args[0]}")
            continue
        if not condition.holds(value):
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            failed.append(f"{path} is {shown}, expected {text}")
    return failed
