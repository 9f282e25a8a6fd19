# Blocks that are asked for by their place: free ones, and ones whose pages move elsewhere.
#
# What a kernel does to offline memory (mm/page_isolation.c, mm/migrate.c): first nobody gets
# what is free in the blocks, then what is mapped from there is moved; a block of which a part
# cannot be moved is given up, and its free pages go back.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.blocks cimport (BLOCK_BROKEN_MOVABLE, BLOCK_FREE, BLOCK_WHOLE, MOVABLE, NIL,
                                NO_PAGE, Blocks, alloc_2m, alloc_4k, block_of, block_unlink,
                                free_4k, take_whole)
from simvm.core.guestmem cimport GuestKernel, holds_file, move_page, relist
from simvm.core.table cimport LEAF, TARGET, Node, child_of, is_child

cdef enum:
    ALL_WORDS = 8      # of 64 pages each, in a block

cdef struct Vacating:
    Blocks *b
    GuestKernel *kernel  # NULL: pages are on no lists
    uint32_t first
    uint32_t n
    uint64_t *ours       # 8 words a block: pages that nobody else has
    uint64_t *to[2]      # where pages of 4 KiB and 2 MiB have gone
    uint64_t moved[2]


cdef inline uint32_t next_free_block(const Blocks *b, uint32_t i) noexcept nogil:
    """The first whole free block from block `i` on, or NIL."""
    while i < b.n:
        if b.state[i] == BLOCK_FREE:
            return i
        i += 1
    return NIL


cdef inline bint all_ours(const Vacating *v, uint32_t k) noexcept nogil:
    cdef int w
    for w in range(ALL_WORDS):
        if v.ours[<uint64_t>k * ALL_WORDS + w] != 0xFFFFFFFFFFFFFFFFULL:
            return False
    return True


cdef inline void claim_block(Vacating *v, uint32_t k) noexcept nogil:
    cdef int w
    for w in range(ALL_WORDS):
        v.ours[<uint64_t>k * ALL_WORDS + w] = 0xFFFFFFFFFFFFFFFFULL


cdef inline bint isolate_free(Vacating *v) noexcept nogil:
    """Take what is free in the blocks; whether anything in them would have to move."""
    cdef Blocks *b = v.b
    cdef bint mapped = False
    cdef uint32_t k, i
    cdef uint64_t *used
    cdef int w
    for k in range(v.n):
        i = v.first + k
        if b.state[i] == BLOCK_FREE:
            take_whole(b, i, BLOCK_WHOLE)
            b.free_pages -= 512
            claim_block(v, k)
        elif b.state[i] == BLOCK_BROKEN_MOVABLE:
            mapped = True
            if b.free_in[i] == 0:
                continue
            used = b.used + <uint64_t>i * ALL_WORDS
            for w in range(ALL_WORDS):
                v.ours[<uint64_t>k * ALL_WORDS + w] = ~used[w]
                used[w] = 0xFFFFFFFFFFFFFFFFULL
            block_unlink(b, BLOCK_BROKEN_MOVABLE, i)
            b.free_pages -= b.free_in[i]
            b.free_in[i] = 0
        elif b.state[i] == BLOCK_WHOLE:
            mapped = True
    return mapped


cdef inline void move_below(Vacating *v, Node *node) noexcept nogil:
    """Let the leaves under `node` that map pages of the blocks map other pages instead."""
    cdef Blocks *b = v.b
    cdef uint64_t target, page, new
    cdef uint32_t i
    cdef int e
    for e in range(node.entries):
        if is_child(node.entry[e]):
            move_below(v, child_of(node.entry[e]))
            continue
        if not node.entry[e] & LEAF or node.level > 2:
            continue
        target = node.entry[e] & TARGET
        i = block_of(b, target)
        if i < v.first or i >= v.first + v.n:
            continue
        if node.level == 2:
            if b.state[i] != BLOCK_WHOLE:
                continue
            new = alloc_2m(b)
            if new == NO_PAGE:
                continue
            claim_block(v, i - v.first)
        else:
            if b.state[i] != BLOCK_BROKEN_MOVABLE:
                continue
            new = alloc_4k(b, MOVABLE)
            if new == NO_PAGE:
                continue
            page = (target >> 12) & 511
            v.ours[<uint64_t>(i - v.first) * ALL_WORDS + (page >> 6)] |= <uint64_t>1 << (page & 63)
        if v.kernel != NULL:
            relist(v.kernel, target, new, node.level - 1)
        v.to[node.level - 1][v.moved[node.level - 1]] = new
        v.moved[node.level - 1] += 1
        node.entry[e] = new | (node.entry[e] & ~TARGET)


cdef inline void move_files(Vacating *v) noexcept nogil:
    """Let pages of the page cache in the blocks be elsewhere."""
    cdef uint64_t page, new
    cdef uint64_t *ours
    cdef uint32_t k
    cdef int p
    for k in range(v.n):
        if v.b.state[v.first + k] != BLOCK_BROKEN_MOVABLE:
            continue
        for p in range(512):
            ours = v.ours + <uint64_t>k * ALL_WORDS + (p >> 6)
            page = v.b.base + (<uint64_t>(v.first + k) << 21) + (<uint64_t>p << 12)
            if (ours[0] >> (p & 63)) & 1 or not holds_file(v.kernel, page):
                continue
            new = alloc_4k(v.b, MOVABLE)
            if new == NO_PAGE:
                return
            move_page(v.kernel, page, new)
            ours[0] |= <uint64_t>1 << (p & 63)
            v.to[0][v.moved[0]] = new
            v.moved[0] += 1


cdef inline void settle(Vacating *v) noexcept nogil:
    """Blocks that are all ours become allocated whole; of others, what was free goes back."""
    cdef Blocks *b = v.b
    cdef uint32_t k, i
    cdef uint64_t word
    cdef int p
    for k in range(v.n):
        i = v.first + k
        if all_ours(v, k):
            b.state[i] = BLOCK_WHOLE
        elif b.state[i] == BLOCK_BROKEN_MOVABLE:
            for p in range(512):
                word = v.ours[<uint64_t>k * ALL_WORDS + (p >> 6)]
                if (word >> (p & 63)) & 1:
                    free_4k(b, b.base + (<uint64_t>i << 21) + (<uint64_t>p << 12))
