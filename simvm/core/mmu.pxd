# One MMU: TLBs, walk caches, nested TLB, data caches, and the walk itself.
#
# Implements docs/translation.md; the readable twin is simvm/reference. Each function here
# is one step of that page, in its order. The invalidations are in flush.pxd.
#
# What makes it fast: a hit writes one stamp and nothing moves (cache.pxd); levels are known
# by counting, so no node's header is read but for its address; counters are the vCPU's own
# and reached by one pointer.

from libc.stdint cimport int64_t, uint16_t, uint64_t
from simvm.core.cache cimport (Assoc, assoc_find, assoc_insert, count_trailing_zeros, likely,
                               set_of)
from simvm.core.lines cimport LineCache, lines_touch
from simvm.core.table cimport (ACCESSED, DIRTY, LEAF, TARGET, Node, Table, child_of,
                               find_leaf, in_group, is_child)

cdef enum:
    OK = 0
    GUEST_FAULT = 1
    SLAT_FAULT = 2

cdef enum:
    INTEL = 0
    AMD = 1

cdef enum:
    N_SIZES = 7          # sizes of page that a TLB entry may have
    MAX_WALKERS = 64
    MAX_TAGS = 16383     # the tag of a free place is this one

cdef enum:               # flags of a TLB entry, in its key
    IS_DIRTY = 1
    IS_SMASHED = 2       # stands for one 2 MiB piece of a 1 GiB page

cdef extern from *:
    """
    /* geometry.ENTRY_SHIFTS, and which of them has a given shift. */
    static const int simvm_shift[7] = {12, 21, 30, 16, 14, 25, 29};
    static const int simvm_size[31] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 3,
                                       0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 6, 2};
    #define SIMVM_NOWHERE (~(uint64_t)0)
    """
    const int *ENTRY_SHIFT "simvm_shift"
    const int *SIZE_OF_SHIFT "simvm_size"
    const uint64_t NOWHERE "SIMVM_NOWHERE"    # no address; also: not at any time

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
    uint64_t walker_wait_cycles
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
    Assoc *arrays[N_SIZES][2]   # by size: the array, and the second bank where there is one
    int banks[N_SIZES]
    uint64_t live               # bit o: an entry of size o may be present
    int n_arrays
    Assoc array[8]

cdef struct Mmu:
    Counters *count             # of whoever runs on this MMU now
    uint64_t spent              # cycles of translation in all, waits for a walker included
    uint64_t clock              # cycles that vCPUs have spent on this MMU
    Tlb *l1_store
    Tlb l1_load
    Tlb l2
    int style
    bint smash
    bint contiguous             # some TLB array holds what the contiguous hint joins
    bint targets                # TLB entries know their gPA and hPA
    uint64_t l2_penalty
    uint64_t walk_cache_latency
    uint64_t l2_latency
    uint64_t llc_latency
    uint64_t dram_latency
    # the walk under way
    uint64_t loads_guest
    uint64_t loads_host
    uint64_t cycles
    uint64_t fault
    uint64_t gpa                # of the last translation: where its page begins
    uint64_t hpa
    int shift                   # ... and log2 of its size
    LineCache lines_l2
    LineCache lines_llc
    Assoc guest_cache[6]        # by level; sets == 0 where absent
    Assoc host_cache[6]
    Assoc nested_tlb
    Tlb l1_store_own
    int walkers
    uint64_t walker_free[MAX_WALKERS]   # the cycle at which each is free again
    const uint16_t *vpids       # of every tag
    Counters own
    # the hPA of each load, for `simvm walk`; NULL when nobody asks
    uint64_t *trace
    uint64_t trace_room
    uint64_t traced

cdef struct Space:
    uint64_t tag         # of its vpid and asid
    uint64_t guest_tag   # of its vpid alone: for what translates gPA
    Table *guest         # NULL: native
    Table *host


cdef inline uint64_t key_of(uint64_t tag, uint64_t size, uint64_t number) noexcept nogil:
    """Entries of several sizes share arrays, so the size is part of the key."""
    return (tag << 50) | (number << 5) | (size << 2)


