# Part of simvm/_core.pyx: named regions, streams of accesses, and the vCPU that runs them.

cdef class Region:
    """A named range of a process: `size` bytes from `base`, in guest pages of `order`.

    `asid` is its process for the guest's kernel; `pooled`: in huge pages of that one's pool.
    """

    def __cinit__(self, uint64_t base, uint64_t size, int order, zeroing=False, uint64_t asid=0,
                  pooled=False):
        if not 0 <= order <= 2 or size == 0 or (base | size) % table.span_of(order):
            raise ValueError("base and size must be multiples of the guest page size")
        self.c.base, self.c.bytes, self.c.order, self.c.zeroing = base, size, order, zeroing
        self.c.asid, self.c.pooled = asid, pooled
        self.c.n_touched = 0
        # calloc maps zero pages lazily: what is never touched costs nothing.
        self.c.touched = <uint64_t *>calloc((size >> 18) + 1, 8)
        if self.c.touched == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.c.touched)

    @property
    def order(self):
        """Of its guest pages: 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB."""
        return self.c.order

    @property
    def pooled(self):
        """Whether its pages are of the guest's hugetlb pool."""
        return bool(self.c.pooled)

    @property
    def base(self):
        return self.c.base

    @property
    def size(self):
        return self.c.bytes

    @property
    def touched_bytes(self):
        """4 KiB x pages accessed since they were allocated."""
        return self.c.n_touched << 12

    def note_touched(self, uint64_t size):
        """The first `size` bytes have been accessed, by way of another `Region`."""
        cdef uint64_t page
        if size > self.c.bytes:
            raise ValueError("the bytes reach beyond the region")
        for page in range(size >> 12):
            if not (self.c.touched[page >> 6] >> (page & 63)) & 1:
                self.c.touched[page >> 6] |= <uint64_t>1 << (page & 63)
                self.c.n_touched += 1

    def unmap_tail(self, PageTable guest, BlockAllocator memory, uint64_t size,
                   GuestKernel kernel=None):
        """The guest frees the last `size` bytes: guest-physical extents [(start, length)].

        Guest pages, deposits and emptied tables go back to guest memory, huge pages of a pool
        to it, and swap slots to the kernel's `freed_slots`.
        """
        cdef uint64_t end = self.c.bytes
        cdef uint64_t at, span, page, word
        cdef int level = 0, order
        cdef table.Node *node = NULL
        cdef uint64_t *entry
        cdef list extents = []
        cdef uint64_t start = 0, length = 0, target
        if size > end or size % table.span_of(self.c.order):
            raise ValueError(f"size (={size}) must be whole pages within the region")
        at = self.c.base + end - size
        while at < self.c.base + end:
            entry = table.find_entry(&guest.c, at, &node, &level)
            span = table.span_of(level - 1)
            if entry[0] & table.LEAF:
                target, order = entry[0] & table.TARGET, level - 1
                table.clear_entry(&guest.c, node, entry - node.entry)
                table.prune_up(&guest.c, node)
                if self.c.pooled:
                    guestmem.give_pooled(&kernel.c, target, order)
                elif kernel is not None:
                    guestmem.note_unmapped(&kernel.c, target, order)
                if self.c.pooled:
                    pass
                elif order == 0:
                    blocks.free_4k(memory.c, target)
                elif order == 1:
                    blocks.free_2m(memory.c, target)
                    table.withdraw(&guest.c)
                else:
                    blocks.free_1g(memory.c, target)
                if length and start + length == target:
                    length += span
                else:
                    if length:
                        extents.append((start, length))
                    start, length = target, span
            elif entry[0] & table.SWAPPED:
                kernel.freed_slots.append(entry[0] >> 12)
                table.clear_entry(&guest.c, node, entry - node.entry)
                table.prune_up(&guest.c, node)
            at = (at & ~(span - 1)) + span
        if length:
            extents.append((start, length))
        self.forget_tail(size)
        return extents

    def extents(self, PageTable guest):
        """Guest-physical extents [(start, length)] of what is mapped, in order and merged."""
        cdef uint64_t at = self.c.base, end = self.c.base + self.c.bytes, span, target
        cdef table.Node *node = NULL
        cdef int level = 0
        cdef uint64_t *entry
        # Room for every leaf of the process; what is not written takes no memory.
        cdef uint64_t[:, ::1] runs = np.empty((sum(guest.leaves) + 1, 2), dtype=np.uint64)
        cdef Py_ssize_t n = 0
        while at < end:
            entry = table.find_entry(&guest.c, at, &node, &level)
            span = table.span_of(level - 1)
            if entry[0] & table.LEAF:
                target = entry[0] & table.TARGET
                if n and runs[n - 1, 1] == target:
                    runs[n - 1, 1] += span
                else:
                    runs[n, 0], runs[n, 1] = target, target + span
                    n += 1
            at = (at & ~(span - 1)) + span
        if n == 0:
            return []
        found = np.asarray(runs)[:n]
        found = found[np.argsort(found[:, 0])]
        apart = found[1:, 0] != found[:-1, 1]
        starts = found[np.append(True, apart), 0]
        ends = found[np.append(apart, True), 1]
        return list(zip(starts.tolist(), (ends - starts).tolist()))

    def forget_tail(self, uint64_t size):
        """Shorten the region by `size` bytes and forget what was touched there."""
        cdef uint64_t page
        for page in range((self.c.bytes - size) >> 12, self.c.bytes >> 12):
            if page & 63 == 0 and self.c.touched[page >> 6] == 0:
                continue
            if (self.c.touched[page >> 6] >> (page & 63)) & 1:
                self.c.touched[page >> 6] &= ~(<uint64_t>1 << (page & 63))
                self.c.n_touched -= 1
        self.c.bytes -= size

    def locate(self, const uint64_t[::1] offsets, PageTable guest=None):
        """Where bytes of the region lie in guest-physical memory; unmapped ones are left out."""
        cdef uint64_t[::1] found = np.empty(offsets.shape[0], dtype=np.uint64)
        cdef table.Node *node = NULL
        cdef int order = 0
        cdef uint64_t *entry
        cdef uint64_t at
        cdef Py_ssize_t i, n = 0
        for i in range(offsets.shape[0]):
            at = self.c.base + offsets[i]
            if guest is not None:
                entry = table.find_leaf(&guest.c, at, &node, &order)
                if entry == NULL:
                    continue
                at = (entry[0] & table.TARGET) + (at & (table.span_of(order) - 1))
            found[n] = at
            n += 1
        return np.asarray(found)[:n]

    def backing_of(self, Backing backing, PageTable guest=None):
        """Bytes of this region by how the host holds them: (4 KiB, 2 MiB, 1 GiB, swapped)."""
        cdef uint64_t at = self.c.base, end = self.c.base + self.c.bytes, span, host_at, host_end, n
        cdef uint64_t held[4]
        cdef table.Node *node = NULL
        cdef int level = 0
        cdef uint64_t *entry
        memset(held, 0, sizeof(held))
        while at < end:
            span = end - at
            host_at = at
            if guest is not None:
                entry = table.find_entry(&guest.c, at, &node, &level)
                span = table.span_of(level - 1) - (at & (table.span_of(level - 1) - 1))
                if not entry[0] & table.LEAF:
                    at += span
                    continue
                host_at = (entry[0] & table.TARGET) + (at & (table.span_of(level - 1) - 1))
            host_end = host_at + span
            while host_at < host_end:
                entry = table.find_entry(backing.c.table, host_at, &node, &level)
                n = min(((host_at >> (3 + 9 * level)) + 1) << (3 + 9 * level), host_end) - host_at
                if table.has_frame(entry[0]):
                    held[level - 1] += n
                elif entry[0] & table.SWAPPED:
                    held[3] += n
                host_at += n
            at += span
        return held[0], held[1], held[2], held[3]


