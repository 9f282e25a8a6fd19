"""Rules between the keys of swap devices, and of what pages hold."""

from __future__ import annotations

from collections.abc import Iterator

from simvm.hardware import load_costs
from simvm.scenario.finding import Finding
from simvm.scenario.models import Host, Scenario
from simvm.scenario.swap import Content, NoSwap, NvmeSwap, ZswapSwap
from simvm.units import TIB, format_ns

MOST_TAIL = 14
"""What a 99th percentile may be over the mean: a log-normal reaches 14.96 and no more."""


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
    for name, guest in scenario.guests.items():
        yield from _content(f"guest.{name}.content", guest.content)


def _tail(scenario: Scenario, swap: NvmeSwap | ZswapSwap) -> Iterator[Finding]:
    mean = swap.latency or load_costs(scenario.host.costs).nvme_latency_ns
    if swap.latency_p99 is None or mean <= swap.latency_p99 <= MOST_TAIL * mean:
        return
    yield Finding(
        "host.swap.latency_p99", f"must be 1 to {MOST_TAIL} times the mean, {format_ns(mean)}",
        f'write "{format_ns(mean)}" to "{format_ns(MOST_TAIL * mean)}"',
        ("host.swap.latency", "host.costs"),
    )  # fmt: skip


def _content(where: str, content: Content) -> Iterator[Finding]:
    if content.zero + content.duplicate > 1:
        yield Finding(
            f"{where}.duplicate", "zero and duplicate are shares of all pages, together 1 or less",
            "write less", (f"{where}.zero",),
        )  # fmt: skip
    if content.incompressible == 1 or content.incompressible * (content.ratio or 1) >= 1:
        yield Finding(
            f"{where}.incompressible", "so many pages that do not compress leave no such ratio",
            "write less than 1 / ratio", (f"{where}.ratio",),
        )  # fmt: skip
