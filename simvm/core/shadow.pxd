# Shadow paging: what the host keeps for a guest whose page tables the processor never reads.
#
# For each process of the guest there is a shadow table, gVA -> hPA, in host RAM; the
# processor walks it alone. The host fills it from two tables: the guest's (gVA -> gPA),
# every write to which traps, and its own (gPA -> hPA). So a shadow leaf holds only as long
# as both of its parents do. A reverse map leads from a guest page to the shadow leaf that
# maps it, so that a change of the host's table finds what it has to drop. The model is KVM's
# (Documentation/virt/kvm/x86/mmu.rst): a shadow page has a second page beside it, which
# names the guest page of each entry, and the reverse map has a word for each guest page of
# each size. A guest page is mapped once here, so a word is enough.
#
# Dropping a leaf may free its table page: whoever drops must flush before the next access.

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, realloc
from simvm.core.table cimport (ACCESSED, DIRTY, TARGET, Node, Table, clear_entry,
                               find_leaf, prune_up, span_of, table_map)

cdef enum:
    ORDERS = 3
    VA_BITS = 45              # of a page number, under 5 levels

cdef struct Shadowed:         # one process
    Table *guest
    Table *table

cdef struct Shadow:
    uint64_t end              # of guest memory
    uint64_t *mapped_at[3]    # by order, by guest page: (process + 1, page of the VA), or 0
    Shadowed *process
    uint64_t n_processes
    uint64_t write_ns         # a trapped write of a guest page-table entry
    uint64_t fill_ns          # an exit on a missing shadow entry, beside what is backed
    # cumulative
    uint64_t writes
    uint64_t fills
    uint64_t reflected        # exits that found the guest's own entry missing


cdef inline uint64_t page_of(uint64_t address, int order) noexcept nogil:
    return address >> (12 + 9 * order)


cdef inline int shadow_init(Shadow *s, uint64_t end) noexcept nogil:
    """Room for the reverse map. calloc maps zero pages lazily: what is not used costs nothing."""
    cdef int order
    s.end = end
    for order in range(ORDERS):
        s.mapped_at[order] = <uint64_t *>calloc(page_of(end, order) + 1, 8)
        if s.mapped_at[order] == NULL:
            return -1
    return 0


cdef inline void shadow_free(Shadow *s) noexcept nogil:
    cdef int order
    for order in range(ORDERS):
        free(s.mapped_at[order])
        s.mapped_at[order] = NULL
    free(s.process)
    s.process = NULL
    s.n_processes = 0


cdef inline int shadow_add(Shadow *s, Table *guest, Table *table) noexcept nogil:
    """From now on `table` shadows `guest`."""
    cdef uint64_t n = s.n_processes
    cdef Shadowed *more = <Shadowed *>realloc(s.process, (n + 1) * sizeof(Shadowed))
    if more == NULL:
        return -1
    s.process = more
    s.process[n].guest = guest
    s.process[n].table = table
    s.n_processes += 1
    return 0


cdef inline uint64_t process_with(const Shadow *s, const Table *table) noexcept nogil:
    """The process that a shadow table is of."""
    cdef uint64_t i = 0
    while s.process[i].table != table:
        i += 1
    return i


cdef inline uint64_t va_of(uint64_t word) noexcept nogil:
    return (word & ((<uint64_t>1 << VA_BITS) - 1)) << 12


cdef inline Shadowed *process_of(const Shadow *s, uint64_t word) noexcept nogil:
    return &s.process[(word >> VA_BITS) - 1]


cdef inline uint64_t *leaf_at(const Shadow *s, uint64_t word, Node **at,
                              int *order) noexcept nogil:
    """The shadow leaf that a word of the reverse map names, or NULL."""
    return find_leaf(process_of(s, word).table, va_of(word), at, order)


