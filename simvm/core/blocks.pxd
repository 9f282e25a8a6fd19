# Memory in 2 MiB blocks that can be broken into 4 KiB pages and made whole again.
#
# One allocator serves host RAM, a guest's physical memory and the slots of a swap
# device. Broken blocks are kept apart by mobility, as Linux keeps its page blocks:
# page tables (unmovable) do not sit among data pages unless memory is short.
# Whole free blocks are on the lists of a buddy allocator's two highest orders: single ones
# (order 9), and pairs that make an aligned 4 MiB (order 10, Linux' highest), in an upper and
# a lower zone. Single blocks are used before pairs, and the upper zone before the lower, as
# Linux prefers its zone Normal to DMA32. Of each list the memory that was freed last is
# reused first. A free block may be marked as reported (simvm/core/reporting.pxd). Of a broken
# block the lowest free page is taken, or the one that Linux' lists say (simvm/core/pagelists.pxd).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from simvm.core.cache cimport count_trailing_zeros
from simvm.core.pagelists cimport (NO_ENTRY, OF_CPU, RUN_ORDERS, CpuPages, PageLists, carve,
                                   cpu_pop, cpu_push, join, lists_free, returned, run_link,
                                   steal_run_page, take_run_page)

cdef enum:
    MOVABLE = 0
    UNMOVABLE = 1

cdef enum:
    BLOCK_FREE = 0
    BLOCK_BROKEN_MOVABLE = 1
    BLOCK_BROKEN_UNMOVABLE = 2
    BLOCK_WHOLE = 3      # allocated as 2 MiB
    BLOCK_GIANT = 4      # part of an allocated 1 GiB page or of a reservation

# Lists of blocks; broken ones are on the list of their state's number if they have free pages.
cdef enum:
    UPPER = 3            # whole free blocks of the upper zone: single; pairs are on the next one
    LOWER = 5            # of the lower zone
    BLOCK_LISTS = 7      # list 0 is none

cdef extern from *:
    """
    #define SIMVM_NO_PAGE (~(uint64_t)0)
    #define SIMVM_NIL (~(uint32_t)0)
    """
    const uint64_t NO_PAGE "SIMVM_NO_PAGE"
    const uint32_t NIL "SIMVM_NIL"         # end of a list

cdef struct Blocks:
    uint64_t base            # address of the first byte
    uint32_t n
    uint64_t free_pages      # 4 KiB pages, also those in free blocks
    uint32_t free_blocks
    uint64_t *used           # 8 words a block: bit set = page in use (broken blocks)
    uint16_t *free_in        # free pages of a broken block
    uint8_t *state
    uint8_t *reported        # free blocks that the host has been told of
    uint32_t *next
    uint32_t *prev
    uint32_t head[BLOCK_LISTS]
    uint32_t tail[BLOCK_LISTS]
    uint32_t listed[BLOCK_LISTS]  # blocks on each list
    uint32_t lower           # so many blocks are the lower zone
    uint64_t freed           # how often a block has become free
    uint16_t *whole_in_giga  # free blocks in each aligned 1 GiB
    uint64_t *stale          # a bit per page: freed with what was in it; NULL: nobody asks
    PageLists *lists         # of pages below a block; those of CPUs count as used. NULL: none


cdef inline void block_link(Blocks *b, int which, uint32_t i) noexcept nogil:
    """Put a block at the head of a list."""
    cdef uint32_t first = b.head[which]
    b.next[i] = first
    b.prev[i] = NIL
    if first != NIL:
        b.prev[first] = i
    else:
        b.tail[which] = i
    b.head[which] = i
    b.listed[which] += 1


cdef inline void block_link_last(Blocks *b, int which, uint32_t i) noexcept nogil:
    cdef uint32_t last = b.tail[which]
    b.prev[i] = last
    b.next[i] = NIL
    if last != NIL:
        b.next[last] = i
    else:
        b.head[which] = i
    b.tail[which] = i
    b.listed[which] += 1


