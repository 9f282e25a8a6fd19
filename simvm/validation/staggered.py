"""Guests that write memory in turns and free it: what they hold, and how it is given back.

The measurement sampled the resident memory of three virtual machines every half second, without
a channel and with free page reporting. The scenario `write_free_staggered` does the same. How
much a round writes, how long it lasts (the cycles of an access say so), what a guest holds after
its boot, the ticks of the guest's clock, and when and with how much memory the measurement logged
in are what was set there, and are put in; how much goes back in a pass, and when, follows from
the guest's free lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from types import ModuleType

from simvm.results import RunResult
from simvm.units import GIB, MIB, SECOND
from simvm.validation import scenarios
from simvm.validation.rows import Published, Row, basis

_MESSAGE = 128 * MIB  # of 32 blocks of 4 MiB
_ROUND = 30 * SECOND

Fall = tuple[int, int]
"""When a pass had given memory back, ns, and how much, bytes; to the sample."""


def series_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """A row for each figure; the scenario is fast enough to be run as it is, `full` or not."""
    for row in published["rows"]:
        result = scenarios.run("write_free_staggered", row.get("variant"))
        name = row["figure"]
        target = f"{name}, {row.get('variant', 'no channel')}"
        value = FIGURES[name](result)
        yield Row(target, row["value"], value, basis(published, row), row.get("note", ""))


def peak_gib(result: RunResult) -> float:
    """The most that all guests hold at a sample."""
    return float(result.timeline.host().values("backed_bytes").max() / GIB)


def mean_gib(result: RunResult) -> float:
    """What all guests hold on average, each sample holding until the next."""
    return float(result.timeline.host().values("backed_bytes")[:-1].mean() / GIB)


def falls(result: RunResult) -> list[Fall]:
    """What the passes of the first guest gave back; a pass may lie across a sample."""
    guest = result.timeline.guest("vm", 0)
    times, backed = guest.values("time_ns"), guest.values("backed_bytes")
    found: list[Fall] = []
    before_fell = False
    for (_, before), (time, now) in pairwise(zip(times.tolist(), backed.tolist(), strict=True)):
        if now < before:
            earlier = found.pop()[1] if before_fell else 0
            found.append((int(time), int(before - now) + earlier))
        before_fell = now < before
    return found


def first_drain(result: RunResult) -> list[Fall]:
    """The falls after the first round and before the second."""
    return [fall for fall in falls(result) if fall[0] < _ROUND]


def drain_s(result: RunResult) -> float:
    """From the first fall of the first drain to its last."""
    drain = first_drain(result)
    return (drain[-1][0] - drain[0][0]) / SECOND


def period_s(result: RunResult) -> float:
    """From one pass of the first drain to the next, on average."""
    return drain_s(result) / (len(first_drain(result)) - 1)


def steps_mib(result: RunResult) -> list[int]:
    """The sizes that budgets allow, in whole messages, in order of appearance.

    Those are the sizes of two passes in a row; what is left over at the end of a list is not.
    """
    sizes = [round(size / _MESSAGE) * (_MESSAGE // MIB) for _, size in falls(result)]
    return list(dict.fromkeys(size for size, after in pairwise(sizes) if size == after))


def _step(number: int) -> Callable[[RunResult], float]:
    def size(result: RunResult) -> float:
        """0 when there are not so many sizes."""
        return float(dict(enumerate(steps_mib(result))).get(number, 0))

    return size


FIGURES: dict[str, Callable[[RunResult], float]] = {
    "peak of three guests in GiB": peak_gib,
    "mean of three guests in GiB": mean_gib,
    "first step in MiB": _step(0),
    "second step in MiB": _step(1),
    "third step in MiB": _step(2),
    "first drain in s": drain_s,
    "from pass to pass in s": period_s,
}
