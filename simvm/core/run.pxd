# The loop: a vCPU runs a stream of accesses through its MMU.
#
# A hit in the first TLB, the common case of a program with locality, takes no call and no
# branch that depends on data but the one that says it hit. What can change only by a fault
# (free memory, work of the guest's kernel) is looked at only after one.

from libc.stdint cimport uint32_t, uint64_t
from simvm.core.blocks cimport Blocks
from simvm.core.cache cimport (LRU, Assoc, count_trailing_zeros, find_way, least_of, likely,
                               prefetch, tag_of)
from simvm.core.mmu cimport (ENTRY_SHIFT, GUEST_FAULT, IS_DIRTY, OK, Mmu, Space, Tlb, access,
                             keep_time, key_of, miss, set_dirty)
from simvm.core.shadow_fault cimport shadow_fault
from simvm.core.stream cimport Stream, stream_ready
from simvm.core.table cimport LEAF, TARGET, Node, Table, child_of, index_in, is_child
from simvm.core.vcpu cimport (RUN_BUDGET, RUN_DEADLINE, RUN_PRESSURE, RUN_STREAM_END, Backing,
                              Region, Vcpu, back, do_work, guest_fault)

cdef extern from *:
    """
    /* The type of a function that is to be part of its caller, so that arguments which are
       constants there are constants in it. It also names a variable, where it says nothing. */
    #if defined(__GNUC__)
    #pragma GCC diagnostic ignored "-Wattributes"
    #define SIMVM_INLINED_INT __attribute__((always_inline)) int
    #else
    #define SIMVM_INLINED_INT int
    #endif
    """
    ctypedef int inlined_int "SIMVM_INLINED_INT"

cdef enum:
    FAR = 24                 # accesses ahead to fetch a first-dimension entry
    NEAR = 12                # ... and the host entry that it leads to
    STRETCH = 64             # accesses between two looks at how many of them missed
    MANY = 6                 # misses in a stretch that make it worth to fetch ahead

cdef enum:               # inside this file: a page is missing
    NO_GUEST_PAGE = -1
    NO_HOST_PAGE = -2


cdef struct Stretch:
    uint64_t time            # in 1/65536 of a cycle: so far in this call,
    uint64_t limit           # ... at most,
    uint64_t per_access      # ... and for each access beside translation
    uint64_t digest          # of the stream
    uint64_t missed          # accesses of this stretch that walked
    bint ahead               # whether to fetch ahead


cdef inline uint64_t digest_of(uint64_t digest, uint64_t word) noexcept nogil:
    return (digest ^ word) * 0x9E3779B97F4A7C15ULL


cdef inline uint64_t *entry_ahead(const Table *t, uint64_t address) noexcept nogil:
    """The lowest entry on the way to `address`. Reads no header of a node."""
    cdef const Node *node = t.root
    cdef const uint64_t *entry
    cdef int level = t.levels
    while True:
        entry = &node.entry[index_in(t, address, level)]
        level -= 1
        if level == 0 or not is_child(entry[0]):
            return <uint64_t *>entry
        node = child_of(entry[0])


cdef inline void fetch_ahead(const Space *s, const Region *region, const uint64_t *next_access,
                             int left) noexcept nogil:
    """Fetch what later accesses will need of the simulator's own memory, from afar.

    Two steps: the guest's entry (or the native one) far ahead, then, when that has come,
    the host's entry that it leads to.
    """
    cdef uint64_t va, entry
    cdef const Table *first = s.guest if s.guest != NULL else s.host
    if FAR < left:
        va = next_access[FAR] >> 1
        prefetch(&region.touched[va >> 18])
        prefetch(entry_ahead(first, region.base + va))
    if s.guest != NULL and NEAR < left:
        va = region.base + (next_access[NEAR] >> 1)
        entry = entry_ahead(first, va)[0]
        if entry & LEAF:
            prefetch(entry_ahead(s.host, (entry & TARGET) + (va & 0x1FFFFF)))


cdef inline void touch(Region *region, uint64_t page) noexcept nogil:
    """Note a 4 KiB page as touched."""
    cdef uint64_t *word = &region.touched[page >> 6]
    cdef uint64_t bit = (word[0] >> (page & 63)) & 1
    word[0] |= <uint64_t>1 << (page & 63)
    region.n_touched += 1 - bit


