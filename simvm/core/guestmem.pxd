# What a guest's kernel keeps of its own memory: who uses each page and how lately, which
# pages cache files, and the pools of huge pages.
#
# These functions act; what to take, and when, is decided elsewhere. None of them looks at a
# TLB or at shadow tables: whoever calls them charges, and orders the invalidations.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from simvm.core.blocks cimport (BLOCK_BROKEN_MOVABLE, BLOCK_BROKEN_UNMOVABLE, MOVABLE, NIL, NO_PAGE,
                                Blocks, alloc_4k, block_unlink, break_2m, free_4k, give_whole,
                                mark_stale)
from simvm.core.folios cimport (Folios, folio_address, folio_id, folio_order, folio_push,
                                folio_remove)
from simvm.core.table cimport (ACCESSED, DIRTY, LEAF, PRESENT, SWAPPED, TARGET, Node, Table,
                               child_of, clear_accessed, find_entry, find_leaf, index_in, is_child,
                               keep_deposit, note_change, table_split)

cdef enum:
    ANON_LIST = 1            # what programs use; 2 is the active list
    FILE_LIST = 3            # pages of files; 4 is the active list
    ACTIVE = 1               # what an active list's number has beyond the inactive one's

cdef struct GuestKernel:
    Blocks *memory
    Folios folios            # owner: (ASID << 40) | page of the VA; of a file's page: its number
    bint reclaims            # whether new pages join a list
    uint64_t floor           # an allocation must leave so many pages free
    uint64_t wake_below      # tell kswapd below so many; 0: do not
    uint64_t huge_floor      # a 2 MiB page must leave so many, else it falls back
    Table **tables           # by ASID
    uint64_t n_tables
    uint64_t *cached         # by page of the files: the address that holds it | 1, or 0
    uint64_t n_file_pages
    uint64_t n_cached
    uint64_t *dirty          # of cache pages: a bit per page of guest memory
    uint64_t *referenced
    uint64_t n_dirty
    uint64_t *pool[3]        # free huge pages, by order
    uint64_t n_pool[3]
    uint64_t pool_room[3]
    uint32_t compacted       # the block where the search for one to empty goes on

cdef struct Moved:           # by compaction
    uint64_t source[512]
    uint64_t target[512]
    uint64_t owner[512]
    int n
    uint64_t scanned         # pages looked at


cdef inline bint bit_of(const uint64_t *bits, uint64_t page) noexcept nogil:
    return (bits[page >> 6] >> (page & 63)) & 1


cdef inline void set_bit(uint64_t *bits, uint64_t page, bint value) noexcept nogil:
    cdef uint64_t bit = <uint64_t>1 << (page & 63)
    bits[page >> 6] = bits[page >> 6] | bit if value else bits[page >> 6] & ~bit


cdef inline uint64_t page_at(const GuestKernel *k, uint64_t address) noexcept nogil:
    return (address - k.memory.base) >> 12


cdef inline Table *table_of(const GuestKernel *k, uint64_t owner) noexcept nogil:
    return k.tables[owner >> 40]


cdef inline uint64_t va_of_owner(uint64_t owner) noexcept nogil:
    return (owner & 0xFFFFFFFFFFULL) << 12


cdef inline void note_mapped(GuestKernel *k, uint64_t frame, int order, uint64_t asid,
                             uint64_t va) noexcept nogil:
    """A program's page was mapped: put it on its list. What is of 1 GiB is on none."""
    cdef uint32_t i
    if k.reclaims and order < 2:
        i = folio_id(&k.folios, frame, order)
        k.folios.owner[i] = (asid << 40) | (va >> 12)
        folio_push(&k.folios, ANON_LIST, i)


cdef inline void note_unmapped(GuestKernel *k, uint64_t frame, int order) noexcept nogil:
    if order < 2:
        folio_remove(&k.folios, folio_id(&k.folios, frame, order))


cdef inline uint64_t take_pooled(GuestKernel *k, int order) noexcept nogil:
    """A huge page of the pool, or NO_PAGE."""
    if k.n_pool[order] == 0:
        return NO_PAGE
    k.n_pool[order] -= 1
    return k.pool[order][k.n_pool[order]]


