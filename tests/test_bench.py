"""`simvm bench`: the shape of what it says and that its figures agree with each other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from simvm import bench
from simvm.bench import memory, throughput
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
    assert set(data) == {"cases"}
    names = [(case["stream"], case["config"]) for case in data["cases"]]
    assert names == [("uniform", "nested 1G+2M"), ("trace", "native 4K")]
    for case in data["cases"]:
        assert case["accesses"] == 20_000
        assert case["accesses_per_s"] > 0
        assert case["read_per_s"] > 0
        assert case["vs_read"] == pytest.approx(case["accesses_per_s"] / case["read_per_s"])
        assert 0 <= case["tlb_misses_per_access"] <= 1
    assert told == sorted(told)
    assert len(told) == 2 + 2 * 3


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
    console = Console(width=120, color_system=None)
    with console.capture() as text:
        console.print(bench.tables(data))
    shown = text.get()
    assert all(case["config"] in shown for case in data["cases"])
    assert "26 B" in shown
