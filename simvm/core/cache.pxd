# Set-associative structures: TLB arrays, walk caches, the nested TLB.
#
# An entry's key is one 64-bit word: (what it is for << 2) | two flags. Beside it stands a
# 32-bit tag, a part of the key: a set's tags are compared all at once (ways.h), then the
# key is. Entries never move. True LRU and FIFO keep a stamp for each, the time of its last
# touch (LRU) or of its insertion (FIFO), and evict the least; a free place has stamp 0, so
# it goes first. So a hit writes one word, and values need not follow it. The time is a
# count that one MMU keeps for all of its structures: only its order matters. Four ways in
# true LRU, the commonest shape, keep their order in one word instead (ways.h).
#
# A set is one stretch of memory: tags, stamps, keys, then up to three values of each entry,
# so that a set of four ways without values is one real cache line, and one pointer leads to
# all of it. An entry is known by the address of its key; values stand `lanes` words apart.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef extern from "core/ways.h" nogil:
    int count_trailing_zeros "SIMVM_CTZ"(uint64_t x)
    bint likely "SIMVM_LIKELY"(bint x)
    void prefetch "simvm_prefetch"(const void *x)
    uint64_t mul_high "simvm_mulhi"(uint64_t a, uint64_t b)
    int64_t find_way "simvm_find"(const uint32_t *words, int lanes, uint32_t tag, uint64_t key)
    int64_t guess_way "simvm_guess"(const uint32_t *words, int lanes, uint32_t tag)
    const uint32_t FIRST_ORDER "SIMVM_ORDER"
    void fill_orders "simvm_fill_orders"()
    void touch_4 "simvm_touch4"(uint32_t *words, int64_t way)
    void demote_4 "simvm_demote4"(uint32_t *words, int way)
    int64_t replace_4 "simvm_replace4"(uint32_t *words, uint32_t tag)
    int lanes_for "simvm_lanes"(int ways)
    int64_t replace_least "simvm_replace"(uint32_t *words, int lanes, uint32_t tag, uint32_t now)

