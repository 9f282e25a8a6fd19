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

_SIZES: Final = ("target", "schedule", "keep_free")


def findings(host: Host, where: str, guest: GuestClass) -> Iterator[Finding]:
    """The rules that the channel of the class of guests at `where` breaks."""
    channel, at = guest.channel, f"{where}.channel"
    if isinstance(channel, SizedChannelSettings):
        yield from _size(at, where, guest, channel)
    if isinstance(channel, VirtioMemChannelSettings) and guest.memory % channel.block_size:
        yield Finding(
            f"{at}.block_size", f"memory, {format_bytes(guest.memory)}, must be whole blocks",
            'write block_size = "2MiB", or other memory', (f"{where}.memory",),
        )  # fmt: skip
    if isinstance(channel, SharedAllocatorChannelSettings) and host.page_size != 2 << 20:
        yield Finding(
            f"{at}.kind", "a shared allocator installs 2 MiB at once, the host's page must be so",
            'write host.page_size = "2MiB"', ("host.page_size",),
        )  # fmt: skip


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
        if size is not None and size > guest.memory:
            yield Finding(
                f"{at}.{key}", f"the guest has {format_bytes(guest.memory)}",
                f'write "{format_bytes(guest.memory)}" or less', (f"{where}.memory",),
            )  # fmt: skip
