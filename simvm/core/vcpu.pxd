# A vCPU, and the faults that it can take without help; what it runs is in run.pxd.
#
# A first touch is served here: the guest's kernel finds a page and fills its table, the
# host finds a frame and fills the SLAT. What takes time is only counted; the model
# charges it. Everything that must wait, or that somebody must decide (a page on the swap
# device, memory below a watermark), stops the run with a reason.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from simvm.core.blocks cimport (MOVABLE, NO_PAGE, Blocks, alloc_1g, alloc_2m, alloc_4k,
                                take_stale)
from simvm.core.folios cimport Folios, folio_id, folio_push
from simvm.core.flush cimport flush_all
from simvm.core.guestmem cimport GuestKernel, note_mapped, take_pooled
from simvm.core.mmu cimport OK, Counters, Mmu, Space
from simvm.core.shadow cimport Shadow
from simvm.core.table cimport (ACCESSED, DIRTY, HELD, LEAF, PRESENT, SWAPPED, Node,
                               Table, deposit, find_entry, span_of, table_map)

cdef enum:
    RUN_BUDGET = 0           # all accesses done
    RUN_DEADLINE = 1         # the cycles are used up
    RUN_STREAM_END = 2       # the recorded trace's chunk is used up
    RUN_TRAIN = 3            # the longest train of faults: let time pass
    RUN_PRESSURE = 4         # free memory fell below the mark: wake kswapd, go on
    RUN_SWAPPED = 5          # the page is on the swap device
    RUN_NO_MEMORY = 6        # the host must reclaim first
    RUN_POOL_EMPTY = 7       # no page left in the hugetlb pool
    RUN_GUEST_NO_MEMORY = 8  # the guest has no free page of the size it must have
    RUN_PROTECTED = 9        # the host forbids access to the page, or to a neighbour of it
    RUN_LIMIT = 10           # the guest's limit: room must be made within it
    RUN_GUEST_PRESSURE = 11  # the guest's free memory fell below the mark: wake its kswapd
    RUN_GUEST_SWAPPED = 12   # the page is on the guest's own swap device
    RUN_GUEST_POOL_EMPTY = 13  # no page left in the guest's own hugetlb pool
    RUN_NO_BLOCK = 14        # a 2 MiB page would fit, and no block is free; said once

cdef enum:
    TABLE_RESERVE = 16       # frames that one fault may need for tables

cdef enum:               # of a block of guest memory
    CUT = 1                  # a boundary in it, across which no huge page may lie
    FORBIDDEN = 2            # a page in it that the host lets nobody access

cdef struct Host:
    Blocks frames
    Blocks tier              # slower memory beside `frames`, above them
    Folios folios
    uint64_t *pool           # free hugetlb pages
    uint64_t n_pool
    uint64_t pool_room
    int pool_order
    uint64_t floor           # a fault must leave so many 4 KiB pages free
    uint64_t huge_floor      # a 2 MiB fault must leave so many, else it falls back
    uint64_t wake_below      # RUN_PRESSURE below so many; 0: do not tell
    bint ask_for_block       # RUN_NO_BLOCK before a fault falls back to 4 KiB

cdef struct Backing:
    Table *table
    Host *host
    uint64_t owner
    int order                # what one fault backs, if it can
    bint deposits            # anonymous memory keeps a page table for each 2 MiB
    bint from_pool
    uint64_t end             # of guest memory; 0: none, a huge page ends with its region
    uint64_t limit           # of 4 KiB pages that may be mapped; 0: none
    uint64_t fallbacks
    uint64_t merged          # 4 KiB leaves that map frames of several owners
    uint64_t tiered          # 4 KiB leaves that map slower memory
    Shadow *shadow           # NULL: the processor walks `table` itself, or a SLAT does
    uint8_t *marks           # NULL, or of each 2 MiB block of guest memory
    uint64_t passed          # in a FORBIDDEN block: 1 + the page that may be accessed

cdef struct Region:
    uint64_t base
    uint64_t bytes
    int order                # guest page size
    bint zeroing
    bint pooled              # in huge pages of the guest's pool
    uint64_t asid            # of its process
    uint64_t *touched        # a bit per 4 KiB page
    uint64_t n_touched

cdef struct Work:
    uint64_t at
    uint64_t end
    bint zero

cdef struct Operations:      # of drawing accesses (sampled.pxd)
    uint64_t quanta
    uint64_t pieces          # of 2 MiB, each time that one was looked at
    uint64_t pages           # ... and those of a piece one by one
    uint64_t events          # played

