"""Lines, numbers and times of monitoring exports, read with limits on what they may cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import BinaryIO, Final, NamedTuple

from simvm.errors import InvalidInput
from simvm.workload.parquet_files import refusal
from simvm.workload.usage import MAX_BYTES

MAX_LINE_BYTES: Final = 1 << 16
_BLOCK_BYTES: Final = 1 << 18
_SHOWN: Final = 60
_FAR: Final = 9 * 10**18  # ns; what 64 bits hold

_NUMBER: Final = re.compile(
    r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,4})?", re.ASCII
)
_MISSING: Final = frozenset({"", "nan", "null", "none", "na", "n/a"})

UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
"""ns in units of time."""


class Bad(NamedTuple):
    """A row that says nothing, and why."""

    line: int
    text: str
    reason: str


class BadValue(ValueError):
    """Why a text is no value of its kind."""


def bad(line: int, text: str, reason: str) -> Bad:
    """A row that says nothing, its text shortened and printable."""
    shown = text[:_SHOWN].encode("ascii", "backslashreplace").decode()
    return Bad(line, shown + ("..." if len(text) > _SHOWN else ""), reason)


class Lines:
    """The lines of a text with their numbers, from a file or a pipe, in bounded memory.

    Iterating raises InvalidInput at a line that is too long or no text: the rest is not read.
    """

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self._name = name
        self._stream = stream
        self.number = 0
        self.bytes_read = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        carry = b""
        while block := self._stream.read(_BLOCK_BYTES):
            self.bytes_read += len(block)
            *whole, carry = (carry + block).split(b"\n")
            for line in whole:
                yield self._line(line)
            if len(carry) > MAX_LINE_BYTES:
                self._line(carry)
        if carry:
            yield self._line(carry)

    def _line(self, line: bytes) -> tuple[int, str]:
        self.number += 1
        if len(line) > MAX_LINE_BYTES:
            raise self._refuse("is too long", f"a line has {MAX_LINE_BYTES} bytes at most")
        try:
            if b"\0" in line:
                raise ValueError
            text = line.decode()
        except ValueError:
            rule = "must be text in UTF-8, or a Parquet file by its name"
            raise self._refuse(repr(line[:20]), rule) from None
        if self.number == 1:
            text = text.removeprefix("\ufeff")
        return self.number, text.rstrip("\r")

    def _refuse(self, value: str, rule: str) -> InvalidInput:
        fix = "unpack or convert it first; `simvm trace import --usage` lists what it reads"
        return refusal(self._name, f"line {self.number}", value, rule, fix)


def number(text: str) -> float | int | None:
    """A number; None where a value is missing. BadValue for anything else."""
    text = text.strip()
    if text.isdecimal() and text.isascii() and len(text) <= 30:
        return int(text)
    if text.lower() in _MISSING:
        return None
    if not _NUMBER.fullmatch(text):
        raise BadValue("no number")
    return float(text)


def size(value: float | int, unit: int = 1) -> int:
    """Whole bytes of a value in units of `unit` bytes."""
    if value < 0:
        raise BadValue("negative")
    if not value * unit <= MAX_BYTES:
        raise BadValue("more than 4 PiB")
    return int(value * unit)


class Times:
    """Turns the times of a file into ns; the first one says in which unit all of them are."""

    def __init__(self, unit: str | None = None) -> None:
        self._unit = unit
        self.said = "" if unit is None else f"{unit}, as the format or --time has it"
        self._iso: bool | None = None

    def ns(self, text: str) -> int:
        """ns of a time. BadValue if it is none, or of another form than the first."""
        text = text.strip()
        plain = bool(_NUMBER.fullmatch(text))
        if self._iso is None:
            self._begin(text, plain)
        if plain == self._iso:
            raise BadValue("a time of another form than the first one")
        found = self._number(text) if plain else self._stamp(text)
        if not -_FAR < found < _FAR:
            raise BadValue("a time out of range")
        return found

    def _begin(self, text: str, plain: bool) -> None:
        if not plain:
            zone = self._stamp(text, zone=True)
            self.said = "ISO 8601" + ("" if zone else ", without a zone: taken as UTC")
        elif self._unit is None:
            value = abs(float(text))
            # What a time since 1973 amounts to in each unit; less is no time of day.
            for unit, least in (("ns", 1e17), ("us", 1e14), ("ms", 1e11), ("s", 1e8)):
                if value >= least:
                    self._unit = unit
                    self.said = f"{unit} since 1970, by the size of the first one"
                    break
            else:
                self._unit = "s"
                self.said = "s since the beginning; --time says otherwise"
        self._iso = not plain

    def _number(self, text: str) -> int:
        assert self._unit is not None
        if text.isdecimal() and len(text) <= 20:
            return int(text) * UNITS[self._unit]
        if not abs(float(text)) < 1e20:
            raise BadValue("a time out of range")
        return int(Decimal(text) * UNITS[self._unit])

    def _stamp(self, text: str, zone: bool = False) -> int:
        """ns of an ISO 8601 time; with `zone`, whether it has one."""
        try:
            if len(text) > 40:
                raise ValueError
            found = datetime.fromisoformat(text)
            if zone:
                return found.tzinfo is not None
            if found.tzinfo is None:
                found = found.replace(tzinfo=UTC)
            since = found - datetime(1970, 1, 1, tzinfo=UTC)
        except (ValueError, OverflowError):
            raise BadValue("no time: a number, or ISO 8601") from None
        seconds = since.days * 86400 + since.seconds
        return seconds * UNITS["s"] + since.microseconds * UNITS["us"]