cdef inline int run_any(Vcpu *v, Space *s, Region *region, Stream *stream, Stretch *x,
                        int end) noexcept nogil:
    """Accesses up to `end` of what is drawn, whatever the TLBs are like."""
    cdef Mmu *m = v.mmu
    cdef uint64_t word, va, before, walks
    cdef int fault
    while stream.at < end:
        if x.time >= x.limit:
            return RUN_DEADLINE
        if x.ahead:
            fetch_ahead(s, region, stream.next + stream.at, stream.n - stream.at)
        word = stream.next[stream.at]
        va = region.base + (word >> 1)
        before, walks = m.spent, m.count.walks
        fault = access(m, s, va, word & 1, m.clock + (x.time >> 16))
        x.time += (m.spent - before) * v.exposed
        if fault != OK:
            return NO_GUEST_PAGE if fault == GUEST_FAULT else NO_HOST_PAGE
        x.missed += m.count.walks - walks
        touch(region, word >> 13)
        x.time += x.per_access
        x.digest = digest_of(x.digest, word)
        stream.at += 1
    return RUN_BUDGET


cdef inline bint is_plain(const Tlb *t, int size, int banks) noexcept nogil:
    """Whether the TLB holds that size in true LRU, in sets that a mask selects."""
    cdef const Assoc *a = t.arrays[size][0]
    return (0 < t.banks[size] <= banks and a.policy == LRU
            and t.arrays[size][t.banks[size] - 1].policy == LRU
            and (a.set_mask != 0 or a.sets == 1))


cdef inline int plain_size(const Mmu *m) noexcept nogil:
    """The one size of page that TLBs hold now, if `run_plain` is for them; else -1."""
    cdef uint64_t live = m.l1_load.live | m.l1_store.live | m.l2.live
    cdef int size
    if live == 0 or live & (live - 1) or m.smash or m.targets:
        return -1
    size = count_trailing_zeros(live)
    if (is_plain(&m.l1_load, size, 1) and is_plain(m.l1_store, size, 1)
            and is_plain(&m.l2, size, 2)):
        return size
    return -1


cdef inline inlined_int run_plain(Vcpu *v, Space *s, Region *region, Stream *stream, Stretch *x,
                                  int end, int size, bint split, bint banked, int l1_lanes,
                                  int l2_lanes) noexcept nogil:
    """The same where the TLBs hold pages of one size, in true LRU: nearly always.

    It does what `access` does, with what that looks up again each time gathered before.
    `split`: stores have an L1 TLB of their own; `banked`: L2 has two arrays for the size.
    Where these and the lanes are constants, the compiler makes a copy of it for them.
    """
    cdef Mmu *m = v.mmu
    cdef Assoc *l1 = m.l1_load.arrays[size][0]
    cdef Assoc *l2 = m.l2.arrays[size][0]
    cdef uint32_t *set_1
    cdef uint32_t *set_2
    cdef uint64_t *entry
    cdef uint32_t *words_1 = l1.words
    cdef uint32_t *words_2 = l2.words
    cdef uint64_t mask_1 = l1.set_mask, mask_2 = l2.set_mask
    cdef uint64_t time = x.time, limit = x.limit, per_access = x.per_access, digest = x.digest
    cdef uint64_t base = region.base, first = base >> 12
    cdef uint64_t hits = 0, word, page, key, before
    cdef uint64_t kind = key_of(s.tag, size, 0), penalty = m.l2_penalty * v.exposed
    cdef const uint64_t *next_access = stream.next
    cdef uint64_t at = stream.at, last = end
    cdef uint32_t now = m.tick, mix = tag_of(kind), tag
    cdef int shift = ENTRY_SHIFT[size], i, fault, status = RUN_BUDGET
    cdef bint ahead = x.ahead
    while at < last:
        if time >= limit:
            status = RUN_DEADLINE
            break
        if ahead:
            fetch_ahead(s, region, next_access + at, stream.n - <int>at)
        word = next_access[at]
        page = first + (word >> 13) if size == 0 else (base + (word >> 1)) >> shift
        key = kind + (page << 5)
        tag = <uint32_t>page ^ mix
        now += 1
        if split:
            l1 = (m.l1_store if word & 1 else &m.l1_load).arrays[size][0]
            words_1, mask_1, l1_lanes = l1.words, l1.set_mask, l1.lanes
        set_1 = words_1 + (page & mask_1) * (<uint64_t>l1_lanes * 4)
        i = find_way(set_1, l1_lanes, tag, key)
        if likely(i >= 0):
            set_1[l1_lanes + i] = now
            entry = <uint64_t *>(set_1 + 2 * l1_lanes) + i
            if not likely((word & 1 & ~entry[0]) == 0):
                set_dirty(m, s, base + (word >> 1))
                entry[0] |= IS_DIRTY
        else:
            if banked:
                words_2 = m.l2.arrays[size][(page & l2.sets) != 0].words
            set_2 = words_2 + (page & mask_2) * (<uint64_t>l2_lanes * 4)
            i = find_way(set_2, l2_lanes, tag, key)
            if likely(i >= 0):
                set_2[l2_lanes + i] = now
                entry = <uint64_t *>(set_2 + 2 * l2_lanes) + i
                if not likely((word & 1 & ~entry[0]) == 0):
                    set_dirty(m, s, base + (word >> 1))
                    entry[0] |= IS_DIRTY
                hits += 1
                time += penalty
                i = least_of(set_1 + l1_lanes, l1_lanes)
                set_1[i] = tag
                set_1[l1_lanes + i] = now
                (<uint64_t *>(set_1 + 2 * l1_lanes))[i] = entry[0]
            else:
                m.tick = now
                before = m.spent
                m.count.penalty_cycles += m.l2_penalty
                m.spent += m.l2_penalty
                fault = miss(m, s, m.l1_store if word & 1 else &m.l1_load, base + (word >> 1),
                             word & 1, m.clock + (time >> 16))
                now = m.tick
                time += (m.spent - before) * v.exposed
                if fault != OK:
                    status = NO_GUEST_PAGE if fault == GUEST_FAULT else NO_HOST_PAGE
                    break
                x.missed += 1
                touch(region, word >> 13)
                if (m.l2.live | m.l1_load.live | m.l1_store.live) != <uint64_t>1 << size:
                    last = at + 1        # no longer of one size
        # What a 4 KiB entry is for was touched when the entry was made.
        if size != 0:
            touch(region, word >> 13)
        time += per_access
        digest = digest_of(digest, word)
        at += 1
    m.tick = now
    m.count.l1_hits += at - stream.at - hits - x.missed
    m.count.l2_hits += hits
    m.count.accesses += at - stream.at
    m.count.penalty_cycles += hits * m.l2_penalty
    m.spent += hits * m.l2_penalty
    stream.at = <int>at
    x.time, x.digest = time, digest
    return status


