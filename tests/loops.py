"""What vCPUs run is the MMU that `access` shows: the loop with its shortcuts changes nothing.

Three worlds that are made alike do the same accesses: a vCPU at once, a vCPU one by one,
and an MMU asked for each. `access` agrees with the twin (test_agreement.py).
"""

from __future__ import annotations

import numpy as np

from simvm import _core
from simvm.hardware.geometry import BLOCK, PAGE, MmuGeometry

MIB = 1 << 20
REGION = 1 << 40
SIZE = 24 * MIB
ENDLESS = 1 << 50
FLUSHES = ("range", "gpa", "asid", "range", "gpa", "guest", "all")


class World:
    """A guest (or a native process) of which nothing is mapped yet, and an MMU."""

    def __init__(
        self,
        geometry: MmuGeometry,
        nested: bool,
        targets: bool,
        guest_order: int,
        host_order: int,
        size: int = SIZE,
    ) -> None:
        self.size = size
        self.host = _core.HostMemory(1024 * MIB)
        self.memory = _core.BlockAllocator(256 * MIB)
        self.tables = [_core.PageTable(4, self.host.frames, mirrored=True)]
        self.backing = _core.Backing(self.host, self.tables[0], 7, host_order, 256 * MIB)
        self.tables.append(_core.PageTable(4, self.memory))
        self.space = _core.AddressSpace(1, self.tables[0], self.tables[1] if nested else None, 5)
        self.region = _core.Region(REGION if nested else 0, size, guest_order)
        self.targets = targets
        self.mmu = _core.Mmu(geometry, targets=targets)
        self.vcpu = _core.Vcpu(self.mmu)
        self.vcpu.set_costs((1, 1, 1), 1, 1)
        self.vcpu.set_phase(3, 1.0)
        self.stream = _core.Stream.trace(np.random.PCG64(1), size)

    def run(self, accesses: np.ndarray, budget: int) -> None:
        """Those accesses (offset << 1 | write), with so many at most for each call."""
        self.stream.feed(accesses)
        end = self.vcpu.done + len(accesses)
        while self.vcpu.done < end:
            left = min(budget, end - self.vcpu.done)
            reason = self.vcpu.run(
                self.space, self.backing, self.memory, self.region, self.stream, left, ENDLESS,
                ENDLESS, ENDLESS,
            )  # fmt: skip
            assert reason in (_core.RUN_BUDGET, _core.RUN_STREAM_END)

    def access(self, accesses: np.ndarray) -> None:
        for word in accesses.tolist():
            va = self.region.base + (word >> 1)
            assert self.mmu.access(self.space, va, bool(word & 1)) == (_core.OK, 0)

    def flush(self, what: str, offset: int) -> None:
        if what == "range":
            self.mmu.flush_range(1, self.region.base + offset, 3 * PAGE, 5)
        elif what == "asid":
            self.mmu.flush_asid(1, 5)
        elif what == "gpa" and self.space.guest and self.targets:
            self.mmu.flush_gpa(offset, BLOCK, 5)
        elif what == "guest":
            self.mmu.flush_guest(5)
        else:
            self.mmu.flush_all()

    def clear_accessed(self) -> None:
        table = self.space.guest or self.space.host
        for offset in range(0, self.size, 5 * MIB):
            table.clear_accessed(self.region.base + offset)

    def leaves(self) -> list[_core.Leaf | None]:
        """Of both tables, with A and D."""
        host, guest = self.tables
        pages = range(0, self.size, PAGE)
        return [host.lookup(page) for page in pages] + [guest.lookup(REGION + p) for p in pages]


