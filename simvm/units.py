"""Bytes, nanoseconds and counts as text, and back: the one place that parses them.

Everything is an integer. A size is written with ``B, KiB, MiB, GiB, TiB``, a time
with ``ns, us (or µs), ms, s, m, h, d``, a count plain or with ``k, M, G`` for 10^3,
10^6 and 10^9. Decimals are refused, since few of them are whole bytes or
nanoseconds; so is ``GB``, which some read as 10^9 and some as 2^30.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

US: Final = 1_000
MS: Final = 1_000_000
SECOND: Final = 1_000_000_000

_SIZES: Final = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_TIMES: Final = {
    "ns": 1,
    "us": US,
    "ms": MS,
    "s": SECOND,
    "m": 60 * SECOND,
    "h": 3600 * SECOND,
    "d": 86400 * SECOND,
}
_COUNTS: Final = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}

# What people write instead, lower case, and what they probably mean.
_SIZE_HINTS: Final = {
    "k": "KiB", "kb": "KiB", "kib": "KiB", "ki": "KiB",
    "m": "MiB", "mb": "MiB", "mib": "MiB", "mi": "MiB",
    "g": "GiB", "gb": "GiB", "gib": "GiB", "gi": "GiB",
    "t": "TiB", "tb": "TiB", "tib": "TiB", "ti": "TiB",
    "b": "B", "byte": "B", "bytes": "B",
}  # fmt: skip
_TIME_HINTS: Final = {
    "nsec": "ns", "usec": "us", "msec": "ms", "sec": "s", "secs": "s", "second": "s",
    "seconds": "s", "min": "m", "mins": "m", "minute": "m", "minutes": "m", "hr": "h",
    "hour": "h", "hours": "h", "day": "d", "days": "d",
    "ns": "ns", "us": "us", "ms": "ms", "s": "s", "h": "h", "d": "d",
}  # fmt: skip
_COUNT_HINTS: Final = {"k": "k", "m": "M", "g": "G", "b": "G", "mio": "M", "bn": "G"}

_NUMBER: Final = re.compile(
    r"\s*(?P<sign>[+-]?)(?P<whole>\d[\d_]{0,40})(?:\.(?P<part>\d{1,40}))?\s*(?P<unit>[^\s\d]{0,12})\s*",
    re.ASCII,
)


class UnitError(ValueError):
    """A text that is no size, time or count: `rule` says why, `fix` what to write."""

    def __init__(self, text: str, rule: str, fix: str) -> None:
        super().__init__(text, rule, fix)
        self.text = text
        self.rule = rule
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.text!r} {self.rule}: {self.fix}"


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``"48GiB"``.

    Raises
    ------
    UnitError
        It has no unit, an unknown or ambiguous one, a decimal point, or a sign.
    """
    return _parse(text, _SIZES, _SIZE_HINTS, "size", "8GiB")


def parse_ns(text: str) -> int:
    """Nanoseconds of a time such as ``"20us"``.

    Raises
    ------
    UnitError
        As :func:`parse_bytes`.
    """
    return _parse(text.replace("µ", "u").replace("μ", "u"), _TIMES, _TIME_HINTS, "time", "10ms")


def parse_count(text: str) -> int:
    """A count such as ``"5M"`` or ``"5000000"``.

    Raises
    ------
    UnitError
        As :func:`parse_bytes`, but the unit may be left out.
    """
    return _parse(text, _COUNTS, _COUNT_HINTS, "count", "5M")


def format_bytes(value: int) -> str:
    """`value` exactly, in the largest unit that divides it: ``1 << 30`` is ``"1GiB"``."""
    return _exact(value, _SIZES)


def format_ns(value: int) -> str:
    """`value` exactly, in the largest unit that divides it: 20000 is ``"20us"``."""
    return _exact(value, _TIMES)


def format_count(value: int) -> str:
    """`value` exactly, with k, M or G where that divides it."""
    return _exact(value, _COUNTS)


def human_bytes(value: int) -> str:
    """`value` for a reader, three digits: ``"1.53 GiB"``; ``"1 GiB"`` is exact."""
    return _human(value, _SIZES)


def human_ns(value: int) -> str:
    """`value` for a reader, three digits: ``"3.93 us"``; ``"2 s"`` is exact."""
    return _human(value, _TIMES)


def human_count(value: int) -> str:
    """`value` for a reader, three digits: ``"5.02 M"``; ``"5 M"`` is exact."""
    return _human(value, _COUNTS)


def _parse(
    text: str, units: Mapping[str, int], hints: Mapping[str, str], what: str, example: str
) -> int:
    shown = text if len(text) <= 60 else text[:57] + "..."
    allowed = ", ".join(unit for unit in units if unit)
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise UnitError(shown, f"is no {what}", f'write an integer and a unit, such as "{example}"')
    whole, part, unit = found["whole"].replace("_", ""), found["part"], found["unit"]
    meant = unit if unit in units else hints.get(unit.lower())
    if found["sign"] == "-":
        raise UnitError(shown, f"is negative; a {what} is 0 or more", f'such as "{example}"')
    if meant is None:
        if not unit:
            first = next(iter(units))
            fix = f'write the unit, such as "{example}" (or "{int(whole)}{first}")'
            raise UnitError(shown, f"has no unit; a {what} needs one of {allowed}", fix)
        rule = f"has the unit {unit!r}, which is none of {allowed}"
        raise UnitError(shown, rule, f'such as "{example}"')
    if part is not None and part.strip("0"):
        fix = f'such as "{example}"'
        scaled, rest = divmod(int(whole + part) * units[meant], 10 ** len(part))
        if rest == 0:
            fix = f'write "{_exact(scaled, units)}"'
        raise UnitError(shown, f"has a decimal point; a {what} is an integer and a unit", fix)
    if meant != unit:
        rule = f"has the unit {unit!r}, which is none of {allowed}"
        raise UnitError(shown, rule, f'write {meant}: "{int(whole)}{meant}"')
    return int(whole) * units[unit]


def _exact(value: int, units: Mapping[str, int]) -> str:
    best = min(units, key=lambda unit: units[unit])
    for unit, size in units.items():
        if value and value % size == 0:
            best = unit
    return f"{value // units[best]}{best}"


def _human(value: int, units: Mapping[str, int]) -> str:
    magnitude, sign = abs(value), "-" if value < 0 else ""
    names = list(units)
    index = max((i for i, name in enumerate(names) if units[name] <= magnitude), default=0)
    while True:
        size = units[names[index]]
        whole, rest = divmod(magnitude, size)
        if rest == 0:
            return f"{sign}{whole} {names[index]}".rstrip()
        digits = 2 if whole < 10 else 1 if whole < 100 else 0
        rounded = (magnitude * 10**digits + size // 2) // size
        larger = index + 1 < len(names) and rounded * size >= 10**digits * units[names[index + 1]]
        if not larger:
            break
        index += 1
    text = str(rounded).rjust(digits + 1, "0")
    number = f"{text[:-digits]}.{text[-digits:]}" if digits else text
    return f"{sign}{number} {names[index]}".rstrip()
