"""The shape of one vCPU's MMU, as plain frozen data.

What a parameter set says about TLBs and caches, reduced to the integers that the
compiled core and its readable twin need. Latencies are CPU cycles, sizes are
entries or bytes, leaf orders are 0 (4 KiB), 1 (2 MiB) and 2 (1 GiB).
`docs/translation.md` defines what each structure does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ORDER_NAMES = ("4KiB", "2MiB", "1GiB")
ORDER_BYTES = (1 << 12, 1 << 21, 1 << 30)
PAGE, BLOCK, _ = ORDER_BYTES

ENTRY_SHIFTS = (12, 21, 30, 16, 14, 25, 29)
"""log2 of the sizes of page that a TLB entry may have. The first three are the leaf orders of
the 4 KiB granule; then 64 KiB (the leaf of the 64 KiB granule, and sixteen contiguous pages of
4 KiB), and 16 KiB, 32 MiB and 512 MiB, the other leaves of the 16 and 64 KiB granules."""
ENTRY_NAMES = ("4KiB", "2MiB", "1GiB", "64KiB", "16KiB", "32MiB", "512MiB")
POLICIES = ("lru", "plru", "fifo", "random")


@dataclass(frozen=True)
class TlbArray:
    """One array of a TLB: `entries` in sets of `ways`, holding pages of `orders`.

    An order here is an index of `ENTRY_SHIFTS`.
    """

    orders: tuple[int, ...]
    entries: int
    ways: int
    policy: str = "lru"  # one of POLICIES


@dataclass(frozen=True)
class WalkCachePart:
    """The entries that a walk cache keeps for table level `level` (2 and up)."""

    level: int
    entries: int
    ways: int
    policy: str = "lru"


@dataclass(frozen=True)
class NestedTlb:
    """gPA -> hPA of guest table pages. Zero entries: absent."""

    entries: int = 0
    ways: int = 1
    policy: str = "lru"


@dataclass(frozen=True)
class DataCache:
    """A level of the data caches, 64-byte lines. Zero bytes: absent."""

    bytes: int = 0
    ways: int = 16
    latency: int = 0


@dataclass(frozen=True)
class TableFormat:
    """The shape of a page table.

    `granule_shift` is log2 of its smallest page and of a table page: 12, 14 or 16. A level's
    index has `granule_shift` - 3 bits; the root's has `root_bits`, by default as many. More of
    them are tables one after another (concatenated tables of Arm's stage 2, at most 16; the
    16 KiB root of RISC-V's Sv39x4 and Sv48x4). `contiguous`: sixteen aligned pages of 4 KiB in
    a row, mapped to sixteen in a row, may be one TLB entry.
    """

    levels: int = 4
    granule_shift: int = 12
    root_bits: int = 0
    contiguous: bool = False

    @property
    def address_bits(self) -> int:
        """How many bits of an address the table translates."""
        width = self.granule_shift - 3
        return self.granule_shift + width * (self.levels - 1) + (self.root_bits or width)


@dataclass(frozen=True)
class MmuGeometry:
    """Everything that decides what one vCPU's translations cost.

    `l1_store` is None where stores use the load arrays. `style` is "intel"
    (combined guest walk cache) or "amd" (guest walk cache holds gPA). `smash`: an L2 TLB that
    has no array for 1 GiB holds such a page as 2 MiB ones, and gives it back to L1 whole.
    `walkers` is how many page walks may be under way at once.
    """

    style: str = "intel"
    l1_load: tuple[TlbArray, ...] = ()
    l1_store: tuple[TlbArray, ...] | None = None
    l2: tuple[TlbArray, ...] = ()
    l2_penalty: int = 0
    smash: bool = False
    walkers: int = 1
    guest_walk_cache: tuple[WalkCachePart, ...] = ()
    host_walk_cache: tuple[WalkCachePart, ...] = ()
    nested_tlb: NestedTlb = field(default_factory=NestedTlb)
    walk_cache_latency: int = 1
    cache_l2: DataCache = field(default_factory=DataCache)
    cache_llc: DataCache = field(default_factory=DataCache)
    dram_latency: int = 200

    @classmethod
    def bare(cls) -> MmuGeometry:
        """An MMU with every cache off: each access walks, each load costs DRAM."""
        return cls()