cdef inline void block_unlink(Blocks *b, int which, uint32_t i) noexcept nogil:
    if b.prev[i] != NIL:
        b.next[b.prev[i]] = b.next[i]
    else:
        b.head[which] = b.next[i]
    if b.next[i] != NIL:
        b.prev[b.next[i]] = b.prev[i]
    else:
        b.tail[which] = b.prev[i]
    b.listed[which] -= 1


cdef inline int blocks_init(Blocks *b, uint64_t size, uint64_t base,
                            uint64_t lower) noexcept nogil:
    """All of `size` bytes free, of which the lowest `lower` (whole pairs) are used last."""
    cdef uint32_t i
    cdef int which
    b.base = base
    b.lower = <uint32_t>(lower >> 21)
    b.n = <uint32_t>(size >> 21)
    b.free_pages = <uint64_t>b.n * 512
    b.free_blocks = b.n
    b.used = <uint64_t *>calloc(<uint64_t>b.n * 8 + 1, 8)
    b.free_in = <uint16_t *>calloc(b.n + 1, 2)
    b.state = <uint8_t *>calloc(b.n + 1, 1)
    b.reported = <uint8_t *>calloc(b.n + 1, 1)
    b.next = <uint32_t *>calloc(b.n + 1, 4)
    b.prev = <uint32_t *>calloc(b.n + 1, 4)
    b.whole_in_giga = <uint16_t *>calloc((b.n >> 9) + 1, 2)
    b.stale = NULL
    b.lists = NULL
    for which in range(BLOCK_LISTS):
        b.head[which] = b.tail[which] = NIL
        b.listed[which] = 0
    b.freed = 0
    if (b.used == NULL or b.free_in == NULL or b.state == NULL or b.reported == NULL
            or b.next == NULL or b.prev == NULL or b.whole_in_giga == NULL):
        return -1
    for i in range(b.n):
        block_link_last(b, list_of(b, i, paired(b, i)), i)
        b.whole_in_giga[i >> 9] += 1
    return 0


cdef inline void blocks_free(Blocks *b) noexcept nogil:
    free(b.used)
    free(b.free_in)
    free(b.state)
    free(b.reported)
    free(b.next)
    free(b.prev)
    free(b.whole_in_giga)
    free(b.stale)
    lists_free(b.lists)


cdef inline uint32_t block_of(const Blocks *b, uint64_t address) noexcept nogil:
    return <uint32_t>((address - b.base) >> 21)


cdef inline bint paired(const Blocks *b, uint32_t i) noexcept nogil:
    """Whether the other half of a block's aligned 4 MiB is a whole free block."""
    return (i ^ 1) < b.n and b.state[i ^ 1] == BLOCK_FREE


cdef inline int list_of(const Blocks *b, uint32_t i, bint pair) noexcept nogil:
    """The list of a whole free block. The halves of a pair lie side by side, the lower first."""
    return (LOWER if i < b.lower else UPPER) + pair


cdef inline uint32_t first_whole(const Blocks *b) noexcept nogil:
    """The block to use next, or NIL."""
    cdef int which
    for which in range(UPPER, BLOCK_LISTS):
        if b.head[which] != NIL:
            return b.head[which]
    return NIL
cdef inline void mark_stale(Blocks *b, uint64_t address, uint64_t pages) noexcept nogil:
    """Pages are given back with what was in them, if somebody asks for that later."""
    cdef uint64_t page = (address - b.base) >> 12, end = page + pages
    if b.stale == NULL:
        return
    while page < end:
        if page & 63 == 0 and page + 64 <= end:
            b.stale[page >> 6] = ~<uint64_t>0
            page += 64
        else:
            b.stale[page >> 6] |= <uint64_t>1 << (page & 63)
            page += 1


cdef inline bint take_stale(Blocks *b, uint64_t address, uint64_t pages) noexcept nogil:
    """Whether one of the pages has something in it; they are somebody's now."""
    cdef uint64_t page = (address - b.base) >> 12, end = page + pages, bits = 0, mask
    if b.stale == NULL:
        return False
    while page < end:
        if page & 63 == 0 and page + 64 <= end:
            bits |= b.stale[page >> 6]
            b.stale[page >> 6] = 0
            page += 64
        else:
            mask = <uint64_t>1 << (page & 63)
            bits |= b.stale[page >> 6] & mask
            b.stale[page >> 6] &= ~mask
            page += 1
    return bits != 0


