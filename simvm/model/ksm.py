"""Same-page merging: ksmd, after Linux' mm/ksm.c.

The thread looks at `pages_to_scan` pages, sleeps, and goes on where it was, through all
mergeable memory and round again. A page of which there is a merged copy (the stable tree)
joins it. Else one that did not change for a whole pass is held against the unstable tree,
which lasts for one pass: with an equal page there, both become a merged one. A huge
mapping is split first. Each page looked at keeps an rmap_item of 64 bytes.

Content is what `content` draws; a page whose D bit was set since the last look has changed
(for Linux' checksum). Under a 2 MiB mapping one D bit stands for all 512 pages, so fewer of
them seem at rest. A page that was written after it was merged is like no other from then on.

The processor's write to a merged page is seen when ksmd next wakes, not at once: until then
the page counts as merged, and the vCPU pays for the fault that late.

Left out: reclaim of merged pages; smart scan, which skips pages that never merged;
`use_zero_pages`; the advisor; merging across nodes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.scenario import Ksm

RMAP_ITEM_BYTES = 64        # Documentation/admin-guide/mm/ksm.rst
DIRTY, HUGE, MERGED = 1, 2, 4   # bits beside an address, from the core


class Ksmd:
    """The thread, its two trees, and what it knows of each page."""

    def __init__(self, host: Host, settings: Ksm) -> None:
        self._host = host
        self._settings = settings
        self._seen: dict[int, set[int]] = defaultdict(set)      # by owner: pages with an rmap_item
        self._merged: dict[int, set[int]] = defaultdict(set)    # by owner: addresses
        self._written: dict[int, set[int]] = defaultdict(set)   # by owner: once merged, like none
        self._stable: dict[int, int] = {}                       # content -> frame with room
        self._holds: dict[int, int] = {}                        # frame -> the content last merged
        self._unstable: dict[int, tuple[int, int]] = {}         # content -> owner, address
        self._places: list[tuple[int, int, int]] = []           # left in this pass
        self.metadata_pages: list[int] = []
        self.ksmd_ns = 0
        self.pages_scanned = 0
        self.full_scans = 0
        host.env.process(self._run())

    def _run(self) -> Process:
        host = self._host
        while True:
            yield host.env.timeout(self._settings.sleep)
            self._forget_the_dead()
            self._unmerge_written()
            cost = self._scan()
            if cost:
                core = yield from host.cores.acquire()
                yield host.env.timeout(cost)
                host.cores.release(core)
                self.ksmd_ns += cost

    def _forget_the_dead(self) -> None:
        for owner in self._seen.keys() - self._host.guests.keys():
            for known in (self._seen, self._merged, self._written):
                known.pop(owner, None)
        self._keep_metadata()

    def _keep_metadata(self) -> bool:
        """Hold as many pages as the rmap_items fill; False when there is no memory for them."""
        items, frames = sum(map(len, self._seen.values())), self._host.memory.frames
        needed = -(-items * RMAP_ITEM_BYTES // PAGE)
        while len(self.metadata_pages) > needed:
            frames.free_4k(self.metadata_pages.pop())
        while len(self.metadata_pages) < needed:
            if self._host.free_bytes <= self._host.min_bytes:
                return False
            self.metadata_pages.append(frames.allocate_4k(False))
        return True

    # --- scanning -----------------------------------------------------------------------

    def _scan(self) -> int:
        """Look at the next pages, to the end of the pass at most; CPU time, in ns."""
        left, cost = self._settings.pages_to_scan, 0
        if not self._places:
            self._begin_pass()
        while left and self._places:
            owner, start, end = self._places.pop()
            guest = self._host.guests.get(owner)
            if guest is None:
                continue
            found = guest.backing.pages_from(start, end, left)
            if len(found) == left:
                self._places.append((owner, (int(found[-1]) & ~(PAGE - 1)) + PAGE, end))
            left -= len(found)
            self.pages_scanned += len(found)
            cost += len(found) * self._host.costs.ksm_scan_ns
            pages = [(page & ~(PAGE - 1), page & (PAGE - 1)) for page in found.tolist()]
            self._note_cleared(guest, pages)
            for address, state in pages:
                cost += self._look(guest, address, state)
        return cost

    @staticmethod
    def _note_cleared(guest: Guest, pages: list[tuple[int, int]]) -> None:
        """Let the next write to a page whose D bit was cleared be seen, whatever TLBs hold.

        The kernel has no need of this, for it compares checksums; so it costs nothing.
        """
        ranges: list[list[int]] = []
        guest.life.note_written(
            address for address, state in pages if state & DIRTY and not state & MERGED
        )
        for address, state in pages:
            if not state & DIRTY or state & MERGED:
                continue
            size = BLOCK if state & HUGE else PAGE
            start = address & ~(size - 1)
            if ranges and start <= ranges[-1][1]:
                ranges[-1][1] = start + size
            else:
                ranges.append([start, start + size])
        for start, end in ranges:
            guest.drop_translations(start, end - start)

    def _begin_pass(self) -> None:
        """All mergeable memory, first guest last: places are taken from the end."""
        if self._unstable or self._seen:
            self.full_scans += 1
        self._unstable.clear()
        self._places = [
            (owner, start, end)
            for owner, guest in self._host.guests.items()
            for start, end in guest.mergeable_ranges()
        ][::-1]

    def _look(self, guest: Guest, address: int, state: int) -> int:
        """One page: merge it if there is an equal; what that costs beside the look, in ns."""
        if state & MERGED:
            return 0
        page, seen = address // PAGE, self._seen[guest.owner]
        known = page in seen
        if not known:
            seen.add(page)
            if not self._keep_metadata():
                seen.remove(page)
                return 0
        content = guest.content.identity(address)
        if state & DIRTY or content is None or page in self._written[guest.owner]:
            return 0
        frame = self._stable.get(content)
        if (frame is not None and self._holds[frame] == content
                and self._host.memory.sharers(frame) > 0):  # fmt: skip
            return self._join(guest, address, content, frame)
        if not known:
            return 0
        twin = self._unstable.get(content)
        if twin is None or not self._at_rest(*twin):
            self._unstable[content] = guest.owner, address
            return 0
        other = self._host.guests[twin[0]]
        cost, frame = self._found(other, twin[1])
        if frame is None:
            return cost
        del self._unstable[content]
        self._stable[content], self._holds[frame] = frame, content
        return cost + self._join(guest, address, content, frame)

    def _at_rest(self, owner: int, address: int) -> bool:
        """Whether a page of the unstable tree is still there and unchanged."""
        guest = self._host.guests.get(owner)
        if guest is None:
            return False
        state = guest.backing.page_state(address)
        return state is not None and not state & (DIRTY | MERGED)

    # --- merging ------------------------------------------------------------------------

    def _split(self, guest: Guest, address: int) -> int:
        """Make the mapping of a page one of 4 KiB."""
        guest.note_backed()
        if not guest.backing.split_at(address):
            return 0
        guest.host_splits += 1
        guest.invalidate(address & ~(BLOCK - 1), BLOCK)
        return self._host.costs.thp_split_ns

    def _found(self, guest: Guest, address: int) -> tuple[int, int | None]:
        """Make a page the first of a merged one: cost, and its frame if that can be."""
        cost = self._split(guest, address)
        frame = guest.backing.share(address)
        if frame is not None:
            cost += self._note_merge(guest, address)
        return cost, frame

    def _join(self, guest: Guest, address: int, content: int, frame: int) -> int:
        """Map a page to the merged one of its content, and free its own frame."""
        cost = self._split(guest, address)
        guest.note_backed()
        if not guest.backing.merge(address, frame):
            return cost
        if self._host.memory.sharers(frame) >= self._settings.max_page_sharing:
            del self._stable[content]
        return cost + self._note_merge(guest, address)

    def _note_merge(self, guest: Guest, address: int) -> int:
        self._merged[guest.owner].add(address)
        guest.merges += 1
        guest.note_backed()
        guest.invalidate(address, PAGE)
        return self._host.costs.ksm_merge_ns + guest.shoot_down()

    def _unmerge_written(self) -> None:
        """Give each page that was written since it was merged a frame of its own again."""
        host = self._host
        for owner, addresses in self._merged.items():
            if not addresses:
                continue
            guest = host.guests[owner]
            states = guest.backing.states_of(np.array(sorted(addresses), dtype=np.uint64))
            for entry in states[states & (DIRTY | MERGED) != MERGED].tolist():
                address = entry & ~(PAGE - 1)
                if not entry & MERGED:
                    addresses.discard(address)      # given back, or freed
                elif entry & DIRTY and host.free_bytes > host.min_bytes:
                    addresses.discard(address)
                    self._unmerge(guest, address)
        host.reclaimer.check_watermarks()

    def _unmerge(self, guest: Guest, address: int) -> None:
        """The copy on write that a vCPU of the guest has taken a fault for."""
        self._written[guest.owner].add(address // PAGE)
        guest.owe(self._copy(guest, address))

    def _copy(self, guest: Guest, address: int) -> int:
        """Give a merged page a frame of its own; ns."""
        host = self._host
        guest.note_backed()
        guest.backing.unmerge(address, host.memory.frames.allocate_4k())
        guest.note_backed()
        guest.unmerges += 1
        guest.invalidate(address, PAGE)
        return host.fault_ns[0] + guest.shoot_down()

    def merged_in(self, guest: Guest, start: int, end: int) -> list[int]:
        """Addresses of a guest's pages in [start, end) that are merged, in order."""
        return sorted(at for at in self._merged[guest.owner] if start <= at < end)

    def separate(self, guest: Guest, address: int) -> int:
        """Undo the merging of a page, if it is merged still; ns."""
        state = guest.backing.page_state(address)
        if address not in self._merged[guest.owner] or state is None or not state & MERGED:
            return 0
        self._merged[guest.owner].discard(address)
        return self._copy(guest, address)
