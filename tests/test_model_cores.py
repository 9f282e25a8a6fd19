"""Host cores and their MMUs: who runs where, what tags keep, and what invalidations drop."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, MIB, PAGE

from simvm import _core
from simvm.hardware import load_cpu
from simvm.model import mmus
from simvm.model.engine import Simulation
from simvm.model.mmus import CEILINGS, CoreMmu, GpaRange, VaRange
from simvm.model.vcpu import GuestKilled, VirtualCpu, Work
from simvm.scenario.models import Scenario
from simvm.workload.patterns import make_stream, random_bits

ENTRIES = sum(array.entries for array in load_cpu("sapphire_rapids").geometry.l2)


def populated(pages: int, accesses: int = 400_000, **values: Any) -> tuple[dict[str, Any], ...]:
    """A region of 4 KiB pages that is touched once, then accessed at random."""
    touch = small.phase(
        name="touch", allocate=pages * PAGE, accesses=pages, measure=False,
        pattern={"kind": "sequential", "stride": PAGE},
    )  # fmt: skip
    run = small.phase(
        name="run", allocate=None, accesses=accesses, cycles_per_access=100, **values
    )
    return touch, run


def vms(pages: int, count: int = 2, **values: Any) -> dict[str, Any]:
    """Guests whose translations are all of 4 KiB."""
    return {"vm": small.guest(*populated(pages, **values), count=count, page_size=PAGE)}


def boxes(pages: int, count: int = 2, **values: Any) -> dict[str, Any]:
    return {"vm": small.container(*populated(pages, **values), count=count)}


def on(cores: int, guests: dict[str, Any], **host: Any) -> Scenario:
    return small.scenario(guests, host={"cores": cores, "page_size": PAGE, **host})


def walks_of_phase(made: Simulation, name: str = "run") -> int:
    """Over all guests."""
    return sum(
        phase["counters"]["walks"]
        for guest in small.summary_of(made)["guests"] for phase in guest["phases"]
        if phase["name"] == name
    )  # fmt: skip


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which guests came to a core in their measured phases, where another one had been."""
    came: list[int] = []
    attach = VirtualCpu._attach

    def counted(vcpu: VirtualCpu, core: int) -> None:
        guest = vcpu.guest.owner
        if vcpu.measuring and vcpu.guest.host.mmu_of(core)._guest not in (None, guest):
            came.append(guest)
        attach(vcpu, core)

    monkeypatch.setattr(VirtualCpu, "_attach", counted)
    return came


# --- tags -------------------------------------------------------------------------------


@pytest.mark.parametrize("guests", [vms, boxes])
def test_tags_keep_what_fits_and_without_each_switch_costs_the_working_set(
    guests: Any, switches: list[int]
) -> None:
    """Two working sets fit the last TLB level together. A slice touches all of one."""
    pages = 512
    assert 2 * pages <= ENTRIES
    tagged = small.simulate(on(1, guests(pages)))
    kept, few = walks_of_phase(tagged), len(switches)
    switches.clear()
    untagged = small.simulate(on(1, guests(pages), tagged_tlb=False))
    lost, many = walks_of_phase(untagged), len(switches)
    assert min(few, many) > 20
    # With tags only the populating phase's entries are new.
    assert kept <= 2 * pages
    assert lost == pytest.approx(many * pages, rel=0.05)
    slow = [small.summary_of(made)["host"]["slowdown"] for made in (tagged, untagged)]
    assert slow[0] < slow[1]


def test_tags_keep_nothing_when_the_others_fill_the_tlb(switches: list[int]) -> None:
    """A working set beyond the TLB: a switch costs min(working set, entries) at most."""
    pages = 4 * ENTRIES
    tagged = walks_of_phase(small.simulate(on(1, vms(pages))))
    switches.clear()
    untagged = walks_of_phase(small.simulate(on(1, vms(pages), tagged_tlb=False)))
    assert abs(untagged - tagged) <= len(switches) * ENTRIES
    assert untagged == pytest.approx(tagged, rel=0.02)


