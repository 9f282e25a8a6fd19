"""From a pattern of the scenario to a stream of accesses in the core.

Random streams draw from a generator seeded by the scenario's seed and a stable label
(guest, phase, repetition, thread), so that no guest's accesses depend on another's.

Zipf draws use Walker's alias method over slots: one per rank up to 2^16, beyond that one
per run of neighbouring ranks whose probabilities differ by less than exponent / 4096, as
equally likely. Left out: anything that depends on what was read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, repeat
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from simvm import _core
from simvm.hardware.geometry import PAGE
from simvm.workload.trace import TraceFile, builtin_trace, open_trace

if TYPE_CHECKING:
    from simvm.scenario import Pattern, TracePattern

EXACT_RANKS = 1 << 16
MANTISSA = 8     # bits after the first, by which `zipf_shares` tells ranks apart (touches.pxd)
GOLDEN = 0.6180339887498949

Chunks = Iterator[np.ndarray[tuple[int], np.dtype[np.uint64]]]


def random_bits(seed: int, label: str) -> np.random.PCG64:
    """A bit generator of its own for each label, the same in any process and order."""
    words = np.frombuffer(hashlib.sha256(label.encode()).digest(), dtype=np.uint32)
    return np.random.PCG64(np.random.SeedSequence([seed, *words.tolist()]))


@lru_cache(maxsize=8)
def zipf_slots(nodes: int, exponent: float) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
    """The alias table for ranks 0 to nodes - 1: (threshold, alias, first rank, width)."""
    starts = [np.arange(min(nodes, EXACT_RANKS), dtype=np.int64)]
    edges = [min(nodes, EXACT_RANKS)]
    while edges[-1] < nodes:
        edges.append(min(nodes, edges[-1] + max(1, edges[-1] // 4096)))
    starts.append(np.array(edges[:-1], dtype=np.int64))
    first = np.concatenate(starts)
    width = np.diff(np.append(first, nodes))
    weight = width * (first + (width + 1) / 2) ** -exponent
    share = weight * (len(weight) / weight.sum())
    threshold, alias = _alias(share)
    table = np.stack([threshold, alias, first, width], axis=1)
    return np.ascontiguousarray(table.astype(np.uint32))


@lru_cache(maxsize=8)
def zipf_shares(nodes: int, exponent: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Share of accesses of each rank, by the first bits of rank + 1.

    Ranks below 2^9 have a share each; beyond that 256 to an octave, each the mean of its ranks.
    """
    octaves = max(1, nodes.bit_length() - MANTISSA)
    edges = np.concatenate([
        np.arange(1 << (MANTISSA + 1)) if octave == 0
        else np.arange(1 << MANTISSA, 1 << (MANTISSA + 1)) << octave
        for octave in range(octaves)
    ])  # fmt: skip
    ends = np.minimum(np.append(edges[1:], 1 << (octaves + MANTISSA)), nodes + 1)
    width = np.maximum(ends - edges, 0)
    width[0] = 0                            # ranks begin at number 1
    middle = np.maximum(edges + (np.maximum(width, 1) - 1) / 2, 1)
    weight = middle**-exponent
    return np.ascontiguousarray((weight / (weight * width).sum()).astype(np.float32))


def make_touches(
    pattern: Pattern, stream: _core.Stream, region: _core.Region, seed: int, label: str
) -> _core.Touches:
    """What draws the pages that a stream made by `make_stream` touches."""
    bits = random_bits(seed, label)
    if pattern.kind != "zipf":
        return _core.Touches(stream, region, bits)
    nodes = stream.nodes
    scatter = scatter_multiplier(nodes) if pattern.scatter else 1
    return _core.Touches(
        stream, region, bits, zipf_shares(nodes, pattern.exponent), pow(scatter, -1, nodes)
    )


def _alias(
    share: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Thresholds (of 2^32) and aliases of slots with mean share 1: Vose's construction, by sums.

    Slots below 1 are filled one after another, each by the slot above 1 whose turn it is, until
    that falls below 1 itself and is filled by the next one. So who fills whom follows from what
    the first so many lack, and from what the first so many have to give.
    """
    threshold = np.full(len(share), (1 << 32) - 1, dtype=np.int64)
    alias = np.arange(len(share), dtype=np.int64)
    small, large = (np.flatnonzero(share < 1)[::-1], np.flatnonzero(share >= 1)[::-1])
    lacks, gives = np.cumsum(1 - share[small]), np.cumsum(share[large] - 1)
    filler = np.searchsorted(gives, np.concatenate([[0.0], lacks])[: len(small)])
    filled = filler < len(large)  # rounding may leave the last ones
    threshold[small[filled]] = (share[small[filled]] * (1 << 32)).astype(np.int64)
    alias[small[filled]] = large[filler[filled]]
    last = np.searchsorted(lacks, gives, side="right")[:-1]  # whom each fills last
    ended = np.flatnonzero(last < len(small))
    left = 1 + gives[ended] - lacks[last[ended]]
    threshold[large[ended]] = np.clip(left * (1 << 32), 0, (1 << 32) - 1).astype(np.int64)
    alias[large[ended]] = large[ended + 1]
    return threshold, alias


def scatter_multiplier(nodes: int) -> int:
    """An odd step near the golden section of `nodes` and coprime to it: ranks spread evenly."""
    step = max(1, int(nodes * GOLDEN))
    while gcd(step, nodes) != 1:
        step += 1
    return step


def trace_of(pattern: TracePattern) -> TraceFile:
    """The trace that a pattern names."""
    return open_trace(builtin_trace() if pattern.file == "builtin" else pattern.file)


def make_stream(
    pattern: Pattern, size: int, writes: float, bits: np.random.PCG64, number: int, threads: int
) -> tuple[_core.Stream, Chunks]:
    """The stream of thread `number` of `threads`, and the chunks that feed it (of a trace).

    Sequential and strided threads share the region out; the others all cover it.
    """
    pages = size // PAGE
    nothing: Chunks = iter(())
    match pattern.kind:
        case "uniform":
            return _core.Stream.uniform(bits, size, writes), nothing
        case "zipf":
            nodes = size // pattern.granule
            slots = zipf_slots(nodes, pattern.exponent)
            scatter = scatter_multiplier(nodes) if pattern.scatter else 1
            return _core.Stream.zipf(
                bits, size, slots, scatter, pattern.granule, writes
            ), nothing
        case "sequential" | "strided":
            part = pages // threads * PAGE
            length = size - part * (threads - 1) if number == threads - 1 else part
            return _core.Stream.strided(
                bits, size, pattern.stride, part * number, length, writes
            ), nothing
        case "pointer_chase":
            return _core.Stream.pointer_chase(bits, size, pattern.granule, writes), nothing
        case "hot_cold" | "drifting":
            hot = min(pages - 1, max(1, round(pages * pattern.hot_fraction)))
            drift = pattern.drift if pattern.kind == "drifting" else None
            return _core.Stream.hot_cold(bits, size, hot, pattern.hot_share, drift, writes), nothing
        case "trace":
            trace = trace_of(pattern)
            again = chain.from_iterable(trace.chunks() for _ in repeat(None))
            return _core.Stream.trace(bits, trace.region_bytes), again


def taken_from(source: _core.Stream, size: int, length: int) -> tuple[_core.Stream, Chunks]:
    """A stream that takes `length` accesses at a time from `source`, of which others take too.

    However they take turns, together they take the same accesses.
    """
    chunks = (source.take(length) for _ in repeat(None))
    return _core.Stream.trace(np.random.PCG64(0), size), chunks
