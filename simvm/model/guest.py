"""A guest: its memory, processes and named regions, and what the host does to it.

A virtual machine has guest-physical memory of its own, guest page tables in it and a SLAT
that backs it; under shadow paging the VMM's page table backs it, and the processor walks
tables that the host derives; a container has one page table that the host fills. What the
guest's kernel needs (boot footprint, struct pages, page tables) lies in guest memory and is
backed like the rest.

Left out: guest-physical holes below 4 GiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
import simpy

from simvm import _core
from simvm.hardware.geometry import BLOCK, ORDER_BYTES, PAGE, TableFormat
from simvm.model.channels import CHANNELS
from simvm.model.content import PageContent
from simvm.model.guest_memory import GuestMemory
from simvm.model.ledger import claim_pages
from simvm.model.lifecycle import Life
from simvm.model.memory_control import MemoryControl
from simvm.model.mmus import CoreMmu, Flush, GpaRange, VaRange
from simvm.model.pressure import Pressure
from simvm.model.queues import Channels, Process
from simvm.model.refaults import RefaultDistances
from simvm.model.spaces import NamedRegion as NamedRegion
from simvm.model.spaces import Space as Space
from simvm.model.spaces import entries_of, new_table
from simvm.model.vcpu import GuestKilled, VirtualCpu, Work
from simvm.scenario import NoChannelSettings

if TYPE_CHECKING:
    from simvm.model.cgroups import Cgroup
    from simvm.model.faults import FaultPath
    from simvm.model.host import Host
    from simvm.model.returns import GivenBack
    from simvm.scenario import GuestClass, Scenario

PEAKS = (
    "backed_bytes",
    "touched_bytes",
    "tables_bytes",
    "deposited_tables_bytes",
    "swapped_bytes",
)
FIRST_ADDRESS = 1 << 40   # of a process's regions, if the table reaches there
LOWER_ZONE = 3 << 30      # RAM below 4 GiB, beside what devices take: zone DMA32 of x86-64
GUARD = 1 << 30           # between regions, so that none shares a 1 GiB page


class Guest:
    """One virtual machine or container."""

    # Made as its life begins.
    backing: _core.Backing
    slat: _core.PageTable
    kernel_space: _core.AddressSpace
    cgroup: Cgroup

    def __init__(
        self, host: Host, scenario: Scenario, class_: str, index: int, owner: int, path: FaultPath
    ) -> None:
        config = scenario.guests[class_]
        self.host = host
        self.scenario = scenario
        self.config: GuestClass = config
        self.class_ = class_
        self.index = index
        self.owner = owner
        self.is_vm = config.is_vm
        self.nested = config.virtualization == "nested"
        self.shadow: _core.Shadow | None = None
        if config.virtualization == "shadow":
            self.shadow = _core.Shadow(
                config.memory_max, host.costs.page_table_write_ns, host.costs.shadow_fill_ns
            )
        # A quarter of what three levels reach: the lower half of the addresses is the program's.
        self.first_address = min(FIRST_ADDRESS, 1 << self.table_format.address_bits - 2)
        self.fault_path = path
        channel = config.channel if self.is_vm else NoChannelSettings()
        self.channel = CHANNELS[channel.kind](channel)
        self.mmu_lock = Channels()
        self.control = MemoryControl(self)
        self.invalidations = 0
        self.fault_retries = 0
        self.shootdowns = 0
        self.hint_calls = 0
        self.pages_moved = 0
        self.kernel_thread_ns = 0
        self.host_splits = 0
        self.throttled_ns = 0
        self.damon_probes = 0
        self.damon_hits = 0
        self.works: list[Work] = []     # that are under way
        self.swap_outs = 0
        self.swap_ins = 0
        self.refaults = 0
        self.refault_distances = RefaultDistances()
        self.collapses = 0
        self.direct_compaction_ns = 0
        self.requests = 0
        self.measured_elapsed_ns = 0
        self.measured_ideal_ns = 0
        self.oom_kills = 0
        self.content = PageContent(config.content, scenario.scenario.seed, class_, self.name)
        self.merges = 0
        self.unmerges = 0
        self.given_back: GivenBack | None = None    # since the last free
        self.reads: dict[int, simpy.Event] = {}
        self.processes: dict[str, Space] = {}
        self._parts: list[int] = []     # of a container's table: whose they are, by ASID
        self.regions: dict[tuple[str, str], NamedRegion] = {}
        self.activities: list[simpy.Process] = []
        self.stream_digest = hashlib.sha256()
        self.failure: str | None = None
        self.alive = False
        self.life = Life(self)
        self.vmm_pages: list[int] = []
        self.reverse_map_pages: list[int] = []
        self._trapped_ns = 0
        self.kernel_bytes = 0       # boot footprint and struct pages
        self.kernel_start = 0
        self.booted_bytes = 0       # the part of them that has been written
        self.noted = dict.fromkeys(PEAKS, 0)
        self.peaks = dict.fromkeys(PEAKS, 0)
        self.pressure = Pressure(host.env, host.settings.cores)     # of its vCPUs on the host
        self.own_pressure = Pressure(host.env, config.vcpus)        # what its kernel sees
        memory = config.memory_max if self.is_vm else 0
        self.lower_zone_bytes = min(memory, LOWER_ZONE)
        self.memory = _core.BlockAllocator(memory, lower=LOWER_ZONE)
        self.mm = GuestMemory(self)
        self.mmus: dict[int, CoreMmu] = {}      # by host core: where it may have entries
        self.vcpus = [VirtualCpu(self, i) for i in range(config.vcpus)]

    @property
    def all_vcpus(self) -> list[VirtualCpu]:
        """The vCPUs, and what its kernel's own threads run on."""
        return self.vcpus + [thread.vcpu for thread in self.mm.threads]

    @property
    def name(self) -> str:
        return f"{self.class_}.{self.index}"

    # --- processes and regions ----------------------------------------------------------

    def process(self, name: str) -> Space:
        """The address space of a process, made when first asked for."""
        if name not in self.processes:
            asid = len(self.processes) + 1
            if self.is_vm:
                table = new_table(self.table_format, self.memory)
                walked, end = self._walked(asid, table), 1 << self.table_format.address_bits
                self.processes[name] = Space(walked, table, self.first_address, end)
                self.mm.new_process(table)
            else:
                # Containers share one table; each process has parts of its own in it.
                core = _core.AddressSpace(asid, self.slat, None, self.owner)
                self.processes[name] = Space(core, None, *self._take_parts(asid, 1))
        return self.processes[name]

    def _take_parts(self, asid: int, size: int) -> tuple[int, int]:
        """Addresses for `size` bytes more of a container's process: whole parts of its table."""
        part = self.first_address
        first = (len(self._parts) + 1) * part
        self._parts += [asid] * -(-size // part)
        end = (len(self._parts) + 1) * part
        if end > 1 << self.table_format.address_bits:
            self.fail("no room for its regions in its page table")
            raise GuestKilled
        return first, end

    @property
    def table_format(self) -> TableFormat:
        """Of a guest's tables, or of a container's."""
        levels, contiguous = self.config.table_levels, self.host.settings.contiguous
        return self.host.cpu.guest_format(levels, contiguous=contiguous)

    def _walked(self, asid: int, table: _core.PageTable) -> _core.AddressSpace:
        """What the processor walks for a process of a virtual machine."""
        if self.shadow is None:
            return _core.AddressSpace(asid, self.slat, table, self.owner)
        # Beside each shadow page KVM has one that names the guest page of each entry.
        shadow = new_table(self.table_format, self.host.memory.frames, mirrored=True)
        self.shadow.add(table, shadow)
        return _core.AddressSpace(asid, shadow, None, self.owner)

    def allocate(
        self, process: str, name: str, size: int, hugetlb: int | None = None, room: int = 0
    ) -> NamedRegion:
        """Make a named region of `size` bytes, mapped in whole pages. Nothing is touched.

        `hugetlb`: in pages of so many bytes from the guest's pool; `room`: addresses to keep.
        """
        space = self.process(process)
        order = ORDER_BYTES.index(hugetlb or self.config.page_size) if self.is_vm else 0
        page = ORDER_BYTES[order]
        if not self.is_vm and self.host.settings.backing == "hugetlb":
            page = self.host.settings.page_size
        whole = -(-size // page) * page
        zeroing = self.is_vm and self.config.zeroing == "guest"
        room = max(whole, room)
        if not self.is_vm and space.next_address + room > space.end:
            space.move(*self._take_parts(space.core.asid, room))
        core = _core.Region(
            space.next_address, whole, order, zeroing, space.core.asid, hugetlb is not None
        )
        space.next_address += -(-room // GUARD) * GUARD + GUARD
        region = self.regions[process, name] = NamedRegion(process, name, size, core)
        return region

    def free(self, region: NamedRegion, size: int | Literal["all"]) -> list[tuple[int, int]]:
        """Free a region or its tail: the guest-physical extents that are now free."""
        size = region.core.size if size == "all" else size
        self.note_backed()
        space = self.processes[region.process]
        if space.table is None:
            return [(region.core.base + region.core.size - size, size)]
        entries = entries_of(space.table)
        extents = region.core.unmap_tail(space.table, self.memory, size, self.mm.kernel)
        self.mm.freed()
        if self.shadow is not None:
            self.shadow.note_writes(entries - entries_of(space.table))
            for start, length in extents:
                self.shadow.drop(start, length)
        self.flush_process(space.core.asid, 0, 1 << 57)
        self._drop_if_empty(region)
        return extents

    def extents(self, region: NamedRegion) -> list[tuple[int, int]]:
        """Guest-physical extents of what a virtual machine's region has mapped, in order."""
        table = self.processes[region.process].table
        assert table is not None
        return region.core.extents(table)

    def forget(self, region: NamedRegion, size: int) -> None:
        """A container's region has lost its tail."""
        region.core.forget_tail(size)
        self._drop_if_empty(region)

    def _drop_if_empty(self, region: NamedRegion) -> None:
        if region.core.size == 0:
            del self.regions[region.process, region.name]
            if not any(process == region.process for process, _ in self.regions):
                self.processes[region.process].reuse()

    def fail(self, reason: str) -> None:
        """The guest cannot go on, and not for lack of the host's memory."""
        self.kill(reason)

    def kill(self, reason: str | None, oom: bool = False) -> None:
        """End the guest: give everything back. Its own process must stop by itself."""
        self.failure = reason
        self.oom_kills += oom
        self.life.end()

    # --- what the host does to it -------------------------------------------------------

    def invalidate(self, address: int, size: int) -> None:
        """A mapping of [address, address + size) changed: every core drops what it must."""
        self.invalidations += 1
        if self.nested and self.host.settings.invalidation == "guest":
            self._queue_flush(None)
        else:
            self.drop_translations(address, size)

    def drop_translations(self, address: int, size: int) -> None:
        """Let every core drop what it knows of a range, and no more."""
        if not self.is_vm:
            asid = self._parts[address // self.first_address - 1]
            self._queue_flush(VaRange(asid, address, size))
        elif self.nested and self.host.settings.exact_flushes:
            self._queue_flush(GpaRange(address, size))
        else:
            self._queue_flush(None)

    def invalidate_all(self) -> None:
        """Every mapping may have changed."""
        if self.is_vm:
            self.invalidate(0, self.memory.size)
        for part in range(1, len(self._parts) + 1):
            self.invalidate(part * self.first_address, self.first_address)

    def flush_process(self, asid: int, address: int, size: int) -> None:
        """The guest's own tables changed there: what it must drop of a process."""
        self._queue_flush(VaRange(asid, address, size))

    def _queue_flush(self, flush: Flush) -> None:
        for mmu in self.mmus.values():
            mmu.queue(self.owner, flush)

    def mergeable_ranges(self) -> list[tuple[int, int]]:
        """Where same-page merging may look: (start, end) in the space that backs the guest."""
        if self.is_vm:
            return self.control.vmas.mergeable()
        return [(0, 1 << 52)] if self.config.mergeable else []

    def owe(self, ns: int) -> None:
        """Let a vCPU that runs pay for a fault that it has taken, when it next enters the guest."""
        running = [vcpu for vcpu in self.vcpus if vcpu.running]
        (running or self.vcpus)[0].owed_ns += ns

    def shoot_down(self, times: int = 1) -> int:
        """Interrupt the running vCPUs and wait for them; ns of the one who asks."""
        costs = self.host.costs
        running = [vcpu for vcpu in self.vcpus if vcpu.running]
        for vcpu in running:
            vcpu.kick(times)
        self.shootdowns += times
        cost = costs.shootdown_base_ns + costs.shootdown_per_receiver_ns * len(running)
        self.mmu_lock.reserve(self.host.env.now, times * costs.mmu_lock_hold_ns)
        return times * cost

    def zap(self, start: int, length: int) -> int:
        """Unmap and free a range of the backing; what that costs its caller, in ns."""
        return self.zap_all([(start, length)], length)

    def zap_all(self, extents: Iterable[tuple[int, int]], step: int) -> int:
        """Unmap and free (start, length) ranges in calls of `step` bytes; their cost in ns.

        A call that unmaps something, or splits a leaf, has a shootdown of its own.
        """
        cost = shootdowns = 0
        before = self.backed_bytes
        self.note_backed()
        for start, length in extents:
            spent, changes = self.drop(start, length)
            cost += spent
            if changes:
                shootdowns += max(1, min(changes, length // step))
        self.note_backed()
        cost += self.shoot_down(shootdowns) if shootdowns else 0
        if self.given_back is not None and self.backed_bytes < before:
            self.given_back.returned(self.host.env.now + cost, before - self.backed_bytes)
        return cost

    def drop(self, start: int, length: int) -> tuple[int, int]:
        """Unmap and free a range: ns, and how many changes a shootdown must tell of, if any.

        What the host holds and the processor cannot find goes without one.
        """
        costs = self.host.costs
        held = self.slat.held_pages
        leaves, splits, slots = self.backing.zap(start, length)
        if self.is_vm:
            self.backing.forget_stale(self.memory, start, length)
        held -= self.slat.held_pages
        self.host.swap.free_slots([int(slot) for slot in slots])
        self.host_splits += splits
        cost = leaves[0] * costs.zap_4k_ns + (leaves[1] + leaves[2]) * costs.zap_2m_ns
        cost += splits * costs.thp_split_ns
        if splits == 0 and sum(n << 9 * order for order, n in enumerate(leaves)) <= held:
            return cost, 0
        self.invalidate(start, length)
        return cost, max(1, sum(leaves))

    def vacate(self, start: int, size: int) -> tuple[list[int], tuple[list[int], list[int]], int]:
        """Take blocks of the guest's memory whole, moving pages out of the way.

        The addresses of those that could be taken; where pages of 4 KiB and 2 MiB have gone;
        and what moving them takes, in ns, without the faults where they are written.
        """
        done, moved = self.memory.vacate(start, size, self._guest_tables(), self.mm.kernel)
        small, large = map(len, moved)
        if not small + large:
            return done, moved, 0
        self.pages_moved += small + large * (BLOCK // PAGE)
        if self.shadow is not None:
            self.shadow.note_writes(small + large)
            self.shadow.drop(start, size)
        for space in self.processes.values():
            self.flush_process(space.core.asid, 0, 1 << 57)
        copies = (small * PAGE + large * BLOCK) * 1_000_000_000 // self.host.cpu.zeroing_bytes_per_s
        return done, moved, copies + (small + large) * self.host.costs.page_migration_ns

    def trap_ns(self) -> int:
        """Shadow paging: what exits that nobody has paid for yet take, in ns."""
        if self.shadow is None:
            return 0
        costs = self.host.costs
        total = self.shadow.writes * costs.page_table_write_ns
        total += (self.shadow.fills + self.shadow.reflected) * costs.shadow_fill_ns
        new, self._trapped_ns = total - self._trapped_ns, total
        return new

    def read_back(self, address: int, slot: int, ns: int) -> Process:
        """Read a page from the swap device, which takes `ns`; others that want it wait."""
        host = self.host
        frame = host.memory.frames.allocate_4k()
        done = self.reads[slot] = host.env.event()
        host.swap.reading_bytes += PAGE
        arrived = False
        try:
            yield host.env.timeout(ns)
            # The guest may have given it back meanwhile.
            arrived = self.alive and self.backing.slot_of(address) == slot
        finally:
            host.swap.reading_bytes -= PAGE
            del self.reads[slot]
            done.succeed()
            if not arrived:
                host.memory.frames.free_4k(frame)
        if arrived:
            self.swapped_in(address, slot, frame)

    def swapped_in(self, address: int, slot: int, frame: int) -> None:
        """Map a page that came back, on the list where the policy wants it."""
        which, refault = self.host.reclaimer.refault_list(self, slot)
        self.refault_distances.add(self.host.swap.refault_distance(slot))
        self.backing.swap_in(address, frame, which)
        self.host.swap.free_slots([slot])
        self.swap_ins += 1
        self.refaults += refault
        self.note_backed()

    # --- what it holds ------------------------------------------------------------------

    def note_backed(self) -> None:
        """Keep peaks: they are of every moment, not only of samples.

        Called after anything that made the guest hold more, and before it holds less.
        """
        now = self.holdings()
        if now != self.noted:
            for name, size in now.items():
                change = size - self.noted[name]
                if change:
                    self.host.note(self.class_, name, change)
                    self.peaks[name] = max(self.peaks[name], size)
            self.noted = now

    def holdings(self) -> dict[str, int]:
        """The gauges whose peaks are kept, in bytes."""
        if not self.alive:
            return dict.fromkeys(PEAKS, 0)
        # Guest kernels write their own tables, so these are touched too.
        # Loops, since this is done after every train of faults.
        tables = deposits = regions = 0
        for table in self._guest_tables():
            tables += table.table_pages * PAGE
            deposits += table.deposited_pages * PAGE
        for region in self.regions.values():
            regions += region.touched_bytes
        slat = self.slat
        return {
            "backed_bytes": self.backed_bytes,
            "touched_bytes": regions + self.booted_bytes + self.mm.held_bytes + tables + deposits,
            "tables_bytes": (
                self.slat_table_bytes + self.shadow_table_bytes + self.host_table_bytes + tables
            ),
            "deposited_tables_bytes": slat.deposited_pages * PAGE + deposits,
            "swapped_bytes": slat.swapped_pages * PAGE,
        }

    @property
    def backed_by_order(self) -> tuple[int, int, int]:
        """Bytes mapped by 4 KiB, 2 MiB and 1 GiB leaves, without merged pages and CXL."""
        if not self.alive:
            return 0, 0, 0
        leaves = self.slat.leaves
        own = leaves[0] - self.backing.merged_pages - self.backing.tiered_pages
        return own * ORDER_BYTES[0], leaves[1] * ORDER_BYTES[1], leaves[2] * ORDER_BYTES[2]

    @property
    def backed_bytes(self) -> int:
        return sum(self.backed_by_order)

    @property
    def merged_bytes(self) -> int:
        """Memory mapped to merged frames, which nobody owns."""
        return self.backing.merged_pages * PAGE if self.alive else 0

    @property
    def tier_bytes(self) -> int:
        """Memory mapped where it lies on CXL."""
        return self.backing.tiered_pages * PAGE if self.alive else 0

    @property
    def held_bytes(self) -> int:
        """The part of `backed_bytes` that the processor does not find."""
        return self.slat.held_pages * PAGE if self.alive else 0

    @property
    def swapped_bytes(self) -> int:
        return self.slat.swapped_pages * PAGE if self.alive else 0

    @property
    def slat_table_bytes(self) -> int:
        """The SLAT. A container has none, nor has shadow paging: the page table is the host's."""
        return self.slat.table_pages * PAGE if self.alive and self.nested else 0

    @property
    def shadow_table_bytes(self) -> int:
        """Shadow tables and the reverse map."""
        if not self.alive or self.shadow is None:
            return 0
        return (self.shadow.table_pages + len(self.reverse_map_pages)) * PAGE

    @property
    def reverse_map_bytes(self) -> int:
        """What KVM keeps for each guest page under shadow paging, in whole pages.

        A word for a guest page of each size (the leaves that map it), and two bytes for 4 KiB
        (whether writes to it trap): arch/x86/kvm, `memslot_rmap_alloc`, `gfn_write_track`.
        """
        if self.shadow is None:
            return 0
        memory = self.memory.size
        words = sum(-(-memory // size) for size in ORDER_BYTES[:3])
        return -(-(8 * words + 2 * (memory // PAGE)) // PAGE) * PAGE

    @property
    def host_table_bytes(self) -> int:
        """Page tables of the VMM process, or of a container."""
        if not self.alive:
            return 0
        pages = self.slat.mirror_pages if self.nested else self.slat.table_pages
        return pages * PAGE

    @property
    def guest_table_bytes(self) -> int:
        """Page tables inside the guest."""
        return sum(table.table_pages for table in self._guest_tables()) * PAGE

    def _guest_tables(self) -> list[_core.PageTable]:
        if not self.alive:
            return []
        return [space.table for space in self.processes.values() if space.table is not None]

    def mapped_ranges(self) -> list[tuple[int, int]]:
        """From where to where its backing may map memory."""
        if self.is_vm:
            return [(0, self.config.memory)]
        cores = (region.core for region in self.regions.values())
        return sorted((core.base, core.base + core.size) for core in cores)

    @property
    def aligned_huge_bytes(self) -> int:
        """Mapped by 2 MiB or more on both sides; in a container, on the one side there is."""
        if not self.is_vm:
            return sum(self.backed_by_order[1:])
        return sum(self.backing.huge_bytes(table) for table in self._guest_tables())

    @property
    def stranded_bytes(self) -> int:
        """Backed by the host but free in the guest."""
        return self.backing.stranded_bytes(self.memory) if self.alive and self.is_vm else 0

    def note_stream(self, label: str, digest: int) -> None:
        """Add the digest of a finished stream to the guest's."""
        self.stream_digest.update(f"{label}={digest:016x};".encode())

    def claim(self, claimed: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> bool:
        """Mark every host page that this guest owns; False when one has an owner already."""
        alone = self.backing.claim(claimed)
        return claim_pages(claimed, self.vmm_pages + self.reverse_map_pages) and alone
