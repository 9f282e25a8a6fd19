"""A balloon (Linux, drivers/virtio/virtio_balloon.c): the guest's memory, taken by its own kernel.

The host says how large the balloon should be. A worker of the guest's kernel allocates free
pages, names up to 256 of them in one message and waits for the answer; the VMM drops each page by
a madvise of its own, with an unmapping and a shootdown each. So a 4 KiB balloon splits the host's
huge pages, and the frame of a split page is held until its last part has gone. When no page is
free the worker tries again after 200 ms. Deflating names the pages last taken, and frees them;
the host backs them again when the guest touches them. A guest out of memory takes 256 pages
back itself (deflate on OOM), and they stay out until the host asks for another size.

Pages of 2 MiB are not in that driver: they are the variant that HyperAlloc was compared with.
Worker and VMM are one thread here, since each waits for the other.

Left out: the VMM's joining of 4 KiB pages where hugetlb backs the guest (nothing goes back
there); page migration out of the balloon by the guest's compaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.channels.none import NoChannel
from simvm.model.channels.sizing import Controller, extents_of
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.vcpu import VirtualCpu
    from simvm.scenario.channels import BalloonChannelSettings

MESSAGE_PAGES = 256         # VIRTIO_BALLOON_ARRAY_PFNS_MAX
OOM_BYTES = 256 * 4096      # VIRTIO_BALLOON_OOM_NR_PAGES
RETRY_NS = 200_000_000      # msleep in fill_balloon


class Balloon(NoChannel):
    """The balloon of one guest."""

    def __init__(self, settings: BalloonChannelSettings) -> None:
        super().__init__(settings)
        self._page = settings.page_size
        self._deflate_on_oom = settings.deflate_on_oom
        self._controller = Controller(settings)
        self._pages: list[int] = []     # guest-physical, in the order they were taken

    def serve(self, guest: Guest) -> Process:
        thread = KernelThread(guest)
        while True:
            wanted = self._controller.wanted(guest, self.withheld_bytes)
            pages = (wanted - self.withheld_bytes) // self._page
            if pages > 0:
                most = min(pages, MESSAGE_PAGES)
                room = yield from guest.mm.room_for(most * self._page, thread)
                taken = self._take(guest, min(most, room // self._page))
                if taken:
                    yield from self._inflate(guest, thread, taken)
                else:
                    yield from thread.sleep(RETRY_NS)
            elif wanted < self.withheld_bytes:
                yield from thread.spend(self._name(guest, min(-pages, MESSAGE_PAGES)))
                self._release(guest, min(-pages, MESSAGE_PAGES))
            else:
                now = guest.host.env.now
                pause = self._controller.pause(now, now)
                if pause is None:
                    return
                yield from thread.sleep(pause)

    def out_of_memory(self, vcpu: VirtualCpu, guest: Guest) -> Process:
        pages = min(len(self._pages), max(1, OOM_BYTES // self._page))
        if not self._deflate_on_oom or not pages:
            return False
        vcpu.exit_to_host()
        yield from vcpu.spend(("hint_ns", self._name(guest, pages)))
        self._release(guest, pages)
        return True

    def _take(self, guest: Guest, most: int) -> list[int]:
        """Free pages of the guest, at most `most`; they are in use from now on."""
        taken: list[int] = []
        allocate = guest.memory.allocate_4k if self._page == PAGE else guest.memory.allocate_2m
        while len(taken) < most:
            try:
                taken.append(allocate())
            except MemoryError:
                break
        return taken

    def _inflate(self, guest: Guest, thread: KernelThread, taken: list[int]) -> Process:
        """One message: the host drops the pages, which are then of the balloon."""
        costs = guest.host.costs
        each = costs.balloon_inflate_4k_ns if self._page == PAGE else costs.balloon_inflate_2m_ns
        guest.hint_calls += 1
        yield from thread.spend(len(taken) * each)
        yield from thread.sleep(guest.mmu_lock.wait(guest.host.env.now))
        cost = guest.zap_all(extents_of(taken, self._page), self._page)
        self._pages += taken
        self.withheld_bytes += len(taken) * self._page
        yield from thread.spend(cost)

    def _name(self, guest: Guest, pages: int) -> int:
        """Tell the host of pages that the guest will use again; ns."""
        costs = guest.host.costs
        each = costs.balloon_deflate_4k_ns if self._page == PAGE else costs.balloon_deflate_2m_ns
        guest.hint_calls += 1
        return pages * each

    def _release(self, guest: Guest, pages: int) -> None:
        """Let the guest have the pages last taken."""
        pages = min(pages, len(self._pages))  # a vCPU may have taken some back meanwhile
        free = guest.memory.free_4k if self._page == PAGE else guest.memory.free_2m
        for _ in range(pages):
            free(self._pages.pop())
        self.withheld_bytes -= pages * self._page
