"""The host: RAM and its watermarks, cores, locks, guests, and the swap device.

Memory is taken in 2 MiB blocks that can be broken into 4 KiB and made whole again
(`simvm/core/blocks.pxd`); what the host itself needs (struct pages, a fixed overhead)
is set aside first.

Left out: NUMA nodes and zones (one node, one zone), the host's own page cache.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from simvm import _core
from simvm.hardware import Costs, Cpu
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.compaction import Compactor
from simvm.model.fragmentation import scatter
from simvm.model.khugepaged import HugePageDaemon
from simvm.model.ksm import Ksmd
from simvm.model.migration import MigrationLink
from simvm.model.mmus import CoreMmu
from simvm.model.pressure import Pressure
from simvm.model.queues import Channels, Cores, Process
from simvm.model.reclaim import Reclaimer
from simvm.model.swap import make_device
from simvm.model.watermarks import Watermarks

if TYPE_CHECKING:
    from simvm.model.clock import Clock
    from simvm.model.guest import Guest
    from simvm.scenario import Scenario

STRUCT_PAGE_BYTES = 64  # per 4 KiB page: Linux, Documentation/mm/vmemmap_dedup.rst


class Host:
    """Everything that guests share.

    `sums[class][gauge]` is over the guests of a class, `peaks` its highest value; the class
    "" is all guests. `fault_ns[order]` is the service of a SLAT fault of 4 KiB, 2 MiB or
    1 GiB, the zeroing of the new memory included; `container_fault_ns` the same without
    leaving a guest.
    """

    def __init__(self, env: Clock, scenario: Scenario, cpu: Cpu, costs: Costs) -> None:
        host = scenario.host
        self.env = env
        self.cpu = cpu
        self.costs = costs
        self.settings = host
        self.memory = _core.HostMemory(host.memory, host.tier_bytes)
        self.cores = Cores(env, host.cores)
        self.pressure = Pressure(env, host.cores)
        self._mmus: dict[int, CoreMmu] = {}
        self.tagged = host.tagged_tlb and cpu.tagging != "none"
        self.zone_lock = Channels()
        self.memmap_bytes = (host.memory // PAGE) * STRUCT_PAGE_BYTES
        before = self.memory.free_bytes
        self.memory.frames.reserve_low(self.memmap_bytes + host.kernel_reserved)
        self.reserved_bytes = before - self.memory.free_bytes - self.memmap_bytes
        self.pool_bytes = 0
        if host.hugetlb is not None:
            self.pool_bytes = host.hugetlb.size
            order = 1 if host.hugetlb.page_size == BLOCK else 2
            self.memory.fill_pool(order, host.hugetlb.size)
        self.scattered_bytes = 0    # the host's own pages, among what is free
        if host.fragmentation is not None:
            seed = scenario.scenario.seed
            self.scattered_bytes = scatter(self.memory, host.fragmentation, seed)
        marks = Watermarks.of(
            host.memory, host.reclaim.min_free, host.reclaim.watermark_scale_factor
        )
        self.min_bytes, self.low_bytes = marks.min_bytes, marks.low_bytes
        self.high_bytes = marks.high_bytes
        self.set_watermarks(kswapd_awake=False)
        self.swap = make_device(
            env, host.swap, costs, frames=self.memory.frames, seed=scenario.scenario.seed,
            label="host/swap", worker=self._swap_worker,
            tier=self.memory.tier if host.tier_bytes else None,
        )
        self.swap_worker_ns = 0
        self.guests: dict[int, Guest] = {}
        self.sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.peaks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.oom_kills = 0
        zeroing = cpu.zeroing_bytes_per_s
        fixed = (costs.slat_fault_4k_ns, costs.slat_fault_2m_ns, costs.slat_fault_1g_ns)
        zero = tuple((PAGE << (9 * o)) * 1_000_000_000 // zeroing for o in range(3))
        self.fault_ns = tuple(f + z for f, z in zip(fixed, zero, strict=True))
        self.container_fault_ns = tuple(costs.host_fault_ns + z for z in zero)
        self.reclaimer = Reclaimer(self)
        self.ksm = Ksmd(self, host.ksm) if host.ksm is not None else None
        self.migration = MigrationLink(env, host.migration)
        self.compactor = Compactor(self)
        self.khugepaged = None
        if host.khugepaged is not None:
            self.khugepaged = HugePageDaemon(self, host.khugepaged)

    def _swap_worker(self, ns: int) -> Process:
        """CPU time of a thread of the swap device's, on a core of the host."""
        core = yield from self.cores.acquire()
        yield self.env.timeout(ns)
        self.cores.release(core)
        self.swap_worker_ns += ns

    def mmu_of(self, core: int) -> CoreMmu:
        """The MMU of a core, made when the core is first used."""
        if core not in self._mmus:
            self._mmus[core] = CoreMmu(self.cpu, self.settings, self.tagged)
        return self._mmus[core]

    def set_watermarks(self, kswapd_awake: bool) -> None:
        """What the core must leave free, and whether it has kswapd to wake."""
        self.memory.set_floors(
            self.min_bytes, self.low_bytes, 0 if kswapd_awake else self.low_bytes
        )

    @property
    def free_bytes(self) -> int:
        """Free frames, without the hugetlb pool."""
        return self.memory.free_bytes

    def note(self, class_: str, gauge: str, change: int) -> None:
        """Keep the sums over guests, and their peaks, as a guest's part of them changes."""
        for of in ("", class_):
            sums, peaks = self.sums[of], self.peaks[of]
            sums[gauge] += change
            if sums[gauge] > peaks[gauge]:
                peaks[gauge] = sums[gauge]

    def largest_guest(self) -> Guest | None:
        """Whom the OOM killer takes: the guest with the most memory, resident and swapped."""
        return max(
            self.guests.values(),
            key=lambda guest: (guest.backed_bytes + guest.swapped_bytes, -guest.owner),
            default=None,
        )
