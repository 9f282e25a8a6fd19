# Free pages below a block, as Linux keeps them: runs of 2^0 to 2^8 pages on the lists of a buddy
# allocator, by zone and mobility, and on top of it lists of single pages for each CPU.
#
# A CPU takes pages from its own list, which is filled `batch` at a time, and gives them back
# there. A list that has reached `high` returns its oldest pages, twice as many each time nothing
# was taken in between (Linux 6.1, mm/page_alloc.c: rmqueue_pcplist, free_unref_page_commit,
# nr_pcp_free, free_pcppages_bulk). Which page comes next decides how free memory is scattered:
# lists are filled from the smallest runs, and those lie in blocks that are used for the rest.
# This file has the lists; simvm/core/blocks.pxd joins them with the blocks.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef enum:
    RUN_ORDERS = 9           # 2^0 to 2^8 pages
    OF_CPU = 255             # in PageLists.order: a page on a CPU's list

cdef extern from *:
    """
    #define SIMVM_NO_ENTRY (~(uint32_t)0)
    """
    const uint32_t NO_ENTRY "SIMVM_NO_ENTRY"

cdef struct CpuPages:        # of one CPU and zone; by mobility
    uint32_t first[2]
    uint32_t last[2]
    uint32_t count
    uint32_t factor          # log2 of how many batches go back at once

cdef struct PageLists:
    uint32_t *next           # by page
    uint32_t *prev
    uint8_t *order           # a free run's first page: its order + 1; OF_CPU; else 0
    uint32_t head[2][2][RUN_ORDERS]     # by zone, upper and lower, mobility and order
    uint32_t tail[2][2][RUN_ORDERS]
    uint64_t pages[2]        # in runs of each zone
    CpuPages *cpus           # two for each CPU: upper and lower zone
    uint32_t n_cpus
    uint32_t cpu             # the one that runs
    uint32_t batch[2]        # by zone
    uint32_t high[2]
    uint64_t low[2]          # pages that a zone keeps while the other has more


cdef inline PageLists *lists_new(uint64_t pages, uint32_t n_cpus) noexcept nogil:
    """Lists without a page; NULL when memory is short."""
    cdef PageLists *p = <PageLists *>calloc(1, sizeof(PageLists))
    cdef int zone, kind, order
    cdef uint32_t i
    if p == NULL:
        return NULL
    # calloc maps zero pages lazily: what is never touched costs nothing.
    p.next = <uint32_t *>calloc(pages + 1, 4)
    p.prev = <uint32_t *>calloc(pages + 1, 4)
    p.order = <uint8_t *>calloc(pages + 1, 1)
    p.cpus = <CpuPages *>calloc(2 * <uint64_t>n_cpus, sizeof(CpuPages))
    p.n_cpus = n_cpus
    if p.next == NULL or p.prev == NULL or p.order == NULL or p.cpus == NULL:
        lists_free(p)
        return NULL
    for zone in range(2):
        for kind in range(2):
            for order in range(RUN_ORDERS):
                p.head[zone][kind][order] = p.tail[zone][kind][order] = NO_ENTRY
    for i in range(2 * n_cpus):
        for kind in range(2):
            p.cpus[i].first[kind] = p.cpus[i].last[kind] = NO_ENTRY
    return p


cdef inline void lists_free(PageLists *p) noexcept nogil:
    if p != NULL:
        free(p.next)
        free(p.prev)
        free(p.order)
        free(p.cpus)
        free(p)


cdef inline void run_link(PageLists *p, int zone, int kind, int order, uint32_t page,
                          bint last) noexcept nogil:
    """List a free run at the head, where the next is taken, or at the tail."""
    cdef uint32_t other
    p.order[page] = <uint8_t>(order + 1)
    p.pages[zone] += <uint64_t>1 << order
    if last:
        other = p.tail[zone][kind][order]
        p.prev[page] = other
        p.next[page] = NO_ENTRY
        p.tail[zone][kind][order] = page
        if other == NO_ENTRY:
            p.head[zone][kind][order] = page
        else:
            p.next[other] = page
        return
    other = p.head[zone][kind][order]
    p.next[page] = other
    p.prev[page] = NO_ENTRY
    p.head[zone][kind][order] = page
    if other == NO_ENTRY:
        p.tail[zone][kind][order] = page
    else:
        p.prev[other] = page


cdef inline void run_unlink(PageLists *p, int zone, int kind, int order,
                            uint32_t page) noexcept nogil:
    cdef uint32_t before = p.prev[page], after = p.next[page]
    p.order[page] = 0
    p.pages[zone] -= <uint64_t>1 << order
    if before == NO_ENTRY:
        p.head[zone][kind][order] = after
    else:
        p.next[before] = after
    if after == NO_ENTRY:
        p.tail[zone][kind][order] = before
    else:
        p.prev[after] = before


