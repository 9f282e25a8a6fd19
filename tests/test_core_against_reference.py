"""The compiled core and its readable twin agree on any program, counter for counter."""

from __future__ import annotations

from collections import Counter

import pytest
from agreement import run_both
from hypothesis import HealthCheck, Phase, given, settings
from programs import Access, Change, Demand, Flush, Map, Program, Step, programs

from simvm import _core, reference
from simvm.hardware.geometry import (
    DataCache,
    MmuGeometry,
    NestedTlb,
    TableFormat,
    TlbArray,
    WalkCachePart,
)


def test_core_and_twin_agree_and_programs_reach_every_counter() -> None:
    reached: Counter[str] = Counter()

    @settings(
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    )
    @given(programs())
    def agree(program: Program) -> None:
        reached.update(run_both(program))

    agree()
    meant = (*reference.COUNTERS, "unmap", "split", "collapse", "clear_accessed")
    assert [name for name in meant if not reached[name]] == []


DEMAND = Demand(rounds=64, guest_order=1, host_order=2, frame=0)


def one_guest(geometry: MmuGeometry, *steps: Step) -> Program:
    form = TableFormat()
    return Program(geometry, slats=(form,), guests=((form, 0),), native=(), steps=steps)


def load(address: int, demand: Demand = DEMAND) -> Access:
    return Access(0, address, None, stride=0, length=1, period=1, writes=0, demand=demand)


def test_an_mmu_says_how_much_memory_its_data_caches_tell_apart() -> None:
    """Tags have 32 bits: one set reaches 2^32 - 1 lines, and sets multiply that."""
    line = 64
    one_set = _core.Mmu(MmuGeometry(cache_l2=DataCache(1024, 16, 3)))
    assert one_set.reach == ((1 << 32) - 1) * line
    two = _core.Mmu(MmuGeometry(cache_l2=DataCache(4096, 16), cache_llc=DataCache(2048, 16)))
    assert two.reach == 2 * ((1 << 32) - 1) * line


def test_flushing_an_empty_range_drops_the_walk_cache_of_the_space() -> None:
    geometry = MmuGeometry(guest_walk_cache=(WalkCachePart(3, 4, 4),))
    nothing = Flush("range", space=0, address=1 << 30, length=0)
    counters = run_both(one_guest(geometry, load(1 << 30), nothing, load(1 << 30)))
    assert counters["guest_walk_cache_hits"] == 0


@pytest.mark.parametrize("what", ["range", "gpa"])
def test_a_range_of_no_bytes_within_a_page_drops_no_translation(what: str) -> None:
    geometry = MmuGeometry(l1_load=(TlbArray((0, 1), 16, 4),), nested_tlb=NestedTlb(4, 4))
    small = Demand(rounds=64, guest_order=0, host_order=0, frame=16)
    page = load((1 << 30) + 64, small)
    address = page.address if what == "range" else (16 << 12) + 64
    counters = run_both(one_guest(geometry, page, Flush(what, 0, address, 0), page))
    assert (counters["walks"], counters["l1_hits"]) == (1, 1)


def test_smashed_pages_are_found_in_both_levels() -> None:
    """Four parts of a 1 GiB page by turns with another, in an L1 of one entry."""
    geometry = MmuGeometry(
        l1_load=(TlbArray((0, 1, 2), 1, 1),), l2=(TlbArray((0, 1), 8, 8),), smash=True
    )
    large = Demand(rounds=64, guest_order=2, host_order=2, frame=0)
    parts = [load((part << 21) + (other << 30), large) for part in range(4) for other in (0, 1)]
    counters = run_both(one_guest(geometry, *parts, *parts))
    assert (counters["walks"], counters["l2_hits"]) == (8, 8)


def test_groups_of_contiguous_pages_are_one_entry() -> None:
    form = TableFormat(contiguous=True)
    geometry = MmuGeometry(l1_load=(TlbArray((0, 3), 16, 4),))
    small = Demand(rounds=0, guest_order=0, host_order=0, frame=0)
    group = Map(0, 1 << 30, frame=16, order=0, askew=False, leaves=16)
    backing = Map(1, 1 << 16, frame=32, order=0, askew=False, leaves=16)
    tables = Map(1, 0, frame=0, order=0, askew=False, leaves=16)
    pages = Access(0, 1 << 30, None, 4096, 32, 16, writes=1 << 20, demand=small, translate=True)
    steps = (tables, group, backing, pages, Change("clear_accessed", 1, 20, 0, "none"), pages)
    program = Program(geometry, (form,), ((form, 0),), (), steps)
    counters = run_both(program)
    assert (counters["walks"], counters["l1_hits"]) == (1, 63)
    assert counters["dirty_updates"] == 1


def test_ranges_of_gpa_drop_what_overlaps_alone() -> None:
    geometry = MmuGeometry(
        l1_load=(TlbArray((0, 1), 16, 4),), host_walk_cache=(WalkCachePart(2, 4, 4),)
    )
    small = Demand(rounds=64, guest_order=0, host_order=0, frame=16)
    flush = Flush("gpa", 0, 17 << 12, 4096)  # of the second page alone
    pages = [load((1 << 30) + page * 4096, small) for page in (0, 1)]
    counters = run_both(one_guest(geometry, *pages, flush, *pages))
    assert counters["l1_hits"] == 1
