# The loop: a vCPU runs a stream of accesses through its MMU.
#
# A hit in the first TLB, the common case of a program with locality, takes no call and no
# branch that depends on data but the one that says it hit. What can change only by a fault
# (free memory, work of the guest's kernel) is looked at only after one.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from simvm.core.access cimport access, fill
from simvm.core.blocks cimport Blocks
from simvm.core.cache cimport (LRU, Assoc, count_trailing_zeros, enter, guess_way, inlined_int,
                               likely, renew, tag_of)
from simvm.core.fetch cimport RING, Ahead, look_ahead_of, look_now
from simvm.core.loads cimport LONGEST, QUEUE
from simvm.core.mmu cimport (ENTRY_SHIFT, GUEST_FAULT, NOWHERE, OK, Counters, Mmu, Space, Tlb,
                             keep_time, key_of)
from simvm.core.shadow_fault cimport shadow_fault
from simvm.core.stream cimport WEIGHT_STEP, Stream, stream_consume, stream_ready, weight
from simvm.core.vcpu cimport (RUN_BUDGET, RUN_DEADLINE, RUN_PRESSURE, RUN_STREAM_END, Backing,
                              Region, Vcpu, back, do_work, guest_fault)
from simvm.core.walk cimport Walk, begin_walk, part_tag, quick_walk, settle, walk_for

cdef enum:
    STRETCH = 128            # accesses between two looks at how many of them missed
    MANY = 12                # misses in a stretch that make it worth to fetch ahead
    EXPOSED = 1 << 16        # the share of translation that is not hidden: all of it

cdef enum:               # inside this file, why something stopped
    NO_GUEST_PAGE = -1       # a page is missing
    NO_HOST_PAGE = -2
    NO_ENTRY = -3            # no TLB has it
    ONE_BY_ONE = -4          # an access that `access` is for
    OTHER_SIZE = -5          # the access is done, and TLBs now hold pages of several sizes


cdef struct Stretch:
    uint64_t time            # in 1/65536 of a cycle: so far in this call,
    uint64_t limit           # ... at most,
    uint64_t sure            # ... and at most for sure, whatever the queued loads take,
    uint64_t worst           # what a queued load may take at most
    uint64_t per_access      # ... and for each access beside translation
    uint64_t missed          # accesses of this stretch that walked
    bint ahead               # whether to fetch ahead
    bint quick               # whether walks are of the commonest shape, and wait for no walker
    uint64_t quick_time[3]   # what such a walk takes beside its loads, by hits for the host
    uint64_t quick_walks     # such walks that have still to be counted,
    uint64_t quick_hits      # ... their hits in the host's walk cache
    uint64_t quick_loads     # ... and loads
    Ahead found              # the entries of accesses to come


cdef inline void touch(Region *region, uint64_t page) noexcept nogil:
    """Note a 4 KiB page as touched."""
    cdef uint64_t *word = &region.touched[page >> 6]
    cdef uint64_t bit = <uint64_t>1 << (page & 63)
    if not word[0] & bit:
        word[0] |= bit
        region.n_touched += 1


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
            look_ahead_of(&x.found, s, region, stream, False)
        word = stream.next[stream.at]
        va = region.base + (word >> 1)
        before, walks = m.spent, m.count.walks
        fault = access(m, s, va, word & 1, moment(v, m, x.time))
        x.time += (m.spent - before) * v.exposed
        if fault != OK:
            return NO_GUEST_PAGE if fault == GUEST_FAULT else NO_HOST_PAGE
        x.missed += m.count.walks - walks
        touch(region, word >> 13)
        x.time += x.per_access
        stream_consume(stream)
    return RUN_BUDGET


cdef inline uint64_t moment(const Vcpu *v, const Mmu *m, uint64_t time) noexcept nogil:
    """When an access begins, for the walkers.

    Where nothing is hidden, none is ever busy; where all is, walks take no time to be busy in.
    """
    return m.clock + (time >> 16) if 0 < v.exposed < EXPOSED else NOWHERE


cdef inline bint is_plain(const Tlb *t, int size, int banks) noexcept nogil:
    """Whether the TLB holds that size in true LRU, in sets that a mask selects."""
    cdef const Assoc *a = t.arrays[size][0]
    return (0 < t.banks[size] <= banks and a.policy == LRU
            and t.arrays[size][t.banks[size] - 1].policy == LRU
            and (a.set_mask != 0 or a.sets == 1))


cdef inline int plain_size(Mmu *m) noexcept nogil:
    """The one size of page that TLBs hold now, if `run_tlbs` is for them; else -1."""
    cdef uint64_t live = m.l1_load.live | m.l1_store.live | m.l2.live
    cdef int size
    if live == 0 or live & (live - 1) or m.smash or m.targets:
        return -1
    size = count_trailing_zeros(live)
    if not (is_plain(&m.l1_load, size, 1) and is_plain(m.l1_store, size, 1)
            and is_plain(&m.l2, size, 2)):
        return -1
    m.l1_load.live = m.l1_store.live = m.l2.live = live
    return size


