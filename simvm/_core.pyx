"""The compiled core: MMUs, page tables, memory, access generators, and the run loop.

The algorithms are in the headers of `simvm/core/`, one idea a file; this module is their
door to Python. It validates, owns memory, and gives one class to each structure:

* `BlockAllocator`, `HostMemory`: memory in 2 MiB blocks; frames, folios, hugetlb pool
* `PageTable`, `AddressSpace`, `Mmu`: translation (docs/translation.md)
* `Shadow`: shadow tables, for a guest without a SLAT
* `Backing`, `Region`, `Stream`, `Vcpu`: a vCPU that runs accesses in a named region

It imports nothing of simvm. Addresses and sizes are bytes, latencies cycles, times ns.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset
from cpython.pycapsule cimport PyCapsule_GetPointer
from numpy.random cimport bitgen_t

cimport simvm.core.blocks as blocks
cimport simvm.core.cache as cache
cimport simvm.core.folios as folios
cimport simvm.core.hostmem as hostmem
cimport simvm.core.mmu as mmu
cimport simvm.core.shadow as shadow
cimport simvm.core.stream as stream
cimport simvm.core.table as table
cimport simvm.core.vcpu as vcpu

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
RUN_GUEST_NO_MEMORY = vcpu.RUN_GUEST_NO_MEMORY
PARTIAL_LIST = hostmem.PARTIAL_LIST

Leaf = namedtuple("Leaf", ["base", "target", "order", "accessed", "dirty"])

cdef uint64_t MAX_ADDRESS = <uint64_t>1 << 46


def source_digest():
    """SHA-256 of the sources that this core was compiled from."""
    return SIMVM_CORE_DIGEST.decode()


def debug_build():
    """Whether the core was compiled with its bounds checks on."""
    return bool(SIMVM_IS_DEBUG)


cdef class BlockAllocator:
    """`size` bytes of memory from `base` up, in 2 MiB blocks (a rest is not used)."""

    def __cinit__(self, size, base=0):
        if size < 0 or size >= MAX_ADDRESS or base < 0 or base % (1 << 30):
            raise ValueError("size must be in [0, 2^46) and base a multiple of 1 GiB")
        self.c = &self.own
        if blocks.blocks_init(self.c, size, base) != 0:
            raise MemoryError()

    def __dealloc__(self):
        blocks.blocks_free(&self.own)

    def allocate_4k(self, movable=True):
        """Address of a page. MemoryError when none is free."""
        return self._given(blocks.alloc_4k(self.c, blocks.MOVABLE if movable else blocks.UNMOVABLE))

    def allocate_2m(self):
        """Address of a whole block. MemoryError when none is whole."""
        return self._given(blocks.alloc_2m(self.c))

    def allocate_1g(self):
        """Address of an aligned 1 GiB. MemoryError when none is whole."""
        return self._given(blocks.alloc_1g(self.c))

    def _given(self, uint64_t address):
        if address == blocks.NO_PAGE:
            raise MemoryError("no free page of that size")
        return address

    def free_4k(self, uint64_t address):
        """Give a page back. ValueError when it is not in use."""
        if address < self.c.base or blocks.free_4k(self.c, address) != 0:
            raise ValueError(f"page {address:#x} is not in use")

    def free_2m(self, uint64_t address):
        """Give a block back. ValueError when it is not allocated whole."""
        if address < self.c.base or blocks.free_2m(self.c, address) != 0:
            raise ValueError(f"block {address:#x} is not in use")

    def free_1g(self, uint64_t address):
        """Give 1 GiB back. ValueError when it is not allocated so."""
        if address < self.c.base or blocks.free_1g(self.c, address) != 0:
            raise ValueError(f"1 GiB page {address:#x} is not in use")

    def break_2m(self, uint64_t address):
        """Turn an allocated block into 512 allocated pages."""
        if address < self.c.base or blocks.break_2m(self.c, address) != 0:
            raise ValueError(f"block {address:#x} is not in use")

    def free_many(self, const uint64_t[::1] addresses):
        """Give 4 KiB pages back."""
        cdef Py_ssize_t i
        for i in range(addresses.shape[0]):
            if blocks.free_4k(self.c, addresses[i]) != 0:
                raise ValueError(f"page {addresses[i]:#x} is not in use")

    def reserve_low(self, uint64_t size):
        """Take the lowest `size` bytes for good. MemoryError when they are not free."""
        if blocks.reserve_low(self.c, size) != 0:
            raise MemoryError(f"cannot reserve {size} bytes")

    @property
    def size(self):
        """Bytes in all."""
        return <uint64_t>self.c.n << 21

    @property
    def free_bytes(self):
        """Free bytes, in blocks whole and broken."""
        return self.c.free_pages << 12

    @property
    def free_blocks(self):
        """Whole free blocks."""
        return self.c.free_blocks

    def recount(self):
        """Free bytes counted page by page: the thorough check of `free_bytes`."""
        return blocks.count_free(self.c) << 12


cdef class PageTable:
    """A page table whose pages come from `memory`; `mirrored` as a SLAT beside its VMM's."""

    def __cinit__(self, int levels, BlockAllocator memory, mirrored=False):
        if levels < 3 or levels > mmu.MAX_LEVEL:
            raise ValueError(f"levels (={levels}) must be 3, 4 or 5")
        self.memory = memory
        if table.table_init(&self.c, levels, memory.c, mirrored) != 0:
            raise MemoryError("no memory for a page table")

    def __dealloc__(self):
        table.table_destroy(&self.c, False)

    cdef uint64_t* _leaf(self, uint64_t address, table.Node **at, int *order) except NULL:
        cdef uint64_t *entry
        if self.c.root == NULL or address >> table.shift_of(self.c.levels + 1):
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
        if order < 0 or order > 2:
            raise ValueError(f"order (={order}) must be 0, 1 or 2")
        size = table.span_of(order)
        if address % size or target % size or address >> table.shift_of(self.c.levels + 1):
            raise ValueError(f"{address:#x} -> {target:#x} is not aligned to {size:#x}")
        if self._overlaps(address, order):
            raise ValueError(f"{address:#x} overlaps another mapping")
        status = table.table_map(&self.c, address, target, order, 0, made, &n_made)
        if status == table.MAP_NO_MEMORY:
            raise MemoryError("no memory for a page table")

    cdef bint _overlaps(self, uint64_t address, int order):
        cdef table.Node *node = self.c.root
        cdef uint64_t entry
        while True:
            entry = node.entry[table.index_at(address, node.level)]
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
        table.clear_entry(&self.c, at, table.index_at(address, at.level))
        return target, order

    def split(self, uint64_t address):
        """Replace a large leaf by 512 smaller ones. KeyError absent, ValueError 4 KiB."""
        cdef table.Node *at = NULL
        cdef int order = 0
        self._leaf(address, &at, &order)
        if order == 0:
            raise ValueError(f"{address:#x} is mapped by a 4 KiB leaf")
        if table.table_split(&self.c, at, table.index_at(address, at.level)) != 0:
            raise MemoryError("no memory for a page table")

    def prune(self):
        """Release every table page but the root that holds nothing."""
        prune_below(&self.c, self.c.root)

    def lookup(self, uint64_t address):
        """The leaf that maps `address`, or None."""
        cdef table.Node *at = NULL
        cdef int order = 0
        cdef uint64_t *entry
        if self.c.root == NULL or address >> table.shift_of(self.c.levels + 1):
            return None
        entry = table.find_leaf(&self.c, address, &at, &order)
        if entry == NULL:
            return None
        return Leaf(address & ~(table.span_of(order) - 1), entry[0] & table.TARGET, order,
                    bool(entry[0] & table.ACCESSED), bool(entry[0] & table.DIRTY))

    def clear_accessed(self, uint64_t address):
        """Clear A of the leaf that maps `address`; its value before. KeyError when absent."""
        cdef table.Node *at = NULL
        cdef int order = 0
        cdef uint64_t *entry = self._leaf(address, &at, &order)
        cdef bint before = entry[0] & table.ACCESSED
        entry[0] &= ~<uint64_t>table.ACCESSED
        return before

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
        """Table pages, the root included, mirrors not."""
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
        """Leaves by order."""
        return self.c.leaves[0], self.c.leaves[1], self.c.leaves[2]

    @property
    def swapped_pages(self):
        """4 KiB pages whose content is on the swap device."""
        return self.c.swapped


