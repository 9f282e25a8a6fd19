"""Latencies with a tail: seeded draws from a table of quantiles."""

from __future__ import annotations

from math import exp, log, sqrt
from statistics import NormalDist

from simvm.workload.patterns import random_bits

QUANTILES = 1024
_Z99 = NormalDist().inv_cdf(0.99)


def quantile_table(mean: int, p99: int) -> list[int]:
    """Equally likely ns: a log-normal of this mean and 99th percentile, `p99` >= `mean`.

    From mean = e^(mu + s^2 / 2) and p99 = e^(mu + z s) follows s = z - sqrt(z^2 - 2 ln(p99 /
    mean)). The table is scaled to the mean, since 1,024 quantiles cut the end of the tail.
    ValueError for a tail that no log-normal has.
    """
    if p99 < mean or 2 * log(p99 / mean) > _Z99 * _Z99:
        raise ValueError(f"p99 (={p99}) must be 1 to 14.96 times the mean (={mean}).")
    if p99 == mean:
        return [mean]
    spread = _Z99 - sqrt(_Z99 * _Z99 - 2 * log(p99 / mean))
    normal = NormalDist()
    shape = [exp(spread * normal.inv_cdf((2 * i + 1) / (2 * QUANTILES))) for i in range(QUANTILES)]
    scale = mean * QUANTILES / sum(shape)
    table = [round(scale * value) for value in shape]
    table[-1] += mean * QUANTILES - sum(table)
    return table


class Latency:
    """Draws of ns, the same for the same seed and label."""

    def __init__(self, mean: int, p99: int, seed: int, label: str) -> None:
        self._table = quantile_table(mean, max(mean, p99))
        self._bits = random_bits(seed, label)

    def draw(self) -> int:
        """The next one."""
        if len(self._table) == 1:
            return self._table[0]
        return self._table[int(self._bits.random_raw()) >> 54]
