"""The validation table: every row within its tolerance, and a row that is wrong says so."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simvm import hardware, validation
from simvm.core_check import load_core
from simvm.errors import UsageError
from simvm.model.fault_arrivals import closed_waits, open_waits
from simvm.validation import gups, laws, misses, scenarios
from simvm.validation.rows import KINDS, Basis, Ranking, Row, basis, headline

KEYS = {
    "target", "published", "simulated", "error", "tolerance", "within", "measure", "source",
    "class", "inputs", "note",
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
        assert row["within"] is True or row["within"] is False
        assert row["inputs"]
        for name in row["inputs"]:
            assert_there_is(name)


def assert_there_is(name: str) -> None:
    """An input that names a parameter or a scenario names one that exists."""
    kind, _, rest = name.partition(".")
    if kind == "costs":
        assert rest in hardware.load_costs().parameters, name
    elif kind == "cpu":
        cpu, _, key = rest.partition(".")
        known = hardware.load_cpu(cpu).parameters
        assert any(other == key or other.startswith(f"{key}.") for other in known), name
    elif kind == "scenario":
        assert rest in scenarios.names(), name


@pytest.mark.parametrize(
    ("check", "number", "key", "wrong"),
    [
        ("walk_loads", 0, "loads", 25),
        ("tlb_entry", 4, "entry", "4KiB"),
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
    assert headline([row]).startswith("0 of ")


def test_a_wrong_law_is_shown_as_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "simvm.validation.tables.table_bytes",
        lambda *mapping: laws.table_bytes(*mapping) + 4096,
    )
    for check, row in (
        ("page_table_bytes", {"leaf": "4KiB", "footprint": "6MiB"}),
        ("format_bytes", {"format": "sv39x4", "leaf": "2MiB", "footprint": "6MiB"}),
    ):
        table = {**validation.published()[check], "measure": "absolute", "rows": [row]}
        rows = validation.run([check], against={check: table})
        assert [row["error"] for row in rows] == [-4096], check
    table = {**validation.published()["page_table_bytes"], "measure": "absolute"}
    table["rows"] = [{"leaf": "4KiB", "footprint": "6MiB"}, {"leaf": "1GiB", "footprint": "1TiB"}]
    rows = validation.run(["page_table_bytes"], against={"page_table_bytes": table})
    assert [row["error"] for row in rows] == [-4096, -4096]
    assert not any(row["within"] for row in rows)


def test_one_miss_more_or_less_is_shown_as_a_miss() -> None:
    table = {**validation.published()["tlb_simulator"], "measure": "absolute"}
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
    relative = Row("t", 200.0, 190.0, Basis("s", "predicted", ("a",), 0.05, "relative"))
    assert relative.error == pytest.approx(-0.05)
    assert relative.within
    absolute = Row("t", 200.0, 190.0, Basis("s", "predicted", ("a",), 0.05, "absolute"))
    assert absolute.error == -10
    assert not absolute.within
    assert not replace(relative, simulated=math.nan).within


def test_tolerances_that_nobody_states_follow_from_the_class() -> None:
    stated = {"source": "s", "inputs": ["a"]}
    found = [basis({**stated, "class": kind}).tolerance for kind in KINDS]
    assert found == [0.0, 0.3, 0.05]
    row = {"class": "calibrated", "inputs": ["b"], "tolerance": 0.1}
    mixed = basis({**stated, "class": "predicted"}, row, inputs=["c", "b"], source="t")
    assert mixed == Basis("s; t", "calibrated", ("b", "c"), 0.1, "relative")


def test_an_order_counts_the_pairs_that_stand_otherwise() -> None:
    stands_on = basis({"source": "s", "class": "predicted", "inputs": ["a"]})
    right = Ranking("t", ("a", "b", "c"), {"a": 3.0, "b": 2.0, "c": 1.0}, stands_on)
    assert (right.error, right.within) == (0, True)
    assert right.as_dict()["published"] == right.as_dict()["simulated"] == "a > b > c"
    assert right.as_dict()["tolerance"] == "direction"
    swapped = replace(right, simulated={"a": 3.0, "b": 1.0, "c": 2.0})
    assert (swapped.error, swapped.within) == (1, False)
    assert swapped.as_dict()["simulated"] == "a > c > b"
    equal = replace(right, simulated={"a": 2.0, "b": 2.0, "c": 1.0})
    assert (equal.error, equal.within) == (1, False)
    assert equal.as_dict()["simulated"] == "a = b > c"


def test_the_headline_is_of_predicted_rows_alone() -> None:
    rows = [
        {"class": kind, "within": within}
        for kind, within in (
            ("identity", True), ("predicted", True), ("predicted", False), ("calibrated", False),
        )
    ]  # fmt: skip
    assert headline(rows).startswith("1 of 2 predicted rows are within")
    assert headline(rows).endswith("(beside them 1 of 1 identity, 0 of 1 calibrated)")


@pytest.mark.parametrize("name", scenarios.names())
def test_the_scenarios_of_the_table_have_no_mistakes(name: str) -> None:
    found = scenarios.scenario(name)
    assert found.scenario.name == name
    assert found.scenario.question


def test_a_scenario_that_several_rows_ask_for_runs_once() -> None:
    sets = ["guest.vm.workload.allocate.accesses=1k"]
    result = scenarios.run("zeroing_once", "thp_once", sets)
    assert result.summary["host"]["totals"]["accesses"] == 1000
    assert scenarios.run("zeroing_once", "thp_once", sets) is result
    assert scenarios.run("zeroing_once", None, sets) is not result


def test_a_fault_takes_what_its_costs_say() -> None:
    """The rows are calibrated, so that they are right says little; that they are off by more than
    the zone lock and the guest's own faults (1 %) would say that faults are charged wrongly."""
    rows = validation.run(["backing_time"])
    assert [row["class"] for row in rows] == ["calibrated", "calibrated"]
    assert all(0 <= row["error"] < 0.01 for row in rows)


