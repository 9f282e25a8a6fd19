"""Accesses per second through the compiled core, by stream of accesses and by mapping.

The accesses are generated beforehand, so that only translation is timed: every page is
backed and each case has run once before the first round. All cases are run once in each
round, so that a machine that slows down slows all of them. Next to each run of a case come
one of each peer (`simvm.bench.peers`) and one read of the same accesses by NumPy, and the
ratios are taken between these neighbours; then medians over the rounds.

The CPU is `skylake_sp` with every cache of its model: TLBs, walk caches of both dimensions,
data caches. Streams: `hot`, 16 pages, which the first TLB holds (one page in each set);
`stlb`, 1,024 pages, which the second holds; `zipf` (exponent 0.99) and `uniform` over 4 GiB,
1,048,576 pages; `trace`, the recorded trace that is shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from simvm.bench.peers import PEERS, Peer, installed
from simvm.errors import UsageError, did_you_mean
from simvm.hardware import load_cpu
from simvm.hardware.geometry import PAGE
from simvm.units import GIB
from simvm.validation.machine import Machine
from simvm.workload.patterns import random_bits, scatter_multiplier, zipf_slots
from simvm.workload.trace import builtin_trace, open_trace

if TYPE_CHECKING:
    from simvm.bench import Progress

CPU: Final = "skylake_sp"
FOOTPRINT: Final = 4 * GIB

CONFIGS: Final[dict[str, tuple[int | None, int]]] = {
    "native 4K": (None, 0),
    "nested 4K+4K": (0, 0),
    "nested 2M+2M": (1, 1),
    "nested 1G+2M": (2, 1),
    "nested 1G+4K": (2, 0),
}
"""Leaf orders of guest and host."""

_HOT_PAGES: Final = 16
_STLB_PAGES: Final = 1024
_ZIPF: Final = 0.99
_WRITES: Final = 0.3

Accesses = NDArray[np.uint64]
Case = tuple[str, str]
"""Stream and config."""


def _uniform(core: ModuleType, pages: int, n: int) -> Accesses:
    bits = random_bits(1, f"bench uniform {pages}")
    return np.asarray(core.Stream.uniform(bits, pages * PAGE, write_fraction=_WRITES).take(n))


def _zipf(core: ModuleType, pages: int, n: int) -> Accesses:
    stream = core.Stream.zipf(
        random_bits(1, "bench zipf"), pages * PAGE, zipf_slots(pages, _ZIPF),
        scatter_multiplier(pages), write_fraction=_WRITES,
    )  # fmt: skip
    return np.asarray(stream.take(n))


def _trace(n: int) -> Accesses:
    taken, left = [], n
    for chunk in open_trace(builtin_trace()).chunks():
        taken.append(chunk[:left])
        left -= len(taken[-1])
        if left == 0:
            break
    return np.concatenate(taken)


STREAMS: Final[dict[str, Callable[[ModuleType, int], Accesses]]] = {
    "hot": lambda core, n: _uniform(core, _HOT_PAGES, n),
    "stlb": lambda core, n: _uniform(core, _STLB_PAGES, n),
    "zipf": lambda core, n: _zipf(core, FOOTPRINT // PAGE, n),
    "uniform": lambda core, n: _uniform(core, FOOTPRINT // PAGE, n),
    "trace": lambda core, n: _trace(n),
}


def known() -> dict[str, set[Case]]:
    """The cases by every name that chooses some."""
    found: dict[str, set[Case]] = {}
    for case in product(STREAMS, CONFIGS):
        for name in (*case, "/".join(case)):
            found.setdefault(name, set()).add(case)
    return found


def no_case(name: str, names: Iterable[str]) -> UsageError:
    """What to say of a case that is not among `names`."""
    return UsageError(f"bench has no case {name[:80]!r}: {did_you_mean(name, list(names))}")


def choose(names: Sequence[str]) -> list[Case]:
    """The cases that are named, or all; in the order of the table. UsageError if one is none."""
    table = known()
    for name in names:
        if name not in table:
            raise no_case(name, table)
    chosen = set().union(*(table[name] for name in names)) if names else None
    return [case for case in product(STREAMS, CONFIGS) if chosen is None or case in chosen]


class _Runner:
    """One case: a vCPU of its own on the machine of its config, and its times.

    Parameters
    ----------
    peers
        What is run beside it, on the same accesses.
    """

    def __init__(
        self,
        core: ModuleType,
        case: Case,
        machine: Machine,
        accesses: Accesses,
        peers: Sequence[Peer],
    ) -> None:
        self.case = case
        self._machine = machine
        self._accesses = accesses
        self._peers = peers
        self._vcpu = machine.vcpu(load_cpu(CPU).geometry)
        self._stream = core.Stream.trace(np.random.PCG64(0), machine.region_bytes)
        self._run_s: list[float] = []
        self._beside_s: dict[str, list[float]] = {
            name: [] for name in ("read", *(peer.name for peer in peers))
        }
        self._once()
        self._before = self._vcpu.counters()

    def _once(self) -> float:
        self._stream.feed(self._accesses)
        start = perf_counter()
        self._machine.run(self._vcpu, self._stream, len(self._accesses))
        return perf_counter() - start

    def _read(self) -> float:
        start = perf_counter()
        np.sum(self._accesses)
        return perf_counter() - start

    def round(self) -> None:
        """Time the case once in the middle of what it is compared with."""
        before, after = self._peers[:1], self._peers[1:]
        for peer in before:
            self._beside_s[peer.name].append(peer.run())
        self._run_s.append(self._once())
        self._beside_s["read"].append(self._read())
        for peer in after:
            self._beside_s[peer.name].append(peer.run())

    def _against(self, name: str) -> tuple[int, float] | tuple[None, None]:
        """Accesses per second of one that ran beside it, and the median ratio of neighbours."""
        if name not in self._beside_s:
            return None, None
        times = self._beside_s[name]
        ratio = median(other / own for own, other in zip(self._run_s, times, strict=True))
        return round(len(self._accesses) / median(times)), ratio

    def result(self) -> dict[str, Any]:
        """The medians."""
        after = self._vcpu.counters()
        done = after["accesses"] - self._before["accesses"]
        count = len(self._accesses)
        against = {name: self._against(name) for name in (*(p.name for p in PEERS), "read")}
        return {
            "stream": self.case[0],
            "config": self.case[1],
            "accesses": count,
            "accesses_per_s": round(count / median(self._run_s)),
            **{f"{name}_per_s": speed for name, (speed, _) in against.items()},
            **{f"vs_{name}": ratio for name, (_, ratio) in against.items()},
            "tlb_misses_per_access": (after["tlb_misses"] - self._before["tlb_misses"]) / done,
        }


def measure(
    core: ModuleType, cases: Sequence[Case], rounds: int, accesses: int, progress: Progress | None
) -> list[dict[str, Any]]:
    """Run the cases `rounds` times each, interleaved."""
    with TemporaryDirectory(prefix="simvm-bench-") as folder:
        return _measure(core, cases, rounds, accesses, progress, Path(folder))


def _measure(
    core: ModuleType,
    cases: Sequence[Case],
    rounds: int,
    accesses: int,
    progress: Progress | None,
    folder: Path,
) -> list[dict[str, Any]]:
    steps = len(cases) * (rounds + 1)
    runners: list[_Runner] = []
    machines: dict[str, Machine] = {}
    streams: dict[str, Accesses] = {}
    peers: dict[str, list[Peer]] = {}
    for case in cases:
        stream, config = case
        if progress is not None:
            progress(f"preparing {stream}, {config}", len(runners), steps)
        if stream not in streams:
            streams[stream] = STREAMS[stream](core, accesses)
            peers[stream] = [peer(streams[stream], folder) for peer in PEERS if installed(peer)]
            for peer in peers[stream]:
                peer.run()
        if config not in machines:
            machines[config] = Machine(core, FOOTPRINT, *CONFIGS[config])
            machines[config].populate()
        runners.append(_Runner(core, case, machines[config], streams[stream], peers[stream]))
    for number in range(rounds):
        for done, runner in enumerate(runners, len(runners) * (number + 1)):
            if progress is not None:
                progress(f"round {number + 1}: {', '.join(runner.case)}", done, steps)
            runner.round()
    return [runner.result() for runner in runners]