cdef class Stream:
    """A generator of accesses in a region of `size` bytes (class methods make each kind).

    `bit_generator` is one of NumPy's; the stream keeps it alive and alone draws from it.
    """

    def __cinit__(self, bit_generator, uint64_t size, double write_fraction=0.0):
        memset(&self.c, 0, sizeof(stream.Stream))
        if size < 4096:
            raise ValueError("a stream needs a region of at least one page")
        self.bit_generator = bit_generator
        self.c.bits = <bitgen_t *>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator")
        self.c.bytes, self.c.pages = size, size >> 12
        self.c.write_below = <uint64_t>(write_fraction * (1 << 24) + 0.5)

    @classmethod
    def uniform(cls, bit_generator, size, write_fraction=0.0):
        """Every page equally likely."""
        cdef Stream s = cls(bit_generator, size, write_fraction)
        s.c.kind = stream.UNIFORM
        return s

    @classmethod
    def zipf(cls, bit_generator, size, slots, uint64_t scatter, uint64_t granule=4096,
             write_fraction=0.0):
        """Nodes of `granule` bytes by rank, each read and written in its first page.

        `slots` is an alias table: rows (threshold, alias, first rank, width).
        """
        cdef Stream s = cls(bit_generator, size, write_fraction)
        cdef const uint32_t[:, ::1] view = slots
        if view.shape[1] != 4 or view.shape[0] == 0:
            raise ValueError("an alias table has four columns")
        s.keep = slots
        s.c.kind = stream.ZIPF
        s.c.slots = <stream.AliasSlot *>&view[0, 0]
        s.c.n_slots = view.shape[0]
        s.c.scatter = scatter
        s.c.granule, s.c.nodes = granule, size // granule
        last = view.shape[0] - 1
        if not 4096 <= granule <= size or view[last, 2] + view[last, 3] > s.c.nodes:
            raise ValueError("ranks and nodes must lie within the region")
        return s

    @classmethod
    def strided(cls, bit_generator, size, uint64_t stride, uint64_t start, uint64_t length,
                write_fraction=0.0):
        """Every `stride` bytes of [start, start + length), over and over."""
        cdef Stream s = cls(bit_generator, size, write_fraction)
        if stride == 0 or length == 0 or start + length > size:
            raise ValueError("stride and slice must lie within the region")
        s.c.kind = stream.STRIDED
        s.c.stride, s.c.start, s.c.length = stride, start, length
        return s

    @classmethod
    def pointer_chase(cls, bit_generator, size, uint64_t granule, write_fraction=0.0):
        """One pseudo-random cycle through all nodes of `granule` bytes."""
        cdef Stream s = cls(bit_generator, size, write_fraction)
        cdef int bits = 1, i
        if granule == 0 or granule > size:
            raise ValueError("a node must lie within the region")
        s.c.kind = stream.CHASE
        s.c.granule, s.c.nodes = granule, size // granule
        while (<uint64_t>1 << bits) < s.c.nodes:
            bits += 1
        s.c.mask = (<uint64_t>1 << bits) - 1
        s.c.half = (bits + 1) // 2
        for i in range(3):
            s.c.keys[i] = stream.draw(&s.c)
        return s

    @classmethod
    def hot_cold(cls, bit_generator, size, uint64_t hot_pages, double hot_share, drift=None,
                 write_fraction=0.0):
        """`hot_share` of accesses in `hot_pages`; a window that moves `drift` pages per 1000."""
        cdef Stream s = cls(bit_generator, size, write_fraction)
        if not 0 < hot_pages < s.c.pages:
            raise ValueError("the hot set must be smaller than the region and not empty")
        s.c.kind = stream.HOT_COLD if drift is None else stream.DRIFTING
        s.c.hot_pages = hot_pages
        s.c.hot_below = <uint64_t>(hot_share * <double>(<uint64_t>1 << 32) + 0.5)
        s.c.drift = drift or 0
        return s

    @classmethod
    def trace(cls, bit_generator, size):
        """Recorded accesses, fed chunk by chunk."""
        cdef Stream s = cls(bit_generator, size)
        s.c.kind = stream.TRACE
        return s

    def feed(self, const uint64_t[::1] accesses):
        """The next chunk of a trace: (offset << 1) | write. ValueError beyond the region."""
        cdef Py_ssize_t i
        cdef uint64_t largest = 0
        for i in range(accesses.shape[0]):
            largest = max(largest, accesses[i])
        if self.c.at < self.c.n:
            raise ValueError("the last chunk is not used up")
        if self.c.kind != stream.TRACE or (largest >> 1) >= self.c.bytes:
            raise ValueError("a trace's accesses must lie within its region")
        self.keep = accesses
        self.c.trace = &accesses[0] if accesses.shape[0] else NULL
        self.c.trace_length = accesses.shape[0]
        self.c.position = 0

    def take(self, int n):
        """The next `n` accesses as an array of (offset << 1) | write."""
        cdef uint64_t[::1] out = np.empty(n, dtype=np.uint64)
        cdef int i
        for i in range(n):
            if not stream.stream_ready(&self.c):
                return np.asarray(out)[:i]
            out[i] = self.c.next[self.c.at]
            stream.stream_consume(&self.c)
        return np.asarray(out)

    def ahead(self):
        """Offsets of accesses that come next: as many as are drawn already, perhaps none."""
        cdef int i
        cdef uint64_t[::1] out = np.empty(min(self.c.n - self.c.at, stream.AHEAD), np.uint64)
        for i in range(<int>out.shape[0]):
            out[i] = self.c.next[self.c.at + i] >> 1
        return np.asarray(out)

    @property
    def digest(self):
        """A 64-bit digest of every access done so far, in order."""
        return self.c.digest

    @property
    def nodes(self):
        """Of a zipf stream or a pointer chase."""
        return self.c.nodes

    @property
    def drawn(self):
        """Accesses done so far."""
        return self.c.drawn


