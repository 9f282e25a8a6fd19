# Set-associative structures: TLB arrays, walk caches, the nested TLB; and the data caches.
#
# An entry is one 64-bit word: (key << 1) | flag. The flag is a TLB entry's dirty flag.
# True LRU keeps a set in order of recency (the front is the most recent), so that the
# order is the state and free places stand at the end. Tree-PLRU keeps places fixed.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memmove, memset

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define SIMVM_CTZ(x) __builtin_ctzll(x)
    #define SIMVM_LIKELY(x) __builtin_expect(!!(x), 1)
    #define SIMVM_PREFETCH(x) __builtin_prefetch(x)
    #else
    static int SIMVM_CTZ(unsigned long long x) {
        int n = 0;
        while (!(x & 1)) { x >>= 1; n++; }
        return n;
    }
    #define SIMVM_LIKELY(x) (x)
    #define SIMVM_PREFETCH(x) ((void)(x))
    #endif
    static inline uint64_t simvm_mulhi(uint64_t a, uint64_t b) {
    #if defined(__SIZEOF_INT128__)
        return (uint64_t)(((unsigned __int128)a * b) >> 64);
    #else
        uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
        uint64_t mid = ah * bl + ((al * bl) >> 32);
        uint64_t low = al * bh + (uint32_t)mid;
        return ah * bh + (mid >> 32) + (low >> 32);
    #endif
    }
    """
    int count_trailing_zeros "SIMVM_CTZ"(uint64_t x) nogil
    bint likely "SIMVM_LIKELY"(bint x) nogil
    void prefetch "SIMVM_PREFETCH"(const void *x) nogil
    uint64_t mul_high "simvm_mulhi"(uint64_t a, uint64_t b) nogil

cdef enum:
    LRU = 0
    PLRU = 1

cdef extern from *:
    """
    #define SIMVM_EMPTY (~(uint64_t)0)
    """
    const uint64_t EMPTY "SIMVM_EMPTY"     # a free place

cdef struct Assoc:
    uint64_t sets
    uint64_t set_mask    # sets - 1 where sets is a power of two, else 0
    int ways
    int tree             # tree-PLRU: ways rounded up to a power of two; 0 for LRU
    uint64_t *keys       # sets x ways
    uint64_t *values     # sets x ways, or NULL
    uint64_t *pages      # sets x ways, or NULL: a second value
    uint64_t *bits       # tree-PLRU: one word a set


cdef inline int assoc_init(Assoc *a, uint64_t entries, int ways, int policy,
                           int values) noexcept nogil:
    """Set up `entries` places in sets of `ways`; -1 when memory is short."""
    cdef uint64_t i
    a.sets = entries // ways
    a.ways = ways
    a.set_mask = a.sets - 1 if a.sets & (a.sets - 1) == 0 else 0
    a.tree = 0
    a.keys = <uint64_t *>malloc(entries * 8)
    a.values = <uint64_t *>calloc(entries, 8) if values >= 1 else NULL
    a.pages = <uint64_t *>calloc(entries, 8) if values >= 2 else NULL
    a.bits = NULL
    if policy == PLRU:
        a.tree = 1
        while a.tree < ways:
            a.tree *= 2
        a.bits = <uint64_t *>calloc(a.sets, 8)
        if a.bits == NULL:
            return -1
    if a.keys == NULL or (values >= 1 and a.values == NULL) or (values >= 2 and a.pages == NULL):
        return -1
    for i in range(entries):
        a.keys[i] = EMPTY
    return 0


cdef inline void assoc_free(Assoc *a) noexcept nogil:
    free(a.keys)
    free(a.values)
    free(a.pages)
    free(a.bits)


cdef inline uint64_t set_of(const Assoc *a, uint64_t number) noexcept nogil:
    if likely(a.set_mask != 0 or a.sets == 1):
        return number & a.set_mask
    return number % a.sets


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


cdef inline int64_t assoc_find(Assoc *a, uint64_t s, uint64_t key) noexcept nogil:
    """Index of the entry in the arrays, now the most recently used; -1 when absent."""
    cdef uint64_t probe = (key << 1) | 1
    cdef uint64_t base = s * a.ways
    cdef uint64_t *k = a.keys + base
    cdef uint64_t word, value
    cdef int i, j
    if a.tree == 0 and likely((k[0] | 1) == probe):
        return <int64_t>base
    for i in range(a.ways):
        if (k[i] | 1) == probe:
            if a.tree:
                plru_touch(a, s, i)
                return <int64_t>base + i
            word = k[i]
            for j in range(i, 0, -1):
                k[j] = k[j - 1]
            k[0] = word
            if a.values != NULL:
                value = a.values[base + i]
                memmove(a.values + base + 1, a.values + base, i * 8)
                a.values[base] = value
            if a.pages != NULL:
                value = a.pages[base + i]
                memmove(a.pages + base + 1, a.pages + base, i * 8)
                a.pages[base] = value
            return <int64_t>base
    return -1


cdef inline int64_t assoc_insert(Assoc *a, uint64_t s, uint64_t key, uint64_t flag) noexcept nogil:
    """Make room, put the key in as most recently used, return its index.

    The caller has probed for the key and missed. It sets `values` itself.
    """
    cdef uint64_t base = s * a.ways
    cdef uint64_t *k = a.keys + base
    cdef int i
    if a.tree:
        for i in range(a.ways):
            if k[i] == EMPTY:
                break
        else:
            i = plru_victim(a, s)
        k[i] = (key << 1) | flag
        plru_touch(a, s, i)
        return <int64_t>base + i
    for i in range(a.ways - 1, 0, -1):
        k[i] = k[i - 1]
    k[0] = (key << 1) | flag
    if a.values != NULL:
        memmove(a.values + base + 1, a.values + base, (a.ways - 1) * 8)
    if a.pages != NULL:
        memmove(a.pages + base + 1, a.pages + base, (a.ways - 1) * 8)
    return <int64_t>base


cdef inline void assoc_remove(Assoc *a, uint64_t index) noexcept nogil:
    """Free one place; the order of the others in the set is unchanged."""
    cdef uint64_t base = index - index % a.ways
    cdef uint64_t i
    if a.tree:
        a.keys[index] = EMPTY
        return
    for i in range(index, base + a.ways - 1):
        a.keys[i] = a.keys[i + 1]
        if a.values != NULL:
            a.values[i] = a.values[i + 1]
        if a.pages != NULL:
            a.pages[i] = a.pages[i + 1]
    a.keys[base + a.ways - 1] = EMPTY


cdef inline void assoc_flush(Assoc *a) noexcept nogil:
    memset(a.keys, 0xFF, a.sets * a.ways * 8)


# The data caches. A tag is line // sets, kept as 32 bits plus one (0: free), so a set of
# 16 ways is one real cache line. Enough for 2^32 x sets lines of simulated memory.

cdef struct LineCache:
    uint64_t sets
    int ways
    uint32_t *tags     # NULL: the cache is absent


cdef inline int lines_init(LineCache *c, uint64_t size, int ways) noexcept nogil:
    c.ways = ways
    c.sets = size // 64 // ways
    c.tags = NULL
    if c.sets == 0:
        return 0
    c.tags = <uint32_t *>calloc(c.sets * ways, 4)
    return 0 if c.tags != NULL else -1


cdef inline int tag_find(const uint32_t *t, uint32_t tag, int ways) noexcept nogil:
    cdef uint32_t found = 0
    cdef int i
    if t[0] == tag:
        return 0
    if ways == 16:
        # No early exit: the compiler turns this into vector compares.
        for i in range(16):
            found |= <uint32_t>(t[i] == tag) << i
        return count_trailing_zeros(found) if found else -1
    for i in range(ways):
        if t[i] == tag:
            return i
    return -1


cdef inline bint lines_touch(LineCache *c, uint64_t line) noexcept nogil:
    """Whether the line was present; it is now, as the most recently used."""
    cdef uint32_t *t = c.tags + (line % c.sets) * c.ways
    cdef uint32_t tag = <uint32_t>(line // c.sets) + 1
    cdef int i = tag_find(t, tag, c.ways)
    if i == 0:
        return True
    memmove(t + 1, t, (i if i > 0 else c.ways - 1) * 4)
    t[0] = tag
    return i > 0
