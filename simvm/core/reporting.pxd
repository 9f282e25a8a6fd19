# Free page reporting's part of the allocator: taking free blocks off a list for a report to
# the host, and putting them back as reported.
#
# What is reported goes to the tail of its list, so what the host still backs is used first.
# The mark is lost when the block is allocated, when it merges with its other half and when
# its other half is taken: Linux, mm/page_reporting.c and __free_one_page in mm/page_alloc.c.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.blocks cimport (BLOCK_FREE, BLOCK_WHOLE, LOWER, NIL, UPPER, Blocks,
                                block_link_last, block_of, list_of, merge, take_whole)


cdef inline int free_list(bint lower, bint pairs) noexcept nogil:
    return (LOWER if lower else UPPER) + pairs


cdef inline int isolate(Blocks *b, bint lower, bint pairs, uint64_t *out, int most) noexcept nogil:
    """Allocate up to `most` entries of a list that are not reported; how many there were."""
    cdef uint32_t i = next_unreported(b, pairs, b.head[free_list(lower, pairs)])
    cdef uint32_t after
    cdef int n = 0
    while i != NIL and n < most:
        after = b.next[i ^ 1] if pairs else b.next[i]
        take_whole(b, i, BLOCK_WHOLE)
        if pairs:
            take_whole(b, i ^ 1, BLOCK_WHOLE)
        b.free_pages -= 512 << pairs
        out[n] = b.base + (<uint64_t>i << 21)
        n += 1
        i = next_unreported(b, pairs, after)
    return n


cdef inline uint32_t next_unreported(const Blocks *b, bint pairs, uint32_t i) noexcept nogil:
    """The first entry from `i` on that is not reported, or NIL."""
    while i != NIL and b.reported[i]:
        i = b.next[i ^ 1] if pairs else b.next[i]
    return i


cdef inline int put_back(Blocks *b, uint64_t address, bint pair) noexcept nogil:
    """Free an isolated entry; it counts as reported unless it merges with its other half."""
    cdef uint32_t i = block_of(b, address)
    if i + pair >= b.n or b.state[i] != BLOCK_WHOLE or b.state[i + pair] != BLOCK_WHOLE:
        return -1
    b.free_pages += 512 << pair
    if pair:
        give_last(b, i)
        give_last(b, i + 1)
        b.reported[i] = b.reported[i + 1] = 1
    else:
        b.reported[i] = not give_last(b, i)
    return 0


cdef inline bint give_last(Blocks *b, uint32_t i) noexcept nogil:
    """A block is free, at the tail of its list; whether it completes a pair."""
    if merge(b, i):
        block_link_last(b, list_of(b, i, True), i & ~<uint32_t>1)
        block_link_last(b, list_of(b, i, True), i | 1)
        return True
    block_link_last(b, list_of(b, i, False), i)
    return False


cdef inline uint64_t count_zone(const Blocks *b, bint lower) noexcept nogil:
    """Free pages of a zone."""
    cdef uint64_t pages = 0
    cdef uint32_t i
    cdef uint32_t edge = min(b.lower, b.n)
    for i in range(0 if lower else edge, edge if lower else b.n):
        if b.state[i] == BLOCK_FREE:
            pages += 512
        elif b.state[i] < BLOCK_WHOLE:
            pages += b.free_in[i]
    return pages


cdef inline uint64_t count_reported(const Blocks *b) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(b.n):
        n += b.reported[i]
    return n
