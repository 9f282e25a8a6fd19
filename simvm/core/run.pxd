# The loop: a vCPU runs a stream of accesses through its MMU.
#
# A hit in the first TLB, the common case of a program with locality, takes no call and no
# branch that depends on data but the one that says it hit. What can change only by a fault
# (free memory, work of the guest's kernel) is looked at only after one.

from libc.stdint cimport int64_t, uint64_t
from simvm.core.blocks cimport Blocks
from simvm.core.cache cimport Assoc, likely, prefetch
from simvm.core.mmu cimport (GUEST_FAULT, IS_DIRTY, OK, Mmu, Space, Tlb, access_missing_l1,
                             set_dirty, tlb_find)
from simvm.core.shadow_fault cimport shadow_fault
from simvm.core.stream cimport Stream, stream_ready
from simvm.core.table cimport LEAF, TARGET, Node, Table, child_of, index_in, is_child
from simvm.core.vcpu cimport (RUN_BUDGET, RUN_DEADLINE, RUN_PRESSURE, RUN_STREAM_END, Backing,
                              Region, Vcpu, back, do_work, guest_fault)

cdef enum:
    FAR = 24                 # accesses ahead to fetch a first-dimension entry
    NEAR = 12                # ... and the host entry that it leads to
    STRETCH = 64             # accesses between two looks at how many of them missed
    MANY = 6                 # misses in a stretch that make it worth to fetch ahead

cdef enum:               # inside this file: a page is missing
    NO_GUEST_PAGE = -1
    NO_HOST_PAGE = -2


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


cdef inline int run_accesses(Vcpu *v, Space *s, Region *region, Stream *stream, uint64_t *budget,
                             uint64_t *spent, uint64_t limit) noexcept nogil:
    """Run until `budget` is used up, or time, or the stream, or a page is missing.

    Time is in 1/65536 of a cycle: `spent` of it so far, at most `limit`.
    """
    cdef Mmu *m = v.mmu
    cdef uint64_t per_access = v.cycles_per_access << 16
    cdef uint64_t time = spent[0], digest = stream.digest, base = region.base, tag = s.tag
    cdef uint64_t hits = 0, missed = 0, before, word, va
    cdef uint64_t write
    cdef const uint64_t *next_access
    cdef Tlb *l1
    cdef Assoc *a = NULL
    cdef int64_t place
    cdef int at, end, size = 0, fault, status = RUN_BUDGET
    cdef bint ahead = False
    while status == RUN_BUDGET and budget[0] > 0:
        if not stream_ready(stream):
            status = RUN_STREAM_END
            break
        ahead = missed >= MANY
        missed = 0
        next_access = stream.next
        at = stream.at
        end = at + <int>min(min(<uint64_t>(stream.n - at), budget[0]), <uint64_t>STRETCH)
        while at < end:
            if time >= limit:
                status = RUN_DEADLINE
                break
            word = next_access[at]
            write = word & 1
            va = base + (word >> 1)
            if ahead:
                fetch_ahead(s, region, next_access + at, stream.n - at)
            l1 = m.l1_store if write else &m.l1_load
            place = tlb_find(l1, tag, va, &a, &size)
            if likely(place >= 0):
                hits += 1
                if write and not a.keys[place] & IS_DIRTY:
                    set_dirty(m, s, va)
                    a.keys[place] |= IS_DIRTY
                # What a 4 KiB entry is for was touched when it was made.
                if size != 0:
                    touch(region, word >> 13)
            else:
                before = m.spent
                fault = access_missing_l1(m, s, l1, va, write, m.clock + (time >> 16))
                time += (m.spent - before) * v.exposed
                if fault != OK:
                    status = NO_GUEST_PAGE if fault == GUEST_FAULT else NO_HOST_PAGE
                    break
                missed += 1
                touch(region, word >> 13)
            time += per_access
            digest = (digest ^ word) * 0x9E3779B97F4A7C15ULL
            at += 1
        m.count.l1_hits += hits
        hits = 0
        m.count.accesses += at - stream.at
        budget[0] -= at - stream.at
        stream.drawn += at - stream.at
        stream.at = at
    stream.digest = digest
    spent[0] = time
    return status


cdef inline int run(Vcpu *v, Space *s, Backing *b, Blocks *memory, Region *region, Stream *stream,
                    uint64_t budget, uint64_t deadline) noexcept nogil:
    """Run until `budget` accesses are done or `deadline` cycles are used, or for a reason."""
    cdef Mmu *m = v.mmu
    cdef uint64_t start = m.spent, time = 0, left = budget, word
    cdef uint64_t limit = deadline << 16 if deadline < <uint64_t>1 << 47 else ~<uint64_t>0
    cdef int status
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
        status = run_accesses(v, s, region, stream, &left, &time, limit)
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
    m.clock += time >> 16
    v.raw_cycles += m.spent - start
    v.done += budget - left
    return status
