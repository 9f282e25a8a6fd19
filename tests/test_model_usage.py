"""Phases that keep to the clock: regions that follow a series, and paced accesses."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, KIB, MIB, MS, PAGE, US, S

from simvm.model.engine import Simulation
from simvm.model.usage import PacedPhase
from simvm.recorder import Recorder
from simvm.scenario import BurstyUsage, DiurnalUsage, RecordedUsage
from simvm.workload.usage import FULL, write_usage
from simvm.workload.usage_series import Member, Step, steps

MIBS = [8, 16, 4, 12]
"""What the series of most tests here uses, in MiB, each for 10 ms."""


def file(folder: Path, used: list[int], step: int = 10 * MS, **columns: list[int]) -> str:
    """A usage file with a row each step."""
    path = folder / "vm.usage.parquet"
    values = {"time_ns": [i * step for i in range(len(used))], "used_bytes": used, **columns}
    write_usage(path, {name: np.array(value, dtype=np.int64) for name, value in values.items()}, {})
    return str(path)


def paced(**values: Any) -> dict[str, Any]:
    """A paced phase: 1,000 accesses in a ms."""
    base: dict[str, Any] = {
        "allocate": None, "accesses": None, "access_rate": 1_000_000, "interval": MS,
    }  # fmt: skip
    return small.phase(**{**base, **values})


def watched(
    *phases: dict[str, Any], meta: dict[str, Any] | None = None, **values: Any
) -> tuple[Simulation, dict[int, dict[str, int]]]:
    """A simulation, and at 5, 15, 25 ... ms of it what the first guest's region has."""
    seen: dict[int, dict[str, int]] = {}

    def look(now: int, _accesses: int, _total: int | None) -> None:
        (region,) = guest.regions.values() or (None,)
        if region is not None and now % (10 * MS) == 5 * MS:
            seen[now // MS] = {
                "used": region.used_bytes, "size": region.core.size,
                "touched": region.touched_bytes, "guest": guest.holdings()["touched_bytes"],
                "stranded": guest.stranded_bytes, "cache": guest.mm.cache_bytes,
                "free": guest.memory.free_bytes,
                "drawn": sum(work.stream.drawn for work in guest.works),
            }  # fmt: skip

    work = list(phases) or [paced()]
    of = small.scenario(
        {"vm": small.guest(*work, **values)}, **{"sample_interval": 5 * MS, **(meta or {})}
    )
    made = Simulation(of, Recorder(), look)
    guest = made.guests[0]
    made.run()
    return made, seen


def phase_of(made: Simulation, index: int = 0) -> dict[str, Any]:
    values: dict[str, Any] = small.summary_of(made)["guests"][index]["phases"][0]
    return values


# --- a region that follows a series -----------------------------------------------------


@pytest.mark.parametrize(
    ("page", "kind"), [(PAGE, "nested"), (BLOCK, "nested"), (BLOCK, "shadow"), (PAGE, "none")]
)
def test_the_region_has_the_size_of_the_series(tmp_path: Path, page: int, kind: str) -> None:
    """8, 16, 4, 12 MiB: all of it touched, in the middle of each step."""
    usage = {"file": file(tmp_path, [n * MIB for n in MIBS])}
    made, seen = watched(paced(usage=usage), page_size=page, virtualization=kind)
    for row, size in zip(seen.values(), MIBS, strict=True):
        assert row["used"] == row["size"] == row["touched"] == size * MIB
    assert list(seen) == [5, 15, 25, 35]
    assert phase_of(made)["end_ns"] - phase_of(made)["start_ns"] == 40 * MS
    (region,) = small.summary_of(made)["guests"][0]["regions"]
    assert region["bytes"] == region["touched_bytes"] == 12 * MIB


def test_new_pages_are_written_once_and_accesses_come_on_top(tmp_path: Path) -> None:
    """8 + 8 + 0 + 8 MiB are new: 6,144 pages; 1 M a second for 40 ms: 40,000 accesses."""
    made, _ = watched(paced(usage={"file": file(tmp_path, [n * MIB for n in MIBS])}))
    phase = phase_of(made)
    assert phase["accesses"] == 6_144 + 40_000
    # Each step's accesses, and each growth, begin to count anew: a ns may be lost in each.
    ideal = (6_144 + 40_000) * 20 * 1_000_000 / made.host.cpu.frequency_khz
    assert ideal - 7 <= phase["ideal_ns"] <= ideal


