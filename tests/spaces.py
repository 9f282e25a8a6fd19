"""Address spaces built by hand, small enough that every address can be read at a glance."""

from __future__ import annotations

from simvm.hardware.geometry import ENTRY_SHIFTS, ORDER_BYTES, TableFormat
from simvm.reference import OK, AddressSpace, BumpAllocator, Mmu, PageTable

KIB4, MIB2, GIB1 = ORDER_BYTES
KIB64, KIB16, MIB32, MIB512 = (1 << shift for shift in ENTRY_SHIFTS[3:])
HOST_TABLES = 1 << 40  # where the SLAT's pages lie in hPA, far from any data
GUEST_DATA = 8 * GIB1  # where the guest's data lies in gPA, far from its tables
VA = 0x40_8060_7000  # indices 0, 258, 3, 7 at levels 4 to 1: no two walks share a line


def page_table(form: TableFormat, base: int) -> PageTable:
    """A table of that format, with its pages from `base` up."""
    allocator = BumpAllocator(base)
    return PageTable(
        form.levels, allocator, form.granule_shift, form.root_bits, contiguous=form.contiguous
    )


def nested_space(
    guest_order: int = 0,
    host_order: int = 0,
    guest_levels: int = 4,
    host_levels: int = 4,
    tables_order: int | None = None,
    vas: tuple[int, ...] = (VA,),
    asid: int = 1,
    vpid: int = 0,
) -> AddressSpace:
    """A guest whose tables lie from gPA 0 on, backed by host leaves of `tables_order`.

    The page of each VA is mapped to the same offset from GUEST_DATA, and that to the
    same gPA in the host, so that all addresses can be read at a glance.
    """
    host = PageTable(host_levels, BumpAllocator(HOST_TABLES))
    guest = PageTable(guest_levels, BumpAllocator(0))
    space = AddressSpace(asid, host, guest, vpid)
    for va in vas:
        base = va - va % ORDER_BYTES[guest_order]
        guest.map(base, GUEST_DATA + base, guest_order)
    back_tables(space, host_order if tables_order is None else tables_order)
    for va in vas:
        gpa = GUEST_DATA + va
        if host.lookup(gpa) is None:
            base = gpa - gpa % ORDER_BYTES[host_order]
            host.map(base, base, host_order)
    return space


def back_tables(space: AddressSpace, order: int) -> None:
    """Map what of the guest's tables is not mapped yet, each gPA to the same hPA."""
    assert space.guest is not None
    size = 1 << space.host.shift(order + 1)
    for page in range(0, space.guest.table_pages * KIB4, size):
        if space.host.lookup(page) is None:
            space.host.map(page, page, order)


def space_of(
    guest_form: TableFormat,
    host_form: TableFormat,
    guest_order: int = 0,
    host_order: int = 0,
    tables_order: int = 0,
) -> tuple[AddressSpace, int]:
    """A guest of any formats and an address in it.

    Its tables lie from gPA 0 on, its data in the middle of what the SLAT reaches, and the
    address in the middle of what the guest's table reaches.
    """
    host, guest = page_table(host_form, HOST_TABLES), page_table(guest_form, 0)
    space = AddressSpace(1, host, guest)
    va, gpa = guest.top.reach // 2, host.top.reach // 2
    guest.map(va, gpa, guest_order)
    back_tables(space, tables_order)
    host.map(gpa, gpa, host_order)
    return space, va


def native_space(
    *pages: int,
    order: int = 0,
    asid: int = 1,
    vpid: int = 0,
    form: TableFormat | None = None,
) -> AddressSpace:
    """A table that maps the pages of those numbers to frames of the same numbers."""
    host = page_table(form or TableFormat(), HOST_TABLES)
    size = 1 << host.shift(order + 1)
    for page in pages:
        host.map(page * size, page * size, order)
    return AddressSpace(asid, host, vpid=vpid)


def count(mmu: Mmu, *names: str) -> tuple[int, ...]:
    counters = mmu.counters()
    return tuple(counters[name] for name in names)


def touch(mmu: Mmu, space: AddressSpace, *pages: int, order: int = 0) -> list[bool]:
    """Load from each page in turn; say of each whether an L1 TLB had it."""
    hits = []
    for page in pages:
        before = mmu.counters()["l1_hits"]
        assert mmu.access(space, page * ORDER_BYTES[order]) == (OK, 0)
        hits.append(mmu.counters()["l1_hits"] > before)
    return hits
