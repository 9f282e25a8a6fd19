"""Every nanosecond has a cause: the parts add up to the clock, and a wrong charge fails a run."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, MIB, MS, PAGE, US

from simvm.columns import ELAPSED_PARTS
from simvm.errors import EXIT_FAILED, SimulationFailed
from simvm.model.accounts import Account, Stopwatch, difference
from simvm.model.faults import KernelPath
from simvm.model.queues import Process
from simvm.model.vcpu import VirtualCpu
from simvm.scenario.models import Scenario


def test_an_account_adds_up() -> None:
    account = Account()
    before = account.parts()
    account.charge("compute_ns", 3)
    account.charge("swap_in_ns", 4)
    account.charge("compute_ns", 5)
    assert account.elapsed_ns == 12
    assert difference(account.parts(), before) == dict.fromkeys(ELAPSED_PARTS, 0) | {
        "compute_ns": 8, "swap_in_ns": 4,
    }  # fmt: skip


def test_time_does_not_run_back_and_has_a_known_cause() -> None:
    account = Account()
    with pytest.raises(ValueError, match=r"ns\(=-1\)"):
        account.charge("compute_ns", -1)
    with pytest.raises(AttributeError):
        account.charge("other_ns", 1)


def test_a_stopwatch_tells_what_does_not_add_up() -> None:
    account = Account()
    watch = Stopwatch(account, 100)
    account.charge("hint_ns", 7)
    assert watch.stop(107, "a call") == 7
    with pytest.raises(SimulationFailed, match="a call: 8 ns passed on the clock, 7 ns were"):
        watch.stop(108, "a call")


BUSY: dict[str, Scenario] = {
    "pressed": small.pressed(accesses=5_000),
    "pressed, userfaultfd": small.pressed(
        accesses=3_000, host={"fault_path": "userfaultfd", "fault_workers": 2}
    ),
    "one core": small.scenario(
        {"vm": small.guest(small.phase(threads=2, accesses=40_000), count=3, vcpus=2)},
        host={"cores": 1},
    ),
    "zeroing, thinking, freeing": small.scenario({"vm": small.guest(
        small.phase(accesses=3_000, think_time=700, write_fraction=0.5, free="all", repeat=3),
        zeroing="guest", boot=8 * MIB, vmm_overhead=4 * MIB, channel={"kind": "passthrough"},
    )}),
    "shadow paging, freeing": small.scenario({"vm": small.guest(
        small.phase(free="all", repeat=2), page_size=PAGE, virtualization="shadow",
        channel={"kind": "passthrough"},
    )}),
    "container": small.scenario({"box": small.container(
        small.phase(threads=2, free=32 * MIB), small.phase(allocate=None), vcpus=2
    )}),
    "memory on CXL": small.pressed(
        host={"swap": {"device": "cxl", "size": 512 * MIB, "access": "in_place"}}
    ),
    "the guest's own swap": small.scenario({"vm": small.guest(
        small.phase(allocate=80 * MIB, accesses=30_000, cycles_per_access=2_000),
        memory=64 * MIB, page_size=PAGE, swap={"device": "nvme", "size": 64 * MIB},
        page_cache={"files": 64 * MIB, "read_rate": 1 << 30, "write_fraction": 1.0},
    )}),
    "hugetlb": small.scenario(
        {"vm": small.guest()},
        host={"backing": "hugetlb", "hugetlb": {"page_size": BLOCK, "size": 1024 * MIB}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUSY)
def test_the_parts_of_elapsed_time_add_up_to_the_nanosecond(name: str) -> None:
    """The run itself checks it per thread; here against the clock of whole phases and runs."""
    made = small.simulate(BUSY[name])
    summary = small.summary_of(made)
    for guest, values in zip(made.guests, summary["guests"], strict=True):
        phases = [each for each in values["phases"] if each["end_ns"] is not None]
        assert phases
        for each in phases:
            assert sum(each["parts"].values()) == each["elapsed_ns"]
            assert each["ideal_ns"] == each["parts"]["compute_ns"] + each["parts"]["think_ns"]
            if BUSY[name].guests[guest.class_].vcpus == 1:
                assert each["end_ns"] - each["start_ns"] == each["elapsed_ns"]
        assert values["totals"]["elapsed_ns"] == sum(values["elapsed"].values())
        if len(guest.vcpus) == 1:  # from the guest's start (0) to the end of its last phase
            assert sum(values["elapsed"].values()) == phases[-1]["end_ns"]
    totals = summary["host"]["totals"]
    assert totals["elapsed_ns"] == sum(totals[part] for part in ELAPSED_PARTS)
    assert totals["ideal_ns"] == totals["compute_ns"] + totals["think_ns"]
    assert totals["fault_stall_ns"] == (
        totals["fault_wait_ns"] + totals["fault_service_ns"] + totals["swap_in_ns"]
    )


def test_the_busy_scenarios_reach_every_part() -> None:
    """Else the sums above would prove little."""
    seen = dict.fromkeys(ELAPSED_PARTS, 0)
    for of in BUSY.values():
        totals = small.run(of).summary["host"]["totals"]
        for part in ELAPSED_PARTS:
            seen[part] += totals[part]
    assert all(seen.values()), seen


def test_compute_is_what_the_accesses_cost() -> None:
    """20,000 accesses x 20 cycles at the frequency of the set, rounded once per slice at most."""
    made = small.simulate(small.scenario())
    khz = made.host.cpu.frequency_khz
    elapsed = small.summary_of(made)["guests"][0]["elapsed"]
    assert elapsed["compute_ns"] == 20_000 * 20 * 1_000_000 // khz


# --- injected mistakes ------------------------------------------------------------------


def wrong_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nanosecond more is charged for a fault than has passed."""
    right = KernelPath.serve

    def serve(self: KernelPath, vcpu: VirtualCpu, faults: int, service: int) -> Process:
        yield from right(self, vcpu, faults, service)
        vcpu.charge("fault_service_ns", 1)

    monkeypatch.setattr(KernelPath, "serve", serve)


