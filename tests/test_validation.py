"""The validation table: every row within its tolerance, and a row that is wrong says so."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from simvm import hardware, validation
from simvm.core_check import load_core
from simvm.errors import UsageError
from simvm.model.fault_arrivals import closed_waits, open_waits
from simvm.validation import gups, laws, misses
from simvm.validation.rows import Row

KEYS = {
    "target", "published", "simulated", "error", "tolerance", "within", "measure", "source",
    "class", "note",
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("check", validation.CHECKS)
def test_every_row_is_within_its_tolerance(check: str, full_size: bool) -> None:
    rows = validation.run([check], full=full_size)
    assert len(rows) >= len(validation.published()[check]["rows"])
    missed = [
        f"{row['target']}: {row['simulated']} against {row['published']}"
        for row in rows
        if not (row["within"] or row["note"])
    ]
    assert missed == []
    for row in rows:
        assert set(row) == KEYS
        assert row["source"]
        assert row["class"] in ("identity", "calibrated", "predicted")
        assert row["tolerance"] == 0 or row["class"] != "identity"


@pytest.mark.parametrize(
    ("check", "number", "key", "wrong"),
    [
        ("walk_loads", 0, "loads", 25),
        ("tlb_entry", 3, "entry", "4KiB"),
        ("format_loads", 0, "loads", 24),
        ("format_entries", 0, "entry", "4KiB"),
        ("cache_laws", 3, "hits", 0.3380 + 0.0075),
        ("replacement_laws", 3, "hits", 0.3380),
        ("replacement_laws", 8, "hits", 0.3380),
        ("fault_queue", 0, "wait_us", 1.272 * 1.1),
    ],
)
def test_a_wrong_figure_is_shown_as_a_miss(check: str, number: int, key: str, wrong: Any) -> None:
    table = dict(validation.published()[check])
    table["rows"] = [{**table["rows"][number], key: wrong}]
    (row,) = validation.run([check], full=False, against={check: table})
    assert not row["within"]
    assert abs(row["error"]) > row["tolerance"]


def test_a_wrong_law_is_shown_as_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "simvm.validation.tables.table_bytes",
        lambda *mapping: laws.table_bytes(*mapping) + 4096,
    )
    for check, row in (
        ("page_table_bytes", {"leaf": "4KiB", "footprint": "6MiB"}),
        ("format_bytes", {"format": "sv39x4", "leaf": "2MiB", "footprint": "6MiB"}),
    ):
        rows = validation.run([check], against={check: {"source": "none", "rows": [row]}})
        assert [row["error"] for row in rows] == [-4096], check
    table = dict(validation.published()["page_table_bytes"])
    table["rows"] = [{"leaf": "4KiB", "footprint": "6MiB"}, {"leaf": "1GiB", "footprint": "1TiB"}]
    rows = validation.run(["page_table_bytes"], against={"page_table_bytes": table})
    assert [row["error"] for row in rows] == [-4096, -4096]
    assert not any(row["within"] for row in rows)


def test_one_miss_more_or_less_is_shown_as_a_miss() -> None:
    table = dict(validation.published()["tlb_simulator"])
    table["rows"] = [{**table["rows"][0], "misses": [9_999_368, 9_984_760]}]
    rows = validation.run(["tlb_simulator"], against={"tlb_simulator": table})
    assert [row["error"] for row in rows] == [-1, 1]
    assert not any(row["within"] for row in rows)


@pytest.mark.parametrize(("sets", "ways"), [(1, 3), (4, 4), (128, 12)])
def test_misses_of_a_second_program(sets: int, ways: int) -> None:
    """Two levels of LRU sets as ordered dictionaries, on a stream that hits both."""
    rng = np.random.default_rng(sets)
    stream = (rng.zipf(1.3, 30_000) * 7919) % 5_000
    l1: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(4)]
    l2: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(sets)]
    first = second = 0
    for page in stream.tolist():
        if page not in l1[page % 4]:
            first += 1
            second += page not in l2[page % sets]
            _use(l2[page % sets], page, ways)
        _use(l1[page % 4], page, 2)
    found = misses.misses(load_core(), stream, (8, 2), (sets * ways, ways))
    assert found == (first, second)
    assert 0 < second < first < len(stream)


def _use(held: OrderedDict[int, None], page: int, most: int) -> None:
    """Make the page the last of a set, whose first one goes if there are too many."""
    held[page] = None
    held.move_to_end(page)
    if len(held) > most:
        held.popitem(last=False)


def test_the_entries_for_a_page_size_are_those_of_all_its_arrays() -> None:
    entries = {
        name: tuple(
            gups.second_level_entries(hardware.load_cpu(name).geometry, order)
            for order in (0, 1, 2)
        )
        for name in hardware.names()
    }
    assert entries["icelake_sp"] == (2048, 1024, 1024)  # two banks, both hold 4 KiB
    assert entries["skylake_sp"] == (1536, 1536, 16)
    assert entries["zen4"] == (3072, 3072, 64)


def test_every_cpu_is_in_the_rows_that_are_for_each_cpu() -> None:
    for check in ("set_laws", "gups_1g"):
        targets = [row["target"] for row in validation.run([check], full=False)]
        for name in hardware.names():
            assert any(name in target for target in targets), (check, name)


@pytest.mark.parametrize(("mib", "entries"), [(128, 32), (4096, 32)])
def test_random_walks_follow_from_the_reach_of_the_walk_cache(mib: int, entries: int) -> None:
    """A walk loads the leaf, and the level-2 entry unless its table is among those kept."""
    table = dict(validation.published()["walk_caches"])
    table["rows"] = [
        {"workload": "random", "footprint": f"{mib}MiB", "cpu": "skylake_sp",
         "modes": ["native"], "note": "combined"}
    ]  # fmt: skip
    (row,) = validation.run(["walk_caches"], full=False, against={"walk_caches": table})
    assert row["simulated"] == pytest.approx(1 + (1 - entries / (mib / 2)), abs=0.01)


def test_nested_walks_load_more_than_native_ones() -> None:
    rows = validation.run(["walk_caches"], full=False)
    loads = {row["target"]: row["simulated"] for row in rows}
    for target, nested in loads.items():
        if ", nested, " in target and "with" not in target:
            native = loads[target.replace(", nested, ", ", native, ")]
            assert 1 <= native < nested <= 24, target
    assert all(row["note"] for row in rows)
    assert {row["within"] for row in rows} == {True, False}  # misses are shown as hits are


def test_errors_are_relative_or_absolute() -> None:
    relative = Row("t", 200.0, 190.0, 0.05, "relative", "s", "predicted")
    assert relative.error == pytest.approx(-0.05)
    assert relative.within
    absolute = Row("t", 200.0, 190.0, 0.05, "absolute", "s", "predicted")
    assert absolute.error == -10
    assert not absolute.within
    assert not Row("t", 1.0, math.nan, 1.0, "absolute", "s", "predicted").within


def test_the_same_every_time() -> None:
    names = ["closed_queue"]
    assert validation.run(names, full=False) == validation.run(names, full=False)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    validation.run(
        ["walk_loads", "tlb_entry", "walk_loads"], lambda *step: told.append(step), full=False
    )
    assert told == [("walk_loads", 0, 2), ("tlb_entry", 1, 2), ("", 2, 2)]


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(UsageError, match="'walk_loads'"):
        validation.run(["walk_load"])


def test_every_check_has_its_table() -> None:
    assert list(validation.published()) == list(validation.CHECKS)


def test_waits_of_faults_counted_by_hand() -> None:
    faults = [(10, 5), (1, 5), (1, 5), (100, 5)]  # arrive at 10, 11, 12 and 112
    assert open_waits(faults, 1) == [0, 4, 8, 0]
    assert open_waits(faults, 2) == [0, 0, 3, 0]
    assert closed_waits([[(10, 5), (1, 5)], [(12, 5)]], 1) == [0, 3, 4]