def accesses_of(rng: np.random.Generator, count: int, size: int = SIZE) -> np.ndarray:
    """Mostly to few pages, as the loop has shortcuts for, and some to any."""
    often = rng.integers(0, 40, count) * 37
    page = np.where(rng.random(count) < 0.8, often, rng.integers(0, size // PAGE, count))
    offsets = page * PAGE + rng.integers(0, PAGE, count)
    return (offsets << 1 | (rng.random(count) < 0.2)).astype(np.uint64)


def counted(world: World, asked: bool) -> dict[str, int]:
    """Without the waits for a walker: who asks says no time."""
    counters = world.mmu.counters() if asked else world.vcpu.counters()
    return {name: n for name, n in counters.items() if name != "walker_wait_cycles"}


def compare_loop(
    geometry: MmuGeometry, nested: bool, targets: bool, orders: tuple[int, int], events: int = 15
) -> None:
    """AssertionError where the three worlds differ. Pages are of those orders in guest and
    host; `events` is how often something is flushed."""
    rng = np.random.default_rng(1)
    at_once, one_by_one, asked = (World(geometry, nested, targets, *orders) for _ in range(3))
    # Pages are touched first, in any order, among accesses to those that may be there.
    firsts = rng.permutation(SIZE // PAGE).astype(np.uint64) * np.uint64(2 * PAGE)
    for chunk in np.array_split(firsts, 8):
        mixed = rng.permutation(np.concatenate([chunk, accesses_of(rng, 500)]))
        at_once.run(mixed, ENDLESS)
        one_by_one.run(mixed, 1)
        asked.run(mixed, 100)
        assert at_once.vcpu.counters() == one_by_one.vcpu.counters() == asked.vcpu.counters()
        assert at_once.region.touched_bytes == one_by_one.region.touched_bytes
        assert at_once.vcpu.exposed_cycles == one_by_one.vcpu.exposed_cycles
    assert at_once.leaves() == one_by_one.leaves() == asked.leaves()
    before = counted(at_once, asked=False)
    for event in range(events):
        what, offset = FLUSHES[event % len(FLUSHES)], int(rng.integers(0, SIZE // PAGE)) * PAGE
        accesses = accesses_of(rng, int(rng.integers(1, 1500)))
        at_once.run(accesses, ENDLESS)
        one_by_one.run(accesses, 1)
        asked.access(accesses)
        assert at_once.vcpu.counters() == one_by_one.vcpu.counters()
        assert at_once.stream.digest == one_by_one.stream.digest
        since = {name: n - before[name] for name, n in counted(at_once, asked=False).items()}
        assert since == counted(asked, asked=True)
        for world in (at_once, one_by_one, asked):
            world.flush(what, offset)
            world.clear_accessed()
    assert at_once.leaves() == one_by_one.leaves() == asked.leaves()


def compare_walks(geometry: MmuGeometry, size: int, deadlines: tuple[int, ...]) -> None:
    """AssertionError where a vCPU that runs at once differs from one by one on walks.

    The region is larger than walk caches reach. First everything is touched; then accesses go
    anywhere, in slices that end at a deadline: at the first access that begins at it or later.
    """
    rng = np.random.default_rng(2)
    at_once, one_by_one = (World(geometry, True, False, 0, 0, size) for _ in range(2))
    firsts = rng.permutation(size // PAGE).astype(np.uint64) * np.uint64(2 * PAGE)
    for world, budget in ((at_once, ENDLESS), (one_by_one, 1)):
        world.run(firsts, budget)
    assert at_once.vcpu.counters() == one_by_one.vcpu.counters()
    for deadline in deadlines:
        page = rng.integers(0, size // PAGE, 3000)
        accesses = (page * PAGE << 1 | (rng.random(3000) < 0.3)).astype(np.uint64)
        began = one_by_one.vcpu.exposed_cycles
        spent = [0]
        for number, access in enumerate(accesses, 1):
            one_by_one.run(np.array([access]), 1)
            spent.append(one_by_one.vcpu.exposed_cycles - began + 3 * number)
        at_once.stream.feed(accesses)
        start = at_once.vcpu.done
        done = 0
        while done < len(accesses):
            at_once.vcpu.run(
                at_once.space, at_once.backing, at_once.memory, at_once.region, at_once.stream,
                len(accesses) - done, deadline, ENDLESS, ENDLESS,
            )  # fmt: skip
            last, done = done, at_once.vcpu.done - start
            ends = np.searchsorted(np.array(spent), spent[last] + deadline)
            assert done == min(int(ends), len(accesses))
        assert at_once.vcpu.counters() == one_by_one.vcpu.counters()
        assert at_once.vcpu.exposed_cycles == one_by_one.vcpu.exposed_cycles
        for world in (at_once, one_by_one):
            world.flush("guest", 0)
    assert at_once.leaves() == one_by_one.leaves()