cdef inline void halve(PageLists *p, int zone, int kind, uint32_t page, int order,
                       uint32_t keep) noexcept nogil:
    """List what is left of an unlinked run once its page `keep` is taken."""
    cdef uint32_t half
    while order > 0:
        order -= 1
        half = <uint32_t>1 << order
        if keep & half:
            run_link(p, zone, kind, order, page, False)
            page += half
        else:
            run_link(p, zone, kind, order, page + half, False)


cdef inline uint32_t take_run_page(PageLists *p, int zone, int kind) noexcept nogil:
    """The first page of the smallest free run, or NO_ENTRY."""
    cdef uint32_t page
    cdef int order
    for order in range(RUN_ORDERS):
        page = p.head[zone][kind][order]
        if page != NO_ENTRY:
            run_unlink(p, zone, kind, order, page)
            halve(p, zone, kind, page, order, page)
            return page
    return NO_ENTRY


cdef inline uint32_t steal_run_page(PageLists *p, int zone, int kind) noexcept nogil:
    """A page of the largest run of this mobility, for the other one; or NO_ENTRY."""
    cdef uint32_t page
    cdef int order = RUN_ORDERS - 1
    while order >= 0:
        page = p.head[zone][kind][order]
        if page != NO_ENTRY:
            run_unlink(p, zone, kind, order, page)
            halve(p, zone, kind, page, order, page)
            return page
        order -= 1
    return NO_ENTRY


cdef inline void carve(PageLists *p, int zone, int kind, uint32_t page) noexcept nogil:
    """Take this page out of the free run that it lies in, if any."""
    cdef uint32_t start
    cdef int order
    for order in range(RUN_ORDERS):
        start = page & ~((<uint32_t>1 << order) - 1)
        if p.order[start] == order + 1:
            run_unlink(p, zone, kind, order, start)
            halve(p, zone, kind, start, order, page)
            return


cdef inline int join(PageLists *p, int zone, int kind, uint32_t page,
                     bint beside) noexcept nogil:
    """List a free page, joined with its free buddies; the order of the run that it becomes.

    RUN_ORDERS: the whole block is free, and none of it is listed any more. `beside`: so is the
    other block of its pair. A run goes to the tail whose neighbour is the next larger run, as
    they may soon join.
    """
    cdef uint32_t buddy
    cdef int order = 0
    cdef bint last
    while order < RUN_ORDERS:
        buddy = page ^ (<uint32_t>1 << order)
        if p.order[buddy] != order + 1:
            break
        run_unlink(p, zone, kind, order, buddy)
        page &= ~(<uint32_t>1 << order)
        order += 1
    if order == RUN_ORDERS:
        return order
    if order == RUN_ORDERS - 1:
        last = beside
    else:
        buddy = (page & ~(<uint32_t>1 << order)) ^ (<uint32_t>2 << order)
        last = p.order[buddy] == order + 2
    run_link(p, zone, kind, order, page, last)
    return order


cdef inline void cpu_push(PageLists *p, CpuPages *c, int kind, uint32_t page,
                          bint last) noexcept nogil:
    """Put a page on a CPU's list, where it is the next to be taken or the last."""
    cdef uint32_t other = c.last[kind] if last else c.first[kind]
    p.order[page] = OF_CPU
    p.next[page] = NO_ENTRY if last else other
    p.prev[page] = other if last else NO_ENTRY
    if other == NO_ENTRY:
        c.first[kind] = c.last[kind] = page
    elif last:
        p.next[other] = page
        c.last[kind] = page
    else:
        p.prev[other] = page
        c.first[kind] = page
    c.count += 1


cdef inline uint32_t cpu_pop(PageLists *p, CpuPages *c, int kind, bint last) noexcept nogil:
    """The next page of a CPU's list, or its oldest; NO_ENTRY when it is empty."""
    cdef uint32_t page = c.last[kind] if last else c.first[kind]
    if page == NO_ENTRY:
        return NO_ENTRY
    if last:
        c.last[kind] = p.prev[page]
    else:
        c.first[kind] = p.next[page]
    if c.first[kind] == NO_ENTRY or c.last[kind] == NO_ENTRY:
        c.first[kind] = c.last[kind] = NO_ENTRY
    elif last:
        p.next[c.last[kind]] = NO_ENTRY
    else:
        p.prev[c.first[kind]] = NO_ENTRY
    p.order[page] = 0
    c.count -= 1
    return page


cdef inline uint32_t returned(const PageLists *p, int zone, CpuPages *c) noexcept nogil:
    """How many pages a list that has reached `high` gives back: at least one batch stays."""
    cdef uint64_t most = p.high[zone] - p.batch[zone]
    cdef uint64_t n = <uint64_t>p.batch[zone] << c.factor
    if n < most:
        c.factor += 1
    return <uint32_t>max(min(n, most), p.batch[zone])


cdef inline uint64_t pages_of_cpus(const PageLists *p) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(2 * p.n_cpus):
        n += p.cpus[i].count
    return n
