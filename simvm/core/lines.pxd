# The data caches: which 64-byte lines are in L2 and LLC, true LRU.
#
# A tag is line // sets, kept as 32 bits plus one (0: free), and a set is kept in order of
# recency, so that a set of 16 ways is one real cache line and a miss, which is what most
# lines of a large guest are, needs no search for a victim.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memmove, memset
from simvm.core.cache cimport (count_trailing_zeros, inlined_int, likely, mul_high,
                               words_of)

cdef extern from "core/ways.h" nogil:
    uint32_t match_words "simvm_match"(const uint32_t *words, uint32_t tag, int n)
    void rotate_4 "simvm_rotate4"(uint32_t *words, int i, uint32_t tag)
    void rotate_16 "simvm_rotate16"(uint32_t *words, int i, uint32_t tag)
    void push_16 "simvm_push16"(uint32_t *words, uint32_t tag)

cdef struct LineCache:
    uint32_t *tags
    uint64_t sets
    uint64_t reciprocal    # 2^64 // sets + 1
    int ways               # 0: the cache is absent
    bint masked            # sets are a power of two,
    int shift              # ... of this exponent


cdef inline int lines_init(LineCache *c, uint64_t size, int ways) noexcept nogil:
    c.ways = 0
    c.tags = NULL
    c.sets = size // 64 // ways
    if c.sets == 0:
        return 0
    c.masked = c.sets & (c.sets - 1) == 0
    c.shift = count_trailing_zeros(c.sets)
    c.ways = ways
    c.reciprocal = 0xFFFFFFFFFFFFFFFFULL // c.sets + 1
    c.tags = <uint32_t *>words_of(c.sets * ways, 4)
    if c.tags == NULL:
        return -1
    memset(c.tags, 0, c.sets * ways * 4)
    return 0


cdef inline void lines_free(LineCache *c) noexcept nogil:
    free(c.tags)


cdef inline uint32_t *lines_set(const LineCache *c, bint masked, int ways, uint64_t line,
                                uint32_t *tag) noexcept nogil:
    """The set of a line, and its tag there; a multiplication instead of a division."""
    cdef uint64_t above, s
    if masked:
        above = line >> c.shift
        s = line & (c.sets - 1)
    else:
        above = mul_high(line, c.reciprocal)
        s = line - above * c.sets
        if s >= c.sets:            # the reciprocal is rounded up, and so may be one too many
            above -= 1
            s += c.sets
    tag[0] = <uint32_t>above + 1
    return c.tags + s * <uint64_t>ways


cdef inline inlined_int set_touch(uint32_t *t, int ways, uint32_t tag) noexcept nogil:
    """Whether a set has the line; it has it now, as the most recently used.

    Most that are found are among the four used last, which are one vector.
    """
    cdef uint32_t found
    cdef int i
    if ways != 16:
        return touch_any(t, tag, ways)
    found = match_words(t, tag, 16)
    if not found:
        push_16(t, tag)
        return False
    i = count_trailing_zeros(found)
    if likely(i < 4):
        rotate_4(t, i, tag)
    else:
        rotate_16(t, i, tag)
    return True


cdef inline bint touch_any(uint32_t *t, uint32_t tag, int ways) noexcept nogil:
    """The same in a set of any number of ways."""
    cdef int i, found = ways - 1
    cdef bint hit = False
    for i in range(ways):
        if t[i] == tag:
            found, hit = i, True
            break
    memmove(t + 1, t, <size_t>found * 4)
    t[0] = tag
    return hit
