# The walk through guest tables and SLAT.
#
# Implements docs/translation.md; the readable twin is simvm/reference/mmu.py. Each function is
# one step of that page, in its order. Levels are known by counting, so no node's header is
# read but for its address. What a load costs is found later (loads.pxd).

from libc.stdint cimport int64_t, uint32_t, uint64_t
from simvm.core.cache cimport (Assoc, assoc_find, assoc_insert, enter, guess_way, inlined_int,
                               likely, renew, set_of, tags_in, value_of)
from simvm.core.fetch cimport Entry
from simvm.core.loads cimport CHARGED, Found, touch_queued
from simvm.core.mmu cimport (ADDRESS, AMD, BASE, ENTRY_SHIFT, GUEST_FAULT, INTEL, N_SIZES, NODE,
                             NOWHERE, OK, ORIGIN, PAGE, SHIFT, SIZE_OF_SHIFT, SLAT_FAULT,
                             Counters, Mmu, Space, key_of)
from simvm.core.table cimport (ACCESSED, DIRTY, HEADER, LEAF, TARGET, Node, Table, address_below,
                               child_of, in_group, is_child)

# What a walk under way has come to. It lives in `walk_for` and is never pointed to from
# elsewhere, so the compiler keeps its parts in registers.
cdef struct Walk:
    uint64_t *next           # where the next load is queued
    uint64_t guest_loads
    uint64_t guest_hits      # in walk caches and nested TLB
    uint64_t host_hits
    uint64_t nested_hits
    uint64_t hpa             # of what was translated last
    uint64_t *leaf           # its leaf
    int shift                # log2 of what one TLB entry may cover of that
    uint32_t tick


cdef inline void queue_load(Walk *w, uint64_t hpa) noexcept nogil:
    w.next[0] = hpa | CHARGED
    w.next += 1


cdef inline inlined_int part_find(Assoc *part, uint64_t tag, uint64_t number, uint32_t now,
                                  uint64_t **entry) noexcept nogil:
    """Whether a walk cache has it, and where. The commonest shape is searched on the spot."""
    cdef uint64_t key = key_of(tag, 0, number)
    cdef uint32_t *words
    cdef int64_t way
    if likely(part.simple):
        words = tags_in(part, number & part.set_mask)
        way = guess_way(words, 4, part_tag(tag, number))
        if way < 0:
            return False
        entry[0] = <uint64_t *>(words + 8) + way
        if likely(entry[0][0] == key):
            renew(words, 4, True, way, now)
            return True
    elif part.sets == 0:
        return False
    entry[0] = assoc_find(part, set_of(part, number), key, now)
    return entry[0] != NULL


cdef inline uint32_t part_tag(uint64_t tag, uint64_t number) noexcept nogil:
    """`tag_of` the key of a walk-cache entry."""
    return <uint32_t>number ^ (<uint32_t>tag << 18)


cdef inline inlined_int part_insert(Assoc *part, uint64_t tag, uint64_t number, uint32_t now,
                                    uint64_t **entry) noexcept nogil:
    """Enter what a walk cache does not have, and say where."""
    cdef uint64_t key = key_of(tag, 0, number)
    if likely(part.simple):
        enter(tags_in(part, number & part.set_mask), 4, True, key, part_tag(tag, number), now,
              entry)
    else:
        entry[0] = assoc_insert(part, set_of(part, number), key, now)
    return 0


cdef inline int leaf_shift(const Mmu *m, const Table *t, const Node *node, int level,
                           uint64_t slot) noexcept nogil:
    """log2 of what one TLB entry may cover of the leaf at `slot` of `node`."""
    if t.contiguous and m.contiguous and in_group(t, node, slot):
        return 16
    return t.shift[level]


cdef inline bint nested_tlb_has(Mmu *m, const Space *s, Walk *w, uint64_t gpa) noexcept nogil:
    cdef uint64_t number
    cdef uint64_t *found
    cdef int o
    for o in range(N_SIZES):
        number = gpa >> ENTRY_SHIFT[o]
        found = assoc_find(&m.nested_tlb, set_of(&m.nested_tlb, number),
                           key_of(s.guest_tag, o, number), w.tick)
        if found != NULL:
            w.nested_hits += 1
            w.shift = ENTRY_SHIFT[o]
            w.hpa = value_of(&m.nested_tlb, found, BASE)[0] + (gpa & mask_of(w.shift))
            return True
    return False


