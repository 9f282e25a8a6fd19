# A radix page table as the processor sees it: leaves at levels 1 to 3.
#
# A table page of granule 2^g has 2^(g-3) entries; the root may be several pages in a row
# (concatenated tables, the 16 KiB root of Sv39x4). Table pages have addresses of their own,
# taken from the allocator of the memory they lie in: host RAM for SLAT and native tables,
# guest memory for a guest's tables. A host table can be mirrored: the VMM process maps the
# same memory, with tables of the same shape, so each SLAT page is accompanied by one host
# page-table page.
#
# An entry: 0 (nothing); a child (node pointer | PRESENT); a leaf (target address |
# PRESENT | LEAF | A | D); a held frame (target address | HELD | A | D), which is still the
# owner's but which the processor does not find; or a swapped page (slot << 12 | SWAPPED,
# level 1 only).

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from simvm.core.blocks cimport (NO_PAGE, UNMOVABLE, Blocks, alloc_4k, alloc_run, free_4k,
                                free_run)
from simvm.core.cache cimport aligned_alloc

cdef extern from "core/pieces.h" nogil:
    cdef enum:
        PIECE_BITS "SIMVM_PIECE_BITS"
    void join_piece "simvm_join_piece"(uint64_t number)

cdef enum:
    PRESENT = 1
    LEAF = 2
    ACCESSED = 4
    DIRTY = 8
    SWAPPED = 16
    HELD = 32
    YOUNG = 64               # was accessed before somebody else cleared A (Linux' PG_young)

cdef enum:
    MAP_OK = 0
    MAP_OVERLAP = 1
    MAP_NO_MEMORY = 2

cdef enum:
    MAX_LEVEL = 5
    HEADER = 64              # bytes of a node before its entries
    GROUP = 16               # pages that the contiguous hint joins
    CROWD = 128              # nodes in a row in 2 MiB of real memory that make it worth joining

cdef extern from *:
    """
    #define SIMVM_TARGET (~(uint64_t)0xFFF)
    """
    const uint64_t TARGET "SIMVM_TARGET"     # a leaf's address, or a slot << 12

# 64 bytes, then the entries (in the root, as many as the root has); above level 1, then the
# addresses of the table pages that the entries lead to, so that a walk need not go to a page's
# header, which is apart from the entry it is after.
cdef struct Node:
    uint64_t address     # of the table page, in the memory that the table lies in
    uint64_t mirror      # host address of the VMM's table page beside it, or NO_PAGE
    Node *parent
    uint64_t slot        # index in the parent
    int level
    int used             # entries that are not 0
    int entries
    int pages            # of 4 KiB, that it takes
    uint64_t changed     # the table's `changes` when something here did (see note_change)
    uint64_t unused
    uint64_t entry[512]

cdef struct Table:
    Node *root
    int shift[6]             # by level: the lowest address bit of its index
    uint64_t mask[6]         # by level: the bits of its index
    int levels
    int granule              # log2 of a table page
    bint mirrored
    bint contiguous          # sixteen pages in a row count as one of 64 KiB
    Blocks *memory
    uint64_t pages           # table pages, the root included
    uint64_t mirror_pages
    uint64_t leaves[3]       # by order, held ones included
    uint64_t held            # 4 KiB pages of held leaves
    uint64_t swapped
    uint64_t changes         # counts what `note_change` is told of
    uint64_t removed         # 4 KiB pages whose frames were taken away, in all
    uint64_t *deposits       # page-table pages kept for the split of 2 MiB leaves
    uint64_t n_deposits
    uint64_t deposit_room
    uint64_t piece           # number of the 2 MiB of real memory that the newest node lies in
    int crowd                # nodes in a row that came to lie there


# Of the 4 KiB granule, the only one that hosts and guests are simulated with.

cdef inline uint64_t span_of(int order) noexcept nogil:
    return <uint64_t>1 << (12 + 9 * order)


cdef inline uint64_t index_in(const Table *t, uint64_t address, int level) noexcept nogil:
    return (address >> t.shift[level]) & t.mask[level]


cdef inline uint64_t reach_of(const Table *t) noexcept nogil:
    """Addresses that the root's entries cover, from 0."""
    return (t.mask[t.levels] + 1) << t.shift[t.levels]


cdef inline Node *child_of(uint64_t entry) noexcept nogil:
    """Of an entry that `is_child`: then PRESENT is its only flag."""
    return <Node *>(entry - PRESENT)