def test_a_guest_that_does_not_zero_again_saves_the_zeroing() -> None:
    """2 GiB at the 7.95 GB/s at which the CPU zeroes a page are 270 ms, and no more is saved."""
    zeroing = hardware.load_cpu("icelake_sp").zeroing_bytes_per_s
    for twice, once in ((None, "thp_once"), ("huge", "huge_once"), ("giant", "giant_once")):
        times = [
            scenarios.run("zeroing_once", variant).summary["guests"][0]["phases"][0]["elapsed_ns"]
            for variant in (twice, once)
        ]
        assert times[0] - times[1] == pytest.approx((2 << 30) * 1e9 / zeroing, rel=0.001)


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


def test_the_figures_that_were_measured_are_all_in_the_table() -> None:
    """Read from the publications a second time, in the order of their figures."""
    tables = validation.published()

    def column(check: str, key: str, **chosen: Any) -> list[Any]:
        return [
            row[key] for row in tables[check]["rows"]
            if key in row and all(row.get(name) == value for name, value in chosen.items())
        ]  # fmt: skip

    userfaultfd = column("demand_fault_scaling", "kpages_per_s", path="one_userfaultfd")
    assert userfaultfd == [150, 210, 130, 86, 36]
    exits = column("demand_fault_scaling", "kpages_per_s", path="exit_to_userspace")
    assert exits == [340, 809, 1595, 3482, 4012]
    for path in ("one_userfaultfd", "exit_to_userspace"):
        assert column("demand_fault_scaling", "vcpus", path=path) == [1, 4, 16, 64, 256]
        fitted = column("demand_fault_scaling", "vcpus", path=path, **{"class": "calibrated"})
        assert fitted == [1, 64]
    assert sorted(column("resize", "gib_per_s")) == [0.951, 34.5, 136.2, 344.8]
    silent = column("write_free_staggered", "value", variant=None)
    reporting = column("write_free_staggered", "value", variant="free_page_reporting")
    assert silent == [25.84, 23.41]
    assert reporting == [16.10, 11.76, 1024, 640, 512, 22, 2.15]
    assert column("backing_time", "us") == [3.71, 345]
    assert column("cache_laws", "hits")[:4] == [0.4348, 0.5144, 0.7325, 0.3380]
    for policy in ("fifo", "random"):
        hits = column("replacement_laws", "hits", policy=policy)
        assert hits[:4] == [0.4005, 0.4696, 0.6904, 0.2914]
    assert column("fault_queue", "wait_us")[:2] == [1.272, 7.217]


def test_every_check_has_its_table() -> None:
    assert list(validation.published()) == list(validation.CHECKS)


def test_waits_of_faults_counted_by_hand() -> None:
    faults = [(10, 5), (1, 5), (1, 5), (100, 5)]  # arrive at 10, 11, 12 and 112
    assert open_waits(faults, 1) == [0, 4, 8, 0]
    assert open_waits(faults, 2) == [0, 0, 3, 0]
    assert closed_waits([[(10, 5), (1, 5)], [(12, 5)]], 1) == [0, 3, 4]
