"""Waits in the queue of the fault threads (userfaultfd), against queueing theory.

Single faults arrive as a Poisson stream, or from a closed set of vCPUs that think for
exponential times; service is constant or exponential. How many faults a row takes grows with
its load, since waits then vary more and for longer. Drawn times are scaled to have exactly
the mean that is asked for, which takes out most of the noise: near saturation a wait
follows the load several times over.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np

from simvm.model.fault_arrivals import closed_waits, open_waits
from simvm.units import SECOND
from simvm.validation.laws import closed_wait, md1_wait, mmc_wait
from simvm.validation.rows import Published, Row, basis, sized


def open_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Mean wait in µs; a fifth of the faults when not at full size."""
    service_ns = published["service_ns"]
    for number, row in enumerate(published["rows"]):
        rate, workers = row["per_s"], row["workers"]
        constant = row["service"] == "constant"
        seconds = service_ns / SECOND
        law = md1_wait(rate, seconds) if constant else mmc_wait(rate, seconds, workers)
        expected = row.get("wait_us", law * 1e6)
        count = sized(full, row["faults"])
        rng = np.random.default_rng([number, 1])
        gaps = _exponential(rng, SECOND / rate, count)
        services = [service_ns] * count if constant else _exponential(rng, service_ns, count)
        waits = open_waits(zip(gaps, services, strict=True), workers)
        kendall = f"M/{'D' if constant else 'M'}/{workers}"
        target = f"fault wait in us, {kendall}, {service_ns} ns, {rate}/s"
        mean = sum(waits) / len(waits) / 1000
        yield Row(target, expected, mean, basis(published, row))


def closed_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Mean wait in µs with one worker; a fifth of the faults when not at full size."""
    service_ns = published["service_ns"]
    for number, row in enumerate(published["rows"]):
        think_ns, vcpus = row["think_ns"], row["vcpus"]
        count = sized(full, row["faults"]) // vcpus
        rng = np.random.default_rng([number, 2])
        faults = [
            zip(
                _exponential(rng, think_ns, count),
                _exponential(rng, service_ns, count),
                strict=True,
            )
            for _ in range(vcpus)
        ]
        waits = closed_waits(faults, 1)
        expected = closed_wait(vcpus, think_ns, service_ns) / 1000
        target = f"fault wait in us, {vcpus} vCPUs that think {think_ns} ns, {service_ns} ns"
        mean = sum(waits) / len(waits) / 1000
        yield Row(target, expected, mean, basis(published, row))


def _exponential(rng: np.random.Generator, mean: float, count: int) -> list[int]:
    """`count` exponential times in ns whose mean is `mean`, but for rounding."""
    drawn = rng.exponential(mean, count)
    times: list[int] = np.rint(drawn * (mean / drawn.mean())).astype(np.int64).tolist()
    return times
