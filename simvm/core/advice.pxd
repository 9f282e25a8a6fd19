# What the VMM's madvise, mprotect and mlock do to the frames behind a range of guest memory.
#
# A notifier takes the range out of the SLAT, while its frames stay: the entry is then held.
# The next touch finds the frame, without a new one and without zeroing. None of these
# functions looks at a TLB, as in hostmem.pxd.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.blocks cimport BLOCK_WHOLE, block_of
from simvm.core.folios cimport folio_id, folio_push, folio_remove
from simvm.core.hostmem cimport (PARTIAL_LIST, UNEVICTABLE_LIST, in_tier, keep_written, split_folio,
                                 split_partial)
from simvm.core.shadow cimport Shadow, leaf_at, page_of, shadow_drop_leaf
from simvm.core.table cimport (DIRTY, HELD, LEAF, PRESENT, SWAPPED, TARGET, Node, find_entry,
                               find_frame, has_frame, note_change, span_of)
from simvm.core.vcpu cimport TABLE_RESERVE, Backing, Host, map_new, within_limit

cdef enum:               # why `populate` stopped
    POPULATED = 0
    STOP_SWAPPED = 1         # a page is on the swap device
    STOP_NO_MEMORY = 2
    STOP_MANY = 3            # as many new folios as were asked for
    STOP_LIMIT = 4           # the owner may not have more


cdef inline int cut(Backing *b, uint64_t address) noexcept nogil:
    """Let no huge page lie across `address`: the number of splits, or -1 if it cannot be."""
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_frame(b.table, address, &at, &order)
    cdef uint32_t i
    if entry == NULL or address & (span_of(order) - 1) == 0:
        return 0
    if b.from_pool:
        return -1
    i = folio_id(&b.host.folios, entry[0] & TARGET, order)
    return 1 if split_folio(b.host, b, i, b.host.folios.where[i]) == 0 else -1


cdef inline void hold(Backing *b, uint64_t start, uint64_t end, uint64_t clear,
                      uint64_t *leaves) noexcept nogil:
    """Take the leaves within [start, end) away from the processor, and some bits of A and D.

    `leaves` counts, by order, those that it could find before.
    """
    cdef uint64_t at = start, span, base
    cdef Node *node = NULL
    cdef int level = 0
    cdef uint64_t *entry
    while at < end:
        entry = find_entry(b.table, at, &node, &level)
        span = span_of(level - 1)
        base = at & ~(span - 1)
        if has_frame(entry[0]) and base >= start and base + span <= end:
            if entry[0] & LEAF:
                shadow_drop_leaf(b.shadow, entry, base, level - 1)
                entry[0] ^= HELD | LEAF | PRESENT
                b.table.held += span >> 12
                leaves[level - 1] += 1
            if entry[0] & clear & DIRTY:
                keep_written(b, entry[0], level - 1)
            entry[0] &= ~clear
            note_change(b.table, node)
        at = base + span


cdef inline uint64_t relist(Backing *b, uint64_t start, uint64_t end, int which, int only,
                            uint64_t *moved) noexcept nogil:
    """Put the folios within [start, end) on a list (those of the list `only`, unless 0).

    A block that is held only in part is split first: its pages then go each their own way.
    `moved` counts folios. Returns how many bytes that split freed.
    """
    cdef Host *h = b.host
    cdef uint64_t at = start, span, freed = 0
    cdef Node *node = NULL
    cdef int level = 0
    cdef uint64_t *entry
    cdef uint32_t i, block
    while at < end and not b.from_pool:
        entry = find_entry(b.table, at, &node, &level)
        span = span_of(level - 1)
        if has_frame(entry[0]) and not in_tier(h, entry[0] & TARGET):
            block = block_of(&h.frames, entry[0] & TARGET)
            if level == 1 and h.frames.state[block] == BLOCK_WHOLE:
                freed += split_partial(h, b, h.folios.n_pages + block, 0) << 12
                continue
            i = folio_id(&h.folios, entry[0] & TARGET, level - 1)
            if 0 < h.folios.where[i] < PARTIAL_LIST and only in (0, h.folios.where[i]):
                folio_remove(&h.folios, i)
                folio_push(&h.folios, which, i)
                moved[0] += 1
        at = (at & ~(span - 1)) + span
    return freed


cdef inline int populate(Backing *b, uint64_t *start, uint64_t end, int many,
                         uint64_t *made, uint64_t *moved) noexcept nogil:
    """Back what is not backed from `start` to `end`, and put it all out of reclaim's reach.

    As mlock does: the host's own page table gets the pages, the SLAT finds them later.
    `start` moves on; `made` counts new folios by order, `moved` old ones. Returns why it
    stopped.
    """
    cdef Host *h = b.host
    cdef uint64_t span
    cdef Node *node = NULL
    cdef int level = 0, order
    cdef uint64_t *entry
    while start[0] < end:
        entry = find_entry(b.table, start[0], &node, &level)
        if entry[0] & SWAPPED:
            return STOP_SWAPPED
        if has_frame(entry[0]):
            span = span_of(level - 1)
            relist(b, start[0], min((start[0] & ~(span - 1)) + span, end), UNEVICTABLE_LIST,
                   0, moved)
            start[0] = (start[0] & ~(span - 1)) + span
            continue
        if many == 0:
            return STOP_MANY
        if h.frames.free_pages < h.floor + TABLE_RESERVE:
            return STOP_NO_MEMORY
        if not within_limit(b, 1):
            return STOP_LIMIT
        order = map_new(b, start[0], level, end, UNEVICTABLE_LIST)
        if order < 0:
            return STOP_NO_MEMORY
        entry = find_entry(b.table, start[0], &node, &level)
        entry[0] ^= HELD | LEAF | PRESENT
        entry[0] |= DIRTY
        b.table.held += span_of(order) >> 12
        made[order] += 1
        many -= 1
        start[0] = (start[0] & ~(span_of(order) - 1)) + span_of(order)
    return POPULATED


cdef inline bint shadow_dirty(const Shadow *s, uint64_t start, uint64_t end) noexcept nogil:
    """Whether the processor has written through a shadow leaf of [start, end)."""
    cdef Node *at = NULL
    cdef int order, found = 0
    cdef uint64_t page
    for order in range(3):
        for page in range(page_of(start, order), page_of(end - 1, order) + 1):
            if (s.mapped_at[order][page] != 0
                    and leaf_at(s, s.mapped_at[order][page], &at, &found)[0] & DIRTY):
                return True
    return False


cdef inline bint written(const Backing *b, uint64_t start, uint64_t end) noexcept nogil:
    """Whether a leaf that overlaps [start, end) has D."""
    cdef uint64_t at = start, span
    cdef Node *node = NULL
    cdef int level = 0
    cdef uint64_t *entry
    while at < end:
        entry = find_entry(b.table, at, &node, &level)
        span = span_of(level - 1)
        if entry[0] & LEAF and entry[0] & DIRTY:
            return True
        at = (at & ~(span - 1)) + span
    return b.shadow != NULL and shadow_dirty(b.shadow, start, end)