cdef inline uint64_t *address_below(Node *node, uint64_t entries, uint64_t slot) noexcept nogil:
    """Where the address stands of the table page that a child entry of a node leads to."""
    return <uint64_t *>(<char *>node + HEADER) + entries + slot


cdef inline void link_child(Node *node, uint64_t slot, Node *child) noexcept nogil:
    node.entry[slot] = <uint64_t>child | PRESENT
    address_below(node, node.entries, slot)[0] = child.address


cdef inline void note_change(Table *t, Node *node) noexcept nogil:
    """Entries of a table page are such that an access to what they map would change them.

    Whoever makes a leaf, removes one, or clears A or D of one says so here; whoever draws only
    what accesses can change (touches.pxd) then looks at the page again.
    """
    t.changes += 1
    node.changed = t.changes


cdef inline void note_place(Table *t, const Node *node) noexcept nogil:
    """Join the real memory behind a table's nodes once the heap has gone on to other memory.

    Walks read nodes anywhere in a table: in small pages the real TLB would miss on most. What
    the heap has left behind is in use, so joining it takes no more memory, or little.
    """
    cdef uint64_t piece = <uint64_t>node >> PIECE_BITS
    if piece != t.piece:
        if t.crowd >= CROWD:
            join_piece(t.piece)
        t.piece = piece
        t.crowd = 0
    t.crowd += 1


cdef inline Node *node_new(Table *t, int level, Node *parent, uint64_t slot) noexcept nogil:
    """A zeroed table page; NULL when memory (simulated or real) is short."""
    cdef Node *node
    cdef uint64_t address, kept = NO_PAGE
    cdef uint64_t entries = t.mask[level] + 1, size
    cdef int pages = <int>max((entries * 8) >> 12, <uint64_t>1 << (t.granule - 12))
    # The split of a 2 MiB leaf uses the page-table page that was deposited for it.
    if level == 1 and t.n_deposits > 0 and has_frame(parent.entry[slot]):
        t.n_deposits -= 1
        kept = t.deposits[t.n_deposits]
    if kept != NO_PAGE and not t.mirrored:
        address = kept
    elif pages == 1:
        address = alloc_4k(t.memory, UNMOVABLE)
    else:
        address = alloc_run(t.memory, pages, UNMOVABLE)
    if address == NO_PAGE:
        return NULL
    size = HEADER + (entries * (16 if level > 1 else 8) + 63) // 64 * 64
    node = <Node *>aligned_alloc(64, size)
    if node == NULL:
        free_run(t.memory, address, pages)
        return NULL
    memset(node, 0, size)
    node.address = address
    node.mirror = NO_PAGE
    node.parent = parent
    node.slot = slot
    node.level = level
    node.entries = <int>entries
    node.pages = pages
    note_place(t, node)
    note_change(t, node)
    if t.mirrored:
        node.mirror = kept if kept != NO_PAGE else alloc_4k(t.memory, UNMOVABLE)
        if node.mirror == NO_PAGE:
            free_run(t.memory, address, pages)
            free(node)
            return NULL
        t.mirror_pages += 1
    t.pages += pages
    return node


cdef inline void node_release(Table *t, Node *node) noexcept nogil:
    free_run(t.memory, node.address, node.pages)
    if node.mirror != NO_PAGE:
        free_4k(t.memory, node.mirror)
        t.mirror_pages -= 1
    t.pages -= node.pages
    free(node)


cdef inline int table_init(Table *t, int levels, Blocks *memory, bint mirrored, int granule,
                           int root_bits, bint contiguous) noexcept nogil:
    cdef int level
    memset(t, 0, sizeof(Table))
    t.levels = levels
    t.granule = granule
    t.memory = memory
    t.mirrored = mirrored
    t.contiguous = contiguous
    for level in range(1, levels + 1):
        t.shift[level] = granule + (granule - 3) * (level - 1)
        t.mask[level] = (<uint64_t>1 << (granule - 3)) - 1
    t.mask[levels] = (<uint64_t>1 << root_bits) - 1
    t.root = node_new(t, levels, NULL, 0)
    return 0 if t.root != NULL else -1


cdef inline bint is_child(uint64_t entry) noexcept nogil:
    return (entry & (PRESENT | LEAF)) == PRESENT


cdef inline bint has_frame(uint64_t entry) noexcept nogil:
    """Whether memory is there, mapped or held."""
    return (entry & (LEAF | HELD)) != 0


