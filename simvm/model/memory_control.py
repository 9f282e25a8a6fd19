"""What the VMM does with its mapping of guest memory when the guest asks by pvmemcontrol.

Each operation is one system call of the VMM on a range: madvise, mlock, mprotect or prctl.
It changes the VMM's VMAs (`vmas`), the frames behind them, or what the SLAT maps; the guest
sees that through the MMU notifier. The rules are those of Linux: mm/madvise.c, mm/mlock.c,
mm/mprotect.c, mm/ksm.c, and KVM's `hva_to_pfn` (virt/kvm/kvm_main.c) for protection.

* DONTNEED drops private memory (and pages of a hugetlb pool); of a memfd only the mapping
  goes, and the page cache keeps the frames. REMOVE punches a hole into the file; anonymous
  memory has none (EINVAL).
* FREE (anonymous memory alone) drops pages lazily: reclaim takes them first and without a
  write, unless they have been written since.
* PAGEOUT evicts now; MLOCK backs the range and keeps it from reclaim. A locked range can be
  neither dropped nor evicted (EINVAL).
* MPROTECT takes the range out of the SLAT. A touch of NONE, or a write to R, makes KVM_RUN
  fail (EFAULT), and the VMM ends the guest. x86 has no pages that can be written and not
  read, so W forbids nothing, but is another protection than RW.
* MERGEABLE (anonymous memory alone), DONTDUMP and SET_VMA_ANON_NAME (not hugetlb) are flags.

A VMA boundary inside a 2 MiB page splits that page, and no huge page is mapped across it.
Calls that change VMAs hold the mmap lock for writing, and faults wait for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from simvm import _core
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.queues import Channels, Process
from simvm.model.reclaim import MARGIN, NEW
from simvm.model.vcpu import GuestKilled
from simvm.model.vmas import Protection, TooManyVmas, Vma, Vmas

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.vcpu import VirtualCpu

AT_ONCE: Final = 64  # new folios that one step of mlock backs: as many as a train of faults

PROTECTIONS: Final[dict[str, Protection]] = {
    "MPROTECT_NONE": "none", "MPROTECT_R": "r", "MPROTECT_W": "w", "MPROTECT_RW": "rw",
}  # fmt: skip


class Denied(Exception):
    """The system call fails; what it did before stays done."""


class MemoryControl:
    """The VMM's mapping of one guest's memory, and the calls that change it."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._host = guest.host
        self._backing_kind = guest.host.settings.backing
        self.vmas = Vmas(
            guest.config.memory, guest.host.settings.max_map_count,
            mergeable=guest.config.mergeable,
        )  # fmt: skip
        self.mmap_lock = Channels()
        self.failed: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.protection_faults = 0
        self._watching = False

    def operate(
        self, vcpu: VirtualCpu, operation: str, start: int, length: int, name: str
    ) -> Process:
        """One system call on [start, start + length), on the time of the vCPU that asks."""
        end = start + length
        self.done[operation] += 1
        try:
            yield from self._operation(operation)(vcpu, start, end, name)
        except (Denied, TooManyVmas):
            self.failed[operation] += 1

    def forbidden(self, vcpu: VirtualCpu, address: int) -> Process:
        """A vCPU touched a block in which something is forbidden: let it pass, or end the guest."""
        if self.vmas.at(address).flags.protection != "none":
            self._guest.backing.allow(address)
            return
        yield from vcpu.spend(("fault_service_ns", self._host.costs.slat_fault_4k_ns))
        self._violated("touched")
        raise GuestKilled

    def _violated(self, how: str) -> None:
        self.protection_faults += 1
        self._guest.fail(f"{how} memory that it had protected (KVM_RUN: EFAULT)")

    # --- the operations -----------------------------------------------------------------

    def _operation(self, name: str) -> Callable[[VirtualCpu, int, int, str], Process]:
        if name in PROTECTIONS:
            return lambda vcpu, start, end, _: self._mprotect(vcpu, start, end, PROTECTIONS[name])
        made: dict[str, Callable[[VirtualCpu, int, int, str], Process]] = {
            "DONTNEED": self._dontneed, "REMOVE": self._remove, "FREE": self._free,
            "PAGEOUT": self._pageout, "MLOCK": self._mlock, "MUNLOCK": self._munlock,
            "SET_VMA_ANON_NAME": self._set_name, "DONTDUMP": self._dontdump,
            "MERGEABLE": self._mergeable, "UNMERGEABLE": self._unmergeable,
        }  # fmt: skip
        return made[name]

    def _dontneed(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        for low, high in self._unlocked(start, end):
            if self._backing_kind == "memfd":
                cost = self._hold(low, high)
            else:
                cost = self._guest.zap(low, high - low)
            yield from self._read_locked(vcpu, cost)

    def _remove(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        if self._backing_kind == "anon":
            raise Denied  # EINVAL: no file to punch a hole into
        for low, high in self._unlocked(start, end):
            if self.vmas.at(low).flags.protection not in ("rw", "w"):
                raise Denied  # EACCES
            yield from self._read_locked(vcpu, self._guest.zap(low, high - low))

    def _free(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        if self._backing_kind != "anon":
            raise Denied
        guest = self._guest
        for low, high in self._unlocked(start, end):
            slots = [int(s) for at in guest.backing.swapped(low, high)
                     for s in guest.backing.zap(at, PAGE)[2]]  # fmt: skip
            self._host.swap.free_slots(slots)
            cost = self._hold(low, high, accessed=True, dirty=True)
            moved, _freed = guest.backing.relist(low, high, _core.LAZY_LIST)
            yield from self._read_locked(vcpu, cost + moved * self._host.costs.reclaim_scan_ns)

    def _pageout(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        if self._backing_kind == "hugetlb":
            raise Denied
        for low, high in self._unlocked(start, end):
            cost = self._cut(low) + self._cut(high)
            cost += self._host.reclaimer.page_out_range(self._guest.backing, low, high)
            yield from self._read_locked(vcpu, cost)

    def _mlock(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        if self._backing_kind != "hugetlb":  # which has no VM_LOCKED (mlock_fixup)
            yield from self._change(vcpu, start, end, locked=True)
        yield from self._populate(vcpu, start, end)

    def _munlock(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        yield from self._change(vcpu, start, end, locked=False)
        moved, _freed = self._guest.backing.relist(
            start, end, NEW, _core.UNEVICTABLE_LIST
        )
        yield from vcpu.spend(("hint_ns", moved * self._host.costs.reclaim_scan_ns))

    def _mprotect(
        self, vcpu: VirtualCpu, start: int, end: int, protection: Protection
    ) -> Process:
        if all(vma.flags.protection == protection for vma in self.vmas.overlapping(start, end)):
            yield from self._write_locked(vcpu, 0, 0)
            return
        try:
            yield from self._change(vcpu, start, end, protection=protection)
        finally:
            self._mark(start, end, _core.FORBIDDEN)
            cost = sum(
                self._hold(max(start, vma.start), min(end, vma.end), dirty=protection == "r")
                for vma in self.vmas.overlapping(start, end)
                if vma.flags.protection == protection
            )
            yield from vcpu.spend(("hint_ns", cost))
        if protection == "r" and not self._watching:
            self._watching = True
            self._host.env.process(self._watch())

    def _set_name(self, vcpu: VirtualCpu, start: int, end: int, name: str) -> Process:
        if self._backing_kind == "hugetlb":
            raise Denied  # EBADF
        yield from self._change(vcpu, start, end, name=name)

    def _dontdump(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        yield from self._change(vcpu, start, end, dontdump=True)

    def _mergeable(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        if self._backing_kind == "anon":  # advice for other memory is ignored (vma_ksm_compatible)
            yield from self._change(vcpu, start, end, mergeable=True)

    def _unmergeable(self, vcpu: VirtualCpu, start: int, end: int, _: str) -> Process:
        """What was merged gets a frame of its own again (`unmerge_ksm_pages`, mm/ksm.c)."""
        yield from self._change(vcpu, start, end, mergeable=False)
        ksm = self._host.ksm
        if ksm is None:
            return
        for address in ksm.merged_in(self._guest, start, end):
            yield from vcpu.enter_core()
            while self._host.free_bytes < self._host.min_bytes + MARGIN:
                yield from vcpu.reclaim()
            yield from vcpu.spend(("hint_ns", ksm.separate(self._guest, address)))

    # --- VMAs and locks -----------------------------------------------------------------

    def _unlocked(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, end) by VMA; Denied (EINVAL) where one is locked."""
        for vma in list(self.vmas.overlapping(start, end)):
            if vma.flags.locked:
                raise Denied
            yield max(start, vma.start), min(end, vma.end)

    def _change(self, vcpu: VirtualCpu, start: int, end: int, **flags: object) -> Process:
        """Change flags of VMAs under the mmap lock, and split what a new boundary cuts."""
        if self._backing_kind == "hugetlb" and (start | end) % self._host.settings.page_size:
            raise Denied  # EINVAL: hugetlb_vm_op_split
        changed = 1
        try:
            changed = self.vmas.change(start, end, **flags)
        finally:
            yield from self._write_locked(vcpu, changed, self._settle_boundaries(start, end))

    def _settle_boundaries(self, start: int, end: int) -> int:
        """Huge pages end at VMA boundaries: split those that do not; the cost in ns."""
        if self._backing_kind == "hugetlb":
            return 0
        self._mark(start, end, _core.CUT)
        size = self._guest.config.memory
        edges = [at for at in (start, end) if at < size and self.vmas.at(at).start == at]
        return sum(self._cut(edge) for edge in edges)

    def _mark(self, start: int, end: int, bit: int) -> None:
        """Mark again the 2 MiB blocks that [start, end) lies in."""
        backing = self._guest.backing
        low, high = start // BLOCK * BLOCK, -(-end // BLOCK) * BLOCK
        backing.mark(low, high, bit, False)
        for vma in self.vmas.overlapping(low, high):
            marked = self._marked(vma, bit)
            if marked is not None and marked[0] < high and marked[1] > low:
                backing.mark(max(marked[0], low), min(marked[1], high), bit, True)

    @staticmethod
    def _marked(vma: Vma, bit: int) -> tuple[int, int] | None:
        """What of a VMA needs a mark: its start, if a huge page could lie across it; or all."""
        if bit == _core.CUT:
            return (vma.start, vma.start + 1) if vma.start % BLOCK else None
        return (vma.start, vma.end) if vma.flags.protection == "none" else None

    def _write_locked(self, vcpu: VirtualCpu, changed: int, cost: int) -> Process:
        """Spend what `changed` VMAs and `cost` take, with the mmap lock held for writing."""
        cost += max(1, changed) * self._host.costs.vma_change_ns
        wait = self.mmap_lock.reserve(self._host.env.now, cost)
        yield from vcpu.spend(("hint_ns", wait + cost))

    def _read_locked(self, vcpu: VirtualCpu, cost: int) -> Process:
        """Spend `cost` after whoever holds the mmap lock for writing."""
        yield from vcpu.spend(("hint_ns", self.mmap_lock.wait(self._host.env.now) + cost))

    # --- frames -------------------------------------------------------------------------

    def _cut(self, address: int) -> int:
        """Let no huge page lie across an address; what that takes, in ns."""
        guest, costs = self._guest, self._host.costs
        if self._backing_kind == "hugetlb" or not guest.backing.cut(address):
            return 0
        guest.host_splits += 1
        guest.invalidate(address // BLOCK * BLOCK, BLOCK)
        return costs.thp_split_ns + guest.shoot_down()

    def _hold(self, start: int, end: int, *, accessed: bool = False, dirty: bool = False) -> int:
        """Take a range out of the SLAT, its frames stay; what that takes, in ns."""
        guest = self._guest
        cost = self._cut(start) + self._cut(end)
        if dirty:
            guest.life.note_cleared(start, end - start)
        taken = sum(guest.backing.hold(start, end, accessed, dirty))
        guest.note_backed()
        if taken:
            guest.invalidate(start, end - start)
            cost += taken * self._host.costs.unmap_entry_ns + guest.shoot_down()
        return cost

    def _populate(self, vcpu: VirtualCpu, start: int, end: int) -> Process:
        """Back all of a range and keep it from reclaim, as `populate_vma_page_range` does."""
        guest, host, costs = self._guest, self._host, self._host.costs
        while start < end:
            yield from vcpu.enter_core()
            host.reclaimer.check_watermarks()
            status, start, made, moved = guest.backing.populate(start, end, AT_ONCE)
            guest.note_backed()
            cost = sum(n * ns for n, ns in zip(made, host.container_fault_ns, strict=True))
            yield from vcpu.spend(("hint_ns", cost + moved * costs.reclaim_scan_ns))
            if status == _core.STOP_SWAPPED:
                yield from vcpu.swap_in(start)
            elif status == _core.STOP_NO_MEMORY:
                if self._backing_kind == "hugetlb":
                    raise Denied  # ENOMEM
                yield from vcpu.reclaim()
            elif status == _core.STOP_LIMIT:
                yield from vcpu.make_room()

    # --- protection ---------------------------------------------------------------------

    def _watch(self) -> Process:
        """End the guest when it has written to memory that it may only read.

        A write shows by D, which nothing but a write sets. So a look in each quantum will
        do: as with all that the host takes away, a vCPU is at most that far ahead.
        """
        guest = self._guest
        quantum = guest.scenario.scenario.quantum
        while guest.alive:
            ranges = [(v.start, v.end) for v in self.vmas if v.flags.protection == "r"]
            if not ranges:
                break
            if any(guest.backing.written(start, end) for start, end in ranges):
                self._violated("wrote to")
                break
            yield self._host.env.timeout(quantum)
        self._watching = False
