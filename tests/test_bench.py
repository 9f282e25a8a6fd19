"""`simvm bench`: the shape of what it says and that its figures agree with each other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from simvm import bench, runner
from simvm.bench import memory, peers, scale, throughput
from simvm.errors import SimulationFailed, UsageError
from simvm.model.clock import Clock
from simvm.scenario import resolve
from simvm.workload.patterns import make_stream


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "FOOTPRINT", 128 << 20)


def test_cases_and_their_ratios() -> None:
    told: list[int] = []
    data = bench.run(
        cases=["uniform/nested 1G+2M", "trace/native 4K"],
        progress=lambda _, done, steps: told.append(done * 100 // steps),
        rounds=3,
        accesses=20_000,
    )
    assert json.loads(json.dumps(data)) == data
    assert set(data) == {"cases", "peers"}
    names = [(case["stream"], case["config"]) for case in data["cases"]]
    assert names == [("uniform", "nested 1G+2M"), ("trace", "native 4K")]
    for case in data["cases"]:
        assert case["accesses"] == 20_000
        assert case["accesses_per_s"] > 0
        assert case["read_per_s"] > 0
        for name in ("libcachesim", "pycachesim"):
            known = data["peers"][name] is not None
            assert (case[f"vs_{name}"] is not None) == known
            assert (case[f"{name}_per_s"] is not None) == known
        assert case["vs_read"] > 0
        assert 0 <= case["tlb_misses_per_access"] <= 1
    assert told == sorted(told)
    assert len(told) == 2 + 2 * 3


def test_one_round_is_one_ratio() -> None:
    (case,) = bench.run(cases=["hot/native 4K"], rounds=1, accesses=20_000)["cases"]
    for name in ("libcachesim", "pycachesim", "read"):
        if case[f"vs_{name}"] is not None:
            quotient = case["accesses_per_s"] / case[f"{name}_per_s"]
            assert case[f"vs_{name}"] == pytest.approx(quotient, rel=1e-3)


def test_the_ratio_is_that_of_neighbours() -> None:
    runner = object.__new__(throughput._Runner)
    runner._accesses = np.zeros(100, np.uint64)
    # The machine halves its speed in the second round: no ratio moves, both speeds do.
    runner._run_s, runner._beside_s = [1.0, 2.0, 2.0], {"read": [3.0, 6.0, 6.0]}
    assert runner._against("read") == (17, 3.0)
    assert runner._against("libcachesim") == (None, None)


@pytest.mark.parametrize("peer", peers.PEERS)
def test_peers_see_the_same_pages(peer: type[peers.Peer], tmp_path: Path) -> None:
    if not peers.installed(peer):
        pytest.skip(f"{peer.name} is not installed")
    pages = np.arange(1024, dtype=np.uint64)
    fits = peer(np.tile(pages << np.uint64(13) | np.uint64(1), 3), tmp_path)
    assert fits.run() > 0
    assert fits.misses == 1024
    fits.run()
    assert fits.misses == 0  # it keeps what it holds
    over = peer(np.tile(np.arange(1537, dtype=np.uint64) << np.uint64(13), 2), tmp_path)
    over.run()
    # A cycle is the worst case of LRU: of all 1,536 entries, or of one set's 12.
    assert over.misses == (2 * 1537 if peer is peers.LibCacheSim else 1537 + 13)


def test_a_missing_peer_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.LibCacheSim, "module", "no_such_module")
    data = bench.run(cases=["hot/native 4K"], rounds=1, accesses=1000)
    assert data["cases"][0]["vs_libcachesim"] is None
    assert data["peers"]["libcachesim"] is None
    assert "libcachesim is not installed: pip install 'simvm[bench]'" in printed(data)


def printed(data: dict[str, Any]) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as text:
        console.print(bench.tables(data))
    return text.get()


def test_streams_reach_as_far_as_they_say() -> None:
    data = bench.run(cases=["native 4K"], rounds=1, accesses=50_000)
    misses = {case["stream"]: case["tlb_misses_per_access"] for case in data["cases"]}
    assert list(misses) == ["hot", "stlb", "zipf", "uniform", "trace"]
    assert misses["hot"] == misses["stlb"] == 0  # after the first run both fit in a TLB
    assert 0 < misses["zipf"] < misses["uniform"]


def test_a_name_chooses_a_stream_a_config_or_one_case() -> None:
    assert len(throughput.choose([])) == 25
    assert throughput.choose(["hot"]) == [("hot", config) for config in throughput.CONFIGS]
    assert throughput.choose(["zipf/native 4K", "hot/nested 2M+2M"]) == [
        ("hot", "nested 2M+2M"),
        ("zipf", "native 4K"),
    ]


def test_the_trace_is_as_long_as_asked() -> None:
    assert len(throughput._trace(1_500_000)) == 1_500_000  # more than one chunk


@pytest.mark.parametrize(
    ("only", "cases", "why"),
    [
        (None, ["zipg"], "'zipf'"),
        ("cores", None, "'core'"),
        ("memory", ["hot"], "--only memory"),
        ("scale", ["hott"], "'hot'"),
        ("core", ["scale"], "no case"),
    ],
)
def test_what_makes_no_sense_is_refused(
    only: str | None, cases: list[str] | None, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        bench.run(only, cases)


def test_memory_grows_with_what_is_backed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = memory.measure(None)
    assert set(measured) == {
        "bytes_per_backed_4k_page", "bytes_per_backed_2m_page",
        "peak_bytes_per_backed_gib_at_4k", "peak_bytes_per_backed_gib_at_2m",
    }  # fmt: skip
    # An entry of 8 bytes, a word about the owner, and some bits; far from one page for one.
    assert 10 < measured["bytes_per_backed_4k_page"] < 100
    assert 20 < measured["bytes_per_backed_2m_page"] < 1000
    # What grows to a peak on the way is at least what stays, and no other multiple of it.
    for size, pages in (("4k", 1 << 18), ("2m", 1 << 9)):
        stays = measured[f"bytes_per_backed_{size}_page"] * pages
        assert 0.99 * stays < measured[f"peak_bytes_per_backed_gib_at_{size}"] < 3 * stays
    monkeypatch.setattr(memory, "_in_child", lambda order: (3000, 4096, 100))
    assert bench.run("memory") == {
        "memory": {
            "bytes_per_backed_4k_page": 30.0, "bytes_per_backed_2m_page": 30.0,
            "peak_bytes_per_backed_gib_at_4k": 4096 / 100 * (1 << 18),
            "peak_bytes_per_backed_gib_at_2m": 4096 / 100 * (1 << 9),
        }
    }  # fmt: skip


def test_memory_is_shared_out_over_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FOOTPRINTS", (1 << 30, 2 << 30))
    for order, pages in ((0, 1 << 18), (1, 1 << 10)):
        grown, peak, backed = memory._grow(order)
        assert pages < backed < pages + 8  # and the guest's tables
        assert grown < 100 * pages + (1 << 20)
        assert peak >= grown


def test_a_child_that_fails_is_reported() -> None:
    with pytest.raises(SimulationFailed, match="IndexError"):
        memory._in_child(7)


SMALL = (
    "guest.vm.count=2", "guest.vm.workload.access.accesses=50k",
    "guest.vm.workload.fill.allocate=64MiB", "guest.vm.workload.fill.accesses=16384",
)  # fmt: skip


def test_scale_runs_each_case_in_a_child() -> None:
    told: list[tuple[str, int]] = []
    cases = scale.measure(
        lambda what, done, _: told.append((what, done)), rounds=2, sets=SMALL
    )
    assert json.loads(json.dumps(cases)) == cases
    steps = [f"round {number}: scenario {case}" for number in (1, 2) for case in ("uniform", "hot")]
    assert told == [
        (f"{step}{news}", done)
        for done, step in enumerate(steps) for news in ("", ", 0 ns simulated")
    ]  # fmt: skip
    assert [case["case"] for case in cases] == ["uniform", "hot"]
    for case in cases:
        assert case["guests"] == 2
        assert case["accesses"] == pytest.approx(2 * (50_000 + 16_384), rel=0.5)  # and the kernel's
        assert case["simulated_s"] > 0
        assert case["events"] > 0
        assert case["accesses_per_s"] > 0
        # Both backed the heaps and their tables, and nothing else: 2 x 16,384 pages and a few.
        pages = (case["rss_limit_bytes"] - (200 << 20)) / 16
        assert 2 * 16_384 < pages < 2 * 16_384 * 1.1 + 20_000
        assert 30 << 20 < case["peak_rss_bytes"] < 400 << 20


def test_a_long_case_runs_once_and_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run: a child that says which case it is."""
    day = scale.Case(scale.FILE, sets=("guest.vm.count=9",), long=True)
    monkeypatch.setattr(scale, "CASES", {
        **{name: case for name, case in scale.CASES.items() if not case.long}, "day": day,
    })  # fmt: skip
    ran: list[str] = []

    def child(_: str, case: str, *sets: str, told: Any) -> dict[str, Any]:
        ran.append(case)
        return {**dict.fromkeys(scale._MEDIANS, 1.0), "case": case, "peak_rss_bytes": 1}

    monkeypatch.setattr(scale, "run_module", child)
    monkeypatch.setattr(memory, "measure", lambda _: {})
    monkeypatch.setattr(throughput, "measure", lambda *_: [])
    for only, cases, expected in (
        (None, None, ["uniform", "hot"] * 3),
        ("scale", None, ["uniform", "hot", "day", "uniform", "hot", "uniform", "hot"]),
        ("scale", ["hot"], ["hot"] * 3),
        (None, ["day"], ["day"]),
        (None, ["hot"], []),    # the stream of the core
    ):
        ran.clear()
        data = bench.run(only, cases)
        assert ran == expected, (only, cases)
        assert [each["case"] for each in data.get("scale", [])] == list(dict.fromkeys(expected))
    assert set(bench.run(None, ["day", "native 4K"])) == {"scale", "cases", "peers"}


