# One vCPU running a stream of accesses, and the faults that it can take without help.
#
# A first touch is served here: the guest's kernel finds a page and fills its table, the
# host finds a frame and fills the SLAT. What takes time is only counted; the model
# charges it. Everything that must wait, or that somebody must decide (a page on the swap
# device, memory below a watermark), stops the run with a reason.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.blocks cimport (MOVABLE, NIL, NO_PAGE, Blocks, alloc_1g, alloc_2m, alloc_4k)
from simvm.core.cache cimport prefetch
from simvm.core.folios cimport Folios, folio_id, folio_push
from simvm.core.mmu cimport GUEST_FAULT, OK, Mmu, Space, access
from simvm.core.shadow cimport Shadow, Shadowed, entries_of, shadow_fill
from simvm.core.stream cimport Stream, stream_consume, stream_ready
from simvm.core.table cimport (ACCESSED, DIRTY, LEAF, SWAPPED, TARGET, Node, Table, child_of,
                               deposit, find_entry, index_at, is_child, span_of, table_map)

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

cdef enum:
    FAR = 16                 # accesses ahead to fetch a first-dimension entry
    NEAR = 8                 # ... and the host entry that it leads to

cdef enum:
    TABLE_RESERVE = 16       # frames that one fault may need for tables

cdef struct Host:
    Blocks frames
    Folios folios
    uint64_t *pool           # free hugetlb pages
    uint64_t n_pool
    uint64_t pool_room
    int pool_order
    uint64_t floor           # a fault must leave so many 4 KiB pages free
    uint64_t huge_floor      # a 2 MiB fault must leave so many, else it falls back
    uint64_t wake_below      # RUN_PRESSURE below so many; 0: do not tell
    int new_list             # where new folios go

cdef struct Backing:
    Table *table
    Host *host
    uint64_t owner
    int order                # what one fault backs, if it can
    bint deposits            # anonymous memory keeps a page table for each 2 MiB
    bint from_pool
    uint64_t end             # of guest memory; 0: none, a huge page ends with its region
    uint64_t fallbacks
    Shadow *shadow           # NULL: the processor walks `table` itself, or a SLAT does

cdef struct Region:
    uint64_t base
    uint64_t bytes
    int order                # guest page size
    bint zeroing
    uint64_t *touched        # a bit per 4 KiB page
    uint64_t n_touched

cdef struct Work:
    uint64_t at
    uint64_t end
    bint zero

cdef struct Vcpu:
    Mmu *mmu
    Work work[12]            # memory that the guest's kernel is about to write
    int n_work
    # set by the caller before each run
    uint64_t train_left
    uint64_t service_left    # ns; what is left of the train's length in time
    uint64_t fault_ns[3]
    uint64_t guest_fault_ns
    uint64_t zero_ns_per_mib
    uint64_t cycles_per_access
    uint64_t exposed         # of 2^16
    # results, cumulative
    uint64_t done
    uint64_t raw_cycles      # translation before the exposed share is taken
    uint64_t guest_faults[3]
    uint64_t slat_faults[3]
    uint64_t zeroed_bytes
    uint64_t fault_address


cdef inline void spend(Vcpu *v, uint64_t ns) noexcept nogil:
    v.service_left -= min(ns, v.service_left)


cdef inline void queue_work(Vcpu *v, uint64_t at, uint64_t size, bint zero) noexcept nogil:
    v.work[v.n_work].at = at
    v.work[v.n_work].end = at + size
    v.work[v.n_work].zero = zero
    v.n_work += 1


