"""What a scenario must not say about paced phases, and about series of memory use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_scenario_check import mistakes, only, only_one_says

from simvm import scenario
from simvm.errors import InvalidInput
from simvm.workload import usage as files
from simvm.workload.usage import FULL, describe, open_usage, write_usage

MIB, GIB = 1 << 20, 1 << 30
DAY = 'usage = { kind = "diurnal", low = "1GiB", high = "2GiB" }'
BURSTS = 'usage = { kind = "bursty", low = "1GiB", high = "2GiB", on = "30m", off = "2h" }'
PACED = """
[[guest.g.workload]]
region = "heap"
pattern = { kind = "uniform" }
access_rate = "1M"
"""


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """A file of 10 s, of 1 and 2 GiB, with a cache of 512 MiB at the most."""
    write_usage(tmp_path / "vm.usage.parquet", {
        "time_ns": np.array([0, 5_000_000_000]), "used_bytes": np.array([GIB, 2 * GIB]),
        "cached_bytes": np.array([256 * MIB, 512 * MIB]),
    }, {})  # fmt: skip
    return 'usage = { file = "vm.usage.parquet" }'


def paced(*lines: str) -> str:
    return PACED + "\n".join(lines) + "\n"


@pytest.mark.parametrize("lines", [
    ('allocate = "1GiB"', 'duration = "10s"'),
    ('allocate = "1GiB"', 'duration = "10s"', 'interval = "10ms"'),
    (DAY, 'duration = "24h"'), (BURSTS, 'duration = "24h"', 'free = "all"'),
    (DAY, 'duration = "24h"', 'free = "all"', "repeat = 2"),
])  # fmt: skip
def test_good_ones_have_none(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert mistakes(tmp_path, phases=paced(*lines)) == []


def test_a_recorded_series_is_found_beside_the_scenario(tmp_path: Path, recorded: str) -> None:
    guest = 'page_cache = { files = "512MiB", read_rate = "10MiB" }'
    assert mistakes(tmp_path, guest=guest, phases=paced(recorded)) == []
    made = scenario.load(tmp_path / "a.toml")
    usage = made.guests["g"].workload[0].usage
    assert usage is not None
    assert usage.kind == "recorded"
    assert Path(usage.file) == tmp_path / "vm.usage.parquet"
    (tmp_path / "below").mkdir()
    again = tmp_path / "below" / "again.toml"
    again.write_text(scenario.to_toml(made, again.parent))
    assert "../vm.usage.parquet" in again.read_text()
    assert scenario.load(again) == made
    before = scenario.digest(made)
    assert before == scenario.digest(scenario.load(again))
    write_usage(tmp_path / "vm.usage.parquet", {
        "time_ns": np.array([0, 5_000_000_000]), "used_bytes": np.array([GIB, GIB]),
    }, {})  # fmt: skip
    assert before != scenario.digest(made)


@pytest.mark.parametrize(("lines", "key", "rule", "fix"), [
    (('allocate = "1GiB"',), "duration", "for ever", "60s"),
    (('allocate = "1GiB"', 'duration = "1s"', "accesses = 5"), "accesses", "access_rate", "remove"),
    (('allocate = "1GiB"', 'duration = "1s"', "rate = 5"), "rate", "access_rate", "remove"),
    (('allocate = "1GiB"', 'duration = "1s"', 'think_time = "1us"'), "think_time", "by the clock",
     "remove"),
    ((DAY,), "duration", "no end", "24h"),
    ((BURSTS,), "duration", "no end", "24h"),
    ((DAY, 'duration = "1s"', 'allocate = "1GiB"'), "allocate", "how large", "remove"),
    ((DAY, 'duration = "1s"', 'free = "1GiB"'), "free", "whole or not at all", "all"),
    ((DAY, 'duration = "1s"', "repeat = 2"), "repeat", "must free all", "all"),
    ((DAY.replace("1GiB", "3GiB"), 'duration = "1s"'), "usage.low", "exceed high", "2GiB"),
    ((DAY.replace(" }", ', step = "25h" }'), 'duration = "1s"'), "usage.step", "the period", "1d"),
    ((DAY.replace(" }", ", correlation = 0.5 }"), 'duration = "1s"'), "usage.correlation",
     "noise", "add noise"),
    ((DAY.replace(" }", ', members = "random" }'), 'duration = "1s"'), "usage.members",
     "same, shifted, independent", "one of"),
    ((DAY.replace('low = "1GiB", ', ""), 'duration = "1s"'), "usage.low", "required", "add"),
    ((DAY.replace("2GiB", "5GiB"), 'duration = "1s"'), "allocate", "left for them", "memory"),
    (('usage = { kind = "weekly" }', 'duration = "1s"'), "usage.kind", "recorded, diurnal, bursty",
     "one of"),
    (('usage = { file = "none.parquet" }',), "usage.file", "readable", "path"),
    ((DAY.replace("diurnal", "recorded"),), "usage.file", "required", "add"),
])  # fmt: skip
def test_each_rule_names_its_key(
    tmp_path: Path, lines: tuple[str, ...], key: str, rule: str, fix: str
) -> None:
    found = [m for m in mistakes(tmp_path, phases=paced(*lines))
             if m.key == f"guest.g.workload.heap.{key}"]  # fmt: skip
    assert found, mistakes(tmp_path, phases=paced(*lines))
    assert rule in found[0].rule
    assert fix in found[0].fix


def test_mistakes_come_all_at_once(tmp_path: Path) -> None:
    broken = paced(DAY.replace("1GiB", "3GiB"), 'think_time = "1us"', "accesses = 5")
    keys = {mistake.key.rpartition("heap.")[2] for mistake in mistakes(tmp_path, phases=broken)}
    assert keys == {"usage.low", "think_time", "accesses", "duration"}


def test_a_pattern_and_a_rate_belong_together(tmp_path: Path) -> None:
    work = paced(DAY, 'duration = "1s"').replace('access_rate = "1M"\n', "")
    only_one_says(mistakes(tmp_path, phases=work), "guest.g.workload.heap.access_rate", "required",
                  "2M")  # fmt: skip
    work = paced(DAY, 'duration = "1s"').replace('pattern = { kind = "uniform" }\n', "")
    assert only(mistakes(tmp_path, phases=work)).key == "guest.g.workload.heap.pattern"
    assert mistakes(tmp_path, phases=work.replace('access_rate = "1M"\n', "")) == []
    work = paced('interval = "1ms"', 'allocate = "1GiB"', "accesses = 5").replace(
        'access_rate = "1M"\n', ""
    )
    assert only(mistakes(tmp_path, phases=work)).key == "guest.g.workload.heap.interval"


def test_a_pattern_must_fit_the_least_that_is_used(tmp_path: Path) -> None:
    work = paced(DAY.replace("1GiB", "4KiB"), 'duration = "1s"').replace(
        '"uniform"', '"hot_cold", hot_fraction = 0.1, hot_share = 0.9'
    )
    only_one_says(mistakes(tmp_path, phases=work), "guest.g.workload.heap.pattern.kind",
                  "two pages", "8KiB")  # fmt: skip


def test_no_other_phase_uses_a_region_that_follows_a_series(tmp_path: Path) -> None:
    work = paced(DAY, 'duration = "1s"')
    more = '[[guest.g.workload]]\nregion = "heap"\npattern = { kind = "uniform" }\naccesses = 5\n'
    only_one_says(mistakes(tmp_path, phases=work + more), "guest.g.workload.heap-2.region",
                  "follows the series of heap", "all")  # fmt: skip
    work = paced(DAY, 'duration = "1s"', 'free = "all"')
    assert mistakes(tmp_path, phases=work + more + 'allocate = "1GiB"\n') == []


def test_a_recorded_cache_needs_one_in_the_guest(tmp_path: Path, recorded: str) -> None:
    key = "guest.g.workload.heap.usage.cached"
    only_one_says(mistakes(tmp_path, phases=paced(recorded)), key, "has no page_cache", "512MiB")
    small = 'page_cache = { files = "256MiB", read_rate = "10MiB" }'
    only_one_says(mistakes(tmp_path, guest=small, phases=paced(recorded)), key, "512 MiB",
                  "512MiB")  # fmt: skip
    only_one_says(mistakes(tmp_path, guest='virtualization = "none"', phases=paced(recorded)), key,
                  "container", "cached = false")  # fmt: skip
    apart = recorded.replace(" }", ', cached = false, members = "shifted" }')
    only_one_says(mistakes(tmp_path, phases=paced(apart)), key.replace("cached", "members"),
                  "goes round", "loop = true")  # fmt: skip
    apart = apart.replace(" }", ", loop = true }")
    assert mistakes(tmp_path, phases=paced(apart, 'duration = "1h"')) == []
    without = recorded.replace(" }", ", cached = false }")
    assert mistakes(tmp_path, phases=paced(without)) == []


def test_settings_and_variants_reach_a_series(tmp_path: Path) -> None:
    rest = '[variant.apart]\n"guest.g.workload.heap.usage.members" = "shifted"\n'
    phases = paced(DAY, 'duration = "1s"')
    sets = ('guest.g.workload.heap.usage.high=3GiB',)
    assert mistakes(tmp_path, phases=phases, rest=rest, sets=sets) == []
    made = scenario.variants(tmp_path / "a.toml", sets)
    found = [each.guests["g"].workload[0].usage for each in made.values()]
    assert [(usage.kind, usage.members, usage.high) for usage in found  # type: ignore[union-attr]
            ] == [("diurnal", "same", 3 * GIB), ("diurnal", "shifted", 3 * GIB)]


# --- files ------------------------------------------------------------------------------


def table(**columns: object) -> pa.Table:
    return pa.table({"time_ns": [0, 10, 20], "used_bytes": [1, 2, 3], **columns})


@pytest.mark.parametrize(("found", "key", "rule"), [
    (table().drop_columns(["used_bytes"]), "used_bytes", "with the columns"),
    (table(time_ns=[0, 10, 10]), "time_ns", "ascend"),
    (table(time_ns=[0, 10, 5]), "time_ns", "ascend"),
    (table(used_bytes=[1, -2, 3]), "used_bytes", "0 to"),
    (table(used_bytes=[1, 2, 1 << 60]), "used_bytes", "0 to"),
    (table(used_bytes=[1.5, 2, 3]), "used_bytes", "integers"),
    (table(used_bytes=[1, None, 3]), "used_bytes", "no nulls"),
    (table(used_bytes=pa.array([1, 2, 1 << 63], pa.uint64())), "", "damaged"),
    (table(activity=[0.5, float("nan"), 1]), "activity", "0 to 1"),
    (table(activity=[0.5, 2.0, 1]), "activity", "0 to 1"),
    (table(activity=["a", "b", "c"]), "activity", "numbers"),
    (table().slice(0, 1), "rows", "2 to"),
    (table(time_ns=[-(1 << 62), 0, 1 << 62]), "time_ns", "36 years"),
])  # fmt: skip
def test_a_file_must_be_a_series(tmp_path: Path, found: pa.Table, key: str, rule: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(found, path)
    with pytest.raises(InvalidInput) as caught:
        open_usage(path)
    assert caught.value.mistakes[0].key == key
    assert rule in caught.value.mistakes[0].rule
    assert caught.value.mistakes[0].fix


def test_any_program_may_write_one(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table(time_ns=[100, 110, 130], activity=[0.5, 1.0, 0.0], more=["a"] * 3), path)
    series = open_usage(path)
    assert series.time_ns.tolist() == [0, 10, 30]
    assert series.span_ns == 50
    assert series.activity is not None
    assert series.activity.tolist() == [FULL // 2, FULL, 0]
    # 10 of 1, 20 of 2 and 20 of 3 in 50.
    assert describe(series) == {
        "rows": 3, "span_ns": 50, "step_ns": 10, "used_bytes_min": 1, "used_bytes_mean": 2,
        "used_bytes_max": 3, "activity_min": 0.0, "activity_mean": 0.5, "activity_max": 1.0,
        "gaps": 0,
    }  # fmt: skip


@pytest.mark.parametrize("cut", [0, 3, 20, 200, -1, -5])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InvalidInput):
        open_usage(path)


def test_pages_that_unpack_to_too_much_are_refused(tmp_path: Path) -> None:
    """A dictionary of 1 MiB for a column of three rows."""
    path = tmp_path / "x.parquet"
    pq.write_table(table(), path)
    before = files.page_sizes
    try:
        files.page_sizes = lambda raw, column: iter([1 << 20])  # type: ignore[assignment]
        with pytest.raises(InvalidInput, match="pages that unpack"):
            open_usage(path)
    finally:
        files.page_sizes = before