cdef void prune_below(table.Table *t, table.Node *node) noexcept:
    cdef int i
    cdef table.Node *child
    if node.level == 1:
        return
    for i in range(512):
        if table.is_child(node.entry[i]):
            child = table.child_of(node.entry[i])
            prune_below(t, child)
            if child.used == 0:
                node.entry[i] = 0
                node.used -= 1
                table.node_release(t, child)


cdef class AddressSpace:
    """What a process's accesses go through: a guest table over `host`, or `host` alone."""

    def __cinit__(self, int asid, PageTable host, PageTable guest=None):
        if asid < 0 or asid > 65534:
            raise ValueError(f"asid (={asid}) must be in [0, 65534]")
        self.host = host
        self.guest = guest
        self.c.asid = asid
        self.c.host = &host.c
        self.c.guest = NULL if guest is None else &guest.c

    @property
    def asid(self):
        """The number that tags its entries in TLBs and walk caches."""
        return self.c.asid


cdef class Mmu:
    """One vCPU's MMU, of the shape that a `MmuGeometry` describes."""

    def __cinit__(self, geometry):
        memset(&self.c, 0, sizeof(mmu.Mmu))
        if geometry.style not in ("intel", "amd"):
            raise ValueError(f"style (={geometry.style}) must be intel or amd")
        self.c.style = mmu.INTEL if geometry.style == "intel" else mmu.AMD
        self.c.l2_penalty = geometry.l2_penalty
        self.c.walk_cache_latency = geometry.walk_cache_latency
        self.c.l2_latency = geometry.cache_l2.latency
        self.c.llc_latency = geometry.cache_llc.latency
        self.c.dram_latency = geometry.dram_latency
        set_up_tlb(&self.c.l1_load, geometry.l1_load)
        if geometry.l1_store is None:
            self.c.l1_store = &self.c.l1_load
        else:
            set_up_tlb(&self.c.l1_store_own, geometry.l1_store)
            self.c.l1_store = &self.c.l1_store_own
        set_up_tlb(&self.c.l2, geometry.l2)
        for part in geometry.guest_walk_cache:
            set_up_part(&self.c.guest_cache[check_level(part.level)], part, 2)
        for part in geometry.host_walk_cache:
            set_up_part(&self.c.host_cache[check_level(part.level)], part, 1)
        set_up_part(&self.c.nested_tlb, geometry.nested_tlb, 1)
        set_up_lines(&self.c.lines_l2, geometry.cache_l2)
        set_up_lines(&self.c.lines_llc, geometry.cache_llc)

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
        free(self.c.lines_l2.tags)
        free(self.c.lines_llc.tags)
        free(self.c.trace)

    def access(self, AddressSpace space, uint64_t va, bint write=False):
        """One access: (OK, 0), or (GUEST_FAULT | SLAT_FAULT, the page that is missing)."""
        cdef table.Table *t = space.c.guest if space.c.guest != NULL else space.c.host
        cdef int status
        if va >> table.shift_of(t.levels + 1):
            raise ValueError(f"{va:#x} is beyond the address space")
        status = mmu.access(&self.c, &space.c, va, write)
        return status, self.c.fault if status != mmu.OK else 0

    @property
    def reach(self):
        """Host memory (bytes) that the data caches tell apart: their tags have 32 bits."""
        cdef uint64_t sets = 1 << 20
        if self.c.lines_l2.tags != NULL:
            sets = min(sets, self.c.lines_l2.sets)
        if self.c.lines_llc.tags != NULL:
            sets = min(sets, self.c.lines_llc.sets)
        return ((<uint64_t>1 << 32) - 1) * sets * 64

    def counters(self):
        """What docs/translation.md counts, since the MMU was made."""
        cdef dict counts = self.c.count
        return counts

    def flush_all(self):
        """Drop TLBs, walk caches and nested TLB."""
        mmu.flush_all(&self.c)

    def flush_guest(self):
        """Drop what a change of a SLAT entry invalidates on x86: everything of the guest."""
        mmu.flush_all(&self.c)

    def flush_asid(self, uint64_t asid):
        """Drop the TLB and guest walk cache entries of one address space."""
        mmu.flush_range(&self.c, asid, 0, <uint64_t>1 << 63)

    def flush_range(self, uint64_t asid, uint64_t va, uint64_t length):
        """Drop TLB entries that overlap the range, and walk-cache entries of the space."""
        mmu.flush_range(&self.c, asid, va, va + length)

    def record_loads(self, int room=4096):
        """From now on keep the hPA of up to `room` walk loads, for `recorded_loads`."""
        cdef uint64_t *more = <uint64_t *>realloc(self.c.trace, room * 8)
        if more == NULL:
            raise MemoryError()
        self.c.trace, self.c.trace_room, self.c.traced = more, room, 0

    def recorded_loads(self):
        """The hPA of the walk loads since `record_loads`, in order."""
        return [self.c.trace[i] for i in range(self.c.traced)]


