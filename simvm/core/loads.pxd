# Loads of page walks on their way to the data caches.
#
# Where a load finds its line says what the walk costs, never where it leads. So loads are
# queued, and many go through the caches at a time: all through L2, then those that missed
# there through LLC. Which lines a cache holds depends on nothing but the lines it was sent,
# so this is what one after another would come to; and the simulator's own memory, that of
# the LLC's sets, can be fetched before it is needed. A run settles its queue before anybody
# looks at costs, and before the loads in it could use up the time that is left.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.cache cimport prefetch
from simvm.core.lines cimport LineCache, lines_set, set_touch

cdef extern from "core/lines.h" nogil:
    ctypedef struct Pass "simvm_pass":
        uint32_t *l2
        uint64_t l2_sets
        int l2_shift
        uint32_t *llc
        uint64_t llc_sets
        uint64_t llc_reciprocal
        uint64_t in_l2
        uint64_t in_llc
        uint64_t loads
    void run_pass "simvm_pass_lines"(Pass *p, uint64_t *word, const uint64_t *last)

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
    uint32_t *set
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
        pass_lines(q, first, last, &found)
    else:
        touch_both(q, first, last, &found)
    return found


cdef inline void pass_lines(Loads *q, int first, int last, Found *found) noexcept nogil:
    """`touch_both` for the commonest shape: lines.h."""
    cdef Pass p
    p.l2, p.l2_sets, p.l2_shift = q.l2.tags, q.l2.sets, q.l2.shift
    p.llc, p.llc_sets, p.llc_reciprocal = q.llc.tags, q.llc.sets, q.llc.reciprocal
    run_pass(&p, q.word + first, q.word + last)
    found.l2, found.llc, found.dram = p.in_l2, p.in_llc, p.loads - p.in_l2 - p.in_llc


cdef inline void touch_both(Loads *q, int first, int last, Found *found) noexcept nogil:
    """All through L2, then those that it did not have through LLC."""
    cdef Missed missed[QUEUE]
    cdef uint32_t *words
    cdef uint32_t tag = 0
    cdef uint64_t counts
    cdef int i, n = 0
    found.l2 = found.llc = found.dram = 0
    for i in range(first, last):
        counts = q.word[i] & CHARGED
        if q.l2.ways:
            words = lines_set(&q.l2, q.word[i] >> 6, &tag)
            if set_touch(words, q.l2.ways, tag):
                found.l2 += counts
                continue
        if q.llc.ways:
            missed[n].set = lines_set(&q.llc, q.word[i] >> 6, &missed[n].tag)
            prefetch(missed[n].set)
            missed[n].counts = <uint32_t>counts
            n += 1
        else:
            found.dram += counts
    for i in range(n):
        if set_touch(missed[i].set, q.llc.ways, missed[i].tag):
            found.llc += missed[i].counts
        else:
            found.dram += missed[i].counts


cdef inline void keep_trace(Loads *q, int first, int last) noexcept nogil:
    cdef int i
    for i in range(first, last):
        if q.word[i] & CHARGED and q.traced < q.trace_room:
            q.trace[q.traced] = q.word[i] - CHARGED
            q.traced += 1
