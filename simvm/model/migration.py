"""Live migration (pre-copy): a guest's memory comes in, or leaves while the guest goes on.

*In.* A thread of the VMM writes what arrives into memory, which backs it: kernel memory and
page tables of the guest, then its programs' regions from their starts on. The SLAT knows none
of it until the guest touches it. The guest runs when the last byte is there.

*Out.* After QEMU's migration/ram.c and migration/migration.c. Dirty logging has KVM map 4 KiB
(arch/x86/kvm/mmu, eager page splitting), so huge pages are split at first. A round sends all
pages that were dirty as it began, the first one all there are; what has been written since is
the next one's. When that can be sent in `downtime`, at the bandwidth of the last round, the
guest is stopped, the rest is sent, and all it held is freed. Dirty is what has D in the SLAT
(page-modification logging sets it so); who else clears D notes that here.

Left out: post-copy, auto-converge and other throttling, compression, headers, devices' state,
pages of zeroes that are sent as a word, QEMU's look at the dirty pages before a round is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import simpy

from simvm import _core
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.guest_memory.threads import busy_ns
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Channels, Process
from simvm.model.vcpu import VirtualCpu
from simvm.scenario import SequentialPattern
from simvm.scenario.check_usage import extremes
from simvm.workload.patterns import make_stream, random_bits
from simvm.workload.usage_series import Member, steps

if TYPE_CHECKING:
    from simvm.model.clock import Clock
    from simvm.model.guest import Guest
    from simvm.model.spaces import NamedRegion, Space
    from simvm.scenario import Phase
    from simvm.scenario.migration import MigrateOut, Migration

Pages = np.ndarray[tuple[int], np.dtype[np.uint64]]

SECOND: Final = 1_000_000_000
CHUNK_PAGES: Final = BLOCK // PAGE      # that each migration has on the line at once
LOOK: Final = 1 << 30       # bytes that one look at D bits covers, and one flush: as QEMU's
DIRTY, HUGE = 1, 2          # bits beside an address, from the core
CYCLES: Final = 1 << 40     # no limit


class MigrationLink:
    """What all migrations of a host share: turns, and bytes a second."""

    def __init__(self, env: Clock, settings: Migration) -> None:
        self._env = env
        self._bandwidth = settings.bandwidth
        self._line = Channels()
        self.turns = simpy.Resource(env, settings.parallel)

    def send(self, size: int) -> int:
        """Put `size` bytes on the line: the simulated time when they are through, in ns."""
        takes = -(-size * SECOND // self._bandwidth)
        return self._env.now + self._line.reserve(self._env.now, takes) + takes


@dataclass
class Transfer:
    """One migration: times in ns, bytes sent, and of a departure its rounds and downtime."""

    start_ns: int
    end_ns: int | None = None
    bytes: int = 0
    rounds: int = 0
    downtime_ns: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For the summary of a guest; `end_ns` is null when it was cut short."""
        return asdict(self)


