"""A run that is killed, at any moment: what it leaves can be read and says that it is partial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from simvm.errors import ResultError
from simvm.report import comparison_table
from simvm.report.page import render
from simvm.results import RunResult, comparison, is_complete, load_runs
from simvm.runner import run_file

ROOT = Path(__file__).resolve().parent.parent
MS = 1_000_000

TEXT = """
schema = 1
[scenario]
name = "killed"
question = "What is left of it?"
duration = "DURATION"
sample_interval = "INTERVAL"
[host]
cpu = "sapphire_rapids"
cores = 2
memory = "1GiB"
page_size = "4KiB"
[guest.vm]
count = 2
memory = "256MiB"
page_size = "4KiB"
[[guest.vm.workload]]
region = "heap"
allocate = "64MiB"
pattern = { kind = "uniform" }
accesses = "1G"
[variant.container]
"guest.vm.virtualization" = "none"
"""

# Each argument after the first two is a number n, whose run goes to OUT/n and ends, without a
# word, instead of the n-th time that it gives a file its name.
KILLS_ITSELF = """
import os, sys
from pathlib import Path
from simvm import runner
import simvm.model.engine

runner.Pace.keep = lambda self, write: write()      # at each sample
replace = os.replace
for n in map(int, sys.argv[3:]):
    if os.fork() == 0:
        left = n

        def counted(source, target):
            global left
            left -= 1
            if left < 0:
                os._exit(9)
            replace(source, target)

        os.replace = counted
        runner.run_file(sys.argv[1], out=Path(sys.argv[2]) / str(n))
        os._exit(0)
    os.wait()
"""

IS_KILLED = """
import sys
from simvm import runner

runner.LEAST_S, runner.SHARE_OF_TIME = 0.02, 1.0
runner.run_file(sys.argv[1], out=sys.argv[2], variant="base",
                progress=lambda _, now, *__: print(now, flush=True))
"""


def scenario(folder: Path, duration: str, interval: str) -> Path:
    path = folder / "killed.toml"
    path.write_text(TEXT.replace("DURATION", duration).replace("INTERVAL", interval))
    return path


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def rows(run: RunResult) -> pa.Table:
    return run.timeline.to_arrow().replace_schema_metadata()


def is_prefix(cut: RunResult, whole: RunResult) -> bool:
    """Whether rows are those with which the whole run begins, whole samples of them."""
    found, expected = rows(cut), rows(whole)
    each = 2 + len(whole.timeline.guests())
    return found.num_rows % each == 0 and found.equals(expected.slice(0, found.num_rows))


def test_between_any_two_files_that_it_writes(tmp_path: Path) -> None:
    """Two variants, which write all they have at each of four samples."""
    file = scenario(tmp_path, "300us", "100us")
    run_file(file, out=tmp_path / "whole")
    whole = load_runs(tmp_path / "whole")
    most = 60
    process = start(KILLS_ITSELF, file, tmp_path, *range(most))
    process.communicate(timeout=60)
    assert process.returncode == 0
    left: list[tuple[bool, tuple[int, ...]]] = []
    for n in range(most):
        try:
            runs = load_runs(tmp_path / str(n))
        except ResultError:     # it had not come to a first sample
            left.append((True, ()))
            continue
        for name, run in runs.items():
            assert is_prefix(run, whole[name]), (n, name)
            assert run.partial >= run.summary["scenario"]["partial"], (n, name)
            # A summary may be behind, and never tells of what was not written.
            assert 0 <= run.up_to_ns <= run.timeline.values("time_ns")[-1], (n, name)
            assert run.partial or len(run.timeline) == len(whole[name].timeline), (n, name)
        partial = not is_complete(tmp_path / str(n))
        left.append((partial, tuple(len(run.timeline) for run in runs.values())))
        title = str(comparison_table(comparison(runs, complete=not partial)).title)
        assert ("(partial: " in title) == partial
    whole_rows = tuple(len(run.timeline) for run in whole.values())
    ended = [partial for partial, _ in left].index(False)
    assert 30 < ended < most                                      # the last ones were not killed
    assert left[ended:] == [(False, whole_rows)] * (most - ended)
    assert [count for _, count in left] == sorted(count for _, count in left)
    assert len({count for _, count in left}) > 8                # it wrote as it went


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("whole")
    run_file(scenario(folder, "300ms", "1ms"), out=folder / "run", variant="base")
    return RunResult.load(folder / "run")


@pytest.mark.parametrize("after_ms", [0, 101, 180])
def test_by_a_signal(whole: RunResult, tmp_path: Path, after_ms: int) -> None:
    process = start(IS_KILLED, scenario(tmp_path, "300ms", "1ms"), tmp_path / "run")
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= after_ms * MS:
            break
    if after_ms == 0:
        next(process.stdout)    # it has written, since it came to a second sample
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (run,) = load_runs(tmp_path / "run").values()
    assert run.partial
    assert run.timeline.partial
    assert run.manifest["exit_reason"] == "unfinished"
    assert is_prefix(run, whole)
    assert after_ms < 50 or run.timeline.values("time_ns")[-1] > after_ms * MS // 4
    page = render({"base": run}, [])
    assert "Partial: base up to " in page
    assert "(unfinished)" in page
    last = run.timeline.host().values("accesses")[-1]
    assert run.summary["host"]["totals"]["accesses"] <= last


# --- memory -----------------------------------------------------------------------------

PEAK = """
import sys
from pathlib import Path
from simvm.provenance import peak_rss_bytes
from simvm.runner import run_file

run_file(sys.argv[1], out=sys.argv[2], sets=sys.argv[3:], variant="base")
print(peak_rss_bytes())
"""

IDLE = [
    "guest.vm.count=20", "guest.vm.memory=24MiB", "guest.vm.boot=1MiB",
    "guest.vm.workload.heap.allocate=1MiB", "guest.vm.workload.heap.think_time=20us",
]  # fmt: skip


def test_memory_does_not_grow_with_simulated_time(tmp_path: Path) -> None:
    """22 rows every 10 ms: 2,222 in 1 s, 17,622 in 8 s, which would be 18 MB more."""
    peaks = []
    for duration in ("1s", "8s"):
        process = start(
            PEAK, scenario(tmp_path, duration, "10ms"), tmp_path / duration, *IDLE
        )
        peaks.append(int(process.communicate(timeout=60)[0]))
    assert len(RunResult.load(tmp_path / "8s").timeline) == 801 * 22
    assert peaks[1] < peaks[0] + 5_000_000
