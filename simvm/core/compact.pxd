# Making 2 MiB of host memory whole: pages that can move, and mappings that can be joined.
#
# Compaction empties a broken block page by page into free pages of others. Collapse joins
# the 4 KiB mappings of 2 MiB of guest memory into one, in a new block. Which block, and
# which range, is decided elsewhere; so is what it costs and who is told to flush.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.blocks cimport (BLOCK_BROKEN_MOVABLE, BLOCK_BROKEN_UNMOVABLE, NO_PAGE, Blocks,
                                alloc_in, free_4k)
from simvm.core.folios cimport folio_id, folio_push, folio_replace
from simvm.core.hostmem cimport PARTIAL_LIST, UNEVICTABLE_LIST, claim_pages, in_tier, release_frame
from simvm.core.shadow cimport shadow_drop_leaf
from simvm.core.table cimport (ACCESSED, DIRTY, LEAF, PRESENT, SWAPPED, TARGET, Node, Table,
                               child_of, deposit, find_entry, find_frame, has_frame, is_child,
                               node_release, span_of)
from simvm.core.vcpu cimport CUT, Backing, Host

cdef extern from *:
    """
    #define SIMVM_HOSTS_OWN (~(uint64_t)0)
    #define SIMVM_HOSTS_FIXED (~(uint64_t)0 - 1)
    """
    # who owns a page that the host itself has: one that can be moved, one that cannot
    const uint64_t HOSTS_OWN "SIMVM_HOSTS_OWN"
    const uint64_t HOSTS_FIXED "SIMVM_HOSTS_FIXED"

cdef struct Range:        # the 4 KiB entries under 2 MiB
    int present
    int none
    int swapped
    int accessed
    int fixed             # not to be joined: on no list, held by mprotect, or of a tier


cdef inline bint page_moves(const Host *h, uint32_t page) noexcept nogil:
    """Whether a page in use can be moved: it is mapped and on a list, or the host says so."""
    return (0 < h.folios.where[page] < PARTIAL_LIST or h.folios.owner[page] == HOSTS_OWN)


cdef inline bint block_moves(const Host *h, uint32_t block) noexcept nogil:
    """Whether a block is broken, and every page in use in it can be moved."""
    cdef const Blocks *b = &h.frames
    cdef uint64_t word
    cdef int w, bit
    if b.state[block] != BLOCK_BROKEN_MOVABLE and b.state[block] != BLOCK_BROKEN_UNMOVABLE:
        return False
    for w in range(8):
        word = b.used[<uint64_t>block * 8 + w]
        for bit in range(64):
            if (word >> bit) & 1 and not page_moves(h, block * 512 + w * 64 + bit):
                return False
    return True


cdef inline uint64_t free_above(Blocks *b, uint32_t block, uint32_t *cursor) noexcept nogil:
    """Take a free page of the highest broken block from `cursor` down to `block`; or NO_PAGE."""
    while cursor[0] > block:
        if b.state[cursor[0]] == BLOCK_BROKEN_MOVABLE and b.free_in[cursor[0]] > 0:
            return alloc_in(b, cursor[0])
        cursor[0] -= 1
    return NO_PAGE


cdef inline int migrate(Host *h, Backing *b, uint32_t page, uint64_t to) noexcept nogil:
    """Move a page to the frame `to`, and its mapping (none: `b` is NULL); -1 when that differs."""
    cdef uint64_t old = h.folios.base + (<uint64_t>page << 12)
    cdef uint64_t address = (h.folios.owner[page] & 0xFFFFFFFFFFULL) << 12
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry
    if b != NULL:
        entry = find_frame(b.table, address, &at, &order)
        if entry == NULL or order != 0 or entry[0] & TARGET != old:
            return -1
        if entry[0] & LEAF:
            shadow_drop_leaf(b.shadow, entry, address, 0)
        entry[0] = to | (entry[0] & ~TARGET)
    folio_replace(&h.folios, page, folio_id(&h.folios, to, 0))
    free_4k(&h.frames, old)
    return 0


cdef inline bint claim_hosts(const Host *h, uint64_t *claimed) noexcept nogil:
    """Set the bits of the host's own pages; False when one was set, or is free."""
    cdef uint64_t page
    cdef bint alone = True
    for page in range(h.folios.n_pages):
        if h.folios.owner[page] >= HOSTS_FIXED:
            alone = (claim_pages(claimed, page << 12, 1) and alone
                     and (h.frames.used[page >> 6] >> (page & 63)) & 1)
    return alone