class _Thread(KernelThread):
    """The thread of the VMM through which a guest's memory goes."""

    def __init__(self, guest: Guest, transfer: Transfer) -> None:
        super().__init__(guest)
        self.guest = guest
        self.transfer = transfer
        self.vcpu = VirtualCpu(guest, -1)   # what it runs on
        self._noted_ns = 0

    def work(self, ns: int) -> Process:
        """CPU time."""
        yield from self.vcpu.enter_core()
        yield from self.vcpu.spend(("fault_service_ns", ns))

    def copy(self, size: int) -> Process:
        """Copy between memory and the line."""
        yield from self.work(size * SECOND // self._host.costs.copy_bandwidth_bytes_per_s)

    def through(self, size: int, at: int) -> Process:
        """Sleep until so many bytes have been sent, if they have not yet."""
        self.rest()
        if at > self._host.env.now:
            yield self._host.env.timeout(at - self._host.env.now)
        self.transfer.bytes += size

    def rest(self) -> None:
        """Off the core, and its time is the guest's threads'."""
        self.vcpu.rest()
        spent = busy_ns(self.vcpu)
        self._guest.kernel_thread_ns += spent - self._noted_ns
        self._noted_ns = spent

    def end(self) -> None:
        """It does nothing more."""
        self.rest()
        self._host.cores.forget(self.vcpu)


# --- in ---------------------------------------------------------------------------------


def receive(guest: Guest, transfer: Transfer) -> Process:
    """Take in what a guest brings, until all of it is there."""
    thread, link = _Thread(guest, transfer), guest.host.migration
    if guest.mm.kernel is not None:
        thread.vcpu.core.set_kernel(guest.mm.kernel)
    try:
        yield from thread.vcpu.populate(guest.vmm_pages, guest.config.vmm_overhead)
        written: Process = iter(())     # type: ignore[assignment]
        for size, writing in _chunks(thread):
            at = link.send(size)
            yield from written      # while the next chunk is on the line
            yield from thread.through(size, at)
            written = writing
        yield from written
        # The VMM wrote it: the SLAT has none of it, nor has the guest accessed it here.
        guest.backing.hold(0, guest.memory.size, accessed=True)
        guest.drop_translations(0, guest.memory.size)
        transfer.end_ns = guest.host.env.now
    except MemoryError:
        guest.fail("no free memory in the guest")
    finally:
        thread.end()


def _chunks(thread: _Thread) -> Iterator[tuple[int, Process]]:
    """What comes in, in order: bytes, and how they are written."""
    guest = thread.guest
    settings = guest.config.migrate_in
    assert settings is not None
    for start in range(0, guest.kernel_bytes, BLOCK):
        size = min(BLOCK, guest.kernel_bytes - start)
        yield size, _write_kernel(thread, guest.kernel_start + start, size)
    for page in guest.mm.written_at_boot:
        yield PAGE, _write_kernel(thread, page, PAGE)
    left = settings.resident - guest.kernel_bytes
    for phase in guest.config.workload:
        whole, room = _region_of(guest, phase)
        size = min(left, whole)
        if size <= 0 or (phase.process, phase.region) in guest.regions:
            continue
        left -= size
        region = guest.allocate(phase.process, phase.region, whole, None, room)
        bits = random_bits(0, "a stream without draws")
        stream, _ = make_stream(SequentialPattern(stride=PAGE), size, 1.0, bits, 0, 1)
        space = guest.process(phase.process)
        for start in range(0, size, BLOCK):
            length = min(BLOCK, size - start)
            yield length, _write_region(thread, space, region, stream, length // PAGE)


def _region_of(guest: Guest, phase: Phase) -> tuple[int, int]:
    """How large the region is now that a phase will find, and at the most; 0: it makes none."""
    if phase.hugetlb is not None:
        return 0, 0
    if phase.usage is None:
        return phase.allocate or 0, 0
    config, seed = guest.config, guest.scenario.scenario.seed
    member = Member(seed, guest.class_, guest.index, config.count, phase.name)
    known = extremes(phase.usage)
    assert known is not None
    return next(steps(phase.usage, member, guest.host.env.now)).used_bytes, known[1]


def _write_kernel(thread: _Thread, start: int, size: int) -> Process:
    guest, core = thread.guest, thread.vcpu.core
    settings = guest.scenario.scenario
    core.queue_write(start, size)
    yield from _write(thread, size, lambda: core.kernel_write(
        guest.kernel_space, guest.backing, settings.train, settings.train_service
    ))  # fmt: skip
    guest.booted_bytes = min(guest.booted_bytes + size, guest.kernel_bytes)


def _write_region(
    thread: _Thread, space: Space, region: NamedRegion, stream: _core.Stream, pages: int
) -> Process:
    guest, core = thread.guest, thread.vcpu.core
    settings = guest.scenario.scenario
    end = core.done + pages
    yield from _write(thread, pages * PAGE, lambda: core.run(
        space.core, guest.backing, guest.memory, region.core, stream, end - core.done, CYCLES,
        settings.train, settings.train_service,
    ))  # fmt: skip


def _write(thread: _Thread, size: int, step: Callable[[], int]) -> Process:
    """Write `size` bytes by as many steps as it takes; the VMM's page faults back them."""
    guest, vcpu, host = thread.guest, thread.vcpu, thread.guest.host
    reason = _core.RUN_TRAIN
    while reason != _core.RUN_BUDGET:
        yield from vcpu.enter_core()
        yield from vcpu.catch_up()
        host.reclaimer.check_watermarks()
        before = vcpu.core.slat_faults
        reason = step()
        guest.note_backed()
        made = zip(vcpu.core.slat_faults, before, host.container_fault_ns, strict=True)
        yield from thread.work(sum((now - was) * ns for now, was, ns in made))
        yield from vcpu.resolve(reason, None)
    yield from thread.copy(size)


# --- out --------------------------------------------------------------------------------


class Sender:
    """A guest's departure by migration."""

    def __init__(self, guest: Guest, settings: MigrateOut, transfer: Transfer) -> None:
        self._guest = guest
        self._host = guest.host
        self._settings = settings
        self._transfer = transfer
        self._thread = _Thread(guest, transfer)
        self._stopped_ns: int | None = None
        self.noted: set[int] = set()   # dirty pages whose D somebody else has cleared

    def run(self) -> Process:
        """Send all that the guest has while it runs, stop it, and send the rest."""
        env, transfer, settings = self._host.env, self._transfer, self._settings
        try:
            pages = yield from self._look(first=True)
            while True:
                before, started = transfer.bytes, env.now
                yield from self._send(pages)
                transfer.rounds += 1
                sent, took = transfer.bytes - before, env.now - started
                pages = yield from self._look()
                fits = len(pages) * PAGE * took <= sent * settings.downtime
                if fits or self._stopped_ns is not None:
                    break
            self._stop()
            last = yield from self._look()
            yield from self._send(np.union1d(pages, last))
            assert self._stopped_ns is not None
            transfer.downtime_ns = env.now - self._stopped_ns
            transfer.end_ns = env.now
        finally:
            self._thread.end()

    def _stop(self) -> None:
        """Let the guest do nothing more."""
        if self._stopped_ns is None:
            self._stopped_ns = self._host.env.now
            self._guest.life.halt()

    def _stop_in_time(self) -> None:
        timeout = self._settings.timeout
        if timeout is not None and self._host.env.now >= self._transfer.start_ns + timeout:
            self._stop()

    def note(self, address: int, size: int) -> None:
        """Somebody is about to clear D of what [address, address + size) maps."""
        for page in range(address, address + size, PAGE):
            state = self._guest.backing.page_state(page)
            if state is not None and state & DIRTY:
                self.noted.add(page)

    def _look(self, first: bool = False) -> Process:
        """The pages that were written since the last look; at first all there are. Clears D."""
        guest, host = self._guest, self._host
        noted, self.noted = self.noted, set()
        found = [np.array(sorted(noted), dtype=np.uint64)]
        for start in range(0, guest.memory.size, LOOK):
            end = min(start + LOOK, guest.memory.size)
            mapped = guest.backing.pages_from(start, end, (end - start) // PAGE)
            dirty = mapped & DIRTY != 0
            chosen = mapped if first else mapped[dirty]
            found.append(chosen & ~np.uint64(PAGE - 1))
            if first:
                found.append(np.array(guest.backing.swapped(start, end), dtype=np.uint64))
            cost = len(mapped) * host.costs.age_entry_ns
            cost += self._split(mapped[mapped & HUGE != 0])
            if cost and dirty.any():
                guest.drop_translations(start, end - start)
                cost += guest.shoot_down()
            if host.cpu.geometry.style != "intel" and not first:
                # Without page-modification logging each first write is a fault of its own.
                guest.owe(int(dirty.sum()) * host.costs.slat_fault_4k_ns)
            yield from self._thread.work(cost)
        self._thread.rest()
        return np.unique(np.concatenate(found))

    def _split(self, pages: Pages) -> int:
        """Have huge pages mapped by 4 KiB; ns."""
        guest, cost = self._guest, 0
        for block in np.unique(pages & ~np.uint64(BLOCK - 1)).tolist():
            guest.note_backed()
            if guest.backing.split_at(block):
                guest.host_splits += 1
                cost += self._host.costs.thp_split_ns
        guest.note_backed()
        return cost

    def _send(self, pages: Pages) -> Process:
        """One round; what the guest has given back meanwhile is not sent."""
        guest, thread, link = self._guest, self._thread, self._host.migration
        for first in range(0, len(pages), CHUNK_PAGES):
            size = 0
            for start, end in _runs(pages[first : first + CHUNK_PAGES]):
                swapped = guest.backing.swapped(start, end)
                size += guest.backing.backed_bytes(start, end) + len(swapped) * PAGE
                for page in swapped:
                    while guest.backing.slot_of(page) is not None:
                        yield from thread.vcpu.enter_core()
                        yield from thread.vcpu.swap_in(page)
            if size:
                at = link.send(size)
                yield from thread.copy(size)
                yield from thread.through(size, at)
            self._stop_in_time()
        thread.rest()


def _runs(pages: Pages) -> list[tuple[int, int]]:
    """Pages in order as ranges: (start, end) of those that lie in a row."""
    breaks = np.flatnonzero(np.diff(pages) != PAGE) + 1
    starts = pages[np.concatenate(([0], breaks))]
    ends = pages[np.concatenate((breaks - 1, [len(pages) - 1]))] + np.uint64(PAGE)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