cdef inline void settle_run(Vcpu *v, Stretch *x) noexcept nogil:
    """Charge the loads that are still queued, so that the time is what it seems."""
    cdef uint64_t before = v.mmu.spent
    if v.mmu.loads.n:
        settle(v.mmu, v.mmu.loads.n)
        x.time += (v.mmu.spent - before) * v.exposed
    x.sure = x.limit


cdef inline void look_at_queue(Vcpu *v, Stretch *x, int n) noexcept nogil:
    """Settle a queue that is nearly full, else see for how long that can wait."""
    if n > QUEUE - LONGEST:
        settle_run(v, x)
    else:
        x.sure = x.limit - min(x.limit, n * x.worst)


cdef inline int run_miss(Vcpu *v, Space *s, Region *region, const Stream *stream, Stretch *x,
                         uint64_t word, uint64_t key, uint32_t *set_1, int lanes_1,
                         bint simple_1, uint32_t *set_2, int lanes_2) noexcept nogil:
    """An access that no TLB has: a walk, and its entry in the sets where it was looked for.

    Its loads are queued, unless a walker has to be found for them at once.
    """
    cdef Mmu *m = v.mmu
    cdef uint64_t va = region.base + (word >> 1), before = m.spent, flags = 0, now
    cdef uint64_t *entry = NULL
    cdef uint32_t tag = tag_of(key)
    cdef int fault, size = 0
    if x.ahead:
        look_ahead_of(&x.found, s, region, stream, False)
    m.tick += 1
    m.count.penalty_cycles += m.l2_penalty
    m.spent += m.l2_penalty
    now = moment(v, m, x.time)
    fault = walk_for(m, s, va, word & 1, now, now == NOWHERE, &size, &flags)
    x.time += (m.spent - before) * v.exposed
    look_at_queue(v, x, m.loads.n)
    if fault != OK:
        return NO_GUEST_PAGE if fault == GUEST_FAULT else NO_HOST_PAGE
    x.missed += 1
    touch(region, word >> 13)
    if not likely(key_of(s.tag, size, va >> ENTRY_SHIFT[size]) == key):
        fill(m, m.l1_store if word & 1 else &m.l1_load, s.tag, va, size, flags)
        return OTHER_SIZE
    enter(set_2, lanes_2, m.l2.arrays[size][0].simple, key | flags, tag, m.tick, &entry)
    enter(set_1, lanes_1, simple_1, key | flags, tag, m.tick, &entry)
    return RUN_BUDGET


cdef inline int quick_miss(Vcpu *v, Space *s, Region *region, const Stream *stream, Stretch *x,
                           uint64_t word, uint32_t *set_1, uint32_t *set_2) noexcept nogil:
    """`run_miss` for pages of 4 KiB in TLBs of 4 and 12 ways, which are constants here.

    All of it is one function, with the walk inside. What is not for it goes the other way.
    """
    cdef Mmu *m = v.mmu
    cdef uint64_t va = region.base + (word >> 1), flags = 0, key
    cdef uint64_t *first = &m.loads.word[m.loads.n]
    cdef uint64_t *entry = NULL
    cdef uint32_t tag
    cdef int n
    cdef Walk w
    if x.ahead:
        look_ahead_of(&x.found, s, region, stream, True)
    else:
        look_now(&x.found, s, region, stream, True)
    begin_walk(m, &w)
    if not likely(quick_walk(m, s, &w, &x.found.first[stream.at & (RING - 1)],
                             &x.found.last[stream.at & (RING - 1)], va, word & 1, &flags)):
        # One page of the guest that is larger is seldom alone.
        x.quick = x.found.first[stream.at & (RING - 1)].table != NOWHERE
        return run_miss(v, s, region, stream, x, word, key_of(s.tag, 0, va >> 12), set_1, 4,
                        True, set_2, 12)
    m.tick += 1
    w.next[0] = w.hpa
    n = <int>(w.next + 1 - &m.loads.word[0])
    m.loads.n = n
    x.quick_walks += 1
    x.quick_hits += w.host_hits
    x.quick_loads += w.next - first
    x.time += x.quick_time[w.host_hits]
    look_at_queue(v, x, n)
    touch(region, word >> 13)
    key = key_of(s.tag, 0, va >> 12) | flags
    tag = part_tag(s.tag, va >> 12)
    enter(set_2, 12, False, key, tag, m.tick, &entry)
    enter(set_1, 4, True, key, tag, m.tick, &entry)
    return RUN_BUDGET


