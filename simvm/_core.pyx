"""The compiled core: MMUs, page tables, memory, access generators, and the run loop.

The algorithms are in the headers of `simvm/core/`, one idea a file; this module is their
door to Python. It validates, owns memory, and gives one class to each structure:

* `BlockAllocator`, `HostMemory`: memory in 2 MiB blocks; frames, folios, hugetlb pool
* `PageTable`, `AddressSpace`, `Mmu`: translation (docs/translation.md)
* `GuestKernel`: lists, page cache and pools of a guest's own kernel
* `Shadow`: shadow tables, for a guest without a SLAT
* `Backing`, `Region`, `Stream`, `Vcpu`: a vCPU that runs accesses in a named region

It imports nothing of simvm. Addresses and sizes are bytes, latencies cycles, times ns.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
from cpython.pycapsule cimport PyCapsule_GetPointer
from numpy.random cimport bitgen_t

cimport simvm.core.access as access
cimport simvm.core.advice as advice
cimport simvm.core.aging as aging
cimport simvm.core.blocks as blocks
cimport simvm.core.cache as cache
cimport simvm.core.flush as flush
cimport simvm.core.folios as folios
cimport simvm.core.guestmem as guestmem
cimport simvm.core.merging as merging
cimport simvm.core.hostmem as hostmem
cimport simvm.core.lines as lines
cimport simvm.core.mmu as mmu
cimport simvm.core.pagelists as pagelists
cimport simvm.core.reporting as reporting
cimport simvm.core.run as run
cimport simvm.core.sampled as sampled
cimport simvm.core.shadow as shadow
cimport simvm.core.stream as stream
cimport simvm.core.table as table
cimport simvm.core.touches as touches
cimport simvm.core.vacate as vacate
cimport simvm.core.vcpu as vcpu
cimport simvm.core.walk as walk

from collections import namedtuple

import numpy as np

cdef extern from *:
    """
    #ifndef SIMVM_CORE_DIGEST
    #define SIMVM_CORE_DIGEST ""
    #endif
    #ifdef SIMVM_DEBUG
    #define SIMVM_IS_DEBUG 1
    #else
    #define SIMVM_IS_DEBUG 0
    #endif
    """
    const char *SIMVM_CORE_DIGEST
    int SIMVM_IS_DEBUG

OK, GUEST_FAULT, SLAT_FAULT = mmu.OK, mmu.GUEST_FAULT, mmu.SLAT_FAULT
RUN_BUDGET, RUN_DEADLINE = vcpu.RUN_BUDGET, vcpu.RUN_DEADLINE
RUN_STREAM_END, RUN_TRAIN = vcpu.RUN_STREAM_END, vcpu.RUN_TRAIN
RUN_PRESSURE, RUN_SWAPPED = vcpu.RUN_PRESSURE, vcpu.RUN_SWAPPED
RUN_NO_MEMORY, RUN_POOL_EMPTY = vcpu.RUN_NO_MEMORY, vcpu.RUN_POOL_EMPTY
RUN_GUEST_NO_MEMORY, RUN_PROTECTED = vcpu.RUN_GUEST_NO_MEMORY, vcpu.RUN_PROTECTED
RUN_LIMIT = vcpu.RUN_LIMIT
RUN_GUEST_PRESSURE, RUN_GUEST_SWAPPED = vcpu.RUN_GUEST_PRESSURE, vcpu.RUN_GUEST_SWAPPED
RUN_GUEST_POOL_EMPTY = vcpu.RUN_GUEST_POOL_EMPTY
PARTIAL_LIST = hostmem.PARTIAL_LIST
LAZY_LIST, UNEVICTABLE_LIST = hostmem.LAZY_LIST, hostmem.UNEVICTABLE_LIST
POPULATED, STOP_SWAPPED = advice.POPULATED, advice.STOP_SWAPPED
STOP_NO_MEMORY, STOP_MANY = advice.STOP_NO_MEMORY, advice.STOP_MANY
STOP_LIMIT = advice.STOP_LIMIT
CUT, FORBIDDEN = vcpu.CUT, vcpu.FORBIDDEN

Leaf = namedtuple("Leaf", ["base", "target", "order", "accessed", "dirty"])

cdef uint64_t MAX_ADDRESS = <uint64_t>1 << 46


def source_digest():
    """SHA-256 of the sources that this core was compiled from."""
    return SIMVM_CORE_DIGEST.decode()


def debug_build():
    """Whether the core was compiled with its bounds checks on."""
    return bool(SIMVM_IS_DEBUG)


include "core/blocks.pxi"


cdef class PageTable:
    """A page table whose pages come from `memory`; `mirrored` as a SLAT beside its VMM's.

    The shape is that of a `simvm.hardware.geometry.TableFormat`; `root_bits` of 0 makes the
    root like any other table.
    """

    def __cinit__(self, int levels, BlockAllocator memory, mirrored=False, int granule_shift=12,
                  int root_bits=0, contiguous=False):
        cdef int bits = granule_shift - 3
        root_bits = root_bits or bits
        if levels < 2 or levels > table.MAX_LEVEL:
            raise ValueError(f"levels (={levels}) must be 2 to {table.MAX_LEVEL}")
        if granule_shift not in (12, 14, 16):
            raise ValueError(f"granule_shift (={granule_shift}) must be 12, 14 or 16")
        if not 1 <= root_bits <= bits + 4:
            raise ValueError(f"root_bits (={root_bits}) must be 1 to {bits + 4}")
        if contiguous and granule_shift != 12:
            raise ValueError("the contiguous hint is modelled for the 4 KiB granule")
        if granule_shift + bits * (levels - 1) + root_bits > 57:
            raise ValueError("a table reaches 57 bits of address at most")
        self.memory = memory
        if table.table_init(&self.c, levels, memory.c, mirrored, granule_shift, root_bits,
                            contiguous) != 0:
            raise MemoryError("no memory for a page table")

    def __dealloc__(self):
        table.table_destroy(&self.c, False)

    cdef uint64_t* _leaf(self, uint64_t address, table.Node **at, int *order) except NULL:
        cdef uint64_t *entry
        if self.c.root == NULL or address >= table.reach_of(&self.c):
            raise KeyError(f"{address:#x} is not mapped")
        entry = table.find_leaf(&self.c, address, at, order)
        if entry == NULL:
            raise KeyError(f"{address:#x} is not mapped")
        return entry

    def map(self, uint64_t address, uint64_t target, int order):
        """Install a leaf. ValueError when misaligned or in the way of another."""
        cdef table.Node *made[5]
        cdef int n_made = 0, status
        cdef uint64_t size
        if not 0 <= order <= self._largest():
            raise ValueError(f"order (={order}) must be 0 to {self._largest()}")
        size = <uint64_t>1 << self.c.shift[order + 1]
        if address % size or target % size or address >= table.reach_of(&self.c):
            raise ValueError(f"{address:#x} -> {target:#x} is not aligned to {size:#x}")
        if self._overlaps(address, order):
            raise ValueError(f"{address:#x} overlaps another mapping")
        status = table.table_map(&self.c, address, target, order, 0, made, &n_made)
        if status == table.MAP_NO_MEMORY:
            raise MemoryError("no memory for a page table")

    cdef int _largest(self):
        """The highest order of a leaf."""
        return min(2 if self.c.granule == 12 else 1, self.c.levels - 1)

    cdef bint _overlaps(self, uint64_t address, int order):
        cdef table.Node *node = self.c.root
        cdef uint64_t entry
        while True:
            entry = node.entry[table.index_in(&self.c, address, node.level)]
            if entry == 0:
                return False
            if not table.is_child(entry):
                return True
            if node.level == order + 1:
                return not table.empty_below(table.child_of(entry))
            node = table.child_of(entry)

    def unmap(self, uint64_t address):
        """Remove the leaf that maps `address`: (target, order). KeyError when absent."""
        cdef table.Node *at = NULL
        cdef int order = 0
        cdef uint64_t *entry = self._leaf(address, &at, &order)
        cdef uint64_t target = entry[0] & table.TARGET
        table.clear_entry(&self.c, at, entry - at.entry)
        return target, order

    def split(self, uint64_t address):
        """Replace a large leaf by smaller ones. KeyError absent, ValueError the smallest."""
        cdef table.Node *at = NULL
        cdef int order = 0
        cdef uint64_t *entry = self._leaf(address, &at, &order)
        if order == 0:
            raise ValueError(f"{address:#x} is mapped by a leaf of the lowest order")
        if table.table_split(&self.c, at, entry - at.entry) != 0:
            raise MemoryError("no memory for a page table")

    def collapse(self, uint64_t address, uint64_t target):
        """Replace the lowest table above `address`, if full of leaves, by one leaf.

        A and D are those of all. KeyError when nothing is mapped there; ValueError when the
        table is not full of leaves, or no leaf is that large, or `target` is misaligned.
        """
        cdef table.Node *at = NULL
        cdef int order = 0
        self._leaf(address, &at, &order)
        if order + 1 > self._largest():
            raise ValueError(f"{address:#x} has no larger leaf to become part of")
        if target % (<uint64_t>1 << self.c.shift[order + 2]):
            raise ValueError(f"target (={target:#x}) is misaligned")
        if table.table_collapse(&self.c, at, target) != 0:
            raise ValueError(f"the table above {address:#x} is not full of leaves")

    def prune(self):
        """Release every table page but the root that holds nothing."""
        prune_below(&self.c, self.c.root)

    def lookup(self, uint64_t address):
        """The leaf that maps `address`, or None."""
        cdef table.Node *at = NULL
        cdef int order = 0
        cdef uint64_t *entry
        if self.c.root == NULL or address >= table.reach_of(&self.c):
            return None
        entry = table.find_leaf(&self.c, address, &at, &order)
        if entry == NULL:
            return None
        return Leaf(address >> self.c.shift[order + 1] << self.c.shift[order + 1],
                    entry[0] & table.TARGET, order,
                    bool(entry[0] & table.ACCESSED), bool(entry[0] & table.DIRTY))

    def clear_accessed(self, uint64_t address):
        """Clear A of the leaf that maps `address`; its value before. KeyError when absent.

        Of sixteen pages that the contiguous hint joins, all are read and cleared.
        """
        cdef table.Node *at = NULL
        cdef int order = 0
        cdef uint64_t *entry = self._leaf(address, &at, &order)
        return bool(table.clear_accessed(&self.c, at, entry - at.entry))

    def destroy(self):
        """Release every table page to its memory. What leaves mapped is not touched."""
        table.table_destroy(&self.c, True)

    @property
    def levels(self):
        return self.c.levels

    @property
    def root(self):
        """Address of the root table page."""
        return self.c.root.address

    @property
    def table_pages(self):
        """Table pages of 4 KiB, the root included, mirrors not."""
        return self.c.pages

    @property
    def mirror_pages(self):
        """Host page-table pages beside those of a mirrored table."""
        return self.c.mirror_pages

    @property
    def deposited_pages(self):
        """Page-table pages kept for the split of 2 MiB leaves."""
        return self.c.n_deposits

    @property
    def leaves(self):
        """Leaves by order, held ones included."""
        return self.c.leaves[0], self.c.leaves[1], self.c.leaves[2]

    @property
    def swapped_pages(self):
        """4 KiB pages whose content is on the swap device."""
        return self.c.swapped

    @property
    def removed_pages(self):
        """4 KiB pages whose frames have been taken away so far."""
        return self.c.removed

    @property
    def held_pages(self):
        """4 KiB pages of `leaves` that the processor does not find: held frames."""
        return self.c.held


cdef void prune_below(table.Table *t, table.Node *node) noexcept:
    cdef int i
    cdef table.Node *child
    if node.level == 1:
        return
    for i in range(node.entries):
        if table.is_child(node.entry[i]):
            child = table.child_of(node.entry[i])
            prune_below(t, child)
            if child.used == 0:
                node.entry[i] = 0
                node.used -= 1
                table.node_release(t, child)


cache.fill_orders()

# A TLB entry's tag is one small number for each (vpid, asid) there ever was in this process.
cdef dict tags = {}
cdef uint16_t vpids[mmu.MAX_TAGS + 1]
memset(vpids, 0xFF, sizeof(vpids))     # of no tag


cdef uint64_t tag_of(int vpid, int asid) except? 0xFFFF:
    tag = tags.get((vpid, asid))
    if tag is None:
        tag = len(tags)
        if tag == mmu.MAX_TAGS:
            raise MemoryError(f"more than {mmu.MAX_TAGS} address spaces in one process")
        tags[vpid, asid] = tag
        vpids[tag] = vpid
    return tag


cdef class AddressSpace:
    """What a process's accesses go through: a guest table over `host`, or `host` alone.

    `asid` tells the processes of one guest apart, `vpid` the guests.
    """

    def __cinit__(self, int asid, PageTable host, PageTable guest=None, int vpid=0):
        if not 0 <= asid <= 65534 or not 0 <= vpid <= 65534:
            raise ValueError(f"asid (={asid}) and vpid (={vpid}) must be in [0, 65534]")
        self.host = host
        self.guest = guest
        self.asid = asid
        self.vpid = vpid
        self.c.tag = tag_of(vpid, asid)
        self.c.guest_tag = tag_of(vpid, -1)
        self.c.host = &host.c
        self.c.guest = NULL if guest is None else &guest.c
        self.c.quick = walk.quick_space(&self.c)


cdef class Mmu:
    """One core's MMU, of the shape that a `MmuGeometry` describes.

    With `targets` its TLB entries know where they lead, which `translate` and `flush_gpa` need.
    """

    def __cinit__(self, geometry, targets=False):
        memset(&self.c, 0, sizeof(mmu.Mmu))
        if geometry.style not in ("intel", "amd"):
            raise ValueError(f"style (={geometry.style}) must be intel or amd")
        if not 1 <= geometry.walkers <= mmu.MAX_WALKERS:
            raise ValueError(f"walkers (={geometry.walkers}) must be 1 to {mmu.MAX_WALKERS}")
        self.c.count = &self.c.own
        self.c.tick = cache.FIRST_STAMP
        self.c.vpids = vpids
        self.c.targets = targets
        self.c.style = mmu.INTEL if geometry.style == "intel" else mmu.AMD
        self.c.smash = geometry.smash
        self.c.walkers = geometry.walkers
        self.c.l2_penalty = geometry.l2_penalty
        self.c.walk_cache_latency = geometry.walk_cache_latency
        self.c.loads.l2_latency = geometry.cache_l2.latency
        self.c.loads.llc_latency = geometry.cache_llc.latency
        self.c.loads.dram_latency = geometry.dram_latency
        self.c.loads.slowest = max(geometry.cache_l2.latency, geometry.cache_llc.latency,
                                   geometry.dram_latency)
        set_up_tlb(&self.c, &self.c.l1_load, geometry.l1_load)
        if geometry.l1_store is None:
            self.c.l1_store = &self.c.l1_load
        else:
            set_up_tlb(&self.c, &self.c.l1_store_own, geometry.l1_store)
            self.c.l1_store = &self.c.l1_store_own
        set_up_tlb(&self.c, &self.c.l2, geometry.l2)
        for part in geometry.guest_walk_cache:
            set_up_part(&self.c.guest_cache[check_level(part.level)], part, 3)
        for part in geometry.host_walk_cache:
            set_up_part(&self.c.host_cache[check_level(part.level)], part, 3)
        set_up_part(&self.c.nested_tlb, geometry.nested_tlb, 1)
        for part in (*geometry.guest_walk_cache, *geometry.host_walk_cache, geometry.nested_tlb,
                     *geometry.l1_load, *(geometry.l1_store or ()), *geometry.l2):
            self.c.most_ways = max(self.c.most_ways, part.ways)
        set_up_lines(&self.c.loads.l2, geometry.cache_l2)
        set_up_lines(&self.c.loads.llc, geometry.cache_llc)
        self.c.quick = walk.quick_mmu(&self.c)

    def __dealloc__(self):
        cdef int i
        for i in range(8):
            cache.assoc_free(&self.c.l1_load.array[i])
            cache.assoc_free(&self.c.l1_store_own.array[i])
            cache.assoc_free(&self.c.l2.array[i])
        for i in range(6):
            cache.assoc_free(&self.c.guest_cache[i])
            cache.assoc_free(&self.c.host_cache[i])
        cache.assoc_free(&self.c.nested_tlb)
        lines.lines_free(&self.c.loads.l2)
        lines.lines_free(&self.c.loads.llc)
        free(self.c.loads.trace)

    def access(self, AddressSpace space, uint64_t va, bint write=False, now=None):
        """One access: (OK, 0), or (GUEST_FAULT | SLAT_FAULT, the page that is missing).

        `now` is the cycle at which it begins: a miss then waits for a free walker.
        """
        cdef int status = self._access(space, va, write, now)
        return status, self.c.fault if status != mmu.OK else 0

    def translate(self, AddressSpace space, uint64_t va, bint write=False):
        """One access: (OK, its host-physical address), or a fault and the page, as `access`."""
        cdef int status
        if not self.c.targets:
            raise ValueError("translate needs an Mmu with targets")
        status = self._access(space, va, write, None)
        if status != mmu.OK:
            return status, self.c.fault
        return status, self.c.hpa + (va & ((<uint64_t>1 << self.c.shift) - 1))

    cdef int _access(self, AddressSpace space, uint64_t va, bint write, now) except -1:
        cdef table.Table *t = space.c.guest if space.c.guest != NULL else space.c.host
        cdef uint64_t at = mmu.NOWHERE if now is None else now
        if va >= table.reach_of(t):
            raise ValueError(f"{va:#x} is beyond the address space")
        mmu.keep_time(&self.c)
        return access.access(&self.c, &space.c, va, write, at)

    @property
    def reach(self):
        """Host memory (bytes) that the data caches tell apart: their tags have 32 bits."""
        cdef uint64_t sets = 1 << 20
        if self.c.loads.l2.tags != NULL:
            sets = min(sets, self.c.loads.l2.sets)
        if self.c.loads.llc.tags != NULL:
            sets = min(sets, self.c.loads.llc.sets)
        return ((<uint64_t>1 << 32) - 1) * sets * 64

    def counters(self):
        """What docs/translation.md counts, for the accesses made by `access` and `translate`."""
        return with_sums(self.c.own)

    def flush_all(self):
        """Drop TLBs, walk caches and nested TLB."""
        flush.flush_all(&self.c)

    def flush_guest(self, int vpid=0):
        """Drop all of one guest: what a change of a SLAT entry invalidates on x86."""
        flush.flush_guest(&self.c, vpid)

    def flush_asid(self, int asid, int vpid=0):
        """Drop the TLB and guest walk cache entries of one address space."""
        flush.flush_range(&self.c, tag_of(vpid, asid), 0, <uint64_t>1 << 63)

    def flush_range(self, int asid, uint64_t va, uint64_t length, int vpid=0):
        """Drop TLB entries that overlap the range, and walk-cache entries of the space."""
        flush.flush_range(&self.c, tag_of(vpid, asid), va, va + length)

    def flush_gpa(self, uint64_t gpa, uint64_t length, int vpid=0):
        """Drop what depends on the SLAT's entries for a range of one guest's memory."""
        if not self.c.targets:
            raise ValueError("flush_gpa needs an Mmu with targets")
        flush.flush_gpa(&self.c, vpid, gpa, gpa + length)

    def record_loads(self, int room=4096):
        """From now on keep the hPA of up to `room` walk loads, for `recorded_loads`."""
        cdef uint64_t *more = <uint64_t *>realloc(self.c.loads.trace, room * 8)
        if more == NULL:
            raise MemoryError()
        self.c.loads.trace, self.c.loads.trace_room, self.c.loads.traced = more, room, 0

    def recorded_loads(self):
        """The hPA of the walk loads since `record_loads`, in order."""
        return [self.c.loads.trace[i] for i in range(self.c.loads.traced)]


cdef dict with_sums(mmu.Counters counted):
    """Counters by name, with those that follow from others."""
    cdef dict counts = counted
    counts["walk_loads"] = counts["guest_loads"] + counts["host_loads"]
    counts["data_lines"] = counts["walks"]
    return counts


cdef int check_level(level) except -1:
    if not 2 <= level <= table.MAX_LEVEL:
        raise ValueError(f"walk cache level (={level}) must be in [2, {table.MAX_LEVEL}]")
    return level


cdef int set_up_part(cache.Assoc *a, part, int values) except -1:
    policies = {"lru": cache.LRU, "fifo": cache.FIFO, "plru": cache.PLRU, "random": cache.RANDOM}
    if part.entries == 0:
        return 0
    if part.policy not in policies:
        raise ValueError(f"{part} must replace by one of {", ".join(policies)}")
    most = 64 if part.policy == "plru" else 4096  # a tree's bits fit in one word
    if part.entries < 0 or part.ways < 1 or part.ways > most or part.entries % part.ways:
        raise ValueError(f"{part} must have entries that are a multiple of its 1 to {most} ways")
    if cache.assoc_init(a, part.entries, part.ways, policies[part.policy], values) != 0:
        raise MemoryError()
    return 0


cdef int set_up_tlb(mmu.Mmu *m, mmu.Tlb *t, arrays) except -1:
    cdef cache.Assoc *a
    for array in arrays:
        if array.entries == 0:
            continue
        if t.n_arrays == 8:
            raise ValueError("a TLB has at most 8 arrays")
        a = &t.array[t.n_arrays]
        set_up_part(a, array, 2 if m.targets else 0)
        t.n_arrays += 1
        for order in array.orders:
            if not 0 <= order < mmu.N_SIZES or t.banks[order] == 2:
                raise ValueError(f"{array} must hold sizes by their number in ENTRY_SHIFTS, each "
                                 "in at most two arrays")
            m.contiguous = m.contiguous or order == mmu.SIZE_OF_SHIFT[16]
            if t.banks[order] == 1 and (t.arrays[order][0].sets != a.sets
                                        or t.arrays[order][0].ways != a.ways):
                raise ValueError(f"{array} must have the shape of the other bank")
            t.arrays[order][t.banks[order]] = a
            t.banks[order] += 1
    return 0


cdef int set_up_lines(lines.LineCache *c, shape) except -1:
    if shape.bytes < 0 or shape.ways < 1 or shape.ways > 64:
        raise ValueError(f"{shape} must have 1 to 64 ways")
    if lines.lines_init(c, shape.bytes, shape.ways) != 0:
        raise MemoryError()
    return 0


include "core/shadow.pxi"
include "core/hostmem.pxi"
include "core/backing.pxi"
include "core/guestmem.pxi"
include "core/running.pxi"
include "core/sampled.pxi"
