"""A virtual CPU on a host core: slices of accesses, and what interrupts them.

A slice calls the core once: it runs accesses until the quantum is used up or something
has to wait. The clock then catches up, part by part, and each part is charged to its
cause. So a vCPU runs ahead of the clock by at most one quantum, and what the host takes
away becomes visible when it next enters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import simpy

from simvm import _core
from simvm.hardware.geometry import PAGE
from simvm.model.accounts import Account
from simvm.model.pressure import Stalls
from simvm.model.queues import Process
from simvm.model.reclaim import MARGIN
from simvm.model.sampled import Sampling
from simvm.model.swap.cxl import InPlace

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.spaces import NamedRegion, Space
    from simvm.scenario import Phase

IDEAL_PARTS = ("compute_ns", "think_ns")


class GuestKilled(Exception):
    """Raised in a guest's own process when the guest has been killed under it."""


class Work:
    """What a vCPU is running: a phase's accesses in one region, from one stream."""

    def __init__(
        self,
        phase: Phase,
        space: Space,
        region: NamedRegion,
        stream: _core.Stream,
        chunks: Iterator[np.ndarray[tuple[int], np.dtype[np.uint64]]],
    ) -> None:
        self.phase = phase
        self.space = space
        self.region = region
        self.stream = stream
        self.compute_ns = 0
        self.translation_ns = 0
        self.think_ns = 0
        self.chunks = chunks   # of a recorded trace
        self.in_place: InPlace | None = None    # where there is memory beside RAM
        self.sampling: Sampling | None = None   # where not every access is run

    def advance(self, core: _core.Vcpu, khz: int) -> tuple[int, int]:
        """Compute and translation of the accesses since the last call, in ns.

        By differences of totals, so that no part of a ns is lost from slice to slice.
        """
        compute = core.done * self.phase.cycles_per_access * 1_000_000 // khz
        translation = core.exposed_cycles * 1_000_000 // khz
        new = compute - self.compute_ns, translation - self.translation_ns
        self.compute_ns, self.translation_ns = compute, translation
        return new