def test_with_a_core_for_each_containers_need_no_tags() -> None:
    host = small.run(on(4, boxes(512, count=4), tagged_tlb=False)).summary
    assert host == small.run(on(4, boxes(512, count=4))).summary | {
        "scenario": host["scenario"]
    }


def pages_of(guest: str, phase: str, accesses: int, pages: int) -> list[int]:
    """The pages that a phase accesses, in order."""
    bits = random_bits(1, f"{guest}/{phase}/0/0")
    pattern = small.scenario().guests["vm"].workload[0].pattern
    assert pattern is not None
    stream, _ = make_stream(pattern, pages * PAGE, 0.0, bits, 0, 1)
    return [int(each) >> 13 for each in stream.take(accesses)]


def test_with_a_core_for_each_tags_save_the_refills_after_exits() -> None:
    """Without them a first touch drops all; the walks are those that its order predicts."""
    pages, accesses = 512, 20_000
    first = small.phase(name="first", allocate=pages * PAGE, accesses=accesses)
    guests = {"vm": small.guest(first, page_size=PAGE)}
    tagged, untagged = (
        walks_of_phase(small.simulate(on(4, guests, tagged_tlb=tags)), "first")
        for tags in (True, False)
    )
    touched: set[int] = set()
    held: set[int] = set()
    expected = 0
    for page in pages_of("vm.0", "first", accesses, pages):
        if page not in touched:
            touched.add(page)
            held.clear()
        if page not in held:
            held.add(page)
            expected += 1
    assert tagged == len(touched)
    assert untagged == expected
    assert expected > 5 * len(touched)


def test_populated_guests_with_a_core_each_leave_it_between_phases_only() -> None:
    """That is an exit, so without tags each guest refills once."""
    tagged, untagged = (
        walks_of_phase(small.simulate(on(2, vms(512), tagged_tlb=tags))) for tags in (True, False)
    )
    assert tagged == 0
    assert untagged == 2 * 512


def test_a_cpu_without_tags_is_the_same_as_tags_switched_off(tmp_path: Path) -> None:
    cpu = tmp_path / "untagged.toml"
    cpu.write_text(
        'inherits = "sapphire_rapids"\npart = "one without VPID"\n'
        '[tables]\ntagging = { v = "none", tag = "assumed", why = "a test" }\n'
    )
    without = small.simulate(on(1, vms(64, accesses=50_000), cpu=str(cpu)))
    off = small.simulate(on(1, vms(64, accesses=50_000), tagged_tlb=False))
    on_ = small.simulate(on(1, vms(64, accesses=50_000)))
    assert walks_of_phase(without) == walks_of_phase(off) > walks_of_phase(on_)


def test_the_contiguous_hint_reaches_the_tables() -> None:
    """A few groups of sixteen frames come to lie in a row: fewer walks, of the same memory."""
    guests = {"vm": small.guest(*populated(8192, accesses=100_000), page_size=PAGE)}
    single, grouped = (
        small.simulate(on(1, guests, cpu="neoverse_n1", contiguous=hint)) for hint in (False, True)
    )
    assert walks_of_phase(grouped) < walks_of_phase(single)
    assert grouped.guests[0].backed_by_order == single.guests[0].backed_by_order


# --- cores and their MMUs ---------------------------------------------------------------


def test_an_mmu_is_made_when_a_core_is_first_used() -> None:
    made = small.simulate(on(8, vms(16, count=3, accesses=100)))
    assert sorted(made.host._mmus) == [0, 1, 2]
    homes = [list(guest.mmus) for guest in made.guests]
    assert homes == [[0], [1], [2]]      # nobody moved


