"""What a `sampled` run does, counted: by guests, by rate of accesses, by memory not touched.

Times differ from machine to machine; counts do not. The scenario is two minutes of paced guests
that have touched all they will after the first seconds.
"""

from __future__ import annotations

from typing import Any, Final

from simvm.scenario.models import Scenario
from simvm.units import GIB, MIB, SECOND

GUESTS: Final = (2, 4, 8)
RATES: Final = (1_000_000, 10_000_000, 100_000_000)
MEMORY: Final = (1 * GIB, 8 * GIB, 64 * GIB)
TOUCHED: Final = 64 * MIB
SECONDS: Final = 120


def scenario(
    guests: int = GUESTS[0], rate: int = RATES[0], memory: int = MEMORY[0]
) -> Scenario:
    """Guests that touch 64 MiB each, `rate` times a second."""
    return Scenario.model_validate({
        "schema": 1,
        "scenario": {
            "name": "cost", "fidelity": "sampled", "duration": SECONDS * SECOND,
            "sample_interval": SECOND,
        },
        "host": {
            "cpu": "sapphire_rapids", "cores": 16, "memory": 1024 * GIB, "page_size": "2MiB",
        },
        "guest": {"vm": {
            "count": guests, "memory": memory, "page_size": "2MiB", "zeroing": "none",
            "workload": [{
                "region": "heap", "allocate": TOUCHED,
                "pattern": {"kind": "hot_cold", "hot_fraction": 0.1, "hot_share": 0.9},
                "access_rate": rate, "duration": SECONDS * SECOND,
                "cycles_per_access": 10, "write_fraction": 0.3,
            }],
        }},
    })  # fmt: skip


def measure(
    guests: int = GUESTS[0], rate: int = RATES[0], memory: int = MEMORY[0]
) -> dict[str, int]:
    """`Simulation.operations` of a run of the scenario, and its accesses."""
    from simvm.model.engine import Simulation
    from simvm.recorder import Recorder

    simulation = Simulation(scenario(guests, rate, memory), Recorder())
    simulation.run()
    return simulation.operations | {"accesses": simulation.accesses}


def run() -> dict[str, list[dict[str, Any]]]:
    """The three series: what varies, and what was counted."""
    return {
        "guests": [{"x": n, **measure(guests=n)} for n in GUESTS],
        "rate": [{"x": n, **measure(rate=n)} for n in RATES],
        "memory": [{"x": n // GIB, **measure(memory=n)} for n in MEMORY],
    }
