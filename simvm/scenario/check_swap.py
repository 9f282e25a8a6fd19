"""Rules between the keys of swap devices, of what pages hold, and of same-page merging."""

from __future__ import annotations

from collections.abc import Iterator

from simvm.hardware import load_costs
from simvm.scenario.finding import Finding
from simvm.scenario.models import Host, Scenario
from simvm.scenario.swap import (
    MOST_TAIL,
    Content,
    CxlSwap,
    NoSwap,
    NvmeSwap,
    ZramSwap,
    ZswapSwap,
    ratio_of,
)
from simvm.units import GIB, MIB, TIB, format_ns


def swap_bytes(host: Host) -> int:
    """What the swap device holds when it is full."""
    return 0 if isinstance(host.swap, NoSwap) else host.swap.size


def findings(scenario: Scenario) -> Iterator[Finding]:
    """Every rule that swap devices and contents break."""
    swap = scenario.host.swap
    if not isinstance(swap, NoSwap):
        if not swap.size:
            yield Finding(
                "host.swap.size", "a swap device needs a size", 'add size = "32GiB"',
                ("host.swap.device",),
            )  # fmt: skip
        if swap.size >= 64 * TIB:
            yield Finding("host.swap.size", "less than 64 TiB of swap is modelled", "write less")
    if isinstance(swap, NvmeSwap | ZswapSwap):
        yield from _tail(scenario, swap)
    if isinstance(swap, CxlSwap):
        yield from _tier(scenario, swap)
    for name, guest in scenario.guests.items():
        algorithm = swap.algorithm if isinstance(swap, ZramSwap | ZswapSwap) else "lz4"
        yield from _content(f"guest.{name}.content", guest.content, algorithm)
        if guest.mergeable:
            yield from _mergeable(scenario, f"guest.{name}")


def _tail(scenario: Scenario, swap: NvmeSwap | ZswapSwap) -> Iterator[Finding]:
    mean = swap.latency or load_costs(scenario.host.costs).nvme_latency_ns
    if swap.latency_p99 is None or mean <= swap.latency_p99 <= MOST_TAIL * mean:
        return
    yield Finding(
        "host.swap.latency_p99", f"must be 1 to {MOST_TAIL} times the mean, {format_ns(mean)}",
        f'write "{format_ns(mean)}" to "{format_ns(MOST_TAIL * mean)}"',
        ("host.swap.latency", "host.costs"),
    )  # fmt: skip


def _tier(scenario: Scenario, swap: CxlSwap) -> Iterator[Finding]:
    if swap.access == "promote":
        for key in ("extra_latency", "miss_share"):
            if getattr(swap, key) is not None:
                yield Finding(
                    f"host.swap.{key}", "belongs to accesses in place", 'write access = "in_place"',
                    ("host.swap.access",),
                )  # fmt: skip
        return
    if swap.size % (2 * MIB):
        yield Finding(
            "host.swap.size", "memory that is used in place comes in blocks of 2MiB",
            "write a multiple of 2MiB", ("host.swap.access",),
        )  # fmt: skip
    if scenario.host.memory + swap.size >= 8 * TIB - GIB:
        yield Finding(
            "host.swap.size", "RAM and memory used in place are less than 8 TiB", "write less",
            ("host.memory", "host.swap.access"),
        )  # fmt: skip
    for name, guest in scenario.guests.items():
        for phase in guest.workload:
            if phase.pattern is not None and phase.pattern.kind in ("drifting", "trace"):
                yield Finding(
                    f"guest.{name}.workload.{phase.name}.pattern.kind",
                    "accesses in place are estimated from a pattern that does not move",
                    'use another pattern, or host.swap.access = "promote"', ("host.swap.access",),
                )  # fmt: skip


def _content(where: str, content: Content, algorithm: str) -> Iterator[Finding]:
    if content.zero + content.duplicate > 1:
        yield Finding(
            f"{where}.duplicate", "zero and duplicate are shares of all pages, together 1 or less",
            "write less", (f"{where}.zero",),
        )  # fmt: skip
    ratio = ratio_of(algorithm, content.ratio)
    if content.incompressible * ratio >= 1 and content.incompressible:
        yield Finding(
            f"{where}.incompressible",
            f"a ratio of {ratio:.3g} is out of reach when so many pages do not compress",
            f"write less than {1 / ratio:.2f}, or a lower ratio",
            (f"{where}.ratio", "host.swap"),
        )  # fmt: skip


def _mergeable(scenario: Scenario, where: str) -> Iterator[Finding]:
    host = scenario.host
    if host.ksm is None:
        yield Finding(
            f"{where}.mergeable", "nobody merges without host.ksm", "add ksm = {} under [host]",
            ("host.ksm",),
        )  # fmt: skip
    if host.backing != "anon":
        yield Finding(
            f"{where}.mergeable", "only anonymous memory is merged", 'write backing = "anon"',
            ("host.backing",),
        )  # fmt: skip
    if scenario.guests[where.removeprefix("guest.")].virtualization == "shadow":
        yield Finding(
            f"{where}.mergeable", "merging under shadow paging is not modelled",
            'write virtualization = "nested"', (f"{where}.virtualization",),
        )  # fmt: skip
