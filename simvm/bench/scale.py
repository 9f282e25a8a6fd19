"""Whole scenarios: what events, recording and Python cost beside the translation itself.

Each case runs in a process of its own, as `simvm.run` users run it: loaded, simulated, its
results written. Where every access is translated (`exact`), the same process then lets the
bare core do the same accesses, guest after guest: the same streams, the same pages of guest
and host, filled first, faults served at once. `vs_bare_core` is the ratio of the two rates.
Rates cover the whole run, the filling of memory included; what Python takes to import is left
out. A case that takes minutes runs once; the others three times.

`events_per_s` are SimPy's events of the scenario over its wall time; `bare_simpy_per_s` is
what SimPy does when each event is the timeout of a process that does nothing else. A
process may take `rss_limit_bytes` at its peak: 200 MiB for Python, the libraries and the
core, 16 bytes for each backed 4 KiB page, 256 for each 2 MiB page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from simvm.child import NEWS, run_module
from simvm.core_check import load_core
from simvm.hardware import load_cpu
from simvm.hardware.geometry import ORDER_BYTES
from simvm.model.clock import Clock
from simvm.provenance import peak_rss_bytes
from simvm.results import RunResult
from simvm.runner import run_file
from simvm.scenario import BASE, Scenario, resolve
from simvm.units import MIB, SECOND, human_ns
from simvm.validation.machine import Machine
from simvm.workload.patterns import make_stream, random_bits

if TYPE_CHECKING:
    from simvm.bench import Progress

FILE: Final = Path(__file__).parent / "data" / "scale.toml"
FLEET: Final = Path(__file__).parents[2] / "scenarios" / "fleet_day.toml"
"""Of a checkout: what is installed has no shipped scenarios."""

PEAK: Final = tuple(
    f"guest.{name}.workload.heap.usage.peak_at=30m" for name in ("office", "batch")
)
"""Bring the busiest hour to the beginning of the day."""


@dataclass(frozen=True)
class Case:
    """A variant of a scenario, with values of its own. `long`: it takes minutes."""

    file: Path
    variant: str = BASE
    sets: tuple[str, ...] = ()
    long: bool = False


CASES: Final = {
    "uniform": Case(FILE),
    "hot": Case(FILE, "hot"),
    "hour_100": Case(FLEET, sets=("scenario.duration=1h", *PEAK), long=True),
    "fleet_day": Case(FLEET, long=True),
    "fleet_day_thp": Case(FLEET, "thp_balloon", long=True),
    "guests_1000": Case(FLEET, sets=(
        "scenario.duration=6m", "guest.office.count=600", "guest.batch.count=400",
        "guest.office.stagger=100ms", "guest.batch.stagger=100ms", "host.cores=1024",
        "host.memory=7TiB",
    ), long=True),
}  # fmt: skip
SHORT: Final = tuple(name for name, case in CASES.items() if not case.long)
"""The cases that run without being asked for."""

_ROUNDS: Final = 3
_FIXED_BYTES: Final = 200 * MIB
_PAGE_BYTES: Final = {"backed_4k_bytes": (16, 0), "backed_2m_bytes": (256, 1)}
"""Bytes that a backed page may take, and its order, by the column that counts it."""

_TIMEOUTS: Final = 400_000
_MEDIANS: Final = (
    "wall_s", "accesses_per_s", "bare_core_per_s", "vs_bare_core", "events_per_s",
    "bare_simpy_per_s", "vs_bare_simpy",
)  # fmt: skip


def measure(
    progress: Progress | None, cases: Sequence[str] = SHORT, rounds: int = _ROUNDS,
    sets: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Each case `rounds` times (a long one once), interleaved; `sets` replace values."""
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    steps = [
        (number, case)
        for number in range(rounds) for case in runs if number == 0 or not CASES[case].long
    ]  # fmt: skip
    for done, (number, case) in enumerate(steps):
        what = f"round {number + 1}: scenario {case}"

        def tell(news: str, what: str = what, done: int = done) -> None:
            if progress is not None:
                progress(f"{what}{news}", done, len(steps))

        tell("")
        runs[case].append(run_module(__name__, case, *sets, told=tell))
    return [_together(those) for those in runs.values()]


