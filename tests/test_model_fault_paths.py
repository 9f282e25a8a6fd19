"""What many vCPUs that fault at once pay: shared lines, and the lock of a queue."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import MIB, PAGE

from simvm.hardware import load_costs
from simvm.model.clock import Clock
from simvm.model.faults.exit_to_userspace import LINES_OF_HOST, LINES_OF_VM, Line
from simvm.model.queues import Cores, FaultThreads, Train
from simvm.validation import demand_faults, published

COSTS = load_costs()


def faulting(guests: int, threads: int, path: str = "exit_to_userspace", **host: Any) -> Any:
    """Host totals of guests whose threads touch 2 MiB each, one fault at a time."""
    work = small.phase(
        allocate=threads * 2 * MIB, pattern={"kind": "sequential", "stride": PAGE},
        accesses=threads * 512, threads=threads,
    )  # fmt: skip
    result = small.result(
        {"vm": small.guest(work, count=guests, vcpus=threads, memory=64 * MIB)},
        host={"page_size": PAGE, "cores": 32, "fault_path": path, **host},
        train=1,
    )  # fmt: skip
    return result.summary["host"]["totals"]


def test_one_vcpu_that_exits_pays_the_exit_and_no_line() -> None:
    """Nobody else writes the lines, so they are at hand: the cost beside the kernel's is one."""
    kernel, exits = faulting(1, 1, "kernel"), faulting(1, 1)
    assert exits["slat_faults"] == kernel["slat_faults"]
    added = exits["fault_service_ns"] - kernel["fault_service_ns"]
    assert added == exits["slat_faults"] * COSTS.exit_to_userspace_extra_ns
    assert exits["fault_wait_ns"] == 0


@pytest.mark.parametrize(
    ("guests", "threads", "lines"),
    [(1, 4, len(LINES_OF_VM + LINES_OF_HOST)), (4, 1, len(LINES_OF_HOST))],
)
def test_vcpus_of_one_vm_pass_every_line_on_and_vms_the_host_s(
    guests: int, threads: int, lines: int
) -> None:
    """All of 2,048 faults find each shared line elsewhere, so each adds lines x a transfer.

    Boots fault as well (by one vCPU each): with four guests they contend too, so the share
    that is foreign is of all faults; with one guest it is of those that the threads take.
    """
    costs = {"line_transfer": 100_000}  # so that vCPUs never fault without another between
    contended = faulting(guests, threads, costs=costs)
    free = faulting(guests, threads, costs={"line_transfer": 0})
    assert contended["slat_faults"] == free["slat_faults"]
    added = contended["fault_service_ns"] - free["fault_service_ns"]
    faults = 2_048 if guests == 1 else contended["slat_faults"]
    assert added == pytest.approx(faults * lines * 100_000, rel=0.05)
    assert contended["fault_wait_ns"] > 0
    assert free["fault_wait_ns"] == 0


def test_a_line_waits_for_who_has_it_and_costs_its_owner_nothing() -> None:
    line, one, other = Line(), object(), object()
    take: Any = line.take
    assert take(one, 0, 100) == (0, 0)      # nobody has it
    assert take(other, 0, 100) == (0, 100)
    assert take(one, 40, 100) == (60, 100)  # free at 100
    assert take(other, 150, 100) == (50, 100)  # free at 200
    assert take(other, 400, 100) == (0, 0)  # nobody wrote it since


def test_the_queue_s_lock_is_held_longer_the_more_faults_wait() -> None:
    """10 ns and 5 for each other: three at once hold it for 20 each, one after the other."""
    env = Clock()
    threads = FaultThreads(env, Cores(env, 4), 4, lambda waiting: 10 + 5 * waiting)
    ends: dict[int, int] = {}

    def one(number: int) -> Any:
        train: Train = threads.submit(1, 100)
        yield train.done
        ends[number] = env.now
        assert train.served_ns == 120

    for number in range(3):
        env.process(one(number))
    env.run()
    assert ends == {0: 120, 1: 140, 2: 160}


def test_a_train_alone_is_whole_and_ends_when_another_comes() -> None:
    """4 faults of 110 each; another arrives at 150, within the second, which ends at 220.

    Then each holds the lock for 15, the train's third fault after the other's, from 165 on.
    """
    env = Clock()
    threads = FaultThreads(env, Cores(env, 4), 2, lambda waiting: 10 + 5 * waiting)
    ends: dict[str, int] = {}

    def one(name: str, at: int, faults: int) -> Any:
        yield env.timeout(at)
        train = threads.submit(faults, 100 * faults)
        yield train.done
        ends[name] = env.now

    env.process(one("train", 0, 4))
    env.process(one("other", 150, 1))
    env.run()
    assert ends["other"] == 150 + 115
    assert ends["train"] == 220 + 115 + 110


def test_one_userfaultfd_collapses_by_its_waiters_and_exits_level_off() -> None:
    """Beyond a few vCPUs the queue's lock bounds the rate, and it is held the longer.

    At most 1 / (extra + waiter x others that wait): with 16, 1 / (4717 + 15 x 110) ns. Without
    the cost of a waiter 16 vCPUs are as fast as 4.
    """
    def rate(path: str, vcpus: int, **costs: int) -> float:
        return demand_faults.kpages_per_s(path, vcpus, costs, 1_024)

    four, sixteen = rate("one_userfaultfd", 4), rate("one_userfaultfd", 16)
    assert sixteen < 0.9 * four
    bound = 1e6 / (COSTS.userfaultfd_extra_ns + 15 * COSTS.userfaultfd_waiter_ns)
    assert sixteen == pytest.approx(bound, rel=0.08)
    assert rate("one_userfaultfd", 16, userfaultfd_waiter=0) == pytest.approx(
        rate("one_userfaultfd", 4, userfaultfd_waiter=0), rel=0.05
    )
    most = 1e6 / COSTS.line_transfer_ns  # a line is in one core at a time
    eight, hundred = rate("exit_to_userspace", 8), rate("exit_to_userspace", 128)
    assert 0.75 * most < hundred < 1.1 * most
    assert hundred < 16 / 3 * eight
    assert rate("exit_to_userspace", 128, line_transfer=0) > 5 * hundred


def test_the_constants_that_ship_are_those_that_fit() -> None:
    """The rows that they come from, to within what fewer faults than the calibration's do."""
    table = published()["demand_fault_scaling"]
    base = {"slat_fault_4k": table["slat_fault_4k_ns"]}
    fitted = [row for row in table["rows"] if row.get("class") == "calibrated"]
    assert [row["vcpus"] for row in fitted] == [1, 64, 1, 64]
    for row in fitted:
        rate = demand_faults.kpages_per_s(row["path"], row["vcpus"], base, 2_048)
        assert rate == pytest.approx(row["kpages_per_s"], rel=0.04)
