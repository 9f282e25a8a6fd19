# Folios of host memory: who owns each, and the lists that reclaim policies keep.
#
# A folio is a 4 KiB page or a 2 MiB block. Its id is the page's number in host RAM,
# or n_pages + the block's number; so a 2 MiB folio costs one entry, and arrays are
# paid for only where they are touched.
#
# Owners are in groups, each with lists of its own, as a memory cgroup has (Linux' lruvec):
# a folio is on a list of its owner's group. Group 0 takes whoever was put into no other.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from simvm.core.blocks cimport NIL

cdef enum:
    N_LISTS = 18       # of a group; list 0 means: on no list
    COMMON_LISTS = 13  # from here on a list is of all groups together

cdef struct Folios:
    uint64_t base
    uint32_t n_pages
    uint32_t n_ids
    uint64_t *owner        # (owner << 40) | page number in the owner's address space
    uint32_t *next
    uint32_t *prev
    uint8_t *where         # the list it is on
    uint16_t *mapped       # of a partly unmapped block: pages still mapped
    uint16_t *group        # by owner
    uint64_t n_owners
    int n_groups
    int *new_list          # by group: where new folios go
    uint32_t *head         # by group and list
    uint32_t *tail
    uint64_t *pages        # 4 KiB pages on the list


cdef inline int folios_init(Folios *f, uint64_t size, uint64_t base) noexcept nogil:
    f.base = base
    f.n_pages = <uint32_t>(size >> 12)
    f.n_ids = f.n_pages + <uint32_t>(size >> 21)
    f.owner = <uint64_t *>calloc(f.n_ids + 1, 8)
    f.next = <uint32_t *>calloc(f.n_ids + 1, 4)
    f.prev = <uint32_t *>calloc(f.n_ids + 1, 4)
    f.where = <uint8_t *>calloc(f.n_ids + 1, 1)
    f.mapped = <uint16_t *>calloc((size >> 21) + 1, 2)
    f.group = NULL
    f.new_list = NULL
    f.head = f.tail = NULL
    f.pages = NULL
    f.n_owners = f.n_groups = 0
    if f.owner == NULL or f.next == NULL or f.prev == NULL or f.where == NULL or f.mapped == NULL:
        return -1
    return 0 if folios_add_group(f) == 0 else -1


cdef inline int folios_add_group(Folios *f) noexcept nogil:
    """A new group with empty lists: its number; -1 when memory is short."""
    cdef int n = f.n_groups, i
    cdef uint64_t room = <uint64_t>(n + 1) * N_LISTS
    cdef void *lists[3]
    cdef void *new_list = realloc(f.new_list, (n + 1) * sizeof(int))
    lists[0], lists[1] = realloc(f.head, room * 4), realloc(f.tail, room * 4)
    lists[2] = realloc(f.pages, room * 8)
    f.new_list = <int *>new_list if new_list != NULL else f.new_list
    f.head = <uint32_t *>lists[0] if lists[0] != NULL else f.head
    f.tail = <uint32_t *>lists[1] if lists[1] != NULL else f.tail
    f.pages = <uint64_t *>lists[2] if lists[2] != NULL else f.pages
    if new_list == NULL or lists[0] == NULL or lists[1] == NULL or lists[2] == NULL:
        return -1
    for i in range(n * N_LISTS, (n + 1) * N_LISTS):
        f.head[i] = f.tail[i] = NIL
        f.pages[i] = 0
    f.new_list[n] = f.new_list[0] if n else 1
    f.n_groups += 1
    return n


cdef inline int folios_join(Folios *f, uint64_t owner, int group) noexcept nogil:
    """Put an owner that has no folios yet into a group; -1 when memory is short."""
    cdef uint64_t room = owner + 1
    cdef uint16_t *more
    if owner >= f.n_owners:
        more = <uint16_t *>realloc(f.group, room * 2)
        if more == NULL:
            return -1
        f.group = more
        while f.n_owners < room:
            f.group[f.n_owners] = 0
            f.n_owners += 1
    f.group[owner] = group
    return 0


cdef inline void folios_free(Folios *f) noexcept nogil:
    free(f.owner)
    free(f.next)
    free(f.prev)
    free(f.where)
    free(f.mapped)
    free(f.group)
    free(f.new_list)
    free(f.head)
    free(f.tail)
    free(f.pages)


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


cdef inline int group_of(const Folios *f, uint32_t i) noexcept nogil:
    cdef uint64_t owner = f.owner[i] >> 40
    return f.group[owner] if owner < f.n_owners else 0


cdef inline int list_of(const Folios *f, int which, uint32_t i) noexcept nogil:
    """Where a list of the folio's group begins. Its owner must not change while it is there."""
    return which if which >= COMMON_LISTS else group_of(f, i) * N_LISTS + which


cdef inline void folio_push(Folios *f, int which, uint32_t i) noexcept nogil:
    """Put a folio that is on no list at the head (the young end) of a list of its group.

    0 is the list for new folios.
    """
    cdef int at
    cdef uint32_t first
    if which == 0:
        which = f.new_list[group_of(f, i)]
    at = list_of(f, which, i)
    first = f.head[at]
    f.next[i] = first
    f.prev[i] = NIL
    if first != NIL:
        f.prev[first] = i
    else:
        f.tail[at] = i
    f.head[at] = i
    f.where[i] = which
    f.pages[at] += 512 if i >= f.n_pages else 1


cdef inline void folio_remove(Folios *f, uint32_t i) noexcept nogil:
    cdef int which = f.where[i]
    cdef int at
    if which == 0:
        return
    at = list_of(f, which, i)
    if f.prev[i] != NIL:
        f.next[f.prev[i]] = f.next[i]
    else:
        f.head[at] = f.next[i]
    if f.next[i] != NIL:
        f.prev[f.next[i]] = f.prev[i]
    else:
        f.tail[at] = f.prev[i]
    f.where[i] = 0
    f.pages[at] -= 512 if i >= f.n_pages else 1


cdef inline void folio_replace(Folios *f, uint32_t old, uint32_t new) noexcept nogil:
    """Another folio of the same order takes the owner and the place on the list."""
    cdef int which = f.where[old]
    cdef int at = list_of(f, which, old)
    f.owner[new] = f.owner[old]
    f.owner[old] = 0
    f.where[new] = which
    f.where[old] = 0
    if which == 0:
        return
    f.next[new], f.prev[new] = f.next[old], f.prev[old]
    if f.prev[old] != NIL:
        f.next[f.prev[old]] = new
    else:
        f.head[at] = new
    if f.next[old] != NIL:
        f.prev[f.next[old]] = new
    else:
        f.tail[at] = new
