# What the accesses of a stream can still change, region by region in pieces of 2 MiB.
#
# `sampled` fidelity does not run every access: it draws which pages the next ones touch for
# the first time since it mattered (sampled.pxd). An access changes something where a page is
# missing in a dimension, where A is clear, where nobody had touched it since it was allocated,
# and, if it writes, where D is clear. For each piece this file adds up the shares of the
# stream's accesses that would. What it found stays true until a table page that the piece
# hangs on has `changed`; pieces in huge leaves need no memory, their A and D are looked at.
#
# Here are the core's only floating-point numbers, with sampled.pxd: probabilities.

from libc.math cimport exp
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from numpy.random cimport bitgen_t
from simvm.core.mmu cimport Counters, Space
from simvm.core.stream cimport CHASE, DRIFTING, HOT_COLD, STRIDED, TRACE, UNIFORM, ZIPF, Stream
from simvm.core.table cimport (ACCESSED, DIRTY, LEAF, TARGET, Node, Table, child_of, find_entry,
                               is_child, span_of)
from simvm.core.vcpu cimport Backing, Operations, Region

cdef enum:
    PIECE = 512              # pages of a piece
    WRITE_ONLY = 512         # flag of an open page: only a write changes it
    AND_DIRTY = 1024         # ... and its D is clear
    BITS = 8                 # of a rank's mantissa, by which ranks are told apart
    WALKED = LEAF | ACCESSED | DIRTY    # a walk counts as a write to table pages

cdef struct Piece:
    uint64_t host_seen       # `changed` of the SLAT when the piece was looked at
    uint64_t guest_seen      # ... and of the guest's table
    double rate              # share of accesses to each of its pages then, -1 if they differ
    double any               # share of accesses that change something, in all
    double write             # share of writes that do, beside them
    double all               # share of accesses that go to the piece; -1: not known
    double gone              # share of accesses to pages that were taken away
    int n_gone
    int n_open
    bint known
    bint touched             # every page of it, which no host can undo

cdef struct Open:            # the pages of a piece that an access can change
    uint16_t page[513]       # number in the piece | flags
    double rate[513]         # share of accesses that do
    int n

cdef struct Event:           # the first access to a page that changes something
    uint64_t at              # how many accesses come before it
    uint32_t page            # of the region
    uint32_t write           # whether it writes, or another one will within the quantum

cdef struct Touches:
    Stream *stream
    bitgen_t *bits
    Operations *operations   # of the vCPU whose turn it is
    uint64_t first           # number of the region's first 2 MiB of addresses
    uint64_t skew            # 4 KiB pages of that before the region
    uint64_t n_pieces
    Piece *piece
    double flat              # share of accesses to a page: of all, or of the hot ones,
    double cold              # ... and of the others
    double writes
    const float *by_rank     # zipf: share of a rank, by the first bits of it
    uint64_t inverse         # zipf: of the multiplier that scatters ranks
    uint64_t unkeys[3]       # pointer chase: inverses of its keys
    double residence         # accesses for which a TLB keeps what it used last,
    double shootdowns        # ... and how often it is emptied, in an access
    double total             # of the pieces: share of accesses that change something,
    double gone              # ... and that find no frame
    uint64_t n_gone
    uint64_t host_seen       # `changes` of the tables when the pieces were looked at
    uint64_t guest_seen
    uint64_t from_page       # drifting: the hot window at the quantum's beginning,
    uint64_t moves           # ... and the pages by which it moves in the quantum
    uint64_t *marks          # trace: pages with an event in this quantum, two bits each
    # what was drawn
    uint64_t at              # accesses of the stream so far
    uint64_t until           # ... for which events are drawn
    Event *event
    uint64_t n_events
    uint64_t next
    uint64_t room
    # what windows have measured
    uint64_t mean            # translation, in 1/65536 of a cycle an access
    uint64_t mean_rest       # of 65536
    uint64_t measured        # accesses
    Counters sum
    Counters rest


