# Finding the entries that later accesses will need, step by step.
#
# A walk is a chain of loads, each of which must wait for the one before, also in the
# simulator. So the entries of accesses to come are looked for while others run: of one far
# ahead the guest's, of a nearer one the host's, each fetched into the real caches by then.
# Walks of the commonest shape begin with what was found (`quick_walk`). What is found holds
# as long as no table changes: until a fault, or another call.

from libc.stdint cimport uint64_t
from libc.string cimport memset
from simvm.core.cache cimport inlined_int, likely, prefetch
from simvm.core.mmu cimport NOWHERE, Space
from simvm.core.stream cimport Stream
from simvm.core.table cimport (LEAF, TARGET, Node, Table, address_below, child_of, index_in,
                               is_child)
from simvm.core.vcpu cimport Region

cdef enum:
    FAR = 24                 # accesses ahead to look for a first-dimension entry
    NEAR = 12                # ... and for the host entry that it leads to
    RING = 32                # at least FAR
    KNOWN = 16               # GiB whose tables of level 2 are remembered

cdef struct Known:           # the table of level 2 on the way to the addresses of one GiB
    uint64_t giga
    Node *node

cdef struct Entry:           # the lowest on the way to an address
    uint64_t *at
    uint64_t below           # the bits of the address that it does not translate
    uint64_t table           # the address of its table page if that is of level 1, else NOWHERE

cdef struct Ahead:
    bint knows               # whether `known` is of the tables as they are now,
    bint primed              # ... and `first` and `last` of the accesses that come next
    int done                 # accesses of the stream, as drawn, that were looked ahead of
    Entry first[RING]        # of the guest's table (or the native one)
    Entry last[RING]         # of the host's, for the data
    Known known_first[KNOWN]
    Known known_host[KNOWN]


cdef inline inlined_int find_lowest(Known *known, const Table *t, uint64_t address, bint quick,
                                    Entry *found) noexcept nogil:
    """The lowest entry on the way to `address`, and fetch it. `quick`: in pages of 4 KiB."""
    cdef Node *node
    cdef uint64_t *entry
    cdef uint64_t slot
    cdef int level = t.levels
    found.table = NOWHERE
    known += (address >> 30) & (KNOWN - 1)
    if likely(known.giga == address >> 30):
        node = known.node
    else:
        node = t.root
        while level > 2:
            entry = &node.entry[index_in(t, address, level)]
            if not is_child(entry[0]):
                found.at = entry
                found.below = address & ((<uint64_t>1 << t.shift[level]) - 1)
                return 0
            node = child_of(entry[0])
            level -= 1
        known.giga, known.node = address >> 30, node
    slot = (address >> 21) & 511 if quick else index_in(t, address, 2)
    entry = &node.entry[slot]
    found.below = address & 0x1FFFFF
    if likely(is_child(entry[0])):
        found.table = address_below(node, 512 if quick else node.entries, slot)[0]
        found.below = address & 0xFFF
        entry = &child_of(entry[0]).entry[(address >> 12) & 511]
    prefetch(entry)
    found.at = entry
    return 0


cdef inline inlined_int look_far(Ahead *a, const Space *s, const Region *region, uint64_t word,
                                 int at, bint quick) noexcept nogil:
    """Of an access far ahead, the guest's entry (or the native one)."""
    prefetch(&region.touched[word >> 19])
    find_lowest(a.known_first, s.guest if quick or s.guest != NULL else s.host,
                region.base + (word >> 1), quick, &a.first[at & (RING - 1)])
    return 0


cdef inline inlined_int look_near(Ahead *a, const Space *s, int at, bint quick) noexcept nogil:
    """Of a nearer one, the host's entry that the guest's leads to, now that this has come."""
    cdef const Entry *first = &a.first[at & (RING - 1)]
    cdef Entry *last = &a.last[at & (RING - 1)]
    cdef uint64_t entry = first.at[0]
    last.table = NOWHERE
    if (quick or s.guest != NULL) and likely(entry & LEAF):
        find_lowest(a.known_host, s.host, (entry & TARGET) + first.below, quick, last)
    return 0


cdef inline inlined_int learn(Ahead *a) noexcept nogil:
    """Begin anew with what is known of the tables."""
    if not a.knows:
        memset(a.known_first, 0xFF, sizeof(a.known_first))
        memset(a.known_host, 0xFF, sizeof(a.known_host))
        a.knows = True
    return 0


cdef inline inlined_int look_ahead_of(Ahead *a, const Space *s, const Region *region,
                                      const Stream *stream, bint quick) noexcept nogil:
    """Look ahead of each access since the last call; hits in a TLB do not call."""
    cdef int i
    learn(a)
    if not a.primed:
        for i in range(stream.at, min(stream.at + FAR, stream.n)):
            look_far(a, s, region, stream.next[i], i, quick)
        for i in range(stream.at, min(stream.at + NEAR, stream.n)):
            look_near(a, s, i, quick)
        a.primed = True
        a.done = stream.at
    for i in range(a.done, stream.at + 1):
        if likely(i + FAR < stream.n):
            look_far(a, s, region, stream.next[i + FAR], i + FAR, quick)
        if likely(i + NEAR < stream.n):
            look_near(a, s, i + NEAR, quick)
    a.done = stream.at + 1
    return 0


cdef inline inlined_int look_now(Ahead *a, const Space *s, const Region *region,
                                 const Stream *stream, bint quick) noexcept nogil:
    """Look for the entries of the next access alone, where misses are rare."""
    learn(a)
    look_far(a, s, region, stream.next[stream.at], stream.at, quick)
    look_near(a, s, stream.at, quick)
    return 0
