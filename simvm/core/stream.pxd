# Access generators: where in its region a thread reads or writes next.
#
# One 64-bit draw gives page (its high bits), line within the page and read or write (its
# low bits). Integers only, so a stream is the same on every machine. A stream yields
# byte offsets into a region, never addresses: what it draws does not depend on where
# the region lies, nor on time, nor on other guests.

from libc.stdint cimport uint32_t, uint64_t
from numpy.random cimport bitgen_t
from simvm.core.cache cimport mul_high

cdef enum:
    UNIFORM = 0
    ZIPF = 1
    STRIDED = 2
    CHASE = 3
    HOT_COLD = 4
    DRIFTING = 5
    TRACE = 6

cdef struct AliasSlot:
    uint32_t threshold   # of 2^32: below it the slot itself, else its alias
    uint32_t alias
    uint32_t first_rank
    uint32_t width       # ranks in this slot, taken as equally likely

cdef struct Stream:
    int kind
    bitgen_t *bits
    uint64_t pages           # 4 KiB pages of the region
    uint64_t bytes
    uint64_t write_below     # of 2^24
    uint64_t drawn           # accesses yielded
    uint64_t digest
    # zipf
    AliasSlot *slots
    uint64_t n_slots
    uint64_t scatter         # multiplier coprime to `pages`; 1 keeps the order of ranks
    # strided: this thread's slice
    uint64_t start
    uint64_t length
    uint64_t position
    uint64_t stride
    # pointer chase
    uint64_t nodes
    uint64_t granule
    uint64_t mask            # power of two >= nodes, less one
    int half
    uint64_t keys[3]
    # hot/cold and drifting
    uint64_t hot_pages
    uint64_t hot_below       # of 2^32
    uint64_t drift           # pages per 1000 accesses
    # trace: (offset << 1) | write
    const uint64_t *trace
    uint64_t trace_length


cdef inline uint64_t draw(Stream *s) noexcept nogil:
    return s.bits.next_uint64(s.bits.state)


cdef inline uint64_t in_page(uint64_t page, uint64_t r) noexcept nogil:
    return (page << 12) | ((r & 63) << 6)


cdef inline uint64_t chase_next(Stream *s) noexcept nogil:
    """The next node of a pseudo-random cycle through all of them (a keyed bijection)."""
    cdef uint64_t x
    cdef int i
    while True:
        x = s.position & s.mask
        s.position += 1
        for i in range(3):
            x = (x * (s.keys[i] | 1)) & s.mask
            x ^= x >> s.half
        if x < s.nodes:
            return x


cdef inline uint64_t zipf_page(Stream *s, uint64_t r) noexcept nogil:
    """A page by Zipf rank: an alias slot, then one of the slot's ranks by the draw `r`."""
    cdef uint64_t first = draw(s)
    cdef AliasSlot *slot = &s.slots[mul_high(first, s.n_slots)]
    cdef uint64_t rank
    if <uint32_t>first >= slot.threshold:
        slot = &s.slots[slot.alias]
    rank = slot.first_rank
    if slot.width > 1:
        rank += mul_high(r, slot.width)
    if s.scatter == 1:
        return rank
    return rank * s.scatter % s.pages


cdef inline uint64_t hot_page(Stream *s, uint64_t start) noexcept nogil:
    """A page of the hot window at `start`, or of the rest of the region."""
    cdef uint64_t first = draw(s)
    cdef uint64_t page
    if <uint32_t>first < s.hot_below:
        page = start + mul_high(first, s.hot_pages)
    else:
        page = start + s.hot_pages + mul_high(first, s.pages - s.hot_pages)
    return page - s.pages if page >= s.pages else page


cdef inline uint64_t stream_next(Stream *s) noexcept nogil:
    """(byte offset << 1) | write."""
    cdef uint64_t r, offset
    if s.kind == TRACE:
        r = s.trace[s.position]
        s.position += 1
        s.drawn += 1
        s.digest = (s.digest ^ r) * 0x9E3779B97F4A7C15ULL
        return r
    r = draw(s)
    if s.kind == UNIFORM:
        offset = in_page(mul_high(r, s.pages), r)
    elif s.kind == ZIPF:
        offset = in_page(zipf_page(s, r), r)
    elif s.kind == STRIDED:
        offset = s.start + s.position
        s.position += s.stride
        if s.position >= s.length:
            s.position %= s.length
    elif s.kind == CHASE:
        offset = chase_next(s) * s.granule
    elif s.kind == HOT_COLD:
        offset = in_page(hot_page(s, 0), r)
    else:
        offset = in_page(hot_page(s, s.drawn * s.drift // 1000 % s.pages), r)
    s.drawn += 1
    offset = (offset << 1) | (((r >> 8) & 0xFFFFFF) < s.write_below)
    s.digest = (s.digest ^ offset) * 0x9E3779B97F4A7C15ULL
    return offset