cdef inline double share_of_rank(const Touches *t, uint64_t rank) noexcept nogil:
    """Ranks below 2^BITS have a share of their own; then those with the same first bits do."""
    cdef int octave = 0
    cdef uint64_t number = rank + 1
    while number >> (octave + BITS + 1):
        octave += 1
    return t.by_rank[(<uint64_t>octave << BITS) + (number >> octave)]


cdef inline double share_of_page(const Touches *t, uint64_t page) noexcept nogil:
    """Share of accesses that go to a page; 1 for each where they come in a known order."""
    cdef const Stream *s = t.stream
    cdef uint64_t node, ahead
    if s.kind == UNIFORM:
        return t.flat
    if s.kind == ZIPF:
        node = ((page << 12) + s.granule - 1) // s.granule
        if node >= s.nodes or node * s.granule >= (page + 1) << 12:
            return 0.0
        return share_of_rank(t, node * t.inverse % s.nodes)
    if s.kind == HOT_COLD:
        return t.flat if page < s.hot_pages else t.cold
    if s.kind == DRIFTING:
        # The window begins at 0 to `moves` pages on: for so much of the quantum it is hot.
        ahead = page - t.from_page if page >= t.from_page else page + s.pages - t.from_page
        if ahead >= s.hot_pages + t.moves:
            return t.cold
        node = min(ahead, t.moves) + 1 - (ahead - s.hot_pages + 1 if ahead >= s.hot_pages else 0)
        return t.cold + (t.flat - t.cold) * node / (t.moves + 1)
    return 1.0


cdef inline void bounds_of(const Touches *t, uint64_t c, uint64_t *low,
                           uint64_t *high) noexcept nogil:
    """The pages of the stream that lie in a piece: [low, high)."""
    low[0] = 0 if c == 0 else c * PIECE - t.skew
    high[0] = min((c + 1) * PIECE - t.skew, t.stream.pages)


cdef inline double flat_share(const Touches *t, uint64_t low, uint64_t high) noexcept nogil:
    """Share of accesses to each page of [low, high) if it is the same for all, else -1."""
    cdef const Stream *s = t.stream
    cdef uint64_t ahead
    if s.kind == ZIPF:
        return -1.0
    if s.kind == HOT_COLD and low < s.hot_pages < high:
        return -1.0
    if s.kind == DRIFTING:
        ahead = low - t.from_page if low >= t.from_page else low + s.pages - t.from_page
        if t.moves <= ahead and ahead + high - low <= s.hot_pages:
            return t.flat
        if s.hot_pages + t.moves <= ahead and ahead + high - low <= s.pages:
            return t.cold
        return -1.0
    return share_of_page(t, low)


cdef inline double share_of_piece(const Touches *t, Piece *k, uint64_t low,
                                  uint64_t high) noexcept nogil:
    """Share of accesses that go to a piece."""
    cdef double flat = flat_share(t, low, high), total = 0.0
    cdef uint64_t page
    if flat >= 0.0:
        return flat * (high - low)
    if k.all < 0.0 or t.stream.kind == DRIFTING:
        for page in range(low, high):
            total += share_of_page(t, page)
        k.all = total
    return k.all


cdef inline bint in_order(const Stream *s) noexcept nogil:
    """Whether accesses come in an order that is known, not at random."""
    return s.kind == STRIDED or s.kind == CHASE or s.kind == TRACE


cdef inline double refilled(const Touches *t, double share) noexcept nogil:
    """Of accesses to a page whose A is clear, the share that does not find it in the TLB.

    Only a fill sets A. The TLB keeps a page for `residence` accesses after its last use, so an
    access finds it there unless as many have passed since (Che, Tung and Wang, 2002), or unless
    a shootdown has emptied it: then the next access fills it. So A is set after 1/(s e^(-sT) + f)
    accesses on average, and 1/s more where it was a shootdown that ended the stay.
    """
    cdef double missed = exp(-share * t.residence) if t.residence > 0.0 else 1.0
    return (share * missed + t.shootdowns) / (share + t.shootdowns)


