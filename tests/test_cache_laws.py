"""The laws of `simvm.validation.laws`, each against a second way to the same figure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from simvm import validation
from simvm.core_check import load_core
from simvm.hardware.geometry import MmuGeometry, TlbArray
from simvm.validation import laws

MICROSECOND = 1e-6


@pytest.mark.parametrize(
    "row", validation.published()["cache_laws"]["rows"], ids=lambda row: f"{row}"
)
def test_published_hit_ratios_follow_from_the_law(row: dict[str, float]) -> None:
    p = laws.zipf(int(row["pages"]), row["zipf"])
    assert laws.lru_hits(p, int(row["entries"])) == pytest.approx(row["hits"], abs=6e-5)


def test_lru_hits_solve_the_equation_for_the_characteristic_time() -> None:
    p = laws.zipf(500, 0.9)
    time = brentq(lambda t: (1 - np.exp(-p * t)).sum() - 100, 1, 1e5, xtol=1e-9)
    assert laws.lru_hits(p, 100) == pytest.approx(float((p * (1 - np.exp(-p * time))).sum()))


@pytest.mark.parametrize("entries", [1, 10, 99])
def test_uniform_hits_are_the_share_of_pages_held(entries: int) -> None:
    assert laws.lru_hits(laws.zipf(100, 0), entries) == pytest.approx(entries / 100)


@pytest.mark.parametrize(
    "row", validation.published()["replacement_laws"]["rows"], ids=lambda row: f"{row}"
)
def test_published_hit_ratios_without_recency_follow_from_the_law(row: dict[str, float]) -> None:
    p = laws.zipf(int(row["pages"]), row["zipf"])
    assert laws.fifo_hits(p, int(row["entries"])) == pytest.approx(row["hits"], abs=6e-5)


def test_fifo_hits_solve_the_equation_for_the_characteristic_time() -> None:
    p = laws.zipf(500, 0.9)
    time = brentq(lambda t: (p * t / (1 + p * t)).sum() - 100, 1, 1e6, xtol=1e-9)
    expected = float((p * (p * time / (1 + p * time))).sum())
    assert laws.fifo_hits(p, 100) == pytest.approx(expected)
    assert laws.fifo_hits(p, 100) < laws.lru_hits(p, 100)


def test_hits_of_sets_are_those_of_caches_side_by_side() -> None:
    p = np.array([0.4, 0.1, 0.2, 0.1, 0.1, 0.1])
    even, odd = p[[0, 2, 4]] / 0.7, p[[1, 3, 5]] / 0.3
    expected = 0.7 * laws.lru_hits(even, 1) + 0.3 * laws.lru_hits(odd, 1)
    assert laws.set_lru_hits(p, 2, 1) == pytest.approx(expected)
    assert laws.set_lru_hits(p, 1, 2) == pytest.approx(laws.lru_hits(p, 2))
    assert laws.set_lru_hits(p, 2, 3) == pytest.approx(1)  # all are held
    assert laws.set_lru_hits(laws.zipf(64, 0), 4, 2) == pytest.approx(8 / 64)


def test_zipf_is_a_distribution_with_its_ratios() -> None:
    p = laws.zipf(1000, 0.8)
    assert p.sum() == pytest.approx(1)
    assert p[0] / p[31] == pytest.approx(32**0.8)


def test_working_sets_and_first_touches_of_small_cases_by_counting() -> None:
    p = np.array([0.5, 0.25, 0.25])
    pairs = [(a, b) for a in range(3) for b in range(3)]
    assert laws.working_set(p, 2) == pytest.approx(
        sum(p[a] * p[b] * len({a, b}) for a, b in pairs)
    )
    assert laws.working_set_misses(p, 2) == pytest.approx(
        sum(p[a] * p[b] * p[c] for a, b in pairs for c in range(3) if c not in (a, b))
    )
    assert laws.first_touches(3, 2) == pytest.approx(sum(len({a, b}) for a, b in pairs) / 9)


def test_misses_are_the_slope_of_the_working_set() -> None:
    p = laws.zipf(300, 1.0)
    slope = laws.working_set(p, 51) - laws.working_set(p, 50)
    assert laws.working_set_misses(p, 50) == pytest.approx(slope)


def test_table_bytes() -> None:
    kib, mib, gib, tib = 1 << 10, 1 << 20, 1 << 30, 1 << 40
    dense = 2 * gib + 4 * mib + 8 * kib + 4 * kib
    assert laws.table_bytes(tib, 4 * kib) == dense
    assert laws.table_bytes(tib, 4 * kib, levels=5) == dense + 4 * kib
    assert laws.table_bytes(tib, 2 * mib) == 4 * mib + 8 * kib + 4 * kib
    assert laws.table_bytes(tib, gib) == 8 * kib + 4 * kib
    assert laws.table_bytes(1, 4 * kib) == 16 * kib
    # Sv39x4: a root of 16 KiB; then one table for each GiB, and one for each 2 MiB.
    assert laws.table_bytes(gib, 4 * kib, 3, root=16 * kib) == 16 * kib + 4 * kib + 2 * mib
    assert laws.table_bytes(2 * tib, gib, 3, root=16 * kib) == 16 * kib
    # 16 KiB: two levels with a root of sixteen tables; a table of the leaves maps 32 MiB.
    arm = {"levels": 2, "granule": 16 * kib, "root": 256 * kib}
    assert laws.table_bytes(gib, 16 * kib, **arm) == 256 * kib + 32 * 16 * kib
    assert laws.table_bytes(gib, 32 * mib, **arm) == 256 * kib


@pytest.mark.parametrize(("rate", "published_us"), [(1e5, 1.272), (2e5, 7.217)])
def test_waits_for_one_server(rate: float, published_us: float) -> None:
    service = 3.93 * MICROSECOND
    constant = laws.md1_wait(rate, service)
    assert constant / MICROSECOND == pytest.approx(published_us, abs=5e-4)
    assert laws.mmc_wait(rate, service, 1) == pytest.approx(2 * constant)


@pytest.mark.parametrize("servers", [1, 2, 5])
def test_waits_for_many_servers_sum_over_the_states(servers: int) -> None:
    rate, service = 0.7 * servers, 1.0
    weights = [1.0]  # of n in the system, from the balance of arrivals and departures
    for n in range(1, 400):
        weights.append(weights[-1] * rate * service / min(n, servers))
    queued = sum((n - servers) * w for n, w in enumerate(weights) if n > servers)
    assert laws.mmc_wait(rate, service, servers) == pytest.approx(queued / sum(weights) / rate)


@pytest.mark.parametrize("customers", [1, 2, 6])
def test_waits_of_a_closed_set_sum_over_the_states(customers: int) -> None:
    think, service = 5.0, 3.0
    weights = [
        math.perm(customers, n) * (service / think) ** n for n in range(customers + 1)
    ]  # of n at the server
    total = sum(weights)
    at_server = sum(n * w for n, w in enumerate(weights)) / total
    throughput = (1 - weights[0] / total) / service
    expected = at_server / throughput - service
    assert laws.closed_wait(customers, think, service) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("policy", "most"), [("lru", 4096), ("plru", 64)])
def test_a_set_is_as_wide_as_its_policy_allows(policy: str, most: int) -> None:
    core = load_core()
    core.Mmu(MmuGeometry(l1_load=(TlbArray((0,), most, most, policy),)))
    with pytest.raises(ValueError, match=f"1 to {most} ways"):
        core.Mmu(MmuGeometry(l1_load=(TlbArray((0,), most + 1, most + 1, policy),)))
