# Accesses that are drawn instead of run: `sampled` fidelity (docs/fidelity.md).
#
# A quantum of accesses is drawn at once: which pages will be accessed for the first time since
# that changes something, and when. Accesses to a page are a Poisson process in the number of
# accesses, so the first one comes after an exponential time; a piece with the shares of its
# pages added up, and the whole stream with those of its pieces, are such processes too, so
# what will not be reached costs one draw. Where accesses come in a known order, so do the
# first ones. Then the events are played in their order through the walk and the faults of the
# exact loop. What lies between two of them changes nothing: it takes what windows of real
# accesses measured (simvm/model/sampled.py).

from libc.math cimport exp, log, pow
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memset
from simvm.core.blocks cimport Blocks
from simvm.core.mmu cimport GUEST_FAULT, NOWHERE, OK, Counters, Mmu, Space, keep_time
from simvm.core.run cimport touch
from simvm.core.shadow_fault cimport shadow_fault
from simvm.core.stream cimport CHASE, DRIFTING, STRIDED, TRACE, Stream, stream_ready
from simvm.core.table cimport ACCESSED, DIRTY, TARGET, Node, find_leaf, span_of
from simvm.core.touches cimport (AND_DIRTY, PIECE, WRITE_ONLY, Event, Found, Open, Piece, Touches,
                                 bounds_of, in_order, look, share_of_page)
from simvm.core.vcpu cimport (RUN_BUDGET, RUN_DEADLINE, RUN_PRESSURE, RUN_STREAM_END, Backing,
                              Region, Vcpu, back, do_work, guest_fault)
from simvm.core.walk cimport walk_for

cdef enum:
    MOST_EVENTS = 1 << 16    # of a quantum, about; more make it shorter
    KEPT = 1 << 10           # places for events that stay when a quantum is over


cdef inline double uniform(Touches *t) noexcept nogil:
    """In [0, 1)."""
    return t.bits.next_double(t.bits.state)


cdef inline double wait(Touches *t, double rate) noexcept nogil:
    """Accesses until the first one of a Poisson process."""
    return -log(1.0 - uniform(t)) / rate


cdef inline int emit(Touches *t, double at, uint64_t page, bint write) noexcept nogil:
    cdef uint64_t room
    cdef void *more
    if t.n_events == t.room:
        room = t.room * 2 + 256
        more = realloc(t.event, room * sizeof(Event))
        if more == NULL:
            return -1
        t.event, t.room = <Event *>more, room
    t.event[t.n_events].at = t.at + <uint64_t>at
    t.event[t.n_events].page = <uint32_t>page
    t.event[t.n_events].write = write
    t.n_events += 1
    return 0


cdef inline int compare(const void *a, const void *b) noexcept nogil:
    cdef const Event *x = <const Event *>a
    cdef const Event *y = <const Event *>b
    if x.at != y.at:
        return 1 if x.at > y.at else -1
    return <int>(x.page > y.page) - <int>(x.page < y.page)


cdef inline bint dirties(Touches *t, uint64_t flags, double share, double left) noexcept nogil:
    """Whether the first access writes, or, where D is clear, another one of those to come."""
    if flags & WRITE_ONLY or uniform(t) < t.writes:
        return True
    return (flags & AND_DIRTY and t.writes > 0.0
            and uniform(t) < 1.0 - exp(-share * t.writes * left))


# --- at random --------------------------------------------------------------------------

cdef inline int draw_in_piece(Touches *t, const Space *s, const Backing *b, const Region *r,
                              uint64_t c, double first, double end, Found *f,
                              Open *open) noexcept nogil:
    """Events of a piece whose first one is at `first`, by the rate that it was thought to have.

    It has less where pages have been accessed since: then the first one is none with the chance
    that makes up for it.
    """
    cdef Piece *k = &t.piece[c]
    cdef uint64_t low, high, page
    cdef double rate, chance = 0.0, last = -1.0, u, at, before = k.any + k.write
    cdef int i, chosen
    cdef bint leaf, first_is
    bounds_of(t, c, &low, &high)
    leaf = look(t, s, b, r, c, True, f, open)
    t.total += k.any + k.write - before
    first_is = uniform(t) * before < k.any + k.write
    if leaf:
        if not first_is:
            return 0
        return emit(t, first, low, dirties(t, WRITE_ONLY if k.any == 0.0 else AND_DIRTY, k.all,
                                           end - first))
    u = uniform(t) * (k.any + k.write)
    chosen = 0 if first_is else open.n
    while chosen < open.n - 1 and u >= open.rate[chosen]:
        u -= open.rate[chosen]
        chosen += 1
    for i in range(open.n):
        rate, at = open.rate[i], first
        if i != chosen:
            if rate != last:
                chance, last = 1.0 - exp(-rate * (end - first)), rate
            u = uniform(t)
            if u >= chance:
                continue
            at = first - log(1.0 - u) / rate
            if at >= end:
                continue
        page = low + (open.page[i] & (PIECE - 1))
        if emit(t, at, page, dirties(t, open.page[i], share_of_page(t, page), end - at)) != 0:
            return -1
    return 0