cdef inline bint all_touched(const Region *r, uint64_t low, uint64_t high) noexcept nogil:
    cdef uint64_t page = low
    while page < high:
        if page & 63 == 0 and high - page >= 64:
            if ~r.touched[page >> 6]:
                return False
            page += 64
        elif (r.touched[page >> 6] >> (page & 63)) & 1:
            page += 1
        else:
            return False
    return True


cdef struct Way:             # to the 2 MiB around an address in one dimension
    uint64_t giga            # 1 + the GiB that `node` is of
    Node *node               # its table page of level 2, or NULL
    uint64_t block           # 1 + the 2 MiB that the rest is of
    uint64_t entry           # the entry that stands for all of it,
    Node *pages              # ... or the table page of level 1


cdef struct Found:           # where one piece of a region is mapped
    Way guest
    Way host


cdef inline void find_way(const Table *table, uint64_t address, Way *w) noexcept nogil:
    """What a table has for the 2 MiB around an address. Neighbours share most of the way."""
    cdef int level = 0
    cdef Node *at = NULL
    if w.block == (address >> 21) + 1:
        return
    w.block = (address >> 21) + 1
    if w.giga != (address >> 30) + 1:
        w.giga = (address >> 30) + 1
        w.entry = find_entry(table, address, &at, &level)[0]
        w.node = at if level == 2 else at.parent if level == 1 else NULL
        if level == 1:
            w.entry = w.node.entry[(address >> 21) & 511]
        if level == 3 and w.entry & LEAF:
            w.entry += address & (span_of(2) - 1) & ~(span_of(1) - 1)
    elif w.node == NULL:
        w.giga = 0
        w.block = 0
        find_way(table, address, w)
        return
    else:
        w.entry = w.node.entry[(address >> 21) & 511]
    w.pages = child_of(w.entry) if is_child(w.entry) else NULL


cdef inline void look_at_pages(Touches *t, const Space *s, const Backing *b,
                               const Region *r, Piece *k, uint64_t low, uint64_t high, Found *f,
                               Open *open) noexcept nogil:
    """Add up what can change, page by page."""
    cdef uint64_t page, va, gpa, entry, host, both
    cdef double share, thin = 1.0, last = -1.0
    cdef bint missing, clean, before, ordered = in_order(t.stream)
    cdef int64_t present = -1
    k.any = k.write = k.gone = 0.0
    k.n_gone = open.n = 0
    t.operations.pages += high - low
    for page in range(low, high):
        va = r.base + (page << 12)
        share = share_of_page(t, page)
        if share == 0.0:
            continue
        gpa, both, missing = va, ACCESSED | DIRTY, False
        if s.guest != NULL:
            entry = f.guest.entry
            if f.guest.pages != NULL:
                entry = f.guest.pages.entry[(va >> 12) & 511]
            missing = not entry & LEAF
            both = entry
            gpa = entry & TARGET
            if f.guest.pages == NULL:
                gpa += va & (span_of(1) - 1)
        if not missing:
            find_way(b.table, gpa, &f.host)
            host = f.host.entry
            if f.host.pages != NULL:
                host = f.host.pages.entry[(gpa >> 12) & 511]
            missing = not host & LEAF
            both &= host
        clean = missing or not both & DIRTY
        before = (r.touched[page >> 6] >> (page & 63)) & 1
        if missing and before:
            k.gone += share / t.stream.pages if ordered else share
            k.n_gone += 1
        if not missing and present < 0:
            present = page - low
        if not missing and before:
            if both & ACCESSED:
                if clean and t.writes > 0.0:
                    k.write += share * t.writes
                    open.page[open.n] = <uint16_t>(page - low) | WRITE_ONLY | AND_DIRTY
                    open.rate[open.n] = share * t.writes
                    open.n += 1
                continue
            if share != last and not ordered:
                thin, last = refilled(t, share), share
            share *= thin
        k.any += share
        open.page[open.n] = <uint16_t>(page - low) | (AND_DIRTY if clean else 0)
        open.rate[open.n] = share
        open.n += 1
    if s.guest != NULL and f.guest.pages != NULL and present >= 0:
        # A walk goes through the guest's table page, whose memory may be idle or gone.
        find_way(b.table, f.guest.pages.address, &f.host)
        host = f.host.entry
        if f.host.pages != NULL:
            host = f.host.pages.entry[(f.guest.pages.address >> 12) & 511]
        if host & WALKED != WALKED:
            share = share_of_piece(t, k, low, high)
            k.any += share
            open.page[open.n] = <uint16_t>present
            open.rate[open.n] = share
            open.n += 1


