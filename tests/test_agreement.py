"""Core and twin agree on every CPU, pair of granules, policy and invalidation.

The programs are long enough for every structure of every CPU to evict, which is looked at.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import ClassVar

import pytest
from agreement import run_both
from conftest import LONG
from long_programs import FLUSHES, Size, long_program, of_cpu, with_policies
from programs import Flush, Program

from simvm import hardware
from simvm.hardware.geometry import POLICIES, TableFormat
from simvm.reference.replacement import Key, SetAssociative, Value

SEEDS = range(4 if LONG else 1)
TURNS = [None, *range(len(POLICIES))] if LONG else [None]
GUESTS = {
    12: TableFormat(4, contiguous=True),
    14: TableFormat(3, 14),
    16: TableFormat(3, 16),
}
HOSTS = {  # with roots of several tables, and of less than one
    12: TableFormat(3, root_bits=11, contiguous=True),
    14: TableFormat(3, 14, root_bits=12),
    16: TableFormat(3, 16, root_bits=7),
}

seeds = pytest.mark.parametrize("seed", SEEDS)
nested_or_native = pytest.mark.parametrize("nested", [True, False], ids=["nested", "native"])


class Watched(SetAssociative[Value]):
    """Counts what the twin's structures evict."""

    made: ClassVar[list[Watched[object]]] = []

    def __init__(self, entries: int, ways: int, policy: str = "lru") -> None:
        super().__init__(entries, ways, policy)
        self.made.append(self)
        self.inserted = self.evicted = 0

    def insert(self, key: Key, value: Value) -> None:
        self.inserted += 1
        self.evicted += None not in self._places[key[-1] % self.sets]
        super().insert(key, value)


@pytest.fixture
def structures(monkeypatch: pytest.MonkeyPatch) -> list[Watched[object]]:
    """Those of the twin that will be made."""
    monkeypatch.setattr(Watched, "made", [])
    for module in ("tlb", "mmu"):
        monkeypatch.setattr(f"simvm.reference.{module}.SetAssociative", Watched)
    return Watched.made


def flushes_of(program: Program) -> Counter[str]:
    return Counter(step.what for step in program.steps if isinstance(step, Flush))


@seeds
@nested_or_native
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", hardware.names())
def test_every_cpu(
    name: str, turn: int | None, nested: bool, seed: int, structures: list[Watched[object]]
) -> None:
    """With its own policies (`turn` is None), and with each policy in each structure."""
    cpu = hardware.load_cpu(name)
    if turn is not None:
        cpu = replace(cpu, geometry=with_policies(turn, cpu.geometry))
    program = of_cpu(cpu, nested, Size((1600, 500, 90), 2000, 3), seed)
    happened = run_both(program)
    if seed > 0:  # of other programs it is not asked that they reach everything
        return
    of_host = len(cpu.geometry.host_walk_cache) + bool(cpu.geometry.nested_tlb.entries)
    unused = [structure for structure in structures if not structure.inserted]
    assert len(unused) == (0 if nested else of_host)
    assert all(structure.evicted for structure in structures if structure.inserted)
    done = ("unmap", "split", "collapse", "clear_accessed", "dirty_updates", "walker_wait_cycles")
    assert all(happened[what] for what in done)
    assert flushes_of(program).keys() == set(FLUSHES)


@seeds
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("guest", [*GUESTS, None])
def test_every_pair_of_granules(guest: int | None, host: int, seed: int) -> None:
    """`None` is native. Of two VMs, one has the usual tables."""
    slats = (HOSTS[host], TableFormat())
    spaces = ((GUESTS[guest or host], 0), (TableFormat(), 1), (GUESTS[guest or host], 0))
    if guest is None:
        slats, spaces = (), ((HOSTS[host], 0), *spaces[1:])
    for turn, style in enumerate(("intel", "amd")):
        geometry = replace(with_policies(turn + seed), style=style)
        program = long_program(geometry, slats, spaces, Size((150, 40, 16), 500, 1), seed)
        assert run_both(program)["walks"] > 0


@seeds
@nested_or_native
@pytest.mark.parametrize("style", ["intel", "amd"])
@pytest.mark.parametrize("turn", range(len(POLICIES)))
def test_every_policy_in_every_structure(
    turn: int, style: str, nested: bool, seed: int, structures: list[Watched[object]]
) -> None:
    plain = TableFormat()
    geometry = replace(with_policies(turn), style=style)
    slats = (plain, TableFormat(5)) if nested else ()
    spaces = ((TableFormat(contiguous=True), 0), (TableFormat(5), 1), (plain, 0))
    program = long_program(geometry, slats, spaces, Size((150, 60, 40), 800, 3), seed)
    run_both(program)
    if seed == 0:
        assert all(structure.evicted for structure in structures if structure.inserted)
