# Part of simvm/_core.pyx: host memory.

cimport simvm.core.compact as compact

RUN_NO_BLOCK = vcpu.RUN_NO_BLOCK

cdef class HostMemory:
    """Host RAM: frames, folios and their lists, a hugetlb pool, and a `tier` of slower memory.

    Lists are numbered: 0 is none; 1 to 12 belong to the reclaim policy, and each group of owners
    has its own. `LAZY_LIST` is what guests have freed, `UNEVICTABLE_LIST` what they have locked;
    these are common to all. Folio ids are opaque; `order_of` and `owner_of` describe them.
    """

    def __cinit__(self, size, tier=0):
        memset(&self.c, 0, sizeof(vcpu.Host))
        self.frames = BlockAllocator(0)
        base = -(-size // (1 << 30)) << 30
        if size % (1 << 21) or size <= 0 or base + tier >= 1 << 43:
            raise ValueError("host memory must be a multiple of 2 MiB below 8 TiB")
        if blocks.blocks_init(&self.c.frames, size, 0, 0) != 0:
            raise MemoryError()
        if tier and blocks.blocks_init(&self.c.tier, tier, base, 0) != 0:
            raise MemoryError()
        if folios.folios_init(&self.c.folios, base + tier if tier else size, 0) != 0:
            raise MemoryError()
        self.tier = BlockAllocator(0)
        self.frames.c, self.tier.c = &self.c.frames, &self.c.tier
        self.frames.keep = self.tier.keep = self
        self.backings = {}

    def __dealloc__(self):
        blocks.blocks_free(&self.c.frames)
        blocks.blocks_free(&self.c.tier)
        folios.folios_free(&self.c.folios)
        free(self.c.pool)

    def fill_pool(self, int order, uint64_t size):
        """Set `size` bytes aside as hugetlb pages of one order. MemoryError if too much."""
        cdef uint64_t n = size // table.span_of(order)
        cdef uint64_t i, address
        if order not in (1, 2) or size % table.span_of(order):
            raise ValueError("a hugetlb pool holds whole pages of 2 MiB or 1 GiB")
        self.c.pool = <uint64_t *>calloc(n + 1, 8)
        if self.c.pool == NULL:
            raise MemoryError()
        self.c.pool_order = order
        for i in range(n):
            if order == 2:
                address = blocks.alloc_1g(&self.c.frames)
            else:
                address = blocks.alloc_2m(&self.c.frames)
            if address == blocks.NO_PAGE:
                raise MemoryError("host memory cannot hold the hugetlb pool")
            self.c.pool[i] = address
        self.c.n_pool = n

    def set_floors(self, uint64_t floor, uint64_t huge_floor, uint64_t wake_below):
        """Bytes: what a fault must leave free, what a 2 MiB fault must, when to wake kswapd."""
        self.c.floor, self.c.huge_floor = floor >> 12, huge_floor >> 12
        self.c.wake_below = wake_below >> 12

    def add_group(self):
        """A new group of owners, with lists of its own: its number. Group 0 is there already."""
        cdef int group = folios.folios_add_group(&self.c.folios)
        if group < 0:
            raise MemoryError()
        return group

    def ask_for_block(self, bint on):
        """Whether a fault that finds no 2 MiB block stops its run before it falls back."""
        self.c.ask_for_block = on

    def scatter(self, const uint64_t[::1] addresses, bint movable):
        """Take these pages for the host itself. MemoryError when one is not free."""
        cdef Py_ssize_t i
        cdef uint32_t page
        for i in range(addresses.shape[0]):
            if blocks.take_page(&self.c.frames, addresses[i],
                                blocks.MOVABLE if movable else blocks.UNMOVABLE) != 0:
                raise MemoryError(f"page {addresses[i]:#x} is not free")
            page = folios.folio_id(&self.c.folios, addresses[i], 0)
            self.c.folios.owner[page] = compact.HOSTS_OWN if movable else compact.HOSTS_FIXED

    def claim(self, uint64_t[::1] claimed):
        """As `Backing.claim`, for the pages that the host took for itself by `scatter`."""
        return bool(compact.claim_hosts(&self.c, &claimed[0]))

    def next_to_empty(self, uint32_t at, uint32_t end):
        """The first block in [at, end) whose pages in use can all be moved; `end` if none."""
        while at < end and not compact.block_moves(&self.c, at):
            at += 1
        return at

    def empty(self, uint32_t block, uint32_t cursor):
        """Move the pages of a block to free ones of broken blocks, from `cursor` down to it.

        Returns what moved, as (owner, address) of each page (owner 0: the host's own), the
        cursor where the search goes on, and whether the block is free now.
        """
        cdef Backing backing
        cdef list moved = []
        cdef uint32_t page
        cdef uint64_t to, owner
        if block >= self.c.frames.n or cursor >= self.c.frames.n:
            raise ValueError("there is no such block")
        for page in range(block * 512, block * 512 + 512):
            if not self.c.frames.used[page >> 6] >> (page & 63) & 1:
                continue
            owner = self.c.folios.owner[page]
            backing = self.backings.get(owner >> 40)
            if not compact.page_moves(&self.c, page) or (
                    backing is None and owner != compact.HOSTS_OWN):
                break
            to = compact.free_above(&self.c.frames, block, &cursor)
            if to == blocks.NO_PAGE:
                break
            if compact.migrate(&self.c, NULL if backing is None else &backing.c, page, to) != 0:
                blocks.free_4k(&self.c.frames, to)
                break
            moved.append((0, 0) if backing is None
                         else (owner >> 40, (owner & 0xFFFFFFFFFF) << 12))
            if self.c.frames.state[block] == blocks.BLOCK_FREE:
                break
        return moved, cursor, self.c.frames.state[block] == blocks.BLOCK_FREE

    def set_new_list(self, int which, int group=0):
        """The list of a group that new folios join."""
        self._lists_of(group)
        if not 0 < which < LAZY_LIST:
            raise ValueError(f"a policy's lists are numbered 1 to {LAZY_LIST - 1}")
        self.c.folios.new_list[group] = which

    cdef int _lists_of(self, int group) except -1:
        if not 0 <= group < self.c.folios.n_groups:
            raise ValueError(f"there is no group {group}")
        return group * folios.N_LISTS

    @property
    def free_bytes(self):
        return self.c.frames.free_pages << 12

    @property
    def free_pool_bytes(self):
        """Bytes of free hugetlb pages."""
        return self.c.n_pool * table.span_of(self.c.pool_order)

    def list_bytes(self, int which, int group=0):
        """Bytes of the folios on one list."""
        return self.c.folios.pages[self._lists_of(group) + which] << 12

    def group_bytes(self, int group):
        """Bytes of the folios on all lists of a group's own."""
        cdef int first = self._lists_of(group), i
        cdef uint64_t pages = 0
        for i in range(first + 1, first + folios.COMMON_LISTS):
            pages += self.c.folios.pages[i]
        return pages << 12

    @property
    def partial_bytes(self):
        """Bytes held by partly unmapped blocks and mapped by nobody."""
        cdef uint32_t i = self.c.folios.head[PARTIAL_LIST]
        cdef uint64_t pages = 0
        while i != blocks.NIL:
            pages += 512 - self.c.folios.mapped[i - self.c.folios.n_pages]
            i = self.c.folios.next[i]
        return pages << 12

    def sharers(self, uint64_t frame):
        """How many leaves map a merged frame; 0 for any other."""
        cdef uint32_t i = folios.folio_id(&self.c.folios, frame, 0)
        return self.c.folios.owner[i] if hostmem.is_merged(&self.c, frame) else 0

    def claim_merged(self, uint64_t[::1] claimed):
        """As `Backing.claim`, for merged frames, each once."""
        cdef uint32_t i = self.c.folios.head[hostmem.MERGED_LIST]
        cdef bint alone = True
        while i != blocks.NIL:
            alone = hostmem.claim_pages(
                &claimed[0], folios.folio_address(&self.c.folios, i), 1) and alone
            i = self.c.folios.next[i]
        return alone

    @property
    def merged_bytes(self):
        """Bytes of merged frames."""
        return self.c.folios.pages[hostmem.MERGED_LIST] << 12

    def order_of(self, uint32_t folio):
        return folios.folio_order(&self.c.folios, folio)

    def owner_of(self, uint32_t folio):
        """(owner, address in the owner's space) of a folio."""
        cdef uint64_t owner = self.c.folios.owner[folio]
        return owner >> 40, (owner & 0xFFFFFFFFFF) << 12

    def address_of(self, uint32_t folio):
        return folios.folio_address(&self.c.folios, folio)

    def list_of(self, uint32_t folio):
        """The list that a folio is on, or 0."""
        return self.c.folios.where[folio]

    cdef vcpu.Backing *_backing_of(self, uint32_t folio) except NULL:
        cdef Backing backing = self.backings.get(self.c.folios.owner[folio] >> 40)
        if backing is None:
            raise ValueError(f"folio {folio} has no owner")
        return &backing.c

    def scan(self, int which, uint64_t pages, int group=0):
        """Folios from the old end of a list, and whether each was accessed since.

        As many as make up `pages` pages of 4 KiB. Clears their A bits; the list stays.
        """
        cdef uint32_t i = self.c.folios.tail[self._lists_of(group) + which]
        cdef uint64_t seen = 0
        cdef list found = []
        while i != blocks.NIL and seen < pages:
            found.append((i, bool(aging.test_and_clear_accessed(
                self._backing_of(i), (self.c.folios.owner[i] & 0xFFFFFFFFFF) << 12))))
            seen += 512 if folios.folio_order(&self.c.folios, i) else 1
            i = self.c.folios.prev[i]
        return found

    def move(self, folio_ids, int which):
        """Put folios at the young end of a list (0: of that for new ones), in the order given."""
        cdef uint32_t i
        if not 0 <= which < PARTIAL_LIST:
            raise ValueError("lists are numbered 1 to 14")
        for i in folio_ids:
            folios.folio_remove(&self.c.folios, i)
            folios.folio_push(&self.c.folios, which, i)

    def look_around(self, uint32_t folio, int which):
        """Age a folio of 4 KiB and its neighbours; those accessed go to a list.

        (leaves looked at, how many of them were accessed), within one page table.
        """
        cdef aging.Aged aged
        memset(&aged, 0, sizeof(aged))
        aging.look_around(self._backing_of(folio),
                          (self.c.folios.owner[folio] & 0xFFFFFFFFFF) << 12, which, &aged)
        return aged.leaves, aged.young

    def swap_out(self, uint32_t folio, uint64_t slot):
        """Replace a folio's mapping by swap slots from `slot` on; its frames stay taken.

        A 2 MiB folio becomes 512 pages, mapping and frames.
        """
        if hostmem.swap_out(&self.c, self._backing_of(folio), folio, slot) != 0:
            raise ValueError(f"folio {folio} is not mapped by its owner")

    def split(self, uint32_t folio, int which):
        """Split a 2 MiB folio into pages at the young end of a list."""
        if hostmem.split_folio(&self.c, self._backing_of(folio), folio, which) != 0:
            raise ValueError(f"folio {folio} is not a mapped 2 MiB folio")

    def split_partial(self, int which, int limit):
        """Split up to `limit` partly unmapped blocks: (blocks split, bytes freed)."""
        cdef uint32_t i
        cdef uint64_t pages = 0
        cdef int n = 0
        while n < limit and self.c.folios.head[PARTIAL_LIST] != blocks.NIL:
            i = self.c.folios.tail[PARTIAL_LIST]
            pages += hostmem.split_partial(&self.c, self._backing_of(i), i, which)
            n += 1
        return n, pages << 12

    def lazy(self, uint64_t pages, int group=-1):
        """Folios that guests freed lazily, oldest first, and whether they were written since.

        As many as make up `pages` pages of 4 KiB, of one group of owners or of all. The list
        stays.
        """
        cdef uint32_t i = self.c.folios.tail[LAZY_LIST]
        cdef uint64_t seen = 0, start, size
        cdef list found = []
        while i != blocks.NIL and seen < pages:
            if group in (-1, folios.group_of(&self.c.folios, i)):
                start = (self.c.folios.owner[i] & 0xFFFFFFFFFF) << 12
                size = table.span_of(folios.folio_order(&self.c.folios, i))
                found.append((i, bool(advice.written(self._backing_of(i), start, start + size))))
                seen += size >> 12
            i = self.c.folios.prev[i]
        return found