cdef inline int run_accesses(Vcpu *v, Space *s, Region *region, Stream *stream, Stretch *x,
                             uint64_t *budget) noexcept nogil:
    """Run until `budget` is used up, or time, or the stream, or a page is missing."""
    cdef Mmu *m = v.mmu
    cdef int first, end, size, l1_lanes, l2_lanes, status = RUN_BUDGET
    cdef bint split, banked
    x.digest = stream.digest
    while status == RUN_BUDGET and budget[0] > 0:
        if not stream_ready(stream):
            status = RUN_STREAM_END
            break
        keep_time(m)
        first = stream.at
        end = first + <int>min(min(<uint64_t>(stream.n - first), budget[0]), <uint64_t>STRETCH)
        size = plain_size(m)
        x.missed = 0
        if size >= 0:
            split = m.l1_store != &m.l1_load
            banked = m.l2.banks[size] == 2
            l1_lanes, l2_lanes = m.l1_load.arrays[size][0].lanes, m.l2.arrays[size][0].lanes
            if size == 0 and not split and not banked and l1_lanes == 4 and l2_lanes == 12:
                status = run_plain(v, s, region, stream, x, end, 0, False, False, 4, 12)
            else:
                status = run_plain(v, s, region, stream, x, end, size, split, banked,
                                   l1_lanes, l2_lanes)
        else:
            status = run_any(v, s, region, stream, x, end)
        budget[0] -= stream.at - first
        stream.drawn += stream.at - first
        x.ahead = x.missed >= MANY
    stream.digest = x.digest
    return status


cdef inline int run(Vcpu *v, Space *s, Backing *b, Blocks *memory, Region *region, Stream *stream,
                    uint64_t budget, uint64_t deadline) noexcept nogil:
    """Run until `budget` accesses are done or `deadline` cycles are used, or for a reason."""
    cdef Mmu *m = v.mmu
    cdef uint64_t start = m.spent, left = budget, word
    cdef Stretch x
    cdef int status
    x.time = 0
    x.limit = deadline << 16 if deadline < <uint64_t>1 << 47 else ~<uint64_t>0
    x.per_access = v.cycles_per_access << 16
    x.ahead = False
    m.count = &v.count
    while True:
        status = RUN_BUDGET
        if v.n_work:
            status = do_work(v, s, b, region)
            if status != OK:
                break
        if left and b.host.frames.free_pages < b.host.wake_below:
            status = RUN_PRESSURE
            break
        status = run_accesses(v, s, region, stream, &x, &left)
        if status == NO_GUEST_PAGE:
            status = guest_fault(v, s, memory, region, m.fault)
        elif status == NO_HOST_PAGE and b.shadow != NULL:
            word = stream.next[stream.at]
            status = shadow_fault(v, s, b, memory, region, region.base + (word >> 1), word & 1)
        elif status == NO_HOST_PAGE:
            status = back(v, s, b, region, m.fault)
        else:
            break
        if status != OK:
            break
    m.count = &m.own
    m.clock += x.time >> 16
    v.raw_cycles += m.spent - start
    v.done += budget - left
    return status