cdef inline void give_pooled(GuestKernel *k, uint64_t address, int order) noexcept nogil:
    mark_stale(k.memory, address, <uint64_t>1 << (9 * order))
    k.pool[order][k.n_pool[order]] = address
    k.n_pool[order] += 1


cdef inline bint was_used(GuestKernel *k, uint32_t i) noexcept nogil:
    """Whether a page was used since the last look; forgets it."""
    cdef uint64_t owner = k.folios.owner[i], page
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry
    cdef bint before
    if owner >> 40 == 0:
        page = page_at(k, folio_address(&k.folios, i))
        before = bit_of(k.referenced, page)
        set_bit(k.referenced, page, False)
        return before
    entry = find_leaf(table_of(k, owner), va_of_owner(owner), &at, &order)
    return entry != NULL and clear_accessed(table_of(k, owner), at, entry - at.entry)


cdef inline int split_huge(GuestKernel *k, uint32_t folio, int which) noexcept nogil:
    """Split a 2 MiB page of a program into pages, which go to the young end of a list."""
    cdef uint64_t owner = k.folios.owner[folio], frame = folio_address(&k.folios, folio)
    cdef Table *t = table_of(k, owner)
    cdef Node *at = NULL
    cdef int order = 0, i
    cdef uint32_t page
    cdef uint64_t *entry = find_leaf(t, va_of_owner(owner), &at, &order)
    if entry == NULL or order != 1 or entry[0] & TARGET != frame:
        return -1
    if table_split(t, at, index_in(t, va_of_owner(owner), 2)) != 0:
        return -1
    folio_remove(&k.folios, folio)
    break_2m(k.memory, frame)
    for i in range(512):
        page = folio_id(&k.folios, frame + <uint64_t>i * 4096, 0)
        k.folios.owner[page] = owner + i
        folio_push(&k.folios, which, page)
    return 0


cdef inline int page_out(GuestKernel *k, uint32_t folio, uint64_t slot) noexcept nogil:
    """Replace a 4 KiB page of a program by a swap slot. The page stays taken (writeback)."""
    cdef uint64_t owner = k.folios.owner[folio]
    cdef Table *t
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry
    if owner >> 40 == 0 or folio_order(&k.folios, folio) != 0:
        return -1
    t = table_of(k, owner)
    entry = find_leaf(t, va_of_owner(owner), &at, &order)
    if entry == NULL or order != 0 or entry[0] & TARGET != folio_address(&k.folios, folio):
        return -1
    folio_remove(&k.folios, folio)
    entry[0] = (slot << 12) | SWAPPED
    note_change(t, at)
    t.leaves[0] -= 1
    t.swapped += 1
    return 0


cdef inline int64_t page_in(GuestKernel *k, uint64_t asid, uint64_t va, uint64_t frame,
                            int which) noexcept nogil:
    """Map a page where a swap entry stands; the slot, or -1 when none stands there."""
    cdef Table *t = k.tables[asid]
    cdef Node *at = NULL
    cdef int level = 0
    cdef uint64_t *entry = find_entry(t, va, &at, &level)
    cdef uint64_t slot
    cdef uint32_t page = folio_id(&k.folios, frame, 0)
    if not entry[0] & SWAPPED:
        return -1
    slot = entry[0] >> 12
    entry[0] = frame | PRESENT | LEAF
    note_change(t, at)
    t.leaves[0] += 1
    t.swapped -= 1
    k.folios.owner[page] = (asid << 40) | (va >> 12)
    folio_push(&k.folios, which, page)
    return slot


# --- pages of files ---------------------------------------------------------------------

cdef inline uint64_t cache_add(GuestKernel *k, uint64_t file_page, uint64_t frame) noexcept nogil:
    """From now on `frame` holds a page of the files."""
    cdef uint32_t i = folio_id(&k.folios, frame, 0)
    k.folios.owner[i] = file_page
    folio_push(&k.folios, FILE_LIST, i)
    set_bit(k.referenced, page_at(k, frame), True)    # whoever asked for it reads it
    k.cached[file_page] = frame | 1
    k.n_cached += 1
    return frame


