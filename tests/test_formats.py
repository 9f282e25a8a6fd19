"""Arm and RISC-V in scenarios: their SLATs, and the contiguous hint; all caches of walks off.

Loads: n*m + n + m, for n guest levels and m host levels less the order of each leaf
(R. Bhargava et al., ASPLOS 2008).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, MIB, PAGE

from simvm import _core
from simvm.hardware import load_cpu

WITHOUT_WALK_CACHES = """
guest_walk_cache = []
host_walk_cache = []
[nested_tlb]
entries = { v = 0, unit = "entries", tag = "assumed", why = "a test" }
ways = { v = 1, unit = "ways", tag = "assumed", why = "a test" }
"""

RISCV = """inherits = "base"
part = "a core with Sv39 and Sv39x4"
style = { v = "amd", tag = "assumed", why = "a test" }
frequency = { v = 2_000_000, unit = "kHz", tag = "assumed", why = "a test" }
guest_walk_cache = []
host_walk_cache = []

[[l1_load]]
orders = ["4KiB", "64KiB", "2MiB"]
entries = { v = 16, unit = "entries", tag = "assumed", why = "a test" }
ways = { v = "full", unit = "ways", tag = "assumed", why = "a test" }

[tables]
guest_levels = { v = 3, unit = "levels", tag = "text", source = "riscv" }
host_levels = { v = 3, unit = "levels", tag = "text", source = "riscv" }
host_root_bits = { v = 11, unit = "bits", tag = "text", source = "riscv" }
tagging = { v = "VMID", tag = "text", source = "riscv" }

[cache_l2]
bytes = { v = 1_048_576, unit = "B", tag = "assumed", why = "a test" }

[cache_llc]
bytes = { v = 4_194_304, unit = "B", tag = "assumed", why = "a test" }

