"""The types of a scenario's values: sizes, times, counts, shares, choices, names.

A value is text with a unit in TOML and an integer (bytes, nanoseconds) in the
model; from Python the integer is taken as well. Each type refuses with a rule and
a fix. A word that belongs to the vocabulary but is not modelled says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from simvm import units
from simvm.errors import did_you_mean
from simvm.scenario.expect import parse_condition
from simvm.units import UnitError

MAX_BYTES: Final = 1 << 52
"""The reach of a physical address: 4 PiB."""

MAX_NS: Final = 1 << 60
"""About 36 years."""

MAX_COUNT: Final = 10**15

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", re.ASCII)
"""Names of classes, phases, regions, variants: what a path can hold between two dots."""

FROM_TEXT: Final = "from_text"
"""Validation context: the input is a TOML file, where a number without unit is a mistake."""


def mistake(rule: str, fix: str) -> PydanticCustomError:
    """What a validator raises: a rule that the value breaks, and what to write instead."""
    return PydanticCustomError("mistake", "{rule}; fix: {fix}", {"rule": rule, "fix": fix})


def from_text(info: ValidationInfo) -> bool:
    """Whether the input is a file, where a quantity needs its unit."""
    return bool((info.context or {}).get(FROM_TEXT))


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _between(value: int, low: int, high: int, show: Callable[[int], str]) -> int:
    quote = "" if show is str else '"'
    if value < low:
        rule = f"must be {show(low)} or more" if low > 1 else "must be more than 0"
        if low == 0:
            rule = "must not be negative"
        raise mistake(rule, f"write {quote}{show(low)}{quote} or more")
    if value > high:
        rule = f"must be {show(high)} or less"
        raise mistake(rule, f"write {quote}{show(high)}{quote} or less")
    return value


def _quantity(
    parse: Callable[[str], int],
    show: Callable[[int], str],
    *,
    low: int,
    high: int,
    example: str,
    multiple: int = 1,
    plain: bool = False,
) -> BeforeValidator:
    """A validator of an integer with a unit; `plain`: a TOML integer will do as well."""

    def check(value: Any, info: ValidationInfo) -> int:
        return convert(value, text=from_text(info))

    def convert(value: Any, *, text: bool) -> int:
        if isinstance(value, str):
            try:
                number = parse(value)
            except UnitError as error:
                raise mistake(error.rule, error.fix) from None
        elif _integer(value) and (plain or not text):
            number = int(value)
        elif _integer(value):
            raise mistake("has no unit", f'write a text with its unit, such as "{example}"')
        else:
            kind = type(value).__name__
            raise mistake(f"must not be of the type {kind}", f'write a text such as "{example}"')
        _between(number, low, high, show)
        if number % multiple:
            near = show((number // multiple + 1) * multiple)
            raise mistake(f"must be a multiple of {show(multiple)}", f'write "{near}"')
        return number

    return BeforeValidator(check)


_SIZE_SCHEMA: Final = WithJsonSchema(
    {"type": "string", "pattern": r"^[0-9]+ *(B|KiB|MiB|GiB|TiB)$", "examples": ["8GiB"]}
)
_TIME_SCHEMA: Final = WithJsonSchema(
    {"type": "string", "pattern": r"^[0-9]+ *(ns|us|µs|ms|s|m|h|d)$", "examples": ["20us"]}
)
_COUNT_SCHEMA: Final = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]+ *[kMG]?$", "examples": ["5M"]},
        ]
    }
)
_AS_SIZE: Final = PlainSerializer(units.format_bytes, return_type=str, when_used="json")
_AS_TIME: Final = PlainSerializer(units.format_ns, return_type=str, when_used="json")


def _size(low: int, multiple: int = 1) -> BeforeValidator:
    return _quantity(
        units.parse_bytes, units.format_bytes,
        low=low, high=MAX_BYTES, example="8GiB", multiple=multiple,
    )  # fmt: skip


def _time(low: int) -> BeforeValidator:
    return _quantity(units.parse_ns, units.format_ns, low=low, high=MAX_NS, example="20us")


def _count(low: int, high: int) -> BeforeValidator:
    return _quantity(
        units.parse_count, units.format_count, low=low, high=high, example="5M", plain=True
    )


Size = Annotated[int, _size(1), _AS_SIZE, _SIZE_SCHEMA]
"""Bytes, 1 or more."""

PageMultiple = Annotated[int, _size(4096, units.KIB * 4), _AS_SIZE, _SIZE_SCHEMA]
"""Bytes: whole 4 KiB pages, one or more."""

PageMultipleOrZero = Annotated[int, _size(0, units.KIB * 4), _AS_SIZE, _SIZE_SCHEMA]
"""Bytes: whole 4 KiB pages, or none."""

BlockMultiple = Annotated[int, _size(2 * units.MIB, 2 * units.MIB), _AS_SIZE, _SIZE_SCHEMA]
"""Bytes: whole 2 MiB blocks, one or more."""

Time = Annotated[int, _time(0), _AS_TIME, _TIME_SCHEMA]
"""Nanoseconds, 0 or more."""

Duration = Annotated[int, _time(1), _AS_TIME, _TIME_SCHEMA]
"""Nanoseconds, 1 or more."""


def _check_schedule(value: Any, info: ValidationInfo) -> dict[int, int]:
    """Sizes by time, in order; all mistakes at once."""
    if not isinstance(value, Mapping) or not value:
        raise mistake("must be a table of times and sizes", 'write { 10s = "2GiB" }')
    time: Any = _time(0).func
    size: Any = _size(0, units.KIB * 4).func
    found: dict[int, int] = {}
    errors: list[InitErrorDetails] = []
    for at, given in value.items():
        try:
            found[time(at, info)] = size(given, info)
        except PydanticCustomError as error:
            errors.append({"type": error, "loc": (str(at),), "input": given})
    if errors:
        raise ValidationError.from_exception_data("schedule", errors)
    return dict(sorted(found.items()))


def _show_schedule(value: dict[int, int]) -> dict[str, str]:
    return {units.format_ns(at): units.format_bytes(size) for at, size in value.items()}


Schedule = Annotated[
    dict[int, int],
    BeforeValidator(_check_schedule),
    PlainSerializer(_show_schedule, return_type=dict[str, str], when_used="json"),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]
"""Bytes (whole 4 KiB pages) by nanoseconds, in order of time."""

Count = Annotated[int, _count(1, MAX_COUNT), _COUNT_SCHEMA]
"""A count of things that happen, 1 or more; takes k, M, G."""


def _plain(low: int, high: int) -> BeforeValidator:
    def check(value: Any) -> int:
        if not _integer(value):
            raise mistake("must be an integer", f"write a number of {low} or more, without quotes")
        return _between(int(value), low, high, str)

    return BeforeValidator(check)


def _number(low: int, high: int) -> tuple[BeforeValidator, WithJsonSchema]:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return _plain(low, high), WithJsonSchema(schema)


Seed = Annotated[int, *_number(0, (1 << 63) - 1)]
Vcpus = Annotated[int, *_number(1, 1024)]
Cores = Annotated[int, *_number(1, 65536)]
Guests = Annotated[int, *_number(1, 1_000_000)]
Workers = Annotated[int, *_number(1, 65536)]
Train = Annotated[int, *_number(1, 4096)]
Maps = Annotated[int, *_number(1, 1 << 31)]
Cycles = Annotated[int, *_number(1, 1_000_000)]
Repeats = Annotated[int, *_number(1, 1_000_000)]
Drift = Annotated[int, *_number(0, 1_000_000)]
ScaleFactor = Annotated[int, *_number(1, 3000)]
Parallelism = Annotated[int, *_number(1, 65536)]
MonitoredRegions = Annotated[int, *_number(3, 1_000_000)]
Levels = Annotated[int, *_number(3, 5)]
PagesToScan = Annotated[int, *_number(1, 1_000_000)]
Sharers = Annotated[int, *_number(2, 1_000_000)]
BlockPages = Annotated[int, *_number(1, 448)]
Entries = Annotated[int, *_number(0, 511)]
Swappiness = Annotated[int, *_number(0, 200)]
Percent = Annotated[int, *_number(1, 100)]
ReportingOrder = Annotated[int, *_number(9, 10)]
Batch = Annotated[int, *_number(1, 65536)]
TicksPerSecond = Annotated[int, *_number(100, 1000)]


def _real(low: float, high: float, *, open_ends: bool) -> BeforeValidator:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise mistake("must be a number", "write it without quotes")
        inside = low < value < high if open_ends else low <= value <= high
        if not inside:  # not-a-number is never inside
            between = "more than {} and less than {}" if open_ends else "{} to {}"
            rule = "must be " + between.format(f"{low:g}", f"{high:g}")
            raise mistake(rule, f"write a number between {low:g} and {high:g}")
        return float(value)

    return BeforeValidator(check)


def _interval(low: float, high: float, *, open_ends: bool) -> WithJsonSchema:
    if open_ends:
        return WithJsonSchema({"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high})
    return WithJsonSchema({"type": "number", "minimum": low, "maximum": high})


Share = Annotated[float, _real(0, 1, open_ends=False), _interval(0, 1, open_ends=False)]
"""0 to 1, both included."""

Part = Annotated[float, _real(0, 1, open_ends=True), _interval(0, 1, open_ends=True)]
"""More than 0, less than 1."""

Ratio = Annotated[float, _real(1, 64, open_ends=False), _interval(1, 64, open_ends=False)]
"""1 or more."""

Scale = Annotated[float, _real(0, 1000, open_ends=True), _interval(0, 1000, open_ends=True)]
"""More than 0: what something is multiplied by."""

Exponent = Annotated[float, _real(0, 20, open_ends=True), _interval(0, 20, open_ends=True)]


def one_of(
    *words: str, later: Sequence[str] = (), parse: Callable[[str], int] | None = None
) -> BeforeValidator:
    """One of `words`; those of `later` are "not modelled yet".

    With `parse`, the words are quantities and the value is the integer that they stand for.
    """
    numbers = {parse(word): word for word in words} if parse else {}

    def check(value: Any, info: ValidationInfo) -> Any:
        listed = ", ".join(words)
        if parse is not None:
            if _integer(value) and not from_text(info) and value in numbers:
                return value
            try:
                number = parse(value) if isinstance(value, str) else None
            except UnitError as error:
                raise mistake(error.rule, error.fix) from None
            if number in numbers:
                return number
        elif isinstance(value, str) and value in words:
            return value
        if isinstance(value, str) and value in later:
            raise mistake("not modelled yet", f"use one of {listed}")
        fix = f'such as "{words[0]}"'
        if isinstance(value, str):
            fix = did_you_mean(value, [*words, *later])
            if "did you mean" not in fix:
                fix = f"one of {listed}"
        raise mistake(f"must be one of {listed}", fix)

    return BeforeValidator(check)


_PAGE_WORDS: Final = ("4KiB", "2MiB", "1GiB")
PageSize = Annotated[
    int,
    one_of(*_PAGE_WORDS, parse=units.parse_bytes),
    _AS_SIZE,
    WithJsonSchema({"type": "string", "enum": list(_PAGE_WORDS)}),
]
"""Bytes of a page: 4 KiB, 2 MiB or 1 GiB."""

HugePageSize = Annotated[
    int,
    one_of(*_PAGE_WORDS[1:], parse=units.parse_bytes),
    _AS_SIZE,
    WithJsonSchema({"type": "string", "enum": list(_PAGE_WORDS[1:])}),
]
"""Bytes of a page of a hugetlb pool: 2 MiB or 1 GiB."""

BalloonPage = Annotated[
    int,
    one_of(*_PAGE_WORDS[:2], parse=units.parse_bytes),
    _AS_SIZE,
    WithJsonSchema({"type": "string", "enum": list(_PAGE_WORDS[:2])}),
]
"""Bytes of a page that a balloon takes: 4 KiB or 2 MiB."""

_DEVICE_BLOCKS: Final = (*(f"{1 << n}MiB" for n in range(1, 10)), "1GiB")
DeviceBlock = Annotated[
    int,
    one_of(*_DEVICE_BLOCKS, parse=units.parse_bytes),
    _AS_SIZE,
    WithJsonSchema({"type": "string", "enum": list(_DEVICE_BLOCKS)}),
]
"""Bytes of a block of virtio-mem: a power of two from 2 MiB to 1 GiB."""


def _check_name(value: Any) -> str:
    if not isinstance(value, str):
        raise mistake("must be a text", "put it in quotes")
    if not NAME.fullmatch(value):
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", value[:64]).strip("-") or "a-name"
        rule = "a name is 1 to 64 letters, digits, '_' or '-', and begins with none of '-'"
        raise mistake(rule, f'write "{plain}"')
    return value


Name = Annotated[
    str, BeforeValidator(_check_name), WithJsonSchema({"type": "string", "pattern": NAME.pattern})
]


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise mistake("must be a text", "put it in quotes")
    if len(value) > 1000 or not value.replace("\n", " ").isprintable():
        raise mistake("must be 1000 printable characters at most", "shorten it")
    return value


Text = Annotated[str, BeforeValidator(_check_text)]


def _check_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise mistake("must be true or false", "write it without quotes")
    return value


Flag = Annotated[bool, BeforeValidator(_check_flag)]


def _word_or(word_check: BeforeValidator, *words: str) -> BeforeValidator:
    """One of `words`, or what `word_check` takes."""
    inner: Any = word_check.func

    def check(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, str) and value.isalpha():
            listed = ", ".join(words)
            raise mistake(f"must be {listed}, or a quantity", did_you_mean(value, words))
        return inner(value, info)

    return BeforeValidator(check)


def _shown(show: Callable[[int], str]) -> PlainSerializer:
    def serialize(value: int | str) -> str:
        return value if isinstance(value, str) else show(value)

    return PlainSerializer(serialize, return_type=str, when_used="json")


Free = Annotated[
    int | Literal["none", "all"],
    _word_or(_size(4096, units.KIB * 4), "none", "all"),
    _shown(units.format_bytes),
    WithJsonSchema({"type": "string", "examples": ["none", "all", "1GiB"]}),
]
"""Bytes (whole 4 KiB pages), "none" or "all" (whole 4 KiB pages)."""

WorkOrDuration = Annotated[
    int | Literal["work"],
    _word_or(_time(1), "work"),
    _shown(units.format_ns),
    WithJsonSchema({"type": "string", "examples": ["work", "60s"]}),
]
""""work", or nanoseconds."""


def _check_expectation(value: Any) -> str:
    if isinstance(value, Mapping):
        raise mistake("a path stands in quotes", 'write "guest.web.slowdown" = "< 1.3"')
    try:
        parse_condition(value)
    except UnitError as error:
        raise mistake(error.rule, error.fix) from None
    return str(value)


Expectation = Annotated[
    str,
    BeforeValidator(_check_expectation),
    WithJsonSchema({"type": "string", "examples": ["< 1.3", "== 0"]}),
]