cdef struct Vcpu:
    Mmu *mmu                 # of the host core that it is on
    Counters count
    bint untagged            # entries have no VPID: an exit to the host leaves none
    GuestKernel *kernel      # of its guest; NULL: it keeps nothing of its memory
    Work work[12]            # memory that the guest's kernel is about to write
    int n_work
    # set by the caller before each run
    uint64_t train_left
    uint64_t service_left    # ns; what is left of the train's length in time
    uint64_t fault_ns[3]
    uint64_t remap_ns        # of a fault that finds a held frame
    uint64_t guest_fault_ns
    uint64_t zero_ns_per_mib
    uint64_t cycles_per_access
    uint64_t exposed         # of 2^16
    bint ahead               # whether the last run missed so much that it fetched ahead
    # results, cumulative
    uint64_t done
    uint64_t raw_cycles      # translation before the exposed share is taken
    uint64_t guest_faults[3]
    uint64_t slat_faults[3]
    uint64_t remapped        # faults that found a held frame
    uint64_t zeroed_bytes
    uint64_t reuse_bytes     # the part of them zeroed because somebody had used them before
    uint64_t fault_address
    uint64_t asked           # 1 + the address of the last RUN_NO_BLOCK
    Operations operations


cdef inline void spend(Vcpu *v, uint64_t ns) noexcept nogil:
    v.service_left -= min(ns, v.service_left)


cdef inline void queue_work(Vcpu *v, uint64_t at, uint64_t size, bint zero) noexcept nogil:
    v.work[v.n_work].at = at
    v.work[v.n_work].end = at + size
    v.work[v.n_work].zero = zero
    v.n_work += 1


cdef inline bint within_limit(const Backing *b, uint64_t pages) noexcept nogil:
    """Whether so many pages more are allowed (mem_cgroup_charge, mm/memcontrol.c)."""
    cdef const uint64_t *leaves = b.table.leaves
    return b.limit == 0 or leaves[0] + 512 * leaves[1] + pages <= b.limit


cdef inline int back(Vcpu *v, Space *s, Backing *b, Region *region,
                     uint64_t address) noexcept nogil:
    """Serve a first touch in the host. OK, or why it cannot be served here and now."""
    cdef Host *h = b.host
    cdef uint64_t end = b.end if b.end else region.base + region.bytes
    cdef int order = 0, level = 0
    cdef Node *at = NULL
    cdef uint64_t *entry = find_entry(b.table, address, &at, &level)
    if (b.marks != NULL and b.marks[address >> 21] & FORBIDDEN
            and b.passed != (address >> 12) + 1):
        v.fault_address = address
        return RUN_PROTECTED
    if entry[0] & SWAPPED:
        v.fault_address = address
        return RUN_SWAPPED
    if v.train_left == 0 or v.service_left == 0:
        return RUN_TRAIN
    v.fault_address = address
    if entry[0] & HELD:
        entry[0] ^= HELD | LEAF | PRESENT
        b.table.held -= span_of(level - 1) >> 12
        v.remapped += 1
        spend(v, v.remap_ns)
    else:
        if h.frames.free_pages < h.floor + TABLE_RESERVE:
            return RUN_NO_MEMORY
        if not within_limit(b, 1):
            return RUN_LIMIT
        if (h.ask_for_block and h.frames.free_blocks == 0 and fits_2m(b, address, level, end)
                and v.asked != (address & ~(span_of(1) - 1)) + 1):
            v.asked = (address & ~(span_of(1) - 1)) + 1
            return RUN_NO_BLOCK
        order = map_new(b, address, level, end, 0)
        if order < 0:
            return RUN_POOL_EMPTY
        v.slat_faults[order] += 1
        spend(v, v.fault_ns[order])
    b.passed = 0
    if v.untagged:
        flush_all(v.mmu)
    v.train_left -= 1
    return OK


cdef inline bint fits_2m(const Backing *b, uint64_t address, int level,
                         uint64_t end) noexcept nogil:
    """Whether a fault may back 2 MiB around `address`, if there is a block for it."""
    cdef uint64_t base = address & ~(span_of(1) - 1)
    return (b.order == 1 and not b.from_pool and level >= 2 and base + span_of(1) <= end
            and within_limit(b, 512)
            and (b.marks == NULL or not b.marks[base >> 21] & CUT)
            and b.host.frames.free_pages >= b.host.huge_floor + 512 + TABLE_RESERVE)


cdef inline int map_new(Backing *b, uint64_t address, int level, uint64_t end,
                        int which) noexcept nogil:
    """Map a new frame at `address`, where the walk ends at `level`: its order.

    Its folio joins the list `which` (0: that for new ones). -1 when the hugetlb pool has none.
    """
    cdef Host *h = b.host
    cdef uint64_t frame = NO_PAGE
    cdef int order = 0, n_made = 0
    cdef Node *made[5]
    cdef uint32_t i
    if b.from_pool:
        if h.n_pool == 0:
            return -1
        order = h.pool_order
        h.n_pool -= 1
        frame = h.pool[h.n_pool]
    elif b.order == 1:
        if fits_2m(b, address, level, end):
            frame = alloc_2m(&h.frames)
        if frame != NO_PAGE:
            order = 1
        else:
            b.fallbacks += 1
    if frame == NO_PAGE:
        frame = alloc_4k(&h.frames, MOVABLE)
    table_map(b.table, address & ~(span_of(order) - 1), frame, order, 0, made, &n_made)
    if not b.from_pool:
        if order == 1 and b.deposits:
            deposit(b.table)
        i = folio_id(&h.folios, frame, order)
        h.folios.owner[i] = (b.owner << 40) | ((address & ~(span_of(order) - 1)) >> 12)
        folio_push(&h.folios, which, i)
    return order


