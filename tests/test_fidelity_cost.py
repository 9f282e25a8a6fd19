"""What `sampled` does, counted: linear in guests, flat in the access rate and untouched memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from simvm.report.cost import KINDS
from simvm.validation import cost
from tests import scenarios_small as small

PAGES = cost.TOUCHED // 4096
LEAVES = cost.TOUCHED >> 21
DRAWN = ("quanta", "pieces", "pages", "events")
"""Kinds of operation of the core."""

LAST_WINDOW = 1 << 16
"""Accesses of the windows once two have agreed: 4,096 doubled four times."""

measure: Callable[..., dict[str, int]] = cache(cost.measure)


def test_counts_are_of_every_kind_and_none_is_per_access() -> None:
    """Each page is an event once, unless a window came first; then A and D of each leaf may be.

    240 M accesses of which windows run less than one in a hundred.
    """
    done = measure()
    assert done["accesses"] == cost.GUESTS[0] * cost.RATES[0] * cost.SECONDS
    assert 0.5 * PAGES < done["events"] / cost.GUESTS[0] <= PAGES + 2 * LEAVES
    assert done["pages"] > done["events"]       # each was looked at before it was drawn
    assert done["pieces"] > LEAVES
    assert done["quanta"] > 0
    assert 0 < done["window_accesses"] < done["accesses"] / 100
    assert done["window_turns"] > 0
    assert done["sampled_turns"] > 0


@pytest.mark.parametrize("kind", [*KINDS, "sampled_turns", "window_turns"])
def test_twice_the_guests_are_twice_the_operations(kind: str) -> None:
    """Apart from the host's own events (a sample each second), which do not double."""
    two, four, eight = (measure(guests=n)[kind] for n in cost.GUESTS)
    assert four / two == pytest.approx(2, rel=0.15)
    assert eight / four == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("times", [10, 100])
def test_more_accesses_are_hardly_more_operations(times: int) -> None:
    """What changes is the same, so the core looks and plays no more.

    A vCPU that computes more draws more quanta: at most one in a second of it, and ten while
    the quantum doubles from 1 ms to a second. Gaps between windows double, so n of them reach
    over 2^n accesses: 100 times the rate is log2(100) = 6.6 windows more, at most 7 + 1.
    """
    one, more = measure(), measure(rate=cost.RATES[0] * times)
    guests = cost.GUESTS[0]
    assert more["accesses"] == times * one["accesses"]
    for kind in ("pieces", "pages", "events"):
        assert more[kind] <= 1.1 * one[kind], kind
    assert more["quanta"] <= guests * (cost.SECONDS + 10)
    assert more["simpy_events"] <= 1.5 * one["simpy_events"]
    windows = (more["window_accesses"] - one["window_accesses"]) / guests / LAST_WINDOW
    assert windows <= {10: 5, 100: 8}[times]


def test_memory_that_nobody_touches_costs_nothing() -> None:
    """The guest's descriptors of its pages are touched at boot; nothing else differs."""
    small_guest, large = measure(), measure(memory=8 * cost.MEMORY[0])
    for kind in (*DRAWN, "window_accesses", "simpy_events"):
        assert large[kind] == pytest.approx(small_guest[kind], rel=0.1), kind


def test_exact_draws_nothing() -> None:
    exact = small.simulate(small.scenario({"vm": small.guest(count=1)}))
    assert {n for kind, n in exact.operations.items() if kind != "simpy_events"} == {0}
