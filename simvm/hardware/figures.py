"""One figure of a parameter set: a value with its unit and source, or a range.

A figure is written ``{ v = 64, unit = "entries", tag = "vendor", source = "key" }``
with ``[source.key]`` in the same file, or ``{ lo = 5, hi = 9, unit = "cycles", tag =
"range", why = "..." }``: what has no source of its own is a range, and a plain run
uses its nominal value, the geometric mean unless ``nominal`` is stated. A choice, such
as a replacement policy, is a figure without a unit: ``{ v = "lru", tag = ..., ... }``.
A source is a BibTeX entry: its key, its fields, and ``text``, which says what is where.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from math import isqrt
from typing import Any, Final

from simvm.errors import InvalidInput, Mistake, did_you_mean

TAGS: Final = {
    "vendor": "product specification",
    "raw": "computed from the authors' own artefact or dump",
    "text": "in the authors' own words",
    "abs": "from an abstract",
    "sec": "a third party quoting",
    "derived": "arithmetic on a figure that has a source",
    "calibrated": "fitted to a measured figure by running the simulation",
    "range": "no source: a range to sweep",
    "assumed": "no source and no range: a choice of shape",
}
UNSOURCED: Final = ("range", "assumed")
"""Tags of what has a reason instead of a source."""

MAX_FILE_BYTES: Final = 1 << 20
SOURCES_FILE: Final = "sources.toml"
"""The sources that more than one shipped set names; every set may name them."""

CHOICE: Final = "choice"
"""The unit of a figure that is a word or a truth value."""

FIGURE_MARKS: Final = ("unit", "tag", "v", "lo")
"""Keys that tell a figure from a table of figures."""

_MAX_FIGURE: Final = 1 << 60
_FIGURE_KEYS: Final = ("v", "lo", "hi", "nominal", "unit", "tag", "source", "why", "what")
_CHOICE_KEYS: Final = ("v", "tag", "source", "why", "what")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A figure of a parameter set; `lo` and `hi` are None where no band is known.

    A choice has a word or a truth value. `source` is the text of its source; for
    a range, why it is one. `cites` is the key of the source, or empty.
    """

    name: str
    value: int | str
    unit: str
    tag: str
    source: str
    lo: int | None = None
    hi: int | None = None
    why: str = ""
    what: str = ""
    cites: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where figures come from: a BibTeX entry of the kind `kind`, without its ``note``."""

    key: str
    text: str
    kind: str = "misc"
    fields: tuple[tuple[str, str], ...] = ()


_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_:.+-]*", re.ASCII)
_WORD: Final = re.compile(r"[A-Za-z]+", re.ASCII)


def spelled(value: int | str) -> str:
    """The value of a figure as its file writes it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def geometric_mean(low: int, high: int) -> int:
    """The nearest integer to the square root of `low` × `high`."""
    product = low * high
    root = isqrt(product)
    return root + 1 if product - root * root > root else root


def parse_toml(data: bytes, file: str) -> dict[str, Any]:
    """The tables in `data`.

    Raises
    ------
    InvalidInput
        It is no TOML.
    """
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        fix = "correct the syntax; texts stand in double quotes"
        raise InvalidInput([Mistake(file, "", reason, "must be TOML", fix)]) from None


@functools.cache
def shared_sources() -> Mapping[str, Any]:
    """The tables of the sources that every set may name."""
    data = files("simvm.hardware").joinpath("data", SOURCES_FILE).read_bytes()
    tables: Mapping[str, Any] = parse_toml(data, SOURCES_FILE)["source"]
    return tables


