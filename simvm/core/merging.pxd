# Same-page merging: which pages there are to look at, and frames that several leaves map.
#
# A merged frame lies on a list of its own. Its `owner` counts the leaves that map it, in
# this guest or others; the last one to go frees it (hostmem.pxd). What is merged, and
# when, is decided elsewhere, and so are the invalidations.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.blocks cimport BLOCK_WHOLE, NO_PAGE, block_of
from simvm.core.folios cimport folio_id, folio_push, folio_remove
from simvm.core.hostmem cimport (LAZY_LIST, MERGED_LIST, drop_sharer, is_merged,
                                 keep_written, release_frame, split_folio)
from simvm.core.table cimport (DIRTY, TARGET, Node, find_entry, find_frame,
                               has_frame, note_change, reach_of, span_of)
from simvm.core.vcpu cimport Backing, Host

cdef enum:
    PAGE_DIRTY = 1
    PAGE_HUGE = 2
    PAGE_MERGED = 4


cdef inline uint64_t state_in(const Backing *b, uint64_t entry, int order) noexcept nogil:
    """The state of a page that a leaf maps."""
    cdef uint64_t state = PAGE_DIRTY if entry & DIRTY else 0
    if order > 0:
        return state | PAGE_HUGE
    return state | PAGE_MERGED if is_merged(b.host, entry & TARGET) else state


cdef inline uint64_t state_of(Backing *b, uint64_t address) noexcept nogil:
    """The state of a page; 0 when it is not mapped."""
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_frame(b.table, address, &at, &order)
    return 0 if entry == NULL else state_in(b, entry[0], order)


cdef inline int pages_from(Backing *b, uint64_t start, uint64_t end, int n,
                           uint64_t *found) noexcept nogil:
    """Mapped 4 KiB pages of [start, end) and their states; how many, up to `n`."""
    cdef uint64_t at = start, span, state
    cdef Node *node = NULL
    cdef int level = 0, count = 0
    cdef uint64_t *entry
    end = min(end, reach_of(b.table))
    while at < end and count < n:
        entry = find_entry(b.table, at, &node, &level)
        span = span_of(level - 1)
        if not has_frame(entry[0]):
            at = (at & ~(span - 1)) + span
            continue
        state = state_in(b, entry[0], level - 1)
        found[count] = at | state
        count += 1
        if not state & PAGE_MERGED and at & (span - 1) == span - 4096:
            if entry[0] & DIRTY:
                keep_written(b, entry[0], level - 1)
            entry[0] &= ~<uint64_t>DIRTY
            note_change(b.table, node)
        at += 4096
    return count


cdef inline uint64_t *own_leaf(Backing *b, uint64_t address) noexcept nogil:
    """The 4 KiB leaf that maps a frame of its own which can change hands, or NULL.

    A frame inside a block that is still whole cannot: the block goes as one. Nor can one
    that the guest has locked, or freed lazily, or that is a merged one already.
    """
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_frame(b.table, address, &at, &order)
    if entry == NULL or order != 0 or b.from_pool:
        return NULL
    if b.host.folios.where[folio_id(&b.host.folios, entry[0] & TARGET, 0)] >= LAZY_LIST:
        return NULL
    if b.host.frames.state[block_of(&b.host.frames, entry[0] & TARGET)] == BLOCK_WHOLE:
        return NULL
    note_change(b.table, at)        # D will go
    return entry


cdef inline bint split_at(Backing *b, uint64_t address) noexcept nogil:
    """Split the 2 MiB folio that an address lies in; False when there is none."""
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_frame(b.table, address, &at, &order)
    if entry == NULL or order != 1 or b.from_pool:
        return False
    return split_folio(b.host, b, folio_id(&b.host.folios, entry[0] & TARGET, 1), 0) == 0


cdef inline uint64_t share(Backing *b, uint64_t address) noexcept nogil:
    """Make a page's frame a merged one, written by nobody; the frame, or NO_PAGE."""
    cdef Host *h = b.host
    cdef uint64_t *entry = own_leaf(b, address)
    cdef uint32_t i
    if entry == NULL:
        return NO_PAGE
    i = folio_id(&h.folios, entry[0] & TARGET, 0)
    folio_remove(&h.folios, i)
    h.folios.owner[i] = 1
    folio_push(&h.folios, MERGED_LIST, i)
    entry[0] &= ~<uint64_t>DIRTY
    b.merged += 1
    return entry[0] & TARGET


cdef inline bint merge(Backing *b, uint64_t address, uint64_t frame) noexcept nogil:
    """Map a page to a merged frame and free its own; False when that cannot be."""
    cdef Host *h = b.host
    cdef uint64_t *entry = own_leaf(b, address)
    if entry == NULL or not is_merged(h, frame):
        return False
    release_frame(h, entry[0] & TARGET)
    entry[0] = frame | (entry[0] & ~TARGET & ~<uint64_t>DIRTY)
    h.folios.owner[folio_id(&h.folios, frame, 0)] += 1
    b.merged += 1
    return True


cdef inline int unmerge(Backing *b, uint64_t address, uint64_t frame) noexcept nogil:
    """Map a page that was merged, and then written, to a frame of its own; -1 if it was not."""
    cdef Host *h = b.host
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry = find_frame(b.table, address, &at, &order)
    cdef uint32_t i
    if entry == NULL or order != 0 or not is_merged(h, entry[0] & TARGET):
        return -1
    drop_sharer(h, entry[0] & TARGET)
    entry[0] = frame | (entry[0] & ~TARGET)
    i = folio_id(&h.folios, frame, 0)
    h.folios.owner[i] = (b.owner << 40) | (address >> 12)
    folio_push(&h.folios, 0, i)
    b.merged -= 1
    return 0
