# The data caches: which 64-byte lines are in L2 and LLC, true LRU.
#
# A tag is line // sets, kept as 32 bits plus one (0: free), and a set is kept in order of
# recency, so that a set of 16 ways is one real cache line and a miss, which is what most
# lines of a large guest are, needs no search for a victim.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memmove, memset
from simvm.core.cache cimport count_trailing_zeros, mul_high, words_of

cdef extern from "core/ways.h" nogil:
    uint32_t match_words "simvm_match"(const uint32_t *words, uint32_t tag, int n)
    void rotate_16 "simvm_rotate16"(uint32_t *words, int i, uint32_t tag)
    void push_16 "simvm_push16"(uint32_t *words, uint32_t tag)

cdef struct LineCache:
    uint32_t *tags         # NULL: the cache is absent
    uint64_t sets
    uint64_t reciprocal    # 2^64 // sets + 1
    int ways


cdef inline int lines_init(LineCache *c, uint64_t size, int ways) noexcept nogil:
    c.ways = ways
    c.sets = size // 64 // ways
    c.tags = NULL
    if c.sets == 0:
        return 0
    c.reciprocal = 0xFFFFFFFFFFFFFFFFULL // c.sets + 1
    c.tags = <uint32_t *>words_of(c.sets * ways, 4)
    if c.tags == NULL:
        return -1
    memset(c.tags, 0, c.sets * ways * 4)
    return 0


cdef inline void lines_free(LineCache *c) noexcept nogil:
    free(c.tags)


cdef inline uint32_t *lines_set(const LineCache *c, uint64_t line, uint32_t *tag) noexcept nogil:
    """The set of a line, and its tag there; a multiplication instead of a division."""
    cdef uint64_t above, s
    if c.sets == 1:
        above, s = line, 0
    else:
        above = mul_high(line, c.reciprocal)
        s = line - above * c.sets
        if s >= c.sets:            # the reciprocal is rounded up, and so may be one too many
            above -= 1
            s += c.sets
    tag[0] = <uint32_t>above + 1
    return c.tags + s * c.ways


cdef inline bint lines_touch(LineCache *c, uint64_t line) noexcept nogil:
    """Whether the line was present; it is now, as the most recently used."""
    cdef uint32_t tag
    cdef uint32_t *t = lines_set(c, line, &tag)
    cdef uint32_t found
    if t[0] == tag:
        return True
    if c.ways != 16:
        return touch_any(t, tag, c.ways)
    found = match_words(t, tag, 16)
    if found:
        rotate_16(t, count_trailing_zeros(found), tag)
        return True
    push_16(t, tag)
    return False


cdef inline bint touch_any(uint32_t *t, uint32_t tag, int ways) noexcept nogil:
    """The same in a set of any number of ways, whose first does not hold the line."""
    cdef int i, found = -1
    for i in range(1, ways):
        if t[i] == tag:
            found = i
            break
    memmove(t + 1, t, (found if found > 0 else ways - 1) * 4)
    t[0] = tag
    return found > 0
