# Accessed bits looked at many at once, for reclaim policies.
#
# `age_below` walks a whole table, as aging by generations does; `look_around` the neighbours
# of one folio; `test_and_clear_accessed` looks at one page, as a scan of a list does; `note_old`
# and `was_accessed` too, for DAMON, which must not hide from the others what it clears.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.folios cimport COMMON_LISTS, Folios, folio_id, folio_push, folio_remove
from simvm.core.shadow cimport shadow_test_and_clear_accessed
from simvm.core.table cimport (ACCESSED, LEAF, TARGET, YOUNG, Node, child_of, clear_accessed,
                               find_leaf, index_in, is_child, span_of)
from simvm.core.vcpu cimport Backing

cdef enum:
    AROUND = 64              # MIN_LRU_BATCH, include/linux/mmzone.h: entries of one window

cdef struct Aged:
    uint64_t tables          # visited
    uint64_t leaves          # looked at
    uint64_t young           # of these, accessed


cdef inline bint clear_young(Backing *b, Node *node, uint64_t slot,
                             uint64_t address) noexcept nogil:
    """Clear A of one leaf, and of what shadow tables hold of it. Whether it was set."""
    cdef bint young = clear_accessed(b.table, node, slot)
    if b.shadow != NULL:
        address &= ~(span_of(node.level - 1) - 1)
        young = shadow_test_and_clear_accessed(b.shadow, address, node.level - 1) or young
    return young


cdef inline bint test_and_clear_accessed(Backing *b, uint64_t address) noexcept nogil:
    """Clear A of the leaf at an address. Whether it was set."""
    cdef Node *node = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_leaf(b.table, address, &node, &order)
    return entry != NULL and clear_young(b, node, entry - node.entry, address)


cdef inline bint age_leaf(Backing *b, Node *node, uint64_t slot, uint64_t address,
                          int to, Aged *out) noexcept nogil:
    """Clear A of one leaf; if it was set, put its folio on list `to`. Whether it was."""
    cdef Folios *f = &b.host.folios
    cdef uint32_t i
    out.leaves += 1
    if not clear_young(b, node, slot, address):
        return False
    out.young += 1
    i = folio_id(f, node.entry[slot] & TARGET, node.level - 1)
    if 0 < f.where[i] < COMMON_LISTS:
        folio_remove(f, i)
        folio_push(f, to, i)
    return True


cdef inline void age_below(Backing *b, Node *node, uint64_t base, int to,
                           Aged *out) noexcept nogil:
    """Age every leaf of a table page and below."""
    cdef uint64_t address
    cdef int i
    out.tables += 1
    for i in range(node.entries):
        if node.entry[i] == 0:
            continue
        address = base + (<uint64_t>i << b.table.shift[node.level])
        if is_child(node.entry[i]):
            age_below(b, child_of(node.entry[i]), address, to, out)
        elif node.entry[i] & LEAF:
            age_leaf(b, node, i, address, to, out)


cdef inline void look_around(Backing *b, uint64_t address, int to, Aged *out) noexcept nogil:
    """Age the leaf of 4 KiB at an address and its neighbours, within one table page."""
    cdef Node *node = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_leaf(b.table, address, &node, &order)
    cdef uint64_t slot, first
    if entry == NULL or order != 0:
        return
    slot = index_in(b.table, address, 1)
    first = min(slot - min(slot, <uint64_t>(AROUND // 2)), <uint64_t>(512 - AROUND))
    address &= ~(span_of(1) - 1)
    for slot in range(first, first + AROUND):
        if node.entry[slot] & LEAF:
            age_leaf(b, node, slot, address + (slot << 12), to, out)


cdef inline bint note_old(Backing *b, uint64_t address) noexcept nogil:
    """Clear A of the leaf at an address, and keep for others that it was set. Whether it was."""
    cdef Node *node = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_leaf(b.table, address, &node, &order)
    if entry == NULL or not clear_young(b, node, entry - node.entry, address):
        return False
    entry[0] |= YOUNG
    return True


cdef inline bint was_accessed(Backing *b, uint64_t address) noexcept nogil:
    """Whether the leaf at an address was accessed since `note_old`."""
    cdef Node *node = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_leaf(b.table, address, &node, &order)
    if entry == NULL:
        return False
    if b.shadow != NULL:
        address &= ~(span_of(order) - 1)
        if shadow_test_and_clear_accessed(b.shadow, address, order):
            entry[0] |= ACCESSED
    return entry[0] & ACCESSED != 0