cdef inline void mark(uint64_t *entry, uint64_t bits) noexcept nogil:
    """Set A and D. Most have them: then the line of the real cache stays clean."""
    if entry[0] & bits != bits:
        entry[0] |= bits


cdef inline uint64_t mask_of(int shift) noexcept nogil:
    return (<uint64_t>1 << shift) - 1


cdef inline inlined_int nested_walk(Mmu *m, const Space *s, Walk *w, uint64_t gpa,
                                    bint is_table) noexcept nogil:
    """gPA -> hPA. Sets A and D of the leaf under a guest table page."""
    cdef const Table *host = s.host
    cdef Node *node = host.root
    cdef uint64_t *entry
    cdef uint64_t *found = NULL
    cdef uint64_t slot
    cdef int level = host.levels, k
    cdef Assoc *part
    w.tick += 1
    if is_table and m.nested_tlb.sets and nested_tlb_has(m, s, w, gpa):
        return OK
    for k in range(2, host.levels + 1):
        part = &m.host_cache[k]
        if part_find(part, s.guest_tag, gpa >> host.shift[k], w.tick, &found):
            w.host_hits += 1
            node = <Node *>value_of(part, found, NODE)[0]
            level = k - 1
            break
    while True:
        slot = (gpa >> host.shift[level]) & host.mask[level]
        entry = &node.entry[slot]
        queue_load(w, node.address + 8 * slot)
        if not is_child(entry[0]):
            break
        node = child_of(entry[0])
        part = &m.host_cache[level]
        if part.sets:
            part_insert(part, s.guest_tag, gpa >> host.shift[level], w.tick, &found)
            value_of(part, found, NODE)[0] = <uint64_t>node
            value_of(part, found, SHIFT)[0] = host.shift[level]
            value_of(part, found, ADDRESS)[0] = node.address
        level -= 1
    if not entry[0] & LEAF:
        m.fault = gpa & TARGET
        return SLAT_FAULT
    w.shift = host.shift[level]
    w.hpa = (entry[0] & TARGET) + (gpa & mask_of(w.shift))
    w.leaf = entry
    if is_table:
        mark(entry, ACCESSED | DIRTY)
        if m.nested_tlb.sets:
            slot = gpa >> w.shift
            found = assoc_insert(&m.nested_tlb, set_of(&m.nested_tlb, slot),
                                 key_of(s.guest_tag, SIZE_OF_SHIFT[w.shift], slot), w.tick)
            value_of(&m.nested_tlb, found, BASE)[0] = entry[0] & TARGET
    else:
        w.shift = leaf_shift(m, host, node, level, slot)
    return OK


