# The data caches: which 64-byte lines are in L2 and LLC, true LRU.
#
# A tag is line // sets, kept as 32 bits plus one (0: free), and a set is kept in order of
# recency, so that a set of 16 ways is one real cache line and a miss, which is what most
# lines of a large guest are, needs no search for a victim.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memmove, memset
from simvm.core.cache cimport count_trailing_zeros, words_of

cdef extern from "core/lines.h" nogil:
    uint64_t set_of_line "simvm_set_of_line"(uint64_t line, uint64_t sets, uint64_t reciprocal,
                                             uint64_t *above)
    uint32_t touch_16 "simvm_touch16"(uint32_t *set, uint32_t tag)

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


cdef inline uint32_t *lines_set(const LineCache *c, uint64_t line, uint32_t *tag) noexcept nogil:
    """The set of a line, and its tag there."""
    cdef uint64_t above = 0, s
    if c.masked:
        above = line >> c.shift
        s = line & (c.sets - 1)
    else:
        s = set_of_line(line, c.sets, c.reciprocal, &above)
    tag[0] = <uint32_t>above + 1
    return c.tags + s * <uint64_t>c.ways


cdef inline bint set_touch(uint32_t *t, int ways, uint32_t tag) noexcept nogil:
    """Whether a set has the line; it has it now, as the most recently used."""
    cdef int i, found = ways - 1
    cdef bint hit = False
    if ways == 16:
        return touch_16(t, tag) != 0
    for i in range(ways):
        if t[i] == tag:
            found, hit = i, True
            break
    memmove(t + 1, t, <size_t>found * 4)
    t[0] = tag
    return hit
