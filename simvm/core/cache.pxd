# Set-associative structures: TLB arrays, walk caches, the nested TLB.
#
# An entry's key is one 64-bit word: (what it is for << 2) | two flags. Beside it stands a
# 32-bit tag, a part of the key: a set's tags are compared all at once (ways.h), then the
# key is. Entries never move. True LRU and FIFO keep a stamp for each, the count of
# touches (LRU) or insertions (FIFO) at its last one, and evict the least; a free place has
# stamp 0, so it goes first. So a hit writes one word, and values need not follow it.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef extern from "core/ways.h" nogil:
    int count_trailing_zeros "SIMVM_CTZ"(uint64_t x)
    bint likely "SIMVM_LIKELY"(bint x)
    void prefetch "SIMVM_PREFETCH"(const void *x)
    uint64_t mul_high "simvm_mulhi"(uint64_t a, uint64_t b)
    int find_way "simvm_find"(const uint32_t *tags, const uint64_t *keys, int lanes,
                              uint32_t tag, uint64_t key)
    int lanes_for "simvm_lanes"(int ways)
    int least_of "simvm_least"(const uint32_t *words, int lanes)

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    LRU = 0
    FIFO = 1
    PLRU = 2
    RANDOM = 3

cdef extern from *:
    """
    #define SIMVM_EMPTY (~(uint64_t)0)
    #define SIMVM_NEVER 0x7FFFFFFFu
    /* A stamp below SIMVM_NEVER is the clock's; a debug build runs out of them soon, so that
       tests reach what happens then. */
    #ifdef SIMVM_DEBUG
    #define SIMVM_LAST_STAMP 5000u
    #else
    #define SIMVM_LAST_STAMP 0x7FFFFFFEu
    #endif
    """
    const uint64_t EMPTY "SIMVM_EMPTY"            # the key of a free place
    const uint32_t NEVER "SIMVM_NEVER"            # the stamp of a way that does not exist
    const uint32_t LAST_STAMP "SIMVM_LAST_STAMP"

cdef struct Assoc:
    uint32_t *tags       # sets x lanes; all ones where free
    uint64_t *keys       # sets x lanes; EMPTY where free
    uint32_t *stamps     # sets x lanes
    uint64_t *values     # sets x lanes, or NULL
    uint64_t *pages      # sets x lanes, or NULL: a second value
    uint64_t *origins    # sets x lanes, or NULL: a third
    uint64_t set_mask    # sets - 1 where sets is a power of two, else 0
    uint64_t sets
    int lanes            # ways, rounded up to whole vectors
    int ways
    int policy
    uint32_t clock       # of stamps
    int tree             # tree-PLRU: ways rounded up to a power of two
    uint64_t *bits       # tree-PLRU: one word a set
    uint64_t random      # state of the generator


