# Part of simvm/_core.pyx: the shadow tables of one guest.

cdef class Shadow:
    """Shadow tables of a guest of `end` bytes, one for each process, and their reverse map.

    `write_ns` is what a trapped write to a guest page table takes, `fill_ns` an exit on a
    missing shadow entry. What is dropped may free table pages, so a flush must follow.
    """

    def __cinit__(self, uint64_t end, uint64_t write_ns=0, uint64_t fill_ns=0):
        memset(&self.c, 0, sizeof(shadow.Shadow))
        self.tables = []
        self.c.write_ns, self.c.fill_ns = write_ns, fill_ns
        if shadow.shadow_init(&self.c, end) != 0:
            raise MemoryError()

    def __dealloc__(self):
        shadow.shadow_free(&self.c)

    def add(self, PageTable guest, PageTable host):
        """From now on `host`, of the same shape, shadows a process's table `guest`."""
        if guest.c.granule != 12 or host.c.granule != 12 or guest.levels != host.levels:
            raise ValueError("a shadow table has the levels of its guest's, and 4 KiB pages")
        if shadow.shadow_add(&self.c, &guest.c, &host.c) != 0:
            raise MemoryError()
        self.tables.append((guest, host))

    def drop(self, uint64_t start, uint64_t length):
        """Remove the shadow leaves that map guest memory [start, start + length)."""
        shadow.shadow_drop(&self.c, start, start + length)

    def note_writes(self, uint64_t entries):
        """Count trapped writes of guest page-table entries that were not a fault's."""
        self.c.writes += entries

    def destroy(self):
        """Give the tables back; the processes end here."""
        for _, host in self.tables:
            host.destroy()
        self.tables.clear()
        shadow.shadow_free(&self.c)
        self.c.end = 0

    @property
    def table_pages(self):
        """Shadow table pages, and the pages beside them that name guest pages."""
        return sum(host.table_pages + host.mirror_pages for _, host in self.tables)

    @property
    def leaves(self):
        """Leaves of all shadow tables, by order."""
        return tuple(sum(host.leaves[order] for _, host in self.tables) for order in range(3))

    @property
    def writes(self):
        """Guest page-table entries written, each of which trapped."""
        return self.c.writes

    @property
    def fills(self):
        """Shadow entries filled."""
        return self.c.fills

    @property
    def reflected(self):
        """Exits on a missing shadow entry that were the guest's own fault."""
        return self.c.reflected