def test_counters_are_the_vcpus_own_wherever_it_ran() -> None:
    """Three guests on two cores: what they count adds up to what the MMUs would."""
    made = small.simulate(on(2, vms(512, count=3, accesses=100_000)))
    assert any(len(guest.mmus) == 2 for guest in made.guests)
    for guest in made.guests:
        (vcpu,) = guest.vcpus
        counters = vcpu.core.counters()
        assert counters["accesses"] == 100_000 + 512
        assert counters["walks"] + counters["l1_hits"] + counters["l2_hits"] == 100_512
    assert all(mmu.mmu.counters()["accesses"] == 0 for mmu in made.host._mmus.values())


def go_away(made: Simulation, vcpu: VirtualCpu) -> None:
    """From core 0 to core 1; the other two of three cores are taken."""
    cores = made.host.cores
    list(vcpu.enter_core())
    vcpu.leave_core()
    assert [list(cores.acquire(object())) for _ in range(2)] == [[], []]   # nobody's: 1 and 2
    list(cores.acquire())                                                   # 0
    cores.release(1)
    list(vcpu.enter_core())
    list(vcpu.catch_up())
    assert vcpu._on == 1


def come_home(made: Simulation, vcpu: VirtualCpu) -> None:
    """Back from core 1 to core 0."""
    cores = made.host.cores
    vcpu.leave_core()
    list(cores.acquire(vcpu))       # core 1, in the vCPU's name
    cores.release(0)
    list(vcpu.enter_core())
    list(vcpu.catch_up())
    assert vcpu._on == 0


def moved(guests: dict[str, Any]) -> int:
    """The walks of a vCPU that comes back to a warm core from another one."""
    made = small.simulate(on(3, guests))
    (vcpu,) = made.guests[0].vcpus
    space = made.guests[0].process("app").core
    (region,) = made.guests[0].regions.values()

    def walks() -> int:
        """Of all pages of the region."""
        mmu = vcpu.core.mmu
        before = mmu.counters()["walks"]
        for va in range(region.core.base, region.core.base + region.core.size, PAGE):
            assert mmu.access(space, va)[0] == _core.OK
        return mmu.counters()["walks"] - before

    assert walks() == 0
    go_away(made, vcpu)
    assert walks() == 256
    come_home(made, vcpu)
    return walks()


def test_a_vcpu_that_moves_drops_what_its_guest_has_there_and_a_process_does_not() -> None:
    assert moved(vms(256, count=1, accesses=20_000)) == 256
    assert moved(boxes(256, count=1, accesses=20_000)) == 0


# --- invalidation -----------------------------------------------------------------------


def test_a_range_keeps_what_it_does_not_touch() -> None:
    """One page of 512 is taken away: the others are still known, or none is."""
    for invalidation, misses in (("guest", 511), ("range", 0)):
        made = small.simulate(on(1, vms(512, count=1), invalidation=invalidation))
        (guest,) = made.guests
        (region,) = guest.regions.values()
        space = guest.process("app")
        assert space.table is not None
        leaf = space.table.lookup(region.core.base)
        assert leaf is not None
        assert guest.zap(leaf.target, PAGE) > 0
        (vcpu,) = guest.vcpus
        list(vcpu.enter_core())
        list(vcpu.catch_up())
        mmu = vcpu.core.mmu
        for page in range(1, 512):
            assert mmu.access(space.core, region.core.base + page * PAGE)[0] == _core.OK
        assert mmu.counters()["tlb_misses"] == misses
        status, address = mmu.access(space.core, region.core.base)
        assert (status, address) == (_core.SLAT_FAULT, leaf.target)


def test_a_process_of_a_container_drops_what_lies_beyond_its_first_tebibyte() -> None:
    """Many small regions take it there: each has a GiB, and another between it and the next."""
    made = small.simulate(on(1, boxes(16, count=1)))
    (guest,) = made.guests
    (vcpu,) = guest.vcpus
    space = guest.process("app")
    other = guest.allocate("other", "first", PAGE).core.base
    bases = [guest.allocate("app", f"r{number}", PAGE).core.base for number in range(1_100)]
    bases.append(guest.allocate("other", "second", PAGE).core.base)
    assert len({other, *bases}) == 1_102
    frames = made.host.memory.frames
    mmu = vcpu.core.mmu
    for va in (bases[0], bases[600], bases[1_099]):
        guest.slat.map(va, frames.allocate_4k(), 0)
        assert mmu.access(space.core, va)[0] == _core.OK
        guest.slat.unmap(va)
        guest.invalidate(va, PAGE)
        list(vcpu.enter_core())
        list(vcpu.catch_up())
        assert mmu.access(space.core, va)[0] != _core.OK