def _together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what is timed, the largest peak; the rest is the same in each run."""
    timed = {
        name: None if runs[0][name] is None else median(run[name] for run in runs)
        for name in _MEDIANS
    }
    return runs[0] | timed | {"peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs)}


def _measure_one(name: str, sets: Sequence[str]) -> dict[str, Any]:
    """One case, once, in this process."""
    case = CASES[name]
    sets = [*case.sets, *sets]
    load_core()
    import_module("simvm.model.engine")     # which the runner imports when it first runs
    with TemporaryDirectory(prefix="simvm-bench-") as folder:
        start = perf_counter()
        run_file(
            case.file, out=Path(folder) / "run", sets=sets, variant=case.variant, progress=News()
        )
        wall = perf_counter() - start
        peak = peak_rss_bytes()
        run = RunResult.load(Path(folder) / "run" / case.variant)
    accesses, events = run.manifest["wall"]["accesses"], run.manifest["wall"]["events"]
    guests = run.summary["guests"]
    scenario = resolve(case.file, sets, case.variant)
    exact = scenario.scenario.fidelity == "exact"
    bare = _bare_core(scenario) if exact else None
    simpy = _bare_simpy(len(guests))
    return {
        "case": name,
        "guests": len(guests),
        "simulated_s": run.summary["scenario"]["simulated_ns"] / SECOND,
        "accesses": accesses,
        "events": events,
        "wall_s": wall,
        "peak_rss_bytes": peak,
        "rss_limit_bytes": _limit(guests),
        "accesses_per_s": accesses / wall,
        "bare_core_per_s": bare,
        "vs_bare_core": accesses / wall / bare if bare else None,
        "events_per_s": events / wall,
        "bare_simpy_per_s": simpy,
        "vs_bare_simpy": events / wall / simpy,
    }


class News:
    """Tells, every other second, how far a run has come."""

    def __init__(self) -> None:
        self._next = perf_counter()

    def __call__(self, variant: str, now: int, done: int, total: int | None) -> None:
        if perf_counter() >= self._next:
            self._next = perf_counter() + 2
            print(f"{NEWS}, {human_ns(now)} simulated", flush=True)


def _limit(guests: Sequence[dict[str, Any]]) -> int:
    """What a process that simulates these guests may take at its peak."""
    limit = _FIXED_BYTES
    for column, (each, order) in _PAGE_BYTES.items():
        backed = sum(guest["peaks"][column] for guest in guests)
        limit += each * (backed // ORDER_BYTES[order])
    return limit


def _bare_core(scenario: Scenario) -> float:
    """Accesses per second of the core alone, on the streams and the mapping of the scenario."""
    core = load_core()
    geometry = load_cpu(scenario.host.cpu).geometry
    host_order = ORDER_BYTES.index(scenario.host.page_size)
    done, seconds = 0, 0.0
    for name, guest in scenario.guests.items():
        size = guest.workload[0].allocate
        assert size is not None
        for index in range(guest.count):
            machine = Machine(core, size, ORDER_BYTES.index(guest.page_size), host_order)
            vcpu = machine.vcpu(geometry)
            for phase in guest.workload:
                assert phase.pattern is not None
                assert phase.accesses is not None
                label = f"{name}.{index}/{phase.name}/0/0"
                bits = random_bits(scenario.scenario.seed, label)
                stream, _ = make_stream(phase.pattern, size, phase.write_fraction, bits, 0, 1)
                start = perf_counter()
                machine.run(vcpu, stream, phase.accesses)
                seconds += perf_counter() - start
                done += phase.accesses
    return done / seconds


def _bare_simpy(processes: int) -> float:
    """Events per second of processes that wait again and again."""
    env = Clock()

    def wait() -> Generator[Any, Any, None]:
        for _ in range(_TIMEOUTS // processes):
            yield env.timeout(1)

    for _ in range(processes):
        env.process(wait())
    start = perf_counter()
    env.run()
    return env.events / (perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps(_measure_one(sys.argv[1], sys.argv[2:])))