cdef inline void take_whole(Blocks *b, uint32_t i, uint8_t state) noexcept nogil:
    """A free block is free no more. What is left of a pair has to be reported anew."""
    cdef bint pair = paired(b, i)
    block_unlink(b, list_of(b, i, pair), i)
    b.reported[i] = 0
    if pair:
        block_unlink(b, list_of(b, i ^ 1, True), i ^ 1)
        b.reported[i ^ 1] = 0
        block_link(b, list_of(b, i ^ 1, False), i ^ 1)
    b.free_blocks -= 1
    b.whole_in_giga[i >> 9] -= 1
    b.state[i] = state


cdef inline void give_whole(Blocks *b, uint32_t i) noexcept nogil:
    """A block is free; a pair that it completes has to be reported anew."""
    b.freed += 1
    if merge(b, i):
        block_link(b, list_of(b, i, True), i | 1)
        block_link(b, list_of(b, i, True), i & ~<uint32_t>1)
    else:
        block_link(b, list_of(b, i, False), i)


cdef inline bint merge(Blocks *b, uint32_t i) noexcept nogil:
    """Mark a block as free, and take its other half off its list if that is free as well."""
    cdef bint pair = paired(b, i)
    b.state[i] = BLOCK_FREE
    b.free_blocks += 1
    b.whole_in_giga[i >> 9] += 1
    if pair:
        block_unlink(b, list_of(b, i ^ 1, False), i ^ 1)
        b.reported[i ^ 1] = 0
    return pair


cdef inline uint64_t alloc_2m(Blocks *b) noexcept nogil:
    """Address of a free block, or NO_PAGE."""
    cdef uint32_t i = first_whole(b)
    if i == NIL:
        return NO_PAGE
    take_whole(b, i, BLOCK_WHOLE)
    b.free_pages -= 512
    return b.base + (<uint64_t>i << 21)


cdef inline void break_open(Blocks *b, uint32_t i, int mobility) noexcept nogil:
    """Turn a free block into 512 free pages."""
    cdef int w
    take_whole(b, i, BLOCK_BROKEN_MOVABLE + mobility)
    b.free_in[i] = 512
    for w in range(8):
        b.used[<uint64_t>i * 8 + w] = 0
    block_link(b, 1 + mobility, i)
    if b.lists != NULL:
        run_link(b.lists, zone_of(b, i), mobility, RUN_ORDERS - 1, i * 512 + 256, False)
        run_link(b.lists, zone_of(b, i), mobility, RUN_ORDERS - 1, i * 512, False)


cdef inline uint64_t alloc_4k(Blocks *b, int mobility) noexcept nogil:
    """Address of a free page, or NO_PAGE; breaks a block, or mixes mobilities, if it must."""
    cdef uint32_t i
    if b.lists != NULL:
        return alloc_listed(b, mobility)
    i = b.head[1 + mobility]
    if i == NIL:
        i = first_whole(b)
        if i != NIL:
            break_open(b, i, mobility)
        else:
            i = b.head[2 - mobility]
            if i == NIL:
                return NO_PAGE
    return alloc_in(b, i)


cdef inline uint64_t alloc_in(Blocks *b, uint32_t i) noexcept nogil:
    """Address of the lowest free page of a broken block that has one."""
    cdef uint64_t *words = b.used + <uint64_t>i * 8
    cdef uint64_t free_bits
    cdef int w = 0
    while words[w] == 0xFFFFFFFFFFFFFFFFULL:
        w += 1
    free_bits = ~words[w]
    words[w] |= free_bits & (~free_bits + 1)
    b.free_in[i] -= 1
    b.free_pages -= 1
    if b.free_in[i] == 0:
        block_unlink(b, b.state[i], i)
    w = w * 64 + count_trailing_zeros(free_bits)
    return b.base + (<uint64_t>i << 21) + (<uint64_t>w << 12)