cdef inline uint64_t affordable(Touches *t, uint64_t accesses) noexcept nogil:
    """Fewer accesses, if so many would bring too many events at once."""
    cdef double events
    cdef uint64_t c
    while accesses > 1 and t.total * accesses > MOST_EVENTS:
        events = 0.0
        t.operations.pieces += t.n_pieces
        for c in range(t.n_pieces):
            events += min(<double>t.piece[c].n_open,
                          (t.piece[c].any + t.piece[c].write) * accesses)
        if events <= MOST_EVENTS:
            break
        accesses //= 2
    return accesses


cdef inline int draw_at_random(Touches *t, const Space *s, const Backing *b, const Region *r,
                               uint64_t *accesses, Found *f, Open *open) noexcept nogil:
    cdef double end, first, u, rate, at
    cdef uint64_t c, chosen = 0
    accesses[0] = affordable(t, accesses[0])
    end = <double>accesses[0]
    first = wait(t, t.total)
    if first >= end:
        return 0
    u = uniform(t) * t.total
    t.operations.pieces += t.n_pieces
    for c in range(t.n_pieces):
        rate = t.piece[c].any + t.piece[c].write
        if rate > 0.0:
            chosen = c
            if u < rate:
                break
            u -= rate
    for c in range(t.n_pieces):
        rate = t.piece[c].any + t.piece[c].write
        if rate <= 0.0:
            continue
        at = first if c == chosen else first + wait(t, rate)
        if at < end and draw_in_piece(t, s, b, r, c, at, end, f, open) != 0:
            return -1
    return 0


# --- in a known order -------------------------------------------------------------------

cdef inline double once_of(const Touches *t, double visits) noexcept nogil:
    """The chance that one of so many accesses writes."""
    return 1.0 - pow(1.0 - t.writes, visits)


cdef inline int visit(Touches *t, double at, uint64_t page, uint64_t flags,
                      double visits) noexcept nogil:
    """The event of a page that is accessed some times from `at` on, if it is one."""
    cdef bint write = t.writes > 0.0 and uniform(t) < once_of(t, visits)
    if flags & WRITE_ONLY and not write:
        return 0
    return emit(t, at, page, write)


cdef inline int draw_pass(Touches *t, const Space *s, const Backing *b, const Region *r,
                          uint64_t position, uint64_t n, uint64_t before, Found *f,
                          Open *open) noexcept nogil:
    """Events of `n` accesses from `position` of a strided stream on, without a wrap."""
    cdef const Stream *m = t.stream
    cdef uint64_t start = m.start + position, end = start + (n - 1) * m.stride + 1
    cdef uint64_t c = ((start >> 12) + t.skew) // PIECE, low, high, page, ahead
    cdef double visits = max(1.0, 4096.0 / m.stride)
    cdef int i
    cdef bint leaf
    while c < t.n_pieces:
        bounds_of(t, c, &low, &high)
        if low << 12 >= end:
            break
        leaf = look(t, s, b, r, c, False, f, open)
        if t.piece[c].any + t.piece[c].write > 0.0:
            if leaf:
                open.n = 1
                open.page[0] = <uint16_t>(WRITE_ONLY if t.piece[c].any == 0.0 else 0)
            elif open.n < 0:
                look(t, s, b, r, c, True, f, open)
            for i in range(open.n):
                page = low + (open.page[i] & (PIECE - 1))
                ahead = 0
                if page << 12 > start:
                    ahead = ((page << 12) - start + m.stride - 1) // m.stride
                if not leaf and (start + ahead * m.stride) >> 12 != page:
                    continue
                if ahead < n and visit(t, <double>(before + ahead), page, open.page[i],
                                       visits * ((high - low) if leaf else 1)) != 0:
                    return -1
        c += 1
    return 0


