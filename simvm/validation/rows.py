"""One row of the validation table: what is published, what is simulated, and the verdict.

A row is a number (`Row`) or an order (`Ranking`: which of some things is greater). Both say on
what they stand (`Basis`): the source of the published side, how the row is to be read, and what
the simulated side depends on. All of that is in the data, by table, and by row where rows differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from types import ModuleType
from typing import Any, Final, Literal, get_args

Kind = Literal["identity", "calibrated", "predicted"]
"""identity: it follows from definitions and holds to the last unit; calibrated: parameters were
fitted to it; predicted: nothing was."""

Measure = Literal["relative", "absolute"]
"""Whether error and tolerance are shares of the published value or in its unit."""

Published = Mapping[str, Any]
"""One table of data/published.toml: `source`, `class`, `inputs`, `rows`, and what rows share."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
DIRECTION: Final = "direction"

TOLERANCES: Final[Mapping[Kind, float]] = {"identity": 0.0, "predicted": 0.05, "calibrated": 0.3}
"""Where neither the table nor the row states one."""


@dataclass(frozen=True)
class Basis:
    """What a row stands on."""

    source: str
    """Of the published side."""
    kind: Kind
    inputs: tuple[str, ...]
    """What the simulated side depends on: parameters (`costs.NAME`, `cpu.NAME.KEY`), scenarios
    (`scenario.NAME`), keys of a scenario, and what else is put in."""
    tolerance: float
    measure: Measure


def basis(
    published: Published, row: Mapping[str, Any] | None = None, *,
    inputs: Iterable[str] = (), source: str = "",
) -> Basis:  # fmt: skip
    """The basis that a table of the data states, or one of its rows for itself.

    Parameters
    ----------
    row
        Its `class`, `inputs`, `tolerance`, `measure` and `source` take the place of the table's.
    inputs, source
        What comes to those of the data.
    """
    own = {} if row is None else row
    said = {
        key: own.get(key, published.get(key))
        for key in ("source", "class", "inputs", "tolerance", "measure")
    }
    kind: Kind = said["class"]
    tolerance = TOLERANCES[kind] if said["tolerance"] is None else said["tolerance"]
    return Basis(
        "; ".join(filter(None, (said["source"], source))),
        kind,
        tuple(dict.fromkeys((*said["inputs"], *inputs))),
        tolerance,
        said["measure"] or "relative",
    )


@dataclass(frozen=True)
class Row:
    """A published figure beside the simulated one."""

    target: str
    published: float
    simulated: float
    basis: Basis
    note: str = ""
    """What explains a difference that is known; empty where the row is held to be within."""

    @property
    def error(self) -> float:
        """Simulated less published, as the basis measures it."""
        difference = self.simulated - self.published
        if self.basis.measure == "relative":
            return difference / abs(self.published)
        return difference

    @property
    def within(self) -> bool:
        """Whether the error is within the tolerance."""
        return abs(self.error) <= self.basis.tolerance

    def as_dict(self) -> dict[str, Any]:
        """For JSON and for the table."""
        return _as_dict(self, self.published, self.simulated, self.basis.tolerance)


@dataclass(frozen=True)
class Ranking:
    """A published order beside the simulated one; of two things, the direction between them."""

    target: str
    published: Sequence[str]
    """From the greatest to the least."""
    simulated: Mapping[str, float]
    """By the same names."""
    basis: Basis
    note: str = ""

    @property
    def error(self) -> int:
        """Pairs that do not stand in the published order; those that are equal do not."""
        values = [self.simulated[name] for name in self.published]
        return sum(not greater > less for greater, less in combinations(values, 2))

    @property
    def within(self) -> bool:
        """Whether every pair stands in the published order."""
        return self.error == 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON and for the table; the measure is pairs, the two sides are texts."""
        ranked = sorted(self.published, key=lambda name: -self.simulated[name])
        text = ranked[0]
        for before, name in pairwise(ranked):
            text += " = " if self.simulated[before] == self.simulated[name] else " > "
            text += name
        return _as_dict(self, " > ".join(self.published), text, DIRECTION)


def _as_dict(
    row: Row | Ranking, published: float | str, simulated: float | str, tolerance: float | str
) -> dict[str, Any]:
    return {
        "target": row.target,
        "published": published,
        "simulated": simulated,
        "error": row.error,
        "tolerance": tolerance,
        "within": row.within,
        "measure": "pairs" if tolerance == DIRECTION else row.basis.measure,
        "source": row.basis.source,
        "class": row.basis.kind,
        "inputs": list(row.basis.inputs),
        "note": row.note,
    }


Check = Callable[[ModuleType, Published, bool], Iterator[Row | Ranking]]
"""Rows of one table, from the compiled core, what is published, and whether at full size."""


def counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """By class of row: how many there are, and how many are within their tolerance."""
    found: dict[str, dict[str, int]] = {kind: {"rows": 0, "within": 0} for kind in KINDS}
    for row in rows:
        found[row["class"]]["rows"] += 1
        found[row["class"]]["within"] += row["within"]
    return found


def headline(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the table comes to: of the predicted rows. The others say little, and are counted."""
    found = counts(rows)

    def text(kind: Kind) -> str:
        return f"{found[kind]['within']} of {found[kind]['rows']} {kind}"

    return (
        f"{text('predicted')} rows are within their tolerance"
        f" (beside them {text('identity')}, {text('calibrated')})"
    )


def sized(full: bool, count: int) -> int:
    """How many of `count` samples to take: a fifth when not at full size."""
    return count if full else count // 5
