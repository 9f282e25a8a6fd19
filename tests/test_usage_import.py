"""From monitoring exports to usage files: what is read right, and what is refused."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simvm.errors import InvalidInput
from simvm.workload import usage_import
from simvm.workload.usage import FULL, UsageSeries, open_usage
from simvm.workload.usage_import import import_usage, is_usage, usage_info
from simvm.workload.usage_text import MAX_LINE_BYTES, BadValue, Times, number, size

KIB, GIB, S = 1 << 10, 1 << 30, 1_000_000_000
ROOT = Path(__file__).resolve().parents[1]
BEGAN = 1_764_000_000


def read(folder: Path, text: str | bytes, name: str = "vm.csv", **options: Any) -> UsageSeries:
    """The series of an export."""
    source = folder / name
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_usage(import_usage(source, folder / "out", **options)["path"])


def refused(folder: Path, text: str | bytes, **options: Any) -> list[str]:
    """What is said about an export that is refused: key and value, rule and fix."""
    with pytest.raises(InvalidInput) as caught:
        read(folder, text, **options)
    assert all(mistake.rule and mistake.fix for mistake in caught.value.mistakes)
    return [f"{m.key}: {m.value}: {m.rule}; {m.fix}" for m in caught.value.mistakes]


# --- plain columns ----------------------------------------------------------------------


@pytest.mark.parametrize(("text", "times", "used", "said"), [
    ("0,4096\n60,8192\n", [0, 60], [4096, 8192], "s since the beginning"),
    (f"{BEGAN},5\n{BEGAN + 15},6\n", [0, 15], [5, 6], "s since 1970"),
    (f"{BEGAN}000,5\n{BEGAN}250,6\n", [0, 0.25], [5, 6], "ms since 1970"),
    (f"{BEGAN}.5,5\n{BEGAN + 1}.75,6\n", [0, 1.25], [5, 6], "s since 1970"),
    ("2026-11-24T10:00:00Z,5\n2026-11-24T10:01:00Z,6\n", [0, 60], [5, 6], "ISO 8601"),
    ("2026-11-24 10:00:00;5\n2026-11-24 10:01:00;6\n", [0, 60], [5, 6], "taken as UTC"),
    ("2026-11-24T10:00:00+02:00\t5\n2026-11-24T09:00:00+01:00\t6\n" * 0
     + "2026-11-24T10:00:00+02:00\t5\n2026-11-24T09:30:00+01:00\t6\n", [0, 1800], [5, 6], "ISO"),
    ("\ufefftime_s,used_kib\r\n0,1\r\n1,2\r\n", [0, 1], [1024, 2048], "s, as the format"),
    ("time_ns,used_bytes\n# nothing\n\n7,1\n1000000007,2e3\n", [0, 1], [1, 2000], "ns, as"),
    ("time_ms,used_mib,more\n0,1,x\n1000,2,y\n", [0, 1], [1 << 20, 2 << 20], "ms, as"),
    ('"Time","used"\n"0","5"\n"1","6"\n', [0, 1], [5, 6], "s since the beginning"),
    ("0 5\n1 6\n", [0, 1], [5, 6], "s since the beginning"),
])  # fmt: skip
def test_plain_columns(
    tmp_path: Path, text: str, times: list[float], used: list[int], said: str
) -> None:
    series = read(tmp_path, text)
    assert series.time_ns.tolist() == [round(at * S) for at in times]
    assert series.used_bytes.tolist() == used
    assert said in series.about["time"]
    assert series.about["kind"] == "csv"


def test_a_cache_and_activity(tmp_path: Path) -> None:
    series = read(tmp_path, "time,cached_bytes,used,activity\n0,7,5,0.25\n9,8,6,1\n")
    assert series.cached_bytes is not None
    assert series.activity is not None
    assert series.cached_bytes.tolist() == [7, 8]
    assert series.activity.tolist() == [FULL // 4, FULL]
    third = read(tmp_path, "0,5,7\n9,6,8\n")
    assert third.cached_bytes is not None
    assert third.cached_bytes.tolist() == [7, 8]


def test_the_unit_of_times_can_be_said(tmp_path: Path) -> None:
    assert read(tmp_path, "0,5\n1000,6\n", time="ms").time_ns.tolist() == [0, S]
    assert read(tmp_path, "0,5\n1000,6\n").time_ns.tolist() == [0, 1000 * S]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    series = read(tmp_path, "time,used,host,load\n0,5,a,1\n1,6,a,2\n")
    assert series.about["left_out"] == "host, load"


# --- node_exporter and libvirt ----------------------------------------------------------


def scrape(at: int, labels: str = "", **figures: object) -> str:
    lines = ["# TYPE node_memory_MemTotal_bytes gauge", f"up 1 {at}"]
    lines += [f"node_memory_{name}_bytes{labels} {value} {at}" for name, value in figures.items()]
    return "\n".join(lines) + "\n"


def test_scrapes_of_node_exporter(tmp_path: Path) -> None:
    """16 GiB, of which 10 and 9 are available and one free: 6 and 7 used, 9 and 8 of cache."""
    text = "".join(
        scrape(at, '{instance="a"}', MemTotal="1.7179869184e+10", MemAvailable=available * GIB,
               MemFree=GIB, Cached=12 * GIB)
        for at, available in ((BEGAN * 1000, 10), (BEGAN * 1000 + 15_000, 9))
    )  # fmt: skip
    series = read(tmp_path, text, "metrics.prom")
    assert series.time_ns.tolist() == [0, 15 * S]
    assert series.used_bytes.tolist() == [6 * GIB, 7 * GIB]
    assert series.cached_bytes is not None
    assert series.cached_bytes.tolist() == [9 * GIB, 8 * GIB]
    assert series.about["kind"] == "node_exporter"
    assert "MemTotal - MemAvailable" in series.about["taken"]


def test_columns_of_node_exporter(tmp_path: Path) -> None:
    text = ('"Time","node_memory_MemTotal_bytes{instance=""a"",job=""n""}",'
            '"node_memory_MemFree_bytes","node_memory_Buffers_bytes","node_memory_Cached_bytes"\n'
            "2026-11-24 10:00:00,1000,100,50,250\n"
            "2026-11-24 10:00:15,1000,100,50,350\n")  # fmt: skip
    series = read(tmp_path, text)
    assert series.used_bytes.tolist() == [600, 500]
    assert series.cached_bytes is not None
    assert series.cached_bytes.tolist() == [300, 400]


DOMSTATS = """Domain: 'vm17'
  state.state=1
  balloon.current=8388608
  balloon.maximum=8388608
  balloon.available=8000000
  balloon.unused=1000000
  balloon.usable={usable}
  balloon.last-update={at}
  balloon.rss=7000000
  vcpu.current=4

