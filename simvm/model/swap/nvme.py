"""An NVMe-like device: a queue of requests, and pages whose write is under way.

It serves `parallelism` requests at a time, each for a latency drawn from a log-normal, and
moves `bandwidth` bytes per second in all: a request ends when both its channel and the
shared link are through with it. All are ranges without a published figure.

A page under writeback is in the swap cache: a fault maps its frame again without a read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import simpy

from simvm.hardware.geometry import PAGE
from simvm.model.queues import BlockQueue
from simvm.model.swap.base import Free, Run, SwapDevice, Wait
from simvm.model.swap.latency import Latency
from simvm.scenario.swap import p99_of

if TYPE_CHECKING:
    from simvm.hardware import Costs
    from simvm.model.clock import Clock
    from simvm.scenario import NvmeSwap, ZswapSwap


class Writeback:
    """Pages on their way to the device: slot and frame of each."""

    def __init__(self, slots: Sequence[int], frames: Sequence[int]) -> None:
        self.frames: dict[int, int] = dict(zip(slots, frames, strict=True))


class Nvme(SwapDevice):
    """A block device behind a queue; whoever waits for it sleeps."""

    def __init__(
        self, env: Clock, settings: NvmeSwap | ZswapSwap, costs: Costs, seed: int, label: str
    ) -> None:
        super().__init__(env, settings.size, costs.swap_fault_ns)
        mean = settings.latency or costs.nvme_latency_ns
        self._latency = Latency(mean, p99_of(settings, costs), seed, f"{label}/nvme")
        self._queue = BlockQueue(
            settings.parallelism or costs.nvme_parallelism,
            settings.bandwidth or costs.nvme_bandwidth_bytes_per_s,
        )
        self._under_writeback: dict[int, Writeback] = {}

    def write(self, run: Run, free: Free) -> int:
        self._submit(run.slots, run.frames, free)
        return super().write(run, free)

    def _submit(self, slots: Sequence[int], frames: Sequence[int], free: Free) -> None:
        """Queue one write."""
        batch = Writeback(slots, frames)
        for slot in slots:
            self._under_writeback[slot] = batch
        size = len(slots) * PAGE
        self.writeback_bytes += size
        done = self._env.timeout(self._request(size))

        def finish(_: simpy.Event) -> None:
            for slot in slots:
                if self._under_writeback.get(slot) is batch:
                    del self._under_writeback[slot]
            rest = list(batch.frames.values())
            self.writeback_bytes -= len(rest) * PAGE
            free(rest)
            self._wake()

        assert done.callbacks is not None
        done.callbacks.append(finish)

    def read(self, slot: int) -> Wait:
        return Wait(0, self._request(PAGE))

    def take_back(self, slot: int) -> int | None:
        batch = self._under_writeback.pop(slot, None)
        if batch is None:
            return None
        self.writeback_bytes -= PAGE
        return batch.frames.pop(slot)

    def free_slots(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._under_writeback.pop(slot, None)
        super().free_slots(slots)

    def _request(self, size: int) -> int:
        """ns until a request made now is done."""
        return self._queue.request(self._env.now, self._latency.draw(), size)
