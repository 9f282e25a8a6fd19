"""Channels by which a guest tells the host about its memory, each in a file of its own.

The guest calls a channel on the vCPU that frees or names memory, and pays for the call;
what a channel does by itself, beside the vCPUs, is `serve`. What is done to the SLAT goes
through the host's notifier and costs an unmapping and a shootdown.
Adding one: a file with a class that has these methods, and a line in `CHANNELS`.
"""

from __future__ import annotations

from simvm.model.channels.base import Channel
from simvm.model.channels.none import NoChannel
from simvm.model.channels.passthrough import Passthrough

CHANNELS: dict[str, type[Channel]] = {"none": NoChannel, "passthrough": Passthrough}