cdef inline int take_page(Blocks *b, uint64_t address, int mobility) noexcept nogil:
    """Take this page and no other, breaking its block if that is free; -1 when it is not free."""
    cdef uint32_t i = block_of(b, address)
    cdef uint64_t page = ((address - b.base) >> 12) & 511
    if i >= b.n or b.state[i] >= BLOCK_WHOLE:
        return -1
    if b.state[i] == BLOCK_FREE:
        break_open(b, i, mobility)
    if (b.used[<uint64_t>i * 8 + (page >> 6)] >> (page & 63)) & 1:
        return -1
    take_run(b, i, <int>page, 1, 1)
    return 0


cdef inline uint64_t alloc_run(Blocks *b, int pages, int mobility) noexcept nogil:
    """Address of `pages` free pages in a row, a power of two up to 512, aligned; or NO_PAGE.

    Takes them from a block that is broken already, else from a whole one.
    """
    cdef uint64_t run = (<uint64_t>1 << (min(pages, 64) - 1) << 1) - 1
    cdef uint32_t i = b.head[1 + mobility]
    cdef int at
    while i != NIL:
        at = 0
        while at < 512:
            if run_is_free(b.used + <uint64_t>i * 8, at, pages, run):
                return take_run(b, i, at, pages, run)
            at += pages
        i = b.next[i]
    i = first_whole(b)
    if i == NIL:
        return NO_PAGE
    break_open(b, i, mobility)
    return take_run(b, i, 0, pages, run)


cdef inline bint run_is_free(const uint64_t *words, int at, int pages, uint64_t run) noexcept nogil:
    cdef int w
    for w in range(at >> 6, ((at + pages - 1) >> 6) + 1):
        if words[w] & (run << (at & 63)):
            return False
    return True


cdef inline uint64_t take_run(Blocks *b, uint32_t i, int at, int pages,
                              uint64_t run) noexcept nogil:
    cdef int w
    if b.lists != NULL:
        for w in range(at, at + pages):
            carve(b.lists, zone_of(b, i), kind_of(b, i), i * 512 + w)
    for w in range(at >> 6, ((at + pages - 1) >> 6) + 1):
        b.used[<uint64_t>i * 8 + w] |= run << (at & 63)
    b.free_in[i] -= pages
    b.free_pages -= pages
    if b.free_in[i] == 0:
        block_unlink(b, b.state[i], i)
    return b.base + (<uint64_t>i << 21) + (<uint64_t>at << 12)


cdef inline int free_run(Blocks *b, uint64_t address, int pages) noexcept nogil:
    """Give pages in a row back; -1 when one of them is not in use."""
    cdef int i, status = 0
    for i in range(pages):
        status |= free_4k(b, address + <uint64_t>i * 4096)
    return status


cdef inline int free_4k(Blocks *b, uint64_t address) noexcept nogil:
    """Give a page back; -1 when it is not in use (a double free)."""
    cdef uint32_t i = block_of(b, address)
    cdef uint64_t page = ((address - b.base) >> 12) & 511
    cdef uint64_t *word = b.used + <uint64_t>i * 8 + (page >> 6)
    cdef uint64_t bit = <uint64_t>1 << (page & 63)
    if i >= b.n or not (b.state[i] == BLOCK_BROKEN_MOVABLE or b.state[i] == BLOCK_BROKEN_UNMOVABLE):
        return -1
    if not word[0] & bit:
        return -1
    if b.lists != NULL:
        return free_listed(b, i * 512 + <uint32_t>page)
    mark_stale(b, address, 1)
    word[0] &= ~bit
    b.free_in[i] += 1
    b.free_pages += 1
    if b.free_in[i] == 1:
        block_link(b, b.state[i], i)
    if b.free_in[i] == 512:
        block_unlink(b, b.state[i], i)
        give_whole(b, i)
    return 0


cdef inline int zone_of(const Blocks *b, uint32_t i) noexcept nogil:
    return i < b.lower


cdef inline int kind_of(const Blocks *b, uint32_t i) noexcept nogil:
    return b.state[i] - BLOCK_BROKEN_MOVABLE


