"""Small scenarios for tests of the model: hundreds of MiB, tenths of a second."""

from __future__ import annotations

from typing import Any

from simvm.model.engine import Simulation
from simvm.recorder import Recorder
from simvm.results import RunResult
from simvm.runner import run as run
from simvm.scenario import check as check
from simvm.scenario import load as load
from simvm.scenario.models import Scenario

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
US, MS, S = 1_000, 1_000_000, 1_000_000_000
PAGE, BLOCK = 4 * KIB, 2 * MIB
UNIFORM = {"kind": "uniform"}


def phase(**values: Any) -> dict[str, Any]:
    """A phase: 64 MiB, uniform, one thread, 20,000 accesses, unless told otherwise."""
    base: dict[str, Any] = {
        "region": "heap", "allocate": 64 * MIB, "pattern": UNIFORM, "accesses": 20_000,
    }  # fmt: skip
    return {name: value for name, value in {**base, **values}.items() if value is not None}


def guest(*phases: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A class of guests: 512 MiB, 2 MiB pages that the guest does not zero."""
    base: dict[str, Any] = {
        "memory": 512 * MIB, "page_size": BLOCK, "zeroing": "none",
        "workload": list(phases or [phase()]),
    }  # fmt: skip
    return {**base, **values}


def container(*phases: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A class of containers."""
    return guest(*phases, virtualization="none", **values)


def scenario(
    guests: dict[str, Any] | None = None, *, host: dict[str, Any] | None = None, **meta: Any
) -> Scenario:
    """A host of 4 GiB with 4 cores and 2 MiB pages, and one guest, unless told otherwise."""
    return Scenario.model_validate({
        "schema": 1,
        "scenario": {"name": "small", **meta},
        "host": {
            "cpu": "sapphire_rapids", "cores": 4, "memory": 4 * GIB, "page_size": BLOCK,
            "kernel_reserved": 0, **(host or {}),
        },
        "guest": guests or {"vm": guest()},
    })  # fmt: skip


def simulation(of: Scenario) -> Simulation:
    """A simulation that has not begun, its timeline kept in memory."""
    return Simulation(of, Recorder())


def simulate(of: Scenario) -> Simulation:
    """A simulation that has ended."""
    made = simulation(of)
    made.run()
    return made


def result(
    guests: dict[str, Any] | None = None, *, host: dict[str, Any] | None = None, **meta: Any
) -> RunResult:
    """The result of running a small scenario."""
    return run(scenario(guests, host=host, **meta))


def one(of: RunResult, index: int = 0) -> dict[str, Any]:
    """A guest's part of the summary."""
    values: dict[str, Any] = of.summary["guests"][index]
    return values


META = frozenset({"duration", "warmup", "seed", "quantum", "sample_interval", "train"})


def pressed(
    *, memory: int = 128 * MIB, guests: int = 2, allocate: int = 96 * MIB,
    accesses: int = 20_000, threads: int = 1, host: dict[str, Any] | None = None, **values: Any
) -> Scenario:
    """A host at 150 %: guests that hold more than it has, and a swap device for the rest.

    `values` are keys of the class of guests, or of the table `scenario`.
    """
    work = phase(
        allocate=allocate, accesses=accesses, threads=threads, cycles_per_access=2_000
    )
    meta = {name: value for name, value in values.items() if name in META}
    rest = {name: value for name, value in values.items() if name not in META}
    return scenario(
        {"vm": guest(work, **{"count": guests, "memory": 128 * MIB, **rest})},
        host={"memory": memory, "swap": {"device": "nvme", "size": 512 * MIB}, **(host or {})},
        **meta,
    )  # fmt: skip


def result_of(of: Scenario) -> dict[str, Any]:
    """The summary of running a scenario."""
    summary: dict[str, Any] = run(of).summary
    return summary


def summary_of(made: Simulation) -> dict[str, Any]:
    """The summary of a simulation that has ended."""
    return made.summary("digest of the scenario")
