# Part of simvm/_core.pyx: what backs a guest with host memory.

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

        Those on the list `only` alone, unless it is 0. List 0 is that for new folios.
        """
        cdef uint64_t moved = 0, freed
        if not 0 <= which < PARTIAL_LIST:
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
        """The folios within [start, end) that are on a list of a policy, or lazily free.

        A block that is held only in part is split first.
        """
        cdef uint32_t block
        cdef list found = []
        cdef uint64_t at = start, span
        cdef table.Node *node = NULL
        cdef int level = 0
        cdef uint64_t *entry
        cdef uint32_t i
        while at < end and not self.c.from_pool:
            entry = table.find_entry(self.c.table, at, &node, &level)
            span = table.span_of(level - 1)
            if (table.has_frame(entry[0])
                    and not hostmem.in_tier(&self.host.c, entry[0] & table.TARGET)):
                block = blocks.block_of(&self.host.c.frames, entry[0] & table.TARGET)
                if level == 1 and self.host.c.frames.state[block] == blocks.BLOCK_WHOLE:
                    hostmem.split_partial(&self.host.c, &self.c,
                                          self.host.c.folios.n_pages + block, 0)
                    continue
                i = folios.folio_id(&self.host.c.folios, entry[0] & table.TARGET, level - 1)
                if 0 < self.host.c.folios.where[i] < UNEVICTABLE_LIST:
                    found.append(i)
            at = (at & ~(span - 1)) + span
        return found

    def swapped(self, uint64_t start, uint64_t end):
        """Addresses of the 4 KiB pages within [start, end) that are on the swap device."""
        cdef list found = []
        cdef uint64_t at = start, span
        cdef table.Node *node = NULL
        cdef int level = 0
        cdef uint64_t *entry
        while at < end and self.c.table.swapped:
            entry = table.find_entry(self.c.table, at, &node, &level)
            span = table.span_of(level - 1)
            if entry[0] & table.SWAPPED:
                found.append(at)
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

    def forget_stale(self, BlockAllocator guest, uint64_t start, uint64_t length):
        """What is not backed any more reads as zero: none of the range is stale in the guest."""
        cdef uint64_t at = start, end = start + length, until
        cdef uint64_t entry
        cdef table.Node *node = NULL
        cdef int level = 0
        while at < end:
            entry = table.find_entry(self.c.table, at, &node, &level)[0]
            until = min(end, ((at >> (3 + 9 * level)) + 1) << (3 + 9 * level))
            if entry == 0:
                blocks.take_stale(guest.c, at, (until - at) >> 12)
            at = until

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