cdef class Vcpu:
    """A vCPU: its MMU and what its guest's kernel still has to write.

    The model sets how long faults take; the core counts them and ends a train of faults
    that has become too long. Times are ns.
    """

    def __cinit__(self, Mmu mmu):
        memset(&self.c, 0, sizeof(vcpu.Vcpu))
        self.mmu = mmu
        self.c.mmu = &mmu.c

    def attach(self, Mmu mmu):
        """Go on with another MMU, that of the host core that the vCPU is on now."""
        self.mmu = mmu
        self.c.mmu = &mmu.c

    def set_kernel(self, GuestKernel kernel):
        """The guest's kernel keeps account of its memory from now on."""
        self.kernel = kernel
        self.c.kernel = &kernel.c

    def set_untagged(self, bint untagged):
        """Whether each exit to the host empties the MMU, as without VPIDs."""
        self.c.untagged = untagged

    def counters(self):
        """What docs/translation.md counts, for this vCPU's accesses, on whatever MMU."""
        return with_sums(self.c.count)

    def counts(self):
        """The same as an array, in the order of `Touches.set_estimate`."""
        cdef uint64_t[::1] out = np.empty(sizeof(mmu.Counters) // 8, dtype=np.uint64)
        memcpy(&out[0], &self.c.count, sizeof(mmu.Counters))
        return np.asarray(out)

    @property
    def operations(self):
        """What drawing accesses has done: quanta drawn, pieces and pages looked at, events."""
        return self.c.operations

    @property
    def raw_cycles(self):
        """Translation cycles in this phase, hidden ones included."""
        return self.c.raw_cycles

    def set_costs(self, fault_ns, uint64_t guest_fault_ns, uint64_t zero_ns_per_mib,
                  uint64_t remap_ns=0):
        """Service of a host fault by order, of a guest fault, and of zeroing in the guest.

        `remap_ns` is that of a host fault that finds the frame there.
        """
        self.c.fault_ns, self.c.remap_ns = fault_ns, remap_ns
        self.c.guest_fault_ns, self.c.zero_ns_per_mib = guest_fault_ns, zero_ns_per_mib

    def set_phase(self, uint64_t cycles_per_access, double walk_exposed):
        """What an access costs, and the share of translation that is not hidden."""
        self.c.cycles_per_access = cycles_per_access
        self.c.exposed = <uint64_t>(walk_exposed * 65536 + 0.5)
        self.c.raw_cycles = 0
        self.c.done = 0

    def run(self, AddressSpace space, Backing backing, BlockAllocator memory, Region region,
            Stream source,
            uint64_t budget, uint64_t deadline, uint64_t train, uint64_t service):
        """Run accesses: the reason to stop, one of RUN_*.

        `budget` in accesses, `deadline` in cycles, `train` the most host faults to serve
        and `service` the most ns of fault service to run up.
        """
        cdef int status
        if source.c.bytes > region.c.bytes:
            raise ValueError("the stream reaches beyond the region")
        if space.c.guest != NULL and space.c.guest.granule != 12:
            raise ValueError("a vCPU runs in the 4 KiB granule")
        self.c.train_left, self.c.service_left = train, service
        with nogil:
            status = run.run(&self.c, &space.c, &backing.c, memory.c, &region.c, &source.c,
                             budget, deadline)
        return status

    def play(self, AddressSpace space, Backing backing, BlockAllocator memory, Region region,
             Touches touched, uint64_t budget, uint64_t deadline, uint64_t quantum,
             uint64_t train, uint64_t service):
        """As `run`, with the accesses drawn (sampled.pxd), `quantum` of them at a time."""
        cdef int status
        if touched.source.c.bytes > region.c.bytes or region is not touched.region:
            raise ValueError("the accesses were drawn for another region")
        self.c.train_left, self.c.service_left = train, service
        with nogil:
            status = sampled.play(&self.c, &space.c, &backing.c, memory.c, &region.c, &touched.c,
                                  budget, deadline, quantum)
        if status < 0:
            raise MemoryError()
        return status

    def kernel_write(self, AddressSpace space, Backing backing, uint64_t train, uint64_t service):
        """Go on with what the kernel has queued: RUN_BUDGET when nothing is left."""
        cdef int status
        cdef vcpu.Region none
        memset(&none, 0, sizeof(none))
        self.c.train_left, self.c.service_left = train, service
        with nogil:
            status = vcpu.do_work(&self.c, &space.c, &backing.c, &none)
        return status

    def queue_write(self, uint64_t start, uint64_t size):
        """Let the guest's kernel write guest-physical [start, start + size)."""
        if self.c.n_work:
            raise ValueError("the kernel is still writing")
        vcpu.queue_work(&self.c, start, size, False)

    @property
    def unwritten_bytes(self):
        """What the kernel has queued and not yet written."""
        cdef uint64_t left = 0
        cdef int i
        for i in range(self.c.n_work):
            left += self.c.work[i].end - self.c.work[i].at
        return left

    @property
    def done(self):
        """Accesses done in this phase."""
        return self.c.done

    @property
    def exposed_cycles(self):
        """Translation cycles in this phase that were not hidden."""
        return (self.c.raw_cycles * self.c.exposed) >> 16

    @property
    def guest_faults(self):
        return self.c.guest_faults[0], self.c.guest_faults[1], self.c.guest_faults[2]

    @property
    def slat_faults(self):
        return self.c.slat_faults[0], self.c.slat_faults[1], self.c.slat_faults[2]

    @property
    def remapped(self):
        """Host faults that found a held frame."""
        return self.c.remapped

    @property
    def served(self):
        """Faults and zeroed bytes in one number: it grows when any of them does."""
        return (self.c.guest_faults[0] + self.c.guest_faults[1] + self.c.guest_faults[2]
                + self.c.slat_faults[0] + self.c.slat_faults[1] + self.c.slat_faults[2]
                + self.c.remapped + self.c.zeroed_bytes)

    @property
    def zeroed_bytes(self):
        """Bytes that the guest zeroed."""
        return self.c.zeroed_bytes

    @property
    def reuse_bytes(self):
        """The part of the zeroed bytes that somebody had used before: `zeroing` did not ask."""
        return self.c.reuse_bytes

    @property
    def fault_address(self):
        """What the last RUN_SWAPPED, RUN_NO_MEMORY or RUN_PROTECTED was about.

        An address in the backing's space; after RUN_GUEST_SWAPPED one in the process.
        """
        return self.c.fault_address