cdef extern from *:
    """
    /* The type of a function that is to be part of its caller, so that what is constant or
       local there is so in it. It also names a variable, where it says nothing. */
    #if defined(__GNUC__)
    #pragma GCC diagnostic ignored "-Wattributes"
    #define SIMVM_INLINED_INT __attribute__((always_inline)) int
    #else
    #define SIMVM_INLINED_INT int
    #endif
    """
    ctypedef int inlined_int "SIMVM_INLINED_INT"

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
    /* A stamp below SIMVM_NEVER is the clock's; a debug build runs out of them soon, so that
       tests reach what happens then. */
    #ifdef SIMVM_DEBUG
    #define SIMVM_LAST_STAMP (SIMVM_FIRST_STAMP + 6000u)
    #else
    #define SIMVM_LAST_STAMP (SIMVM_NEVER - 1u)
    #endif
    """
    const uint64_t EMPTY "SIMVM_EMPTY"            # the key of a free place
    const uint32_t NEVER "SIMVM_NEVER"            # the stamp of a way that does not exist
    const uint32_t FIRST_STAMP "SIMVM_FIRST_STAMP"    # where time begins
    const uint32_t LAST_STAMP "SIMVM_LAST_STAMP"

cdef struct Assoc:
    uint32_t *words      # sets x stride
    uint64_t set_mask    # sets - 1 where sets is a power of two, else 0
    uint64_t sets
    uint64_t stride      # 32-bit words from one set to the next
    int lanes            # ways, rounded up to whole vectors
    int ways
    int policy
    bint simple          # four ways, true LRU, sets that a mask selects: the commonest shape
    int tree             # tree-PLRU: ways rounded up to a power of two
    uint64_t *bits       # tree-PLRU: one word a set
    uint64_t random      # state of the generator


cdef inline void *words_of(uint64_t n, uint64_t size) noexcept nogil:
    return aligned_alloc(64, (n * size + 63) // 64 * 64)


cdef inline int assoc_init(Assoc *a, uint64_t entries, int ways, int policy,
                           int values) noexcept nogil:
    """Set up `entries` places in sets of `ways`, with 0 to 3 values; -1 when memory is short."""
    a.sets = entries // ways
    a.ways = ways
    a.lanes = lanes_for(ways)
    a.stride = <uint64_t>a.lanes * (4 + 2 * values)
    a.policy = policy
    a.set_mask = a.sets - 1 if a.sets & (a.sets - 1) == 0 else 0
    a.simple = ways == 4 and policy == LRU and (a.set_mask != 0 or a.sets == 1)
    a.random = 0x9E3779B97F4A7C15ULL
    a.tree = 1
    while a.tree < ways:
        a.tree *= 2
    a.words = <uint32_t *>words_of(a.sets * a.stride, 4)
    a.bits = <uint64_t *>calloc(a.sets, 8)
    if a.words == NULL or a.bits == NULL:
        return -1
    assoc_flush(a)
    return 0


cdef inline void assoc_free(Assoc *a) noexcept nogil:
    free(a.words)
    free(a.bits)


cdef inline uint64_t set_of(const Assoc *a, uint64_t number) noexcept nogil:
    if likely(a.set_mask != 0 or a.sets == 1):
        return number & a.set_mask
    return number % a.sets


cdef inline uint32_t *tags_in(const Assoc *a, uint64_t s) noexcept nogil:
    return a.words + s * a.stride


cdef inline uint32_t *stamps_in(const Assoc *a, uint64_t s) noexcept nogil:
    return a.words + s * a.stride + a.lanes


cdef inline uint64_t *keys_in(const Assoc *a, uint64_t s) noexcept nogil:
    return <uint64_t *>(a.words + s * a.stride + 2 * a.lanes)


cdef inline uint64_t *value_of(const Assoc *a, uint64_t *key, int which) noexcept nogil:
    """A value of the entry whose key stands there: 1, 2 or 3."""
    return key + which * a.lanes


cdef inline uint32_t tag_of(uint64_t key) noexcept nogil:
    return <uint32_t>(key >> 5) ^ (<uint32_t>(key >> 50) << 18)


cdef inline void assoc_remove(Assoc *a, uint64_t s, int way) noexcept nogil:
    """Free one place."""
    tags_in(a, s)[way] = 0xFFFFFFFFU
    if a.simple:
        demote_4(tags_in(a, s), way)
    else:
        stamps_in(a, s)[way] = 0
    keys_in(a, s)[way] = EMPTY


cdef inline void assoc_flush(Assoc *a) noexcept nogil:
    """Free every place. The state of the random generator goes on."""
    cdef uint64_t s
    cdef int i
    for s in range(a.sets):
        memset(tags_in(a, s), 0xFF, <size_t>a.lanes * 4)
        memset(keys_in(a, s), 0xFF, <size_t>a.lanes * 8)
        for i in range(a.lanes):
            stamps_in(a, s)[i] = 0 if i < a.ways else NEVER
        if a.simple:
            stamps_in(a, s)[0] = FIRST_ORDER


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


cdef inline void assoc_renumber(Assoc *a) noexcept nogil:
    """Time has run out: give each entry its rank in its set for a stamp."""
    cdef uint64_t s
    cdef uint32_t *stamp
    cdef uint32_t rank, last
    cdef int i, least
    if a.simple:
        return                      # it has no stamps
    for s in range(a.sets):
        stamp = stamps_in(a, s)
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
                stamp[i] -= NEVER - FIRST_STAMP


# What a hit and an insertion do where replacement is true LRU; `simple` says how the set keeps
# its order. The loop of run.pxd, which has these things as constants, calls them too.

cdef inline inlined_int renew(uint32_t *words, int lanes, bint simple, int64_t way,
                              uint32_t now) noexcept nogil:
    """Let a way of a set be the most recently used."""
    if simple:
        touch_4(words, way)
    else:
        words[lanes + way] = now
    return 0


cdef inline inlined_int enter(uint32_t *words, int lanes, bint simple, uint64_t key,
                              uint32_t tag, uint32_t now, uint64_t **entry) noexcept nogil:
    """Put a key, whose tag the caller knows, in place of the least recently used."""
    cdef int64_t way = replace_4(words, tag) if simple else replace_least(words, lanes, tag, now)
    entry[0] = <uint64_t *>(words + 2 * lanes) + way
    entry[0][0] = key
    return 0


cdef inline uint64_t *assoc_find(Assoc *a, uint64_t s, uint64_t key, uint32_t now) noexcept nogil:
    """Where the key stands, now the most recently used; NULL when it does not."""
    cdef uint32_t *words = tags_in(a, s)
    cdef int64_t i = find_way(words, a.lanes, tag_of(key), key)
    if i < 0:
        return NULL
    if likely(a.policy == LRU):
        renew(words, a.lanes, a.simple, i, now)
    elif a.policy == PLRU:
        plru_touch(a, s, <int>i)
    return keys_in(a, s) + i


cdef inline int choose_way(Assoc *a, uint64_t s) noexcept nogil:
    """Where an insertion goes: the lowest free place, or what PLRU or chance evicts."""
    cdef uint64_t *keys = keys_in(a, s)
    cdef int i
    for i in range(a.ways):
        if keys[i] == EMPTY:
            return i
    if a.policy == PLRU:
        return plru_victim(a, s)
    # Knuth's MMIX constants; the high bits are the good ones.
    a.random = a.random * 6364136223846793005ULL + 1442695040888963407ULL
    return <int>(((a.random >> 33) * <uint64_t>a.ways) >> 31)


cdef inline uint64_t *assoc_insert(Assoc *a, uint64_t s, uint64_t key,
                                   uint32_t now) noexcept nogil:
    """Put the key, flags included, in as most recently used; return where it stands.

    The caller has probed for the key and missed. It sets the values itself.
    """
    cdef uint64_t *entry = NULL
    cdef int i
    if likely(a.policy <= FIFO):
        enter(tags_in(a, s), a.lanes, a.simple, key, tag_of(key), now, &entry)
        return entry
    i = choose_way(a, s)
    tags_in(a, s)[i] = tag_of(key)
    stamps_in(a, s)[i] = now
    if a.policy == PLRU:
        plru_touch(a, s, i)
    entry = keys_in(a, s) + i
    entry[0] = key
    return entry