cdef inline inlined_int walk(Mmu *m, const Space *s, Walk *w, uint64_t va, bint write, bint nested,
                             int *size, uint64_t *dirty) noexcept nogil:
    """Translate `va` from the tables; any shape of these and of the MMU."""
    cdef const Table *t = s.guest if nested else s.host
    cdef Node *node = t.root
    cdef uint64_t hpa = 0, gpa, slot
    cdef uint64_t bits = ACCESSED | (DIRTY if write else 0)
    cdef uint64_t *entry
    cdef uint64_t *found = NULL
    cdef int level = t.levels, shift, status, k
    cdef bint known = not nested         # hPA of `node` is known
    cdef bint fresh = False              # `node` was reached by reading an entry in this walk
    cdef uint32_t now = w.tick
    cdef Assoc *part
    for k in range(2, t.levels + 1):
        part = &m.guest_cache[k]
        if part_find(part, s.tag, va >> t.shift[k], now, &found):
            w.guest_hits += 1
            node = <Node *>value_of(part, found, NODE)[0]
            level = k - 1
            if nested and m.style == INTEL:
                hpa = value_of(part, found, PAGE)[0]
                known = hpa != NOWHERE
            break
    while True:
        slot = (va >> t.shift[level]) & t.mask[level]
        if not nested:
            hpa = node.address
        elif not known:
            status = nested_walk(m, s, w, node.address + 8 * slot, True)
            if status != OK:
                return status
            hpa = w.hpa - 8 * slot
            if fresh and m.style == INTEL:
                part = &m.guest_cache[level + 1]
                if part.sets:
                    part_insert(part, s.tag, va >> t.shift[level + 1], now, &found)
                    value_of(part, found, NODE)[0] = <uint64_t>node
                    # A table larger than the leaf under it lies in no one place.
                    value_of(part, found, PAGE)[0] = hpa if w.shift >= t.granule else NOWHERE
                    value_of(part, found, ORIGIN)[0] = node.address | t.granule
        entry = &node.entry[slot]
        queue_load(w, hpa + 8 * slot)
        w.guest_loads += nested
        if not is_child(entry[0]):
            break
        node = child_of(entry[0])
        if not nested or m.style == AMD:
            part = &m.guest_cache[level]
            if part.sets:
                part_insert(part, s.tag, va >> t.shift[level], now, &found)
                value_of(part, found, NODE)[0] = <uint64_t>node
                value_of(part, found, ORIGIN)[0] = NOWHERE
        fresh = True
        known = not nested
        level -= 1
    if not entry[0] & LEAF:
        m.fault = va & TARGET
        return GUEST_FAULT if nested else SLAT_FAULT
    gpa = (entry[0] & TARGET) + (va & mask_of(t.shift[level]))
    shift = leaf_shift(m, t, node, level, slot)
    if nested:
        status = nested_walk(m, s, w, gpa, False)
        if status != OK:
            return status
        shift = min(shift, w.shift)
        mark(w.leaf, bits)
        mark(entry, bits)
        dirty[0] = (entry[0] & w.leaf[0] & DIRTY) != 0
    else:
        w.hpa = gpa
        mark(entry, bits)
        dirty[0] = (entry[0] & DIRTY) != 0
    size[0] = SIZE_OF_SHIFT[shift]
    if m.targets:
        m.gpa = gpa & ~mask_of(shift) if nested else NOWHERE
        m.hpa, m.shift = w.hpa & ~mask_of(shift), shift
    return OK


# The same for the shape that is commonest: of Intel's style, four ways in true LRU, tables of
# 4 KiB, nested, leaves of 4 KiB. Nearly all walks find the entry of level 2 or 3 in either
# dimension's walk cache, and there are at most two loads to go, so nothing here loops, and
# shifts and strides are constants. The entries are known before (fetch.pxd): a walk need not
# wait for one load after another, only say which the processor would do. What is rare goes
# to the general functions: all that was done by then is to renew what they will renew again.

cdef inline bint quick_mmu(const Mmu *m) noexcept nogil:
    return (m.style == INTEL and m.nested_tlb.sets == 0 and not m.targets
            and m.guest_cache[2].simple and m.guest_cache[3].simple
            and m.host_cache[2].simple and m.host_cache[3].simple)


cdef inline bint quick_space(const Space *s) noexcept nogil:
    return (s.guest != NULL and s.guest.granule == 12 and s.guest.levels >= 4
            and not s.guest.contiguous and s.host.granule == 12 and s.host.levels >= 4
            and not s.host.contiguous)


cdef inline inlined_int quick_find(Assoc *part, uint64_t tag, uint64_t number,
                                   uint64_t **entry) noexcept nogil:
    """`part_find`."""
    cdef uint64_t key = key_of(tag, 0, number)
    cdef uint32_t *words = quick_set(part, number)
    cdef int64_t way = guess_way(words, 4, part_tag(tag, number))
    if way < 0:
        return False
    entry[0] = <uint64_t *>(words + 8) + way
    if likely(entry[0][0] == key):
        renew(words, 4, True, way, 0)
        return True
    entry[0] = assoc_find(part, number & part.set_mask, key, 0)
    return entry[0] != NULL


cdef inline uint32_t *quick_set(const Assoc *part, uint64_t number) noexcept nogil:
    """`tags_in` a part of four ways with three values."""
    return part.words + (number & part.set_mask) * 40


