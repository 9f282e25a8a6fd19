"""One row of the validation table: what is published, what is simulated, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

Kind = Literal["identity", "calibrated", "predicted"]
"""identity: it follows from definitions and holds to the last unit; calibrated: parameters were
fitted to it; predicted: nothing was."""

Measure = Literal["relative", "absolute"]
"""Whether error and tolerance are shares of the published value or in its unit."""

Published = Mapping[str, Any]
"""One table of data/published.toml: `source`, `rows`, and what all rows share."""


@dataclass(frozen=True)
class Row:
    """A published figure beside the simulated one."""

    target: str
    published: float
    simulated: float
    tolerance: float
    measure: Measure
    source: str
    kind: Kind
    note: str = ""
    """What explains a difference that is known; empty where the row is held to be within."""

    @property
    def error(self) -> float:
        """Simulated less published, as `measure` says."""
        difference = self.simulated - self.published
        return difference / abs(self.published) if self.measure == "relative" else difference

    @property
    def within(self) -> bool:
        """Whether the error is within the tolerance."""
        return abs(self.error) <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """For JSON and for the table."""
        return {
            "target": self.target,
            "published": self.published,
            "simulated": self.simulated,
            "error": self.error,
            "tolerance": self.tolerance,
            "within": self.within,
            "measure": self.measure,
            "source": self.source,
            "class": self.kind,
            "note": self.note,
        }


Check = Callable[[ModuleType, Published, bool], Iterator[Row]]
"""Rows of one table, from the compiled core, what is published, and whether at full size."""

EXACT: Final = 0.0


def sized(full: bool, count: int) -> int:
    """How many of `count` samples to take: a fifth when not at full size."""
    return count if full else count // 5
