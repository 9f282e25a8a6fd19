"""How many page walkers a CPU has bounds how much of a run's walks can be hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import MIB, PAGE

from simvm import hardware

CPU = "sapphire_rapids"


def walked(directory: Path, walkers: int, exposed: float) -> dict[str, Any]:
    """A phase in which nearly all accesses walk, none faults, and little else takes time."""
    cpu = directory / f"walkers{walkers}.toml"
    cpu.write_text(
        f'inherits = "{CPU}"\npart = "with other walkers"\n'
        f'walkers = {{ v = {walkers}, unit = "walkers", tag = "assumed", why = "a test" }}\n'
    )
    first = small.phase(
        name="populate", allocate=256 * MIB, accesses=65_536, measure=False,
        pattern={"kind": "sequential", "stride": PAGE},
    )  # fmt: skip
    work = small.phase(
        name="work", allocate=None, accesses=200_000, cycles_per_access=1, walk_exposed=exposed
    )
    guests = {"vm": small.guest(first, work, page_size=PAGE)}
    result = small.result(guests, host={"cpu": str(cpu), "page_size": PAGE})
    found: dict[str, Any] = small.one(result)["phases"][1]
    return found


def cycles(phase: dict[str, Any]) -> float:
    """Cycles from the first access to the last."""
    assert phase["parts"]["fault_service_ns"] == 0
    return float(phase["elapsed_ns"]) * hardware.load_cpu(CPU).frequency_khz / 1e6


def test_fewer_walkers_make_a_run_slower_where_part_of_a_walk_is_hidden(tmp_path: Path) -> None:
    """Walkers that are never idle walk for (walk cycles) / walkers: no run is shorter."""
    for exposed in (0.1, 0.3):
        runs = {walkers: walked(tmp_path, walkers, exposed) for walkers in (1, 2, 16)}
        counters = [run["counters"] for run in runs.values()]
        assert counters[0]["walks"] > 150_000
        assert len({each["walk_cycles"] for each in counters}) == 1
        busy = counters[0]["walk_cycles"]
        for walkers, run in runs.items():
            assert cycles(run) >= 0.9999 * busy / walkers
        one, two, many = (cycles(run) for run in runs.values())
        assert one == pytest.approx(busy, rel=0.05)
        assert two == pytest.approx(busy / 2, rel=0.1)
        assert many < two < one
        waits = [each["walker_wait_cycles"] for each in counters]
        assert waits[2] == 0 < waits[1] < waits[0]
        # Beyond what sixteen take, there is nothing but the part of waits that shows.
        assert one - many == pytest.approx(exposed * waits[0], rel=1e-3)
        assert two - many == pytest.approx(exposed * waits[1], rel=1e-3)


@pytest.mark.parametrize("exposed", [0.0, 1.0])
def test_walkers_change_nothing_where_all_of_a_walk_is_hidden_or_nothing(
    tmp_path: Path, exposed: float
) -> None:
    one, many = (walked(tmp_path, walkers, exposed) for walkers in (1, 16))
    assert one["counters"] == many["counters"]
    assert one["counters"]["walker_wait_cycles"] == 0
    assert one["elapsed_ns"] == many["elapsed_ns"]


def test_waits_for_a_walker_are_in_the_timeline() -> None:
    work = small.phase(allocate=128 * MIB, walk_exposed=0.1, cycles_per_access=1)
    result = small.result({"vm": small.guest(work, page_size=PAGE)}, host={"page_size": PAGE})
    waited = result.timeline.guest_class("vm").values("walker_wait_cycles")
    assert waited[-1] == small.one(result)["totals"]["walker_wait_cycles"] > 0
