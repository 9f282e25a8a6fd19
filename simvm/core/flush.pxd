# Invalidations: what leaves the TLBs, the walk caches and the nested TLB, and what stays.
#
# The data caches keep their lines: tables are ordinary memory.

from libc.stdint cimport uint64_t
from simvm.core.cache cimport Assoc, assoc_flush, assoc_remove
from simvm.core.mmu cimport ENTRY_SHIFT, INTEL, IS_SMASHED, NOWHERE, Mmu, Tlb
from simvm.core.table cimport MAX_LEVEL, TARGET


cdef inline uint64_t places(const Assoc *a) noexcept nogil:
    return a.sets * a.lanes


cdef inline uint64_t tag_in(uint64_t key) noexcept nogil:
    return key >> 50


cdef inline uint64_t number_in(uint64_t key) noexcept nogil:
    return (key >> 5) & ((<uint64_t>1 << 45) - 1)


cdef inline int shift_in(uint64_t key) noexcept nogil:
    """log2 of the page that a TLB entry is for; of a smashed one, the whole GiB."""
    return 30 if key & IS_SMASHED else ENTRY_SHIFT[(key >> 2) & 7]


cdef inline bint overlap(uint64_t first, uint64_t length, uint64_t start,
                         uint64_t end) noexcept nogil:
    return first < end and first + (length - 1) >= start


cdef inline void all_tlbs(Mmu *m, Tlb **tlbs) noexcept nogil:
    tlbs[0], tlbs[1], tlbs[2] = &m.l1_load, &m.l1_store_own, &m.l2


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
        if m.guest_cache[level].sets:
            assoc_flush(&m.guest_cache[level])
        if m.host_cache[level].sets:
            assoc_flush(&m.host_cache[level])
    if m.nested_tlb.sets:
        assoc_flush(&m.nested_tlb)


cdef inline void drop_guest(Assoc *a, const Mmu *m, uint64_t vpid) noexcept nogil:
    cdef uint64_t i
    for i in range(places(a)):
        if m.vpids[tag_in(a.keys[i])] == vpid:
            assoc_remove(a, i)


cdef inline void flush_guest(Mmu *m, uint64_t vpid) noexcept nogil:
    """Everything of one guest."""
    cdef int level, i
    cdef Tlb *tlb
    cdef Tlb *tlbs[3]
    all_tlbs(m, tlbs)
    for tlb in tlbs:
        for i in range(tlb.n_arrays):
            drop_guest(&tlb.array[i], m, vpid)
    for level in range(2, MAX_LEVEL + 1):
        drop_guest(&m.guest_cache[level], m, vpid)
        drop_guest(&m.host_cache[level], m, vpid)
    drop_guest(&m.nested_tlb, m, vpid)


cdef inline void flush_range(Mmu *m, uint64_t tag, uint64_t va, uint64_t end) noexcept nogil:
    """TLB entries that overlap the range, and the address space's walk-cache entries."""
    cdef int level, n, shift
    cdef uint64_t i, first
    cdef Tlb *tlb
    cdef Tlb *tlbs[3]
    cdef Assoc *a
    all_tlbs(m, tlbs)
    for tlb in tlbs:
        for n in range(tlb.n_arrays):
            a = &tlb.array[n]
            for i in range(places(a)):
                if tag_in(a.keys[i]) != tag:
                    continue
                first = number_in(a.keys[i]) << ENTRY_SHIFT[(a.keys[i] >> 2) & 7]
                shift = shift_in(a.keys[i])
                if overlap(first >> shift << shift, <uint64_t>1 << shift, va, end):
                    assoc_remove(a, i)
    for level in range(2, MAX_LEVEL + 1):
        a = &m.guest_cache[level]
        for i in range(places(a)):
            if tag_in(a.keys[i]) == tag:
                assoc_remove(a, i)


cdef inline void flush_gpa(Mmu *m, uint64_t vpid, uint64_t gpa, uint64_t end) noexcept nogil:
    """What came from the SLAT's entries for the range. Entries know their gPA.

    None of them is followed to a table, which may be gone.
    """
    cdef int level, n
    cdef uint64_t i, start
    cdef Tlb *tlb
    cdef Tlb *tlbs[3]
    cdef Assoc *a
    all_tlbs(m, tlbs)
    for tlb in tlbs:
        for n in range(tlb.n_arrays):
            a = &tlb.array[n]
            for i in range(places(a)):
                if (m.vpids[tag_in(a.keys[i])] == vpid and a.values[i] != NOWHERE
                        and overlap(a.values[i], <uint64_t>1 << shift_in(a.keys[i]), gpa, end)):
                    assoc_remove(a, i)
    for level in range(2, MAX_LEVEL + 1):
        a = &m.host_cache[level]
        for i in range(places(a)):
            if m.vpids[tag_in(a.keys[i])] == vpid and overlap(
                    number_in(a.keys[i]) << a.pages[i], <uint64_t>1 << a.pages[i], gpa, end):
                assoc_remove(a, i)
        a = &m.guest_cache[level]
        for i in range(places(a)):
            # Combined entries hold where the host keeps a guest table.
            if (m.style == INTEL and m.vpids[tag_in(a.keys[i])] == vpid
                    and a.origins[i] != NOWHERE
                    and overlap(a.origins[i] & TARGET, <uint64_t>1 << (a.origins[i] & 63),
                                gpa, end)):
                assoc_remove(a, i)
    a = &m.nested_tlb
    for i in range(places(a)):
        if m.vpids[tag_in(a.keys[i])] == vpid:
            start = number_in(a.keys[i]) << ENTRY_SHIFT[(a.keys[i] >> 2) & 7]
            if overlap(start, <uint64_t>1 << ENTRY_SHIFT[(a.keys[i] >> 2) & 7], gpa, end):
                assoc_remove(a, i)