cdef inline int do_work(Vcpu *v, Space *s, Backing *b, Region *region) noexcept nogil:
    """Let the guest's kernel write what is queued: tables it made, pages it zeroes."""
    cdef Work *w
    cdef uint64_t *entry
    cdef uint64_t n
    cdef Node *at = NULL
    cdef int level = 0, status
    while v.n_work > 0:
        w = &v.work[v.n_work - 1]
        while w.at < w.end:
            entry = find_entry(b.table, w.at, &at, &level)
            if not entry[0] & LEAF:
                status = back(v, s, b, region, w.at)
                if status != OK:
                    return status
                continue
            if v.service_left == 0:
                return RUN_TRAIN
            entry[0] |= ACCESSED | DIRTY
            n = min(((w.at >> (3 + 9 * level)) + 1) << (3 + 9 * level), w.end) - w.at
            if w.zero:
                n = min(n, span_of(1))
                v.zeroed_bytes += n
                spend(v, (n * v.zero_ns_per_mib) >> 20)
            w.at += n
        v.n_work -= 1
    return OK


cdef inline int guest_fault(Vcpu *v, Space *s, Blocks *memory, Region *region,
                            uint64_t va) noexcept nogil:
    """The guest's kernel maps the page at `va` and queues what it must write for that."""
    cdef int order = region.order, n_made = 0, i, status
    cdef uint64_t frame = NO_PAGE
    cdef Node *made[5]
    cdef bint zero = region.zeroing
    if v.service_left == 0:
        return RUN_TRAIN
    if v.kernel != NULL:
        status = kernel_allows(v, s, memory, va)
        if status != OK:
            return status
    if memory.free_pages < TABLE_RESERVE:
        return RUN_GUEST_NO_MEMORY
    if region.pooled:
        frame = take_pooled(v.kernel, order)
        if frame == NO_PAGE:
            return RUN_GUEST_POOL_EMPTY
    elif order == 2:
        frame = alloc_1g(memory)
        if frame == NO_PAGE:
            return RUN_GUEST_NO_MEMORY
    elif order == 1 and huge_allowed(v, memory) and thp_fits(s.guest, region, va):
        frame = alloc_2m(memory)
    if frame == NO_PAGE:
        order = 0
        frame = alloc_4k(memory, MOVABLE)
    table_map(s.guest, va & ~(span_of(order) - 1), frame, order, 0, made, &n_made)
    if take_stale(memory, frame, span_of(order) >> 12) and not zero:
        zero = True
        v.reuse_bytes += span_of(order)
    if zero:
        queue_work(v, frame, span_of(order), True)
    if order == 1 and not region.pooled:
        deposit(s.guest)
        queue_work(v, s.guest.deposits[s.guest.n_deposits - 1], 4096, False)
    for i in range(n_made):
        queue_work(v, made[i].address, 4096, False)
    if v.kernel != NULL and not region.pooled:
        note_mapped(v.kernel, frame, order, region.asid, va & ~(span_of(order) - 1))
    v.guest_faults[order] += 1
    spend(v, v.guest_fault_ns)
    return OK


cdef inline int kernel_allows(Vcpu *v, const Space *s, const Blocks *memory,
                              uint64_t va) noexcept nogil:
    """OK, or why a kernel that keeps account of its memory cannot serve a fault at once."""
    cdef GuestKernel *k = v.kernel
    cdef Node *at = NULL
    cdef int level = 0
    v.fault_address = va
    if find_entry(s.guest, va, &at, &level)[0] & SWAPPED:
        return RUN_GUEST_SWAPPED
    if memory.free_pages < k.floor + TABLE_RESERVE:
        return RUN_GUEST_NO_MEMORY
    if memory.free_pages < k.wake_below:
        return RUN_GUEST_PRESSURE
    return OK


cdef inline bint huge_allowed(const Vcpu *v, const Blocks *memory) noexcept nogil:
    """A 2 MiB page must leave memory above the low watermark: it does not reclaim for itself."""
    return v.kernel == NULL or memory.free_pages >= v.kernel.huge_floor + 512 + TABLE_RESERVE


cdef inline bint thp_fits(Table *guest, Region *region, uint64_t va) noexcept nogil:
    """Whether a 2 MiB page lies within the region and nothing is mapped there yet."""
    cdef uint64_t base = va & ~(span_of(1) - 1)
    cdef Node *at = NULL
    cdef int level = 0
    if base < region.base or base + span_of(1) > region.base + region.bytes:
        return False
    find_entry(guest, va, &at, &level)
    return level >= 2