cdef inline void count_quick(Mmu *m, Stretch *x) noexcept nogil:
    """Count what `quick_miss` did: all of it follows from three sums.

    A walk hits once in the guest's walk cache; and for each page of the guest that it goes to,
    a table of which it loads an entry or the data, it hits once in the host's.
    """
    cdef Counters *count = m.count
    cdef uint64_t cycles = (x.quick_walks + x.quick_hits) * m.walk_cache_latency
    count.penalty_cycles += x.quick_walks * m.l2_penalty
    count.tlb_misses += x.quick_walks
    count.walks += x.quick_walks
    count.guest_walk_cache_hits += x.quick_walks
    count.host_walk_cache_hits += x.quick_hits
    count.guest_loads += x.quick_hits
    count.host_loads += x.quick_loads - x.quick_hits
    count.walk_cycles += cycles
    m.spent += cycles + x.quick_walks * m.l2_penalty
    x.missed += x.quick_walks
    x.quick_walks = x.quick_hits = x.quick_loads = 0


cdef inline inlined_int run_tlbs(Vcpu *v, Space *s, Region *region, Stream *stream, Stretch *x,
                                 int end, bint walks, int size, bint split, bint banked,
                                 int l1_lanes, int l2_lanes, bint simple_1,
                                 bint simple_2) noexcept nogil:
    """Accesses up to `end`, until one misses (unless it `walks`) or has a dirty flag to set.

    For TLBs that hold pages of one size in true LRU, which is nearly always. It does what
    `access` does, with what that looks up each time gathered before. Where it does not walk,
    it calls nothing, and all that it needs stays in registers. `split`: stores have an L1 TLB
    of their own; `banked`: L2 has two arrays for the size. Where these and the lanes are
    constants, the compiler makes a copy of it for them.
    """
    cdef Mmu *m = v.mmu
    cdef int status = RUN_BUDGET
    cdef Assoc *l1 = m.l1_load.arrays[size][0]
    cdef Assoc *l2 = m.l2.arrays[size][0]
    cdef uint32_t *words_1 = l1.words
    cdef uint32_t *words_2 = l2.words
    cdef uint32_t *set_1
    cdef uint32_t *set_2
    cdef uint64_t *entry
    cdef uint64_t mask_1 = l1.set_mask, mask_2 = l2.set_mask
    cdef uint64_t time = x.time, sure = x.limit, per_access = x.per_access
    cdef uint64_t digest = stream.digest, weighs = weight(stream.drawn)
    cdef uint64_t base = region.base, first = base >> 12
    cdef uint64_t l2_hits = 0, word, page, key, kind = key_of(s.tag, size, 0) | 3
    cdef uint64_t penalty = m.l2_penalty * v.exposed
    cdef const uint64_t *start = stream.next + stream.at
    cdef const uint64_t *at = start
    cdef const uint64_t *last = stream.next + end
    cdef uint32_t now = m.tick, mix = tag_of(kind), tag
    cdef int shift = ENTRY_SHIFT[size]
    cdef int64_t i
    cdef uint64_t missed = x.missed
    while at < last:
        if time >= sure:
            x.time = time
            settle_run(v, x)
            time, sure = x.time, x.sure
            if time >= sure:
                status = RUN_DEADLINE
                break
        word = at[0]
        page = first + (word >> 13) if size == 0 else (base + (word >> 1)) >> shift
        tag = <uint32_t>page ^ mix
        if split:
            l1 = (m.l1_store if word & 1 else &m.l1_load).arrays[size][0]
            words_1, mask_1 = l1.words, l1.set_mask
            l1_lanes, simple_1 = l1.lanes, l1.simple
        set_1 = words_1 + (page & mask_1) * (<uint64_t>l1_lanes * 4)
        i = guess_way(set_1, l1_lanes, tag)
        if likely(i >= 0):
            # The key must agree, and for a store the dirty flag must be set.
            entry = <uint64_t *>(set_1 + 2 * l1_lanes) + i
            if (entry[0] | (3 ^ (word & 1))) != kind + (page << 5):
                status = ONE_BY_ONE
                break
            now += 1
            renew(set_1, l1_lanes, simple_1, i, now)
        else:
            if banked:
                words_2 = m.l2.arrays[size][(page & l2.sets) != 0].words
            set_2 = words_2 + (page & mask_2) * (<uint64_t>l2_lanes * 4)
            i = guess_way(set_2, l2_lanes, tag)
            if likely(i >= 0):
                entry = <uint64_t *>(set_2 + 2 * l2_lanes) + i
                key = entry[0]
                if (key | (3 ^ (word & 1))) != kind + (page << 5):
                    status = ONE_BY_ONE
                    break
                now += 1
                renew(set_2, l2_lanes, simple_2, i, now)
                l2_hits += 1
                time += penalty
                enter(set_1, l1_lanes, simple_1, key, tag, now, &entry)
            elif walks:
                m.tick, x.time = now, time
                stream.at = <int>(at - stream.next)
                if size == 0 and l1_lanes == 4 and simple_1 and l2_lanes == 12 and x.quick:
                    status = quick_miss(v, s, region, stream, x, word, set_1, set_2)
                else:
                    status = run_miss(v, s, region, stream, x, word, kind + (page << 5) - 3,
                                      set_1, l1_lanes, simple_1, set_2, l2_lanes)
                now, time, sure = m.tick, x.time, x.sure
                if status != RUN_BUDGET:
                    if status != OTHER_SIZE:
                        break
                    last = at + 1
            else:
                status = NO_ENTRY
                break
        # What a 4 KiB entry is for was touched when the entry was made.
        if size != 0:
            touch(region, word >> 13)
        time += per_access
        digest += word * weighs
        weighs += WEIGHT_STEP
        at += 1
    m.tick = now
    if walks:
        count_quick(m, x)
    m.count.l1_hits += <uint64_t>(at - start) - l2_hits - (x.missed - missed)
    m.count.l2_hits += l2_hits
    m.count.accesses += at - start
    m.count.penalty_cycles += l2_hits * m.l2_penalty
    m.spent += l2_hits * m.l2_penalty
    stream.at = <int>(at - stream.next)
    stream.drawn += at - start
    stream.digest = digest
    x.time = time
    settle_run(v, x)
    return status


