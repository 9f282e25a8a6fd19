"""Every byte of host RAM is in one column; a wrong count fails the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE

from simvm.errors import EXIT_FAILED, SimulationFailed
from simvm.model import ledger
from simvm.model.engine import Simulation
from simvm.model.queues import Process
from simvm.scenario.models import Scenario

HUGETLB = {"backing": "hugetlb", "hugetlb": {"page_size": BLOCK, "size": 512 * MIB}}


def two_guests() -> Scenario:
    """Two guests that run for some ms, with VMMs of their own."""
    work = small.phase(accesses=100_000)
    return small.scenario(
        {"vm": small.guest(work, count=2, vmm_overhead=MIB)}, sample_interval=MS,
    )  # fmt: skip


def meddle(of: Scenario, change: Callable[[Simulation], None], at: int = 2 * MS) -> None:
    """Run a scenario in which something is changed at a moment between two samples."""
    made = small.simulation(of)

    def later() -> Process:
        yield made.env.timeout(at + MS // 2)
        change(made)

    made.env.process(later())
    made.run()



def leak(made: Simulation) -> None:
    made.host.memory.frames.allocate_4k()


def lose_vmm_page(made: Simulation) -> None:
    made.guests[0].vmm_pages.pop()


def count_writeback_twice(made: Simulation) -> None:
    made.host.swap.writeback_bytes += PAGE


def forget_a_read(made: Simulation) -> None:
    made.host.swap.reading_bytes -= PAGE


def forget_a_guest(made: Simulation) -> None:
    del made.host.guests[made.guests[1].owner]


def give_away_reserved(made: Simulation) -> None:
    made.host.reserved_bytes += 1


def test_an_undisturbed_run_balances() -> None:
    meddle(two_guests(), lambda made: None)


@pytest.mark.parametrize(
    "change",
    [leak, lose_vmm_page, count_writeback_twice, forget_a_read, forget_a_guest,
     give_away_reserved],
)  # fmt: skip
def test_a_wrong_count_fails_the_run(change: Callable[[Simulation], None]) -> None:
    with pytest.raises(SimulationFailed, match="the ledger is off by") as failed:
        meddle(two_guests(), change)
    assert failed.value.exit_code == EXIT_FAILED
    assert "at 3000000 ns" in str(failed.value)  # the next sample


def test_a_wrong_count_after_the_last_sample_fails_the_run() -> None:
    of = two_guests()
    last = small.simulate(of).env.now
    with pytest.raises(SimulationFailed, match=f"at {last} ns the ledger is off by -4096 bytes"):
        meddle(of, leak, at=last - MS // 2 - 1)


# --- the thorough check -----------------------------------------------------------------


def steal_a_page(made: Simulation) -> None:
    """The second guest claims a page of the first one instead of its own."""
    first, second = made.guests
    second.vmm_pages[0] = first.vmm_pages[0]


def steal_a_table(made: Simulation) -> None:
    made.guests[1].vmm_pages[0] = made.guests[0].slat.root


def claim_data(made: Simulation) -> None:
    """A page that backs guest memory: the first touched address is at the top of a 1 GiB."""
    slat = made.guests[0].slat
    address = next(a for a in range(0, 512 * MIB, BLOCK) if slat.lookup(a) is not None)
    leaf = slat.lookup(address)
    assert leaf is not None
    made.guests[1].vmm_pages[0] = leaf.target


@pytest.mark.parametrize("change", [steal_a_page, steal_a_table, claim_data])
def test_a_frame_with_two_owners_fails_a_thorough_run(
    change: Callable[[Simulation], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMVM_DEBUG", "1")
    with pytest.raises(SimulationFailed, match="a frame of the host has two owners"):
        meddle(two_guests(), change)


def test_a_frame_with_two_owners_balances_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above is one of the audit, not of the balance."""
    monkeypatch.setenv("SIMVM_DEBUG", "0")
    meddle(two_guests(), steal_a_page)


def test_a_sum_that_was_not_kept_fails_the_audit() -> None:
    made = small.simulate(two_guests())
    ledger.audit(made.host)
    made.host.sums[""]["backed_bytes"] += PAGE
    with pytest.raises(SimulationFailed, match="the sum over guests was not kept"):
        ledger.audit(made.host)


# --- what the columns hold --------------------------------------------------------------


def test_the_columns_of_an_idle_host() -> None:
    made = small.simulation(small.scenario(host={"memory": GIB, "kernel_reserved": 3 * MIB}))
    columns = {name: size for name, size in ledger.entries(made.host).items() if size}
    assert columns == {
        "memmap": 16 * MIB,              # 64 bytes for each page of 4 KiB
        "reserved": 4 * MIB,             # whole blocks
        "free": GIB - 20 * MIB,
    }


@pytest.mark.parametrize(
    "of",
    [
        small.pressed(accesses=3_000),
        small.scenario({"vm": small.guest(small.phase(free="all")), "box": small.container()}),
        small.scenario(host=HUGETLB),
    ],
    ids=["pressed", "mixed", "hugetlb"],
)
def test_columns_are_never_negative_and_agree_with_the_gauges(of: Scenario) -> None:
    made = small.simulate(of)
    columns = ledger.entries(made.host)
    assert min(columns.values()) >= 0
    assert sum(columns.values()) == of.host.memory
    totals = small.summary_of(made)["host"]["final"]
    assert columns["guest data"] == totals["backed_bytes"]
    assert columns["free"] == totals["free_bytes"]
    assert columns["hugetlb pool, free"] == totals["hugetlb_free_bytes"]
    assert columns["partly unmapped"] == totals["partial_bytes"]
    ledger.audit(made.host)


def test_a_guest_that_ends_gives_everything_back() -> None:
    """Data, tables, deposits, VMM memory, swap slots: the host is as it was before."""
    of = small.pressed(accesses=3_000, vmm_overhead=MIB, stop=300 * MS)
    idle = ledger.entries(small.simulation(of).host)
    made = small.simulation(of)
    made.run()
    made.env.run(400 * MS)
    assert ledger.entries(made.host) == idle
    assert made.host.swap.used_bytes == 0
    assert made.host.sums[""]["backed_bytes"] == 0
    assert all(guest.failure is None for guest in made.guests)
