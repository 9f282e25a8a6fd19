"""The rules about passthrough: one way to free, and hints where somebody hears them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from simvm.scenario.channels import PassthroughChannelSettings
from simvm.scenario.finding import Finding
from simvm.scenario.passthrough import FREEING

if TYPE_CHECKING:
    from simvm.scenario.models import GuestClass, Host, Phase


def findings(host: Host, where: str, guest: GuestClass) -> Iterator[Finding]:
    """The rules that the class of guests at `where` breaks."""
    channel = guest.channel
    if isinstance(channel, PassthroughChannelSettings):
        yield from _operations(f"{where}.channel.operations", channel)
    heard = isinstance(channel, PassthroughChannelSettings) and guest.is_vm
    uses = (f"{where}.channel", f"{where}.channel.kind", f"{where}.virtualization")
    for phase in guest.workload:
        for key in ("hints_before", "hints_after"):
            if getattr(phase, key) and not heard:
                yield Finding(
                    f"{where}.workload.{phase.name}.{key}",
                    "hints need a virtual machine with a passthrough channel",
                    'write channel = { kind = "passthrough" }, or remove them', uses,
                )  # fmt: skip
    if host.ksm is not None and guest.virtualization == "shadow":
        yield from _merging(where, guest.workload)


def _merging(where: str, phases: Iterable[Phase]) -> Iterator[Finding]:
    for phase in phases:
        for key in ("hints_before", "hints_after"):
            if "MERGEABLE" in getattr(phase, key):
                yield Finding(
                    f"{where}.workload.{phase.name}.{key}",
                    "merging under shadow paging is not modelled",
                    'remove MERGEABLE, or write virtualization = "nested"',
                    (f"{where}.virtualization", "host.ksm"),
                )  # fmt: skip


def _operations(at: str, channel: PassthroughChannelSettings) -> Iterator[Finding]:
    asked = channel.operations
    freeing = [operation for operation in FREEING if operation in asked]
    if len(freeing) > 1:
        yield Finding(
            at, f"memory is freed in one way, not by {' and '.join(freeing)}",
            f'leave "{freeing[0]}" and remove the others',
        )  # fmt: skip
    if len(set(asked)) < len(asked):
        yield Finding(at, "names an operation twice", "write each once")
