"""Demand faults of many vCPUs: each touches 4 KiB pages of its own, as fast as it can.

The measurement (KVM's demand_paging_test) has one VM whose memory is in the page cache and
mapped nowhere, as many reader threads as vCPUs, and a core for each of both. Here it is a
scenario of one guest, through the fault paths and locks of the model; nothing is closed
form. Pages of 2 MiB in the guest, never zeroed, keep its own faults out of the way.

`python -m simvm.validation.demand_faults` repeats the calibration: four constants from the
rows of 1 and 64 vCPUs of both paths, one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

from simvm.hardware import load_costs
from simvm.hardware.geometry import PAGE
from simvm.units import SECOND
from simvm.validation import scenarios
from simvm.validation.rows import Published, Row, basis, sized

_FAULTS = 10_240
_LEAST_EACH = 20


def scaling_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Thousands of pages a second; fewer faults when not at full size."""
    machine = {"slat_fault_4k": published["slat_fault_4k_ns"]}
    for row in published["rows"]:
        path, vcpus = row["path"], row["vcpus"]
        stands_on = basis(published, row, inputs=published["costs"][path])
        simulated = kpages_per_s(path, vcpus, machine, sized(full, _FAULTS))
        target = f"demand faults in kpages/s, {path}, {vcpus} vCPUs"
        yield Row(target, row["kpages_per_s"], simulated, stands_on)


def kpages_per_s(path: str, vcpus: int, costs: Mapping[str, int], faults: int = _FAULTS) -> float:
    """Thousands of pages that `vcpus` vCPUs of one guest fault in a second.

    `costs` are in ns and replace the shipped ones, by name. The first and last fault of each
    vCPU are in the mean, so it takes `_LEAST_EACH` or more of each.
    """
    each = max(_LEAST_EACH, faults // vcpus)
    work = "guest.vm.workload.memory"
    sets = [
        f"guest.vm.vcpus={vcpus}",
        f"{work}.threads={vcpus}",
        f"{work}.accesses={vcpus * each}",
        f"{work}.allocate={vcpus * each * PAGE // 1024}KiB",
        *(f"host.costs.{name}={ns}ns" for name, ns in costs.items()),
    ]
    if path == "one_userfaultfd":
        sets += ["host.fault_path=userfaultfd", f"host.fault_workers={vcpus}"]
    summary = scenarios.run("demand_faults", sets=sets).summary
    (phase,) = summary["guests"][0]["phases"]
    return float(vcpus * each * SECOND / (phase["end_ns"] - phase["start_ns"]) / 1000)


def fit(published: Published) -> dict[str, int]:
    """The constants in ns that give the published rates of 1 and 64 vCPUs.

    Each follows from one row, by bisection of simulated runs: what a fault costs on that
    machine, from one vCPU that exits; the transfer of a line, from 64 of these; what
    userfaultfd adds, from one vCPU; and what each fault that waits adds, from 64.
    """
    rates = {(row["path"], row["vcpus"]): row["kpages_per_s"] for row in published["rows"]}
    costs: dict[str, int] = {}

    def solve(name: str, path: str, vcpus: int, high: int) -> None:
        costs[name] = _bisect(
            lambda ns: kpages_per_s(path, vcpus, {**costs, name: ns}), rates[path, vcpus], high
        )

    solve("slat_fault_4k", "exit_to_userspace", 1, 10_000)
    solve("line_transfer", "exit_to_userspace", 64, 2_000)
    solve("userfaultfd_extra", "one_userfaultfd", 1, 10_000)
    solve("userfaultfd_waiter", "one_userfaultfd", 64, 2_000)
    return costs


def _bisect(rate: Callable[[int], float], wanted: float, high: int) -> int:
    """The lowest cost in ns, up to `high`, at which the rate is `wanted` or less."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        if rate(middle) > wanted:
            low = middle + 1
        else:
            high = middle
    return low


if __name__ == "__main__":
    from simvm.validation import published

    table = published()["demand_fault_scaling"]
    shipped = load_costs().parameters
    for name, ns in fit(table).items():
        now = table["slat_fault_4k_ns"] if name == "slat_fault_4k" else shipped[name].value
        print(f"{name}: {ns} ns fitted, {now} ns shipped")