cdef inline inlined_int quick_insert(Assoc *part, uint64_t tag, uint64_t number,
                                     uint64_t **entry) noexcept nogil:
    """`part_insert`."""
    enter(quick_set(part, number), 4, True, key_of(tag, 0, number),
          part_tag(tag, number), 0, entry)
    return 0


cdef inline inlined_int quick_walk(Mmu *m, const Space *s, Walk *w, const Entry *first,
                                   const Entry *last, uint64_t va, bint write,
                                   uint64_t *dirty) noexcept nogil:
    """`walk` to the data's line; False when it is not for this one, and nothing is done yet.

    `first` and `last` are where the guest's and the host's leaf are found, both of 4 KiB.
    """
    cdef uint64_t *found = NULL
    cdef uint64_t *table_leaf = NULL
    cdef uint64_t hpa, gpa, entry, leaf, bits = ACCESSED | (DIRTY if write else 0)
    cdef Node *node
    if first.table == NOWHERE or last.table == NOWHERE:
        return False
    entry, leaf = first.at[0], last.at[0]
    if not leaf & LEAF:
        return False
    w.host_hits = 1              # and as many loads in the guest's tables
    if quick_find(&m.guest_cache[2], s.tag, va >> 21, &found):
        hpa = found[4 * PAGE]
    elif quick_find(&m.guest_cache[3], s.tag, va >> 30, &found):
        queue_load(w, found[4 * PAGE] + 8 * ((va >> 21) & 511))
        # The guest's table of level 1 is itself found by a walk.
        gpa = first.table
        if quick_find(&m.host_cache[2], s.guest_tag, gpa >> 21, &found):
            node = <Node *>found[4 * NODE]
            table_leaf = &node.entry[(gpa >> 12) & 511]
            if not table_leaf[0] & LEAF:
                return False
        else:
            table_leaf = quick_table(m, s, w, gpa, (entry & TARGET) >> 30, &found)
            if table_leaf == NULL:
                return False
        queue_load(w, found[4 * ADDRESS] + 8 * ((gpa >> 12) & 511))
        w.host_hits = 2
        hpa = table_leaf[0] & TARGET
    else:
        return False
    queue_load(w, hpa + 8 * ((va >> 12) & 511))
    gpa = (entry & TARGET) + (va & 0xFFF)
    if not quick_find(&m.host_cache[2], s.guest_tag, gpa >> 21, &found):
        if not quick_find(&m.host_cache[3], s.guest_tag, gpa >> 30, &found):
            return False
        queue_load(w, found[4 * ADDRESS] + 8 * ((gpa >> 21) & 511))
        quick_insert(&m.host_cache[2], s.guest_tag, gpa >> 21, &found)
        found[4 * NODE] = <uint64_t>node_of(last.at, gpa)
        found[4 * SHIFT] = 21
        found[4 * ADDRESS] = last.table
    if table_leaf != NULL:
        mark(table_leaf, ACCESSED | DIRTY)
        quick_insert(&m.guest_cache[2], s.tag, va >> 21, &found)
        found[4 * NODE] = <uint64_t>node_of(first.at, va)
        found[4 * PAGE] = hpa
        found[4 * ORIGIN] = first.table | 12
    queue_load(w, last.table + 8 * ((gpa >> 12) & 511))
    w.hpa = (leaf & TARGET) + (gpa & 0xFC0)
    if not likely(entry & leaf & bits == bits):      # most have them, as in `mark`
        mark(last.at, bits)
        mark(first.at, bits)
        entry, leaf = first.at[0], last.at[0]
    dirty[0] = (entry & leaf & DIRTY) != 0
    return True


