"""The validation table: every row within its tolerance, and a row that is wrong says so."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simvm import validation
from simvm.errors import UsageError
from simvm.model.fault_arrivals import closed_waits, open_waits
from simvm.validation import laws
from simvm.validation.rows import Row

KEYS = {
    "target", "published", "simulated", "error", "tolerance", "within", "measure", "source",
    "class",
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("check", validation.CHECKS)
def test_every_row_is_within_its_tolerance(check: str, full_size: bool) -> None:
    rows = validation.run([check], full=full_size)
    assert len(rows) >= len(validation.published()[check]["rows"])
    missed = [
        f"{row['target']}: {row['simulated']} against {row['published']}"
        for row in rows
        if not row["within"]
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
        ("cache_laws", 3, "hits", 0.3380 + 0.0075),
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
        lambda footprint, leaf: laws.table_bytes(footprint, leaf) + 4096,
    )
    table = dict(validation.published()["page_table_bytes"])
    table["rows"] = [{"leaf": "4KiB", "footprint": "6MiB"}, {"leaf": "1GiB", "footprint": "1TiB"}]
    rows = validation.run(["page_table_bytes"], against={"page_table_bytes": table})
    assert [row["error"] for row in rows] == [-4096, -4096]
    assert not any(row["within"] for row in rows)


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