def uncharged_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nanosecond passes that nobody is charged for."""
    right = VirtualCpu._settle

    def settle(self: VirtualCpu, compute: int, translation: int) -> Process:
        yield from right(self, compute, translation)
        yield self.guest.host.env.timeout(1)

    monkeypatch.setattr(VirtualCpu, "_settle", settle)


@pytest.mark.parametrize("inject", [wrong_service, uncharged_wait])
@pytest.mark.parametrize("boot", [0, 4 * MIB])
def test_a_wrong_charge_fails_the_run(
    inject: Any, boot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch)
    with pytest.raises(SimulationFailed, match="ns passed on the clock") as failed:
        small.simulate(small.scenario({"vm": small.guest(boot=boot)}))
    assert failed.value.exit_code == EXIT_FAILED


def test_a_wrong_charge_while_memory_is_freed_fails_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = VirtualCpu.spend

    def spend(self: VirtualCpu, *charges: tuple[str, int]) -> Process:
        yield from right(self, *charges)
        if any(part == "hint_ns" for part, _ in charges):
            self.charge("hint_ns", 1)

    monkeypatch.setattr(VirtualCpu, "spend", spend)
    with pytest.raises(SimulationFailed, match=r"telling the host: \d+ ns passed"):
        small.simulate(small.scenario({"vm": small.guest(channel={"kind": "passthrough"})}))


def test_think_time_counts_as_elapsed_and_as_ideal() -> None:
    plain = small.one(small.result({"vm": small.guest(small.phase(accesses=1_000))}))
    pausing = small.one(small.result({"vm": small.guest(
        small.phase(accesses=1_000, think_time=2 * US)
    )}))  # fmt: skip
    assert pausing["elapsed"]["think_ns"] == 1_000 * 2 * US
    for key in ("elapsed_ns", "ideal_ns"):
        assert pausing["totals"][key] - plain["totals"][key] == pytest.approx(2 * MS, rel=0.01)
    assert pausing["slowdown"] < plain["slowdown"]
