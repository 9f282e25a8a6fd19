"""Runs as wholes: the same input gives the same bytes; lives, samples, and the end of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import GIB, MIB, MS

from simvm.runner import run_file
from simvm.scenario import to_toml
from simvm.scenario.models import Scenario

ROOT = Path(__file__).resolve().parent.parent


def mixed() -> Scenario:
    """Something of everything, under pressure."""
    zipf = {"kind": "zipf", "exponent": 0.9}
    return small.scenario(
        {
            "vm": small.guest(
                small.phase(allocate=80 * MIB, pattern=zipf, accesses=8_000, threads=2),
                small.phase(region="tmp", allocate=8 * MIB, free="all", task="side",
                            process="other", repeat=2),
                count=2, vcpus=3, memory=128 * MIB, channel={"kind": "passthrough"},
            ),
            "web": small.guest(
                small.phase(accesses=None, rate=20_000, accesses_per_request=10, threads=2,
                            duration=10 * MS),
                vcpus=2, memory=128 * MIB,
            ),
            "box": small.container(small.phase(allocate=16 * MIB), memory=32 * MIB),
        },
        host={"memory": 192 * MIB, "swap": {"device": "nvme", "size": 512 * MIB}, "cores": 4},
        sample_interval=MS,
    )  # fmt: skip


def files(directory: Path) -> dict[str, bytes]:
    """What must not depend on the machine: everything but the manifest."""
    names = ("timeline.parquet", "summary.json", "scenario.toml")
    return {name: (directory / "base" / name).read_bytes() for name in names}


def written(of: Scenario, directory: Path) -> Path:
    path = directory / "mixed.toml"
    path.write_text(to_toml(of, directory))
    return path


def test_the_same_scenario_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    """Also in another process, where text has other hashes."""
    path = written(mixed(), tmp_path)
    run_file(path, out=tmp_path / "one")
    run_file(path, out=tmp_path / "two")
    again = str(tmp_path / "three")
    script = f"from simvm.runner import run_file; run_file({str(path)!r}, out={again!r})"
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    assert one == files(tmp_path / "three")
    run_file(path, out=tmp_path / "other", seed=2)
    other = files(tmp_path / "other")
    assert other["timeline.parquet"] != one["timeline.parquet"]
    assert other["summary.json"] != one["summary.json"]


def digests(guests: dict[str, Any], **meta: Any) -> dict[tuple[str, int], str]:
    summary = small.result(guests, host={"memory": 2 * GIB, "cores": 2}, **meta).summary
    return {(each["class"], each["guest"]): each["stream_digest"] for each in summary["guests"]}


LOOPS = {
    "closed": small.phase(threads=2),
    "open": small.phase(
        accesses=None, rate=300_000, accesses_per_request=20, duration=3 * MS, threads=2
    ),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_accesses_of_a_guest_do_not_depend_on_other_guests(loop: str) -> None:
    vm = small.guest(LOOPS[loop], vcpus=2)
    alone = digests({"vm": vm})
    crowd = digests({
        "before": small.guest(small.phase(threads=2, accesses=100_000), count=3, vcpus=2),
        "vm": vm, "after": small.container(),
    })  # fmt: skip
    assert crowd["vm", 0] == alone["vm", 0]
    assert len(set(crowd.values())) == len(crowd)  # no two guests do the same


def test_accesses_depend_on_the_seed_and_not_on_how_memory_is_mapped() -> None:
    base = digests({"vm": small.guest()})
    assert digests({"vm": small.guest()}, seed=2) != base
    assert digests({"vm": small.guest(page_size=4096, zeroing="guest")}) == base
    assert digests({"vm": small.guest(page_size=GIB, memory=2 * GIB)}) == base
    assert digests({"vm": small.container()}) == base
    assert digests({"vm": small.guest()}, quantum=1_000) == base


# --- lives ------------------------------------------------------------------------------


def lives(result: Any) -> list[tuple[int, int]]:
    """(first sample with accesses, last sample at which they grew) of each guest, in ms."""
    found = []
    for class_, index in result.timeline.guests():
        rows = result.timeline.guest(class_, index)
        time, done = rows.values("time_ns"), rows.values("accesses")
        steps = zip(time[1:], done, done[1:], strict=False)
        grew = [int(now) // MS for now, before, after in steps if after > before]
        found.append((grew[0], grew[-1]))
    return found


def test_start_stagger_and_stop() -> None:
    work = small.phase(accesses=10_000_000)
    result = small.result(
        {"vm": small.guest(work, count=3, start=MS, stagger=2 * MS, stop=8 * MS)},
        duration=10 * MS, sample_interval=MS,
    )  # fmt: skip
    assert lives(result) == [(2, 8), (4, 8), (6, 8)]
    assert result.summary["scenario"]["simulated_ns"] == 10 * MS
    assert result.summary["host"]["final"]["backed_bytes"] == 0
    assert not any(guest["killed"] for guest in result.summary["guests"])


def test_a_run_lasts_until_the_work_is_done_or_the_duration_is_over() -> None:
    done = small.result()
    assert small.one(done)["totals"]["accesses"] == 20_000
    cut = small.result(duration=3 * MS)
    assert cut.summary["scenario"]["simulated_ns"] == 3 * MS
    assert 0 < small.one(cut)["totals"]["accesses"] < 20_000
    phase = small.one(cut)["phases"][0]
    assert phase["end_ns"] == 3 * MS
    assert phase["accesses"] == small.one(cut)["totals"]["accesses"]


def test_a_guest_that_cannot_start_is_a_result() -> None:
    """Its VMM alone is larger than the host, and nobody else is there to be killed."""
    result = small.result(
        {"vm": small.guest(vmm_overhead=128 * MIB, memory=64 * MIB)}, host={"memory": 64 * MIB},
    )  # fmt: skip
    guest = small.one(result)
    assert guest["killed"]
    assert guest["totals"]["accesses"] == 0
    assert result.summary["host"]["oom_kills"] == 1


def test_boot_and_struct_pages_are_backed_before_the_work() -> None:
    """4 MiB of boot, 8 MiB of struct pages (64 bytes for each 4 KiB of 512 MiB)."""
    result = small.result({"vm": small.guest(
        small.phase(pattern=None, accesses=None), boot=4 * MIB, vmm_overhead=3 * MIB,
    )}, duration=10 * MS)  # fmt: skip
    final = small.one(result)["final"]
    assert final["backed_bytes"] == final["backed_2m_bytes"] == 12 * MIB
    assert final["touched_bytes"] == 12 * MIB + 4096  # the root of the process's table
    assert final["vmm_overhead_bytes"] == 3 * MIB
    assert small.one(result)["totals"]["slat_faults"] == 6


# --- samples ----------------------------------------------------------------------------


def test_samples_are_regular_and_the_last_one_is_the_end() -> None:
    result = small.result(sample_interval=MS)
    time = result.timeline.host().values("time_ns").astype(int).tolist()
    assert time[:-1] == [n * MS for n in range(len(time) - 1)]
    assert time[-1] == result.summary["scenario"]["simulated_ns"]
    assert result.timeline.host().values("accesses")[-1] == 20_000


@pytest.mark.parametrize("interval", [MS, 1000 * MS])
def test_peaks_do_not_depend_on_the_samples(interval: int) -> None:
    """A guest allocates and frees between two samples; class and host peaks are of a moment."""
    work = small.phase(free="all", accesses=100_000, allocate=32 * MIB)
    result = small.result(
        {"vm": small.guest(work, count=2, stagger=100 * MS, channel={"kind": "passthrough"}),
         "box": small.container(work, start=300 * MS)},
        sample_interval=interval,
    )  # fmt: skip
    summary = result.summary
    one, two, box = (guest["peaks"]["backed_bytes"] for guest in summary["guests"])
    assert one == two
    assert box == 32 * MIB
    left = summary["guests"][0]["final"]["backed_bytes"]
    assert summary["classes"]["vm"]["peaks"]["backed_bytes"] == left + two
    assert summary["classes"]["box"]["peaks"]["backed_bytes"] == box
    assert summary["host"]["peaks"]["backed_bytes"] == max(left + two, 2 * left + box)
    assert summary["guests"][0]["peaks"]["touched_bytes"] > 32 * MIB


def test_counters_never_fall_and_classes_are_sums() -> None:
    from simvm.columns import COUNTER_NAMES, names_at

    timeline = small.run(mixed()).timeline
    for name in set(COUNTER_NAMES) & set(names_at("host")):
        host = timeline.host().values(name)
        assert (host[1:] >= host[:-1]).all(), name
    for name in names_at("class"):
        if name == "slowdown":
            continue
        guests = sum(timeline.guest("vm", index).values(name) for index in range(2))
        assert (timeline.guest_class("vm").values(name) == guests).all(), name


def test_warm_up_is_left_out_of_slowdown_and_means() -> None:
    """Populating takes the first ms of 8.5; without them nothing but running is left."""
    work = small.phase(accesses=1_000_000)
    whole = small.result({"vm": small.guest(work)}, sample_interval=MS)
    warm = small.result({"vm": small.guest(work)}, sample_interval=MS, warmup=11 * MS)
    assert warm.summary["scenario"]["simulated_ns"] == whole.summary["scenario"]["simulated_ns"]
    assert 1 <= small.one(warm)["slowdown"] < 0.8 * small.one(whole)["slowdown"]
    final = small.one(warm)["final"]["backed_bytes"]
    assert small.one(warm)["means"]["backed_bytes"] == final
    assert small.one(whole)["means"]["backed_bytes"] < final
