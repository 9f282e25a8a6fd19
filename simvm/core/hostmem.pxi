# Part of simvm/_core.pyx: host memory and what backs a guest with it.

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
            found.append((i, bool(hostmem.test_and_clear_accessed(
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

    def lazy(self, uint64_t pages):
        """Folios that a guest freed lazily, oldest first, and whether they were written since.

        As many as make up `pages` pages of 4 KiB. The list stays.
        """
        cdef uint32_t i = self.c.folios.tail[LAZY_LIST]
        cdef uint64_t seen = 0, start, size
        cdef list found = []
        while i != blocks.NIL and seen < pages:
            start = (self.c.folios.owner[i] & 0xFFFFFFFFFF) << 12
            size = table.span_of(folios.folio_order(&self.c.folios, i))
            found.append((i, bool(advice.written(self._backing_of(i), start, start + size))))
            seen += size >> 12
            i = self.c.folios.prev[i]
        return found


cdef class Backing:
    """How one guest's memory is backed: `page_table` (SLAT, or a container's own) over a host.

    `order` is what a fault maps if it can (1: 2 MiB, falling back to 4 KiB); `from_pool`
    takes hugetlb pages instead; `deposits` keeps a page table for each 2 MiB leaf, as
    anonymous memory does; `end` is where guest memory ends (0 for a container).
    With a `shadow` the processor does not walk `page_table`, but the shadow's tables. Its
    folios are on the lists of `group`.
    """

    def __cinit__(self, HostMemory host, PageTable page_table, int owner, int order, uint64_t end,
                  deposits=True, from_pool=False, Shadow shadow=None, int group=0):
        if owner in host.backings or not 0 <= owner < 1 << 23:
            raise ValueError(f"owner (={owner}) must be new and below 2^23")
        if page_table.c.granule != 12:
            raise ValueError("host memory is backed in the 4 KiB granule")
        host._lists_of(group)
        if folios.folios_join(&host.c.folios, owner, group) != 0:
            raise MemoryError()
        self.host = host
        self.page_table = page_table
        self.c.table = &page_table.c
        self.c.host = &host.c
        self.c.owner = owner
        self.c.order = order
        self.c.end = end
        self.c.deposits = deposits
        self.c.from_pool = from_pool
        self.shadow = shadow
        self.c.shadow = NULL if shadow is None else &shadow.c
        host.backings[owner] = self

    def __dealloc__(self):
        free(self.c.marks)

    def set_limit(self, uint64_t size):
        """Bytes that may be mapped; 0: no limit. A fault beyond stops with RUN_LIMIT."""
        self.c.limit = size >> 12

    @property
    def fallbacks(self):
        """2 MiB faults that had to back 4 KiB."""
        return self.c.fallbacks

    def zap(self, uint64_t start, uint64_t length):
        """Unmap and free a range: (leaves by order, splits, freed swap slots as an array)."""
        cdef hostmem.Zapped z
        cdef uint64_t[::1] slots = np.empty(self.c.table.swapped + 1, dtype=np.uint64)
        memset(&z, 0, sizeof(z))
        if hostmem.zap(&self.c, start, start + length, &slots[0], &z) != 0:
            raise MemoryError("no memory for a page table")
        return (z.leaves[0], z.leaves[1], z.leaves[2]), z.splits, np.asarray(slots)[: z.slots]

    def age(self, int which):
        """Clear every A bit; folios that were accessed go to a list.

        (table pages visited, leaves looked at, leaves accessed)
        """
        cdef aging.Aged aged
        memset(&aged, 0, sizeof(aged))
        with nogil:
            aging.age_below(&self.c, self.c.table.root, 0, which, &aged)
        return aged.tables, aged.leaves, aged.young

    def note_old(self, const uint64_t[::1] addresses):
        """Clear A of the leaves at `addresses`: which were accessed, as an array of bools.

        Whoever looks with `age` or `scan` sees what was cleared here.
        """
        cdef uint8_t[::1] young = np.zeros(addresses.shape[0], dtype=np.uint8)
        cdef Py_ssize_t i
        with nogil:
            for i in range(addresses.shape[0]):
                young[i] = aging.note_old(&self.c, addresses[i])
        return np.asarray(young).view(np.bool_)

    def was_accessed(self, const uint64_t[::1] addresses):
        """Which leaves were accessed since `note_old`, as an array of bools."""
        cdef uint8_t[::1] young = np.zeros(addresses.shape[0], dtype=np.uint8)
        cdef Py_ssize_t i
        with nogil:
            for i in range(addresses.shape[0]):
                young[i] = aging.was_accessed(&self.c, addresses[i])
        return np.asarray(young).view(np.bool_)

    def swap_in(self, uint64_t address, uint64_t frame, int which):
        """Map a 4 KiB frame where a swap entry stands; its slot. KeyError when none does."""
        cdef int64_t slot = hostmem.swap_in(&self.c, address, frame, which)
        if slot < 0:
            raise KeyError(f"{address:#x} is not swapped out")
        return slot

    def slot_of(self, uint64_t address):
        """The swap slot that holds a page, or None."""
        cdef table.Node *at = NULL
        cdef int level = 0
        cdef uint64_t *entry = table.find_entry(self.c.table, address, &at, &level)
        return entry[0] >> 12 if entry[0] & table.SWAPPED else None

    def mark(self, uint64_t start, uint64_t end, int bit, bint on):
        """Set or clear a mark (CUT, FORBIDDEN) of each 2 MiB block that overlaps [start, end)."""
        cdef uint64_t block
        if not start < end <= self.c.end:
            raise ValueError("marks are of guest memory")
        if self.c.marks == NULL:
            self.c.marks = <uint8_t *>calloc((self.c.end >> 21) + 1, 1)
            if self.c.marks == NULL:
                raise MemoryError()
        for block in range(start >> 21, ((end - 1) >> 21) + 1):
            if on:
                self.c.marks[block] |= bit
            else:
                self.c.marks[block] &= ~bit

    def allow(self, uint64_t address):
        """Let the next fault on a page of a FORBIDDEN block be served."""
        self.c.passed = (address >> 12) + 1

    def cut(self, uint64_t address):
        """Let no huge page lie across `address`: splits. ValueError for one of a hugetlb pool."""
        cdef int splits = advice.cut(&self.c, address)
        if splits < 0:
            raise ValueError(f"a huge page across {address:#x} cannot be split")
        return splits

    def hold(self, uint64_t start, uint64_t end, bint accessed=False, bint dirty=False):
        """Take what lies within [start, end) away from the processor, its frames stay.

        Clears A (`accessed`) and D (`dirty`). Returns the leaves that were taken, by order.
        """
        cdef uint64_t leaves[3]
        memset(leaves, 0, sizeof(leaves))
        advice.hold(&self.c, start, end, (table.ACCESSED if accessed else 0)
                    | (table.DIRTY if dirty else 0), leaves)
        return leaves[0], leaves[1], leaves[2]

    def relist(self, uint64_t start, uint64_t end, int which, int only=0):
        """Put the folios within [start, end) on a list: (folios, bytes freed by a split).

        Those on the list `only` alone, unless it is 0.
        """
        cdef uint64_t moved = 0, freed
        if not 0 < which < PARTIAL_LIST:
            raise ValueError("lists are numbered 1 to 14")
        freed = advice.relist(&self.c, start, end, which, only, &moved)
        return moved, freed

    def populate(self, uint64_t start, uint64_t end, int many):
        """Back [start, end) and lock it: (why it stopped, where, new folios by order, moved).

        Stops at a swapped page, when memory is short, or after `many` new folios.
        """
        cdef uint64_t made[3]
        cdef uint64_t moved = 0
        memset(made, 0, sizeof(made))
        status = advice.populate(&self.c, &start, end, many, made, &moved)
        return status, start, (made[0], made[1], made[2]), moved

    def folios(self, uint64_t start, uint64_t end):
        """The folios within [start, end) that are on a list of a policy, or lazily free."""
        cdef list found = []
        cdef uint64_t at = start, span
        cdef table.Node *node = NULL
        cdef int level = 0
        cdef uint64_t *entry
        cdef uint32_t i
        while at < end and not self.c.from_pool:
            entry = table.find_entry(self.c.table, at, &node, &level)
            span = table.span_of(level - 1)
            if table.has_frame(entry[0]):
                i = folios.folio_id(&self.host.c.folios, entry[0] & table.TARGET, level - 1)
                if 0 < self.host.c.folios.where[i] < UNEVICTABLE_LIST:
                    found.append(i)
            at = (at & ~(span - 1)) + span
        return found

    def written(self, uint64_t start, uint64_t end):
        """Whether something that overlaps [start, end) was written since its D was cleared."""
        return bool(advice.written(&self.c, start, end))

    def backed_bytes(self, uint64_t start, uint64_t end):
        """Bytes of [start, end) that are in host frames."""
        cdef uint64_t at = start, next_at, span, size = 0
        cdef table.Node *node = NULL
        cdef int level = 0
        cdef uint64_t *entry
        while at < end:
            entry = table.find_entry(self.c.table, at, &node, &level)
            span = table.span_of(level - 1)
            next_at = min((at & ~(span - 1)) + span, end)
            if table.has_frame(entry[0]):
                size += next_at - at
            at = next_at
        return size

    @property
    def tiered_pages(self):
        """4 KiB leaves that map slower memory."""
        return self.c.tiered

    def count_tiered(self, uint64_t base, const uint64_t[::1] accesses, PageTable guest=None):
        """How many accesses, as a stream gives them, to a region at `base` go to slower memory."""
        cdef table.Node *at = NULL
        cdef int order = 0
        cdef uint64_t *entry
        cdef uint64_t address, i, found = 0
        for i in range(<uint64_t>accesses.shape[0]):
            address = base + (accesses[i] >> 1)
            if guest is not None:
                entry = table.find_leaf(&guest.c, address, &at, &order)
                if entry == NULL:
                    continue
                address = (entry[0] & table.TARGET) + (address & (table.span_of(order) - 1))
            entry = table.find_leaf(self.c.table, address, &at, &order)
            if entry != NULL and hostmem.in_tier(self.c.host, entry[0] & table.TARGET):
                found += 1
        return found

    @property
    def merged_pages(self):
        """4 KiB leaves that map merged frames."""
        return self.c.merged

    def pages_from(self, uint64_t start, uint64_t end, int n):
        """Up to `n` mapped 4 KiB pages of [start, end), in order, as (address | state) each.

        State: 1 if D was set, which is cleared; 2 if a larger leaf maps the page, whose D bit
        is cleared with its last page; 4 if the frame is a merged one, whose D bit stays.
        """
        cdef uint64_t[::1] found = np.empty(n, dtype=np.uint64)
        cdef int count = merging.pages_from(&self.c, start, end, n, &found[0])
        return np.asarray(found)[:count]

    def states_of(self, uint64_t[::1] addresses):
        """Each address | its state as in `pages_from`, 0 where no page is mapped; clears none."""
        cdef uint64_t i
        cdef uint64_t[::1] found = np.empty(len(addresses), dtype=np.uint64)
        for i in range(<uint64_t>len(addresses)):
            found[i] = addresses[i] | merging.state_of(&self.c, addresses[i])
        return np.asarray(found)

    def page_state(self, uint64_t address):
        """The state of one page, as in `pages_from`; None when it is not mapped."""
        cdef table.Node *at = NULL
        cdef int order = 0
        if table.find_frame(self.c.table, address, &at, &order) == NULL:
            return None
        return merging.state_of(&self.c, address)

    def split_at(self, uint64_t address):
        """Split the 2 MiB folio that an address lies in; whether there was one."""
        return bool(merging.split_at(&self.c, address))

    def share(self, uint64_t address):
        """Make a page's frame a merged one with one owner; the frame, or None if it cannot be."""
        cdef uint64_t frame = merging.share(&self.c, address)
        return None if frame == blocks.NO_PAGE else frame

    def merge(self, uint64_t address, uint64_t frame):
        """Map a page to a merged frame instead of its own, which is freed; whether it could."""
        return bool(merging.merge(&self.c, address, frame))

    def unmerge(self, uint64_t address, uint64_t frame):
        """Give a page of a merged frame `frame` for its own. KeyError when it has its own."""
        if merging.unmerge(&self.c, address, frame) != 0:
            raise KeyError(f"{address:#x} is not merged")

    def look_at(self, uint64_t address):
        """The 4 KiB entries under 2 MiB: (present, none, swapped, accessed, fixed).

        None when it is mapped by a larger leaf, or nothing is. `fixed` cannot be isolated.
        """
        cdef compact.Range r
        cdef table.Node *node = compact.small_pages(&self.c, address)
        if node == NULL or self.c.from_pool:
            return None
        compact.look_at(&self.c, node, &r)
        return r.present, r.none, r.swapped, r.accessed, r.fixed

    def may_be_huge(self, uint64_t address):
        """Whether nothing forbids a new 2 MiB page there: no cut, no protection, no limit."""
        return ((self.c.marks == NULL or self.c.marks[address >> 21] == 0)
                and bool(vcpu.within_limit(&self.c, 512)))

    def collapse(self, uint64_t address, uint64_t frame):
        """Map 2 MiB by one leaf to the block `frame` instead of 4 KiB pages, which are freed.

        ValueError when it is not mapped by 4 KiB entries alone.
        """
        if address % (1 << 21) or frame % (1 << 21):
            raise ValueError("a huge page is aligned to its size")
        if compact.collapse(&self.c, address, frame) != 0:
            raise ValueError(f"{address:#x} is not mapped by 4 KiB pages alone")

    def huge_bytes(self, PageTable guest):
        """Bytes that a guest's table and this backing both map by 2 MiB or more."""
        return compact.aligned_huge(guest.c.root, &self.c)

    def stranded_bytes(self, BlockAllocator guest):
        """Backed bytes that are free in the guest."""
        return hostmem.stranded_pages(self.c.table.root, guest.c, 0) << 12

    def claim(self, uint64_t[::1] claimed):
        """Set a bit for every host page that this backing owns: data, tables, deposits.

        Merged pages are owned by nobody. False when one of them was set before, and so has
        two owners.
        """
        cdef uint64_t i
        cdef table.Table *shadow_table
        cdef bint alone = hostmem.claim_below(self.c.table.root, &claimed[0], self.c.host)
        for i in range(self.c.table.n_deposits):
            alone = hostmem.claim_pages(&claimed[0], self.c.table.deposits[i], 1) and alone
        for i in range(0 if self.shadow is None else self.shadow.c.n_processes):
            shadow_table = self.shadow.c.process[i].table
            alone = hostmem.claim_below(shadow_table.root, &claimed[0], NULL) and alone
        return alone

    def shadow_agrees(self):
        """Whether each shadow leaf maps what guest and host map now: the thorough check."""
        return self.shadow is None or bool(shadow.shadow_agrees(&self.shadow.c, self.c.table))

    def destroy(self):
        """Give everything back: data, tables, deposits. Returns freed swap slots."""
        if self.shadow is not None:
            self.c.shadow = NULL
            self.shadow.destroy()
        slots = self.zap(0, table.reach_of(self.c.table))[2]
        self.page_table.destroy()
        del self.host.backings[self.c.owner]
        return slots
