"""The vCPU thread itself leaves to the VMM, which installs the page and enters again.

KVM reports the missing page instead of waiting for it, the thread asks the kernel for the
page in a system call of its own (UFFDIO_CONTINUE, UFFDIO_COPY or a populating madvise), and
the second fault finds it and fills the SLAT. Nobody else has a part in it: there is no queue
and no worker. What the threads of a VM share are a few words that each fault writes, under
a lock or by an atomic instruction. Such a word is a cache line that has to come from the
core that wrote it last, and only one core has it at a time: so each is a short serial
section, and together they bound the faults a second however many vCPUs there are.

A line that the same vCPU wrote last is at hand and costs nothing more, which is why one vCPU
alone is faster than its share of several. How long a line takes varies (a neighbour or
another socket, an interrupted holder): it is drawn from an exponential distribution, each
vCPU from a generator of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simvm.model.faults.base import begin_anew_if_overtaken
from simvm.model.queues import Channels, Process
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu

LINES_OF_VM = (
    "file of the userfaultfd",   # its count of users, at the system call
    "address space",             # mm_users, taken while memory is installed
    "changing lock",             # of the userfaultfd: mappings must not move meanwhile
    "mmap lock",                 # taken for reading: its word counts readers
    "mapping",                   # the count of users of the VMA
    "memory cgroup",             # its counter of pages
    "LRU lock",
    "page-table lock",
    "MMU lock",                  # KVM's, taken for reading: its word counts readers
    "page statistics",           # KVM's, of the VM
)
"""What a fault writes of what the vCPU threads of its VM share."""

LINES_OF_HOST = ("zone lock", "free list")
"""What it writes of what all VMs share."""


class Line:
    """A cache line that several vCPUs write: whose it is, and when it is free."""

    def __init__(self) -> None:
        self._queue = Channels()
        self._owner: VirtualCpu | None = None

    def take(self, vcpu: VirtualCpu, now: int, transfer: int) -> tuple[int, int]:
        """Write it: ns until it is free, and ns until it is here then."""
        hold = 0 if self._owner in (None, vcpu) else transfer
        self._owner = vcpu
        return self._queue.reserve(now, hold), hold


class ExitToUserspacePath:
    """Each vCPU thread installs its own pages from user space."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._shared = [Line() for _ in LINES_OF_HOST]
        self._lines: dict[int, list[Line]] = {}                    # by guest
        self._random: dict[VirtualCpu, np.random.Generator] = {}
        self._under_way = 0

    def train(self, longest: int) -> int:
        return 1 if self._under_way else longest

    def serve(self, vcpu: VirtualCpu, faults: int, service: int) -> Process:
        host, guest = self._host, vcpu.guest
        costs = host.costs
        service += faults * costs.exit_to_userspace_extra_ns
        seen = guest.invalidations
        self._under_way += 1
        try:
            yield from vcpu.spend(
                ("fault_wait_ns", guest.mmu_lock.wait(host.env.now)), ("fault_service_ns", service)
            )
            transfers = self._transfers(vcpu)
            for line, transfer in zip(self._lines_of(guest), transfers, strict=True):
                wait, hold = line.take(vcpu, host.env.now, transfer)
                yield from vcpu.spend(("fault_wait_ns", wait), ("fault_service_ns", hold))
        finally:
            self._under_way -= 1
        yield from begin_anew_if_overtaken(vcpu, seen)

    def _lines_of(self, guest: Guest) -> list[Line]:
        if guest.owner not in self._lines:
            own = [Line() for _ in LINES_OF_VM]
            self._lines[guest.owner] = [*own, *self._shared]
        return self._lines[guest.owner]

    def _transfers(self, vcpu: VirtualCpu) -> list[int]:
        """ns that each line takes to come, were it elsewhere."""
        random = self._random.get(vcpu)
        if random is None:
            guest = vcpu.guest
            label = f"{guest.name}/vcpu {vcpu.index}/lines of faults"
            bits = random_bits(guest.scenario.scenario.seed, label)
            random = self._random[vcpu] = np.random.Generator(bits)
        mean = self._host.costs.line_transfer_ns
        drawn = random.exponential(mean, len(LINES_OF_VM + LINES_OF_HOST))
        transfers: list[int] = np.rint(drawn).astype(np.int64).tolist()
        return transfers
