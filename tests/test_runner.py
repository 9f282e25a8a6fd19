"""From a file to a run directory: variants, seeds, expectations, failures, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import scenarios_small as small
from scenarios_small import MS

from simvm.errors import InvalidInput, SimulationFailed
from simvm.model.host import Host
from simvm.results import RunResult, load_runs
from simvm.runner import run, run_file
from simvm.scenario import resolve

ROOT = Path(__file__).resolve().parent.parent

TEXT = """
schema = 1
[scenario]
name = "three"
question = "Which is the shortest?"
sample_interval = "1ms"
[host]
cpu = "sapphire_rapids"
cores = 2
memory = "1GiB"
page_size = "2MiB"
[guest.vm]
memory = "256MiB"
page_size = "2MiB"
[[guest.vm.workload]]
region = "heap"
allocate = "64MiB"
pattern = { kind = "uniform" }
accesses = "20k"
[variant.small_pages]
"guest.vm.page_size" = "4KiB"
[variant.container]
"guest.vm.virtualization" = "none"
[expect]
"guest.vm.slowdown" = "> 1"
[expect.container]
"host.oom_kills" = "== 1"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "three.toml"
    path.write_text(TEXT)
    return path


def test_a_run_in_memory_has_a_summary_and_a_timeline() -> None:
    result = run(small.scenario(sample_interval=MS))
    assert isinstance(result, RunResult)
    assert result.directory is None
    assert not result.partial
    assert result.summary["guests"][0]["totals"]["accesses"] == 20_000
    assert len(result.timeline.host()) > 2
    assert result.manifest["exit_reason"] == "done"


def test_a_seed_of_ones_own_stands_in_the_results() -> None:
    of = small.scenario()
    assert run(of).summary["scenario"]["seed"] == 1
    other = run(of, seed=7)
    assert other.summary["scenario"]["seed"] == other.manifest["seed"] == 7
    assert other.summary["guests"] != run(of).summary["guests"]
    assert other.summary["guests"] == run(of, seed=7).summary["guests"]