cdef inline uint64_t free_of_zone(const Blocks *b, int zone) noexcept nogil:
    """Free pages of a zone, without what CPUs have on their lists."""
    cdef int which = LOWER if zone else UPPER
    return <uint64_t>(b.listed[which] + b.listed[which + 1]) * 512 + b.lists.pages[zone]


cdef inline uint32_t take_single(Blocks *b, int zone, int mobility) noexcept nogil:
    """A page of a zone's smallest free run; breaks a block, or mixes mobilities, if it must."""
    cdef int which = LOWER if zone else UPPER
    cdef uint32_t page = take_run_page(b.lists, zone, mobility), i
    if page == NO_ENTRY:
        i = b.head[which] if b.head[which] != NIL else b.head[which + 1]
        if i != NIL:
            break_open(b, i, mobility)
            page = take_run_page(b.lists, zone, mobility)
        else:
            page = steal_run_page(b.lists, zone, 1 - mobility)
    if page == NO_ENTRY:
        return NO_ENTRY
    i = page >> 9
    b.used[<uint64_t>i * 8 + ((page & 511) >> 6)] |= <uint64_t>1 << (page & 63)
    b.free_in[i] -= 1
    b.free_pages -= 1
    if b.free_in[i] == 0:
        block_unlink(b, b.state[i], i)
    return page


cdef inline void give_single(Blocks *b, uint32_t page) noexcept nogil:
    """A used page is free; it joins with its buddies, up to a whole block."""
    cdef uint32_t i = page >> 9
    b.used[<uint64_t>i * 8 + ((page & 511) >> 6)] &= ~(<uint64_t>1 << (page & 63))
    b.free_in[i] += 1
    b.free_pages += 1
    if b.free_in[i] == 1:
        block_link(b, b.state[i], i)
    if join(b.lists, zone_of(b, i), kind_of(b, i), page, paired(b, i)) == RUN_ORDERS:
        block_unlink(b, b.state[i], i)
        give_whole(b, i)


cdef inline uint32_t take_of_cpu(Blocks *b, int zone, int mobility) noexcept nogil:
    """The next page of the running CPU's list, which is filled when it is empty."""
    cdef CpuPages *c = b.lists.cpus + 2 * b.lists.cpu + zone
    cdef uint32_t page, _
    c.factor >>= 1
    if c.first[mobility] == NO_ENTRY:
        for _ in range(b.lists.batch[zone]):
            page = take_single(b, zone, mobility)
            if page == NO_ENTRY:
                break
            cpu_push(b.lists, c, mobility, page, True)
    return cpu_pop(b.lists, c, mobility, False)


cdef inline uint64_t alloc_listed(Blocks *b, int mobility) noexcept nogil:
    """As `alloc_4k`: of the upper zone, then the lower, while they are above their low marks."""
    cdef uint32_t page = NO_ENTRY
    cdef int zone, mark
    for mark in range(2):
        for zone in range(2):
            if mark == 1 or free_of_zone(b, zone) > b.lists.low[zone]:
                page = take_of_cpu(b, zone, mobility)
                if page != NO_ENTRY:
                    return b.base + (<uint64_t>page << 12)
    return alloc_listed(b, mobility) if drain_cpus(b) else NO_PAGE


cdef inline int free_listed(Blocks *b, uint32_t page) noexcept nogil:
    """Put a used page on the running CPU's list, and return the oldest of one that is full."""
    cdef int zone = zone_of(b, page >> 9), kind = kind_of(b, page >> 9)
    cdef CpuPages *c = b.lists.cpus + 2 * b.lists.cpu + zone
    if b.lists.order[page] == OF_CPU:
        return -1
    mark_stale(b, b.base + (<uint64_t>page << 12), 1)
    cpu_push(b.lists, c, kind, page, False)
    if c.count >= b.lists.high[zone]:
        drain(b, c, kind, returned(b.lists, zone, c))
    return 0


cdef inline void drain(Blocks *b, CpuPages *c, int kind, uint32_t pages) noexcept nogil:
    """Return the oldest pages of a CPU's list, those of one mobility first."""
    cdef uint32_t page
    while pages > 0 and c.count > 0:
        page = cpu_pop(b.lists, c, kind, True)
        if page == NO_ENTRY:
            kind = 1 - kind
            continue
        give_single(b, page)
        pages -= 1


