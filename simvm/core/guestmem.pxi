# Part of simvm/_core.pyx: what a guest's kernel keeps of its own memory.

cdef class GuestKernel:
    """A guest's kernel over its memory: lists of pages, the page cache, pools of huge pages.

    Lists: 1 and 2 are the inactive and active pages of programs, 3 and 4 those of files, when
    `reclaims`. Files have `file_bytes` in all. Processes are numbered from 1 (their ASID).
    """

    def __cinit__(self, BlockAllocator memory, reclaims=False, uint64_t file_bytes=0):
        cdef guestmem.GuestKernel *k = &self.c
        cdef uint64_t words = (memory.c.n * 512 >> 6) + 1
        memset(k, 0, sizeof(guestmem.GuestKernel))
        self.memory = memory
        self.tables = []
        self.freed_slots = []
        k.memory = memory.c
        k.reclaims = reclaims
        k.n_file_pages = file_bytes >> 12
        # calloc maps zero pages lazily: what is never touched costs nothing.
        k.cached = <uint64_t *>calloc(k.n_file_pages + 1, 8)
        k.dirty = <uint64_t *>calloc(words, 8)
        k.referenced = <uint64_t *>calloc(words, 8)
        if (folios.folios_init(&k.folios, memory.size, memory.c.base) != 0 or k.cached == NULL
                or k.dirty == NULL or k.referenced == NULL):
            raise MemoryError()

    def __dealloc__(self):
        cdef int order
        folios.folios_free(&self.c.folios)
        free(self.c.cached)
        free(self.c.dirty)
        free(self.c.referenced)
        free(self.c.tables)
        for order in range(3):
            free(self.c.pool[order])

    def add_process(self, PageTable page_table):
        """The table of the next process: that of ASID 1 first."""
        cdef uint64_t n = len(self.tables) + 1
        cdef table.Table **more = <table.Table **>realloc(
            self.c.tables, (n + 1) * sizeof(table.Table *))
        if more == NULL:
            raise MemoryError()
        self.c.tables = more
        self.c.tables[n] = &page_table.c
        self.c.n_tables = n + 1
        self.tables.append(page_table)

    def fill_pool(self, int order, uint64_t size):
        """Set `size` bytes aside as huge pages of one order. MemoryError if that is too much."""
        cdef uint64_t n = size // table.span_of(order), i, address
        if order not in (1, 2) or size % table.span_of(order) or self.c.pool[order] != NULL:
            raise ValueError("a pool holds whole pages of 2 MiB or 1 GiB, and is filled once")
        self.c.pool[order] = <uint64_t *>calloc(n + 1, 8)
        if self.c.pool[order] == NULL:
            raise MemoryError()
        for i in range(n):
            address = blocks.alloc_1g(self.c.memory) if order == 2 else blocks.alloc_2m(
                self.c.memory)
            if address == blocks.NO_PAGE:
                raise MemoryError("guest memory cannot hold the hugetlb pool")
            self.c.pool[order][i] = address
            self.c.n_pool[order] += 1

    def free_pool_bytes(self, int order):
        """Bytes of free huge pages in a pool."""
        return self.c.n_pool[order] * table.span_of(order)

    def set_floors(self, uint64_t floor, uint64_t huge_floor, uint64_t wake_below):
        """Bytes: what a fault must leave free, what a 2 MiB fault must, when to wake kswapd."""
        self.c.floor, self.c.huge_floor = floor >> 12, huge_floor >> 12
        self.c.wake_below = wake_below >> 12

    # --- lists --------------------------------------------------------------------------

    def list_bytes(self, int which):
        """Bytes of the pages on one list."""
        return self.c.folios.pages[which] << 12

    def scan(self, int which, uint64_t pages):
        """Pages from the old end of a list, and whether each was used since the last look.

        As many as make up `pages` of 4 KiB. Forgets that they were; the list stays.
        """
        cdef uint32_t i = self.c.folios.tail[which]
        cdef uint64_t seen = 0
        cdef list found = []
        while i != blocks.NIL and seen < pages:
            found.append((i, bool(guestmem.was_used(&self.c, i))))
            seen += 512 if folios.folio_order(&self.c.folios, i) else 1
            i = self.c.folios.prev[i]
        return found

    cdef int _check(self, uint32_t folio) except -1:
        if folio >= self.c.folios.n_ids or self.c.folios.where[folio] == 0:
            raise ValueError(f"page {folio} is on no list")
        return 0

    def move(self, folio_ids, int which):
        """Put pages at the young end of a list, in the order given."""
        cdef uint32_t i
        if not 0 < which < PARTIAL_LIST:
            raise ValueError("lists are numbered 1 to 14")
        for i in folio_ids:
            self._check(i)
            folios.folio_remove(&self.c.folios, i)
            folios.folio_push(&self.c.folios, which, i)

    def list_of(self, uint32_t folio):
        """The list that a page is on; 0: none."""
        return self.c.folios.where[folio]

    def order_of(self, uint32_t folio):
        return folios.folio_order(&self.c.folios, folio)

    def address_of(self, uint32_t folio):
        return folios.folio_address(&self.c.folios, folio)

    def owner_of(self, uint32_t folio):
        """(ASID, virtual address) of a page; of a file's (0, its offset in the files)."""
        cdef uint64_t owner = self.c.folios.owner[folio]
        return owner >> 40, guestmem.va_of_owner(owner)

    # --- what programs use --------------------------------------------------------------

    def split(self, uint32_t folio, int which):
        """Split a 2 MiB page into pages at the young end of a list."""
        self._check(folio)
        if guestmem.split_huge(&self.c, folio, which) != 0:
            raise ValueError(f"page {folio} is not a mapped 2 MiB page")

    def page_out(self, uint32_t folio, uint64_t slot):
        """Replace a 4 KiB page by a swap slot; the page stays taken until it is freed."""
        self._check(folio)
        if guestmem.page_out(&self.c, folio, slot) != 0:
            raise ValueError(f"page {folio} is not a mapped 4 KiB page")

    cdef table.Table *_table(self, uint64_t asid) except NULL:
        if not 0 < asid < self.c.n_tables:
            raise ValueError(f"there is no process {asid}")
        return self.c.tables[asid]

    def page_in(self, uint64_t asid, uint64_t va, uint64_t frame, int which):
        """Map a page where a swap entry stands; its slot. KeyError when none does."""
        self._table(asid)
        cdef int64_t slot = guestmem.page_in(&self.c, asid, va, frame, which)
        if slot < 0:
            raise KeyError(f"{va:#x} is not swapped out")
        return slot

    def slot_of(self, uint64_t asid, uint64_t va):
        """The swap slot that holds a page, or None."""
        cdef table.Node *at = NULL
        cdef int level = 0
        cdef uint64_t *entry = table.find_entry(self._table(asid), va, &at, &level)
        return entry[0] >> 12 if entry[0] & table.SWAPPED else None

    @property
    def swapped_bytes(self):
        """Bytes of programs that lie on the guest's swap device."""
        return sum(each.swapped_pages for each in self.tables) << 12

    # --- pages of files -----------------------------------------------------------------

    def use_file(self, uint64_t first, uint64_t pages, bint write=False):
        """Read or write pages of the files: the numbers of those that are not in the cache."""
        cdef uint64_t page
        if first + pages > self.c.n_file_pages:
            raise ValueError("the files end before that")
        return [page for page in range(first, first + pages)
                if not guestmem.cache_use(&self.c, page, write)]

    def cache(self, uint64_t page, uint64_t frame, bint dirty=False):
        """From now on a page of guest memory holds a page of the files."""
        if page >= self.c.n_file_pages or self.c.cached[page]:
            raise ValueError(f"page {page} of the files is there already, or beyond their end")
        guestmem.cache_add(&self.c, page, frame)
        if dirty:
            guestmem.set_bit(self.c.dirty, guestmem.page_at(&self.c, frame), True)
            self.c.n_dirty += 1

    def uncache(self, uint32_t folio):
        """Take a page out of the cache: (its address, whether it has to be written).

        It stays taken until it is freed.
        """
        self._check(folio)
        if self.c.folios.owner[folio] >> 40:
            raise ValueError(f"page {folio} is no file's")
        cdef uint64_t address = folios.folio_address(&self.c.folios, folio)
        cdef bint dirty = guestmem.bit_of(self.c.dirty, guestmem.page_at(&self.c, address))
        guestmem.cache_remove(&self.c, folio)
        return address, bool(dirty)

    @property
    def cache_bytes(self):
        """Bytes of the page cache."""
        return self.c.n_cached << 12

    @property
    def dirty_bytes(self):
        """Bytes of the page cache that have to be written back."""
        return self.c.n_dirty << 12

    # --- huge pages after the fault -----------------------------------------------------

    def mapped_around(self, uint64_t asid, uint64_t va):
        """4 KiB pages mapped in the 2 MiB around `va`: None if it is not mapped by such.

        -1 when one of them is on the swap device.
        """
        cdef table.Node *ptes = guestmem.ptes_of(self._table(asid), va)
        return None if ptes == NULL else guestmem.mapped_pages(ptes)

    def collapse(self, uint64_t asid, uint64_t va, uint64_t block):
        """Map a taken 2 MiB block instead of the pages around `va`: how many were freed."""
        cdef int pages = guestmem.collapse(&self.c, self._table(asid), asid, va, block)
        if pages < 0:
            raise ValueError(f"nothing to collapse around {va:#x}")
        return pages

    def compact(self):
        """Empty one broken block: (whether it became whole, pages looked at, pages moved).

        The moved are an array of (source, target, ASID, virtual address), in bytes; those of
        files have the ASID 0.
        """
        cdef guestmem.Moved moved
        cdef bint whole = guestmem.compact(&self.c, &moved)
        cdef uint64_t[:, ::1] out = np.empty((moved.n, 4), dtype=np.uint64)
        cdef int i
        for i in range(moved.n):
            out[i, 0], out[i, 1] = moved.source[i], moved.target[i]
            out[i, 2] = moved.owner[i] >> 40
            out[i, 3] = guestmem.va_of_owner(moved.owner[i])
        return bool(whole), moved.scanned, np.asarray(out)
