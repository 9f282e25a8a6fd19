# Loads of page walks on their way to the data caches.
#
# Where a load finds its line says what the walk costs, never where it leads. So loads are
# queued, and many go through the caches at a time: all through L2, then those that missed
# there through LLC. Which lines a cache holds depends on nothing but the lines it was sent,
# so this is what one after another would come to; and the simulator's own memory, that of
# the LLC's sets, can be fetched before it is needed. A run settles its queue before anybody
# looks at costs, and before the loads in it could use up the time that is left.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.cache cimport inlined_int, prefetch
from simvm.core.lines cimport LineCache, lines_set, set_touch

cdef enum:
    LONGEST = 64         # at least what one walk may load, its data line included
    QUEUE = 512
    CHARGED = 1          # in a queued address: a walk waits for it (not the data line)

cdef struct Loads:
    LineCache l2
    LineCache llc
    uint64_t l2_latency
    uint64_t llc_latency
    uint64_t dram_latency
    uint64_t slowest     # the longest of these
    uint64_t *trace      # the hPA of each load, for `simvm walk`; NULL when nobody asks
    uint64_t trace_room
    uint64_t traced
    int n
    uint64_t word[QUEUE]     # hPA | CHARGED

cdef struct Missed:          # a load that L2 did not have
    uint32_t *words
    uint32_t tag
    uint32_t counts

cdef struct Found:           # charged loads by where they were found
    uint64_t l2
    uint64_t llc
    uint64_t dram


cdef inline Found touch_queued(Loads *q, int first, int last) noexcept nogil:
    """Send what is queued at [`first`, `last`) through the caches."""
    cdef Found found
    if q.trace != NULL:
        keep_trace(q, first, last)
    if q.l2.ways == 16 and q.l2.masked and q.llc.ways == 16 and not q.llc.masked:
        touch_both(q, first, last, &found, 16, True, 16, False)     # constants there
    else:
        touch_both(q, first, last, &found, q.l2.ways, q.l2.masked, q.llc.ways, q.llc.masked)
    return found


cdef inline inlined_int touch_both(Loads *q, int first, int last, Found *found, int l2_ways,
                                   bint l2_masked, int llc_ways, bint llc_masked) noexcept nogil:
    """All through L2, then those that it did not have through LLC."""
    cdef Missed missed[QUEUE]
    cdef Missed *end = missed
    cdef Missed *at = missed
    cdef LineCache l2 = q.l2, llc = q.llc
    cdef const uint64_t *word = q.word + first
    cdef const uint64_t *last_word = q.word + last
    cdef uint32_t *words
    cdef uint32_t tag
    cdef uint64_t loads = 0, counts, in_l2 = 0, in_llc = 0
    while word < last_word:
        counts = word[0] & CHARGED
        loads += counts
        words = lines_set(&l2, l2_masked, l2_ways, word[0] >> 6, &tag)
        if l2_ways and set_touch(words, l2_ways, tag):
            in_l2 += counts
        else:
            end.words = lines_set(&llc, llc_masked, llc_ways, word[0] >> 6, &end.tag)
            prefetch(end.words)
            end.counts = <uint32_t>counts
            end += 1
        word += 1
    while at < end:
        if llc_ways and set_touch(at.words, llc_ways, at.tag):
            in_llc += at.counts
        at += 1
    found.l2, found.llc, found.dram = in_l2, in_llc, loads - in_l2 - in_llc
    return 0


cdef inline void keep_trace(Loads *q, int first, int last) noexcept nogil:
    cdef int i
    for i in range(first, last):
        if q.word[i] & CHARGED and q.traced < q.trace_room:
            q.trace[q.traced] = q.word[i] - CHARGED
            q.traced += 1
