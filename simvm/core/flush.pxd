# Invalidations: what leaves the TLBs, the walk caches and the nested TLB, and what stays.
#
# The data caches keep their lines: tables are ordinary memory. A flush follows no entry to
# a table, which may be gone.

from libc.stdint cimport uint64_t
from simvm.core.cache cimport Assoc, assoc_flush, assoc_remove, keys_in, value_of
from simvm.core.mmu cimport (ENTRY_SHIFT, GPA, INTEL, IS_SMASHED, NOWHERE, ORIGIN, SHIFT, Mmu,
                             Tlb)
from simvm.core.table cimport MAX_LEVEL, TARGET

cdef enum:               # which entries a flush drops
    OF_GUEST = 0         # all of a vpid
    OF_SPACE = 1         # all of an address space
    IN_VA = 2            # TLB entries of an address space that overlap a range
    TLB_IN_GPA = 3       # of a vpid, those whose gPA overlaps a range
    TABLE_IN_GPA = 4     # ... that point to a guest table there
    WALK_IN_GPA = 5      # ... that a walk of the SLAT for such a gPA takes
    PAGE_IN_GPA = 6      # ... of the nested TLB

cdef struct Doomed:
    int which
    uint64_t vpid
    uint64_t tag
    uint64_t start
    uint64_t end


cdef inline uint64_t number_in(uint64_t key) noexcept nogil:
    return (key >> 5) & ((<uint64_t>1 << 45) - 1)


cdef inline int shift_in(uint64_t key) noexcept nogil:
    return ENTRY_SHIFT[(key >> 2) & 7]


cdef inline bint overlaps(const Doomed *d, uint64_t first, uint64_t shift) noexcept nogil:
    """Whether the 2^shift bytes around `first` and the range have one in common."""
    first = first >> shift << shift
    return (d.start < d.end and first < d.end
            and first + ((<uint64_t>1 << shift) - 1) >= d.start)


cdef inline bint is_doomed(const Mmu *m, const Assoc *a, uint64_t *entry,
                           const Doomed *d) noexcept nogil:
    cdef uint64_t key = entry[0], origin
    if d.which == OF_SPACE or d.which == IN_VA:
        if key >> 50 != d.tag:
            return False
    elif m.vpids[key >> 50] != d.vpid:
        return False
    if d.which == IN_VA:
        return overlaps(d, number_in(key) << shift_in(key),
                        30 if key & IS_SMASHED else shift_in(key))
    if d.which == TLB_IN_GPA:
        origin = value_of(a, entry, GPA)[0]
        return origin != NOWHERE and overlaps(d, origin, 30 if key & IS_SMASHED else shift_in(key))
    if d.which == TABLE_IN_GPA:
        origin = value_of(a, entry, ORIGIN)[0]
        return origin != NOWHERE and overlaps(d, origin & TARGET, origin & 63)
    if d.which == WALK_IN_GPA:
        origin = value_of(a, entry, SHIFT)[0]
        return overlaps(d, number_in(key) << origin, origin)
    if d.which == PAGE_IN_GPA:
        return overlaps(d, number_in(key) << shift_in(key), shift_in(key))
    return True


cdef inline void drop(const Mmu *m, Assoc *a, Doomed *d, int which) noexcept nogil:
    """Free the places of all doomed entries. That of a free place is of no vpid."""
    cdef uint64_t s
    cdef int i
    d.which = which
    for s in range(a.sets):
        for i in range(a.ways):
            if is_doomed(m, a, keys_in(a, s) + i, d):
                assoc_remove(a, s, i)


cdef inline void drop_from_tlbs(Mmu *m, Doomed *d, int which) noexcept nogil:
    cdef int i
    cdef Tlb *tlb
    cdef Tlb *tlbs[3]
    tlbs[0], tlbs[1], tlbs[2] = &m.l1_load, &m.l1_store_own, &m.l2
    for tlb in tlbs:
        for i in range(tlb.n_arrays):
            drop(m, &tlb.array[i], d, which)


cdef inline void tlb_flush(Tlb *t) noexcept nogil:
    cdef int i
    if t.live:
        for i in range(t.n_arrays):
            assoc_flush(&t.array[i])
    t.live = 0


cdef inline void flush_all(Mmu *m) noexcept nogil:
    cdef int level
    tlb_flush(&m.l1_load)
    tlb_flush(&m.l1_store_own)
    tlb_flush(&m.l2)
    for level in range(2, MAX_LEVEL + 1):
        assoc_flush(&m.guest_cache[level])
        assoc_flush(&m.host_cache[level])
    assoc_flush(&m.nested_tlb)


cdef inline void flush_guest(Mmu *m, uint64_t vpid) noexcept nogil:
    """Everything of one guest."""
    cdef Doomed d
    cdef int level
    d.vpid = vpid
    drop_from_tlbs(m, &d, OF_GUEST)
    for level in range(2, MAX_LEVEL + 1):
        drop(m, &m.guest_cache[level], &d, OF_GUEST)
        drop(m, &m.host_cache[level], &d, OF_GUEST)
    drop(m, &m.nested_tlb, &d, OF_GUEST)


cdef inline void flush_range(Mmu *m, uint64_t tag, uint64_t va, uint64_t end) noexcept nogil:
    """TLB entries that overlap the range, and the address space's walk-cache entries."""
    cdef Doomed d
    cdef int level
    d.tag, d.start, d.end = tag, va, end
    drop_from_tlbs(m, &d, IN_VA)
    for level in range(2, MAX_LEVEL + 1):
        drop(m, &m.guest_cache[level], &d, OF_SPACE)


cdef inline void flush_gpa(Mmu *m, uint64_t vpid, uint64_t gpa, uint64_t end) noexcept nogil:
    """What came from the SLAT's entries for the range. Entries know their gPA."""
    cdef Doomed d
    cdef int level
    d.vpid, d.start, d.end = vpid, gpa, end
    drop_from_tlbs(m, &d, TLB_IN_GPA)
    for level in range(2, MAX_LEVEL + 1):
        drop(m, &m.host_cache[level], &d, WALK_IN_GPA)
        if m.style == INTEL:             # the others hold gPA, and stay
            drop(m, &m.guest_cache[level], &d, TABLE_IN_GPA)
    drop(m, &m.nested_tlb, &d, PAGE_IN_GPA)