cdef inline bint look_at_leaves(const Touches *t, const Region *r, Piece *k, uint64_t low,
                                uint64_t high, const Found *f) noexcept nogil:
    """The same where one leaf of each dimension maps the whole piece; False if it is not so."""
    cdef uint64_t both = f.guest.entry & f.host.entry
    if f.host.pages != NULL or not f.host.entry & LEAF:
        return False
    if not k.touched:
        k.touched = all_touched(r, low, high)
        if not k.touched:
            return False
    k.any = k.write = k.gone = 0.0
    k.n_open = k.n_gone = 0
    k.known = False
    if not both & ACCESSED:
        k.any = share_of_piece(t, k, low, high)
        if not in_order(t.stream):
            k.any *= refilled(t, k.any)
        k.n_open = 1
    elif not both & DIRTY and t.writes > 0.0:
        k.write = share_of_piece(t, k, low, high) * t.writes
        k.n_open = 1
    return True


cdef inline bint look(Touches *t, const Space *s, const Backing *b, const Region *r,
                      uint64_t c, bint again, Found *f, Open *open) noexcept nogil:
    """See what accesses to a piece can change. Whether one leaf of each dimension maps it.

    The pages are in `open` if it looks at them: when it must, `again`, and else where it does not
    know them, or a table has changed. `open.n` is -1 if it does not.
    """
    cdef Piece *k = &t.piece[c]
    cdef uint64_t low, high, guest = 0, host, start
    cdef double flat
    open.n = -1
    t.operations.pieces += 1
    bounds_of(t, c, &low, &high)
    start = (r.base + (low << 12)) & ~(span_of(1) - 1)
    if s.guest == NULL:
        f.guest.entry, f.guest.pages = start | LEAF | ACCESSED | DIRTY, NULL
    else:
        find_way(s.guest, start, &f.guest)
        guest = f.guest.pages.changed if f.guest.pages != NULL else s.guest.changes
    # Pages of a guest in 4 KiB lie anywhere, so any change in the host may be of theirs.
    host = b.table.changes
    if f.guest.pages == NULL:
        if f.guest.entry & LEAF:
            find_way(b.table, f.guest.entry & TARGET, &f.host)
            if look_at_leaves(t, r, k, low, high, f):
                return True
            if f.host.pages != NULL:
                host = f.host.pages.changed
        if not again and (f.guest.entry == 0 or (f.guest.entry & LEAF and f.host.entry == 0)):
            # All of it is missing, which needs no look at each page.
            # Nor was it taken away: of what reclaim takes, an entry says where it is.
            k.any, k.gone = share_of_piece(t, k, low, high), 0.0
            k.n_open, k.n_gone = <int>(high - low), 0
            k.write, k.known = 0.0, False
            return False
    flat = flat_share(t, low, high)
    if (not again and k.known and k.host_seen == host and k.guest_seen == guest
            and k.rate == flat and (flat >= 0.0 or t.stream.kind != DRIFTING)):
        return False
    look_at_pages(t, s, b, r, k, low, high, f, open)
    k.n_open, k.known, k.rate = open.n, True, flat
    k.host_seen, k.guest_seen = host, guest
    return False