cdef inline uint64_t shadow_drop(Shadow *s, uint64_t start, uint64_t end) noexcept nogil:
    """Remove every shadow leaf that maps part of guest memory [start, end); their A and D."""
    cdef uint64_t page, word, bits = 0
    cdef uint64_t *entry
    cdef Table *table
    cdef Node *at = NULL
    cdef int order, found = 0
    end = min(end, s.end)
    for order in range(ORDERS):
        page = page_of(start, order)
        while start < end and page <= page_of(end - 1, order):
            word = s.mapped_at[order][page]
            if word != 0:
                s.mapped_at[order][page] = 0
                entry = leaf_at(s, word, &at, &found)
                bits |= entry[0] & (ACCESSED | DIRTY)
                table = process_of(s, word).table
                clear_entry(table, at, entry - at.entry)
                prune_up(table, at)
            page += 1
    return bits


cdef inline void shadow_drop_leaf(Shadow *s, uint64_t *host, uint64_t base,
                                  int order) noexcept nogil:
    """Before the host changes its leaf at `base`: drop what shadows it, and keep A and D."""
    if s != NULL:
        host[0] |= shadow_drop(s, base, base + span_of(order))


cdef inline bint shadow_test_and_clear_accessed(Shadow *s, uint64_t base,
                                                int order) noexcept nogil:
    """Whether a shadow leaf in the host's leaf at `base` was accessed; the bits are cleared."""
    cdef uint64_t page
    cdef uint64_t *entry
    cdef Node *at = NULL
    cdef bint accessed = False
    cdef int o, found = 0
    for o in range(order + 1):
        for page in range(page_of(base, o), page_of(base + span_of(order) - 1, o) + 1):
            if s.mapped_at[o][page] != 0:
                entry = leaf_at(s, s.mapped_at[o][page], &at, &found)
                accessed = accessed or entry[0] & ACCESSED
                entry[0] &= ~<uint64_t>ACCESSED
    return accessed


cdef inline void shadow_fill(Shadow *s, uint64_t process, uint64_t va, uint64_t gpa,
                             int guest_order, uint64_t host_leaf,
                             int host_order) noexcept nogil:
    """Map the page of `va` for the processor: the smaller of the guest's and the host's leaf."""
    cdef int order = min(guest_order, host_order), n_made = 0
    cdef uint64_t inside = span_of(order) - 1
    cdef uint64_t target = (host_leaf & TARGET) + (gpa & (span_of(host_order) - 1) & ~inside)
    cdef Node *made[5]
    table_map(s.process[process].table, va & ~inside, target, order, 0, made, &n_made)
    s.mapped_at[order][page_of(gpa, order)] = ((process + 1) << VA_BITS) | ((va & ~inside) >> 12)
    s.fills += 1


cdef inline uint64_t entries_of(const Table *t) noexcept nogil:
    """Entries in use of a table without swapped ones: leaves, and one for each page linked."""
    return t.leaves[0] + t.leaves[1] + t.leaves[2] + t.pages - 1


cdef inline bint shadow_agrees(const Shadow *s, const Table *host) noexcept nogil:
    """Whether each shadow leaf maps what guest and host map, and each is in the reverse map."""
    cdef uint64_t page, word, gpa, mapped = 0, leaves = 0, i
    cdef uint64_t *entry
    cdef uint64_t *guest
    cdef uint64_t *backed
    cdef Table *table
    cdef Node *at = NULL
    cdef int order, found = 0
    for order in range(ORDERS):
        for page in range(page_of(s.end, order)):
            word = s.mapped_at[order][page]
            if word == 0:
                continue
            mapped += 1
            entry = leaf_at(s, word, &at, &found)
            if entry == NULL or found != order:
                return False
            gpa = page << (12 + 9 * order)
            guest = find_leaf(process_of(s, word).guest, va_of(word), &at, &found)
            if guest == NULL or found < order:
                return False
            if (guest[0] & TARGET) + (va_of(word) & (span_of(found) - 1)) != gpa:
                return False
            backed = find_leaf(host, gpa, &at, &found)
            if backed == NULL or found < order:
                return False
            if (backed[0] & TARGET) + (gpa & (span_of(found) - 1)) != entry[0] & TARGET:
                return False
    for i in range(s.n_processes):
        table = s.process[i].table
        leaves += table.leaves[0] + table.leaves[1] + table.leaves[2]
    return mapped == leaves