def test_a_container_that_fills_its_table_with_regions_fails() -> None:
    made = small.simulation(small.scenario({"box": small.container()}))
    guest = made.guests[0]
    guest.life.begin()
    with pytest.raises(GuestKilled):
        list(map(guest.allocate, map(str, range(300)), ["heap"] * 300, [PAGE] * 300))
    assert not guest.regions
    assert guest.failure == "no room for its regions in its page table"


def test_ranges_cost_fewer_walks_under_reclaim() -> None:
    found = {}
    for invalidation in ("guest", "range"):
        host = small.run(small.pressed(host={"invalidation": invalidation})).summary["host"]
        found[invalidation] = host["totals"]["walks"]
        assert host["totals"]["swap_outs"] > 1000
    assert found["range"] < 0.9 * found["guest"]


class Fake:
    """Stands in for a core's MMU: notes what is dropped."""

    reach = 1 << 60

    def __init__(self, *_: Any, **__: Any) -> None:
        self.dropped: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.dropped.append((name, *args))


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> CoreMmu:
    monkeypatch.setattr(mmus, "_core", SimpleNamespace(Mmu=Fake))
    return CoreMmu(load_cpu("zen4"), small.scenario().host, tagged=True)


def dropped(of: CoreMmu, guest: int) -> list[tuple[Any, ...]]:
    """What the guest drops as it enters."""
    fake: Any = of.mmu
    fake.dropped.clear()
    of.catch_up(guest)
    return list(fake.dropped)


def test_invalidations_wait_for_their_guest(noted: CoreMmu) -> None:
    noted.queue(1, VaRange(5, 0, PAGE))
    noted.queue(1, GpaRange(BLOCK, PAGE))
    noted.queue(2, None)
    assert dropped(noted, 3) == []
    assert dropped(noted, 1) == [("flush_range", 5, 0, PAGE, 1), ("flush_gpa", BLOCK, PAGE, 1)]
    assert dropped(noted, 1) == []
    assert dropped(noted, 2) == [("flush_guest", 2)]
    noted.queue(2, VaRange(5, 0, PAGE))
    noted.forget(2)
    assert dropped(noted, 2) == []


@pytest.mark.parametrize("flush", [VaRange(5, 0, PAGE), GpaRange(0, PAGE)])
def test_too_many_ranges_drop_everything(noted: CoreMmu, flush: VaRange | GpaRange) -> None:
    ceiling = CEILINGS[type(flush)]
    for _ in range(ceiling):
        noted.queue(1, flush)
    assert len(dropped(noted, 1)) == ceiling
    for _ in range(ceiling + 2):
        noted.queue(1, flush)
    assert dropped(noted, 1) == [("flush_guest", 1)]
    noted.queue(1, None)
    noted.queue(1, flush)
    assert dropped(noted, 1) == [("flush_guest", 1)]


# --- no translation is stale ------------------------------------------------------------


