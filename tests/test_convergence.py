"""Results converge as the quantum shrinks: how far a vCPU may run ahead decides nothing.

Two guests of 4 KiB pages on a host that cannot hold both, so that what one vCPU does ahead of the
clock decides what the other loses. (With 2 MiB pages so few folios are evicted that one more or
less is a visible step.)
"""

from __future__ import annotations

import pytest
import scenarios_small as small

SEEDS = (1, 2, 3)


def pressed(quantum: int) -> tuple[float, float]:
    """Slowdown and pages swapped in, means over seeds."""
    size = 48 * small.MIB
    work = [
        small.phase(
            name="fill", allocate=size, accesses=size // small.PAGE, write_fraction=1.0,
            pattern={"kind": "strided", "stride": small.PAGE}, measure=False,
        ),
        small.phase(
            name="serve", allocate=None, accesses=30_000, cycles_per_access=1_000,
            pattern={"kind": "zipf", "exponent": 0.8},
        ),
    ]  # fmt: skip
    hosts = [
        small.result(
            {"vm": small.guest(*work, memory=64 * small.MIB, count=2, page_size=small.PAGE)},
            host={"memory": 96 * small.MIB, "page_size": small.PAGE,
                  "swap": {"device": "nvme", "size": 512 * small.MIB}},
            quantum=quantum, seed=seed,
        ).summary["host"]
        for seed in SEEDS
    ]  # fmt: skip
    slowdown = sum(host["slowdown"] for host in hosts) / len(SEEDS)
    return slowdown, sum(host["totals"]["swap_ins"] for host in hosts) / len(SEEDS)


def test_results_converge_as_the_quantum_shrinks() -> None:
    slowdown, swap_ins = pressed(small.US)
    assert swap_ins > 500  # there is something to converge
    assert slowdown > 2
    distances = []
    for quantum in (100 * small.US, 10 * small.US):
        found = pressed(quantum)
        assert found == (pytest.approx(slowdown, rel=0.01), pytest.approx(swap_ins, rel=0.01))
        distances.append(abs(found[0] - slowdown))
    assert distances[1] <= distances[0]