cdef inline int back(Vcpu *v, Space *s, Backing *b, Region *region,
                     uint64_t address) noexcept nogil:
    """Serve a first touch in the host. OK, or why it cannot be served here and now."""
    cdef Host *h = b.host
    cdef uint64_t end = b.end if b.end else region.base + region.bytes
    cdef uint64_t base = address & ~(span_of(1) - 1)
    cdef uint64_t frame = NO_PAGE
    cdef int order = 0, level = 0, n_made = 0
    cdef Node *at = NULL
    cdef Node *made[5]
    cdef uint64_t *entry = find_entry(b.table, address, &at, &level)
    cdef uint32_t i
    if entry[0] & SWAPPED:
        v.fault_address = address
        return RUN_SWAPPED
    if v.train_left == 0 or v.service_left == 0:
        return RUN_TRAIN
    v.fault_address = address
    if h.frames.free_pages < h.floor + TABLE_RESERVE:
        return RUN_NO_MEMORY
    if b.from_pool:
        if h.n_pool == 0:
            return RUN_POOL_EMPTY
        order = h.pool_order
        h.n_pool -= 1
        frame = h.pool[h.n_pool]
    elif b.order == 1:
        if level >= 2 and base + span_of(1) <= end:
            if h.frames.free_pages >= h.huge_floor + 512 + TABLE_RESERVE:
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
        folio_push(&h.folios, h.new_list, i)
    v.slat_faults[order] += 1
    v.train_left -= 1
    spend(v, v.fault_ns[order])
    return OK


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
    cdef int order = region.order, n_made = 0, i
    cdef uint64_t frame = NO_PAGE
    cdef Node *made[5]
    if v.service_left == 0:
        return RUN_TRAIN
    if memory.free_pages < TABLE_RESERVE:
        return RUN_GUEST_NO_MEMORY
    if order == 2:
        frame = alloc_1g(memory)
        if frame == NO_PAGE:
            return RUN_GUEST_NO_MEMORY
    elif order == 1:
        frame = alloc_2m(memory) if thp_fits(s.guest, region, va) else NO_PAGE
    if frame == NO_PAGE:
        order = 0
        frame = alloc_4k(memory, MOVABLE)
    table_map(s.guest, va & ~(span_of(order) - 1), frame, order, 0, made, &n_made)
    if region.zeroing:
        queue_work(v, frame, span_of(order), True)
    if order == 1:
        deposit(s.guest)
        queue_work(v, s.guest.deposits[s.guest.n_deposits - 1], 4096, False)
    for i in range(n_made):
        queue_work(v, made[i].address, 4096, False)
    v.guest_faults[order] += 1
    spend(v, v.guest_fault_ns)
    return OK


cdef inline bint thp_fits(Table *guest, Region *region, uint64_t va) noexcept nogil:
    """Whether a 2 MiB page lies within the region and nothing is mapped there yet."""
    cdef uint64_t base = va & ~(span_of(1) - 1)
    cdef Node *at = NULL
    cdef int level = 0
    if base < region.base or base + span_of(1) > region.base + region.bytes:
        return False
    find_entry(guest, va, &at, &level)
    return level >= 2


cdef inline int read_guest(Vcpu *v, Space *s, Backing *b, Region *region, uint64_t va,
                           uint64_t **entry, int *level) noexcept nogil:
    """The host reads the guest's entry for `va`; a table page must be there to be read."""
    cdef Node *node = b.shadow.process[s.asid].guest.root
    cdef Node *at = NULL
    cdef uint64_t *host
    cdef int status, unused = 0
    while True:
        host = find_entry(b.table, node.address, &at, &unused)
        if not host[0] & LEAF:
            status = back(v, s, b, region, node.address)
            if status != OK:
                return status
            continue
        host[0] |= ACCESSED
        entry[0] = &node.entry[index_at(va, node.level)]
        level[0] = node.level
        if not is_child(entry[0][0]):
            return OK
        node = child_of(entry[0][0])


cdef inline int shadow_fault(Vcpu *v, Space *s, Backing *b, Blocks *memory, Region *region,
                             uint64_t va, bint write) noexcept nogil:
    """A shadow entry is missing: fill it, or reflect the fault to the guest's kernel.

    The kernel's writes to its page tables trap, one for each entry.
    """
    cdef Shadow *shadow = b.shadow
    cdef Shadowed *process = &shadow.process[s.asid]
    cdef Space view
    cdef Node *at = NULL
    cdef uint64_t *entry = NULL
    cdef uint64_t *host
    cdef uint64_t gpa, written
    cdef int status, level = 0, host_level = 0
    if v.service_left == 0:
        return RUN_TRAIN
    status = read_guest(v, s, b, region, va, &entry, &level)
    if status != OK:
        return status
    if not entry[0] & LEAF:
        view = s[0]
        view.guest = process.guest
        written = entries_of(process.guest)
        status = guest_fault(v, &view, memory, region, va)
        if status == OK:
            written = entries_of(process.guest) - written
            shadow.writes += written
            shadow.reflected += 1
            spend(v, shadow.fill_ns + written * shadow.write_ns)
        return status
    gpa = (entry[0] & TARGET) + (va & (span_of(level - 1) - 1))
    host = find_entry(b.table, gpa, &at, &host_level)
    if not host[0] & LEAF:
        status = back(v, s, b, region, gpa)
        if status != OK:
            return status
        host = find_entry(b.table, gpa, &at, &host_level)
    v.fault_address = gpa
    if b.host.frames.free_pages < b.host.floor + TABLE_RESERVE:
        return RUN_NO_MEMORY
    entry[0] |= ACCESSED | (DIRTY if write else 0)
    shadow_fill(shadow, s.asid, va, gpa, level - 1, host[0], host_level - 1)
    spend(v, shadow.fill_ns)
    return OK


