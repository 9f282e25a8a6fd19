"""Where every figure of a parameter set is from: BibTeX, with a comment for each figure.

One entry for each source, by the key that it has in its file, and before them one comment
for each figure: its source, or that it is a range. BibTeX takes text between entries for
a comment, unless it holds an at sign. Left out: sources that no figure of a set names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from simvm.hardware.costs import cost_sources, shipped_costs
from simvm.hardware.figures import CHOICE, UNSOURCED, Parameter, Source, spelled
from simvm.hardware.load import load_cpu, names

COSTS: Final = "costs"
"""The name of the set of costs, beside those of CPUs."""

_VERBATIM: Final = ("url", "doi")
_LATEX: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\textbraceleft{}", "}": r"\textbraceright{}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{letter: "\\" + letter for letter in "&%$#_"},
    }
)  # fmt: skip
_PERCENT: Final = str.maketrans({letter: f"%{ord(letter):02X}" for letter in "\\{} "})


@dataclass(frozen=True)
class CitedSet:
    """A parameter set: its figures, and by the name of each the key of its BibTeX entry."""

    name: str
    part: str
    figures: tuple[Parameter, ...]
    keys: Mapping[str, str]


@dataclass
class Citations:
    """Sets, and the sources that their figures name, each once, by BibTeX key."""

    sets: list[CitedSet] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)


def cite(wanted: Iterable[str] = ()) -> Citations:
    """The sources of the sets named in `wanted` (CPUs, paths, "costs"); of all without names.

    Raises
    ------
    InvalidInput
        There is no such set, or its file has mistakes.
    """
    found = Citations()
    for name in dict.fromkeys(wanted or (*names(), COSTS)):
        if name == COSTS:
            _add(found, COSTS, "what software costs", shipped_costs(), cost_sources())
        else:
            cpu = load_cpu(name)
            sources = {source.key: source for source in cpu.sources}
            _add(found, cpu.name, cpu.part, cpu.parameters, sources)
    return found


def _add(
    found: Citations, name: str, part: str, figures: Mapping[str, Parameter],
    sources: Mapping[str, Source],
) -> None:  # fmt: skip
    keys = {
        figure.name: _key(found.sources, sources[figure.cites], name)
        for figure in figures.values()
        if figure.cites
    }
    found.sets.append(CitedSet(name, part, tuple(figures.values()), keys))


def _key(taken: dict[str, Source], source: Source, set_name: str) -> str:
    """The key of an entry: the source's own, unless another file has given it to another source."""
    key, number = source.key, 1
    while taken.setdefault(key, source) != source:
        suffix = re.sub(r"[^A-Za-z0-9]+", "-", set_name).strip("-")
        key = f"{source.key}-{suffix}" + (f"-{number}" if number > 1 else "")
        number += 1
    return key


def to_bibtex(found: Citations) -> str:
    """Comments for all figures, then the entries."""
    lines: list[str] = []
    for each in found.sets:
        lines.append(_comment(f"{each.name}: {each.part}"))
        lines += [_comment(f"{each.name}.{text}") for text in _figures(each)]
        lines.append("")
    for key, source in found.sources.items():
        lines += [f"@{source.kind.lower()}{{{key},"]
        lines += [f"  {name} = {_value(name, text)}," for name, text in _fields(source)]
        lines += ["}", ""]
    return "\n".join(lines)


def to_json(found: Citations) -> dict[str, Any]:
    """As :func:`to_bibtex`, as plain data."""
    return {
        "figures": [
            {
                "set": each.name, "name": figure.name, "value": figure.value, "unit": figure.unit,
                "tag": figure.tag, "lo": figure.lo, "hi": figure.hi,
                "source": each.keys.get(figure.name), "why": figure.why,
            }
            for each in found.sets
            for figure in each.figures
        ],
        "sources": [
            {"key": key, "type": source.kind, **dict(_fields(source))}
            for key, source in found.sources.items()
        ],
    }  # fmt: skip


def _figures(each: CitedSet) -> Iterable[str]:
    """Each figure of a set in words, with its source or its reason."""
    for figure in each.figures:
        unit = "" if figure.unit == CHOICE else f" {figure.unit}"
        band = "" if figure.lo is None else f"{figure.lo} to {figure.hi}"
        reason = f": {figure.why}" if figure.why else ""
        value = spelled(figure.value)
        if figure.tag == "range":
            yield f"{figure.name}: a range, {band}{unit} (nominal {value}){reason}"
        elif figure.tag in UNSOURCED:
            yield f"{figure.name} = {value}{unit}: {figure.tag}{reason}"
        else:
            around = f" ({band})" if band else ""
            source = rf"\cite{{{each.keys[figure.name]}}}"
            yield f"{figure.name} = {value}{unit}{around}: {source}, {figure.tag}{reason}"


def _comment(text: str) -> str:
    """A line between entries. An at sign there would begin an entry."""
    return "% " + " ".join(text.replace("@", " at ").split())


def _fields(source: Source) -> list[tuple[str, str]]:
    return [*source.fields, ("note", source.text)]


def _value(name: str, text: str) -> str:
    """A field in braces, without anything that LaTeX would take for its own."""
    plain = " ".join(text.split())
    if name.lower() in _VERBATIM:
        return f"{{{plain.translate(_PERCENT)}}}"
    escaped = plain.translate(_LATEX)
    return f"{{{{{escaped}}}}}" if name.lower() == "title" else f"{{{escaped}}}"