cdef inline void *words_of(uint64_t n, uint64_t size) noexcept nogil:
    return aligned_alloc(64, (n * size + 63) // 64 * 64)


cdef inline int assoc_init(Assoc *a, uint64_t entries, int ways, int policy,
                           int values) noexcept nogil:
    """Set up `entries` places in sets of `ways`, with 0 to 3 values; -1 when memory is short."""
    cdef uint64_t places
    a.sets = entries // ways
    a.ways = ways
    a.lanes = lanes_for(ways)
    a.policy = policy
    a.set_mask = a.sets - 1 if a.sets & (a.sets - 1) == 0 else 0
    a.random = 0x9E3779B97F4A7C15ULL
    a.tree = 1
    while a.tree < ways:
        a.tree *= 2
    places = a.sets * a.lanes
    a.tags = <uint32_t *>words_of(places, 4)
    a.keys = <uint64_t *>words_of(places, 8)
    a.stamps = <uint32_t *>words_of(places, 4)
    a.bits = <uint64_t *>calloc(a.sets, 8)
    a.values = <uint64_t *>calloc(places, 8) if values >= 1 else NULL
    a.pages = <uint64_t *>calloc(places, 8) if values >= 2 else NULL
    a.origins = <uint64_t *>calloc(places, 8) if values >= 3 else NULL
    if (a.tags == NULL or a.keys == NULL or a.stamps == NULL or a.bits == NULL
            or (values >= 1 and a.values == NULL) or (values >= 2 and a.pages == NULL)
            or (values >= 3 and a.origins == NULL)):
        return -1
    assoc_flush(a)
    return 0


cdef inline void assoc_free(Assoc *a) noexcept nogil:
    free(a.tags)
    free(a.keys)
    free(a.stamps)
    free(a.bits)
    free(a.values)
    free(a.pages)
    free(a.origins)


cdef inline void assoc_flush(Assoc *a) noexcept nogil:
    """Free every place. The state of the random generator goes on."""
    cdef uint64_t i, places = a.sets * a.lanes
    memset(a.tags, 0xFF, places * 4)
    memset(a.keys, 0xFF, places * 8)
    for i in range(places):
        a.stamps[i] = 0 if i % a.lanes < <uint64_t>a.ways else NEVER
    a.clock = 0


cdef inline uint64_t set_of(const Assoc *a, uint64_t number) noexcept nogil:
    if likely(a.set_mask != 0 or a.sets == 1):
        return number & a.set_mask
    return number % a.sets


cdef inline uint32_t tag_of(uint64_t key) noexcept nogil:
    return <uint32_t>(key >> 2) ^ <uint32_t>(key >> 34)


cdef inline void plru_touch(Assoc *a, uint64_t s, int way) noexcept nogil:
    cdef int node = a.tree + way
    cdef uint64_t word = a.bits[s]
    while node > 1:
        if node & 1:
            word &= ~(<uint64_t>1 << (node >> 1))
        else:
            word |= <uint64_t>1 << (node >> 1)
        node >>= 1
    a.bits[s] = word


cdef inline int plru_victim(const Assoc *a, uint64_t s) noexcept nogil:
    cdef int node = 1
    cdef int first = 0          # lowest way under `node`
    cdef int span = a.tree      # ways under `node`
    cdef uint64_t word = a.bits[s]
    while node < a.tree:
        span >>= 1
        node *= 2
        if (word >> (node >> 1)) & 1 and first + span < a.ways:
            node += 1
            first += span
    return first


cdef inline void renumber(Assoc *a) noexcept nogil:
    """The stamps have run out: give each its rank in its set."""
    cdef uint64_t s
    cdef uint32_t *stamp
    cdef uint32_t rank, last
    cdef int i, least
    for s in range(a.sets):
        stamp = a.stamps + s * a.lanes
        last = 0
        for rank in range(1, a.ways + 1):
            # The least stamp above `last`; ranks given so far stand above LAST_STAMP.
            least = -1
            for i in range(a.ways):
                if (last < stamp[i] <= LAST_STAMP
                        and (least < 0 or stamp[i] < stamp[least])):
                    least = i
            if least < 0:
                break
            last = stamp[least]
            stamp[least] = NEVER + rank
        for i in range(a.ways):
            if stamp[i] > NEVER:
                stamp[i] -= NEVER
    a.clock = a.ways


cdef inline void stamp(Assoc *a, uint64_t place) noexcept nogil:
    if a.clock == LAST_STAMP:
        renumber(a)
    a.clock += 1
    a.stamps[place] = a.clock


cdef inline int64_t assoc_find(Assoc *a, uint64_t s, uint64_t key) noexcept nogil:
    """The place of the entry, now the most recently used; -1 when absent."""
    cdef uint64_t base = s * a.lanes
    cdef int i = find_way(a.tags + base, a.keys + base, a.lanes, tag_of(key), key)
    if i < 0:
        return -1
    if likely(a.policy == LRU):
        stamp(a, base + i)
    elif a.policy == PLRU:
        plru_touch(a, s, i)
    return <int64_t>base + i


cdef inline int choose_way(Assoc *a, uint64_t s) noexcept nogil:
    """Where an insertion goes: the lowest free place, or whom the policy evicts."""
    cdef uint64_t *keys = a.keys + s * a.lanes
    cdef int i
    if likely(a.policy <= FIFO):
        return least_of(a.stamps + s * a.lanes, a.lanes)
    for i in range(a.ways):
        if keys[i] == EMPTY:
            return i
    if a.policy == PLRU:
        return plru_victim(a, s)
    # Knuth's MMIX constants; the high bits are the good ones.
    a.random = a.random * 6364136223846793005ULL + 1442695040888963407ULL
    return <int>(((a.random >> 33) * <uint64_t>a.ways) >> 31)


cdef inline int64_t assoc_insert(Assoc *a, uint64_t s, uint64_t key) noexcept nogil:
    """Put the key, flags included, in as most recently used; return its place.

    The caller has probed for the key and missed. It sets `values` and `pages` itself.
    """
    cdef int i = choose_way(a, s)
    cdef uint64_t place = s * a.lanes + i
    a.keys[place] = key
    a.tags[place] = tag_of(key)
    if likely(a.policy <= FIFO):
        stamp(a, place)
    elif a.policy == PLRU:
        plru_touch(a, s, i)
    return <int64_t>place


cdef inline void assoc_remove(Assoc *a, uint64_t place) noexcept nogil:
    """Free one place."""
    a.keys[place] = EMPTY
    a.tags[place] = 0xFFFFFFFFU
    a.stamps[place] = 0