cdef inline void fetch_ahead(Space *s, Region *region, Stream *stream) noexcept nogil:
    """Fetch what later accesses will need of the simulator's own memory, from afar.

    Two steps: the guest's entry (or the native one) far ahead, then, when that has come,
    the host's entry that it leads to.
    """
    cdef uint64_t va, entry
    cdef Table *first = s.guest if s.guest != NULL else s.host
    if stream.at + FAR < stream.n:
        va = stream.next[stream.at + FAR] >> 1
        prefetch(&region.touched[va >> 18])
        prefetch(entry_ahead(first, region.base + va))
    if s.guest != NULL and stream.at + NEAR < stream.n:
        va = region.base + (stream.next[stream.at + NEAR] >> 1)
        entry = entry_ahead(first, va)[0]
        if entry & LEAF:
            prefetch(entry_ahead(s.host, (entry & TARGET) + (va & 0x1FFFFF)))


cdef inline uint64_t *entry_ahead(const Table *t, uint64_t address) noexcept nogil:
    """The lowest entry on the way to `address`."""
    cdef Node *node = t.root
    cdef uint64_t *entry
    while True:
        entry = &node.entry[index_at(address, node.level)]
        if node.level == 1 or not is_child(entry[0]):
            return entry
        node = child_of(entry[0])


cdef inline int run(Vcpu *v, Space *s, Backing *b, Blocks *memory, Region *region, Stream *stream,
                    uint64_t budget, uint64_t deadline) noexcept nogil:
    """Run until `budget` accesses are done or `deadline` cycles are used, or for a reason."""
    cdef Mmu *m = v.mmu
    cdef uint64_t start = m.count.penalty_cycles + m.count.walk_cycles + m.count.faulted_cycles
    cdef uint64_t raw = v.raw_cycles
    cdef uint64_t before = (raw * v.exposed) >> 16
    cdef uint64_t done = 0, next_access, page, bit
    cdef uint64_t *word
    cdef int status = RUN_BUDGET
    while done < budget:
        if v.n_work:
            status = do_work(v, s, b, region)
            if status != OK:
                break
        if b.host.frames.free_pages < b.host.wake_below:
            status = RUN_PRESSURE
            break
        if done * v.cycles_per_access + ((v.raw_cycles * v.exposed) >> 16) - before >= deadline:
            status = RUN_DEADLINE
            break
        if not stream_ready(stream):
            status = RUN_STREAM_END
            break
        next_access = stream.next[stream.at]
        fetch_ahead(s, region, stream)
        status = access(m, s, region.base + (next_access >> 1), next_access & 1)
        v.raw_cycles = raw - start + (
            m.count.penalty_cycles + m.count.walk_cycles + m.count.faulted_cycles)
        if status != OK:
            if status == GUEST_FAULT:
                status = guest_fault(v, s, memory, region, region.base + (next_access >> 1))
            elif b.shadow != NULL:
                status = shadow_fault(v, s, b, memory, region, region.base + (next_access >> 1),
                                      next_access & 1)
            else:
                status = back(v, s, b, region, m.fault)
            if status != OK:
                break
            status = RUN_BUDGET
            continue
        status = RUN_BUDGET
        done += 1
        stream_consume(stream)
        page = next_access >> 13
        word = &region.touched[page >> 6]
        bit = <uint64_t>1 << (page & 63)
        if not word[0] & bit:
            word[0] |= bit
            region.n_touched += 1
    v.done += done
    return status
