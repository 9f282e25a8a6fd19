"""Other simulators to compare with, from the extra `simvm[bench]`; each may be missing.

Both are given the 4 KiB pages of the same accesses, and stand for one TLB and nothing else:
no second level, no page tables, no walk, no data caches. Each keeps what it holds from one
run to the next, as the vCPU beside it does.

`libcachesim`
    One LRU of 1,536 entries, `hashpower=12`, its trace in a file. It reads oracleGeneral
    files (24 bytes a request) faster than its other formats that hold numbers: LCS version 1
    is 3 to 15 % slower, a plain array of integers (BIN_TRACE) 2 to 9 %; texts are far slower.
`pycachesim`
    128 sets of 12 ways, LRU, lines of 4,096 bytes; all addresses in one list, which is made
    before the clock starts.
"""

from __future__ import annotations

from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

from simvm.hardware.geometry import PAGE

if TYPE_CHECKING:
    from simvm.bench.throughput import Accesses

__all__ = ["INSTALL", "PEERS", "LibCacheSim", "Peer", "PyCacheSim", "installed", "version"]

INSTALL: Final = "pip install 'simvm[bench]'"

_SETS: Final = 128
_WAYS: Final = 12
_ENTRIES: Final = _SETS * _WAYS
"""Of the second-level TLB of `skylake_sp`."""

_HASHPOWER: Final = 12
_REQUEST: Final = np.dtype([("time", "<u4"), ("id", "<u8"), ("bytes", "<u4"), ("next", "<i8")])
"""A record of an oracleGeneral file."""


class LibCacheSim:
    """An LRU of libcachesim and the trace that it reads.

    Parameters
    ----------
    accesses
        As a stream of the core gives them.
    folder
        Where its trace goes.
    """

    name: Final = "libcachesim"
    module: Final = "libcachesim"

    def __init__(self, accesses: Accesses, folder: Path) -> None:
        library = import_module(self.module)
        requests = np.zeros(len(accesses), _REQUEST)
        requests["id"] = accesses >> np.uint64(PAGE.bit_length())
        requests["bytes"] = 1
        requests["next"] = -1
        path = folder / f"{id(self)}.oracleGeneral.bin"
        requests.tofile(path)
        self._reader = library.TraceReader(
            str(path),
            library.TraceType.ORACLE_GENERAL_TRACE,
            library.ReaderInitParam(ignore_obj_size=True),
        )
        self._cache = library.LRU(_ENTRIES, hashpower=_HASHPOWER)
        self._count = len(accesses)
        self.misses = 0

    def run(self) -> float:
        """Seconds that the whole trace takes; `misses` are those of this run."""
        start = perf_counter()
        ratio, _ = self._cache.process_trace(self._reader)
        seconds = perf_counter() - start
        self.misses = round(ratio * self._count)
        return seconds


class PyCacheSim:
    """A cache of pycachesim and the accesses that it loads; as `LibCacheSim`."""

    name: Final = "pycachesim"
    module: Final = "cachesim"

    def __init__(self, accesses: Accesses, folder: Path) -> None:
        library = import_module(self.module)
        memory = library.MainMemory()
        self._cache = library.Cache("TLB", _SETS, _WAYS, PAGE, "LRU")
        memory.load_to(self._cache)
        memory.store_from(self._cache)
        self._simulator = library.CacheSimulator(self._cache, memory)
        self._accesses = accesses
        self.misses = 0

    def run(self) -> float:
        """Seconds that all accesses take; `misses` are those of this run."""
        addresses = (self._accesses >> np.uint64(1)).tolist()
        self._simulator.reset_stats()
        start = perf_counter()
        self._simulator.load(addresses)
        seconds = perf_counter() - start
        self.misses = self._cache.stats()["MISS_count"]
        return seconds


Peer = LibCacheSim | PyCacheSim

PEERS: Final[tuple[type[Peer], ...]] = (LibCacheSim, PyCacheSim)


def installed(peer: type[Peer]) -> bool:
    """Whether it can be measured here."""
    return find_spec(peer.module) is not None


def version(peer: type[Peer]) -> str | None:
    """Its version; None when it is not installed."""
    return metadata.version(peer.name) if installed(peer) else None
