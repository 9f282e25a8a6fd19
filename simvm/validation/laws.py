"""The laws that the simulation is held to, each worked out from its formula alone.

Nothing here knows of the simulator. Probabilities are arrays that sum to 1 (the
independent reference model: each access is drawn anew); times are in any one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]


def zipf(pages: int, exponent: float) -> Probabilities:
    """The probability of each page by rank; exponent 0 is uniform."""
    weight: Probabilities = np.arange(1, pages + 1, dtype=np.float64) ** -exponent
    weight /= weight.sum()
    return weight


def lru_hits(p: Probabilities, entries: int) -> float:
    """Hit ratio of a fully associative LRU cache (Che's approximation).

    A page is present if it was accessed in the last T accesses, where T is such that
    `entries` pages are present on average.
    """
    return _hits(p, entries, lambda expected: -np.expm1(-expected))


def fifo_hits(p: Probabilities, entries: int) -> float:
    """The same under FIFO, and under random replacement, which hits as often.

    A page that is entered stays for T accesses (on average, if the victim is random), and
    is then absent until its next access, for 1 / p.
    """
    return _hits(p, entries, lambda expected: expected / (1 + expected))


def set_lru_hits(p: Probabilities, sets: int, ways: int) -> float:
    """Hit ratio of a set-associative LRU cache: Che's approximation in each set.

    `p` is by page number; a page's set is its number mod `sets`.
    """
    parts = [p[number::sets] for number in range(sets)]
    shares = [float(part.sum()) for part in parts]
    return sum(
        share * (lru_hits(part / share, ways) if len(part) > ways else 1)
        for part, share in zip(parts, shares, strict=True)
    )


def _hits(
    p: Probabilities, entries: int, present: Callable[[Probabilities], Probabilities]
) -> float:
    """The hit ratio when T is such that `entries` pages are present on average.

    `present` is how likely a page is to be there, given its expected accesses in T.
    """
    low, high = 0.0, 1.0
    while present(p * high).sum() < entries:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if present(p * middle).sum() < entries:
            low = middle
        else:
            high = middle
    return float((p * present(p * low)).sum())


def working_set(p: Probabilities, window: int) -> float:
    """Mean number of distinct pages in `window` accesses."""
    return float(-np.expm1(window * np.log1p(-p)).sum())


def working_set_misses(p: Probabilities, window: int) -> float:
    """Share of accesses to pages that none of the `window` accesses before touched."""
    return float((p * np.exp(window * np.log1p(-p))).sum())


def first_touches(pages: int, accesses: int) -> float:
    """Mean number of distinct pages after uniform accesses."""
    return pages * -math.expm1(accesses * math.log1p(-1 / pages))


def table_bytes(
    footprint: int, leaf: int, levels: int = 4, granule: int = 4096, root: int = 4096
) -> int:
    """Bytes of the tables that map `footprint` bytes from 0 on with leaves of `leaf`.

    A table has `granule` bytes, the root `root`; an entry has 8.
    """
    entries = granule // 8
    span, tables = leaf * entries, 0
    while span < granule * entries**levels:
        tables += -(-footprint // span)
        span *= entries
    return tables * granule + root


def md1_wait(rate: float, service: float) -> float:
    """Mean wait for one server with constant service times and Poisson arrivals."""
    load = rate * service
    return load * service / (2 * (1 - load))


def mmc_wait(rate: float, service: float, servers: int) -> float:
    """Mean wait for `servers` servers with exponential service times (Erlang C)."""
    offered = rate * service
    blocked = 1.0  # Erlang B, server by server
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    waiting = blocked / (1 - offered / servers * (1 - blocked))
    return waiting * service / (servers - offered)


def closed_wait(customers: int, think: float, service: float) -> float:
    """Mean wait of `customers` that think and then queue for one server (exact MVA)."""
    queued = response = 0.0
    for n in range(1, customers + 1):
        response = service * (1 + queued)
        queued = n * response / (think + response)
    return response - service
