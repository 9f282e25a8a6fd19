# One MMU: TLBs, walk caches, nested TLB and data caches.
#
# Implements docs/translation.md; the readable twin is simvm/reference. Each function here, in
# walk.pxd and in access.pxd is one step of that page. The invalidations are in flush.pxd.
#
# What makes it fast: a hit writes one stamp and nothing moves (cache.pxd); counters are the
# vCPU's own and reached by one pointer.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from simvm.core.cache cimport (FIRST_STAMP, LAST_STAMP, Assoc, assoc_find, assoc_insert,
                               assoc_renumber, count_trailing_zeros, set_of, value_of)
from simvm.core.loads cimport Loads
from simvm.core.table cimport MAX_LEVEL, Table

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
    ADDRESS = 3          # ... and the hPA of its page
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
    bint quick                  # of the shape that `quick_walk` is for
    uint64_t l2_penalty
    uint64_t walk_cache_latency
    uint64_t fault              # the page that was missing last
    uint64_t gpa                # of the last translation, if `targets`: where its page begins
    uint64_t hpa
    int shift                   # ... and log2 of its size
    Loads loads                 # of walks, and the data caches that they go to
    Assoc guest_cache[6]        # by level; sets == 0 where absent
    Assoc host_cache[6]
    Assoc nested_tlb
    Tlb l1_store_own
    int walkers
    uint64_t walker_free[MAX_WALKERS]   # the cycle at which each is free again
    const uint16_t *vpids       # of every tag
    Counters own

cdef struct Space:
    uint64_t tag         # of its vpid and asid
    uint64_t guest_tag   # of its vpid alone: for what translates gPA
    Table *guest         # NULL: native
    Table *host
    bint quick           # of the shape that `quick_walk` is for


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
    m.tick = FIRST_STAMP + m.most_ways
