"""The rules about huge pages of the host: who can have them, and where there are blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from simvm.scenario.finding import Finding
from simvm.units import MIB

if TYPE_CHECKING:
    from simvm.scenario.models import Scenario


def findings(scenario: Scenario) -> Iterator[Finding]:
    """The rules about compaction and khugepaged that the host breaks."""
    host = scenario.host
    uses = ("host.backing", "host.page_size")
    if host.backing == "hugetlb":
        for key in ("khugepaged", "fragmentation"):
            if getattr(host, key) is not None:
                yield Finding(
                    f"host.{key}", "hugetlb has its pages from boot and keeps them whole",
                    'remove it, or write backing = "anon"', uses,
                )  # fmt: skip
    elif host.page_size != 2 * MIB and host.khugepaged is not None:
        yield Finding(
            "host.khugepaged", "makes no huge pages where faults make none",
            'remove it, or write page_size = "2MiB"', uses,
        )  # fmt: skip
    if host.defrag != "never" and (host.backing == "hugetlb" or host.page_size != 2 * MIB):
        yield Finding(
            "host.defrag", "only faults that back 2MiB of anon or memfd look for a block",
            'remove it, or write page_size = "2MiB"', uses,
        )  # fmt: skip
