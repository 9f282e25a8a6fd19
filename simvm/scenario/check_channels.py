"""The rules about channels: a size from one source, and one that the guest has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from simvm.scenario.channels import (
    INTERVAL,
    SharedAllocatorChannelSettings,
    SizedChannelSettings,
    VirtioMemChannelSettings,
)
from simvm.scenario.finding import Finding
from simvm.units import format_bytes, format_ns

if TYPE_CHECKING:
    from simvm.scenario.models import GuestClass, Host

LINUX_BLOCK: Final = 128 << 20
"""Memory is added in blocks of this size on x86-64 (memory_block_size_bytes)."""

_SIZES: Final = ("target", "schedule", "keep_free")


def findings(host: Host, where: str, guest: GuestClass) -> Iterator[Finding]:
    """The rules that the channel of the class of guests at `where` breaks."""
    channel, at = guest.channel, f"{where}.channel"
    if isinstance(channel, SizedChannelSettings):
        yield from _size(at, where, guest, channel)
    yield from _hotplug(at, where, guest)
    if isinstance(channel, SharedAllocatorChannelSettings) and host.page_size != 2 << 20:
        yield Finding(
            f"{at}.kind", "a shared allocator installs 2 MiB at once, the host's page must be so",
            'write host.page_size = "2MiB"', ("host.page_size",),
        )  # fmt: skip


def _hotplug(at: str, where: str, guest: GuestClass) -> Iterator[Finding]:
    channel, memory = guest.channel, format_bytes(guest.memory)
    if guest.memory_max < guest.memory:
        yield Finding(
            f"{where}.memory_max", "must not be less than memory", f'write "{memory}" or more',
            (f"{where}.memory",),
        )  # fmt: skip
    if not isinstance(channel, VirtioMemChannelSettings):
        if guest.memory_max > guest.memory:
            yield Finding(
                f"{where}.memory_max", "only a channel of the kind virtio_mem plugs more memory",
                f'write "{memory}", or channel.kind = "virtio_mem"', (f"{where}.memory", at),
            )  # fmt: skip
        return
    unit = channel.block_size
    if guest.memory_max > guest.memory:
        unit = max(LINUX_BLOCK, unit)
    for key in ("memory", "memory_max"):
        if getattr(guest, key) % unit:
            yield Finding(
                f"{where}.{key}", f"must be whole blocks of virtio-mem, {format_bytes(unit)}",
                f'write "{format_bytes(-(-getattr(guest, key) // unit) * unit)}"', (at,),
            )  # fmt: skip
            return


def _size(
    at: str, where: str, guest: GuestClass, channel: SizedChannelSettings
) -> Iterator[Finding]:
    given = [key for key in _SIZES if getattr(channel, key) is not None]
    automatic = isinstance(channel, SharedAllocatorChannelSettings) and channel.automatic
    if not given and not automatic:
        yield Finding(
            at, f"a channel of the kind {channel.kind} needs one of {', '.join(_SIZES)}",
            f'add target = "{format_bytes(guest.memory // 4096 // 2 * 4096)}"',
        )  # fmt: skip
    for key in given[1:]:
        yield Finding(
            f"{at}.{key}", f"only one of {', '.join(_SIZES)}", f"remove {key} or {given[0]}", (at,)
        )
    if channel.keep_free is None and not automatic and channel.interval != INTERVAL:
        yield Finding(f"{at}.interval", "belongs to keep_free", "remove it", (at,))
    sizes = {"target": channel.target, "keep_free": channel.keep_free}
    sizes |= {f"schedule.{format_ns(ns)}": size for ns, size in (channel.schedule or {}).items()}
    for key, size in sizes.items():
        if size is not None and size > guest.memory_max:
            yield Finding(
                f"{at}.{key}", f"the guest has {format_bytes(guest.memory_max)} at most",
                f'write "{format_bytes(guest.memory_max)}" or less', (f"{where}.memory_max",),
            )  # fmt: skip
