# Part of simvm/_core.pyx: memory in blocks.

cdef class BlockAllocator:
    """`size` bytes of memory from `base` up, in 2 MiB blocks (a rest is not used).

    The lowest `lower` bytes are a zone of their own, which is used last.
    """

    def __cinit__(self, size, base=0, lower=0):
        if size < 0 or size >= MAX_ADDRESS or base < 0 or base % (1 << 30):
            raise ValueError("size must be in [0, 2^46) and base a multiple of 1 GiB")
        if not 0 <= lower < MAX_ADDRESS or lower % (1 << 22):
            raise ValueError("lower must be a multiple of 4 MiB below 2^46")
        self.c = &self.own
        if blocks.blocks_init(self.c, size, base, lower) != 0:
            raise MemoryError()

    def __dealloc__(self):
        blocks.blocks_free(&self.own)

    def allocate_4k(self, movable=True):
        """Address of a page. MemoryError when none is free."""
        return self._given(blocks.alloc_4k(self.c, blocks.MOVABLE if movable else blocks.UNMOVABLE))

    def allocate_2m(self):
        """Address of a whole block. MemoryError when none is whole."""
        return self._given(blocks.alloc_2m(self.c))

    def allocate_1g(self):
        """Address of an aligned 1 GiB. MemoryError when none is whole."""
        return self._given(blocks.alloc_1g(self.c))

    def _given(self, uint64_t address):
        if address == blocks.NO_PAGE:
            raise MemoryError("no free page of that size")
        return address

    def free_4k(self, uint64_t address):
        """Give a page back. ValueError when it is not in use."""
        if address < self.c.base or blocks.free_4k(self.c, address) != 0:
            raise ValueError(f"page {address:#x} is not in use")

    def free_2m(self, uint64_t address):
        """Give a block back. ValueError when it is not allocated whole."""
        if address < self.c.base or blocks.free_2m(self.c, address) != 0:
            raise ValueError(f"block {address:#x} is not in use")

    def free_1g(self, uint64_t address):
        """Give 1 GiB back. ValueError when it is not allocated so."""
        if address < self.c.base or blocks.free_1g(self.c, address) != 0:
            raise ValueError(f"1 GiB page {address:#x} is not in use")

    def break_2m(self, uint64_t address):
        """Turn an allocated block into 512 allocated pages."""
        if address < self.c.base or blocks.break_2m(self.c, address) != 0:
            raise ValueError(f"block {address:#x} is not in use")

    def free_many(self, const uint64_t[::1] addresses):
        """Give 4 KiB pages back."""
        cdef Py_ssize_t i
        for i in range(addresses.shape[0]):
            if blocks.free_4k(self.c, addresses[i]) != 0:
                raise ValueError(f"page {addresses[i]:#x} is not in use")

    def allocate_run(self, int pages, movable=True):
        """Address of pages in a row, aligned to their size. MemoryError when there is none."""
        check_run(pages)
        return self._given(blocks.alloc_run(
            self.c, pages, blocks.MOVABLE if movable else blocks.UNMOVABLE))

    def free_run(self, uint64_t address, int pages):
        """Give pages in a row back. ValueError when one of them is not in use."""
        check_run(pages)
        if address < self.c.base or blocks.free_run(self.c, address, pages) != 0:
            raise ValueError(f"pages from {address:#x} on are not all in use")

    def claim(self, uint64_t address, movable=True):
        """Take the page at `address`, of a block that is free whole. ValueError when it is not."""
        cdef int mobility = blocks.MOVABLE if movable else blocks.UNMOVABLE
        if address < self.c.base or blocks.claim_page(self.c, address, mobility) != 0:
            raise ValueError(f"the block of {address:#x} is not free")

    def use_lists(self, zones, int cpus):
        """Keep pages below a block on Linux' lists, with one for each CPU, from now on.

        `zones`: of the upper and the lower, pages that fill a CPU's list at a time, how many it
        holds at most, and how many the zone keeps free while the other has more. Pages on the
        list of a CPU count as used. ValueError when a block is broken already.
        """
        cdef uint32_t i
        cdef int zone
        if self.c.lists != NULL or cpus < 1:
            raise ValueError("lists are set up once, for one CPU or more")
        for i in range(self.c.n):
            if 0 < self.c.state[i] < blocks.BLOCK_WHOLE:
                raise ValueError("lists are set up before a page is taken")
        for batch, high, low in zones:
            if not 0 < batch <= high - batch or low < 0:
                raise ValueError("a list holds two batches or more")
        self.c.lists = pagelists.lists_new(<uint64_t>self.c.n * 512, cpus)
        if self.c.lists == NULL:
            raise MemoryError()
        for zone in range(2):
            batch, high, low = zones[zone]
            self.c.lists.batch[zone], self.c.lists.high[zone] = batch, high
            self.c.lists.low[zone] = low

    def run_on(self, uint32_t cpu):
        """Pages come from the list of this CPU from now on, and go there. Without lists: no-op."""
        if self.c.lists != NULL:
            if cpu >= self.c.lists.n_cpus:
                raise ValueError(f"there is no CPU {cpu}")
            self.c.lists.cpu = cpu

    def drain(self):
        """Give the pages on the lists of all CPUs back; whether there were any."""
        return self.c.lists != NULL and bool(blocks.drain_cpus(self.c))

    @property
    def cpu_list_bytes(self):
        """Bytes on the lists of CPUs."""
        return 0 if self.c.lists == NULL else pagelists.pages_of_cpus(self.c.lists) << 12

    def track_reuse(self):
        """Remember from now on which free pages have something in them: `is_stale`."""
        if self.c.stale == NULL:
            # calloc maps zero pages lazily: what is never touched costs nothing.
            self.c.stale = <uint64_t *>calloc((<uint64_t>self.c.n * 512 >> 6) + 1, 8)
            if self.c.stale == NULL:
                raise MemoryError()

    def is_stale(self, uint64_t address):
        """Whether a page was given back and may hold what its last user wrote."""
        cdef uint64_t page = (address - self.c.base) >> 12
        return self.c.stale != NULL and bool((self.c.stale[page >> 6] >> (page & 63)) & 1)

    def reserve_low(self, uint64_t size):
        """Take the lowest `size` bytes for good. MemoryError when they are not free."""
        if blocks.reserve_low(self.c, size) != 0:
            raise MemoryError(f"cannot reserve {size} bytes")

    @property
    def size(self):
        """Bytes in all."""
        return <uint64_t>self.c.n << 21

    @property
    def free_bytes(self):
        """Free bytes, in blocks whole and broken."""
        return self.c.free_pages << 12

    @property
    def free_blocks(self):
        """Whole free blocks."""
        return self.c.free_blocks

    def free_blocks_from(self, uint64_t address, int most):
        """Addresses of the first whole free blocks from an address on, in order."""
        cdef list found = []
        cdef uint32_t i = vacate.next_free_block(self.c, blocks.block_of(self.c, address))
        while i != blocks.NIL and len(found) < most:
            found.append(self.c.base + (<uint64_t>i << 21))
            i = vacate.next_free_block(self.c, i + 1)
        return found

    def vacate(self, uint64_t start, uint64_t size, tables, GuestKernel kernel=None):
        """Allocate the blocks of a range whole, and move what `tables` map there elsewhere.

        And what the page cache of `kernel` holds there.
        Addresses of those that could be, and where pages of 4 KiB and of 2 MiB have gone.
        Page tables, 1 GiB pages and what no table maps stay, and so does their block. A leaf
        that has moved needs a flush.
        """
        cdef vacate.Vacating v
        cdef PageTable each
        cdef uint32_t k
        cdef uint64_t[::1] ours = np.zeros((size >> 21) * 8 + 1, dtype=np.uint64)
        cdef uint64_t[::1] pages = np.empty((size >> 12) + 1, dtype=np.uint64)
        cdef uint64_t[::1] large = np.empty((size >> 21) + 1, dtype=np.uint64)
        if start % (1 << 21) or size % (1 << 21) or start < self.c.base:
            raise ValueError("a range to vacate is whole blocks")
        if start + size > self.c.base + self.size:
            raise ValueError("a range to vacate must be memory that there is")
        memset(&v, 0, sizeof(v))
        v.b, v.first, v.n = self.c, blocks.block_of(self.c, start), <uint32_t>(size >> 21)
        v.ours, v.to[0], v.to[1] = &ours[0], &pages[0], &large[0]
        v.kernel = NULL if kernel is None else &kernel.c
        if vacate.isolate_free(&v):
            for each in tables:
                vacate.move_below(&v, each.c.root)
            if kernel is not None:
                vacate.move_files(&v)
        vacate.settle(&v)
        done = [start + (<uint64_t>k << 21) for k in range(v.n) if vacate.all_ours(&v, k)]
        return done, (
            np.asarray(pages)[: v.moved[0]].tolist(), np.asarray(large)[: v.moved[1]].tolist()
        )

    @property
    def blocks_freed(self):
        """How often a block of 2 MiB has become free, put back ones not counted."""
        return self.c.freed

    def free_listed(self, bint lower, bint pairs):
        """Entries of a free list: single blocks, or pairs of 4 MiB, of one zone."""
        return self.c.listed[reporting.free_list(lower, pairs)] >> pairs

    def free_in_zone(self, bint lower):
        """Free bytes of one zone, in blocks whole and broken."""
        return reporting.count_zone(self.c, lower) << 12

    def has_unreported(self, bint lower, bint pairs):
        """Whether a free list has an entry that is not reported."""
        cdef uint32_t first = self.c.head[reporting.free_list(lower, pairs)]
        return reporting.next_unreported(self.c, pairs, first) != blocks.NIL

    def isolate(self, bint lower, bint pairs, int most):
        """Take up to `most` entries that are not reported off a free list: their addresses."""
        cdef uint64_t[::1] out = np.empty(max(most, 0), dtype=np.uint64)
        cdef int n = reporting.isolate(self.c, lower, pairs, &out[0], most) if most > 0 else 0
        return [out[i] for i in range(n)]

    def put_back(self, addresses, bint pairs):
        """Give back what `isolate` took, as reported. ValueError when it is not allocated."""
        for address in addresses:
            if address < self.c.base or reporting.put_back(self.c, address, pairs) != 0:
                raise ValueError(f"block {address:#x} is not in use")

    def reported_bytes(self):
        """Bytes in free blocks that are marked as reported."""
        return reporting.count_reported(self.c) << 21

    def recount(self):
        """Free bytes counted page by page: the thorough check of `free_bytes`."""
        return blocks.count_free(self.c) << 12


cdef int check_run(int pages) except -1:
    if not 1 <= pages <= 512 or pages & (pages - 1):
        raise ValueError(f"pages (={pages}) must be a power of two, at most 512")
    return 0