cdef inline bint cache_use(GuestKernel *k, uint64_t file_page, bint write) noexcept nogil:
    """Read or write a page of the files; whether it is in the cache.

    The second use of an inactive page makes it active: mark_page_accessed, mm/swap.c.
    """
    cdef uint64_t frame = k.cached[file_page]
    cdef uint64_t page
    cdef uint32_t i
    if frame == 0:
        return False
    frame -= 1
    page = page_at(k, frame)
    i = folio_id(&k.folios, frame, 0)
    if bit_of(k.referenced, page) and k.folios.where[i] == FILE_LIST:
        folio_remove(&k.folios, i)
        folio_push(&k.folios, FILE_LIST + ACTIVE, i)
        set_bit(k.referenced, page, False)
    else:
        set_bit(k.referenced, page, True)
    if write and not bit_of(k.dirty, page):
        set_bit(k.dirty, page, True)
        k.n_dirty += 1
    return True


cdef inline void cache_remove(GuestKernel *k, uint32_t i) noexcept nogil:
    """Take a page out of the cache. It stays taken: who calls frees or writes it."""
    cdef uint64_t page = page_at(k, folio_address(&k.folios, i))
    k.cached[k.folios.owner[i]] = 0
    k.n_cached -= 1
    folio_remove(&k.folios, i)
    if bit_of(k.dirty, page):
        set_bit(k.dirty, page, False)
        k.n_dirty -= 1


# --- huge pages after the fault ---------------------------------------------------------

cdef inline Node *ptes_of(Table *t, uint64_t va) noexcept nogil:
    """The table of 4 KiB pages around `va`, or NULL."""
    cdef Node *node = t.root
    cdef uint64_t entry
    while node.level > 1:
        entry = node.entry[index_in(t, va, node.level)]
        if not is_child(entry):
            return NULL
        node = child_of(entry)
    return node


cdef inline int mapped_pages(const Node *ptes) noexcept nogil:
    """Pages that a table maps; -1 when one of them is on the swap device."""
    cdef int i, n = 0
    for i in range(512):
        if ptes.entry[i] & SWAPPED:
            return -1
        n += (ptes.entry[i] & LEAF) != 0
    return n


cdef inline int collapse(GuestKernel *k, Table *t, uint64_t asid, uint64_t va,
                         uint64_t block) noexcept nogil:
    """Map `block` instead of the 4 KiB pages around `va`, which are freed: how many, or -1.

    Their table becomes the deposit that a later split takes.
    """
    cdef Node *ptes = ptes_of(t, va)
    cdef Node *parent
    cdef uint64_t bits = PRESENT | LEAF, frame
    cdef int i, n = 0
    if ptes == NULL or ptes.parent == NULL or mapped_pages(ptes) < 1:
        return -1
    if keep_deposit(t, ptes.address) != 0:
        return -1
    for i in range(512):
        if ptes.entry[i] & LEAF:
            bits |= ptes.entry[i] & (ACCESSED | DIRTY)
            frame = ptes.entry[i] & TARGET
            folio_remove(&k.folios, folio_id(&k.folios, frame, 0))
            free_4k(k.memory, frame)
            n += 1
    parent = ptes.parent
    parent.entry[ptes.slot] = block | bits
    t.leaves[0] -= n
    t.leaves[1] += 1
    t.pages -= ptes.pages
    free(ptes)
    note_mapped(k, block, 1, asid, va & ~<uint64_t>0x1FFFFF)
    return n


cdef inline bint can_empty(const GuestKernel *k, uint32_t block, Moved *moved) noexcept nogil:
    """Whether each used page of a broken block is on a list, and so can move."""
    cdef uint64_t first = k.memory.base + (<uint64_t>block << 21)
    cdef uint64_t word
    cdef int i
    for i in range(512):
        word = k.memory.used[<uint64_t>block * 8 + (i >> 6)]
        if (word >> (i & 63)) & 1:
            moved.scanned += 1
            if k.folios.where[folio_id(&k.folios, first + <uint64_t>i * 4096, 0)] == 0:
                return False
    return True


