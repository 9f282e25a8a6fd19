"""The guest's page cache: a program beside the vCPUs reads files, and the cache grows.

Pieces of 128 KiB (the kernel's readahead) are read at a rate. What is in the cache costs CPU
time alone; what is not takes free pages, reclaims for them below the min watermark, and is
read from the guest's disk into memory that the host must back. Nothing leaves the cache but
by reclaim, so it fills what programs leave free. A piece that is written makes its pages
dirty, until reclaim writes them.

Where a series says how large the cache is, the program reads so much of the files and no more;
and before it reads on, the kernel drops pages from the old end until the cache has that size.

Left out: flusher threads; files that programs map; the host's own cache of the guest's disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import simpy

from simvm import _core
from simvm.hardware.geometry import PAGE
from simvm.model.guest_memory.threads import GuestThread
from simvm.model.queues import BlockQueue, Process
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm.model.guest_memory.manager import GuestMemory
    from simvm.scenario.guest_memory import GuestPageCache as Settings

READAHEAD_PAGES = 32    # VM_READAHEAD_PAGES, include/linux/mm.h


class Disk:
    """The guest's disk: a queue of requests, and pages on their way to it."""

    def __init__(self, mm: GuestMemory, settings: Settings) -> None:
        costs = mm.guest.host.costs
        self._env = mm.guest.host.env
        self._latency = settings.latency or costs.nvme_latency_ns
        self._queue = BlockQueue(
            settings.parallelism or costs.nvme_parallelism,
            settings.bandwidth or costs.nvme_bandwidth_bytes_per_s,
        )
        self.writing_bytes = 0
        self.writes_done = self._env.event()

    def request_ns(self, size: int) -> int:
        """ns until a request made now is done."""
        return self._queue.request(self._env.now, self._latency, size)

    def write(self, frames: list[int], free: Callable[[list[int]], None]) -> None:
        """Write pages, each on its own; `free` gets them when they are written."""
        for frame in frames:
            self.writing_bytes += PAGE
            done = self._env.timeout(self.request_ns(PAGE))

            def finish(_: simpy.Event, frame: int = frame) -> None:
                self.writing_bytes -= PAGE
                free([frame])
                happened, self.writes_done = self.writes_done, self._env.event()
                happened.succeed()

            assert done.callbacks is not None
            done.callbacks.append(finish)


class PageCache:
    """Files of one guest, and the program that reads them."""

    def __init__(self, mm: GuestMemory, kernel: _core.GuestKernel, settings: Settings) -> None:
        guest = mm.guest
        self._mm = mm
        self._kernel = kernel
        self._settings = settings
        self._pages = settings.files // PAGE
        self._most: int | None = None   # bytes of the cache, where a series says so
        self.disk = Disk(mm, settings)
        seed = guest.scenario.scenario.seed
        self._random = np.random.Generator(random_bits(seed, f"{guest.name}/page cache"))
        self._copy = guest.host.costs.copy_bandwidth_bytes_per_s
        self.reads = 0      # pages read or written by the program
        self.misses = 0     # pages read from the disk

    def follow(self, size: int) -> None:
        """Be of this size from now on."""
        self._most = size
        self._pages = min(size, self._settings.files) // PAGE

    def serve(self) -> Process:
        """Read at the rate, or as fast as the disk lets it."""
        env, thread = self._mm.guest.host.env, GuestThread(self._mm.guest)
        size = READAHEAD_PAGES * PAGE
        started, pieces = env.now, 0
        while True:
            due = started + pieces * size * 1_000_000_000 // self._settings.read_rate
            yield from thread.sleep(max(0, due - env.now))
            if self._most is not None and self._kernel.cache_bytes > self._most:
                assert self._mm.reclaimer is not None
                yield from self._mm.reclaimer.drop_files(self._most, thread)
            if self._pages:
                yield from self._piece(thread, pieces)
            pieces += 1

    def _piece(self, thread: GuestThread, number: int) -> Process:
        pieces = -(-self._pages // READAHEAD_PAGES)
        if self._settings.order == "sequential":
            at = number % pieces
        else:
            at = int(self._random.integers(pieces))
        first = at * READAHEAD_PAGES
        count = min(READAHEAD_PAGES, self._pages - first)
        write = bool(self._random.random() < self._settings.write_fraction)
        missing = self._kernel.use_file(first, count, write)
        self.reads += count
        self.misses += len(missing)
        if missing:
            yield from self._fetch(thread, missing, write)
        # The program's copy of the piece.
        yield from thread.spend(count * PAGE * 1_000_000_000 // self._copy)

    def _fetch(self, thread: GuestThread, missing: list[int], dirty: bool) -> Process:
        """Read pages that are not in the cache; those without a free page stay outside."""
        mm = self._mm
        frames = yield from mm.take(len(missing), thread)
        yield from thread.sleep(self.disk.request_ns(len(missing) * PAGE))
        yield from thread.write(frames)
        for page, frame in zip(missing, frames, strict=False):
            self._kernel.cache(page, frame, dirty)
        mm.wake_if_low()
        mm.guest.note_backed()
