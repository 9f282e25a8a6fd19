"""`simvm bench`: the shape of what it says and that its figures agree with each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from simvm import bench
from simvm.bench import memory, peers, throughput
from simvm.errors import SimulationFailed, UsageError


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
        ("memory", ["hot"], "--case"),
    ],
)
def test_what_makes_no_sense_is_refused(
    only: str | None, cases: list[str] | None, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        bench.run(only, cases)


def test_memory_grows_with_what_is_backed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {name: memory._in_child(order) for name, order in memory._MEASURES}
    assert set(measured) == {"bytes_per_backed_4k_page", "bytes_per_backed_2m_page"}
    # An entry of 8 bytes, a word about the owner, and some bits; far from one page for one.
    assert 10 < measured["bytes_per_backed_4k_page"] < 100
    assert 20 < measured["bytes_per_backed_2m_page"] < 1000
    monkeypatch.setattr(memory, "_in_child", lambda order: 10.0 + order)
    data = bench.run("memory")
    assert data == {
        "memory": {"bytes_per_backed_4k_page": 10.0, "bytes_per_backed_2m_page": 11.0}
    }


def test_memory_is_shared_out_over_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FOOTPRINTS", (1 << 30, 2 << 30))
    for order, pages in ((0, 1 << 18), (1, 1 << 10)):
        grown, backed = memory._grow(order)
        assert pages < backed < pages + 8  # and the guest's tables
        assert grown < 100 * pages + (1 << 20)


def test_a_child_that_fails_is_reported() -> None:
    with pytest.raises(SimulationFailed, match="IndexError"):
        memory._in_child(7)


def test_tables_show_every_case() -> None:
    data: dict[str, Any] = bench.run(cases=["hot"], rounds=1, accesses=1000)
    data["memory"] = {"bytes_per_backed_4k_page": 25.5}
    shown = printed(data)
    assert all(case["config"] in shown for case in data["cases"])
    assert "26 B" in shown