cdef inline void subtree_release(Table *t, Node *node) noexcept nogil:
    cdef int i
    if node.level > 1:
        for i in range(node.entries):
            if is_child(node.entry[i]):
                subtree_release(t, child_of(node.entry[i]))
    node_release(t, node)


cdef inline void table_destroy(Table *t, bint give_back) noexcept nogil:
    """Release every table page; with `give_back` also to the simulated memory."""
    if t.root != NULL:
        if give_back:
            while t.n_deposits > 0:
                t.n_deposits -= 1
                free_4k(t.memory, t.deposits[t.n_deposits])
            subtree_release(t, t.root)
        else:
            subtree_drop(t.root)
    t.root = NULL
    free(t.deposits)
    t.deposits = NULL
    t.n_deposits = t.deposit_room = 0


cdef inline void subtree_drop(Node *node) noexcept nogil:
    cdef int i
    if node.level > 1:
        for i in range(node.entries):
            if is_child(node.entry[i]):
                subtree_drop(child_of(node.entry[i]))
    free(node)


cdef inline int keep_deposit(Table *t, uint64_t address) noexcept nogil:
    """Set a page aside for the split of a 2 MiB leaf; -1 when real memory is short."""
    cdef uint64_t *more
    if t.n_deposits == t.deposit_room:
        more = <uint64_t *>realloc(t.deposits, (t.deposit_room * 2 + 64) * 8)
        if more == NULL:
            return -1
        t.deposits = more
        t.deposit_room = t.deposit_room * 2 + 64
    t.deposits[t.n_deposits] = address
    t.n_deposits += 1
    return 0


cdef inline int deposit(Table *t) noexcept nogil:
    """Take a page-table page and set it aside for a new 2 MiB leaf; -1 when memory is short."""
    cdef uint64_t address = alloc_4k(t.memory, UNMOVABLE)
    return -1 if address == NO_PAGE else keep_deposit(t, address)


cdef inline void withdraw(Table *t) noexcept nogil:
    if t.n_deposits > 0:
        t.n_deposits -= 1
        free_4k(t.memory, t.deposits[t.n_deposits])


cdef inline uint64_t *find_entry(const Table *t, uint64_t address, Node **at,
                                 int *level) noexcept nogil:
    """The lowest entry that the walk for `address` reaches: a leaf, swapped, or 0."""
    cdef Node *node = t.root
    cdef uint64_t *entry
    while True:
        entry = &node.entry[index_in(t, address, node.level)]
        if not is_child(entry[0]):
            at[0] = node
            level[0] = node.level
            return entry
        node = child_of(entry[0])


cdef inline uint64_t *find_leaf(const Table *t, uint64_t address, Node **at,
                                int *order) noexcept nogil:
    """The leaf that maps `address`, or NULL."""
    cdef int level
    cdef uint64_t *entry = find_entry(t, address, at, &level)
    if not entry[0] & LEAF:
        return NULL
    order[0] = level - 1
    return entry


cdef inline uint64_t *find_frame(const Table *t, uint64_t address, Node **at,
                                 int *order) noexcept nogil:
    """The leaf or the held entry that has the frame of `address`, or NULL."""
    cdef int level
    cdef uint64_t *entry = find_entry(t, address, at, &level)
    if not has_frame(entry[0]):
        return NULL
    order[0] = level - 1
    return entry


cdef inline void prune_up(Table *t, Node *node) noexcept nogil:
    """Release `node` and its ancestors as long as they hold nothing."""
    cdef Node *parent
    while node.used == 0 and node.parent != NULL:
        parent = node.parent
        parent.entry[node.slot] = 0
        parent.used -= 1
        node_release(t, node)
        node = parent


cdef inline Node *descend(Table *t, uint64_t address, int level, Node **made,
                          int *n_made) noexcept nogil:
    """The node at `level` on the way to `address`, making what is missing.

    New nodes are appended to `made` (room for 5). NULL when memory is short; a leaf in
    the way returns the node that holds it.
    """
    cdef Node *node = t.root
    cdef Node *child
    cdef uint64_t slot
    while node.level > level:
        slot = index_in(t, address, node.level)
        if node.entry[slot] == 0:
            child = node_new(t, node.level - 1, node, slot)
            if child == NULL:
                return NULL
            link_child(node, slot, child)
            node.used += 1
            made[n_made[0]] = child
            n_made[0] += 1
        elif not is_child(node.entry[slot]):
            return node
        node = child_of(node.entry[slot])
    return node