def test_a_file_runs_with_all_its_variants(file: Path, tmp_path: Path) -> None:
    outcome = run_file(file, out=tmp_path / "out")
    runs = load_runs(outcome.directory)
    assert list(runs) == outcome.summary["variant_order"] == ["base", "small_pages", "container"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == outcome.summary
    assert not outcome.partial
    streams = {each.summary["guests"][0]["stream_digest"] for each in runs.values()}
    assert len(streams) == 1  # common random numbers
    classes = [each.summary["classes"]["vm"] for each in runs.values()]
    assert [each["page_size"] for each in classes] == ["2MiB", "4KiB", None]
    assert [each["virtualization"] for each in classes] == ["nested", "nested", "none"]
    for name, each in runs.items():
        assert each.manifest["variant"] == name
        assert each.manifest["program_wall"] == runs["base"].manifest["program_wall"]
        assert each.timeline.values("time_ns")[0] == 0


def test_the_resolved_scenario_of_a_run_gives_the_same_run(file: Path, tmp_path: Path) -> None:
    run_file(file, out=tmp_path / "out")
    first = tmp_path / "out" / "small_pages"
    run_file(first / "scenario.toml", out=tmp_path / "again")
    again = tmp_path / "again" / "base"
    for name in ("timeline.parquet", "summary.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name


CPU = """
inherits = "zen4"
part = "a Zen 4 with small TLBs and deep tables"
[[l2]]
orders = ["4KiB", "2MiB"]
entries = { v = 64, unit = "entries", tag = "assumed", why = "small" }
ways = { v = 4, unit = "ways", tag = "assumed", why = "small" }
[tables]
guest_levels = { v = 5, unit = "levels", tag = "assumed", why = "deep" }
host_levels = { v = 5, unit = "levels", tag = "assumed", why = "deep" }
"""


def test_a_cpu_of_ones_own_is_one_file_that_the_scenario_names(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(CPU)
    walks, tables = [], []
    for cpu in ("zen4", "mine.toml"):
        path = tmp_path / f"on-{cpu}"
        text = TEXT.replace("sapphire_rapids", cpu).replace("2MiB", "4KiB")
        text = text.split("[variant.", 1)[0]
        path.with_suffix(".toml").write_text(text)
        run_file(path.with_suffix(".toml"), out=tmp_path / "out" / cpu)
        first = tmp_path / "out" / cpu / "base"
        (guest,) = load_runs(first.parent)["base"].summary["guests"]
        walks.append(guest["totals"]["walks"])
        tables.append(guest["peaks"]["tables_bytes"])
        run_file(first / "scenario.toml", out=tmp_path / "again" / cpu)
        for name in ("timeline.parquet", "summary.json"):
            again = tmp_path / "again" / cpu / "base" / name
            assert (first / name).read_bytes() == again.read_bytes(), name
    assert walks[1] > walks[0]  # a TLB of 64 entries
    assert tables[1] > tables[0]  # another level


def test_expectations_that_do_not_hold_are_told(file: Path, tmp_path: Path) -> None:
    outcome = run_file(file, out=tmp_path / "out")
    (failed,) = outcome.failed_expectations
    assert failed.startswith("container: ")
    assert "host.oom_kills" in failed


def test_one_variant_and_other_values(file: Path, tmp_path: Path) -> None:
    outcome = run_file(
        file, out=tmp_path / "out", variant="container", seed=3, sets=["guest.vm.count=2"]
    )
    (found,) = load_runs(outcome.directory).values()
    assert len(found.summary["guests"]) == 2
    assert found.summary["scenario"]["seed"] == 3


def test_progress_is_told_at_each_sample(file: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int, int | None]] = []
    run_file(file, out=tmp_path / "out", variant="base", progress=lambda *each: told.append(each))
    assert told[0] == ("base", 0, 0, 20_000)
    assert [now for _, now, _, _ in told] == [n * MS for n in range(len(told))]
    done = [done for _, _, done, _ in told]
    assert done == sorted(done)
    assert len(told) > 3


def test_an_open_loop_does_not_know_how_much_is_to_be_done(tmp_path: Path) -> None:
    path = tmp_path / "open.toml"
    path.write_text(TEXT.replace(
        'accesses = "20k"', 'rate = "1k"\naccesses_per_request = 10\nduration = "5ms"'
    ))  # fmt: skip
    told: list[int | None] = []
    run_file(
        path, out=tmp_path / "out", variant="base", progress=lambda *each: told.append(each[3])
    )
    assert set(told) == {None}


def test_mistakes_are_told_and_nothing_is_written(file: Path, tmp_path: Path) -> None:
    file.write_text(TEXT.replace('"64MiB"', '"640MiB"'))
    with pytest.raises(InvalidInput, match="allocate"):
        run_file(file, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three.toml"]


def test_a_run_that_fails_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Host.set_watermarks

    def leak(self: Host, kswapd_awake: bool) -> None:
        right(self, kswapd_awake)
        self.memory.frames.allocate_4k()

    monkeypatch.setattr(Host, "set_watermarks", leak)
    with pytest.raises(SimulationFailed, match="the ledger is off"):
        run_file(file, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three.toml"]


# --- Ctrl-C -----------------------------------------------------------------------------

SCRIPT = """
import sys
from simvm.runner import run_file

def progress(variant, now, done, total):
    print(variant, now, flush=True)

outcome = run_file(sys.argv[1], out=sys.argv[2], progress=progress)
print("partial" if outcome.partial else "whole", *outcome.failed_expectations, flush=True)
"""


def interrupt(file: Path, out: Path, when: str) -> list[str]:
    """Run a file in a process of its own; Ctrl-C when it tells of `when`. What it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(file), str(out)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith(when):
            process.send_signal(signal.SIGINT)
            when = "\0"  # once
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(30) == 0, errors
    return lines


def test_ctrl_c_leaves_a_readable_partial_run(file: Path, tmp_path: Path) -> None:
    file.write_text(TEXT.replace('"20k"', '"2G"'))  # would take minutes
    lines = interrupt(file, tmp_path / "out", "base 5000000")
    assert lines[-1] == "partial"
    (result,) = load_runs(tmp_path / "out").values()  # variants that had not begun are not there
    assert result.partial
    assert result.manifest["exit_reason"] == "interrupted"
    assert result.summary["scenario"]["partial"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["partial"]
    accesses = result.timeline.host().values("accesses")
    assert 0 < accesses[-1] < 2_000_000_000
    guest = result.summary["guests"][0]
    (phase,) = guest["phases"]
    assert phase["accesses"] == guest["totals"]["accesses"] == accesses[-1]
    assert phase["end_ns"] == result.summary["scenario"]["simulated_ns"]
    assert sum(guest["elapsed"].values()) == guest["totals"]["elapsed_ns"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "three.toml"]
    assert resolve(tmp_path / "out" / "base" / "scenario.toml").scenario.name == "three"


def test_ctrl_c_in_a_later_variant_keeps_the_whole_ones(file: Path, tmp_path: Path) -> None:
    file.write_text(TEXT.replace(
        '"guest.vm.page_size" = "4KiB"',
        '"guest.vm.page_size" = "4KiB"\n"guest.vm.workload.heap.accesses" = "2G"',
    ))  # fmt: skip
    lines = interrupt(file, tmp_path / "out", "small_pages 5000000")
    assert lines[-1] == "partial"
    runs = load_runs(tmp_path / "out")
    assert {name: each.partial for name, each in runs.items()} == {
        "base": False, "small_pages": True,
    }  # fmt: skip
