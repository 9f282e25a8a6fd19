# Folios of host memory: who owns each, and the lists that reclaim policies keep.
#
# A folio is a 4 KiB page or a 2 MiB block. Its id is the page's number in host RAM,
# or n_pages + the block's number; so a 2 MiB folio costs one entry, and arrays are
# paid for only where they are touched.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from simvm.core.blocks cimport NIL

cdef enum:
    N_LISTS = 16       # list 0 means: on no list

cdef struct Folios:
    uint64_t base
    uint32_t n_pages
    uint32_t n_ids
    uint64_t *owner        # (owner << 40) | page number in the owner's address space
    uint32_t *next
    uint32_t *prev
    uint8_t *where         # the list it is on
    uint16_t *mapped       # of a partly unmapped block: pages still mapped
    uint32_t head[N_LISTS]
    uint32_t tail[N_LISTS]
    uint64_t pages[N_LISTS]   # 4 KiB pages on the list


cdef inline int folios_init(Folios *f, uint64_t size, uint64_t base) noexcept nogil:
    cdef int i
    f.base = base
    f.n_pages = <uint32_t>(size >> 12)
    f.n_ids = f.n_pages + <uint32_t>(size >> 21)
    f.owner = <uint64_t *>calloc(f.n_ids + 1, 8)
    f.next = <uint32_t *>calloc(f.n_ids + 1, 4)
    f.prev = <uint32_t *>calloc(f.n_ids + 1, 4)
    f.where = <uint8_t *>calloc(f.n_ids + 1, 1)
    f.mapped = <uint16_t *>calloc((size >> 21) + 1, 2)
    for i in range(N_LISTS):
        f.head[i] = f.tail[i] = NIL
        f.pages[i] = 0
    if f.owner == NULL or f.next == NULL or f.prev == NULL or f.where == NULL or f.mapped == NULL:
        return -1
    return 0


cdef inline void folios_free(Folios *f) noexcept nogil:
    free(f.owner)
    free(f.next)
    free(f.prev)
    free(f.where)
    free(f.mapped)


cdef inline uint32_t folio_id(const Folios *f, uint64_t address, int order) noexcept nogil:
    if order == 0:
        return <uint32_t>((address - f.base) >> 12)
    return f.n_pages + <uint32_t>((address - f.base) >> 21)


cdef inline int folio_order(const Folios *f, uint32_t i) noexcept nogil:
    return 1 if i >= f.n_pages else 0


cdef inline uint64_t folio_address(const Folios *f, uint32_t i) noexcept nogil:
    if i >= f.n_pages:
        return f.base + (<uint64_t>(i - f.n_pages) << 21)
    return f.base + (<uint64_t>i << 12)


cdef inline void folio_push(Folios *f, int which, uint32_t i) noexcept nogil:
    """Put a folio that is on no list at the head (the young end) of a list."""
    cdef uint32_t first = f.head[which]
    f.next[i] = first
    f.prev[i] = NIL
    if first != NIL:
        f.prev[first] = i
    else:
        f.tail[which] = i
    f.head[which] = i
    f.where[i] = which
    f.pages[which] += 512 if i >= f.n_pages else 1


cdef inline void folio_remove(Folios *f, uint32_t i) noexcept nogil:
    cdef int which = f.where[i]
    if which == 0:
        return
    if f.prev[i] != NIL:
        f.next[f.prev[i]] = f.next[i]
    else:
        f.head[which] = f.next[i]
    if f.next[i] != NIL:
        f.prev[f.next[i]] = f.prev[i]
    else:
        f.tail[which] = f.prev[i]
    f.where[i] = 0
    f.pages[which] -= 512 if i >= f.n_pages else 1
