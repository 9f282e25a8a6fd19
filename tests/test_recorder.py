"""The recorder: what it takes, refuses and writes."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from simvm.columns import (
    COLUMN,
    COLUMNS,
    COUNTER_NAMES,
    ELAPSED_PARTS,
    FAULT_STALL_PARTS,
    GAUGE_NAMES,
    KEY_NAMES,
    SCOPES,
    VALUE_NAMES,
    names_at,
)
from simvm.errors import ResultError, SimulationFailed
from simvm.recorder import Recorder
from simvm.timeline import SCHEMA, Timeline, timeline_version


def record(recorder: Recorder, rows: int, start: int = 0) -> None:
    for step in range(start, start + rows):
        recorder.append(step * 10, "host", "", -1, {"free_bytes": 4096 * step, "accesses": step})


def test_column_names_carry_their_unit() -> None:
    for column in COLUMNS:
        if column.kind == "gauge":
            assert column.name.endswith(f"_{column.unit.lower()}")
        if column.unit == "ns":
            assert column.name.endswith("_ns")
        assert column.meaning.endswith(".")
        assert column.scopes


def test_columns_are_named_once() -> None:
    assert len(COLUMN) == len(COLUMNS) == len(KEY_NAMES) + len(VALUE_NAMES)
    assert set(ELAPSED_PARTS) | set(FAULT_STALL_PARTS) <= set(COUNTER_NAMES)


def test_host_columns_mean_nothing_of_a_guest() -> None:
    assert "free_bytes" in names_at("host")
    for scope in ("class", "guest"):
        assert "free_bytes" not in names_at(scope)
        assert "backed_bytes" in names_at(scope)


def test_rows_come_back_in_order_with_nulls(tmp_path: Path) -> None:
    path = tmp_path / "timeline.parquet"
    recorder = Recorder(path, row_group_rows=4)
    record(recorder, 10)
    recorder.append(100, "guest", "web", 3, {"backed_bytes": 2**53 + 1, "slowdown": 1.25})
    assert recorder.close() is None
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert table.column_names == [column.name for column in COLUMNS]
    assert table["time_ns"].to_pylist() == [*range(0, 100, 10), 100]
    assert table["free_bytes"].to_pylist() == [*(4096 * n for n in range(10)), None]
    assert table["backed_bytes"].to_pylist()[-1] == 2**53 + 1
    assert table["slowdown"].to_pylist() == [None] * 10 + [1.25]
    assert table["class"].to_pylist()[-1] == "web"


def test_memory_holds_so_many_rows_and_files_one_row_group(tmp_path: Path) -> None:
    path = tmp_path / "timeline.parquet"
    recorder = Recorder(path, flush_rows=3, row_group_rows=4)
    waiting = []
    for step in range(11):
        record(recorder, 1, step)
        waiting.append(recorder.waiting)
    assert waiting == [1, 2, 3] * 3 + [1, 2]
    assert recorder.rows == 11
    recorder.close()
    groups = pq.ParquetFile(path)
    assert [groups.metadata.row_group(n).num_rows for n in range(groups.num_row_groups)] == [
        4, 4, 3,
    ]  # fmt: skip


def test_same_rows_same_bytes_however_often_they_are_written(tmp_path: Path) -> None:
    written = set()
    for flush_rows in (1, 3, 7, 100):
        path = tmp_path / str(flush_rows)
        with Recorder(path, flush_rows=flush_rows, row_group_rows=25) as recorder:
            for step in range(60):
                record(recorder, 1, step)
                recorder.append(step * 10, "guest", "web", 0, {"slowdown": 1 + step / 7})
                if step % flush_rows == 1:
                    recorder.flush()
        written.add(path.read_bytes())
    assert len(written) == 1


def test_what_is_written_before_the_end_is_partial_and_can_be_read(tmp_path: Path) -> None:
    """By simvm, and by a reader of Parquet that knows nothing of it."""
    path = tmp_path / "timeline.parquet"
    recorder = Recorder(path)
    record(recorder, 2)
    recorder.flush()
    record(recorder, 3, 2)
    recorder.flush()
    record(recorder, 1, 5)
    (path / ".part-000002.parquet.part").write_bytes(b"PAR1 begun")
    timeline = Timeline.read(path)
    assert timeline.partial
    assert len(timeline) == len(timeline.host()) == 5
    for table in (timeline.to_arrow(), pq.read_table(path)):
        assert table["accesses"].to_pylist() == [0, 1, 2, 3, 4]
        assert table.schema.metadata[b"simvm.partial"] == b"true"
    recorder.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["timeline.parquet"]
    assert not Timeline.read(path).partial
    assert len(Timeline.read(path)) == 6


def test_a_run_that_is_killed_as_it_closes_has_all_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts have gone, and the whole file has not taken their name."""
    path = tmp_path / "timeline.parquet"
    recorder = Recorder(path, flush_rows=2)
    record(recorder, 5)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target == path:
            raise SystemExit
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        recorder.close()
    assert not path.exists()
    assert Timeline.read(path).values("accesses").tolist() == [0, 1, 2, 3, 4]