class FigureReader:
    """Reads figures out of tables and collects every mistake on the way."""

    def __init__(self, file: str, sources: Any) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self.sources: dict[str, Source] = {}
        self.parameters: dict[str, Parameter] = {}
        if not isinstance(sources, Mapping):
            self.refuse("source", sources, "must be tables [source.NAME]", "write [source.NAME]")
            sources = {}
        for key, table in {**shared_sources(), **sources}.items():
            self._source(key, table)

    def _source(self, key: str, table: Any) -> None:
        at = f"source.{key}"
        if not _KEY.fullmatch(key):
            rule = "a key is letters, digits and _:.+-, a letter first"
            self.refuse(at, key, rule, "rename it")
            return
        text = table.get("text") if isinstance(table, Mapping) else None
        if not isinstance(text, str) or not text:
            fix = 'add text = "who measured what, where"'
            self.refuse(at, table, "a source needs its text", fix)
            return
        kind = table.get("type", "misc")
        if not isinstance(kind, str) or not _WORD.fullmatch(kind):
            self.refuse(f"{at}.type", kind, "must be a type of BibTeX entry", 'such as "misc"')
            return
        fields: list[tuple[str, str]] = []
        for name, value in table.items():
            if name in ("text", "type"):
                continue
            plain = isinstance(value, str | int) and not isinstance(value, bool)
            if not _WORD.fullmatch(name) or name == "note" or not plain:
                rule = "must be a BibTeX field of letters, with a text or an integer"
                self.refuse(f"{at}.{name}", value, rule, "such as title, author, year or url")
            else:
                fields.append((name, str(value)))
        self.sources[key] = Source(key, text, kind, tuple(fields))

    def refuse(self, key: str, value: object, rule: str, fix: str) -> None:
        """Note a mistake."""
        shown = repr(value) if not isinstance(value, Mapping | list) else type(value).__name__
        self.mistakes.append(Mistake(self.file, key, shown[:80], rule, fix))

    def figure(
        self, name: str, table: Any, unit: str, *, low: int = 0, full: int | None = None
    ) -> int:
        """The value of a figure in `unit`, `low` or more; noted in `parameters`.

        `full` is what the word "full" stands for, where that is allowed. Returns `low` after
        a mistake.
        """
        before = len(self.mistakes)
        if not isinstance(table, Mapping):
            fix = f'write {{ v = ..., unit = "{unit}", tag = "vendor", source = "..." }}'
            self.refuse(name, table, "must be a figure with unit and source", fix)
            return low
        for key in table:
            if key not in _FIGURE_KEYS:
                self.refuse(f"{name}.{key}", table[key], "no such key in a figure",
                            did_you_mean(key, _FIGURE_KEYS))  # fmt: skip
        if table.get("unit") != unit:
            self.refuse(f"{name}.unit", table.get("unit"), f"must be {unit}", f'unit = "{unit}"')
        value, band = self._value(name, table, low, full)
        source, why = self._provenance(name, table)
        if len(self.mistakes) > before:
            return low
        self._note(name, table, value, unit, source, band, why)
        return value

    def choice(self, name: str, table: Any, options: tuple[str, ...] | tuple[bool, ...]) -> Any:
        """The one of `options` that a figure without unit names; noted in `parameters`.

        Returns the first option after a mistake.
        """
        before = len(self.mistakes)
        first = f'"{options[0]}"' if isinstance(options[0], str) else spelled(options[0])
        if not isinstance(table, Mapping):
            fix = f'write {{ v = {first}, tag = "assumed", why = "..." }}'
            self.refuse(name, table, "must be a choice with its source or reason", fix)
            return options[0]
        for key in table:
            if key not in _CHOICE_KEYS:
                self.refuse(f"{name}.{key}", table[key], "no such key in a choice",
                            did_you_mean(key, _CHOICE_KEYS))  # fmt: skip
        value = table.get("v")
        if type(value) is not type(options[0]) or value not in options:
            listed = ", ".join(spelled(option) for option in options)
            self.refuse(f"{name}.v", value, f"must be one of {listed}", f"write v = {first}")
        source, why = self._provenance(name, table)
        if len(self.mistakes) > before:
            return options[0]
        assert isinstance(value, str | bool)
        self._note(name, table, value, CHOICE, source, (None, None), why)
        return value

    def _note(
        self, name: str, table: Mapping[str, Any], value: int | str, unit: str, source: str,
        band: tuple[int | None, int | None], why: str,
    ) -> None:  # fmt: skip
        cites = table["source"] if table["tag"] not in UNSOURCED else ""
        what = str(table.get("what", ""))
        self.parameters[name] = Parameter(
            name, value, unit, table["tag"], source, *band, why, what, cites
        )

    def _value(
        self, name: str, table: Mapping[str, Any], low: int, full: int | None
    ) -> tuple[int, tuple[int | None, int | None]]:
        if full is not None and table.get("v") == "full":
            return full, (None, None)
        numbers: dict[str, int] = {}
        for key in ("v", "lo", "hi", "nominal"):
            number = table.get(key)
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int):
                self.refuse(f"{name}.{key}", number, "must be an integer", "round it")
            elif not low <= number <= _MAX_FIGURE:
                fix = f"write a number from {low} up"
                shown = number if abs(number) <= _MAX_FIGURE else "a huge number"
                self.refuse(f"{name}.{key}", shown, f"must be {low} to 2^60", fix)
            else:
                numbers[key] = number
        lo, hi, value = numbers.get("lo"), numbers.get("hi"), numbers.get("v")
        if value is None:
            value = numbers.get("nominal")
        if value is None and lo is not None and hi is not None:
            value = geometric_mean(lo, hi)
        if value is None:
            fix = "give v, or lo and hi"
            self.refuse(name, table, "a figure needs a value or a range", fix)
            return low, (None, None)
        if (lo is None) != (hi is None) or (
            lo is not None and hi is not None and not lo <= value <= hi
        ):
            self.refuse(name, table, "must be lo <= value <= hi", "give both lo and hi, around it")
        return value, (lo, hi)

    def _provenance(self, name: str, table: Mapping[str, Any]) -> tuple[str, str]:
        """The text of the source, and the reason, of a figure."""
        tag, why = table.get("tag"), table.get("why", "")
        if tag not in TAGS:
            fix = did_you_mean(str(tag), TAGS)
            self.refuse(f"{name}.tag", tag, "must say what kind of figure it is", fix)
            return "", ""
        if not isinstance(why, str):
            self.refuse(f"{name}.why", why, "must be a text", "put it in quotes")
            return "", ""
        if tag in UNSOURCED:
            if tag == "range" and ("lo" not in table or "hi" not in table or "v" in table):
                self.refuse(name, table, "a range has lo and hi and no v", "give lo and hi")
            if not why:
                fix = 'add why = "..."'
                self.refuse(name, table, "a figure without source says why", fix)
            return why, why
        key = table.get("source")
        if not isinstance(key, str) or key not in self.sources:
            fix = f"add [source.{key}]" if isinstance(key, str) else 'add source = "NAME"'
            rule = "must name a source of this file; a value without one is a range"
            self.refuse(f"{name}.source", key, rule, fix)
            return "", why
        return self.sources[key].text, why