class Watch:
    """Compares what a core's MMU says with the tables, after every slice of accesses.

    It looks by accessing, so a run that is watched is not the run that is not.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.random = random.Random(1)
        self.looked = self.stale = self.moves = 0
        advance, attach = Work.advance, VirtualCpu._attach
        vcpus: dict[_core.Vcpu, VirtualCpu] = {}

        def watched(work: Work, core: _core.Vcpu, khz: int) -> tuple[int, int]:
            self.look(vcpus[core])
            return advance(work, core, khz)

        def counted(vcpu: VirtualCpu, core: int) -> None:
            vcpus[vcpu.core] = vcpu
            self.moves += vcpu._last not in (None, core)
            attach(vcpu, core)

        monkeypatch.setattr(Work, "advance", watched)
        monkeypatch.setattr(VirtualCpu, "_attach", counted)
        made = SimpleNamespace(Mmu=lambda geometry, targets: _core.Mmu(geometry, targets=True))
        monkeypatch.setattr(mmus, "_core", made)

    def look(self, vcpu: VirtualCpu) -> None:
        """At 16 pages of each region of the guest."""
        for (process, _), region in vcpu.guest.regions.items():
            space = vcpu.guest.process(process)
            for _ in range(16):
                offset = self.random.randrange(0, region.core.size, PAGE)
                self.compare(vcpu, space, region.core.base + offset)

    def compare(self, vcpu: VirtualCpu, space: Any, va: int) -> None:
        status, found = vcpu.core.mmu.translate(space.core, va)
        if status != _core.OK:
            return
        self.looked += 1
        address = va
        for table in (space.table, vcpu.guest.slat):
            if table is not None:
                leaf = table.lookup(address)
                if leaf is None or leaf.target is None:
                    self.stale += 1
                    return
                address = leaf.target + (address - leaf.base)
        self.stale += found != address


STORMS: dict[str, dict[str, Any]] = {
    "guest": {},
    "range": {"invalidation": "range"},
    "untagged": {"tagged_tlb": False},
    "userfaultfd": {"fault_path": "userfaultfd", "invalidation": "range"},
}


def storm(**host: Any) -> Scenario:
    """More vCPUs than cores, more memory than there is, guests that free and use again."""
    work = small.phase(allocate=48 * MIB, accesses=6_000, threads=2, cycles_per_access=2_000)
    again = small.phase(
        region="tmp", allocate=8 * MIB, accesses=1_500, free="all", task="side", repeat=3,
        process="other", cycles_per_access=2_000,
    )  # fmt: skip
    return small.scenario(
        {
            "vm": small.guest(work, again, count=2, vcpus=3, memory=128 * MIB,
                              channel={"kind": "passthrough"}),
            "box": small.container(work, again, vcpus=3, memory=128 * MIB),
        },
        host={"cores": 5, "memory": 96 * MIB, "swap": {"device": "nvme", "size": 512 * MIB},
              **host},
    )  # fmt: skip


@pytest.mark.parametrize("kind", STORMS)
def test_no_translation_is_stale(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    made = small.simulate(storm(**STORMS[kind]))
    assert small.summary_of(made)["host"]["totals"]["swap_ins"] > 500
    assert watch.moves > 30
    assert watch.looked > 20_000
    assert watch.stale == 0


@pytest.mark.parametrize("forgetful", [False, True])
def test_what_changes_while_a_vcpu_is_away_is_known_at_home(
    forgetful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process finds its old entries there, so the change must wait for it on each core.

    Where only the core on which it runs is told, an old entry is seen, and so would be above.
    """
    watch = Watch(monkeypatch)
    made = small.simulate(on(3, boxes(256, count=1, accesses=20_000)))
    (guest,) = made.guests
    (vcpu,) = guest.vcpus
    (region,) = guest.regions.values()
    assert watch.stale == 0
    go_away(made, vcpu)
    if forgetful:
        monkeypatch.setattr(guest, "mmus", {1: guest.mmus[1]})
    assert guest.zap(region.core.base, 128 * PAGE) > 0
    come_home(made, vcpu)
    for page in range(256):
        watch.compare(vcpu, guest.process("app"), region.core.base + page * PAGE)
    assert (watch.stale > 0) is forgetful


@pytest.mark.parametrize("kind", STORMS)
def test_a_storm_is_the_same_each_time(kind: str) -> None:
    one, two = (small.run(storm(**STORMS[kind])) for _ in range(2))
    assert one.summary == two.summary
    walks = (list(each.timeline.host().values("walks")) for each in (one, two))
    assert next(walks) == next(walks)