def test_a_timeline_without_its_first_part_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "timeline.parquet").mkdir()
    with pytest.raises(ResultError, match="it has no parts yet"):
        Timeline.read(tmp_path / "timeline.parquet")


def test_an_interrupted_run_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "timeline.parquet"

    def interrupted() -> None:
        with Recorder(path, row_group_rows=4) as recorder:
            record(recorder, 6)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert pq.read_metadata(path).metadata[b"simvm.partial"] == b"true"
    assert len(Timeline.read(path)) == 6


def test_a_whole_run_is_not_marked_partial(tmp_path: Path) -> None:
    with Recorder(tmp_path / "t") as recorder:
        record(recorder, 1)
    assert b"simvm.partial" not in pq.read_metadata(tmp_path / "t").metadata
    assert timeline_version(pq.read_schema(tmp_path / "t")) == 1


def test_without_a_path_the_table_is_returned() -> None:
    recorder = Recorder(row_group_rows=3)
    record(recorder, 7)
    table = recorder.close(partial=True)
    assert table is not None
    assert table["accesses"].to_pylist() == list(range(7))
    assert table.schema.metadata[b"simvm.partial"] == b"true"
    assert recorder.close() is None


def test_an_empty_timeline_is_one(tmp_path: Path) -> None:
    Recorder(tmp_path / "t").close()
    assert len(Timeline.read(tmp_path / "t")) == 0


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t", row_group_rows=2)
    record(recorder, 5)
    recorder.discard()
    assert not list(tmp_path.iterdir())
    with pytest.raises(SimulationFailed, match="closed"):
        record(recorder, 1)


def test_time_never_runs_back() -> None:
    recorder = Recorder()
    recorder.append(10, "host", "", -1, {})
    recorder.append(10, "class", "web", -1, {})
    with pytest.raises(SimulationFailed, match="time ran back from 10 ns to 9 ns"):
        recorder.append(9, "host", "", -1, {})


@pytest.mark.parametrize(
    ("scope", "values", "message"),
    [
        ("vm", {}, "scope 'vm' is none of host, class, guest"),
        ("host", {"acceses": 1}, "no such column at scope host: acceses"),
        ("guest", {"free_bytes": 1}, "no such column at scope guest: free_bytes"),
        ("host", {"time_ns": 1}, "no such column at scope host: time_ns"),
    ],
)
def test_what_a_row_may_not_be(scope: str, values: dict[str, int], message: str) -> None:
    with pytest.raises(SimulationFailed, match=message):
        Recorder().append(0, scope, "", -1, values)


def test_thorough_holds_that_counters_never_fall() -> None:
    recorder = Recorder(thorough=True)
    recorder.append(0, "guest", "web", 0, {"walks": 7, "backed_bytes": 9})
    recorder.append(1, "guest", "web", 1, {"walks": 3})
    recorder.append(2, "guest", "web", 0, {"walks": None, "backed_bytes": 1})
    with pytest.raises(SimulationFailed, match=r"walks of .* fell from 7 to 6"):
        recorder.append(3, "guest", "web", 0, {"walks": 6})


def test_a_fraction_is_no_count() -> None:
    recorder = Recorder()
    with pytest.raises(SimulationFailed, match="a float in accesses"):
        recorder.append(0, "host", "", -1, {"accesses": 1.5})


def test_every_gauge_and_counter_takes_integers_at_its_scopes() -> None:
    recorder = Recorder(thorough=True)
    for scope in SCOPES:
        values = {name: 2**40 for name in names_at(scope) if name in GAUGE_NAMES + COUNTER_NAMES}
        recorder.append(0, scope, "", -1, values)
    table = recorder.close()
    assert table is not None
    assert set(table["backed_bytes"].to_pylist()) == {2**40}
    assert table["free_bytes"].to_pylist() == [2**40, None, None]
