# What a host does to memory that it has backed: age it, take it away, give it back.
#
# These functions act; which folios they act on is decided elsewhere. None of them looks
# at a TLB: whoever calls them charges and orders the invalidations.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from simvm.core.blocks cimport (BLOCK_FREE, BLOCK_WHOLE, NO_PAGE, Blocks, block_of, break_2m,
                                free_2m, free_4k)
from simvm.core.folios cimport (folio_address, folio_id, folio_order, folio_push, folio_remove)
from simvm.core.shadow cimport shadow_drop_leaf
from simvm.core.table cimport (HELD, LEAF, PRESENT, SWAPPED, TARGET, Node, Table, child_of,
                               clear_entry, find_entry, find_frame, has_frame, index_in,
                               is_child, note_change, prune_up, span_of, table_split, withdraw)
from simvm.core.vcpu cimport Backing, Host

cdef enum:               # lists that no policy has
    LAZY_LIST = 13        # the guest has freed it: dropped when memory is short, unless written
    UNEVICTABLE_LIST = 14  # locked
    PARTIAL_LIST = 15     # blocks of which some pages are no longer mapped
    MERGED_LIST = 16      # frames that several leaves may map; `owner` counts these
    TIER_LIST = 17        # pages of slower memory that are mapped where they lie

cdef struct Zapped:
    uint64_t leaves[3]    # removed, by order
    uint64_t splits       # 2 MiB leaves split because the range covers them in part
    uint64_t slots        # swap slots freed


cdef inline void release_frame(Host *h, uint64_t address) noexcept nogil:
    """A 4 KiB frame is no longer mapped. One inside a block is held until the block is split."""
    cdef uint32_t block = block_of(&h.frames, address)
    cdef uint32_t i
    if h.frames.state[block] != BLOCK_WHOLE:
        folio_remove(&h.folios, folio_id(&h.folios, address, 0))
        free_4k(&h.frames, address)
        return
    i = h.folios.n_pages + block
    if h.folios.where[i] != PARTIAL_LIST:
        folio_remove(&h.folios, i)
        h.folios.mapped[block] = 512
        folio_push(&h.folios, PARTIAL_LIST, i)
    h.folios.mapped[block] -= 1
    if h.folios.mapped[block] == 0:
        folio_remove(&h.folios, i)
        free_2m(&h.frames, h.frames.base + (<uint64_t>block << 21))


cdef inline bint in_tier(const Host *h, uint64_t address) noexcept nogil:
    """Whether a frame is one of slower memory."""
    return h.tier.n > 0 and address >= h.tier.base


cdef inline bint is_merged(const Host *h, uint64_t address) noexcept nogil:
    """Whether a 4 KiB frame is a merged one."""
    return h.folios.where[folio_id(&h.folios, address, 0)] == MERGED_LIST


cdef inline void keep_written(Backing *b, uint64_t entry, int order) noexcept nogil:
    """Before D of a leaf is cleared that has it: the page is no longer lazily free.

    D was all that told it from one that is.
    """
    cdef uint32_t i
    if b.from_pool or in_tier(b.host, entry & TARGET):
        return
    i = folio_id(&b.host.folios, entry & TARGET, order)
    if b.host.folios.where[i] == LAZY_LIST:
        folio_remove(&b.host.folios, i)
        folio_push(&b.host.folios, 0, i)


cdef inline void drop_sharer(Host *h, uint64_t address) noexcept nogil:
    """One leaf less maps a merged frame; the last one frees it."""
    cdef uint32_t i = folio_id(&h.folios, address, 0)
    h.folios.owner[i] -= 1
    if h.folios.owner[i] == 0:
        folio_remove(&h.folios, i)
        free_4k(&h.frames, address)


cdef inline void release_leaf(Backing *b, uint64_t target, int order) noexcept nogil:
    cdef Host *h = b.host
    if b.from_pool:
        h.pool[h.n_pool] = target
        h.n_pool += 1
    elif order == 0 and in_tier(h, target):
        b.tiered -= 1
        folio_remove(&h.folios, folio_id(&h.folios, target, 0))
        free_4k(&h.tier, target)
    elif order == 0 and is_merged(h, target):
        b.merged -= 1
        drop_sharer(h, target)
    elif order == 0:
        release_frame(h, target)
    else:
        folio_remove(&h.folios, folio_id(&h.folios, target, 1))
        free_2m(&h.frames, target)
        if b.deposits:
            withdraw(b.table)


