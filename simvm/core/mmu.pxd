# One MMU: TLBs, walk caches, nested TLB, data caches, and the walk itself.
#
# Implements docs/translation.md; the readable twin is simvm/reference. Each function here
# is one step of that page, in its order. The invalidations are in flush.pxd.
#
# What makes it fast: a hit writes one stamp and nothing moves (cache.pxd); levels are known
# by counting, so no node's header is read but for its address; counters are the vCPU's own
# and reached by one pointer. The commonest hits do not come here at all (run.pxd).

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from simvm.core.cache cimport (LAST_STAMP, LRU, Assoc, assoc_find, assoc_insert, assoc_renumber,
                               count_trailing_zeros, enter, guess_way, inlined_int, likely,
                               renew, set_of, tags_in, value_of)
from simvm.core.lines cimport LineCache, lines_touch
from simvm.core.table cimport (ACCESSED, DIRTY, LEAF, MAX_LEVEL, TARGET, Node, Table, child_of,
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
    TICKS = 2000         # that are left at least when a stretch of accesses begins

cdef enum:               # values of an entry
    GPA = 1              # TLBs with `targets`: where its page begins, in gPA
    HPA = 2              # ... and in hPA
    NODE = 1             # walk caches: the table that was pointed to
    PAGE = 2             # guest walk cache: the hPA of its page, or NOWHERE
    ORIGIN = 3           # ... and its gPA | log2 of its size, or NOWHERE
    SHIFT = 2            # host walk cache: log2 of what the entry maps that pointed to it
    BASE = 1             # nested TLB: the hPA of the page

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
    uint64_t walks             # each sends one data line through the caches
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

cdef struct Tlb:
    Assoc *arrays[N_SIZES][2]   # by size: the array, and the second bank where there is one
    int banks[N_SIZES]
    uint64_t live               # bit o: an entry of size o may be present
    int n_arrays
    Assoc array[8]

cdef struct Mmu:
    Counters *count             # of whoever runs on this MMU now
    uint32_t tick               # time, for the stamps of entries
    int most_ways
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
    uint64_t fault              # the page that was missing last
    uint64_t gpa                # of the last translation, if `targets`: where its page begins
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


cdef inline uint64_t *tlb_find(Tlb *t, uint64_t tag, uint64_t va, uint32_t now, Assoc **array,
                               int *size) noexcept nogil:
    """The entry that translates `va`, and its array; NULL when there is none."""
    cdef uint64_t live = t.live, page, s
    cdef uint64_t *found
    cdef int o
    while live:
        o = count_trailing_zeros(live)
        live &= live - 1
        page = va >> ENTRY_SHIFT[o]
        array[0] = tlb_array(t, o, page, &s)
        found = assoc_find(array[0], s, key_of(tag, o, page), now)
        if found != NULL:
            size[0] = o
            return found
    return NULL


cdef inline void tlb_insert(Mmu *m, Tlb *t, uint64_t tag, uint64_t va, int size,
                            uint64_t flags) noexcept nogil:
    """Enter a translation, unless no array holds its size."""
    cdef uint64_t page, s
    cdef uint64_t *entry
    cdef Assoc *a
    if t.banks[size] == 0:
        return
    page = va >> ENTRY_SHIFT[size]
    a = tlb_array(t, size, page, &s)
    t.live |= <uint64_t>1 << size
    entry = assoc_insert(a, s, key_of(tag, size, page) | flags, m.tick)
    if m.targets:
        value_of(a, entry, GPA)[0], value_of(a, entry, HPA)[0] = m.gpa, m.hpa


# What a walk under way has come to. It lives in `walk_for` and is never pointed to from
# elsewhere, so the compiler keeps its parts in registers.
cdef struct Walk:
    uint64_t cycles
    uint64_t guest_loads
    uint64_t host_loads
    uint64_t l2_loads
    uint64_t llc_loads
    uint64_t dram_loads
    uint64_t hpa             # of what was translated last
    uint64_t *leaf           # its leaf
    int shift                # log2 of what one TLB entry may cover of that
    uint32_t tick


cdef inline inlined_int load(Mmu *m, Walk *w, uint64_t hpa) noexcept nogil:
    """One entry, from where the data caches have it."""
    if m.lines_l2.tags != NULL and lines_touch(&m.lines_l2, hpa >> 6):
        w.l2_loads += 1
        w.cycles += m.l2_latency
    elif m.lines_llc.tags != NULL and lines_touch(&m.lines_llc, hpa >> 6):
        w.llc_loads += 1
        w.cycles += m.llc_latency
    else:
        w.dram_loads += 1
        w.cycles += m.dram_latency
    if m.trace != NULL and m.traced < m.trace_room:
        m.trace[m.traced] = hpa
        m.traced += 1
    return 0


cdef inline inlined_int part_find(Assoc *part, uint64_t tag, uint64_t number, uint32_t now,
                                  uint64_t **entry) noexcept nogil:
    """Whether a walk cache has it, and where. The commonest shape is searched on the spot."""
    cdef uint64_t key = key_of(tag, 0, number)
    cdef uint32_t *words
    cdef int64_t way
    if likely(part.simple):
        words = tags_in(part, number & part.set_mask)
        way = guess_way(words, 4, part_tag(tag, number))
        if way < 0:
            return False
        entry[0] = <uint64_t *>(words + 8) + way
        if likely(entry[0][0] == key):
            renew(words, 4, True, way, now)
            return True
    elif part.sets == 0:
        return False
    entry[0] = assoc_find(part, set_of(part, number), key, now)
    return entry[0] != NULL


cdef inline uint32_t part_tag(uint64_t tag, uint64_t number) noexcept nogil:
    """`tag_of` the key of a walk-cache entry."""
    return <uint32_t>number ^ (<uint32_t>tag << 18)


cdef inline inlined_int part_insert(Assoc *part, uint64_t tag, uint64_t number, uint32_t now,
                                    uint64_t **entry) noexcept nogil:
    """Enter what a walk cache does not have, and say where."""
    cdef uint64_t key = key_of(tag, 0, number)
    if likely(part.simple):
        enter(tags_in(part, number & part.set_mask), 4, True, key, part_tag(tag, number), now,
              entry)
    else:
        entry[0] = assoc_insert(part, set_of(part, number), key, now)
    return 0


cdef inline void keep_time(Mmu *m) noexcept nogil:
    """See to it that there are ticks left for a stretch of accesses."""
    cdef int level, i
    cdef Tlb *tlb
    cdef Tlb *tlbs[3]
    if m.tick < LAST_STAMP - TICKS:
        return
    tlbs[0], tlbs[1], tlbs[2] = &m.l1_load, &m.l1_store_own, &m.l2
    for tlb in tlbs:
        for i in range(tlb.n_arrays):
            assoc_renumber(&tlb.array[i])
    for level in range(2, MAX_LEVEL + 1):
        assoc_renumber(&m.guest_cache[level])
        assoc_renumber(&m.host_cache[level])
    assoc_renumber(&m.nested_tlb)
    m.tick = m.most_ways


cdef inline int leaf_shift(const Mmu *m, const Table *t, const Node *node, int level,
                           uint64_t slot) noexcept nogil:
    """log2 of what one TLB entry may cover of the leaf at `slot` of `node`."""
    if t.contiguous and m.contiguous and in_group(t, node, slot):
        return 16
    return t.shift[level]


cdef inline bint nested_tlb_has(Mmu *m, const Space *s, Walk *w, uint64_t gpa) noexcept nogil:
    cdef uint64_t number
    cdef uint64_t *found
    cdef int o
    for o in range(N_SIZES):
        number = gpa >> ENTRY_SHIFT[o]
        found = assoc_find(&m.nested_tlb, set_of(&m.nested_tlb, number),
                           key_of(s.guest_tag, o, number), w.tick)
        if found != NULL:
            w.cycles += m.walk_cache_latency
            m.count.nested_tlb_hits += 1
            w.shift = ENTRY_SHIFT[o]
            w.hpa = value_of(&m.nested_tlb, found, BASE)[0] + (gpa & mask_of(w.shift))
            return True
    return False


cdef inline void mark(uint64_t *entry, uint64_t bits) noexcept nogil:
    """Set A and D. Most have them: then the line of the real cache stays clean."""
    if entry[0] & bits != bits:
        entry[0] |= bits


cdef inline uint64_t mask_of(int shift) noexcept nogil:
    return (<uint64_t>1 << shift) - 1


cdef inline inlined_int nested_walk(Mmu *m, const Space *s, Walk *w, uint64_t gpa,
                                    bint is_table) noexcept nogil:
    """gPA -> hPA. Sets A and D of the leaf under a guest table page."""
    cdef const Table *host = s.host
    cdef Node *node = host.root
    cdef uint64_t *entry
    cdef uint64_t *found = NULL
    cdef uint64_t slot
    cdef int level = host.levels, k
    cdef Assoc *part
    w.tick += 1
    if is_table and m.nested_tlb.sets and nested_tlb_has(m, s, w, gpa):
        return OK
    for k in range(2, host.levels + 1):
        part = &m.host_cache[k]
        if part_find(part, s.guest_tag, gpa >> host.shift[k], w.tick, &found):
            w.cycles += m.walk_cache_latency
            m.count.host_walk_cache_hits += 1
            node = <Node *>value_of(part, found, NODE)[0]
            level = k - 1
            break
    while True:
        slot = (gpa >> host.shift[level]) & host.mask[level]
        entry = &node.entry[slot]
        load(m, w, node.address + 8 * slot)
        w.host_loads += 1
        if not is_child(entry[0]):
            break
        node = child_of(entry[0])
        part = &m.host_cache[level]
        if part.sets:
            part_insert(part, s.guest_tag, gpa >> host.shift[level], w.tick, &found)
            value_of(part, found, NODE)[0] = <uint64_t>node
            value_of(part, found, SHIFT)[0] = host.shift[level]
        level -= 1
    if not entry[0] & LEAF:
        m.fault = gpa & TARGET
        return SLAT_FAULT
    w.shift = host.shift[level]
    w.hpa = (entry[0] & TARGET) + (gpa & mask_of(w.shift))
    w.leaf = entry
    if is_table:
        mark(entry, ACCESSED | DIRTY)
        if m.nested_tlb.sets:
            slot = gpa >> w.shift
            found = assoc_insert(&m.nested_tlb, set_of(&m.nested_tlb, slot),
                                 key_of(s.guest_tag, SIZE_OF_SHIFT[w.shift], slot), w.tick)
            value_of(&m.nested_tlb, found, BASE)[0] = entry[0] & TARGET
    else:
        w.shift = leaf_shift(m, host, node, level, slot)
    return OK


cdef inline inlined_int walk(Mmu *m, const Space *s, Walk *w, uint64_t va, bint write, bint nested,
                             int *size, uint64_t *dirty) noexcept nogil:
    """Translate `va` from the tables. Counts nothing but cache hits: the caller does."""
    cdef const Table *t = s.guest if nested else s.host
    cdef Node *node = t.root
    cdef uint64_t hpa = 0, gpa, slot
    cdef uint64_t bits = ACCESSED | (DIRTY if write else 0)
    cdef uint64_t *entry
    cdef uint64_t *found = NULL
    cdef int level = t.levels, shift, status, k
    cdef bint known = not nested         # hPA of `node` is known
    cdef bint fresh = False              # `node` was reached by reading an entry in this walk
    cdef uint32_t now = w.tick
    cdef Assoc *part
    for k in range(2, t.levels + 1):
        part = &m.guest_cache[k]
        if part_find(part, s.tag, va >> t.shift[k], now, &found):
            w.cycles += m.walk_cache_latency
            m.count.guest_walk_cache_hits += 1
            node = <Node *>value_of(part, found, NODE)[0]
            level = k - 1
            if nested and m.style == INTEL:
                hpa = value_of(part, found, PAGE)[0]
                known = hpa != NOWHERE
            break
    while True:
        slot = (va >> t.shift[level]) & t.mask[level]
        if not nested:
            hpa = node.address
        elif not known:
            status = nested_walk(m, s, w, node.address + 8 * slot, True)
            if status != OK:
                return status
            hpa = w.hpa - 8 * slot
            if fresh and m.style == INTEL:
                part = &m.guest_cache[level + 1]
                if part.sets:
                    part_insert(part, s.tag, va >> t.shift[level + 1], now, &found)
                    value_of(part, found, NODE)[0] = <uint64_t>node
                    # A table larger than the leaf under it lies in no one place.
                    value_of(part, found, PAGE)[0] = hpa if w.shift >= t.granule else NOWHERE
                    value_of(part, found, ORIGIN)[0] = node.address | t.granule
        entry = &node.entry[slot]
        load(m, w, hpa + 8 * slot)
        if nested:
            w.guest_loads += 1
        else:
            w.host_loads += 1
        if not is_child(entry[0]):
            break
        node = child_of(entry[0])
        if not nested or m.style == AMD:
            part = &m.guest_cache[level]
            if part.sets:
                part_insert(part, s.tag, va >> t.shift[level], now, &found)
                value_of(part, found, NODE)[0] = <uint64_t>node
                value_of(part, found, ORIGIN)[0] = NOWHERE
        fresh = True
        known = not nested
        level -= 1
    if not entry[0] & LEAF:
        m.fault = va & TARGET
        return GUEST_FAULT if nested else SLAT_FAULT
    gpa = (entry[0] & TARGET) + (va & mask_of(t.shift[level]))
    shift = leaf_shift(m, t, node, level, slot)
    if nested:
        status = nested_walk(m, s, w, gpa, False)
        if status != OK:
            return status
        shift = min(shift, w.shift)
        mark(w.leaf, bits)
        mark(entry, bits)
        dirty[0] = (entry[0] & w.leaf[0] & DIRTY) != 0
    else:
        w.hpa = gpa
        mark(entry, bits)
        dirty[0] = (entry[0] & DIRTY) != 0
    size[0] = SIZE_OF_SHIFT[shift]
    if m.targets:
        m.gpa = gpa & ~mask_of(shift) if nested else NOWHERE
        m.hpa, m.shift = w.hpa & ~mask_of(shift), shift
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


cdef inline int walk_for(Mmu *m, const Space *s, uint64_t va, bint write, uint64_t now, int *size,
                         uint64_t *flags) noexcept nogil:
    """No TLB has it: walk, on the first walker that is free. The TLBs are left to the caller."""
    cdef Counters *count = m.count
    cdef Walk w
    cdef int status, walker
    cdef uint64_t wait = 0
    w.cycles = w.guest_loads = w.host_loads = w.l2_loads = w.llc_loads = w.dram_loads = 0
    w.tick = m.tick
    if s.guest != NULL:
        status = walk(m, s, &w, va, write, True, size, flags)
    else:
        status = walk(m, s, &w, va, write, False, size, flags)
    m.tick = w.tick
    if now != NOWHERE:
        walker = first_free_walker(m)
        if m.walker_free[walker] > now:
            wait = m.walker_free[walker] - now
            count.walker_wait_cycles += wait
        m.walker_free[walker] = now + wait + w.cycles
    m.spent += w.cycles + wait
    count.tlb_misses += 1
    count.l2_loads += w.l2_loads
    count.llc_loads += w.llc_loads
    count.dram_loads += w.dram_loads
    if status != OK:
        count.faulted_loads += w.guest_loads + w.host_loads
        count.faulted_cycles += w.cycles
        return status
    count.walks += 1
    count.guest_loads += w.guest_loads
    count.host_loads += w.host_loads
    count.walk_cycles += w.cycles
    if not (m.lines_l2.tags != NULL and lines_touch(&m.lines_l2, w.hpa >> 6)):
        if m.lines_llc.tags != NULL:
            lines_touch(&m.lines_llc, w.hpa >> 6)
    return OK


cdef inline void fill(Mmu *m, Tlb *l1, uint64_t tag, uint64_t va, int size,
                      uint64_t flags) noexcept nogil:
    """Enter what a walk has found in both TLBs."""
    if size == 2 and m.smash and m.l2.banks[2] == 0:
        tlb_insert(m, &m.l2, tag, va, 1, flags | IS_SMASHED)
    else:
        tlb_insert(m, &m.l2, tag, va, size, flags)
    tlb_insert(m, l1, tag, va, size, flags)


cdef inline void recall(Mmu *m, const Assoc *a, uint64_t *entry, int size) noexcept nogil:
    """The last translation is what a TLB entry knows of it."""
    m.gpa, m.hpa = value_of(a, entry, GPA)[0], value_of(a, entry, HPA)[0]
    m.shift = ENTRY_SHIFT[size]


cdef inline int access_missing_l1(Mmu *m, Space *s, Tlb *l1, uint64_t va, bint write,
                                  uint64_t now) noexcept nogil:
    """L2, then a walk. Counts everything but the access itself."""
    cdef int size = 0, status
    cdef Assoc *a = NULL
    cdef uint64_t *entry = tlb_find(&m.l2, s.tag, va, m.tick, &a, &size)
    cdef uint64_t flags = 0
    if m.l2.n_arrays:
        m.count.penalty_cycles += m.l2_penalty
        m.spent += m.l2_penalty
    if entry == NULL:
        status = walk_for(m, s, va, write, now, &size, &flags)
        if status == OK:
            fill(m, l1, s.tag, va, size, flags)
        return status
    m.count.l2_hits += 1
    if write and not entry[0] & IS_DIRTY:
        set_dirty(m, s, va)
        entry[0] |= IS_DIRTY
    flags = entry[0] & (IS_DIRTY | IS_SMASHED)
    if flags & IS_SMASHED:
        size = 2
    if m.targets:
        recall(m, a, entry, size)
    tlb_insert(m, l1, s.tag, va, size, flags & IS_DIRTY)
    return OK


cdef inline int access(Mmu *m, Space *s, uint64_t va, bint write, uint64_t now) noexcept nogil:
    """One access, by docs/translation.md. The faulting page is left in `m.fault`."""
    cdef Tlb *l1 = m.l1_store if write else &m.l1_load
    cdef int size = 0, status
    cdef Assoc *a = NULL
    cdef uint64_t *entry
    m.tick += 1
    entry = tlb_find(l1, s.tag, va, m.tick, &a, &size)
    if entry == NULL:
        status = access_missing_l1(m, s, l1, va, write, now)
        if status != OK:
            return status
    else:
        m.count.l1_hits += 1
        if write and not entry[0] & IS_DIRTY:
            set_dirty(m, s, va)
            entry[0] |= IS_DIRTY
        if m.targets:
            recall(m, a, entry, size)
    m.count.accesses += 1
    return OK