cdef inline bint drain_cpus(Blocks *b) noexcept nogil:
    """Return the pages of all CPUs (drain_all_pages); whether there were any."""
    cdef bint some = False
    cdef uint32_t i
    for i in range(2 * b.lists.n_cpus):
        some = some or b.lists.cpus[i].count > 0
        drain(b, b.lists.cpus + i, MOVABLE, b.lists.cpus[i].count)
    return some


cdef inline int free_2m(Blocks *b, uint64_t address) noexcept nogil:
    cdef uint32_t i = block_of(b, address)
    if i >= b.n or b.state[i] != BLOCK_WHOLE:
        return -1
    mark_stale(b, address, 512)
    b.free_pages += 512
    give_whole(b, i)
    return 0


cdef inline int break_2m(Blocks *b, uint64_t address) noexcept nogil:
    """Turn an allocated block into 512 allocated movable pages."""
    cdef uint32_t i = block_of(b, address)
    cdef int w
    if i >= b.n or b.state[i] != BLOCK_WHOLE:
        return -1
    b.state[i] = BLOCK_BROKEN_MOVABLE
    b.free_in[i] = 0
    for w in range(8):
        b.used[<uint64_t>i * 8 + w] = 0xFFFFFFFFFFFFFFFFULL
    return 0


cdef inline uint64_t alloc_1g(Blocks *b) noexcept nogil:
    """Address of an aligned free 1 GiB, from the top down, or NO_PAGE."""
    cdef uint32_t giga = b.n >> 9
    cdef uint32_t i
    while giga > 0:
        giga -= 1
        if b.whole_in_giga[giga] == 512:
            for i in range(giga << 9, (giga + 1) << 9):
                take_whole(b, i, BLOCK_GIANT)
            b.free_pages -= 512 * 512
            return b.base + (<uint64_t>giga << 30)
    return NO_PAGE


cdef inline int free_1g(Blocks *b, uint64_t address) noexcept nogil:
    cdef uint32_t first = block_of(b, address)
    cdef uint32_t i
    if first + 512 > b.n or b.state[first] != BLOCK_GIANT:
        return -1
    mark_stale(b, address, 512 * 512)
    for i in range(first + 512, first, -1):
        give_whole(b, i - 1)
    b.free_pages += 512 * 512
    return 0


cdef inline int reserve_low(Blocks *b, uint64_t size) noexcept nogil:
    """Take the lowest `size` bytes (rounded up to blocks) for good; -1 when not free."""
    cdef uint32_t n = <uint32_t>((size + (1 << 21) - 1) >> 21)
    cdef uint32_t i
    if n > b.n:
        return -1
    for i in range(n):
        if b.state[i] != BLOCK_FREE:
            return -1
    for i in range(n):
        take_whole(b, i, BLOCK_GIANT)
    b.free_pages -= <uint64_t>n * 512
    return 0


cdef inline int claim_page(Blocks *b, uint64_t address, int mobility) noexcept nogil:
    """Take one page of a free block, which is broken for it; -1 when the block is not free."""
    cdef uint32_t i = block_of(b, address)
    cdef uint64_t page = ((address - b.base) >> 12) & 511
    if i >= b.n or b.state[i] != BLOCK_FREE:
        return -1
    break_open(b, i, mobility)
    take_run(b, i, <int>page, 1, 1)
    return 0


cdef inline uint64_t count_free(const Blocks *b) noexcept nogil:
    """Free pages, counted bit by bit: the thorough check of `free_pages`."""
    cdef uint64_t pages = 0, word
    cdef uint32_t i
    cdef int w
    for i in range(b.n):
        if b.state[i] == BLOCK_FREE:
            pages += 512
        elif b.state[i] == BLOCK_BROKEN_MOVABLE or b.state[i] == BLOCK_BROKEN_UNMOVABLE:
            for w in range(8):
                word = ~b.used[<uint64_t>i * 8 + w]
                while word:
                    word &= word - 1
                    pages += 1
    return pages
