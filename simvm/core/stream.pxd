# Access generators: where in its region a thread reads or writes next.
#
# One 64-bit draw gives page (its high bits), line within the page and read or write (its
# low bits). Integers only, so a stream is the same on every machine. A stream yields
# byte offsets into a region, never addresses: what it draws does not depend on where
# the region lies, nor on time, nor on other guests.

from libc.stdint cimport uint32_t, uint64_t
from numpy.random cimport bitgen_t
from simvm.core.cache cimport mul_high, prefetch

cdef enum:
    UNIFORM = 0
    ZIPF = 1
    STRIDED = 2
    CHASE = 3
    HOT_COLD = 4
    DRIFTING = 5
    TRACE = 6

cdef enum:
    AHEAD = 512

cdef extern from *:
    """
    #define SIMVM_WEIGHT_STEP 0x9E3779B97F4A7C15ULL
    """
    const uint64_t WEIGHT_STEP "SIMVM_WEIGHT_STEP"   # 2^64 over the golden ratio, odd

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
    uint64_t made            # accesses drawn
    uint64_t drawn           # accesses done
    uint64_t digest          # of those done
    const uint64_t *next     # what was drawn ahead: n accesses, `at` of them done
    int n
    int at
    uint64_t drawn_ahead[AHEAD]
    # zipf
    AliasSlot *slots
    uint64_t n_slots
    uint64_t scatter         # multiplier coprime to `nodes`; 1 keeps the order of ranks
    # strided: this thread's slice
    uint64_t start
    uint64_t length
    uint64_t position
    uint64_t stride
    # zipf and pointer chase: the region as `nodes` of `granule` bytes
    uint64_t nodes
    uint64_t granule
    # pointer chase
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


cdef inline uint64_t hot_page(Stream *s, uint64_t start) noexcept nogil:
    """A page of the hot window at `start`, or of the rest of the region."""
    cdef uint64_t first = draw(s)
    cdef uint64_t page
    if <uint32_t>first < s.hot_below:
        page = start + mul_high(first, s.hot_pages)
    else:
        page = start + s.hot_pages + mul_high(first, s.pages - s.hot_pages)
    return page - s.pages if page >= s.pages else page


cdef inline uint64_t draw_one(Stream *s, uint64_t r) noexcept nogil:
    """The next byte offset of a random or strided stream."""
    cdef uint64_t offset
    if s.kind == UNIFORM:
        return in_page(mul_high(r, s.pages), r)
    if s.kind == STRIDED:
        offset = s.start + s.position
        s.position += s.stride
        if s.position >= s.length:
            s.position %= s.length
        return offset
    if s.kind == CHASE:
        return chase_next(s) * s.granule
    if s.kind == HOT_COLD:
        return in_page(hot_page(s, 0), r)
    return in_page(hot_page(s, s.made * s.drift // 1000 % s.pages), r)


cdef inline void look_ahead(Stream *s) noexcept nogil:
    """Draw the next accesses in one go, so that the processor can overlap their misses."""
    cdef uint64_t first[AHEAD]
    cdef uint64_t rank
    cdef AliasSlot *slot
    cdef int i
    s.at = 0
    if s.kind == TRACE:
        s.n = <int>min(<uint64_t>1 << 20, s.trace_length - s.position)
        s.next = s.trace + s.position
        s.position += s.n
        s.made += s.n
        return
    s.n = AHEAD
    s.next = s.drawn_ahead
    if s.kind == ZIPF:
        # An alias slot, then one of its ranks: two draws, the slots fetched meanwhile.
        for i in range(AHEAD):
            first[i] = draw(s)
            prefetch(&s.slots[mul_high(first[i], s.n_slots)])
            s.drawn_ahead[i] = draw(s)
        for i in range(AHEAD):
            slot = &s.slots[mul_high(first[i], s.n_slots)]
            if <uint32_t>first[i] >= slot.threshold:
                slot = &s.slots[slot.alias]
            rank = slot.first_rank + mul_high(s.drawn_ahead[i], slot.width)
            if s.scatter != 1:
                rank = rank * s.scatter % s.nodes
            rank = rank * s.granule + in_page(0, s.drawn_ahead[i])
            s.drawn_ahead[i] = with_write(s, rank, s.drawn_ahead[i])
        s.made += AHEAD
        return
    for i in range(AHEAD):
        rank = draw(s)
        s.drawn_ahead[i] = with_write(s, draw_one(s, rank), rank)
        s.made += 1


cdef inline uint64_t with_write(const Stream *s, uint64_t offset, uint64_t r) noexcept nogil:
    """(byte offset << 1) | write, the write by bits of the draw that the offset does not use."""
    return (offset << 1) | (((r >> 8) & 0xFFFFFF) < s.write_below)


cdef inline uint64_t weight(uint64_t drawn) noexcept nogil:
    """Of the access after so many, in the digest: a sum, so that none waits for the last."""
    return (drawn + 1) * WEIGHT_STEP


cdef inline bint stream_ready(Stream *s) noexcept nogil:
    """Whether there is a next access, at `s.next[s.at]`; a trace's chunk may be used up."""
    if s.at == s.n:
        look_ahead(s)
    return s.at < s.n


cdef inline void stream_consume(Stream *s) noexcept nogil:
    """The next access has been done."""
    s.digest += s.next[s.at] * weight(s.drawn)
    s.at += 1
    s.drawn += 1
