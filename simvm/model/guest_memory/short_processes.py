"""Processes of a guest that come and go beside its workload.

Each runs on a vCPU drawn at random: its memory comes from that vCPU's list of free pages and
goes back there when it ends. Where it runs while much is being freed it takes single pages
out of many blocks, and its vCPU's list then keeps these blocks from being whole.

Left out: that it is in the way of the workload's threads (it has a host core of its own),
page tables and what the kernel keeps of a process, files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simvm.hardware.geometry import PAGE
from simvm.model.guest_memory.threads import GuestThread
from simvm.model.queues import Process
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm.model.guest_memory.manager import GuestMemory
    from simvm.scenario.guest_memory import GuestShortProcesses as Settings


class ShortProcesses:
    """Those of one guest. Times count from when its memory was set up, as it booted."""

    def __init__(self, mm: GuestMemory, settings: Settings) -> None:
        guest = mm.guest
        self._mm = mm
        self._settings = settings
        self._started = guest.host.env.now
        seed = guest.scenario.scenario.seed
        self._random = np.random.Generator(random_bits(seed, f"{guest.name}/short processes"))
        self.held_bytes = 0

    def serve(self) -> Process:
        """Start them at their times, or when those before have ended."""
        env, thread = self._mm.guest.host.env, GuestThread(self._mm.guest)
        for at, size in self._settings.schedule.items():
            yield from thread.sleep(max(0, self._started + at - env.now))
            for _ in range(self._settings.processes):
                yield from self._live(thread, size // self._settings.processes)

    def _live(self, thread: GuestThread, size: int) -> Process:
        """One process: it takes memory, as much of it as there is, writes it, and ends."""
        mm, guest = self._mm, self._mm.guest
        vcpu = int(self._random.integers(len(guest.vcpus)))
        guest.memory.run_on(vcpu)
        frames: list[int] = yield from mm.take(size // PAGE, thread)
        self.held_bytes = len(frames) * PAGE
        yield from thread.spend(len(frames) * guest.host.costs.guest_fault_ns)
        for start, length in runs_of(frames):
            yield from thread.write([start], length)
        mm.wake_if_low()
        guest.note_backed()
        yield from thread.sleep(self._settings.stay)
        guest.memory.run_on(vcpu)
        for frame in frames:
            guest.memory.free_4k(frame)
        self.held_bytes = 0
        guest.channel.reclaimed(guest)


def runs_of(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Address and length of each run of pages in a row."""
    start = end = None
    for page in sorted(pages):
        if page != end:
            if start is not None and end is not None:
                yield start, end - start
            start = page
        end = page + PAGE
    if start is not None and end is not None:
        yield start, end - start
