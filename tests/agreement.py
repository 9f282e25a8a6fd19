"""The compiled core held against its readable twin, or against what the twin was seen to do.

    python agreement.py FILE    whether this core does what is recorded in FILE, and loops so

That is for a core which lies elsewhere: a test runs it with a path that leads there.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from loops import MIB, compare_loop, compare_walks
from machines import Machine
from programs import Program

from simvm import _core, hardware, reference

MOST_LOADS_OF_A_STEP = 1 << 17
DISAGREES = 3
"""The exit status that says so; any other but 0 is a mistake or a crash."""


class CoreMachine(Machine):
    """The core keeps targets on request, and records walk loads into an array of its own."""

    def __init__(self, program: Program) -> None:
        super().__init__(_core, _core.BlockAllocator, program)

    def make_mmu(self, program: Program) -> _core.Mmu:
        return _core.Mmu(program.geometry, targets=program.targets)

    def record_loads(self) -> None:
        self.mmu.record_loads(MOST_LOADS_OF_A_STEP)

    def recorded_loads(self) -> list[int]:
        return [int(load) for load in self.mmu.recorded_loads()]


class Recorded(NamedTuple):
    """What the twin did: what was observed at each step, and the leaves in the end."""

    program: Program
    observed: list[tuple[Any, ...]]
    leaves: list[list[tuple[Any, ...]]]


def twin_of(program: Program) -> Machine:
    return Machine(reference, _core.BlockAllocator, program)


def record(program: Program) -> Recorded:
    twin = twin_of(program)
    observed = [twin.observe(step) for step in program.steps]
    return Recorded(program, observed, twin.leaves())


def compare(core: CoreMachine, program: Program, twins: Iterable[tuple[Any, ...]]) -> None:
    """Run the program on the core; AssertionError at the first step at which they differ."""
    for number, (step, theirs) in enumerate(zip(program.steps, twins, strict=True)):
        *expected, counts = theirs
        *seen, cores = core.observe(step)
        differ = {name: (cores[name], n) for name, n in counts.items() if cores[name] != n}
        assert not differ, f"step {number}: {step}: {differ}"
        assert seen == expected, f"step {number}: {step}"
        assert cores.keys() == counts.keys()


def run_both(program: Program) -> Counter[str]:
    """Run the program on both, compare after every step; how often everything happened."""
    twin, core = twin_of(program), CoreMachine(program)
    compare(core, program, map(twin.observe, program.steps))
    assert core.leaves() == twin.leaves()
    return twin.happened + Counter(twin.mmu.counters())


def check(recordings: dict[str, Recorded]) -> None:
    for program, observed, leaves in recordings.values():
        core = CoreMachine(program)
        compare(core, program, observed)
        assert core.leaves() == leaves, "leaves"
    for name in ("skylake_sp", "icelake_sp"):
        for nested in (True, False):
            compare_loop(hardware.load_cpu(name).geometry, nested, False, (0, 0))
    compare_walks(hardware.load_cpu("skylake_sp").geometry, 80 * MIB, (5_000, 1 << 40))


def main(path: str) -> int:
    try:
        check(pickle.loads(Path(path).read_bytes()))
    except AssertionError as error:
        print(str(error)[:2000])
        return DISAGREES
    print(_core.__file__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