cdef inline int zap(Backing *b, uint64_t start, uint64_t end, uint64_t *slots,
                    Zapped *z) noexcept nogil:
    """Unmap and free [start, end). A hugetlb page goes whole or not at all."""
    cdef uint64_t at = start, span, base
    cdef Node *node = NULL
    cdef int level = 0
    cdef uint64_t *entry
    cdef uint64_t old
    while at < end:
        entry = find_entry(b.table, at, &node, &level)
        span = span_of(level - 1)
        base = at & ~(span - 1)
        old = entry[0]
        if has_frame(old) and (base < start or base + span > end):
            if not b.from_pool:
                shadow_drop_leaf(b.shadow, entry, base, level - 1)
                if table_split(b.table, node, index_in(b.table, at, level)) != 0:
                    return -1
                z.splits += 1
                continue
        elif old != 0:
            if has_frame(old):
                shadow_drop_leaf(b.shadow, entry, base, level - 1)
            clear_entry(b.table, node, index_in(b.table, at, level))
            if old & SWAPPED:
                slots[z.slots] = old >> 12
                z.slots += 1
            else:
                z.leaves[level - 1] += 1
                release_leaf(b, old & TARGET, level - 1)
            prune_up(b.table, node)
        at = base + span
    return 0


cdef inline int swap_out(Host *h, Backing *b, uint32_t folio, uint64_t slot) noexcept nogil:
    """Replace a folio's mapping by swap entries. Its frames stay taken (writeback)."""
    cdef Table *t = b.table
    cdef uint64_t address = (h.folios.owner[folio] & 0xFFFFFFFFFFULL) << 12
    cdef Node *at = NULL
    cdef int order = 0, i
    cdef uint64_t *entry = find_frame(t, address, &at, &order)
    if (entry == NULL or order != folio_order(&h.folios, folio)
            or entry[0] & TARGET != folio_address(&h.folios, folio)):
        return -1
    shadow_drop_leaf(b.shadow, entry, address, order)
    folio_remove(&h.folios, folio)
    if entry[0] & HELD:
        t.held -= span_of(order) >> 12
    if order == 0:
        entry[0] = (slot << 12) | SWAPPED
        note_change(t, at)
        t.removed += 1
        t.leaves[0] -= 1
        t.swapped += 1
        return 0
    if table_split(t, at, index_in(t, address, 2)) != 0:
        return -1
    at = child_of(at.entry[index_in(t, address, 2)])
    for i in range(512):
        at.entry[i] = ((slot + i) << 12) | SWAPPED
    t.removed += 512
    t.leaves[0] -= 512
    t.swapped += 512
    return break_2m(&h.frames, folio_address(&h.folios, folio))


cdef inline int split_folio(Host *h, Backing *b, uint32_t folio, int which) noexcept nogil:
    """Split a 2 MiB folio and its mapping into pages, which go to the head of a list."""
    cdef Table *t = b.table
    cdef uint64_t owner = h.folios.owner[folio]
    cdef uint64_t address = (owner & 0xFFFFFFFFFFULL) << 12
    cdef uint64_t frame = folio_address(&h.folios, folio)
    cdef Node *at = NULL
    cdef int order = 0, i
    cdef uint32_t page
    cdef uint64_t *entry = find_frame(t, address, &at, &order)
    if entry == NULL or order != 1 or entry[0] & TARGET != frame:
        return -1
    shadow_drop_leaf(b.shadow, entry, address, order)
    if table_split(t, at, index_in(t, address, 2)) != 0:
        return -1
    folio_remove(&h.folios, folio)
    break_2m(&h.frames, frame)
    for i in range(512):
        page = folio_id(&h.folios, frame + <uint64_t>i * 4096, 0)
        h.folios.owner[page] = owner + i
        folio_push(&h.folios, which, page)
    return 0


cdef inline int split_partial(Host *h, Backing *b, uint32_t folio, int which) noexcept nogil:
    """Split a partly unmapped block: free what is not mapped; how many pages that were.

    Its mapping was split when a part of it was unmapped, so no leaf changes.
    """
    cdef Table *t = b.table
    cdef uint64_t owner = h.folios.owner[folio]
    cdef uint64_t address = (owner & 0xFFFFFFFFFFULL) << 12
    cdef uint64_t frame = folio_address(&h.folios, folio)
    cdef Node *at = NULL
    cdef int order = 0, i, freed = 0
    cdef uint32_t page
    cdef uint64_t *entry
    folio_remove(&h.folios, folio)
    break_2m(&h.frames, frame)
    for i in range(512):
        entry = find_frame(t, address + <uint64_t>i * 4096, &at, &order)
        if entry != NULL and entry[0] & TARGET == frame + <uint64_t>i * 4096:
            page = folio_id(&h.folios, frame + <uint64_t>i * 4096, 0)
            h.folios.owner[page] = owner + i
            folio_push(&h.folios, which, page)
        else:
            free_4k(&h.frames, frame + <uint64_t>i * 4096)
            freed += 1
    return freed