"""
DOMMEMSTAT = "actual 8388608\nswap_in 0\navailable 8000000\nunused 1000000\nrss 7000000\n"


def test_domstats_in_kib(tmp_path: Path) -> None:
    text = "".join(DOMSTATS.format(usable=3_000_000 - i, at=BEGAN + 10 * i) for i in range(3))
    series = read(tmp_path, text, "domstats.txt")
    assert series.time_ns.tolist() == [0, 10 * S, 20 * S]
    assert series.used_bytes.tolist() == [(5_000_000 + i) * KIB for i in range(3)]
    assert series.about["taken"] == "used = available - usable, in KiB"


def test_dommemstat_after_the_time_of_each(tmp_path: Path) -> None:
    text = f"{BEGAN}\n{DOMMEMSTAT}\n{BEGAN + 30}\n{DOMMEMSTAT}"
    series = read(tmp_path, text, "log")
    assert series.time_ns.tolist() == [0, 30 * S]
    assert series.used_bytes.tolist() == [7_000_000 * KIB] * 2
    assert "the cache included" in series.about["taken"]
    stamped = text.replace(f"{BEGAN}\n", "2026-11-24T10:00:00+00:00\n").replace(
        f"{BEGAN + 30}\n", "2026-11-24T10:00:30+00:00\n"
    )
    assert read(tmp_path, stamped, "log").time_ns.tolist() == [0, 30 * S]


def test_columns_of_libvirt(tmp_path: Path) -> None:
    text = "time,balloon.current,balloon.rss\n0,9,5\n1,9,6\n"
    series = read(tmp_path, text)
    assert series.used_bytes.tolist() == [5 * KIB, 6 * KIB]
    assert "what the host holds" in series.about["taken"]


@pytest.mark.parametrize(("text", "said"), [
    (DOMSTATS.format(usable=1, at=BEGAN) + DOMSTATS.format(usable=1, at=BEGAN).replace("17", "18"),
     "several domains"),
    ("actual 8388608\nswap_in 0\n", "available and usable"),
    (DOMMEMSTAT * 2, "a record without a time"),
    (scrape(5, MemTotal=5, Buffers=1) + scrape(6, MemTotal=5, Buffers=1), "MemAvailable"),
    (scrape(5, '{i="a"}', MemTotal=5) + scrape(5, '{i="b"}', MemTotal=5), "several machines"),
    ("node_memory_MemTotal_bytes 5\nnode_memory_MemTotal_bytes 5\n", "must have a time each"),
    ("time,node_memory_MemTotal_bytes{a},node_memory_MemTotal_bytes{b}\n0,1,2\n", "several machi"),
    ("time,load\n0,1\n", "must have a column used_bytes"),
    ("used,cached\n0,1\n", "must have a column of times"),
    ("time,used,used_bytes\n0,1,1\n", "two columns say the same"),
    ("5\n6\n", "two columns"), ("0,1,2,3\n", "need names"), ("", "must have rows"),
    ("# nothing\n\n", "must have rows"),
])  # fmt: skip
def test_exports_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    assert any(said in each for each in refused(tmp_path, text))


# --- Parquet ----------------------------------------------------------------------------


def parquet(**columns: Any) -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.table(columns), made)
    return made.getvalue()


def test_parquet_under_the_same_names(tmp_path: Path) -> None:
    stamps = pa.array([0, 15_000_000], pa.timestamp("us", tz="UTC"))
    series = read(tmp_path, parquet(timestamp=stamps, used_kib=[1, 2], host=["a", "b"]))
    assert series.time_ns.tolist() == [0, 15 * S]
    assert series.used_bytes.tolist() == [KIB, 2 * KIB]
    assert series.about["kind"] == "parquet"
    again = read(tmp_path, parquet(time_ns=[0, 5], used_bytes=[1, 2], cached_bytes=[3, 4]))
    assert again.time_ns.tolist() == [0, 5]
    said = refused(tmp_path, parquet(time_ns=[0, 5], used_bytes=["a", "b"]))
    assert "without a value: line 1, line 2" in said[0]
    assert "cut short" in refused(tmp_path, parquet(time_ns=[0, 5], used_bytes=[1, 2])[:-3])[0]


# --- what is reported, not guessed ------------------------------------------------------


def test_times_that_go_back_or_come_twice_are_reported_with_their_lines(tmp_path: Path) -> None:
    (back, twice) = refused(tmp_path, "time,used\n0,1\n10,2\n5,3\n10,4\n6,5\n20,6\n")
    assert "2 rows go back in time: line 4, line 6" in back
    assert "sort the rows" in back
    assert "1 rows have the time of the one before: line 5" in twice
    text = "time,used\n0,1\n10,2\n10,4\n20,6\n"
    assert "--duplicates" in refused(tmp_path, text)[0]
    assert read(tmp_path, text, duplicates="first").used_bytes.tolist() == [1, 2, 6]
    series = read(tmp_path, text, duplicates="last")
    assert series.used_bytes.tolist() == [1, 4, 6]
    assert series.about["rows_of_the_same_time"] == 1


def test_gaps_are_reported_and_held_on_request(tmp_path: Path) -> None:
    text = "0,1\n10,2\n20,3\n41,4\n51,5\n"
    (said,) = refused(tmp_path, text)
    assert "1 gaps: 21 s before line 4" in said
    assert "10 s" in said
    assert "--gaps hold" in said
    series = read(tmp_path, text, gaps="hold")
    assert series.time_ns.tolist() == [0, 10 * S, 20 * S, 41 * S, 51 * S]
    assert usage_info(series.path)["gaps"] == 1
    read(tmp_path, text.replace("41", "40").replace("51", "50"))  # twice the step is none


@pytest.mark.parametrize("value", ["", "NaN", "null"])
def test_values_that_are_missing_are_reported_and_held_on_request(
    tmp_path: Path, value: str
) -> None:
    text = f"time,used\n0,1\n10,{value}\n20,3\n"
    (said,) = refused(tmp_path, text)
    assert "1 without a value: line 3" in said
    series = read(tmp_path, text, gaps="hold")
    assert series.used_bytes.tolist() == [1, 3]
    assert series.about["rows_without_a_value"] == 1


@pytest.mark.parametrize(("row", "reason"), [
    ("10,-5", "negative"), ("10,1e300", "more than 4 PiB"), ("10,inf", "no number"),
    ("10,9" + "9" * 28, "more than 4 PiB"), ("10,1e9999", "more than 4 PiB"), ("10,abc", "no num"),
    ("10,8 GiB", "no number"), ("10,1_000", "no number"), ("10,٣", "no number"),
    ("soon,5", "another form"), ("2026-11-24,5", "another form"), ("1e300,5", "out of range"),
    ("9" * 25 + ",5", "out of range"), ("10,5,7", "3 columns, not 2"), ("10", "1 columns, not 2"),
    ('10,"5', "quotes"), ("10,-0.5", "negative"),
])  # fmt: skip
def test_rows_that_say_nothing(tmp_path: Path, row: str, reason: str) -> None:
    (said,) = refused(tmp_path, f"time,used\n0,1\n{row}\n20,3\n")
    assert "1 say nothing: line 3:" in said
    assert reason in said


def test_all_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, "time,used\n0,1\n10,x\n20,\n15,2\n0,3\n0,4\n" + "30,-1\n" * 9)
    assert len(said) == 3
    assert "10 say nothing" in said[0]
    assert said[0].count(": line ") + said[0].count(", line ") == 5
    assert ", ..." in said[0]


# --- hostile input ----------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    b"x" * (MAX_LINE_BYTES + 1), b"time,used\n0,1\n" + b"1" * (1 << 20), b"\0" * 100,
    b"\x1f\x8b\x08" + bytes(range(256)), "time,used\n0,1\n".encode("utf-16"), b"0,1\n1,\xff\n",
])  # fmt: skip
def test_what_is_no_text_is_refused_where_it_begins(tmp_path: Path, data: bytes) -> None:
    (said,) = refused(tmp_path, data)
    assert said.startswith("line ")


def test_more_rows_than_a_series_has_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(usage_import, "MAX_ROWS", 100)
    (said,) = refused(tmp_path, "".join(f"{i},1\n" for i in range(200)))
    assert "at most 100 rows" in said


LONG_LINE = """
import resource, sys, time
sys.path.insert(0, {root!r})
from simvm.errors import InvalidInput
from simvm.workload.usage_import import import_usage
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    import_usage("-", {out!r})
except InvalidInput as error:
    print(error.mistakes[-1].rule)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak - before, time.process_time() - began)