cdef inline Node *small_pages(Backing *b, uint64_t address) noexcept nogil:
    """The page table that maps the 2 MiB around `address` by 4 KiB entries, or NULL."""
    cdef Node *at = NULL
    cdef int level = 0
    find_entry(b.table, address, &at, &level)
    return at if level == 1 else NULL


cdef inline void look_at(Backing *b, const Node *node, Range *r) noexcept nogil:
    cdef int i
    cdef uint64_t entry
    cdef uint32_t page
    r.present = r.none = r.swapped = r.accessed = r.fixed = 0
    for i in range(512):
        entry = node.entry[i]
        if entry & LEAF:
            page = folio_id(&b.host.folios, entry & TARGET, 0)
            r.present += 1
            r.accessed += (entry & ACCESSED) != 0 or b.shadow != NULL
            r.fixed += not can_join(b.host, page)
        elif has_frame(entry):
            r.fixed += 1
        elif entry & SWAPPED:
            r.swapped += 1
        else:
            r.none += 1


cdef inline bint can_join(const Host *h, uint32_t page) noexcept nogil:
    """Whether a mapped page is of RAM and on a list, by itself or as a part of a block."""
    return (not in_tier(h, h.folios.base + (<uint64_t>page << 12))
            and (0 < h.folios.where[page] < PARTIAL_LIST
                 or h.folios.where[h.folios.n_pages + (page >> 9)] == PARTIAL_LIST))


cdef inline int collapse(Backing *b, uint64_t address, uint64_t frame) noexcept nogil:
    """Map the 2 MiB at `address` by one leaf to `frame`, instead of 4 KiB pages, which go.

    -1 when it is not mapped by 4 KiB entries, or some are swapped out, held or shared, or a
    VMA ends within. What is locked stays so.
    """
    cdef Table *t = b.table
    cdef Host *h = b.host
    cdef Node *node = small_pages(b, address)
    cdef Node *parent
    cdef uint64_t bits = PRESENT | LEAF, entry, slot
    cdef uint32_t folio
    cdef int i, which = 0
    if node == NULL or (b.marks != NULL and b.marks[address >> 21] & CUT):
        return -1
    for i in range(512):
        entry = node.entry[i]
        if entry != 0 and not (entry & LEAF
                               and can_join(h, folio_id(&h.folios, entry & TARGET, 0))):
            return -1
    for i in range(512):
        entry = node.entry[i]
        if entry & LEAF:
            shadow_drop_leaf(b.shadow, &node.entry[i], address + <uint64_t>i * 4096, 0)
            bits |= node.entry[i] & (ACCESSED | DIRTY)
            if h.folios.where[folio_id(&h.folios, entry & TARGET, 0)] == UNEVICTABLE_LIST:
                which = UNEVICTABLE_LIST
            release_frame(h, entry & TARGET)
            t.leaves[0] -= 1
    parent, slot = node.parent, node.slot
    node_release(t, node)
    parent.entry[slot] = frame | bits
    t.leaves[1] += 1
    if b.deposits:
        deposit(t)
    folio = folio_id(&h.folios, frame, 1)
    h.folios.owner[folio] = (b.owner << 40) | (address >> 12)
    folio_push(&h.folios, which, folio)
    return 0


cdef inline uint64_t host_huge(const Backing *b, uint64_t address, int order) noexcept nogil:
    """Bytes of a guest's large page that the host maps by 2 MiB or more."""
    cdef Node *at = NULL
    cdef uint64_t end = address + span_of(order), huge = 0, step
    cdef uint64_t *entry
    cdef int level = 0
    while address < end:
        entry = find_entry(b.table, address, &at, &level)
        step = min(span_of(level - 1) if level > 1 else span_of(1), end - address)
        if level > 1 and entry[0] & LEAF:
            huge += step
        address += step
    return huge


cdef inline uint64_t aligned_huge(const Node *node, const Backing *b) noexcept nogil:
    """Bytes under `node` of a guest's table that both sides map by 2 MiB or more."""
    cdef uint64_t huge = 0
    cdef int i
    for i in range(node.entries):
        if node.entry[i] & LEAF:
            huge += host_huge(b, node.entry[i] & TARGET, node.level - 1)
        elif is_child(node.entry[i]) and node.level > 2:
            huge += aligned_huge(child_of(node.entry[i]), b)
    return huge
