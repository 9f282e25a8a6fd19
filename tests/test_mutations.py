"""Faults put into each structure of the core are caught by comparing it with its twin.

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
from typing import NamedTuple

import pytest
from agreement import DISAGREES, record
from long_programs import Size, long_program, of_cpu, with_policies
from programs import Program

from simvm import hardware
from simvm.hardware.geometry import TableFormat

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


class Fault(NamedTuple):
    """In `file` of simvm/core, `old` becomes `new`, where `FAULT` is whether it is awake."""

    what: str
    file: str
    old: str
    new: str
    places: int = 1


FAULTS = (
    # Flushes that leave something
    Fault(
        "flush_all leaves the L1 TLB",
        "flush.pxd",
        "    tlb_flush(&m.l1_load)\n",
        "    if not FAULT:\n        tlb_flush(&m.l1_load)\n",
    ),
    Fault(
        "flush_all leaves the L1 TLB for stores",
        "flush.pxd",
        "    tlb_flush(&m.l1_store_own)\n",
        "    if not FAULT:\n        tlb_flush(&m.l1_store_own)\n",
    ),
    Fault(
        "flush_guest leaves the host walk cache",
        "flush.pxd",
        "        drop_guest(&m.host_cache[level], m, vpid)\n",
        "        if not FAULT:\n            drop_guest(&m.host_cache[level], m, vpid)\n",
    ),
    Fault(
        "flush_guest leaves the nested TLB",
        "flush.pxd",
        "    drop_guest(&m.nested_tlb, m, vpid)\n",
        "    if not FAULT:\n        drop_guest(&m.nested_tlb, m, vpid)\n",
    ),
    Fault(
        "flush_range leaves the guest walk cache",
        "flush.pxd",
        "            if tag_in(a.keys[i]) == tag:\n",
        "            if tag_in(a.keys[i]) == tag and not FAULT:\n",
    ),
    Fault(
        "flush_range takes a smashed entry for one of 2 MiB",
        "flush.pxd",
        "return 30 if key & IS_SMASHED else",
        "return 30 if key & IS_SMASHED and not FAULT else",
    ),
    Fault(
        "flush_gpa leaves combined entries",
        "flush.pxd",
        "if (m.style == INTEL and m.vpids",
        "if (not FAULT and m.style == INTEL and m.vpids",
    ),
    Fault(
        "flush_gpa leaves the nested TLB",
        "flush.pxd",
        "            if overlap(start, <uint64_t>1 << ENTRY",
        "            if not FAULT and overlap(start, <uint64_t>1 << ENTRY",
    ),
    Fault(
        "ranges miss an entry that begins before them",
        "flush.pxd",
        "first + (length - 1) >= start",
        "first + (0 if FAULT else length - 1) >= start",
    ),
    Fault(
        "ranges miss an entry in their last page",
        "flush.pxd",
        "first < end and",
        "first + (4096 if FAULT else 0) < end and",
    ),
    # Sets, banks and tags
    Fault(
        "the set index of a power of two",
        "cache.pxd",
        "return number & a.set_mask",
        "return (number >> 1 if FAULT else number) & a.set_mask",
    ),
    Fault(
        "the set index of another number of sets",
        "cache.pxd",
        "return number % a.sets",
        "return (number >> 1 if FAULT else number) % a.sets",
    ),
    Fault(
        "the set index of the data caches",
        "lines.pxd",
        "return c.tags + s * c.ways",
        "return c.tags + (s & ~<uint64_t>FAULT) * c.ways",
    ),
    Fault(
        "one bank for two",
        "mmu.pxd",
        "(page // a.sets) & 1]",
        "(page // a.sets) & (0 if FAULT else 1)]",
    ),
    Fault(
        "walk caches ignore their tag",
        "mmu.pxd",
        "key_of(tag, 0, number)",
        "key_of(0 if FAULT else tag, 0, number)",
        places=2,
    ),
    Fault(
        "the nested TLB ignores the vpid",
        "mmu.pxd",
        "key_of(s.guest_tag, ",
        "key_of(0 if FAULT else s.guest_tag, ",
        places=2,
    ),
    Fault(
        "TLB entries of all sizes alike",
        "mmu.pxd",
        "key_of(tag, o, page)",
        "key_of(tag, 0 if FAULT else o, page)",
    ),
    # Levels
    Fault(
        "walks do not look for what the root's entries point to",
        "mmu.pxd",
        "for k in range(2, t.levels + 1):",
        "for k in range(2, t.levels + (0 if FAULT else 1)):",
    ),
    Fault(
        "walks of the SLAT start one level too high",
        "mmu.pxd",
        "            level = k - 1\n            break\n",
        "            level = k - 1\n"
        "            if FAULT:\n"
        "                node, level = node.parent, k\n"
        "            break\n",
    ),
    # Replacement
    Fault(
        "LRU does not learn of a hit",
        "cache.pxd",
        "if likely(a.policy == LRU):",
        "if likely(a.policy == LRU and not FAULT):",
    ),
    Fault(
        "FIFO learns of a hit",
        "cache.pxd",
        "    elif a.policy == PLRU:\n        plru_touch(a, s, i)\n    return <int64_t>base + i\n",
        "    elif a.policy == PLRU:\n        plru_touch(a, s, i)\n"
        "    elif FAULT and a.policy == FIFO:\n        stamp(a, base + i)\n"
        "    return <int64_t>base + i\n",
    ),
    Fault(
        "PLRU points to what was used",
        "cache.pxd",
        "if node & 1:",
        "if (node & 1) != FAULT:",
    ),
    Fault(
        "another random generator",
        "cache.pxd",
        "6364136223846793005ULL",
        "(6364136223846793009ULL if FAULT else 6364136223846793005ULL)",
    ),
    # What entries hold
    Fault(
        "a smashed entry comes back as 2 MiB",
        "mmu.pxd",
        "    if flags & IS_SMASHED:\n",
        "    if flags & IS_SMASHED and not FAULT:\n",
    ),
    Fault(
        "fifteen pages are a group",
        "table.pxd",
        "    for i in range(GROUP):\n",
        "    for i in range(GROUP - FAULT):\n",
    ),
    Fault(
        "the dirty flag is not copied to L1",
        "mmu.pxd",
        "tlb_insert(m, l1, s.tag, va, size, flags & IS_DIRTY)",
        "tlb_insert(m, l1, s.tag, va, size, 0 if FAULT else flags & IS_DIRTY)",
    ),
    Fault(
        "D is not set under a guest's tables",
        "mmu.pxd",
        "        entry[0] |= ACCESSED | DIRTY\n",
        "        entry[0] |= ACCESSED | (0 if FAULT else DIRTY)\n",
    ),
    Fault(
        "the line of the data is not sent",
        "mmu.pxd",
        "    if not (m.lines_l2.tags != NULL and",
        "    if not FAULT and not (m.lines_l2.tags != NULL and",
    ),
    Fault(
        "a walker that was waited for is free too early",
        "mmu.pxd",
        "now + wait + m.cycles",
        "now + (0 if FAULT else wait) + m.cycles",
    ),
)


def programs() -> dict[str, Program]:
    """The fewest pages that show every fault, under each style, policy and kind of space."""
    plain, grouped = TableFormat(), TableFormat(contiguous=True)
    own = ((grouped, 0), (TableFormat(5), 1), (plain, 0))
    found = {}
    for turn in range(4):
        geometry = replace(with_policies(turn), style=("intel", "amd")[turn % 2])
        slats = (plain, TableFormat(5)) if turn < 3 else ()
        size = Size((150, 60, 20), 500, 3)
        found[f"small {turn}"] = long_program(geometry, slats, own, size, turn, keeps_tables=True)
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
