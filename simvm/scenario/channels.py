"""Settings of the channels between guest and host: one model for each kind, open to more.

`kind` says which model a channel's table is. A channel from elsewhere joins with
`simvm.model.channels.register`, which calls `register` here: the models of a scenario must
not know those of the simulation.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import GetJsonSchemaHandler, SerializeAsAny
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from simvm import units
from simvm.scenario import fields as f
from simvm.scenario.base import Model, choice_from
from simvm.scenario.passthrough import OwnOperations

INTERVAL: Final = 1_000_000_000
"""Between two looks of a controller, ns: no kernel's default, but a host agent's choice."""


class ChannelSettings(Model):
    """How guests of a class tell the host what they no longer need."""

    kind: str
    kinds: ClassVar[dict[str, type[ChannelSettings]]] = {}
    """By kind, the model of its table."""


class NoChannelSettings(ChannelSettings):
    """The host learns nothing: what a guest frees stays backed."""

    kind: Literal["none"] = "none"


class PassthroughChannelSettings(ChannelSettings):
    """The guest's hints of pvmemcontrol: names and frees reach the host as they happen."""

    kind: Literal["passthrough"] = "passthrough"
    operations: OwnOperations = ("SET_VMA_ANON_NAME", "DONTNEED")
    """INFO as the driver starts, names for new memory, and one of the others for what is freed."""
    batch: f.Batch = 1
    """Ranges in one call; the driver has no more than 1."""


class SizedChannelSettings(ChannelSettings):
    """A channel by which the host sizes its guests: one of target, schedule and keep_free."""

    target: f.PageMultiple | None = None
    """Memory that each guest is left with, from the end of its boot on."""
    schedule: f.Schedule | None = None
    """The same from a simulated time on, such as { 10s = "2GiB", 60s = "8GiB" }."""
    keep_free: f.PageMultipleOrZero | None = None
    """Free memory that the host leaves each guest, above what it uses; looked at by `interval`."""
    interval: f.Duration = INTERVAL
    """From one look at the guest's memory to the next; the host's choice."""


class BalloonChannelSettings(SizedChannelSettings):
    """virtio-balloon: the guest takes free pages and names them to the host, which drops them."""

    kind: Literal["balloon"] = "balloon"
    page_size: f.BalloonPage = 4096
    """What is taken at once; 2 MiB is no part of the driver in Linux."""
    deflate_on_oom: f.Flag = True
    """Whether a guest that runs out of memory takes pages back, 1 MiB at a time."""


class VirtioMemChannelSettings(SizedChannelSettings):
    """virtio-mem: the guest unplugs blocks of its memory and plugs them again."""

    kind: Literal["virtio_mem"] = "virtio_mem"
    block_size: f.DeviceBlock = 2 << 20
    """Of the device: what is plugged and unplugged at once. A block of Linux has 128 MiB."""
    unmovable: f.Share = 0.0
    """Share of the device's blocks with a page that cannot move; 0 errs low for what stays."""


class SharedAllocatorChannelSettings(SizedChannelSettings):
    """An allocator in shared memory: the host takes free frames of 2 MiB without a call."""

    kind: Literal["shared_allocator"] = "shared_allocator"
    automatic: f.Flag = False
    """Whether the host drops what is free every `interval`; the guest may use it at any time."""


class FreePageReportingChannelSettings(ChannelSettings):
    """A worker of the guest reports large free blocks, in passes (Linux mm/page_reporting.c)."""

    kind: Literal["free_page_reporting"] = "free_page_reporting"
    order: f.ReportingOrder = 9
    """The smallest block that is reported: 9 is 2 MiB, 10 is 4 MiB."""
    delay: f.Duration = 2 * units.SECOND
    """From a free, or the end of a pass that left something over, to the next pass."""
    batch: f.Batch = 32
    """Blocks in one message to the host."""
    budget: f.Batch = 16
    """A pass reports one part in so many of each free list, and a message more."""
    ticks_per_second: f.TicksPerSecond = 250
    """HZ of the guest's kernel, which says how late its timers are (Linux kernel/Kconfig.hz)."""


def register(kind: str, settings: type[ChannelSettings]) -> None:
    """Let scenarios have a kind of channel.

    Raises
    ------
    ValueError
        The kind is taken, is no name, or is not what the model's `kind` says.
    """
    own = settings.model_fields["kind"].default
    if own != kind:
        raise ValueError(f"the kind (={own!r}) of {settings.__name__} must be {kind!r}")
    if kind in ChannelSettings.kinds or not f.NAME.fullmatch(kind):
        raise ValueError(f"kind (={kind!r}) must be a name that no channel has yet")
    ChannelSettings.kinds[kind] = settings


register("none", NoChannelSettings)
register("passthrough", PassthroughChannelSettings)
register("balloon", BalloonChannelSettings)
register("virtio_mem", VirtioMemChannelSettings)
register("shared_allocator", SharedAllocatorChannelSettings)
register("free_page_reporting", FreePageReportingChannelSettings)


class _Described:
    """The JSON Schema of a table that is of one of the kinds that are registered by then."""

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        # A name makes each model a definition of its own, as those of a static union are.
        choices: dict[Any, Any] = {
            kind: {**model.__pydantic_core_schema__, "ref": f"{model.__qualname__}:{id(model)}"}
            for kind, model in ChannelSettings.kinds.items()
        }
        return handler(core_schema.tagged_union_schema(choices, "kind"))


AnyChannel = Annotated[
    ChannelSettings,
    SerializeAsAny(),
    choice_from("kind", ChannelSettings.kinds, "none", ()),
    _Described(),
]
"""Settings of a kind that is registered; without a word, `none`."""