cdef int check_level(level) except -1:
    if not 2 <= level <= mmu.MAX_LEVEL:
        raise ValueError(f"walk cache level (={level}) must be in [2, {mmu.MAX_LEVEL}]")
    return level


cdef int set_up_part(cache.Assoc *a, part, int values) except -1:
    policies = {"lru": cache.LRU, "plru": cache.PLRU}
    if part.entries == 0:
        return 0
    if part.policy not in policies:
        raise ValueError(f"{part} must replace by lru or plru")
    most = 64 if part.policy == "plru" else 4096  # a tree's bits fit in one word
    if part.entries < 0 or part.ways < 1 or part.ways > most or part.entries % part.ways:
        raise ValueError(f"{part} must have entries that are a multiple of its 1 to {most} ways")
    if cache.assoc_init(a, part.entries, part.ways, policies[part.policy], values) != 0:
        raise MemoryError()
    return 0


cdef int set_up_tlb(mmu.Tlb *t, arrays) except -1:
    cdef cache.Assoc *a
    for array in arrays:
        if array.entries == 0:
            continue
        if t.n_arrays == 8:
            raise ValueError("a TLB has at most 8 arrays")
        a = &t.array[t.n_arrays]
        set_up_part(a, array, 0)
        t.n_arrays += 1
        for order in array.orders:
            if order not in (0, 1, 2) or t.banks[order] == 2:
                raise ValueError(f"{array} must hold orders 0 to 2, each in at most two arrays")
            if t.banks[order] == 1 and (t.arrays[order][0].sets != a.sets
                                        or t.arrays[order][0].ways != a.ways):
                raise ValueError(f"{array} must have the shape of the other bank")
            t.arrays[order][t.banks[order]] = a
            t.banks[order] += 1
    return 0


cdef int set_up_lines(cache.LineCache *lines, shape) except -1:
    if shape.bytes < 0 or shape.ways < 1 or shape.ways > 64:
        raise ValueError(f"{shape} must have 1 to 64 ways")
    if cache.lines_init(lines, shape.bytes, shape.ways) != 0:
        raise MemoryError()
    return 0


include "core/shadow.pxi"
include "core/hostmem.pxi"
include "core/running.pxi"