def test_sampled_guests_follow_the_series_as_well(tmp_path: Path) -> None:
    """The same sizes, touches and number of accesses, most of them not run one by one."""
    usage = {"file": file(tmp_path, [n * MIB for n in MIBS])}
    made, seen = watched(
        paced(usage=usage, access_rate=10_000_000), meta={"fidelity": "sampled"},
        channel={"kind": "passthrough"},
    )  # fmt: skip
    for row, size in zip(seen.values(), MIBS, strict=True):
        assert row["used"] == row["size"] == row["touched"] == size * MIB
    phase = phase_of(made)
    assert phase["accesses"] == 6_144 + 400_000
    assert phase["given_back"]["returned_bytes"] == 12 * MIB
    assert phase["late_ns"] < MS


def test_a_pattern_goes_on_while_the_size_is_the_same(tmp_path: Path) -> None:
    """Streams count what was drawn: in the second of two equal steps on from the first."""
    usage = {"file": file(tmp_path, [n * MIB for n in (8, 8, 4)])}
    _, seen = watched(paced(usage=usage))
    drawn = [row["drawn"] for row in seen.values()]
    assert drawn == pytest.approx([5_000, 15_000, 5_000], abs=1_000)


def test_without_a_pattern_the_region_is_all(tmp_path: Path) -> None:
    usage = {"file": file(tmp_path, [n * MIB for n in MIBS])}
    made, seen = watched(paced(usage=usage, pattern=None, access_rate=None, interval=None))
    assert [row["touched"] // MIB for row in seen.values()] == MIBS
    assert phase_of(made)["accesses"] == 6_144


def test_sizes_are_whole_pages_and_huge_pages_are_kept(tmp_path: Path) -> None:
    """3.5 MiB and a bit in pages of 2 MiB: 4 MiB are mapped, and the two stay for 2.5 MiB. What
    is touched stays so in a page that is kept; 1.5 MiB free one of the two."""
    used = [7 * MIB // 2 + 100, 5 * MIB // 2, 3 * MIB, 3 * MIB // 2]
    made, seen = watched(paced(usage={"file": file(tmp_path, used)}))
    rows = list(seen.values())
    assert [row["used"] for row in rows] == [size // PAGE * PAGE for size in used]
    assert [row["size"] // MIB for row in rows] == [4, 4, 4, 2]
    assert [row["touched"] for row in rows] == [7 * MIB // 2] * 3 + [2 * MIB]
    # 896 pages at first, 128 again: the last step takes nothing new.
    assert phase_of(made)["accesses"] == 896 + 128 + 40_000


def test_a_page_of_1_gib_goes_when_nothing_of_it_is_used(tmp_path: Path) -> None:
    used = [GIB + 4 * MIB, 8 * MIB, GIB + 4 * MIB]
    _, seen = watched(
        paced(usage={"file": file(tmp_path, used, 400 * MS)}, access_rate=1_000),
        page_size=GIB, memory=3 * GIB,
    )  # fmt: skip
    rows = [seen[at] for at in (395, 795, 1195)]
    assert [row["size"] // GIB for row in rows] == [2, 1, 2]
    assert [row["free"] // GIB for row in rows] == [0, 1, 0]
    assert [row["touched"] for row in rows] == [GIB + 4 * MIB, GIB, GIB + 4 * MIB]


def test_accesses_are_alike_for_every_size_of_page(tmp_path: Path) -> None:
    """And where the host is slow: the loop is closed, so none is left out."""
    usage = {"file": file(tmp_path, [n * MIB for n in MIBS])}
    digests = {
        (page, kind): small.one(small.result({"vm": small.guest(
            paced(usage=usage), page_size=page, virtualization=kind
        )}))["stream_digest"]
        for page, kind in ((PAGE, "nested"), (BLOCK, "nested"), (PAGE, "none"))
    }  # fmt: skip
    assert digests[PAGE, "nested"] == digests[PAGE, "none"]
    # Within a huge page that is kept nothing is new; here all sizes are whole ones.
    assert digests[PAGE, "nested"] == digests[BLOCK, "nested"]


@pytest.mark.parametrize(("kind", "left"), [("none", 12), ("passthrough", 0)])
def test_what_shrinks_away_goes_back_through_the_channel(
    tmp_path: Path, kind: str, left: int
) -> None:
    """16 to 4 MiB: the 12 stay with the host if nobody tells it. And the tables that six pages of
    2 MiB had in reserve, of which a hint says nothing."""
    usage = {"file": file(tmp_path, [n * MIB for n in MIBS])}
    made, seen = watched(paced(usage=usage), channel={"kind": kind})
    assert seen[25]["stranded"] - seen[15]["stranded"] == left * MIB + 6 * PAGE
    freed = phase_of(made)["given_back"]
    assert freed["freed_bytes"] == 12 * MIB
    assert freed["returned_bytes"] == (12 - left) * MIB


@pytest.mark.parametrize("kind", ["none", "free_page_reporting"])
def test_free_page_reporting_returns_what_shrank_away(tmp_path: Path, kind: str) -> None:
    """A pass begins 2 s after the free: at 2 s all of it is stranded, at 5 s hardly any, but for
    what is not whole and what the budget leaves over."""
    usage = {"file": file(tmp_path, [68 * MIB, 4 * MIB, 4 * MIB], 3 * S)}
    work = paced(usage=usage, access_rate=1_000, interval=S)
    result = small.result(
        {"vm": small.guest(work, channel={"kind": kind})}, sample_interval=250 * MS
    )
    rows = result.timeline.to_pandas()
    rows = rows[rows["scope"] == "guest"].set_index("time_ns")["stranded_bytes"]
    early, late = rows.loc[4 * S], rows.loc[7 * S]
    assert early >= 62 * MIB
    assert late <= 8 * MIB if kind == "free_page_reporting" else late == early


def test_a_series_is_scaled_loops_and_is_cut_off(tmp_path: Path) -> None:
    usage = {"file": file(tmp_path, [n * MIB for n in MIBS]), "scale": 0.5, "loop": True}
    made, seen = watched(paced(usage=usage, duration=75 * MS))
    assert [row["used"] // MIB for row in seen.values()] == [4, 8, 2, 6, 4, 8, 2, 6]
    phase = phase_of(made)
    assert phase["end_ns"] - phase["start_ns"] == 75 * MS
    assert phase["accesses"] == 75_000 + 1_024 * (4 + 4 + 4 + 0 + 4 + 4) // 4


def test_a_phase_can_free_its_region_and_begin_again(tmp_path: Path) -> None:
    usage = {"file": file(tmp_path, [8 * MIB, 4 * MIB])}
    made, seen = watched(paced(usage=usage, free="all", repeat=2))
    summary = small.summary_of(made)["guests"][0]
    assert [row["used"] // MIB for row in seen.values()] == [8, 4, 8, 4]
    assert summary["regions"] == []
    assert [phase["given_back"]["freed_bytes"] for phase in summary["phases"]] == [8 * MIB] * 2


def test_the_next_region_lies_beyond_the_most_that_a_series_uses(tmp_path: Path) -> None:
    usage = {"file": file(tmp_path, [4 * MIB, 1600 * MIB], 200 * MS)}
    grows = small.phase(name="grows", allocate=None, pattern=None, accesses=None, usage=usage)
    other = small.phase(name="other", region="other", task="other", allocate=4 * MIB)
    made = small.simulate(small.scenario({"vm": small.guest(
        grows, other, vcpus=2, memory=2 * GIB, page_size=BLOCK,
    )}))  # fmt: skip
    first, second = sorted(
        (region.core.base, region.core.size) for region in made.guests[0].regions.values()
    )
    assert first[0] + first[1] <= second[0]
    assert first[1] == 1600 * MIB


def test_a_guest_without_memory_for_it_ends(tmp_path: Path) -> None:
    """The balloon has half of the guest: 96 MiB are more than is left."""
    usage = {"file": file(tmp_path, [8 * MIB, 96 * MIB], 4 * S)}
    work = paced(usage=usage, access_rate=1_000, interval=S)
    made = small.simulate(small.scenario({"vm": small.guest(
        work, memory=128 * MIB,
        channel={"kind": "balloon", "target": 64 * MIB, "deflate_on_oom": False},
    )}, sample_interval=100 * MS))  # fmt: skip
    assert small.summary_of(made)["guests"][0]["failure"] == "no free memory in the guest"


def test_the_cache_follows_the_series(tmp_path: Path) -> None:
    """8, then 24, then 4 MiB: it grows as its program reads, and gives way at once."""
    usage = {"file": file(
        tmp_path, [8 * MIB] * 4, 100 * MS, cached_bytes=[8 * MIB, 24 * MIB, 4 * MIB, 4 * MIB]
    )}  # fmt: skip
    work = paced(usage=usage, access_rate=1_000, interval=10 * MS)
    cache = {"files": 32 * MIB, "read_rate": GIB, "latency": US}
    _, seen = watched(work, page_cache=cache, page_size=PAGE)
    assert [seen[at]["cache"] // MIB for at in (95, 195, 295, 395)] == [8, 24, 4, 4]
    # What was dropped is read again, a piece at a time, until what it holds is of these 4 MiB.
    assert seen[295]["free"] - seen[195]["free"] == pytest.approx(20 * MIB, abs=128 * KIB)
    _, ignored = watched(
        {**work, "usage": {**usage, "cached": False}}, page_cache=cache, page_size=PAGE
    )
    assert ignored[395]["cache"] == 32 * MIB


def test_memory_is_accounted_for_under_pressure(tmp_path: Path, monkeypatch: Any) -> None:
    """Three guests whose peaks are 150 % of the host: the ledger balances at every sample."""
    monkeypatch.setenv("SIMVM_DEBUG", "1")
    usage = {"file": file(tmp_path, [n * MIB for n in (16, 64, 24, 64)], 20 * MS)}
    result = small.run(small.scenario(
        {"vm": small.guest(
            paced(usage=usage, write_fraction=0.5), count=3, memory=128 * MIB,
            channel={"kind": "passthrough"},
        )},
        host={"memory": 128 * MIB, "swap": {"device": "nvme", "size": 512 * MIB}},
    ))  # fmt: skip
    assert result.summary["host"]["totals"]["swap_outs"] > 0
    assert result.summary["host"]["oom_kills"] == 0
    assert {guest["phases"][0]["accesses"] for guest in result.summary["guests"]} == {
        80_000 + (16 + 48 + 40) * 256
    }


# --- the pace ---------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_accesses_keep_to_the_rate(threads: int) -> None:
    """1 M a second for 30 ms, of some 10 ns each: busy for a hundredth of the time."""
    made = small.simulate(small.scenario({"vm": small.guest(
        paced(allocate=4 * MIB, duration=30 * MS, threads=threads), vcpus=3
    )}))  # fmt: skip
    phase = phase_of(made)
    assert phase["accesses"] == 30_000
    assert phase["end_ns"] - phase["start_ns"] == 30 * MS
    assert phase["late_ns"] < 20 * US
    assert phase["ideal_ns"] == 30_000 * 20 * 1_000_000 // made.host.cpu.frequency_khz
    assert phase["elapsed_ns"] == sum(phase["parts"].values()) < 0.1 * threads * 30 * MS
    assert phase["parts"]["think_ns"] == 0


def test_accesses_are_spread_over_the_time() -> None:
    """In each 5 ms 5,000, but for the part of an interval of 1 ms that is done ahead."""
    result = small.result(
        {"vm": small.guest(paced(allocate=4 * MIB, duration=30 * MS))}, sample_interval=5 * MS
    )
    rows = result.timeline.to_pandas()
    done = rows[rows["scope"] == "guest"].set_index("time_ns")["accesses"]
    start = small.one(result)["phases"][0]["start_ns"]
    for at in (10, 20, 25):
        assert done[at * MS] == pytest.approx(1_000 * (at - start / MS), abs=1_001)


def test_activity_is_the_share_of_the_rate(tmp_path: Path) -> None:
    usage = {"file": file(
        tmp_path, [4 * MIB] * 3, activity=[FULL, FULL // 4, 0]
    )}  # fmt: skip
    made, _ = watched(paced(usage=usage, threads=2), vcpus=2)
    assert phase_of(made)["accesses"] == 1_024 + 10_000 + 2_500 + 0


def test_who_is_late_goes_on_at_once() -> None:
    """1 M accesses a second of 4 us each take four times as long: busy all the time, none lost."""
    made = small.simulate(small.scenario({"vm": small.guest(
        paced(allocate=4 * MIB, duration=10 * MS, cycles_per_access=8_000)
    )}))  # fmt: skip
    phase = phase_of(made)
    assert phase["accesses"] == 10_000
    busy = 10_000 * 8_000 * 1_000_000 // made.host.cpu.frequency_khz
    took = phase["end_ns"] - phase["start_ns"]
    assert phase["ideal_ns"] == busy
    assert took == phase["elapsed_ns"] > busy
    assert phase["late_ns"] == took - 10 * MS


def test_guests_do_not_begin_their_intervals_at_one_moment() -> None:
    """Eight on one core, each busy for 1 of 100 ms: together they would wait for 3.5 of the
    others in the mean; spread, one meets another seldom."""
    work = paced(allocate=None, duration=S, access_rate=10_000, interval=100 * MS,
                 cycles_per_access=2_000, name="run")
    made = small.simulate(small.scenario(
        {"vm": small.guest(small.phase(allocate=4 * MIB, accesses=20_000, measure=False), work,
                           count=8)},
        host={"cores": 1}, sample_interval=100 * MS,
    ))  # fmt: skip
    phases = [guest["phases"][1] for guest in small.summary_of(made)["guests"]]
    assert {phase["accesses"] for phase in phases} == {10_000}
    waited = sum(phase["parts"]["core_wait_ns"] for phase in phases)
    assert waited < 0.5 * sum(phase["ideal_ns"] for phase in phases)


def test_intervals_lie_on_a_grid_and_end_with_the_step() -> None:
    made = small.simulation(small.scenario({"vm": small.guest(paced(
        allocate=MIB, duration=10 * MS, interval=4 * MS
    ))}))  # fmt: skip
    made.run()
    task = made.tasks[1][0]
    again = PacedPhase(task, task.phases[0], task.records[0])
    cuts = list(again._cuts(Step(0, 10 * MS, MIB, None, FULL)))
    assert (cuts[0], cuts[-1]) == (0, 10 * MS)
    assert {b - a for a, b in pairwise(cuts[1:-1])} == {4 * MS}
    assert 0 < cuts[1] <= 4 * MS
    assert list(again._cuts(Step(cuts[1], cuts[2], MIB, None, FULL))) == cuts[1:3]


# --- generated series -------------------------------------------------------------------


def member(index: int = 0, count: int = 1, class_: str = "vm") -> Member:
    return Member(1, class_, index, count, "heap")


def first(usage: Any, of: Member, number: int, now: int = 0) -> list[Step]:
    return list(islice(steps(usage, of, now), number))


def day(**values: Any) -> DiurnalUsage:
    """A day of four hours: 2 MiB at the least and 10 at the peak, an hour after midnight."""
    base = {"period": 4, "step": 1, "peak_at": 1}
    hours = {key: (values | base)[key] * 3600 * S for key in base} if not values.get("ns") else {}
    values.pop("ns", None)
    return DiurnalUsage.model_validate(
        {"low": 2 * MIB, "high": 10 * MIB, **hours} | {
            key: value for key, value in values.items() if key not in base
        }
    )


def test_a_day_is_a_cosine() -> None:
    """An hour before the peak half of the way, then all of it, half, nothing; activity alike."""
    found = first(day(), member(), 5)
    assert [step.used_bytes // MIB for step in found] == [6, 10, 6, 2, 6]
    assert [step.activity for step in found] == [600_000, FULL, 600_000, 200_000, 600_000]
    assert [step.start_ns for step in found] == [hour * 3600 * S for hour in range(5)]


def test_a_guest_that_comes_later_finds_the_time_of_day() -> None:
    found = first(day(), member(), 2, now=3600 * S * 3 // 2)
    assert found[0] == Step(3600 * S * 3 // 2, 3600 * S * 2, 10 * MIB, None, FULL)
    assert found[1].used_bytes == 6 * MIB


def test_shifted_guests_peak_one_after_the_other() -> None:
    """Two guests, half a period apart: together they use 12 MiB at any time, together in step
    20 at the peak. By hand: 6 + 6, 10 + 2, 6 + 6, 2 + 10."""
    for members, sums in (("same", [12, 20, 12, 4]), ("shifted", [12, 12, 12, 12])):
        usage = day(members=members)
        each = [first(usage, member(index, 2), 4) for index in range(2)]
        assert [
            sum(step.used_bytes for step in row) // MIB for row in zip(*each, strict=True)
        ] == sums


def test_shifts_that_are_no_whole_steps_move_the_steps() -> None:
    """Of eight guests the second is half an hour earlier than the first."""
    found = first(day(members="shifted"), member(1, 8), 3)
    assert [step.end_ns for step in found] == [1800 * S, 5400 * S, 9000 * S]
    assert [step.used_bytes // MIB for step in found] == [6, 10, 6]


def test_independent_guests_have_times_of_their_own_by_their_names() -> None:
    usage = day(members="independent", step=1)
    each = [first(usage, member(index, 3), 8) for index in range(3)]
    assert each[0] != each[1] != each[2]
    assert each[1] == first(usage, member(1, 99), 8)  # whoever else there is
    assert each[1] != first(usage, member(1, 3, "db"), 8)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_noise_has_the_deviation_and_the_correlation_that_were_asked(correlation: float) -> None:
    """Around the middle of the way, where nothing is cut off: a tenth of 8 MiB."""
    usage = DiurnalUsage.model_validate({
        "low": 2 * GIB, "high": 10 * GIB, "period": 4 * S, "step": 2 * S, "peak_at": S,
        "noise": 0.1, "members": "shifted", "correlation": correlation,
    })  # fmt: skip
    drawn = [
        np.array([step.used_bytes for step in first(usage, member(2 * index, 4), 4_000)]) / GIB
        for index in range(2)
    ]
    assert [np.mean(each) for each in drawn] == pytest.approx([6, 6], abs=0.06)
    assert [np.std(each) for each in drawn] == pytest.approx([0.8, 0.8], rel=0.05)
    found = np.corrcoef(drawn[0], drawn[1])[0, 1]
    assert found == pytest.approx(correlation, abs=0.05)


def test_noise_stays_between_low_and_high() -> None:
    usage = day(members="independent").model_copy(update={"noise": 1.0})
    used = [step.used_bytes for step in first(usage, member(), 500)]
    assert min(used) == 2 * MIB
    assert max(used) == 10 * MIB
    assert all(size % PAGE == 0 for size in used)


def bursts(**values: Any) -> BurstyUsage:
    return BurstyUsage.model_validate(
        {"low": 4 * MIB, "high": 8 * MIB, "on": S, "off": 3 * S, **values}
    )


def test_bursts_take_their_share_of_the_time() -> None:
    """A quarter of it: 4,000 cycles of 4 s are within 4 sigma of their means."""
    found = first(bursts(), member(), 8_000)
    on = [step.end_ns - step.start_ns for step in found if step.used_bytes == 8 * MIB]
    off = [step.end_ns - step.start_ns for step in found if step.used_bytes == 4 * MIB]
    assert len(on) == len(off) == 4_000
    assert np.mean(on) == pytest.approx(S, rel=4 / 4_000**0.5)
    assert np.mean(off) == pytest.approx(3 * S, rel=4 / 4_000**0.5)
    assert np.std(on) == pytest.approx(S, rel=0.1)
    assert {step.activity for step in found} == {FULL, FULL // 2}
    assert all(a.end_ns == b.start_ns for a, b in pairwise(found))


def test_members_burst_together_or_by_themselves() -> None:
    same = [first(bursts(), member(index, 2), 20) for index in range(2)]
    assert same[0] == same[1]
    alone = [first(bursts(members="independent"), member(index, 2), 20) for index in range(2)]
    assert alone[0] != alone[1]
    shifted = [first(bursts(members="shifted"), member(index, 2), 20) for index in range(2)]
    assert shifted[0] == same[0]
    ends = [step.end_ns - 2 * S for step in same[0] if step.end_ns > 2 * S]
    assert [step.end_ns for step in shifted[1]][: len(ends)] == ends


def test_a_recorded_series_holds_each_row_until_the_next(tmp_path: Path) -> None:
    usage = RecordedUsage(file=file(tmp_path, [8 * KIB + 5, 40 * KIB], cached_bytes=[0, 9 * KIB]))
    assert list(steps(usage, member(), 7)) == [
        Step(7, 7 + 10 * MS, 8 * KIB, 0, FULL), Step(7 + 10 * MS, 7 + 20 * MS, 40 * KIB,
                                                    8 * KIB, FULL),
    ]  # fmt: skip


def test_guests_of_one_recording_begin_where_their_names_say(tmp_path: Path) -> None:
    """Four steps of 10 ms, and two guests: the second begins with the third step."""
    usage = RecordedUsage(file=file(tmp_path, [n * MIB for n in MIBS]), loop=True)
    shifted = usage.model_copy(update={"members": "shifted"})
    found = [
        [step.used_bytes // MIB for step in first(shifted, member(index, 2), 5, now=7)]
        for index in range(2)
    ]
    assert found == [[8, 16, 4, 12, 8], [4, 12, 8, 16, 4]]
    starts = [step.start_ns for step in first(shifted, member(1, 3), 3, now=7)]
    assert starts == [7, 7 + 20 * MS - 40 * MS // 3, 7 + 30 * MS - 40 * MS // 3]
    alone = usage.model_copy(update={"members": "independent"})
    drawn = [first(alone, member(index, 3), 5) for index in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]


def test_a_region_of_a_pool_grows_and_shrinks_in_its_pages(tmp_path: Path) -> None:
    """7 and 3 MiB in pages of 2 MiB: four of the 16 of the pool, then two."""
    free: list[int] = []

    def look(now: int, _accesses: int, _total: int | None) -> None:
        kernel = made.guests[0].mm.kernel
        if kernel is not None and now % (10 * MS) == 5 * MS:
            free.append(kernel.free_pool_bytes(1) // BLOCK)

    work = paced(usage={"file": file(tmp_path, [7 * MIB, 3 * MIB])}, hugetlb=BLOCK)
    made = Simulation(small.scenario(
        {"vm": small.guest(work, page_size=PAGE, hugetlb={"size_2m": 32 * MIB})},
        sample_interval=5 * MS,
    ), Recorder(), look)  # fmt: skip
    made.run()
    assert free == [12, 14]


def test_generated_guests_run_and_their_peaks_come_apart(tmp_path: Path) -> None:
    """Four guests of 8 and 40 MiB in a short day: shifted, they use less together."""
    usage = {
        "kind": "diurnal", "low": 8 * MIB, "high": 40 * MIB, "period": 40 * MS, "step": 5 * MS,
        "peak_at": 20 * MS,
    }  # fmt: skip
    peaks = {}
    for members in ("same", "shifted"):
        result = small.result(
            {"vm": small.guest(
                paced(usage={**usage, "members": members}, access_rate=100_000), count=4,
                channel={"kind": "passthrough"},
            )},
            duration=40 * MS, sample_interval=MS,
        )  # fmt: skip
        peaks[members] = result.summary["classes"]["vm"]["peaks"]["touched_bytes"]
    other = 4 * (8 * MIB + 2 * MIB)  # struct pages, tables and what is deposited, at most
    assert 4 * 40 * MIB <= peaks["same"] < 4 * 40 * MIB + other
    assert 4 * 24 * MIB <= peaks["shifted"] < 4 * 24 * MIB + other + 4 * 4 * MIB
