"""Results: canonical JSON, runs and timelines, the run directory."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import GUESTS, write_run, write_variant

from simvm.columns import COLUMN, ELAPSED_PARTS
from simvm.errors import EXIT_INVALID, ResultError
from simvm.report.page import render
from simvm.results import (
    HEADLINE,
    RunResult,
    RunWriter,
    canonical_json,
    check_destination,
    comparison,
    headline,
    is_complete,
    load_runs,
    percentiles,
    read_json,
    write_text,
)
from simvm.timeline import Timeline


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "synthetic", samples=60)


@pytest.fixture(scope="module")
def base(run_directory: Path) -> RunResult:
    return RunResult.load(run_directory)


def contents(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


# --- JSON and percentiles


def test_canonical_json_sorts_keys_and_keeps_integers() -> None:
    text = canonical_json({"b": 2**63, "a": [0.1, 1.0], "é": np.int64(7)})
    assert text == '{\n "a": [\n  0.1,\n  1.0\n ],\n "b": 9223372036854775808,\n "é": 7\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"slowdown": value})


def test_canonical_json_refuses_what_is_no_data() -> None:
    with pytest.raises(TypeError, match="object has no place in a summary"):
        canonical_json({"x": object()})


@given(st.lists(st.integers(0, 10**18), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_covers_its_share(
    values: list[int], percent: int
) -> None:
    spread = percentiles(values, [percent])
    assert spread is not None
    found = spread[f"p{percent}"]
    assert type(found) is int
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


def test_percentiles_of_nothing_and_of_floats() -> None:
    assert percentiles([]) is None
    assert percentiles([1.5, 2.5, 0.5, 3.5]) == {"p50": 1.5, "p95": 3.5, "p99": 3.5}
    assert percentiles(range(1, 1001), [99.9]) == {"p99.9": 999}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not-a-number"):
        percentiles([1.0, float("nan")])


# --- timelines


def test_timeline_of_host_class_and_guest(base: RunResult) -> None:
    timeline = base.timeline
    assert timeline.guests() == [("web", n) for n in range(GUESTS)]
    host = timeline.host()
    assert len(host) == len(timeline) // (2 + GUESTS)
    total = sum(timeline.guest("web", n).values("backed_bytes") for n in range(GUESTS))
    assert np.array_equal(host.values("backed_bytes"), total)
    assert np.array_equal(timeline.guest_class("web").values("backed_bytes"), total)


def test_parts_of_elapsed_add_up(base: RunResult) -> None:
    table = base.timeline.to_arrow()
    parts = [table[part].to_numpy() for part in ELAPSED_PARTS]
    assert np.array_equal(np.sum(parts, axis=0), table["elapsed_ns"].to_numpy())


def test_timeline_without_such_rows_or_columns(base: RunResult) -> None:
    with pytest.raises(KeyError, match=r"guest web\.9"):
        base.timeline.guest("web", 9)
    with pytest.raises(KeyError, match="class db"):
        base.timeline.guest_class("db")
    with pytest.raises(KeyError, match="acceses"):
        base.timeline.values("acceses")


def test_to_pandas_keeps_integers_through_nulls(base: RunResult) -> None:
    frame = base.timeline.to_pandas()
    assert list(frame.columns) == list(COLUMN) == base.timeline.columns
    assert str(frame["time_ns"].dtype) == "int64"
    assert str(frame["free_bytes"].dtype) == "Int64"
    assert frame["free_bytes"].isna().sum() == (frame["scope"] != "host").sum()
    assert str(frame["slowdown"].dtype) == "float64"


def test_to_pandas_without_pandas_says_what_to_do(
    base: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_pandas(name: str, *rest: Any, **keywords: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match="pip install pandas"):
        base.timeline.to_pandas()


def test_a_file_that_is_no_timeline(tmp_path: Path) -> None:
    path = tmp_path / "timeline.parquet"
    with pytest.raises(ResultError, match="cannot be read"):
        Timeline.read(path)
    path.write_bytes(b"PAR1 cut short")
    with pytest.raises(ResultError, match="cannot be read"):
        Timeline.read(path)
    pq.write_table(pa.table({"time_ns": [1]}), path)
    with pytest.raises(ResultError, match="timeline version is None, must be 1"):
        Timeline.read(path)


# --- runs


def test_load_takes_a_run_or_a_comparison(run_directory: Path, base: RunResult) -> None:
    assert base.directory == run_directory / "base"
    assert base.manifest["variant"] == "base"
    assert not base.partial
    alone = RunResult.load(str(run_directory / "thp"))
    assert alone.manifest["variant"] == "thp"
    assert list(load_runs(run_directory / "thp")) == ["thp"]


def test_runs_come_in_the_order_of_the_scenario(run_directory: Path) -> None:
    assert list(load_runs(run_directory)) == [
        "base", "pages_4k", "thp", "hugetlb", "container",
    ]  # fmt: skip


def test_runs_that_the_summary_does_not_name_come_last(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", ("thp", "base"), samples=41)
    (directory / "thp").rename(directory / "another")
    assert list(load_runs(directory)) == ["base", "another"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no run directory: manifest.json is missing"),
        ("{", "manifest.json cannot be read"),
        ("[]", "schema_version is None, must be 1"),
        ('{"schema_version": 2}', "schema_version is 2, must be 1"),
    ],
)
def test_what_is_no_run(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ResultError, match=message) as caught:
        RunResult.load(tmp_path)
    assert caught.value.exit_code == EXIT_INVALID


def test_a_comparison_of_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "summary.json", '{"schema_version": 1}')
    with pytest.raises(ResultError, match="holds no run"):
        load_runs(tmp_path)
    with pytest.raises(ValueError, match="nothing to compare"):
        comparison({})


def test_notebook_view_escapes_names(base: RunResult) -> None:
    summary = {**base.summary, "scenario": {**base.summary["scenario"], "name": "<script>"}}
    shown = RunResult(summary, base.timeline, {**base.manifest, "partial": True})._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt; · base (partial: up to 300 ms)" in shown
    assert "slowdown" in shown


# --- comparison


def test_headline_of_a_guest_and_of_a_container(run_directory: Path) -> None:
    compared = read_json(run_directory / "summary.json")
    rows = compared["variants"]
    assert set(rows["base"]) == set(HEADLINE)
    assert rows["base"]["guest_page_size"] == "1GiB"
    assert rows["base"]["channel"] == "passthrough"
    for key in ("guest_page_size", "zeroing", "channel"):
        assert rows["container"][key] is None
    assert rows["container"]["virtualization"] == "none"
    host = read_json(run_directory / "thp" / "summary.json")["host"]
    assert rows["thp"]["peak_backed_bytes"] == host["peaks"]["backed_bytes"]
    assert rows["thp"]["mean_backed_bytes"] == host["means"]["backed_bytes"]
    assert rows["thp"]["fault_stall_ns"] == host["totals"]["fault_stall_ns"]
    assert rows["thp"]["slowdown"] == host["slowdown"]
    assert compared == comparison(load_runs(run_directory))


def test_headline_lists_settings_that_differ_between_classes(base: RunResult) -> None:
    web = base.summary["classes"]["web"]
    summary = {**base.summary, "classes": {
        "web": web,
        "db": {**web, "page_size": "4KiB"},
        "box": {**web, "page_size": "2MiB", "virtualization": "none"},
    }}  # fmt: skip
    row = headline(summary)
    assert row["guest_page_size"] == "1GiB, 4KiB"
    assert row["virtualization"] == "nested, none"


# --- the run directory


def test_layout(run_directory: Path) -> None:
    files = contents(run_directory)
    assert "summary.json" in files
    for variant in ("base", "container"):
        assert {f"{variant}/{name}" for name in (
            "manifest.json", "scenario.toml", "timeline.parquet", "summary.json")} <= files
    assert len(files) == 1 + 5 * 4
    assert [path.name for path in run_directory.parent.iterdir()] == [run_directory.name]


def test_same_run_same_bytes(tmp_path: Path) -> None:
    one, two = (write_run(tmp_path / name, ("base",), samples=50) for name in ("one", "two"))
    for file in contents(one) - {"base/manifest.json"}:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_what_is_there_before_it_is_whole_is_partial(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.variant("base")
        assert not contents(tmp_path)
        with pytest.raises(ResultError, match="is no run directory"):
            load_runs(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with RunWriter(tmp_path / "run") as writer:
        write_variant(writer, "base", samples=41)
        assert read_json(tmp_path / "run" / "summary.json")["partial"]
        assert list(load_runs(tmp_path / "run")) == ["base"]
        assert not is_complete(tmp_path / "run")
        assert is_complete(tmp_path / "run" / "base")
        page = render(load_runs(tmp_path / "run"), [], complete=False)
        assert "Partial: not all variants were run." in page
        writer.variant("thp")  # begun, never finished
        writer.publish()
    assert not read_json(tmp_path / "run" / "summary.json")["partial"]
    assert contents(tmp_path) == {"run/summary.json"} | {f"run/base/{name}" for name in (
        "manifest.json", "scenario.toml", "timeline.parquet", "summary.json")}  # fmt: skip
    assert not (tmp_path / "run" / "thp").exists()


def test_a_failed_run_leaves_nothing_and_the_old_one_alone(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", ("base",), samples=41)
    before = {file: (directory / file).read_bytes() for file in contents(directory)}

    def fails() -> None:
        with RunWriter(directory) as writer:
            write_variant(writer, "thp", samples=41)
            raise RuntimeError("simulated failure")

    with pytest.raises(RuntimeError):
        fails()
    assert {file: (directory / file).read_bytes() for file in contents(directory)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_ctrl_c_keeps_what_was_written(tmp_path: Path) -> None:
    def interrupted() -> None:
        with RunWriter(tmp_path / "run") as writer:
            write_variant(writer, "base", samples=41)
            writer.variant("thp")
            raise KeyboardInterrupt

    write_run(tmp_path / "run", ("hugetlb",), samples=41)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(load_runs(tmp_path / "run")) == ["base"]
    assert read_json(tmp_path / "run" / "summary.json")["partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    write_run(tmp_path / "run", ("base",), samples=41)  # what is partial can be replaced


def test_a_run_replaces_an_older_one_and_its_report(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", ("base", "thp"), samples=41)
    (directory / "report.html").write_text("old")
    (directory / "charts").mkdir()
    (directory / "charts" / "time.svg").write_text("old")
    write_run(directory, ("base",), samples=41)
    assert {path.name for path in directory.iterdir()} == {"summary.json", "base"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("foreign", ["notes.txt", "base/notes.txt", "charts/notes.txt", "data/x"])
def test_what_simvm_did_not_write_is_never_replaced(tmp_path: Path, foreign: str) -> None:
    directory = write_run(tmp_path / "run", ("base",), samples=41)
    (directory / foreign).parent.mkdir(exist_ok=True)
    (directory / foreign).write_text("mine")
    with pytest.raises(ResultError, match="which is not of a run"):
        RunWriter(directory)
    assert (directory / foreign).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_appeared_during_a_run_that_failed_stays(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        write_variant(writer, "base", samples=41)
        (tmp_path / "run" / "mine.txt").write_text("mine")
        (tmp_path / "run" / "base" / ".summary.json.part").write_text("begun")
    assert contents(tmp_path) == {"run/mine.txt"}
    with pytest.raises(ResultError, match=r"mine\.txt"):
        RunWriter(tmp_path / "run")


def test_what_appeared_before_the_first_variant_is_not_replaced(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine.txt").write_text("mine")
        with pytest.raises(ResultError, match=r"mine\.txt"):
            writer.variant("base")
    assert contents(tmp_path) == {"run/mine.txt"}


def test_two_runs_do_not_write_to_one_place(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as one, RunWriter(tmp_path / "run") as other:
        write_variant(one, "base", samples=41)
        with pytest.raises(ResultError, match="another process is writing a run to"):
            other.variant("base")
        one.publish()
    assert list(load_runs(tmp_path / "run")) == ["base"]


def test_places_a_run_can_go(tmp_path: Path) -> None:
    check_destination(tmp_path / "new" / "deep")
    check_destination(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="is not a directory"):
        check_destination(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ResultError, match="is not a directory"):
        check_destination(tmp_path / "link")


def test_a_run_in_a_new_deep_place(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "runs" / "deep", ("base",), samples=41)
    assert RunResult.load(directory).summary["scenario"]["name"] == "synthetic"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "charts", "a b"])
def test_names_that_are_no_directory(tmp_path: Path, name: str) -> None:
    with RunWriter(tmp_path / "run") as writer, pytest.raises(ResultError, match="not a name"):
        writer.variant(name)


def test_a_variant_is_written_once(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.variant("base")
        with pytest.raises(ResultError, match="appears twice"):
            writer.variant("base")


def test_a_partial_run_says_so(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        write_variant(writer, "base", samples=41, partial=True)
        compared = writer.publish()
    assert compared["partial"] is True
    assert RunResult.load(tmp_path / "run").partial
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["partial"] is True


def killed(writer: RunWriter) -> None:
    """What becomes of the lock of a process that is killed."""
    writer._unlock()


@pytest.mark.parametrize("whole", [True, False])
def test_of_two_runs_that_killed_processes_left_the_whole_one_is_kept(
    tmp_path: Path, whole: bool
) -> None:
    """One was killed as it wrote, or as it took the older run away; the next one fails."""
    place = tmp_path / "run"
    write_run(place, ("base",), samples=41)
    writer = RunWriter(place)
    write_variant(writer, "thp", samples=41)
    if whole:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunWriter, "_end", killed)
            writer.publish()
    killed(writer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.old", "run"]
    assert list(load_runs(place)) == ["thp"]
    with RunWriter(place) as failing:
        write_variant(failing, "hugetlb", samples=41)
    assert list(load_runs(place)) == ["thp" if whole else "base"]
    assert not read_json(place / "summary.json")["partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