def test_the_values_of_a_case_are_those_of_its_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    three = scale.Case(scale.FILE, "hot", ("guest.vm.count=3",))
    monkeypatch.setitem(scale.CASES, "three", three)
    monkeypatch.setattr(scale, "_bare_simpy", lambda _: 1.0)
    found = scale._measure_one("three", SMALL[1:])
    assert found["guests"] == 3
    assert capsys.readouterr().out == "# , 0 ns simulated\n"


def test_the_bare_core_runs_the_streams_of_the_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    small = resolve(scale.FILE, SMALL, "hot")
    streams: list[Any] = []

    def noted(*given: Any) -> Any:
        streams.append(make_stream(*given))
        return streams[-1]

    monkeypatch.setattr(scale, "make_stream", noted)
    assert scale._bare_core(small) > 0
    assert len(streams) == 4
    for index, guest in enumerate(runner.run(small).summary["guests"]):
        seen = hashlib.sha256()
        for phase, (stream, _) in zip(("fill", "access"), streams[2 * index :], strict=False):
            seen.update(f"vm.{index}/{phase}/0/0={stream.digest:016x};".encode())
        assert seen.hexdigest() == guest["stream_digest"]


def test_scale_takes_medians_and_the_largest_peak() -> None:
    runs = [
        {**dict.fromkeys(scale._MEDIANS, value), "case": "hot", "peak_rss_bytes": peak}
        for value, peak in ((1.0, 7), (2.0, 9), (9.0, 8))
    ]
    together = scale._together(runs)
    assert together == {**dict.fromkeys(scale._MEDIANS, 2.0), "case": "hot", "peak_rss_bytes": 9}