[source.riscv]
type = "manual"
title = "The RISC-V Instruction Set Manual, Volume II: Privileged Architecture"
text = "RISC-V privileged architecture: Sv39, and Sv39x4 with a root of 16 KiB"
"""


@pytest.fixture
def riscv(tmp_path: Path) -> str:
    return written(tmp_path / "riscv.toml", RISCV)


@pytest.fixture
def neoverse(tmp_path: Path) -> str:
    """Neoverse N1 without caches of walks."""
    return written(tmp_path / "n1.toml", 'inherits = "neoverse_n1"\n' + WITHOUT_WALK_CACHES)


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def ran(guest: dict[str, Any], cpu: str, **host: Any) -> dict[str, Any]:
    """The summary of one guest on a host of 4 GiB."""
    made = small.scenario({"vm": guest}, host={"cpu": cpu, **host})
    return small.one(small.run(made))


# --- loads and tables -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guest", "host", "loads"),
    [(PAGE, PAGE, 15), (PAGE, BLOCK, 11), (BLOCK, PAGE, 11), (BLOCK, BLOCK, 8)],
)
def test_sv39_over_sv39x4(guest: int, host: int, loads: int, riscv: str) -> None:
    found = ran(small.guest(page_size=guest), riscv, page_size=host)
    assert found["totals"]["walks"] > 9_000
    assert found["totals"]["walk_loads"] == loads * found["totals"]["walks"]
    # A root of 16 KiB and one table of level 2; with 4 KiB, one more for 2 MiB that is touched.
    upper, touched = 4 * PAGE + PAGE, found["final"]["touched_bytes"]
    lower = found["final"]["slat_tables_bytes"] - upper
    assert (lower > 0) == (host == PAGE)
    assert lower <= 256 * PAGE
    assert lower // PAGE * BLOCK >= touched * (host == PAGE)


def test_a_container_walks_sv39_and_its_processes_have_a_part_of_it_each(riscv: str) -> None:
    phases = [small.phase(process=name, allocate=32 * MIB) for name in ("a", "b", "c")]
    found = ran(small.container(*phases), riscv, page_size=PAGE)
    assert found["totals"]["walk_loads"] == 3 * found["totals"]["walks"] > 0
    assert found["final"]["touched_bytes"] > 80 * MIB


@pytest.mark.parametrize(
    ("guest", "host", "loads"),
    [(PAGE, PAGE, 19), (PAGE, BLOCK, 14), (BLOCK, PAGE, 15), (BLOCK, BLOCK, 11)],
)
def test_neoverse_has_two_tables_as_the_root_of_three_levels(
    guest: int, host: int, loads: int, neoverse: str
) -> None:
    pages = small.guest(small.phase(allocate=256 * MIB), page_size=guest)
    found = ran(pages, neoverse, page_size=host)
    assert found["totals"]["walk_loads"] == loads * found["totals"]["walks"] > 0
    four = ran(pages, neoverse, page_size=host, table_levels=4)
    n, m = 4 - (guest == BLOCK), 4 - (host == BLOCK)
    assert four["totals"]["walk_loads"] == (n * m + n + m) * four["totals"]["walks"]
    # A root of two tables is as large as a root and one table below it.
    assert four["final"]["slat_tables_bytes"] == found["final"]["slat_tables_bytes"]


# --- the contiguous hint ----------------------------------------------------------------

ENTRIES, WAYS = 1280, 5
GUEST_TABLES = 1 << 39


def swept(pages: int, hint: bool) -> int:
    """Walks of a second sweep over that many pages, all in a row in guest and host."""
    cpu = load_cpu("neoverse_n1")
    host, guest = (
        _core.PageTable(
            form.levels, _core.BlockAllocator(64 * MIB, base), root_bits=form.root_bits,
            contiguous=form.contiguous,
        )
        for form, base in (
            (cpu.host_format(contiguous=hint), 1 << 41),
            (cpu.guest_format(contiguous=hint), GUEST_TABLES),
        )
    )  # fmt: skip
    for address in range(0, pages * PAGE, PAGE):
        guest.map(address, address, 0)
        host.map(address, address, 0)
    for address in range(GUEST_TABLES, GUEST_TABLES + 64 * MIB, BLOCK):
        host.map(address, address, 1)
    mmu, space = _core.Mmu(cpu.geometry), _core.AddressSpace(1, host, guest)
    walks = 0
    for _ in range(2):
        walks = mmu.counters()["walks"]
        for address in range(0, pages * PAGE, PAGE):
            assert mmu.access(space, address)[0] == _core.OK
    return int(mmu.counters()["walks"]) - walks


def test_what_one_second_level_tlb_reaches_is_sixteen_times_as_much() -> None:
    """The largest dense memory of which a second sweep misses nothing, and one page or group
    more in each set: under LRU all of it misses.
    """
    (array,) = load_cpu("neoverse_n1").geometry.l2
    assert (array.entries, array.ways) == (ENTRIES, WAYS)
    sets = ENTRIES // WAYS
    assert (swept(ENTRIES, False), swept(16 * ENTRIES, True)) == (0, 0)
    assert swept(ENTRIES + sets, False) == ENTRIES + sets
    assert swept(16 * ENTRIES, False) == 16 * ENTRIES
    assert swept(16 * (ENTRIES + sets), True) == ENTRIES + sets  # one miss for each group


def populated(pages: int, accesses: int) -> tuple[dict[str, Any], ...]:
    """A region that is touched from end to end, then accessed at random."""
    touch = small.phase(
        name="touch", allocate=pages * PAGE, accesses=pages, measure=False,
        pattern={"kind": "sequential", "stride": PAGE},
    )  # fmt: skip
    return touch, small.phase(name="run", allocate=None, accesses=accesses)


def walks_and_slowdown(guest: dict[str, Any], hint: bool, page_size: int) -> tuple[int, float]:
    host = {"cpu": "neoverse_n1", "page_size": page_size, "contiguous": hint}
    summary = small.run(small.scenario({"vm": guest}, host=host)).summary
    (run,) = (found for found in summary["guests"][0]["phases"] if found["name"] == "run")
    return run["counters"]["walks"], summary["host"]["slowdown"]


PAGES, ACCESSES = 8192, 50_000
assert PAGES // 16 < ENTRIES < PAGES


@pytest.mark.parametrize(
    ("guest", "host"),
    [
        (small.guest(*populated(PAGES, ACCESSES), page_size=PAGE), BLOCK),
        (small.container(*populated(PAGES, ACCESSES)), PAGE),
    ],
    ids=["4 KiB over 2 MiB", "container"],
)
def test_memory_in_a_row_misses_as_sixteenths(guest: dict[str, Any], host: int) -> None:
    """Without the hint uniform accesses miss all but ENTRIES of PAGES; with it, each group once."""
    without, slow = walks_and_slowdown(guest, False, host)
    with_, fast = walks_and_slowdown(guest, True, host)
    assert without == pytest.approx(ACCESSES * (1 - ENTRIES / PAGES), rel=0.02)
    assert with_ <= PAGES // 16
    assert fast < slow


@pytest.mark.parametrize(("guest", "host"), [(PAGE, PAGE), (BLOCK, PAGE)])
def test_memory_that_tables_break_up_gains_little(guest: int, host: int) -> None:
    """In a SLAT of 4 KiB the frames of guest tables and of the SLAT's own come in between."""
    pages = small.guest(*populated(PAGES, ACCESSES), page_size=guest)
    without, slow = walks_and_slowdown(pages, False, host)
    with_, fast = walks_and_slowdown(pages, True, host)
    assert PAGES // 16 < with_ < without
    assert fast < slow


def test_memory_touched_at_random_gains_nothing() -> None:
    touch = small.phase(name="touch", allocate=PAGES * PAGE, accesses=4 * PAGES, measure=False)
    guest = small.guest(touch, small.phase(name="run", allocate=None), page_size=PAGE)
    assert walks_and_slowdown(guest, True, PAGE) == walks_and_slowdown(guest, False, PAGE)