class VirtualCpu:
    """One vCPU of a guest: its account, and the host core it runs on, if any.

    It translates by the MMU of that core, and counts for itself.
    """

    def __init__(self, guest: Guest, index: int) -> None:
        host = guest.host
        self.guest = guest
        self.index = index
        self.account = Account()
        self._mmu = host.mmu_of(0)      # of the core it was on last
        self.core = _core.Vcpu(self._mmu.mmu)
        self.stalls = Stalls(guest.pressure, host.pressure)     # as a task of the host
        self.own_stalls = Stalls(guest.own_pressure)            # of the task that it runs
        self.direct_reclaim_ns = 0
        self.measuring = False      # whether the phase counts in the headline slowdown
        self._env = host.env
        self.khz = host.cpu.frequency_khz
        self._warmup = guest.scenario.scenario.warmup
        self._on: int | None = None     # host core
        self._last: int | None = None   # the host core before
        self._core_since = 0
        self._kicks = 0
        self.interruptions = 0      # by invalidations, so far
        self.translation_error_ns = 0   # of what was sampled: standard errors, added up
        self.sampled_turns = self.window_turns = 0     # how often the core was asked for either
        self.window_accesses = 0
        self.owed_ns = 0            # of faults that the host found out late
        self._zeroing = host.cpu.zeroing_bytes_per_s
        self._untagged = guest.is_vm and not host.tagged
        self._exited = False
        self.core.set_untagged(self._untagged)
        self._fault_ns = host.fault_ns if guest.is_vm else host.container_fault_ns
        self._served = 0
        self._guest_faults = 0
        self._zeroed_bytes = 0
        self._slat_faults = (0, 0, 0)
        self._remapped = 0
        self.core.set_costs(
            self._fault_ns, host.costs.guest_fault_ns, (1 << 20) * 1_000_000_000 // self._zeroing,
            host.costs.slat_fault_4k_ns,
        )

    # --- time ---------------------------------------------------------------------------

    def charge(self, part: str, ns: int) -> None:
        """Charge time that has passed on the clock."""
        self.account.charge(part, ns)
        if self.measuring and self._env.now > self._warmup:
            self.guest.measured_elapsed_ns += ns
            if part in IDEAL_PARTS:
                self.guest.measured_ideal_ns += ns

    def spend(self, *charges: tuple[str, int]) -> Process:
        """Let time pass and charge it."""
        total = sum(ns for _, ns in charges)
        if total:
            yield self._env.timeout(total)
        for part, ns in charges:
            self.charge(part, ns)

    def _charge_slice(self, compute: int, translation: int) -> None:
        """`charge` what every slice takes: most of them take no more than that."""
        account, guest = self.account, self.guest
        account.compute_ns += compute
        account.translation_ns += translation
        if self.measuring and self._env.now > self._warmup:
            guest.measured_elapsed_ns += compute + translation
            guest.measured_ideal_ns += compute

    def enter_core(self) -> Process:
        """Get a host core, or pass it on when the time slice is over and somebody waits."""
        cores, costs = self.guest.host.cores, self.guest.host.costs
        if self._on is not None:
            if not cores.contended or self._env.now - self._core_since < costs.timeslice_ns:
                return
            self.leave_core()
        self.stalls.run()
        self.own_stalls.run()
        started = self._env.now
        self._on = yield from cores.acquire(self)
        self._attach(self._on)
        if self._env.now > started:
            yield self._env.timeout(costs.context_switch_ns)
        self._core_since = self._env.now
        self.charge("core_wait_ns", self._env.now - started)

    def leave_core(self) -> None:
        """Give the host core back, if there is one."""
        self.stalls.rest()
        if self._on is not None:
            core, self._on = self._on, None
            self.guest.host.cores.release(core)

    def rest(self) -> None:
        """Nothing to do: off the core, and idle to the guest's own kernel too."""
        self.leave_core()
        self.own_stalls.rest()

    def _attach(self, core: int) -> None:
        """Translate by the MMU of a core from now on.

        A vCPU of a VM that comes from another core drops what its guest has on this one: KVM,
        vmx_vcpu_load_vmcs in arch/x86/kvm/vmx/vmx.c. Linux lets processes find theirs again.
        """
        guest = self.guest
        self.exit_to_host()
        self._mmu = guest.host.mmu_of(core)
        self._mmu.enter(guest.owner)
        if core != self._last:
            self._last = core
            guest.mmus[core] = self._mmu
            self.core.attach(self._mmu.mmu)
            if guest.is_vm:
                self._mmu.queue(guest.owner, None)

    @property
    def running(self) -> bool:
        """Whether the vCPU is on a host core, so that an invalidation must interrupt it."""
        return self._on is not None

    # --- invalidation -------------------------------------------------------------------

    def kick(self, times: int = 1) -> None:
        """Invalidations from the host interrupt the vCPU where it runs."""
        if self._on is not None:
            self._kicks += times
            self.interruptions += 1

    def exit_to_host(self) -> None:
        """The vCPU leaves the guest. Without tags that drops all translations of its core."""
        self._exited = self._untagged

    def catch_up(self) -> Process:
        """Pay for the interruptions that told of invalidations; apply these.

        In that order: one that comes while the vCPU pays must not wait for the next entry.
        """
        if self._kicks:
            kicks, self._kicks = self._kicks, 0
            self.exit_to_host()
            yield from self.spend(
                ("shootdown_ns", kicks * self.guest.host.costs.shootdown_receive_ns)
            )
        if self.owed_ns:
            owed, self.owed_ns = self.owed_ns, 0
            yield from self.spend(("fault_service_ns", owed))
        if self._exited:
            self._exited = False
            self._mmu.flush_all()
        self._mmu.catch_up(self.guest.owner)

    # --- running ------------------------------------------------------------------------

    def run(self, work: Work, accesses: int) -> Process:
        """Do `accesses` more of the work. GuestKilled when the guest dies meanwhile."""
        guest, host, core = self.guest, self.guest.host, self.core
        scenario, path = guest.scenario.scenario, guest.fault_path
        cores, memory, low, timeout = host.cores, host.memory, host.low_bytes, self._env.timeout
        space, region, backing = work.space.core, work.region.core, guest.backing
        train, service, think = scenario.train, scenario.train_service, work.phase.think_time
        sampling = work.sampling
        quantum = max(1, scenario.quantum * self.khz // 1_000_000)
        target, run_slice = core.done + accesses, guest.mm.core_run(self)
        # A slice of hits takes microseconds: what has nothing to do is not called.
        while (left := target - core.done) > 0:
            if self._on is None or cores.contended:
                yield from self.enter_core()
            if self._kicks or self._exited or self._mmu.behind(guest.owner):
                yield from self.catch_up()
            if memory.free_bytes < low:
                host.reclaimer.check_watermarks()
            if sampling is not None:
                reason = sampling.step(self, work, left, path.train(train))
            else:
                reason = run_slice(
                    space, backing, guest.memory, region, work.stream,
                    left, quantum, path.train(train), service,
                )  # fmt: skip
            compute, translation = work.advance(core, self.khz)
            if core.served == self._served and guest.shadow is None:
                if compute or translation:
                    yield timeout(compute + translation)
                self._charge_slice(compute, translation)
            else:
                yield from self._settle(compute, translation)
            if think:
                yield from self._think(work)
            if work.in_place is not None:
                yield from self._pay_for_tier(work, work.in_place)
            if reason == _core.RUN_STREAM_END:
                work.stream.feed(next(work.chunks))
            elif reason >= _core.RUN_SWAPPED:
                yield from self.resolve(reason, work)

    def populate(self, pages: list[int], size: int) -> Process:
        """Let the VMM take memory of its own, as it starts; 4 KiB `pages` that stay."""
        host = self.guest.host
        while len(pages) < size // PAGE:
            yield from self.enter_core()
            host.reclaimer.check_watermarks()
            room = host.free_bytes - host.min_bytes
            if room < MARGIN:
                yield from self.reclaim()
                continue
            chunk = min(64, room // PAGE, size // PAGE - len(pages))
            pages += [host.memory.frames.allocate_4k(False) for _ in range(chunk)]
            self.guest.note_backed()
            yield from self.spend(("fault_service_ns", chunk * host.container_fault_ns[0]))

    def boot(self, start: int, size: int) -> Process:
        """The guest's kernel writes what it needs for itself."""
        guest = self.guest

        def note(unwritten: int) -> None:
            guest.booted_bytes = size - unwritten

        yield from self.write_by_kernel(start, size, note)

    def write_by_kernel(
        self, start: int, size: int, note: Callable[[int], None] | None = None
    ) -> Process:
        """The guest's kernel writes guest-physical memory; `note` is told what is left."""
        guest, host = self.guest, self.guest.host
        scenario = guest.scenario.scenario
        self.core.queue_write(start, size)
        while True:
            yield from self.enter_core()
            host.reclaimer.check_watermarks()
            reason = self.core.kernel_write(
                guest.kernel_space, guest.backing, guest.fault_path.train(scenario.train),
                scenario.train_service,
            )
            if note is not None:
                note(self.core.unwritten_bytes)
            yield from self._settle(0, 0)
            if reason == _core.RUN_BUDGET:
                return
            yield from self.resolve(reason, None)

    def _settle(self, compute: int, translation: int) -> Process:
        """Let the clock catch up with what the core has just done, its faults included."""
        core, guest = self.core, self.guest
        self._served = core.served
        charges = [("compute_ns", compute), ("translation_ns", translation)]
        faults = sum(core.guest_faults)
        zeroed = core.zeroed_bytes
        if faults != self._guest_faults or zeroed != self._zeroed_bytes:
            service = (faults - self._guest_faults) * guest.host.costs.guest_fault_ns
            # Here too by differences of totals.
            service += zeroed * 1_000_000_000 // self._zeroing
            service -= self._zeroed_bytes * 1_000_000_000 // self._zeroing
            self._guest_faults, self._zeroed_bytes = faults, zeroed
            charges.append(("guest_fault_ns", service))
        traps = guest.trap_ns()
        if traps:
            charges.append(("page_table_trap_ns", traps))
            guest.note_backed()
        remapped, self._remapped = core.remapped - self._remapped, core.remapped
        slat_faults = core.slat_faults
        if slat_faults != self._slat_faults:
            new = [now - before for now, before in zip(slat_faults, self._slat_faults, strict=True)]
            self._slat_faults = slat_faults
            guest.note_backed()
            yield from self.spend(*charges)
            yield from self._wait_for_mapping()
            service = sum(n * ns for n, ns in zip(new, self._fault_ns, strict=True))
            yield from guest.fault_path.serve(self, sum(new), service)
            yield from guest.cgroup.after_faults(self, new[0] + 512 * new[1])
        else:
            yield from self.spend(*charges)
        if remapped:
            # The host has the page, so the kernel serves it on every fault path.
            yield from self._wait_for_mapping()
            wait = guest.mmu_lock.wait(self._env.now)
            service = remapped * guest.host.costs.slat_fault_4k_ns
            yield from self.spend(("fault_wait_ns", wait), ("fault_service_ns", service))

    def _wait_for_mapping(self) -> Process:
        """A fault waits while a call changes the VMM's mapping."""
        wait = self.guest.control.mmap_lock.wait(self._env.now)
        if wait:
            yield from self.spend(("fault_wait_ns", wait))

    def pay_for_traps(self) -> Process:
        """What the guest's kernel wrote to its page tables beside faults has trapped."""
        yield from self.spend(("page_table_trap_ns", self.guest.trap_ns()))

    def _pay_for_tier(self, work: Work, in_place: InPlace) -> Process:
        """What the accesses since the last call took longer, on memory beside RAM."""
        ns = in_place.ns(
            self.core.done, work.region.core.base, self.guest.backing, work.space.table
        )
        yield from self.spend(("tier_ns", ns))

    def _think(self, work: Work) -> Process:
        """The pauses of the accesses done since the last ones, off the core."""
        self.rest()
        pause = self.core.done * work.phase.think_time - work.think_ns
        work.think_ns += pause
        yield from self.spend(("think_ns", pause))

    def resolve(self, reason: int, work: Work | None) -> Process:
        """Do what the core could not, so that it can go on."""
        exits = (
            _core.RUN_SWAPPED, _core.RUN_NO_MEMORY, _core.RUN_LIMIT, _core.RUN_NO_BLOCK,
            _core.RUN_PROTECTED,
        )  # fmt: skip
        if reason in exits:
            self.exit_to_host()
        if reason == _core.RUN_SWAPPED:
            yield from self.swap_in(self.core.fault_address)
        elif reason == _core.RUN_NO_MEMORY:
            yield from self.reclaim()
        elif reason == _core.RUN_LIMIT:
            yield from self.make_room()
        elif reason == _core.RUN_NO_BLOCK:
            yield from self.guest.host.compactor.no_block(self)
        elif reason == _core.RUN_PROTECTED:
            yield from self.guest.control.forbidden(self, self.core.fault_address)
        elif reason == _core.RUN_POOL_EMPTY:
            self.guest.fail("no page left in the hugetlb pool (SIGBUS)")
            raise GuestKilled
        elif reason == _core.RUN_GUEST_NO_MEMORY:
            yield from self.live_on(self.guest.mm.out_of_memory(self))
        elif reason == _core.RUN_GUEST_PRESSURE:
            self.guest.mm.wake_if_low()
        elif reason == _core.RUN_GUEST_SWAPPED:
            assert work is not None
            swap = self.guest.mm.swap
            assert swap is not None
            asid = work.space.core.asid
            yield from self.live_on(swap.page_in(self, asid, self.core.fault_address))
        elif reason == _core.RUN_GUEST_POOL_EMPTY:
            self.guest.fail("no page left in the guest's own hugetlb pool (SIGBUS)")
            raise GuestKilled

    def live_on(self, attempt: Process) -> Process:
        """Let the guest try to find memory; without it, it dies."""
        found = yield from attempt
        if not found:
            self.guest.fail("no free memory in the guest")
            raise GuestKilled

    def sleep_on(self, event: simpy.Event, part: str) -> Process:
        """Wait for an event off the core, and charge the time."""
        self.leave_core()
        started = self._env.now
        yield event
        self.charge(part, self._env.now - started)

    def reclaim(self) -> Process:
        """Direct reclaim on the vCPU's own time; the OOM killer when nothing is left."""
        host = self.guest.host
        with self.stalls.stalled():
            freed = yield from host.reclaimer.direct(self)
        if not freed:
            victim = host.reclaimer.out_of_memory()
            if victim is self.guest:
                raise GuestKilled

    def make_room(self) -> Process:
        """Reclaim within the guest, which is at its limit; it is killed when that gives nothing."""
        guest = self.guest
        with self.stalls.stalled():
            fits = yield from guest.cgroup.make_room(self)
        if not fits:
            guest.host.reclaimer.out_of_limit(guest)
            raise GuestKilled

    def spend_on_reclaim(self, wait: simpy.Event) -> Process:
        """Let direct reclaim take its time: it is part of the fault's service."""
        started = self._env.now
        yield wait
        self.charge("fault_service_ns", self._env.now - started)
        self.direct_reclaim_ns += self._env.now - started

    def swap_in(self, address: int) -> Process:
        """Bring one page back: from the swap cache, or from the device."""
        guest, host = self.guest, self.guest.host
        slot = guest.backing.slot_of(address)
        if slot is None:
            return  # another vCPU brought it back
        under_way = guest.reads.get(slot)
        if under_way is not None:
            with self._reading(slot, asleep=True):
                yield from self.sleep_on(under_way, "swap_in_ns")
            return
        if guest.cgroup.is_full():
            yield from self.make_room()
            return  # to fault again
        frame = host.swap.take_back(slot)
        if frame is not None:
            guest.swapped_in(address, slot, frame)
        else:
            while host.free_bytes < host.min_bytes + MARGIN:
                yield from self.reclaim()
                if guest.backing.slot_of(address) != slot or slot in guest.reads:
                    return
            yield from self._read(address, slot)
        yield from self.spend(("swap_in_ns", host.swap.fault_ns))
        yield from guest.cgroup.after_faults(self, 1)

    def _reading(self, slot: int, *, asleep: bool) -> AbstractContextManager[None]:
        """A read is a stall if the page is of the working set: memory was too short for it."""
        if self.guest.host.reclaimer.refault_list(self.guest, slot)[1]:
            return self.stalls.stalled()
        return self.stalls.waiting() if asleep else nullcontext()

    def _read(self, address: int, slot: int) -> Process:
        """Read a page. The vCPU sleeps if the device takes time."""
        guest = self.guest
        started = self._env.now
        takes = guest.host.swap.read(slot)
        with self._reading(slot, asleep=takes.sleep_ns > 0):
            if takes.sleep_ns:
                self.leave_core()
            yield from guest.read_back(address, slot, takes.sleep_ns + takes.cpu_ns)
        self.charge("swap_in_ns", self._env.now - started)
        yield from self.enter_core()
