# An exit on a missing shadow entry, as a vCPU runs.
#
# What is a hardware walk of two tables elsewhere is done here by the host, in software: it
# reads the guest's table, finds what backs the page, and fills the entry that the processor
# walks.

from libc.stdint cimport uint64_t
from simvm.core.blocks cimport Blocks
from simvm.core.flush cimport flush_all
from simvm.core.mmu cimport OK, Space
from simvm.core.shadow cimport Shadow, entries_of, process_with, shadow_fill
from simvm.core.table cimport (ACCESSED, DIRTY, LEAF, TARGET, Node, Table, child_of, find_entry,
                               index_in, is_child, span_of)
from simvm.core.vcpu cimport (RUN_NO_MEMORY, RUN_TRAIN, TABLE_RESERVE, Backing, Region, Vcpu, back,
                              guest_fault, spend)


cdef inline int read_guest(Vcpu *v, Space *s, Backing *b, Region *region, const Table *guest,
                           uint64_t va, uint64_t **entry, int *level) noexcept nogil:
    """The host reads the guest's entry for `va`; a table page must be there to be read."""
    cdef Node *node = guest.root
    cdef Node *at = NULL
    cdef uint64_t *host
    cdef int status, unused = 0
    while True:
        host = find_entry(b.table, node.address, &at, &unused)
        if not host[0] & LEAF:
            status = back(v, s, b, region, node.address)
            if status != OK:
                return status
            continue
        host[0] |= ACCESSED
        entry[0] = &node.entry[index_in(guest, va, node.level)]
        level[0] = node.level
        if not is_child(entry[0][0]):
            return OK
        node = child_of(entry[0][0])


cdef inline int shadow_fault(Vcpu *v, Space *s, Backing *b, Blocks *memory, Region *region,
                             uint64_t va, bint write) noexcept nogil:
    """A shadow entry is missing: fill it, or reflect the fault to the guest's kernel.

    The kernel's writes to its page tables trap, one for each entry.
    """
    cdef Shadow *shadow = b.shadow
    cdef uint64_t process = process_with(shadow, s.host)
    cdef Table *guest = shadow.process[process].guest
    cdef Space view
    cdef Node *at = NULL
    cdef uint64_t *entry = NULL
    cdef uint64_t *host
    cdef uint64_t gpa, written
    cdef int status, level = 0, host_level = 0
    if v.service_left == 0:
        return RUN_TRAIN
    status = read_guest(v, s, b, region, guest, va, &entry, &level)
    if status != OK:
        return status
    if not entry[0] & LEAF:
        view = s[0]
        view.guest = guest
        written = entries_of(guest)
        status = guest_fault(v, &view, memory, region, va)
        if status == OK:
            if v.untagged:
                flush_all(v.mmu)
            written = entries_of(guest) - written
            shadow.writes += written
            shadow.reflected += 1
            spend(v, shadow.fill_ns + written * shadow.write_ns)
        return status
    gpa = (entry[0] & TARGET) + (va & (span_of(level - 1) - 1))
    host = find_entry(b.table, gpa, &at, &host_level)
    if not host[0] & LEAF:
        status = back(v, s, b, region, gpa)
        if status != OK:
            return status
        host = find_entry(b.table, gpa, &at, &host_level)
    v.fault_address = gpa
    if b.host.frames.free_pages < b.host.floor + TABLE_RESERVE:
        return RUN_NO_MEMORY
    if v.untagged:
        flush_all(v.mmu)
    entry[0] |= ACCESSED | (DIRTY if write else 0)
    shadow_fill(shadow, process, va, gpa, level - 1, host[0], host_level - 1)
    spend(v, shadow.fill_ns)
    return OK