cdef inline bint empty_below(const Node *node) noexcept nogil:
    cdef int i
    if node.used == 0:
        return True
    if node.level == 1:
        return False
    for i in range(node.entries):
        if has_frame(node.entry[i]):
            return False
        if is_child(node.entry[i]) and not empty_below(child_of(node.entry[i])):
            return False
    return True


cdef inline int table_map(Table *t, uint64_t address, uint64_t target, int order,
                          uint64_t flags, Node **made, int *n_made) noexcept nogil:
    """Install a leaf. An empty table below a large leaf is given back first."""
    cdef Node *node
    cdef uint64_t slot
    node = descend(t, address, order + 1, made, n_made)
    if node == NULL:
        return MAP_NO_MEMORY
    slot = index_in(t, address, node.level)
    if node.level != order + 1:
        return MAP_OVERLAP
    if node.entry[slot] != 0:
        if not is_child(node.entry[slot]) or not empty_below(child_of(node.entry[slot])):
            return MAP_OVERLAP
        subtree_release(t, child_of(node.entry[slot]))
        node.used -= 1
    node.entry[slot] = target | PRESENT | LEAF | flags
    node.used += 1
    note_change(t, node)
    t.leaves[order] += 1
    return MAP_OK


cdef inline void clear_entry(Table *t, Node *node, uint64_t slot) noexcept nogil:
    """Remove a leaf, a held or a swapped entry; the table page stays."""
    if has_frame(node.entry[slot]):
        t.leaves[node.level - 1] -= 1
        t.removed += span_of(node.level - 1) >> 12
        if node.entry[slot] & HELD:
            t.held -= span_of(node.level - 1) >> 12
    elif node.entry[slot] & SWAPPED:
        t.swapped -= 1
    node.entry[slot] = 0
    node.used -= 1
    note_change(t, node)


cdef inline int table_split(Table *t, Node *node, uint64_t slot) noexcept nogil:
    """Replace a large leaf by smaller ones, a table page full, that inherit A and D."""
    cdef uint64_t entry = node.entry[slot]
    cdef int order = node.level - 1
    cdef uint64_t step = <uint64_t>1 << t.shift[order]
    cdef Node *child = node_new(t, order, node, slot)
    cdef int i
    if child == NULL:
        return -1
    for i in range(child.entries):
        child.entry[i] = entry + i * step
    child.used = child.entries
    link_child(node, slot, child)
    t.leaves[order] -= 1
    t.leaves[order - 1] += child.entries
    return 0


cdef inline int table_collapse(Table *t, Node *node, uint64_t target) noexcept nogil:
    """Replace a table page full of leaves by one leaf with A and D of all; -1 if it is not."""
    cdef uint64_t bits = PRESENT | LEAF
    cdef Node *parent = node.parent
    cdef int i
    if parent == NULL or node.used < node.entries:
        return -1
    for i in range(node.entries):
        if not node.entry[i] & LEAF:
            return -1
        bits |= node.entry[i] & (ACCESSED | DIRTY)
    t.leaves[node.level - 1] -= node.entries
    t.leaves[node.level] += 1
    parent.entry[node.slot] = target | bits
    node_release(t, node)
    return 0


cdef inline bint in_group(const Table *t, const Node *node, uint64_t slot) noexcept nogil:
    """Whether the page at `slot` is one of sixteen in a row, mapped to sixteen in a row."""
    cdef const uint64_t *group = node.entry + (slot & ~<uint64_t>(GROUP - 1))
    cdef uint64_t first = group[0] & TARGET
    cdef int i
    if not t.contiguous or node.level != 1 or first & (GROUP * 4096 - 1):
        return False
    for i in range(GROUP):
        if not group[i] & LEAF or group[i] & TARGET != first + i * 4096:
            return False
    return True


cdef inline bint clear_accessed(Table *t, Node *node, uint64_t slot) noexcept nogil:
    """Clear A of a leaf, or of all that one TLB entry may stand for; whether it was set."""
    cdef uint64_t first = slot, last = slot, before = 0
    if in_group(t, node, slot):
        first = slot & ~<uint64_t>(GROUP - 1)
        last = first + GROUP - 1
    for slot in range(first, last + 1):
        before |= node.entry[slot] & (ACCESSED | YOUNG)
        node.entry[slot] &= ~<uint64_t>(ACCESSED | YOUNG)
    note_change(t, node)
    return before != 0
