"""Instructions that the compiled core takes for one access, counted by callgrind.

    python benchmarks/instructions.py                 compare with the record; 1 if one rose
    python benchmarks/instructions.py --record        and add these counts to the record
    python benchmarks/instructions.py --case NAME     this case alone, as in `simvm bench`

The cases are those of `simvm bench`. A count does not depend on what else the machine does,
so a rise can fail a check that no clock could. It does depend on the compiler: the record
says which one made the core, and is compared with counts of the same one alone.

All cases run in one process under valgrind, which counts only between two marks: a small C
library, made for the purpose, asks it to (valgrind's client requests), so that start-up,
filling and warming up cost little and nothing depends on the names of the core's functions.
Between the marks is one call of the core; Python's part of it is some thousand instructions
in all. What instructions do not show: misses of the real caches and of branch prediction.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[1]
RECORD: Final = Path(__file__).with_suffix(".json")
LIMIT: Final = 0.05
"""The rise that fails, as a share of what is recorded."""

ACCESSES: Final = 100_000
"""Counted in each case, after as many to warm up."""

_CHILD: Final = "--under-valgrind"
_MARKS: Final = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""

Counts = dict[str, float]
"""Instructions per access by case."""


class CannotCount(Exception):
    """Something that counting needs is missing or failed."""


# --- counting ---------------------------------------------------------------------------


def count(cases: Sequence[str], accesses: int = ACCESSES) -> Counts:
    """Instructions per access of these cases (none: of all)."""
    with TemporaryDirectory(prefix="simvm-instructions-") as name:
        folder = Path(name)
        _make_marks(folder)
        out = folder / "callgrind.out"
        run = _run([
            "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}",
            sys.executable, __file__, _CHILD, str(folder), str(accesses), *cases,
        ])  # fmt: skip
        if run.returncode:
            raise CannotCount(f"the run under valgrind failed: {run.stderr[-1000:]}")
        return dict(_read(path, accesses) for path in _dumps(folder))


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise CannotCount(f"{command[0]} is not installed") from None


def _make_marks(folder: Path) -> None:
    """Compile the library whose calls valgrind understands."""
    source = folder / "marks.c"
    source.write_text(_MARKS)
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    command = [*compiler.split(), "-shared", "-fPIC", "-o", str(folder / "marks.so"), str(source)]
    made = _run(command)
    if made.returncode:
        raise CannotCount(f"valgrind's headers cannot be compiled against: {made.stderr[-1000:]}")


def _dumps(folder: Path) -> list[Path]:
    """Dumps in the order in which they were made; the last one, without a number, is empty."""
    numbered = folder.glob("callgrind.out.*")
    return sorted(numbered, key=lambda path: int(path.suffix[1:]))


def _read(path: Path, accesses: int) -> tuple[str, float]:
    """The case and its instructions per access, from a dump."""
    text = path.read_text()
    case = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
    total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
    if case is None or total is None:
        raise CannotCount("callgrind's dump has another form than that of valgrind 3.19")
    return case[1], round(int(total[1]) / accesses, 2)


def _child(folder: Path, accesses: int, names: Sequence[str]) -> None:
    """What runs under valgrind: every case twice, counted the second time."""
    from simvm.bench import throughput
    from simvm.core_check import load_core
    from simvm.hardware import load_cpu
    from simvm.validation.machine import Machine

    core = load_core()
    marks = ctypes.CDLL(str(folder / "marks.so"))
    geometry = load_cpu(throughput.CPU).geometry
    streams: dict[str, throughput.Accesses] = {}
    cases = throughput.choose(names)
    for config in dict.fromkeys(config for _, config in cases):
        machine = Machine(core, throughput.FOOTPRINT, *throughput.CONFIGS[config])
        machine.populate()
        for stream, of in cases:
            if of != config:
                continue
            if stream not in streams:
                streams[stream] = throughput.STREAMS[stream](core, 2 * accesses)
            vcpu = machine.vcpu(geometry)
            fed = core.Stream.trace(np.random.PCG64(0), machine.region_bytes)
            fed.feed(streams[stream])
            machine.run(vcpu, fed, accesses)
            marks.begin()
            machine.run(vcpu, fed, accesses)
            marks.end(f"{stream}/{config}".encode())


# --- the record -------------------------------------------------------------------------


def build() -> dict[str, str]:
    """What counts depend on beside the sources: who compiled the core, and for what."""
    from simvm.core_check import load_core

    core = load_core()
    if core.debug_build():
        raise CannotCount("the core is a debug build: counts of it say nothing")
    binary = Path(core.__file__ or "").read_bytes()
    return {"compiler": _compiler(binary), "machine": platform.machine()}


def _compiler(binary: bytes) -> str:
    """What the compiler has written into the core; clang before the GCC of its start files."""
    for mark in (rb"[\w ]*clang version [^\0]+", rb"GCC: \([^\0]+"):
        found = re.search(mark, binary)
        if found is not None:
            return found[0].decode("ascii", "replace").strip()
    return "unknown"


def last(history: Sequence[dict[str, Any]], built: Mapping[str, str]) -> dict[str, Any] | None:
    """The newest entry of the same build."""
    same = [
        entry
        for entry in history
        if all(entry[name] == value for name, value in built.items())
    ]  # fmt: skip
    return same[-1] if same else None


def rises(now: Counts, before: Counts) -> list[str]:
    """Cases that take more than `LIMIT` more than they did."""
    return [case for case in now if case in before and now[case] > before[case] * (1 + LIMIT)]


def table(now: Counts, before: Counts) -> str:
    """Every case: recorded, counted, change."""
    width = max(map(len, now))
    lines = [f"{'case':{width}}  {'recorded':>10}  {'now':>10}  {'change':>8}"]
    risen = rises(now, before)
    for case, value in now.items():
        known = case in before
        recorded = f"{before[case]:10.2f}" if known else f"{'-':>10}"
        change = f"{value / before[case] - 1:+8.1%}" if known else f"{'-':>8}"
        mark = "  rose" if case in risen else ""
        lines.append(f"{case:{width}}  {recorded}  {value:10.2f}  {change}{mark}")
    return "\n".join(lines)


def report(now: Counts, history: Sequence[dict[str, Any]], built: Mapping[str, str]) -> int:
    """Print the comparison; 1 when it fails."""
    entry = last(history, built)
    before = entry["counts"] if entry is not None else {}
    print(f"instructions per access; core of {built['compiler']}, {built['machine']}")
    print(table(now, before))
    if entry is None:
        known = {f"{old['compiler']}, {old['machine']}" for old in history}
        print(f"nothing compared: the record has {'; '.join(sorted(known)) or 'no entry'}")
        return 0
    risen = rises(now, before)
    if risen:
        print(
            f"{len(risen)} of {len(now)} cases rose by more than {LIMIT:.0%} since version"
            f" {entry['version']}. If that is meant: python benchmarks/instructions.py --record"
        )
    else:
        print(f"no case rose by more than {LIMIT:.0%} since version {entry['version']}")
    return 1 if risen else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Count, compare, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="add the counts to the record")
    parser.add_argument("--case", dest="cases", action="append", default=[], metavar="NAME")
    args = parser.parse_args(argv)
    if args.record and args.cases:
        parser.error("a record is of all cases: leave --case out")
    from simvm import __version__
    from simvm.bench.throughput import choose
    from simvm.errors import SimvmError

    try:
        choose(args.cases)
        built = build()
        now = count(args.cases)
    except (CannotCount, SimvmError) as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    history = json.loads(RECORD.read_text()) if RECORD.exists() else []
    code = report(now, history, built)
    if args.record:
        history.append({"version": __version__, **built, "counts": now})
        RECORD.write_text(json.dumps(history, indent=1) + "\n")
        print(f"recorded in {RECORD.relative_to(ROOT)}")
        return 0
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        _child(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main())
