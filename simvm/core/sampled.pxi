# Part of simvm/_core.pyx: streams whose accesses are drawn in place of being run.

cdef class Touches:
    """What the accesses of `source` in `region` will change, drawn quantum by quantum.

    `bit_generator` is one of NumPy's that nobody else draws from. A zipf stream needs the
    `shares` of its ranks (patterns.zipf_shares) and the `inverse` of its scatter modulo its
    nodes. Draws are of the accesses that come next, in whatever vCPU's turn.
    """

    def __cinit__(self, Stream source, Region region, bit_generator, shares=None,
                  uint64_t inverse=1):
        cdef const float[::1] view
        cdef uint64_t pages = source.c.pages, hot, c
        cdef int i, j
        memset(&self.c, 0, sizeof(touches.Touches))
        if source.c.bytes > region.c.bytes:
            raise ValueError("the stream reaches beyond the region")
        self.source, self.region = source, region
        self.bit_generator = bit_generator
        self.c.bits = <bitgen_t *>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator")
        self.c.stream = &source.c
        self.c.first = region.c.base >> 21
        self.c.skew = (region.c.base >> 12) & 511
        self.c.n_pieces = (pages + self.c.skew + 511) // 512
        self.c.writes = source.c.write_below / <double>(1 << 24)
        self.c.flat = 1.0 / pages
        if source.c.kind in (stream.HOT_COLD, stream.DRIFTING):
            hot = source.c.hot_pages
            self.c.flat = source.c.hot_below / <double>(<uint64_t>1 << 32) / hot
            self.c.cold = (1.0 - self.c.flat * hot) / (pages - hot)
        if source.c.kind == stream.ZIPF:
            if shares is None:
                raise ValueError("a zipf stream needs the shares of its ranks")
            view = shares
            i = max(0, int(source.c.nodes).bit_length() - touches.BITS - 1)
            if <uint64_t>view.shape[0] <= (i << touches.BITS) + (source.c.nodes >> i):
                raise ValueError("shares must reach to the last rank")
            self.keep = shares
            self.c.by_rank = &view[0]
            self.c.inverse = inverse
        if source.c.kind == stream.CHASE:
            for i in range(3):
                self.c.unkeys[i] = 1
                for j in range(6):      # Newton's steps: each doubles the bits that are right
                    self.c.unkeys[i] *= 2 - (source.c.keys[i] | 1) * self.c.unkeys[i]
        if source.c.kind == stream.TRACE:
            self.c.writes = 1.0     # the trace says of each access whether it writes
            self.c.marks = <uint64_t *>calloc((pages >> 5) + 1, 8)
        self.c.piece = <touches.Piece *>calloc(self.c.n_pieces, sizeof(touches.Piece))
        if self.c.piece == NULL or (source.c.kind == stream.TRACE and self.c.marks == NULL):
            raise MemoryError()
        for c in range(self.c.n_pieces):
            self.c.piece[c].all = -1.0

    def __dealloc__(self):
        free(self.c.piece)
        free(self.c.event)
        free(self.c.marks)

    @property
    def idle(self):
        """Whether no events are drawn that have not been played."""
        return self.c.at == self.c.until

    @property
    def gone(self):
        """Pages without a frame when last drawn, and the share of accesses that go to them."""
        return self.c.n_gone, self.c.gone

    def forget(self):
        """Draw anew from here on. What was not reached has no memory, so nothing is lost."""
        self.c.until = self.c.at
        self.c.n_events = self.c.next = 0

    def set_estimate(self, uint64_t accesses, uint64_t cycles, const uint64_t[::1] counts,
                     double residence, double shootdowns=0.0):
        """What windows have measured: cycles and counts (of `Vcpu.counts`) of `accesses`.

        `residence` is how many accesses a TLB entry outlives its last use by, where no shootdown
        comes; of these there are so many in an access.
        """
        if accesses == 0 or <size_t>counts.shape[0] * 8 != sizeof(mmu.Counters):
            raise ValueError("an estimate is of some accesses and of every counter")
        self.c.mean = (cycles << 16) // accesses
        self.c.measured = accesses
        memcpy(&self.c.sum, &counts[0], sizeof(mmu.Counters))
        self.c.residence = residence
        self.c.shootdowns = shootdowns

    def draw(self, AddressSpace space, Backing backing, uint64_t accesses):
        """For tests: the events of the next accesses: (how many accesses, [(at, page, write)])."""
        cdef int status
        cdef uint64_t i
        cdef vcpu.Operations operations
        self.c.operations = &operations
        self.forget()
        status = sampled.draw(&self.c, &space.c, &backing.c, &self.region.c, accesses)
        if status != OK:
            raise ValueError("nothing can be drawn")
        return self.c.until - self.c.at, [
            (self.c.event[i].at - self.c.at, self.c.event[i].page, bool(self.c.event[i].write))
            for i in range(self.c.n_events)
        ]