"""


@pytest.mark.parametrize(("produce", "said"), [
    ("head -c 1000000000 /dev/zero | tr '\\0' 1", "bytes at most"),
    ("echo time,used; yes x,y | head -c 300000000", "each line must be a row"),
    ("yes 5,6 | head -c 300000000", "times must ascend"),
])  # fmt: skip
def test_long_and_hopeless_input_takes_little_time_and_memory(
    tmp_path: Path, produce: str, said: str
) -> None:
    """A line of 10^9 characters, and 75 million rows that are wrong, end soon, and are held
    nowhere: within 24 MiB, and a second of a process of its own (a minute where it is busy)."""
    program = LONG_LINE.format(root=str(ROOT), out=str(tmp_path / "out"))
    pipe = subprocess.run(
        f"{{ {produce}; }} 2>/dev/null | {sys.executable} -c \"$PROGRAM\"", shell=True, text=True,
        env={"PROGRAM": program, "PATH": "/usr/bin:/bin"}, capture_output=True, check=False,
    )  # fmt: skip
    rule, figures = pipe.stdout.splitlines()
    assert said in rule
    grown, took = figures.split()
    assert int(grown) < 24 << 10
    assert float(took) < 60


TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(
        st.tuples(
            st.one_of(st.integers(-5, 50).map(str), st.floats().map(str), st.text(max_size=9)),
            st.one_of(st.integers(-9, 1 << 60).map(str), st.floats().map(str), st.text(max_size=9)),
        ).map(",".join), max_size=30,
    ).map("\n".join),
    st.lists(st.sampled_from([
        *DOMSTATS.splitlines(), *DOMMEMSTAT.splitlines(), *scrape(5, MemTotal=5).splitlines(),
        "time,used", "0,1", "10,2", "2026-11-24T00:00:00,5", "Domain: 'x'", "", "#", '"',
        "1764000000",
        "node_memory_MemAvailable_bytes 3 6", "node_memory_MemFree_bytes{} NaN 6",
    ]), max_size=30).map("\n".join),
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture,
                                                   HealthCheck.too_slow])  # fmt: skip
@given(text=TEXTS, kind=st.sampled_from(usage_import.KINDS),
       gaps=st.sampled_from(["error", "hold"]),
       duplicates=st.sampled_from(["error", "first", "last"]))  # fmt: skip
def test_any_text_is_a_series_or_refused(
    tmp_path: Path, text: str, kind: str, gaps: Any, duplicates: Any
) -> None:
    began = time.process_time()
    try:
        series = read(tmp_path, text.encode("utf-8", "surrogatepass"), kind=kind, gaps=gaps,
                      duplicates=duplicates)  # fmt: skip
    except InvalidInput as error:
        found = [len(mistake.value) for mistake in error.mistakes]
        if not found or max(found) > 2_000:
            pytest.fail(str(error))
    else:
        assert series.rows >= 2
        assert (series.time_ns[1:] > series.time_ns[:-1]).all()
        assert series.used_bytes.min() >= 0
    assert time.process_time() - began < 2


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture,
                                                   HealthCheck.too_slow])  # fmt: skip
@given(data=st.data())
def test_damaged_parquet_is_a_series_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(parquet(time_ns=list(range(0, 900, 30)), used_bytes=list(range(30))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.parquet"
    path.write_bytes(bytes(whole))
    with suppress(InvalidInput):
        assert open_usage(path).rows <= 30
    with suppress(InvalidInput):
        assert import_usage(path, tmp_path / "out", gaps="hold")["rows"] <= 30


@pytest.mark.parametrize("text", ["1e5", "12.", ".5", "-3", "+7", "0", " 8 "])
def test_numbers(text: str) -> None:
    assert number(text) == float(text)


def test_sizes_and_times_have_ends() -> None:
    assert size(1.5, KIB) == 1536
    for value in (-1, float("inf"), 1 << 53):
        with pytest.raises(BadValue):
            size(value)
    with pytest.raises(BadValue):
        Times().ns("9" * 20)
    with pytest.raises(BadValue):
        Times("s").ns("0001-01-01")


# --- the verbs --------------------------------------------------------------------------


def verb(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simvm", *words], input=stdin, capture_output=True, text=True,
        check=False, cwd=ROOT,
    )  # fmt: skip


def test_import_and_info_of_the_command_line(tmp_path: Path) -> None:
    source = tmp_path / "vm17.metrics.csv"
    source.write_text("0,4096\n60,8192\n120,4096\n")
    done = verb("trace", "import", "--usage", str(source), "--out", str(tmp_path / "o"),
                "--format", "json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["span_ns"], found["step_ns"]) == (3, 180 * S, 60 * S)
    assert (found["used_bytes_min"], found["used_bytes_max"]) == (4096, 8192)
    assert found["used_bytes_mean"] == (2 * 4096 + 8192) // 3
    made = tmp_path / "o" / "vm17.usage.parquet"
    assert is_usage(made)
    assert str(made) in done.stderr
    info = verb("trace", "info", str(made), "--format", "json")
    assert json.loads(info.stdout) == found | {"file_bytes": made.stat().st_size}
    table = verb("trace", "info", str(made))
    assert "3 m" in table.stdout
    named = verb("trace", "import", "--usage", "-", "--out", str(tmp_path / "x.parquet"),
                 "--quiet", stdin="0,1\n1,2\n")  # fmt: skip
    assert named.returncode == 0
    assert is_usage(tmp_path / "x.parquet")
    assert not named.stderr


def test_mistakes_of_the_command_line(tmp_path: Path) -> None:
    wrong = verb("trace", "import", "--usage", "-", "--out", str(tmp_path), stdin="0,1\n0,2\n")
    assert wrong.returncode == 3
    assert "--duplicates" in wrong.stderr
    assert verb("trace", "import", "--usage", str(tmp_path / "none")).returncode == 3
    for words in (("--kind", "lackey"), ("--time", "weeks")):
        wrong = verb("trace", "import", "--usage", "-", *words, stdin="0,1\n1,2\n")
        assert wrong.returncode == 3
        assert "one of" in wrong.stderr
    out = tmp_path / "file"
    out.write_text("")
    wrong = verb("trace", "import", "--usage", "-", "--out", str(out), stdin="0,1\n1,2\n")
    assert wrong.returncode == 3
    assert "must be a folder" in wrong.stderr


def test_a_week_of_a_row_every_15_s_is_read_in_seconds(tmp_path: Path) -> None:
    text = "".join(f"{BEGAN + 15 * i},{i << 12},{i}\n" for i in range(7 * 24 * 240))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    series = read(tmp_path, text)
    assert series.rows == 40_320
    assert time.process_time() - began < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
