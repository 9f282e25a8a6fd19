"""How guests come and go: when they arrive and how long they stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from simvm.scenario import fields as f
from simvm.scenario.base import Model, choice
from simvm.scenario.fields import one_of
from simvm.scenario.migration import MigrateIn, MigrateOut


class PoissonArrivals(Model):
    """Members arrive one after the other, by a Poisson process from `start` on."""

    kind: Literal["poisson"] = "poisson"
    mean_interval: f.Duration
    """Between two arrivals, in the mean; gaps are exponential."""


class ReplacementArrivals(Model):
    """So many members at first; another arrives whenever one has departed."""

    kind: Literal["replacement"] = "replacement"
    population: f.Guests
    """Members that arrive by `start` and `stagger`, without waiting for anybody."""


Arrivals = Annotated[
    PoissonArrivals | ReplacementArrivals,
    Field(discriminator="kind"),
    choice("kind", PoissonArrivals, ReplacementArrivals),
]


class Lifetime(Model):
    """How long each member stays; a time alone is the same for all."""

    mean: f.Duration
    """Of all members; of `fixed`, what each stays."""
    distribution: Annotated[
        Literal["fixed", "exponential"], one_of("fixed", "exponential")
    ] = "exponential"
    """exponential: each member draws its own."""


def _as_lifetime(value: Any) -> Any:
    if isinstance(value, Mapping | Model):
        return value
    return {"mean": value, "distribution": "fixed"}


class LifecycleKeys(Model):
    """The keys of a class of guests that are about how they come and go."""

    arrivals: Arrivals | None = None
    """See below; without it all arrive by `start` and `stagger`."""
    lifetime: Annotated[Lifetime | None, BeforeValidator(
        lambda value: value if value is None else _as_lifetime(value)
    )] = None  # fmt: skip
    """From a member's arrival to its departure, a time or a table; without it they stay."""
    migrate_in: MigrateIn | None = None
    """See below; without it they boot."""
    migrate_out: MigrateOut | None = None
    """See below; without it they are shut down when they depart."""