cdef inline int64_t swap_in(Backing *b, uint64_t address, uint64_t frame, int which) noexcept nogil:
    """Map `frame` where a swap entry stands; the slot, or -1 when none stands there."""
    cdef Host *h = b.host
    cdef Node *at = NULL
    cdef int level = 0
    cdef uint64_t *entry = find_entry(b.table, address, &at, &level)
    cdef uint64_t slot
    cdef uint32_t page
    if not entry[0] & SWAPPED:
        return -1
    slot = entry[0] >> 12
    entry[0] = frame | PRESENT | LEAF
    note_change(b.table, at)
    b.table.leaves[0] += 1
    b.table.swapped -= 1
    page = folio_id(&h.folios, frame, 0)
    h.folios.owner[page] = (b.owner << 40) | (address >> 12)
    if in_tier(h, frame):
        b.tiered += 1
        which = TIER_LIST
    folio_push(&h.folios, which, page)
    return slot


cdef inline uint64_t stranded_pages(const Node *node, const Blocks *guest,
                                    uint64_t base) noexcept nogil:
    """Backed 4 KiB pages under `node` that are free in the guest."""
    cdef uint64_t pages = 0, address
    cdef uint32_t block
    cdef int i
    for i in range(node.entries):
        if node.entry[i] == 0 or node.entry[i] & SWAPPED:
            continue
        address = base + (<uint64_t>i << (3 + 9 * node.level))
        if has_frame(node.entry[i]):
            pages += free_in_range(guest, address, node.level - 1)
        elif node.level == 2:
            block = block_of(guest, address)
            if block < guest.n and block_has_free(guest, block):
                pages += stranded_pages(child_of(node.entry[i]), guest, address)
        else:
            pages += stranded_pages(child_of(node.entry[i]), guest, address)
    return pages


cdef inline bint block_has_free(const Blocks *g, uint32_t block) noexcept nogil:
    return g.state[block] == BLOCK_FREE or (g.state[block] < BLOCK_WHOLE and g.free_in[block] > 0)


cdef inline uint64_t free_in_range(const Blocks *g, uint64_t address, int order) noexcept nogil:
    """Pages free in the guest, of one naturally aligned leaf of guest-physical memory."""
    cdef uint32_t block = block_of(g, address)
    cdef uint64_t page = (address >> 12) & 511
    cdef uint64_t pages = 0
    cdef uint32_t i
    if order == 2:
        for i in range(block, min(block + 512, g.n)):
            if g.state[i] == BLOCK_FREE:
                pages += 512
            elif g.state[i] < BLOCK_WHOLE:
                pages += g.free_in[i]
        return pages
    if block >= g.n:
        return 0
    if g.state[block] == BLOCK_FREE:
        return 1 if order == 0 else 512
    if g.state[block] >= BLOCK_WHOLE:
        return 0
    if order == 1:
        return g.free_in[block]
    return 1 - ((g.used[<uint64_t>block * 8 + (page >> 6)] >> (page & 63)) & 1)


cdef inline bint claim_pages(uint64_t *claimed, uint64_t address, uint64_t n) noexcept nogil:
    """Set the bits of `n` pages; False when one was set."""
    cdef uint64_t page
    cdef bint alone = True
    for page in range(address >> 12, (address >> 12) + n):
        if (claimed[page >> 6] >> (page & 63)) & 1:
            alone = False
        claimed[page >> 6] |= <uint64_t>1 << (page & 63)
    return alone


cdef inline bint claim_below(const Node *node, uint64_t *claimed, const Host *h) noexcept nogil:
    """Set the bits of a table page, its mirror, and all it leads to: data too if `h` is given.

    Merged frames have several owners, and slower memory is no RAM: both are left out.
    """
    cdef bint alone = claim_pages(claimed, node.address, 1)
    cdef int i
    if node.mirror != NO_PAGE:
        alone = claim_pages(claimed, node.mirror, 1) and alone
    for i in range(node.entries):
        if is_child(node.entry[i]):
            alone = claim_below(child_of(node.entry[i]), claimed, h) and alone
        elif (h != NULL and has_frame(node.entry[i])
                and not (node.level == 1 and (in_tier(h, node.entry[i] & TARGET)
                                              or is_merged(h, node.entry[i] & TARGET)))):
            alone = claim_pages(claimed, node.entry[i] & TARGET,
                                span_of(node.level - 1) >> 12) and alone
    return alone
