"""Sizes, times and counts as text."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simvm import units
from simvm.units import UnitError


@pytest.mark.parametrize(
    ("text", "value"),
    [("8GiB", 8 << 30), ("0B", 0), ("4KiB", 4096), ("1TiB", 1 << 40), ("550MiB", 550 << 20),
     (" 8 GiB ", 8 << 30), ("1_000B", 1000), ("8.0GiB", 8 << 30)],
)  # fmt: skip
def test_sizes(text: str, value: int) -> None:
    assert units.parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("20us", 20_000), ("20µs", 20_000), ("20μs", 20_000), ("7ns", 7), ("3ms", 3_000_000),
     ("2s", 2 * 10**9), ("5m", 300 * 10**9), ("1h", 3600 * 10**9), ("1d", 86400 * 10**9)],
)  # fmt: skip
def test_times(text: str, value: int) -> None:
    assert units.parse_ns(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("5M", 5_000_000), ("10k", 10_000), ("1G", 10**9), ("17", 17)]
)
def test_counts(text: str, value: int) -> None:
    assert units.parse_count(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "rule", "fix"),
    [
        (units.parse_bytes, "48GB", "'GB'", 'write GiB: "48GiB"'),
        (units.parse_bytes, "4M", "'M'", 'write MiB: "4MiB"'),
        (units.parse_bytes, "8gib", "'gib'", 'write GiB: "8GiB"'),
        (units.parse_bytes, "8", "no unit", '"8B"'),
        (units.parse_bytes, "-8GiB", "negative", "such as"),
        (units.parse_bytes, "1.5GiB", "decimal point", 'write "1536MiB"'),
        (units.parse_bytes, "0.3B", "decimal point", "such as"),
        (units.parse_bytes, "8XiB", "'XiB'", "such as"),
        (units.parse_bytes, "lots", "no size", "integer and a unit"),
        (units.parse_bytes, "", "no size", "integer and a unit"),
        (units.parse_bytes, "9" * 100 + "B", "no size", "integer and a unit"),
        (units.parse_ns, "5sec", "'sec'", 'write s: "5s"'),
        (units.parse_ns, "5", "no unit", '"5ns"'),
        (units.parse_ns, "1.5ms", "decimal point", 'write "1500us"'),
        (units.parse_count, "5MiB", "'MiB'", "such as"),
        (units.parse_count, "2.5M", "decimal point", 'write "2500k"'),
    ],
)
def test_refusals_say_what_to_write(parse: object, text: str, rule: str, fix: str) -> None:
    assert callable(parse)
    with pytest.raises(UnitError) as caught:
        parse(text)
    assert rule in caught.value.rule
    assert fix in caught.value.fix


def test_an_error_survives_a_pickle() -> None:
    error = UnitError("8GB", "rule", "fix")
    again = pickle.loads(pickle.dumps(error))
    assert (again.text, again.rule, again.fix) == ("8GB", "rule", "fix")
    assert str(again) == str(type(error)(*error.args)) == "'8GB' rule: fix"


@given(st.integers(0, 1 << 70))
def test_what_is_formatted_reads_back(value: int) -> None:
    assert units.parse_bytes(units.format_bytes(value)) == value
    assert units.parse_ns(units.format_ns(value)) == value
    assert units.parse_count(units.format_count(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(1 << 30, "1GiB"), (3 << 29, "1536MiB"), (4097, "4097B"), (0, "0B"), (1 << 50, "1024TiB")],
)
def test_exact_text(value: int, text: str) -> None:
    assert units.format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1 << 30, "1 GiB"), (int(1.53 * 2**30), "1.53 GiB"), (2**30 - 1, "1.00 GiB"),
     (0, "0 B"), (512, "512 B"), (-(1 << 20), "-1 MiB"), (int(24.83 * 2**20), "24.8 MiB"),
     (550 * 2**20 + 1, "550 MiB"), (5000 << 40, "5000 TiB")],
)  # fmt: skip
def test_text_for_readers(value: int, text: str) -> None:
    assert units.human_bytes(value) == text


def test_times_and_counts_for_readers() -> None:
    assert units.human_ns(3930) == "3.93 us"
    assert units.human_ns(2 * 10**9) == "2 s"
    assert units.human_ns(999_999) == "1.00 ms"
    assert units.human_count(5_020_000) == "5.02 M"
    assert units.human_count(999) == "999"
    assert units.human_count(0) == "0"


@given(st.integers(0, 1 << 60))
def test_text_for_readers_is_within_half_a_percent(value: int) -> None:
    number, unit = units.human_bytes(value).split()
    factor = units.parse_bytes(f"1{unit}")
    assert abs(float(number) * factor - value) <= 0.0051 * value
