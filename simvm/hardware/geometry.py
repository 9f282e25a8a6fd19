"""The shape of one vCPU's MMU, as plain frozen data.

What a parameter set says about TLBs and caches, reduced to the integers that the
compiled core and its readable twin need. Latencies are CPU cycles, sizes are
entries or bytes, leaf orders are 0 (4 KiB), 1 (2 MiB) and 2 (1 GiB).
`docs/translation.md` defines what each structure does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ORDERS = (0, 1, 2)
ORDER_NAMES = ("4KiB", "2MiB", "1GiB")
ORDER_BYTES = (1 << 12, 1 << 21, 1 << 30)
PAGE, BLOCK, _ = ORDER_BYTES


@dataclass(frozen=True)
class TlbArray:
    """One array of a TLB: `entries` in sets of `ways`, holding leaves of `orders`."""

    orders: tuple[int, ...]
    entries: int
    ways: int
    policy: str = "lru"  # or "plru"


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
class MmuGeometry:
    """Everything that decides what one vCPU's translations cost.

    `l1_store` is None where stores use the load arrays. `style` is "intel"
    (combined guest walk cache) or "amd" (guest walk cache holds gPA).
    """

    style: str = "intel"
    l1_load: tuple[TlbArray, ...] = ()
    l1_store: tuple[TlbArray, ...] | None = None
    l2: tuple[TlbArray, ...] = ()
    l2_penalty: int = 0
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
