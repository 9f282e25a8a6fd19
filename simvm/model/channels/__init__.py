"""Channels by which a guest tells the host about its memory, each in a file of its own.

The guest calls a channel on the vCPU that frees or names memory, and pays for the call;
what a channel does by itself, beside the vCPUs, is `serve`. What is done to the SLAT goes
through the host's notifier and costs an unmapping and a shootdown.
Adding one: a file with a settings model and a class that has these methods, and a call of
`register`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simvm.model.channels.balloon import Balloon
from simvm.model.channels.base import Channel
from simvm.model.channels.free_page_reporting import FreePageReporting
from simvm.model.channels.none import NoChannel
from simvm.model.channels.passthrough import Passthrough
from simvm.model.channels.shared_allocator import SharedAllocator
from simvm.model.channels.virtio_mem import VirtioMem
from simvm.scenario import channels as settings_of
from simvm.scenario.channels import ChannelSettings

Factory = Callable[[Any], Channel]
"""Makes a guest's channel from the settings of its kind."""

CHANNELS: dict[str, Factory] = {
    "none": NoChannel,
    "passthrough": Passthrough,
    "balloon": Balloon,
    "virtio_mem": VirtioMem,
    "shared_allocator": SharedAllocator,
    "free_page_reporting": FreePageReporting,
}
"""By kind. The settings of these are in `simvm.scenario.channels`, which stands alone."""


def register(kind: str, settings: type[ChannelSettings], factory: Factory) -> None:
    """Add a kind of channel: scenarios take it from now on, and guests have it.

    Raises
    ------
    ValueError
        The kind is taken, is no name, or is not what the model's `kind` says.
    """
    settings_of.register(kind, settings)
    CHANNELS[kind] = factory