cdef inline uint64_t *quick_table(Mmu *m, const Space *s, Walk *w, uint64_t gpa, uint64_t data,
                                  uint64_t **found) noexcept nogil:
    """The host's leaf under a guest's table, whose entry of level 2 has to come into the cache.

    NULL, with nothing done, unless all goes well here and with the data, in GiB `data`, too.
    """
    cdef uint64_t slot = (gpa >> 21) & 511
    cdef uint64_t *leaf
    cdef Node *node
    if (not quick_find(&m.host_cache[3], s.guest_tag, data, found)
            or not quick_find(&m.host_cache[3], s.guest_tag, gpa >> 30, found)):
        return NULL
    node = <Node *>found[0][4 * NODE]
    if not is_child(node.entry[slot]):
        return NULL
    leaf = &child_of(node.entry[slot]).entry[(gpa >> 12) & 511]
    if not leaf[0] & LEAF:
        return NULL
    queue_load(w, found[0][4 * ADDRESS] + 8 * slot)
    quick_insert(&m.host_cache[2], s.guest_tag, gpa >> 21, found)
    found[0][4 * NODE] = <uint64_t>child_of(node.entry[slot])
    found[0][4 * SHIFT] = 21
    found[0][4 * ADDRESS] = address_below(node, 512, slot)[0]
    return leaf


cdef inline Node *node_of(uint64_t *entry, uint64_t address) noexcept nogil:
    """The node of level 1 whose entry for `address` stands there."""
    return <Node *>(<char *>(entry - ((address >> 12) & 511)) - HEADER)


cdef inline uint64_t load_cycles(Mmu *m, int first, int last) noexcept nogil:
    """What some of the queued loads take; those before have been taken."""
    cdef Found found = touch_queued(&m.loads, first, last)
    m.count.l2_loads += found.l2
    m.count.llc_loads += found.llc
    m.count.dram_loads += found.dram
    return (found.l2 * m.loads.l2_latency + found.llc * m.loads.llc_latency
            + found.dram * m.loads.dram_latency)


cdef inline void settle(Mmu *m, int last) noexcept nogil:
    """Charge the loads of completed walks that are still queued: the first `last`."""
    cdef uint64_t cycles = load_cycles(m, 0, last)
    m.count.walk_cycles += cycles
    m.spent += cycles
    m.loads.n = 0


cdef inline int first_free_walker(const Mmu *m) noexcept nogil:
    cdef int i, first = 0
    for i in range(1, m.walkers):
        if m.walker_free[i] < m.walker_free[first]:
            first = i
    return first


cdef inline void begin_walk(Mmu *m, Walk *w) noexcept nogil:
    w.guest_loads = w.guest_hits = w.host_hits = w.nested_hits = 0
    w.next = &m.loads.word[m.loads.n]
    w.tick = m.tick


cdef inline int walk_for(Mmu *m, const Space *s, uint64_t va, bint write, uint64_t now, bint later,
                         int *size, uint64_t *flags) noexcept nogil:
    """No TLB has it: walk, on the first walker that is free. The TLBs are left to the caller.

    `later`: the caller will `settle` its loads, and there is room for them in the queue.
    """
    cdef Counters *count = m.count
    cdef Walk w
    cdef int status, walker, loads, first = m.loads.n
    cdef uint64_t cycles, wait = 0
    begin_walk(m, &w)
    if s.guest != NULL:
        status = walk(m, s, &w, va, write, True, size, flags)
    else:
        status = walk(m, s, &w, va, write, False, size, flags)
    m.tick = w.tick
    loads = <int>(w.next - &m.loads.word[first])
    count.tlb_misses += 1
    count.guest_walk_cache_hits += w.guest_hits
    count.host_walk_cache_hits += w.host_hits
    count.nested_tlb_hits += w.nested_hits
    cycles = (w.guest_hits + w.host_hits + w.nested_hits) * m.walk_cache_latency
    if likely(status == OK):
        w.next[0] = w.hpa & ~<uint64_t>63
        m.loads.n = first + loads + 1
    if status != OK or not later:
        if first:
            settle(m, first)
        cycles += load_cycles(m, first, first + loads + (status == OK))
        m.loads.n = 0
    if now != NOWHERE:
        walker = first_free_walker(m)
        if m.walker_free[walker] > now:
            wait = m.walker_free[walker] - now
            count.walker_wait_cycles += wait
        m.walker_free[walker] = now + wait + cycles
    m.spent += cycles + wait
    if status != OK:
        count.faulted_loads += loads
        count.faulted_cycles += cycles
        return status
    count.walks += 1
    count.guest_loads += w.guest_loads
    count.host_loads += loads - w.guest_loads
    count.walk_cycles += cycles
    return OK
