# One vCPU's MMU: TLBs, walk caches, nested TLB, data caches, and the walk itself.
#
# Implements docs/translation.md; the readable twin is simvm/reference.py. Each function
# here is one step of that page, in its order.

from libc.stdint cimport int64_t, uint64_t
from simvm.core.cache cimport (EMPTY, Assoc, LineCache, assoc_find, assoc_flush, assoc_insert,
                               assoc_remove,
                               likely, lines_touch, set_of)
from simvm.core.table cimport (ACCESSED, DIRTY, LEAF, TARGET, Node, Table, child_of,
                               find_leaf, is_child, shift_of, span_of)

cdef enum:
    OK = 0
    GUEST_FAULT = 1
    SLAT_FAULT = 2

cdef enum:
    INTEL = 0
    AMD = 1

cdef enum:
    MAX_LEVEL = 5

cdef struct Counters:
    uint64_t accesses
    uint64_t l1_hits
    uint64_t l2_hits
    uint64_t tlb_misses
    uint64_t walks
    uint64_t walk_loads
    uint64_t guest_loads
    uint64_t host_loads
    uint64_t walk_cycles
    uint64_t penalty_cycles
    uint64_t faulted_loads
    uint64_t faulted_cycles
    uint64_t dirty_updates
    uint64_t nested_tlb_hits
    uint64_t host_walk_cache_hits
    uint64_t guest_walk_cache_hits
    uint64_t l2_loads
    uint64_t llc_loads
    uint64_t dram_loads
    uint64_t data_lines

cdef struct Tlb:
    Assoc *arrays[3][2]   # by order: the array, and the second bank where there is one
    int banks[3]
    int live              # bit o: an entry of order o may be present
    int n_arrays
    Assoc array[8]

cdef struct Mmu:
    int style
    uint64_t l2_penalty
    uint64_t walk_cache_latency
    uint64_t l2_latency
    uint64_t llc_latency
    uint64_t dram_latency
    Tlb l1_load
    Tlb l1_store_own
    Tlb *l1_store
    Tlb l2
    Assoc guest_cache[6]      # by level; sets == 0 where absent
    Assoc host_cache[6]
    Assoc nested_tlb
    LineCache lines_l2
    LineCache lines_llc
    Counters count
    # the walk under way
    uint64_t loads_guest
    uint64_t loads_host
    uint64_t cycles
    uint64_t fault
    # the hPA of each load, for `simvm walk`; NULL when nobody asks
    uint64_t *trace
    uint64_t trace_room
    uint64_t traced

cdef struct Space:
    uint64_t asid
    Table *guest     # NULL: native
    Table *host


cdef inline uint64_t tlb_key(uint64_t asid, uint64_t order, uint64_t page) noexcept nogil:
    """Entries of several orders share arrays, so the order is part of the key."""
    return (asid << 47) | (order << 45) | page


cdef inline uint64_t asid_of(uint64_t word) noexcept nogil:
    return word >> 48


