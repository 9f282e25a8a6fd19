# One access by itself: TLBs, then a walk. The commonest hits do not come here (run.pxd).

from libc.stdint cimport uint64_t
from simvm.core.cache cimport Assoc, value_of
from simvm.core.mmu cimport (ENTRY_SHIFT, GPA, HPA, IS_DIRTY, IS_SMASHED, OK, Mmu, Space, Tlb,
                             tlb_find, tlb_insert)
from simvm.core.table cimport DIRTY, TARGET, Node, Table, find_leaf
from simvm.core.walk cimport walk_for


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
        status = walk_for(m, s, va, write, now, False, &size, &flags)
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