cdef inline int draw_strided(Touches *t, const Space *s, const Backing *b, const Region *r,
                             uint64_t *accesses, Found *f, Open *open) noexcept nogil:
    cdef const Stream *m = t.stream
    cdef uint64_t position = m.position, n, done = 0
    # An eighth of a pass, so that what is taken meanwhile is seldom missed; at most as many pages
    # as there may be events.
    accesses[0] = min(accesses[0], m.length // m.stride // 8 + 1,
                      max(<uint64_t>1, MOST_EVENTS * <uint64_t>4096 // max(m.stride, <uint64_t>64)))
    while done < accesses[0]:
        n = min(accesses[0] - done, (m.length - position + m.stride - 1) // m.stride)
        if draw_pass(t, s, b, r, position, n, done, f, open) != 0:
            return -1
        done += n
        position = (position + n * m.stride) % m.length
    return 0


cdef inline uint64_t turn_of(const Touches *t, uint64_t node) noexcept nogil:
    """Accesses of a pointer chase until it next comes to a node: `chase_next` backwards."""
    cdef const Stream *m = t.stream
    cdef uint64_t x = node
    cdef int i
    for i in range(2, -1, -1):
        x ^= x >> m.half
        x = (x * t.unkeys[i]) & m.mask
    # Numbers beyond the last node are skipped: they lie evenly among the others.
    return <uint64_t>(((x - m.position) & m.mask) * (<double>m.nodes / (m.mask + 1)))


cdef inline int draw_chase(Touches *t, const Space *s, const Backing *b, const Region *r,
                           uint64_t accesses, Found *f, Open *open) noexcept nogil:
    cdef const Stream *m = t.stream
    cdef uint64_t c, low, high, page, node, last, first
    cdef int i
    cdef bint leaf
    t.operations.pieces += t.n_pieces
    for c in range(t.n_pieces):
        if t.piece[c].any + t.piece[c].write <= 0.0:
            continue
        bounds_of(t, c, &low, &high)
        leaf = look(t, s, b, r, c, True, f, open)
        if leaf:
            open.n = 1
            open.page[0] = <uint16_t>(WRITE_ONLY if t.piece[c].any == 0.0 else 0)
        for i in range(open.n):
            page = low + (open.page[i] & (PIECE - 1))
            node = ((page << 12) + m.granule - 1) // m.granule
            last = ((high if leaf else page + 1) << 12) - 1
            first = accesses
            while node < m.nodes and node * m.granule <= last:
                first = min(first, turn_of(t, node))
                node += 1
            if first < accesses and visit(t, <double>first, page, open.page[i], 1.0) != 0:
                return -1
    return 0


cdef inline int by_page(const void *a, const void *b) noexcept nogil:
    cdef const Event *x = <const Event *>a
    cdef const Event *y = <const Event *>b
    if x.page != y.page:
        return 1 if x.page > y.page else -1
    return <int>(x.at > y.at) - <int>(x.at < y.at)


cdef inline uint64_t keep_open(Touches *t, uint64_t first, uint64_t end, uint64_t kept, uint64_t c,
                               uint64_t low, bint leaf, const Open *open) noexcept nogil:
    """Of the first accesses of a piece's pages, put those that change something from `kept` on."""
    cdef uint16_t flags[PIECE]
    cdef uint64_t i, n = kept, earliest = first
    cdef uint64_t last = ~<uint64_t>0
    cdef Event e
    cdef int j
    memset(flags, 0, sizeof(flags))
    for j in range(open.n if not leaf else 0):
        flags[open.page[j] & (PIECE - 1)] |= open.page[j] | 1 << 15
    for i in range(first + 1, end):
        if t.event[i].at < t.event[earliest].at:
            earliest = i
    for i in range(first, end):
        e = t.event[i]
        if leaf:
            # Writes come after the access that sets A, which is the earliest of all.
            if i != earliest and not (e.write and t.piece[c].n_open):
                continue
        elif i != earliest:     # ... through the guest's table page, which may be idle or gone
            j = flags[e.page - low]
            if not j or (j & WRITE_ONLY and not e.write):
                continue
            if e.page == last and not j & AND_DIRTY:
                continue
        last = e.page
        t.event[n] = e
        n += 1
    return n


cdef inline int draw_trace(Touches *t, const Space *s, const Backing *b, const Region *r,
                           uint64_t accesses, Found *f, Open *open) noexcept nogil:
    """Of the accesses of a recorded trace, the first one to a page and the first write to it,
    where the page's piece is open; then of these the ones that change something."""
    cdef const Stream *m = t.stream
    cdef uint64_t i, end, word, page, last = ~<uint64_t>0, c, bit, low, high, kept = 0
    cdef bint leaf
    for i in range(accesses):
        word = m.next[m.at + i]
        page = word >> 13
        if page == last and not word & 1:
            continue
        last = page
        c = (page + t.skew) // PIECE
        if t.piece[c].any + t.piece[c].write <= 0.0:
            continue
        bit = <uint64_t>(3 if word & 1 else 1) << (2 * (page & 31))
        if t.marks[page >> 5] & bit == bit:
            continue
        t.marks[page >> 5] |= bit
        if emit(t, <double>i, page, word & 1) != 0:
            return -1
    for i in range(t.n_events):
        t.marks[t.event[i].page >> 5] = 0
    qsort(t.event, t.n_events, sizeof(Event), by_page)
    i = 0
    while i < t.n_events:
        c = (t.event[i].page + t.skew) // PIECE
        bounds_of(t, c, &low, &high)
        end = i + 1
        while end < t.n_events and t.event[end].page < high:
            end += 1
        leaf = look(t, s, b, r, c, True, f, open)
        kept = keep_open(t, i, end, kept, c, low, leaf, open)
        i = end
    t.n_events = kept
    return 0


# --- a quantum --------------------------------------------------------------------------

cdef inline void look_at_all(Touches *t, const Space *s, const Backing *b, const Region *r,
                             Found *f, Open *open) noexcept nogil:
    cdef uint64_t c
    t.total = t.gone = 0.0
    t.n_gone = 0
    for c in range(t.n_pieces):
        look(t, s, b, r, c, False, f, open)
        t.total += t.piece[c].any + t.piece[c].write
        t.gone += t.piece[c].gone
        t.n_gone += t.piece[c].n_gone
    t.host_seen = b.table.changes
    t.guest_seen = s.guest.changes if s.guest != NULL else 0


cdef inline bint in_order_or_drifting(const Stream *m) noexcept nogil:
    """Whether what is known of pieces does not hold from quantum to quantum."""
    return m.kind == DRIFTING or in_order(m)


cdef inline int draw(Touches *t, const Space *s, const Backing *b, const Region *r,
                     uint64_t accesses) noexcept nogil:
    """Draw the events of the next accesses; of fewer than asked for, if they are many."""
    cdef Found f
    cdef Open open
    cdef Stream *m = t.stream
    cdef int status = 0
    memset(&f, 0, sizeof(f))
    t.n_events = t.next = 0
    t.operations.quanta += 1
    if m.kind == DRIFTING:
        # While the hot window moves little, each page has one rate.
        accesses = min(accesses, max(<uint64_t>1, (m.hot_pages // 8 + 1) * 1000 // max(m.drift, 1)))
        t.from_page = m.made * m.drift // 1000 % m.pages
        t.moves = accesses * m.drift // 1000
    if m.kind == TRACE:
        if not stream_ready(m):
            return RUN_STREAM_END
        accesses = min(accesses, <uint64_t>(m.n - m.at))
    if m.kind == STRIDED:
        t.total = 1.0                   # it looks at what is ahead alone
    elif (t.host_seen != b.table.changes or (s.guest != NULL and t.guest_seen != s.guest.changes)
            or (t.total > 0.0 and in_order_or_drifting(m))):
        look_at_all(t, s, b, r, &f, &open)
    if t.total > 0.0:
        if m.kind == STRIDED:
            status = draw_strided(t, s, b, r, &accesses, &f, &open)
        elif m.kind == CHASE:
            status = draw_chase(t, s, b, r, accesses, &f, &open)
        elif m.kind == TRACE:
            status = draw_trace(t, s, b, r, accesses, &f, &open)
        else:
            status = draw_at_random(t, s, b, r, &accesses, &f, &open)
        qsort(t.event, t.n_events, sizeof(Event), compare)
    t.until = t.at + accesses
    return status


cdef inline void pass_over(Touches *t, uint64_t n) noexcept nogil:
    """So many accesses of the stream are done without being drawn."""
    cdef Stream *m = t.stream
    t.at += n
    m.drawn += n
    if m.kind == TRACE:
        m.at += n
        return
    m.made += n
    if m.kind == STRIDED:
        m.position = (m.position + n * m.stride) % m.length
    elif m.kind == CHASE:
        m.position += <uint64_t>(n * ((m.mask + 1) / <double>m.nodes))


cdef inline void put_back(Stream *m) noexcept nogil:
    """Undo the drawing of accesses that have not been done, where their order matters."""
    cdef uint64_t n = m.n - m.at
    if m.kind == TRACE or n == 0:
        return
    m.made -= n
    if m.kind == STRIDED:
        m.position = (m.position + m.length - n * m.stride % m.length) % m.length
    m.n = m.at = 0


cdef inline void count_skipped(Vcpu *v, Touches *t, uint64_t n) noexcept nogil:
    """Charge accesses what the windows took, and count what they counted, without a residue."""
    cdef uint64_t *count = <uint64_t *>&v.count
    cdef uint64_t *sum = <uint64_t *>&t.sum
    cdef uint64_t *rest = <uint64_t *>&t.rest
    cdef size_t i
    v.done += n
    t.mean_rest += n * t.mean
    v.raw_cycles += t.mean_rest >> 16
    t.mean_rest &= 0xFFFF
    if t.measured == 0:
        v.count.accesses += n
        v.count.l1_hits += n
        return
    for i in range(sizeof(Counters) // sizeof(uint64_t)):
        # n * sum may be above 2^64, n // measured times the sum is not.
        count[i] += n // t.measured * sum[i]
        rest[i] += n % t.measured * sum[i]
        count[i] += rest[i] // t.measured
        rest[i] %= t.measured


cdef inline bint only_touches(const Space *s, uint64_t va, bint write) noexcept nogil:
    """Whether an access finds its page, and A and D as it leaves them: others came before it."""
    cdef uint64_t bits = ACCESSED | DIRTY if write else ACCESSED
    cdef Node *at = NULL
    cdef int order = 0
    cdef uint64_t *entry
    if s.guest != NULL:
        entry = find_leaf(s.guest, va, &at, &order)
        if entry == NULL or order == 0 or entry[0] & bits != bits:
            return False
        va = (entry[0] & TARGET) + (va & (span_of(order) - 1))
    entry = find_leaf(s.host, va, &at, &order)
    return entry != NULL and entry[0] & bits == bits


cdef inline int play_event(Vcpu *v, Space *s, Backing *b, Blocks *memory, Region *region,
                           const Event *e) noexcept nogil:
    """One access through the walk of the exact loop, and the faults that it takes."""
    cdef Mmu *m = v.mmu
    cdef uint64_t va = region.base + (<uint64_t>e.page << 12), before = m.spent, flags
    cdef int fault, status, size
    if v.n_work == 0 and only_touches(s, va, e.write):
        touch(region, e.page)
        return OK
    while True:
        if v.n_work:
            status = do_work(v, s, b, region)
            if status != OK:
                return status
        size, flags = 0, 0
        keep_time(m)
        m.tick += 1
        fault = walk_for(m, s, va, e.write, NOWHERE, False, &size, &flags)
        m.spent = before
        if fault == OK:
            touch(region, e.page)
            return OK
        if fault == GUEST_FAULT:
            status = guest_fault(v, s, memory, region, m.fault)
        elif b.shadow != NULL:
            status = shadow_fault(v, s, b, memory, region, va, e.write)
        else:
            status = back(v, s, b, region, m.fault)
        if status != OK:
            return status


cdef inline int play(Vcpu *v, Space *s, Backing *b, Blocks *memory, Region *region, Touches *t,
                     uint64_t budget, uint64_t deadline, uint64_t quantum) noexcept nogil:
    """As `run.run`, with events in place of accesses. Ends with the quantum that was drawn.

    A new one is of `quantum` accesses, or fewer.
    """
    cdef uint64_t left = budget, time = 0, n, target
    cdef uint64_t limit = deadline << 16 if deadline < <uint64_t>1 << 47 else ~<uint64_t>0
    cdef uint64_t per_access = (v.cycles_per_access << 16) + ((t.mean * v.exposed) >> 16)
    cdef int status = RUN_BUDGET
    t.operations = &v.operations
    put_back(t.stream)
    while True:
        if v.n_work:
            status = do_work(v, s, b, region)
            if status != OK:
                break
        if left and b.host.frames.free_pages < b.host.wake_below:
            status = RUN_PRESSURE
            break
        if left == 0:
            status = RUN_BUDGET
            break
        if time >= limit or (t.at == t.until and left < budget):
            status = RUN_DEADLINE
            break
        if t.at == t.until:
            status = draw(t, s, b, region, quantum)
            if status != OK:
                break
        target = t.event[t.next].at if t.next < t.n_events else t.until
        n = min(target - t.at, left)
        if per_access:
            n = min(n, (limit - time - 1) // per_access + 1)
        pass_over(t, n)
        left -= n
        time += n * per_access
        if t.next < t.n_events and t.at == target:
            status = play_event(v, s, b, memory, region, &t.event[t.next])
            if status != OK:
                break
            t.next += 1
            v.operations.events += 1
    if t.at == t.until and t.room > KEPT:
        free(t.event)
        t.event, t.room, t.n_events, t.next = NULL, 0, 0, 0
    count_skipped(v, t, budget - left)
    v.mmu.clock += time >> 16
    return status