cdef inline Assoc *tlb_array(Tlb *t, int order, uint64_t page, uint64_t *s) noexcept nogil:
    """The array of `order` that may hold `page`, and the set. Two banks act as one."""
    cdef Assoc *a = t.arrays[order][0]
    s[0] = set_of(a, page)
    if t.banks[order] == 2:
        return t.arrays[order][(page // a.sets) & 1]
    return a


cdef inline uint64_t *tlb_find(Tlb *t, uint64_t asid, uint64_t va, int *order) noexcept nogil:
    cdef int o
    cdef uint64_t page, s
    cdef int64_t i
    cdef Assoc *a
    for o in range(3):
        if (t.live >> o) & 1:
            page = va >> (12 + 9 * o)
            a = tlb_array(t, o, page, &s)
            i = assoc_find(a, s, tlb_key(asid, o, page))
            if i >= 0:
                order[0] = o
                return a.keys + i
    return NULL


cdef inline uint64_t *tlb_insert(Tlb *t, uint64_t asid, uint64_t va, int order,
                                 uint64_t dirty) noexcept nogil:
    cdef uint64_t page = va >> (12 + 9 * order)
    cdef uint64_t s
    cdef Assoc *a
    if t.banks[order] == 0:
        return NULL
    a = tlb_array(t, order, page, &s)
    t.live |= 1 << order
    return a.keys + assoc_insert(a, s, tlb_key(asid, order, page), dirty)


cdef inline void tlb_flush(Tlb *t) noexcept nogil:
    cdef int i
    if t.live:
        for i in range(t.n_arrays):
            assoc_flush(&t.array[i])
    t.live = 0


cdef inline void tlb_flush_range(Tlb *t, uint64_t asid, uint64_t va, uint64_t end) noexcept nogil:
    """Drop what overlaps [va, end) of one address space."""
    cdef int n, o
    cdef uint64_t i, key, first, last
    cdef Assoc *a
    for n in range(t.n_arrays):
        a = &t.array[n]
        i = 0
        while i < a.sets * a.ways:
            if a.keys[i] != EMPTY and asid_of(a.keys[i]) == asid:
                key = a.keys[i] >> 1
                o = (key >> 45) & 3
                first = (key & ((<uint64_t>1 << 45) - 1)) << (12 + 9 * o)
                last = first + (span_of(o) - 1)
                if first < end and last >= va:
                    assoc_remove(a, i)
                    if a.tree == 0:
                        continue      # the next entry has moved into this place
            i += 1


cdef inline uint64_t line_latency(Mmu *m, uint64_t line, int *served) noexcept nogil:
    """Send one line through the data caches."""
    if m.lines_l2.tags != NULL and lines_touch(&m.lines_l2, line):
        served[0] = 0
        return m.l2_latency
    if m.lines_llc.tags != NULL and lines_touch(&m.lines_llc, line):
        served[0] = 1
        return m.llc_latency
    served[0] = 2
    return m.dram_latency


cdef inline void load(Mmu *m, uint64_t hpa) noexcept nogil:
    cdef int served
    m.cycles += line_latency(m, hpa >> 6, &served)
    if served == 0:
        m.count.l2_loads += 1
    elif served == 1:
        m.count.llc_loads += 1
    else:
        m.count.dram_loads += 1
    if m.trace != NULL and m.traced < m.trace_room:
        m.trace[m.traced] = hpa
        m.traced += 1


cdef inline int64_t part_find(Assoc *part, uint64_t asid, uint64_t number) noexcept nogil:
    if part.sets == 0:
        return -1
    return assoc_find(part, set_of(part, number), tlb_key(asid, 0, number))


cdef inline int64_t part_insert(Assoc *part, uint64_t asid, uint64_t number) noexcept nogil:
    return assoc_insert(part, set_of(part, number), tlb_key(asid, 0, number), 0)


cdef inline int nested_walk(Mmu *m, Table *host, uint64_t gpa, bint is_table, uint64_t *hpa,
                            uint64_t **leaf, int *order) noexcept nogil:
    """gPA -> hPA. Sets A and D of the leaf under a guest table page."""
    cdef Node *node = host.root
    cdef uint64_t *entry
    cdef uint64_t number
    cdef int64_t i
    cdef int o, level
    cdef Assoc *part
    if is_table and m.nested_tlb.sets:
        for o in range(3):
            number = gpa >> (12 + 9 * o)
            i = assoc_find(&m.nested_tlb, set_of(&m.nested_tlb, number), (number << 2) | o)
            if i >= 0:
                m.cycles += m.walk_cache_latency
                m.count.nested_tlb_hits += 1
                hpa[0] = m.nested_tlb.values[i] + (gpa & (span_of(o) - 1))
                return OK
    for level in range(2, host.levels + 1):
        part = &m.host_cache[level]
        i = part_find(part, 0, gpa >> shift_of(level))
        if i >= 0:
            m.cycles += m.walk_cache_latency
            m.count.host_walk_cache_hits += 1
            node = <Node *>part.values[i]
            break
    while True:
        level = node.level
        load(m, node.address + 8 * ((gpa >> shift_of(level)) & 511))
        m.loads_host += 1
        entry = &node.entry[(gpa >> shift_of(level)) & 511]
        if not is_child(entry[0]):
            break
        node = child_of(entry[0])
        part = &m.host_cache[level]
        if part.sets:
            part.values[part_insert(part, 0, gpa >> shift_of(level))] = <uint64_t>node
    if not entry[0] & LEAF:
        m.fault = gpa & TARGET
        return SLAT_FAULT
    o = level - 1
    hpa[0] = (entry[0] & TARGET) + (gpa & (span_of(o) - 1))
    order[0] = o
    leaf[0] = entry
    if is_table:
        entry[0] |= ACCESSED | DIRTY
        if m.nested_tlb.sets:
            number = gpa >> (12 + 9 * o)
            i = assoc_insert(&m.nested_tlb, set_of(&m.nested_tlb, number), (number << 2) | o, 0)
            m.nested_tlb.values[i] = entry[0] & TARGET
    return OK


cdef inline int walk(Mmu *m, Space *s, uint64_t va, bint write, uint64_t *data_hpa, int *order,
                     uint64_t *dirty) noexcept nogil:
    """Translate `va` from the tables. Counts nothing but cache hits: the caller does."""
    cdef Table *table = s.guest if s.guest != NULL else s.host
    cdef bint nested = s.guest != NULL
    cdef Node *node = table.root
    cdef Node *child
    cdef uint64_t hpa = 0, gpa
    cdef uint64_t bits = ACCESSED | (DIRTY if write else 0)
    cdef uint64_t *entry
    cdef uint64_t *leaf = NULL
    cdef int level, host_order = 0, status, read_level = 0
    cdef bint known = not nested         # hPA of `node` is known
    cdef int64_t i
    cdef Assoc *part
    for level in range(2, table.levels + 1):
        part = &m.guest_cache[level]
        i = part_find(part, s.asid, va >> shift_of(level))
        if i >= 0:
            m.cycles += m.walk_cache_latency
            m.count.guest_walk_cache_hits += 1
            node = <Node *>part.values[i]
            if nested and m.style == INTEL:
                hpa = part.pages[i]
                known = True
            break
    while True:
        level = node.level
        if not nested:
            hpa = node.address
        elif not known:
            status = nested_walk(m, s.host, node.address, True, &hpa, &leaf, &host_order)
            if status != OK:
                return status
            if m.style == INTEL and read_level:
                part = &m.guest_cache[read_level]
                if part.sets:
                    i = part_insert(part, s.asid, va >> shift_of(read_level))
                    part.values[i] = <uint64_t>node
                    part.pages[i] = hpa
        load(m, hpa + 8 * ((va >> shift_of(level)) & 511))
        if nested:
            m.loads_guest += 1
        else:
            m.loads_host += 1
        entry = &node.entry[(va >> shift_of(level)) & 511]
        if not is_child(entry[0]):
            break
        child = child_of(entry[0])
        part = &m.guest_cache[level]
        if part.sets and (not nested or m.style == AMD):
            part.values[part_insert(part, s.asid, va >> shift_of(level))] = <uint64_t>child
        read_level = level
        known = not nested
        node = child
    if not entry[0] & LEAF:
        m.fault = va & TARGET
        return GUEST_FAULT if nested else SLAT_FAULT
    level -= 1                           # now the leaf's order
    gpa = (entry[0] & TARGET) + (va & (span_of(level) - 1))
    if not nested:
        entry[0] |= bits
        data_hpa[0] = gpa
        order[0] = level
        dirty[0] = (entry[0] & DIRTY) != 0
        return OK
    status = nested_walk(m, s.host, gpa, False, data_hpa, &leaf, &host_order)
    if status != OK:
        return status
    entry[0] |= bits
    leaf[0] |= bits
    order[0] = min(level, host_order)
    dirty[0] = (entry[0] & leaf[0] & DIRTY) != 0
    return OK


cdef inline void set_dirty(Mmu *m, Space *s, uint64_t va) noexcept nogil:
    """D of the leaves that map `va` now (a stale entry finds none)."""
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry
    cdef uint64_t *leaf
    m.count.dirty_updates += 1
    entry = find_leaf(s.guest if s.guest != NULL else s.host, va, &at, &order)
    if entry == NULL:
        return
    if s.guest != NULL:
        leaf = find_leaf(s.host, (entry[0] & TARGET) + (va & (span_of(order) - 1)), &at, &order)
        if leaf == NULL:
            return
        leaf[0] |= DIRTY
    entry[0] |= DIRTY


cdef inline int access_missing_l1(Mmu *m, Space *s, Tlb *l1, uint64_t va,
                                  bint write) noexcept nogil:
    cdef int order = 0, status, served
    cdef uint64_t hpa = 0, dirty = 0
    cdef uint64_t *entry = tlb_find(&m.l2, s.asid, va, &order)
    cdef uint64_t *copy
    if m.l2.n_arrays:
        m.count.penalty_cycles += m.l2_penalty
    if entry != NULL:
        m.count.l2_hits += 1
        copy = tlb_insert(l1, s.asid, va, order, entry[0] & 1)
        if write and not entry[0] & 1:
            set_dirty(m, s, va)
            entry[0] |= 1
            if copy != NULL:
                copy[0] |= 1
        m.count.accesses += 1
        return OK
    m.count.tlb_misses += 1
    m.loads_guest = m.loads_host = m.cycles = 0
    status = walk(m, s, va, write, &hpa, &order, &dirty)
    if status != OK:
        m.count.faulted_loads += m.loads_guest + m.loads_host
        m.count.faulted_cycles += m.cycles
        return status
    m.count.walks += 1
    m.count.guest_loads += m.loads_guest
    m.count.host_loads += m.loads_host
    m.count.walk_loads += m.loads_guest + m.loads_host
    m.count.walk_cycles += m.cycles
    tlb_insert(&m.l2, s.asid, va, order, dirty)
    tlb_insert(l1, s.asid, va, order, dirty)
    line_latency(m, hpa >> 6, &served)
    m.count.data_lines += 1
    m.count.accesses += 1
    return OK


cdef inline int access(Mmu *m, Space *s, uint64_t va, bint write) noexcept nogil:
    """One access, by docs/translation.md. The faulting page is left in `m.fault`."""
    cdef Tlb *l1 = m.l1_store if write else &m.l1_load
    cdef int order = 0
    cdef uint64_t *entry = tlb_find(l1, s.asid, va, &order)
    if entry == NULL:
        return access_missing_l1(m, s, l1, va, write)
    m.count.l1_hits += 1
    m.count.accesses += 1
    if write and not entry[0] & 1:
        set_dirty(m, s, va)
        entry[0] |= 1
    return OK


cdef inline void flush_all(Mmu *m) noexcept nogil:
    cdef int level
    tlb_flush(&m.l1_load)
    tlb_flush(&m.l1_store_own)
    tlb_flush(&m.l2)
    for level in range(2, MAX_LEVEL + 1):
        if m.guest_cache[level].sets:
            assoc_flush(&m.guest_cache[level])
        if m.host_cache[level].sets:
            assoc_flush(&m.host_cache[level])
    if m.nested_tlb.sets:
        assoc_flush(&m.nested_tlb)


cdef inline void flush_range(Mmu *m, uint64_t asid, uint64_t va, uint64_t end) noexcept nogil:
    """TLB entries that overlap the range, and the address space's walk-cache entries."""
    cdef int level
    cdef uint64_t i
    cdef Assoc *part
    tlb_flush_range(&m.l1_load, asid, va, end)
    tlb_flush_range(&m.l1_store_own, asid, va, end)
    tlb_flush_range(&m.l2, asid, va, end)
    for level in range(2, MAX_LEVEL + 1):
        part = &m.guest_cache[level]
        i = 0
        while i < part.sets * part.ways:
            if part.keys[i] != EMPTY and asid_of(part.keys[i]) == asid:
                assoc_remove(part, i)
                if part.tree == 0:
                    continue
            i += 1
