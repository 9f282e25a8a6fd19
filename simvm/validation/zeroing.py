"""How much sooner memory is allocated when the guest does not zero what the host has just zeroed.

Published figures vary too much between machines to be held to: the rows are directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from simvm.validation import scenarios
from simvm.validation.rows import Published, Ranking, basis

_SIDES = ("guest_zeroes", "guest_skips")


def saving_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Ranking]:
    """For each kind of page, and of those named against the first; all sizes are full.

    The saving is the share of the allocation's time that goes.
    """
    stands_on = basis(published)
    savings: dict[str, float] = {}
    for row in published["rows"]:
        zeroed, skipped = (_elapsed_ns(published["scenario"], row[side]) for side in _SIDES)
        pages = row["pages"]
        savings[pages] = 1 - skipped / zeroed
        times = {"zeroed": zeroed, "not zeroed": skipped}
        target = f"time to allocate 2 GiB in {pages} that the host has zeroed, by the guest's part"
        yield Ranking(target, tuple(times), times, stands_on)
    least, *others = savings
    for pages in others:
        target = f"share of the time saved, {pages} against {least}"
        yield Ranking(target, (pages, least), savings, stands_on)


def _elapsed_ns(scenario: str, variant: str) -> float:
    """Time of the one phase of the one guest."""
    result = scenarios.run(scenario, None if variant == "base" else variant)
    return float(result.summary["guests"][0]["phases"][0]["elapsed_ns"])