cdef inline Assoc *tlb_array(Tlb *t, int size, uint64_t page, uint64_t *s) noexcept nogil:
    """The array that may hold `page` of that size, and the set. Two banks act as one."""
    cdef Assoc *a = t.arrays[size][0]
    s[0] = set_of(a, page)
    if t.banks[size] == 2:
        return t.arrays[size][(page // a.sets) & 1]
    return a


cdef inline int64_t tlb_find(Tlb *t, uint64_t tag, uint64_t va, Assoc **array,
                             int *size) noexcept nogil:
    """The place of the entry that translates `va`, and its array; -1 when there is none."""
    cdef uint64_t live = t.live, page, s
    cdef int64_t place
    cdef int o
    while live:
        o = count_trailing_zeros(live)
        live &= live - 1
        page = va >> ENTRY_SHIFT[o]
        array[0] = tlb_array(t, o, page, &s)
        place = assoc_find(array[0], s, key_of(tag, o, page))
        if place >= 0:
            size[0] = o
            return place
    return -1


cdef inline void tlb_insert(Mmu *m, Tlb *t, uint64_t tag, uint64_t va, int size,
                            uint64_t flags) noexcept nogil:
    """Enter a translation, unless no array holds its size."""
    cdef uint64_t page, s
    cdef int64_t place
    cdef Assoc *a
    if t.banks[size] == 0:
        return
    page = va >> ENTRY_SHIFT[size]
    a = tlb_array(t, size, page, &s)
    t.live |= <uint64_t>1 << size
    place = assoc_insert(a, s, key_of(tag, size, page) | flags)
    if m.targets:
        a.values[place], a.pages[place] = m.gpa, m.hpa


cdef inline uint64_t line_latency(Mmu *m, uint64_t line, uint64_t *served) noexcept nogil:
    """Send one line through the data caches; `served` has a counter for each level."""
    if m.lines_l2.tags != NULL and lines_touch(&m.lines_l2, line):
        served[0] += 1
        return m.l2_latency
    if m.lines_llc.tags != NULL and lines_touch(&m.lines_llc, line):
        served[1] += 1
        return m.llc_latency
    served[2] += 1
    return m.dram_latency


cdef inline void load(Mmu *m, uint64_t hpa) noexcept nogil:
    m.cycles += line_latency(m, hpa >> 6, &m.count.l2_loads)
    if m.trace != NULL and m.traced < m.trace_room:
        m.trace[m.traced] = hpa
        m.traced += 1


cdef inline int64_t part_find(Assoc *part, uint64_t tag, uint64_t number) noexcept nogil:
    if part.sets == 0:
        return -1
    return assoc_find(part, set_of(part, number), key_of(tag, 0, number))


cdef inline int64_t part_insert(Assoc *part, uint64_t tag, uint64_t number) noexcept nogil:
    return assoc_insert(part, set_of(part, number), key_of(tag, 0, number))


cdef inline int leaf_shift(const Mmu *m, const Table *t, const Node *node, int level,
                           uint64_t slot) noexcept nogil:
    """log2 of what one TLB entry may cover of the leaf at `slot` of `node`."""
    if t.contiguous and m.contiguous and in_group(t, node, slot):
        return 16
    return t.shift[level]


cdef inline int nested_walk(Mmu *m, Space *s, uint64_t gpa, bint is_table, uint64_t *hpa,
                            uint64_t **leaf, int *shift) noexcept nogil:
    """gPA -> hPA. Sets A and D of the leaf under a guest table page."""
    cdef Table *host = s.host
    cdef Node *node = host.root
    cdef uint64_t *entry
    cdef uint64_t number, slot, live
    cdef int64_t i
    cdef int o, level = host.levels, k
    cdef Assoc *part
    if is_table and m.nested_tlb.sets:
        for o in range(N_SIZES):
            number = gpa >> ENTRY_SHIFT[o]
            i = assoc_find(&m.nested_tlb, set_of(&m.nested_tlb, number),
                           key_of(s.guest_tag, o, number))
            if i >= 0:
                m.cycles += m.walk_cache_latency
                m.count.nested_tlb_hits += 1
                hpa[0] = m.nested_tlb.values[i] + (gpa & ((<uint64_t>1 << ENTRY_SHIFT[o]) - 1))
                shift[0] = ENTRY_SHIFT[o]
                return OK
    for k in range(2, host.levels + 1):
        part = &m.host_cache[k]
        i = part_find(part, s.guest_tag, gpa >> host.shift[k])
        if i >= 0:
            m.cycles += m.walk_cache_latency
            m.count.host_walk_cache_hits += 1
            node = <Node *>part.values[i]
            level = k - 1
            break
    while True:
        slot = (gpa >> host.shift[level]) & host.mask[level]
        entry = &node.entry[slot]
        load(m, node.address + 8 * slot)
        m.loads_host += 1
        if not is_child(entry[0]):
            break
        node = child_of(entry[0])
        part = &m.host_cache[level]
        if part.sets:
            i = part_insert(part, s.guest_tag, gpa >> host.shift[level])
            part.values[i], part.pages[i] = <uint64_t>node, host.shift[level]
        level -= 1
    if not entry[0] & LEAF:
        m.fault = gpa & TARGET
        return SLAT_FAULT
    hpa[0] = (entry[0] & TARGET) + (gpa & ((<uint64_t>1 << host.shift[level]) - 1))
    if is_table:
        entry[0] |= ACCESSED | DIRTY
        if m.nested_tlb.sets:
            number = gpa >> host.shift[level]
            i = assoc_insert(&m.nested_tlb, set_of(&m.nested_tlb, number),
                             key_of(s.guest_tag, SIZE_OF_SHIFT[host.shift[level]], number))
            m.nested_tlb.values[i] = entry[0] & TARGET
        shift[0] = host.shift[level]
        return OK
    shift[0] = leaf_shift(m, host, node, level, slot)
    leaf[0] = entry
    return OK


cdef inline int walk(Mmu *m, Space *s, uint64_t va, bint write, uint64_t *data_hpa, int *size,
                     uint64_t *dirty) noexcept nogil:
    """Translate `va` from the tables. Counts nothing but cache hits: the caller does."""
    cdef bint nested = s.guest != NULL
    cdef Table *t = s.guest if nested else s.host
    cdef Node *node = t.root
    cdef uint64_t hpa = 0, gpa, slot
    cdef uint64_t bits = ACCESSED | (DIRTY if write else 0)
    cdef uint64_t *entry
    cdef uint64_t *leaf = NULL
    cdef int level = t.levels, shift, host_shift = 0, status, k
    cdef bint known = not nested         # hPA of `node` is known
    cdef bint fresh = False              # `node` was reached by reading an entry in this walk
    cdef int64_t i
    cdef Assoc *part
    for k in range(2, t.levels + 1):
        part = &m.guest_cache[k]
        i = part_find(part, s.tag, va >> t.shift[k])
        if i >= 0:
            m.cycles += m.walk_cache_latency
            m.count.guest_walk_cache_hits += 1
            node = <Node *>part.values[i]
            level = k - 1
            if nested and m.style == INTEL:
                hpa = part.pages[i]
                known = hpa != NOWHERE
            break
    while True:
        slot = (va >> t.shift[level]) & t.mask[level]
        if not nested:
            hpa = node.address
        elif not known:
            status = nested_walk(m, s, node.address + 8 * slot, True, &hpa, &leaf, &host_shift)
            if status != OK:
                return status
            hpa -= 8 * slot
            if fresh and m.style == INTEL:
                part = &m.guest_cache[level + 1]
                if part.sets:
                    i = part_insert(part, s.tag, va >> t.shift[level + 1])
                    # A table larger than the leaf under it lies in no one place.
                    part.values[i] = <uint64_t>node
                    part.pages[i] = hpa if host_shift >= t.granule else NOWHERE
                    part.origins[i] = node.address | t.granule
        entry = &node.entry[slot]
        load(m, hpa + 8 * slot)
        if nested:
            m.loads_guest += 1
        else:
            m.loads_host += 1
        if not is_child(entry[0]):
            break
        node = child_of(entry[0])
        part = &m.guest_cache[level]
        if part.sets and (not nested or m.style == AMD):
            i = part_insert(part, s.tag, va >> t.shift[level])
            part.values[i], part.origins[i] = <uint64_t>node, NOWHERE
        fresh = True
        known = not nested
        level -= 1
    if not entry[0] & LEAF:
        m.fault = va & TARGET
        return GUEST_FAULT if nested else SLAT_FAULT
    gpa = (entry[0] & TARGET) + (va & ((<uint64_t>1 << t.shift[level]) - 1))
    shift = leaf_shift(m, t, node, level, slot)
    if not nested:
        entry[0] |= bits
        data_hpa[0] = gpa
        size[0] = SIZE_OF_SHIFT[shift]
        dirty[0] = (entry[0] & DIRTY) != 0
        m.gpa, m.hpa, m.shift = NOWHERE, gpa & ~((<uint64_t>1 << shift) - 1), shift
        return OK
    status = nested_walk(m, s, gpa, False, data_hpa, &leaf, &host_shift)
    if status != OK:
        return status
    entry[0] |= bits
    leaf[0] |= bits
    shift = min(shift, host_shift)
    size[0] = SIZE_OF_SHIFT[shift]
    dirty[0] = (entry[0] & leaf[0] & DIRTY) != 0
    m.gpa = gpa & ~((<uint64_t>1 << shift) - 1)
    m.hpa = data_hpa[0] & ~((<uint64_t>1 << shift) - 1)
    m.shift = shift
    return OK


cdef inline void set_dirty(Mmu *m, Space *s, uint64_t va) noexcept nogil:
    """D of the leaves that map `va` now (a stale entry finds none)."""
    cdef Node *at = NULL
    cdef int order = 0
    cdef Table *t = s.guest if s.guest != NULL else s.host
    cdef uint64_t *entry
    cdef uint64_t *leaf
    m.count.dirty_updates += 1
    entry = find_leaf(t, va, &at, &order)
    if entry == NULL:
        return
    if s.guest != NULL:
        leaf = find_leaf(s.host, (entry[0] & TARGET)
                         + (va & ((<uint64_t>1 << t.shift[order + 1]) - 1)), &at, &order)
        if leaf == NULL:
            return
        leaf[0] |= DIRTY
    entry[0] |= DIRTY


cdef inline int first_free_walker(const Mmu *m) noexcept nogil:
    cdef int i, first = 0
    for i in range(1, m.walkers):
        if m.walker_free[i] < m.walker_free[first]:
            first = i
    return first


cdef inline int miss(Mmu *m, Space *s, Tlb *l1, uint64_t va, bint write,
                     uint64_t now) noexcept nogil:
    """No TLB has it: walk, and fill them."""
    cdef int size = 0, status, walker
    cdef uint64_t hpa = 0, dirty = 0, wait = 0
    m.count.tlb_misses += 1
    m.loads_guest = m.loads_host = m.cycles = 0
    status = walk(m, s, va, write, &hpa, &size, &dirty)
    if now != NOWHERE:
        walker = first_free_walker(m)
        if m.walker_free[walker] > now:
            wait = m.walker_free[walker] - now
            m.count.walker_wait_cycles += wait
        m.walker_free[walker] = now + wait + m.cycles
    m.spent += m.cycles + wait
    if status != OK:
        m.count.faulted_loads += m.loads_guest + m.loads_host
        m.count.faulted_cycles += m.cycles
        return status
    m.count.walks += 1
    m.count.guest_loads += m.loads_guest
    m.count.host_loads += m.loads_host
    m.count.walk_loads += m.loads_guest + m.loads_host
    m.count.walk_cycles += m.cycles
    if size == 2 and m.smash and m.l2.banks[2] == 0:
        tlb_insert(m, &m.l2, s.tag, va, 1, dirty | IS_SMASHED)
    else:
        tlb_insert(m, &m.l2, s.tag, va, size, dirty)
    tlb_insert(m, l1, s.tag, va, size, dirty)
    if not (m.lines_l2.tags != NULL and lines_touch(&m.lines_l2, hpa >> 6)):
        if m.lines_llc.tags != NULL:
            lines_touch(&m.lines_llc, hpa >> 6)
    m.count.data_lines += 1
    return OK


cdef inline int access_missing_l1(Mmu *m, Space *s, Tlb *l1, uint64_t va, bint write,
                                  uint64_t now) noexcept nogil:
    """L2, then a walk. Counts everything but the access itself."""
    cdef int size = 0
    cdef Assoc *a = NULL
    cdef int64_t place = tlb_find(&m.l2, s.tag, va, &a, &size)
    cdef uint64_t flags
    if m.l2.n_arrays:
        m.count.penalty_cycles += m.l2_penalty
        m.spent += m.l2_penalty
    if place < 0:
        return miss(m, s, l1, va, write, now)
    m.count.l2_hits += 1
    flags = a.keys[place] & (IS_DIRTY | IS_SMASHED)
    if write and not flags & IS_DIRTY:
        set_dirty(m, s, va)
        flags |= IS_DIRTY
        a.keys[place] |= IS_DIRTY
    if flags & IS_SMASHED:
        size = 2
    if m.targets:
        m.gpa, m.hpa, m.shift = a.values[place], a.pages[place], ENTRY_SHIFT[size]
    tlb_insert(m, l1, s.tag, va, size, flags & IS_DIRTY)
    return OK


cdef inline int access(Mmu *m, Space *s, uint64_t va, bint write, uint64_t now) noexcept nogil:
    """One access, by docs/translation.md. The faulting page is left in `m.fault`."""
    cdef Tlb *l1 = m.l1_store if write else &m.l1_load
    cdef int size = 0, status
    cdef Assoc *a = NULL
    cdef int64_t place = tlb_find(l1, s.tag, va, &a, &size)
    if place < 0:
        status = access_missing_l1(m, s, l1, va, write, now)
        if status != OK:
            return status
    else:
        m.count.l1_hits += 1
        if write and not a.keys[place] & IS_DIRTY:
            set_dirty(m, s, va)
            a.keys[place] |= IS_DIRTY
        if m.targets:
            m.gpa, m.hpa, m.shift = a.values[place], a.pages[place], ENTRY_SHIFT[size]
    m.count.accesses += 1
    return OK
