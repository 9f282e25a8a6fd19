"""Faults put into each structure of the core, or of its twin, are caught by comparing them.

A copy of the core is built with every fault of `FAULTS` in its sources, each asleep until
the environment names it. So one compilation serves them all, and without a name the copy is
the core: it has to pass. The programs give back no table, since a core that forgets to flush
would read what is gone: every fault is caught by a difference, none by a crash.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from agreement import DISAGREES, record, run_both
from faults import FAULTS, Fault
from long_programs import Size, long_program, of_cpu, with_policies
from programs import Program

from simvm import hardware
from simvm.hardware.geometry import ENTRY_SHIFTS, TableFormat
from simvm.reference import PageTable
from simvm.reference.replacement import Lru
from simvm.reference.tlb import Resume, WalkCache

ROOT = Path(__file__).resolve().parents[1]

HEADER = """
#ifndef FAULT_H
#define FAULT_H
#include <stdio.h>
#include <stdlib.h>
static int is_fault(int number) {
    static int chosen = -2;
    if (chosen == -2 && sscanf(getenv("FAULT"), "%d", &chosen) != 1)
        chosen = -1;
    return chosen == number;
}
#endif
"""
DECLARATION = 'cdef extern from "core/fault.h" nogil:\n    bint is_fault(int number)\n\n'


def programs() -> dict[str, Program]:
    """The fewest pages that show every fault, under each style, policy and kind of space."""
    plain, grouped = TableFormat(), TableFormat(contiguous=True)
    own = ((grouped, 0), (TableFormat(5), 1), (plain, 0))
    found = {}
    for turn, kind in enumerate(("intel", "amd", "intel too", "native")):
        geometry = replace(with_policies(turn), style="amd" if kind == "amd" else "intel")
        slats = () if kind == "native" else (plain, TableFormat(5))
        size = Size((150, 60, 40), 800, 3)
        found[kind] = long_program(geometry, slats, own, size, turn, keeps_tables=True)
    for name in ("icelake_sp", "zen2", "neoverse_n1"):
        size = Size((800, 200, 70), 1000, 3)
        found[name] = of_cpu(hardware.load_cpu(name), True, size, keeps_tables=True)
    return found


def put_in(fault: Fault, number: int, package: Path) -> None:
    path = package / "core" / fault.file
    text = path.read_text(encoding="utf-8")
    count = text.count(fault.old)
    assert count == fault.places, f"{fault.what}: {count} times in {fault.file}: {fault.old!r}"
    new = fault.new.replace("FAULT", f"is_fault({number})")
    path.write_text(text.replace(fault.old, new), encoding="utf-8")


class Copy(NamedTuple):
    """A copy of the package whose core has all faults, and what its twin was seen to do."""

    folder: Path
    recordings: Path

    def run(self, fault: str) -> subprocess.CompletedProcess[str]:
        """Compare the copy's core, with the fault of that number or none, with the twin."""
        path = {"PYTHONPATH": str(self.folder), "FAULT": fault}
        return subprocess.run(
            [sys.executable, ROOT / "tests" / "agreement.py", self.recordings],
            cwd=self.folder,
            env={**os.environ, **path},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = tmp_path_factory.mktemp("faulty")
    package = folder / "simvm"
    compiled = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "simvm", package, ignore=compiled)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (package / "core" / "fault.h").write_text(HEADER, encoding="utf-8")
    for number, fault in enumerate(FAULTS):
        put_in(fault, number, package)
    for file in {fault.file for fault in FAULTS}:
        path = package / "core" / file
        head, first, rest = path.read_text(encoding="utf-8").partition("from libc")
        path.write_text(head + DECLARATION + first + rest, encoding="utf-8")
    setup = folder / "setup.py"
    optimised = setup.read_text(encoding="utf-8")
    assert '"-O3"' in optimised
    setup.write_text(optimised.replace('"-O3"', '"-O1"'), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    recordings = folder / "recordings"
    recorded = {name: record(program) for name, program in programs().items()}
    recordings.write_bytes(pickle.dumps(recorded))
    return Copy(folder, recordings)


def test_without_a_fault_the_copy_is_the_core(copy: Copy) -> None:
    done = copy.run("none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(done.stdout.strip()).parent == copy.folder / "simvm"


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[fault.what for fault in FAULTS])
def test_a_fault_is_caught(copy: Copy, number: int) -> None:
    done = copy.run(str(number))
    assert done.returncode == DISAGREES, f"{FAULTS[number].what}: {done.returncode}" + done.stderr


def probe_below_root(
    cache: WalkCache, owner: tuple[int, ...], address: int, root: PageTable
) -> Resume | None:
    for level in range(2, root.levels):
        part = cache.parts.get(level)
        if part and (found := part.probe((*owner, address >> root.shift(level)))):
            return found
    return None


TWIN_FAULTS: dict[str, tuple[str, Any]] = {
    "flush_guest drops nothing": ("mmu.Mmu.flush_guest", lambda mmu, vpid: None),
    "two pages are one": ("tlb.page_number", lambda at, order: at >> ENTRY_SHIFTS[order] + 1),
    "walks do not look for what the root's entries point to": (
        "tlb.WalkCache.probe",
        probe_below_root,
    ),
    "walk caches ignore their tag": ("mmu.Mmu._owner", lambda mmu, cache, space: (0, 0)),
    "FIFO learns of a hit": ("replacement.Fifo.hit", Lru.hit),
}


@pytest.mark.parametrize("what", TWIN_FAULTS)
def test_a_fault_of_the_twin_is_caught(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, fault = TWIN_FAULTS[what]
    monkeypatch.setattr(f"simvm.reference.{place}", fault)
    with pytest.raises(AssertionError, match="step"):
        run_both(programs()["intel"])
