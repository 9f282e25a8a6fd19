"""The readable twin of the compiled core: page tables and one MMU.

Models what `docs/translation.md` specifies: how a virtual address becomes a host
physical one through one table (native) or two (nested), what TLBs, walk caches, the
nested TLB and the data caches spare of it, which A and D bits it sets, and what it
costs in loads and cycles. It is there to be read as an explanation, and for tests
that hold the core to it, counter for counter.

* `tables`: page tables of every format, and where their pages come from
* `replacement`: which way of a set goes, and arrays of such sets
* `tlb`: TLBs and walk caches, which are made of them
* `mmu`: the walk, the flushes, the counters

The heart is three methods of `Mmu`. `_descend` walks a table whose pages lie in hPA.
`_nested` is one such walk through the SLAT, for one gPA. `_descend_guest` walks the
guest's table, and translates the place of each entry on its way before it can read
it: that is where the n*m + n + m loads come from.

Left out: generators of accesses, protection bits, global pages, instruction fetches,
and addresses beyond the reach of a table's root.
"""

from simvm.reference.mmu import COUNTERS, GUEST_FAULT, OK, SLAT_FAULT, Mmu
from simvm.reference.tables import AddressSpace, BumpAllocator, Leaf, PageTable

__all__ = [
    "COUNTERS",
    "GUEST_FAULT",
    "OK",
    "SLAT_FAULT",
    "AddressSpace",
    "BumpAllocator",
    "Leaf",
    "Mmu",
    "PageTable",
]