def test_the_limit_counts_backed_pages() -> None:
    guest = {"peaks": {"backed_4k_bytes": 3 << 12, "backed_2m_bytes": 5 << 21}}
    assert scale._limit([guest, guest]) == (200 << 20) + 2 * (3 * 16 + 5 * 256)


def test_bare_simpy_counts_its_events() -> None:
    env = Clock()
    env.timeout(1)
    env.timeout(2)
    assert (env.events, env.events) == (2, 2)
    env.timeout(3)
    assert env.events == 3
    assert scale._bare_simpy(4) > 1000


def test_tables_show_every_case() -> None:
    data: dict[str, Any] = bench.run(cases=["hot"], rounds=1, accesses=1000)
    data["memory"] = {"bytes_per_backed_4k_page": 25.5}
    data["scale"] = [{
        **dict.fromkeys(scale._MEDIANS, 0.5), "case": "uniform", "guests": 4, "simulated_s": 1.5,
        "peak_rss_bytes": 150 << 20, "rss_limit_bytes": 201 << 20,
    }]  # fmt: skip
    shown = printed(data)
    assert all(case["config"] in shown for case in data["cases"])
    assert "26 B" in shown
    assert "uniform" in shown
    assert "50%" in shown
    assert "201 MiB" in shown
    assert all(len(line) <= 120 for line in shown.splitlines())
