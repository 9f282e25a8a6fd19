"""How fast channels take back memory that the guest has touched and freed.

The measurement has a guest of 20 GiB that touches nearly all of it, frees it, and is sized down
to 2 GiB. Here the real channels do that, in the scenario `resize`; what is compared is what
they withheld over the time that it took, from the host's wish on. What each channel costs by
itself was measured on memory that was never touched; a zap of 2 MiB is what touching adds to the
shared allocator's time, so that row is calibrated. That figure holds a shootdown, for which the
model charges once more. The balloon's 4 KiB have no figure for a zap, nor for the split of the
host's huge pages: these are ranges, and both ends of both keep the row within its tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from simvm.units import GIB, SECOND
from simvm.validation import scenarios
from simvm.validation.rows import Published, Ranking, Row, basis

_WISHED_AT = SECOND  # the schedule of the scenario
_LESS = "guest.vm.channel.schedule.1s=14GiB"


def reclaim_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row | Ranking]:
    """GiB a second of each channel, and their order; not at full size: of a third of the memory."""
    rates: dict[str, float] = {}
    for row in published["rows"]:
        name = row["channel"]
        rates[name] = gib_per_s(row.get("variant"), () if full else (_LESS,))
        target = f"reclaim of touched memory in GiB/s, {name}"
        yield Row(target, row["gib_per_s"], rates[name], basis(published, row))
    order = sorted(published["rows"], key=lambda row: -float(row["gib_per_s"]))
    stands_on = basis(published, inputs=[name for row in order for name in row["inputs"]])
    yield Ranking(
        "reclaim of touched memory, order of the channels",
        [row["channel"] for row in order], rates, stands_on,
    )  # fmt: skip


def gib_per_s(variant: str | None, sets: tuple[str, ...] = ()) -> float:
    """The rate at which a variant of the scenario withholds memory, until it has all it should."""
    host = scenarios.run("resize", variant, sets).timeline.host()
    withheld = host.values("withheld_bytes")
    reached = host.values("time_ns")[withheld.argmax()]
    return float(withheld.max() / GIB / ((reached - _WISHED_AT) / SECOND))