cdef inline int run_plain(Vcpu *v, Space *s, Region *region, Stream *stream, Stretch *x, int end,
                          bint walks, int size) noexcept nogil:
    """`run_tlbs`, by the shape of the TLBs; in a shape without a copy of its own it walks too."""
    cdef Mmu *m = v.mmu
    cdef const Assoc *l1 = m.l1_load.arrays[size][0]
    cdef const Assoc *l2 = m.l2.arrays[size][0]
    cdef bint split = m.l1_store != &m.l1_load, banked = m.l2.banks[size] == 2
    if size == 0 and l1.simple and l2.lanes == 12 and not split and not banked:
        if walks:
            return run_tlbs(v, s, region, stream, x, end, True, 0, False, False, 4, 12, True, False)
        return run_tlbs(v, s, region, stream, x, end, False, 0, False, False, 4, 12, True, False)
    return run_tlbs(v, s, region, stream, x, end, True, size, split, banked, l1.lanes, l2.lanes,
                    l1.simple, l2.simple)


cdef inline int run_accesses(Vcpu *v, Space *s, Region *region, Stream *stream, Stretch *x,
                             uint64_t *budget) noexcept nogil:
    """Run until `budget` is used up, or time, or the stream, or a page is missing."""
    cdef Mmu *m = v.mmu
    cdef int first, end, size, i, status = RUN_BUDGET
    x.quick = m.quick and s.quick and (v.exposed == 0 or v.exposed == EXPOSED)
    x.worst = m.loads.slowest * v.exposed
    for i in range(3):
        x.quick_time[i] = ((1 + i) * m.walk_cache_latency + m.l2_penalty) * v.exposed
    x.quick_walks = x.quick_hits = x.quick_loads = 0
    x.found.primed = x.found.knows = False      # a fault may have changed the tables
    while status == RUN_BUDGET and budget[0] > 0:
        if not stream_ready(stream):
            status = RUN_STREAM_END
            break
        keep_time(m)
        first = stream.at
        end = first + <int>min(min(<uint64_t>(stream.n - first), budget[0]), <uint64_t>STRETCH)
        x.found.primed = x.found.primed and x.ahead and first > 0
        x.missed = 0
        while status == RUN_BUDGET and stream.at < end:
            size = plain_size(m)
            if size < 0:
                status = run_any(v, s, region, stream, x, end)
                break
            status = run_plain(v, s, region, stream, x, end, x.ahead, size)
            if status == NO_ENTRY:
                status = run_plain(v, s, region, stream, x, stream.at + 1, True, size)
            if status == ONE_BY_ONE:
                status = run_any(v, s, region, stream, x, stream.at + 1)
            elif status == OTHER_SIZE:
                status = RUN_BUDGET
        budget[0] -= stream.at - first
        # A slice is often shorter than a stretch or two; its end says nothing of misses.
        x.ahead = x.missed >= MANY or (x.ahead and status == RUN_DEADLINE)
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
    x.ahead = v.ahead
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
    v.ahead = x.ahead
    m.count = &m.own
    m.clock += x.time >> 16
    v.raw_cycles += m.spent - start
    v.done += budget - left
    return status