cdef inline bint has_room(const Blocks *b, uint32_t block, int pages) noexcept nogil:
    """Whether other broken blocks of movable pages have so many free pages."""
    cdef uint32_t i = b.head[1 + MOVABLE]
    while i != NIL and pages > 0:
        if i != block:
            pages -= b.free_in[i]
        i = b.next[i]
    return pages <= 0


cdef inline void move_page(GuestKernel *k, uint64_t source, uint64_t target) noexcept nogil:
    cdef uint32_t i = folio_id(&k.folios, source, 0), j = folio_id(&k.folios, target, 0)
    cdef uint64_t owner = k.folios.owner[i]
    cdef int which = k.folios.where[i], order = 0
    cdef Node *at = NULL
    cdef uint64_t *entry
    folio_remove(&k.folios, i)
    k.folios.owner[j] = owner
    folio_push(&k.folios, which, j)
    if owner >> 40:
        entry = find_leaf(table_of(k, owner), va_of_owner(owner), &at, &order)
        entry[0] = target | (entry[0] & ~TARGET)
        note_change(table_of(k, owner), at)
        return
    k.cached[owner] = target | 1
    set_bit(k.referenced, page_at(k, target), bit_of(k.referenced, page_at(k, source)))
    if bit_of(k.dirty, page_at(k, source)):
        set_bit(k.dirty, page_at(k, source), False)
        set_bit(k.dirty, page_at(k, target), True)


cdef inline void relist(GuestKernel *k, uint64_t source, uint64_t target,
                        int order) noexcept nogil:
    """What a program maps at `source` it now maps at `target`: so is the page on its list."""
    cdef uint32_t i = folio_id(&k.folios, source, order), j = folio_id(&k.folios, target, order)
    cdef int which = k.folios.where[i]
    if which != 0:
        folio_remove(&k.folios, i)
        k.folios.owner[j] = k.folios.owner[i]
        folio_push(&k.folios, which, j)


cdef inline bint holds_file(const GuestKernel *k, uint64_t address) noexcept nogil:
    """Whether a page is in the page cache."""
    cdef uint32_t i = folio_id(&k.folios, address, 0)
    return k.folios.where[i] != 0 and k.folios.owner[i] >> 40 == 0


cdef inline bint compact(GuestKernel *k, Moved *moved) noexcept nogil:
    """Empty one broken block by moving its pages into others; whether one became whole.

    The search begins where the last one ended (the migration scanner of mm/compaction.c).
    A block with a page that cannot move is left alone, and takes none in.
    """
    cdef Blocks *b = k.memory
    cdef uint32_t tried, block
    cdef int i, state, used
    moved.n = 0
    moved.scanned = 0
    for tried in range(b.n):
        block = (k.compacted + tried) % b.n
        state = b.state[block]
        if not (state == BLOCK_BROKEN_MOVABLE or state == BLOCK_BROKEN_UNMOVABLE):
            continue
        used = 512 - b.free_in[block]
        if used == 512 or not has_room(b, block, used) or not can_empty(k, block, moved):
            continue
        block_unlink(b, state, block)
        for i in range(512):
            if (b.used[<uint64_t>block * 8 + (i >> 6)] >> (i & 63)) & 1:
                moved.source[moved.n] = b.base + (<uint64_t>block << 21) + <uint64_t>i * 4096
                moved.owner[moved.n] = k.folios.owner[folio_id(&k.folios,
                                                               moved.source[moved.n], 0)]
                moved.target[moved.n] = alloc_4k(b, MOVABLE)
                move_page(k, moved.source[moved.n], moved.target[moved.n])
                mark_stale(b, moved.source[moved.n], 1)
                moved.n += 1
        b.free_pages += moved.n
        give_whole(b, block)
        k.compacted = block + 1
        return True
    return False
