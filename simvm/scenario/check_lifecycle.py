"""Rules between the keys of how guests come and go."""

from __future__ import annotations

from collections.abc import Iterator

from simvm.scenario.finding import Finding
from simvm.scenario.lifecycle import ReplacementArrivals
from simvm.scenario.models import GuestClass, Scenario
from simvm.units import format_ns


def findings(scenario: Scenario) -> Iterator[Finding]:
    """Every rule that they break."""
    for name, guest in scenario.guests.items():
        where = f"guest.{name}"
        yield from _times(where, guest)
        yield from _arrivals(where, guest)


def _times(where: str, guest: GuestClass) -> Iterator[Finding]:
    if guest.stop is not None and guest.stop <= guest.start:
        yield Finding(
            f"{where}.stop", "must be later than start",
            f'write more than "{format_ns(guest.start)}"', (f"{where}.start",),
        )  # fmt: skip
    if guest.stagger and guest.count == 1:
        yield Finding(
            f"{where}.stagger", "one guest alone cannot be staggered", "remove it, or raise count",
            (f"{where}.count",),
        )  # fmt: skip


def _arrivals(where: str, guest: GuestClass) -> Iterator[Finding]:
    arrivals = guest.arrivals
    if arrivals is None:
        return
    if not isinstance(arrivals, ReplacementArrivals):
        if guest.stagger:
            yield Finding(
                f"{where}.stagger", "the arrivals themselves say when members come", "remove it",
                (f"{where}.arrivals",),
            )  # fmt: skip
        return
    if arrivals.population >= guest.count:
        yield Finding(
            f"{where}.arrivals.population", f"leaves nobody of {guest.count} to replace a member",
            "write less than count, or raise count", (f"{where}.count",),
        )  # fmt: skip
    if guest.lifetime is None:
        yield Finding(
            f"{where}.arrivals", "members that stay are never replaced",
            'add lifetime = "2h"', (f"{where}.lifetime",),
        )  # fmt: skip
