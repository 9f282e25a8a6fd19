"""Expectations: conditions and the values of a summary that they are about."""

from typing import Any

import pytest

from simvm.scenario import failures
from simvm.scenario.expect import find, parse_condition
from simvm.units import UnitError


def record(name: str, elapsed: int, ideal: int, p99: int) -> dict[str, Any]:
    return {"name": name, "elapsed_ns": elapsed, "ideal_ns": ideal, "accesses": 10,
            "slowdown": elapsed / ideal if ideal else None, "latency_ns": {"p99": p99},
            "counters": {"walks": 3}, "parts": {"compute_ns": 1}}  # fmt: skip


SUMMARY: dict[str, Any] = {
    "host": {"oom_kills": 0, "slowdown": 1.25, "totals": {"slat_faults": 12},
             "peaks": {"backed_bytes": 1 << 30}, "means": {"backed_bytes": 5.5}},
    "classes": {"web": {"slowdown": 1.5, "slowdown_percentiles": {"p99": 2.5},
                        "loads_per_walk": None, "page_size": "2MiB",
                        "totals": {"walks": 6}, "peaks": {}, "means": {}}},
    "guests": [
        {"class": "web", "phases": [record("serve", 30, 10, 7), record("load", 1, 0, 0)]},
        {"class": "web", "phases": [record("serve", 10, 10, 9)]},
        {"class": "db", "phases": [record("serve", 99, 1, 99)]},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("host.oom_kills", 0),
        ("host.slat_faults", 12),
        ("host.totals.slat_faults", 12),
        ("host.peak_backed_bytes", 1 << 30),
        ("host.peaks.backed_bytes", 1 << 30),
        ("host.mean_backed_bytes", 5.5),
        ("guest.web.slowdown", 1.5),
        ("guest.web.slowdown.p99", 2.5),
        ("guest.web.walks", 6),
        ("guest.web.workload.serve.slowdown", 2.0),
        ("guest.web.workload.serve.accesses", 20),
        ("guest.web.workload.serve.walks", 6),
        ("guest.web.workload.serve.compute_ns", 2),
        ("guest.web.workload.serve.latency_ns.p99", 9),
    ],
)
def test_values(path: str, value: float) -> None:
    assert find(SUMMARY, path.split(".")) == value


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("host.oom_kils", "did you mean 'oom_kills'"),
        ("host.oom_kills.x", "nothing below"),
        ("host.peaks", "no number"),
        ("guest.wbe.slowdown", "did you mean 'web'"),
        ("guest.web.loads_per_walk", "no value in this run"),
        ("guest.web.page_size", "no number"),
        ("guest.web.workload.sreve.slowdown", "did you mean 'serve'"),
        ("guest.web.workload.load.slowdown", "no value in this run"),
        ("guest.web.workload.serve", "names no value"),
        ("scenario.seed", "neither"),
    ],
)
def test_values_that_are_not_there(path: str, why: str) -> None:
    with pytest.raises(LookupError) as caught:
        find(SUMMARY, path.split("."))
    assert why in caught.value.args[0]
    assert failures(SUMMARY, {path: "< 1"}) == [f"{path} < 1: {caught.value.args[0]}"]


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("< 1.3", 1.3, False), ("<= 1.3", 1.3, True), ("> 1", 2, True), (">= 2", 1, False),
        ("== 0", 0, True), ("!= 0", 0, False), ("<20GiB", 20 << 30, False), ("<= 3us", 3000, True),
        ("> 5M", 5_000_001, True), ("< 1e3", 999, True), ("> -1", 0, True),
        ("< 1", float("nan"), False), ("!= 1", float("nan"), False),
    ],
)  # fmt: skip
def test_conditions(text: str, value: float, holds: bool) -> None:
    assert parse_condition(text).holds(value) is holds


@pytest.mark.parametrize(
    "text", ["", "1.3", "<", "< x", "=< 3", "< 1 2", None, 3, "< nan", "< inf"]
)
def test_conditions_that_are_none(text: object) -> None:
    with pytest.raises(UnitError):
        parse_condition(text)


def test_failures_say_what_was_found() -> None:
    expected = {"host.oom_kills": "> 0", "guest.web.slowdown": "< 1.3", "host.slowdown": "< 2"}
    assert failures(SUMMARY, expected) == [
        "host.oom_kills is 0, expected > 0",
        "guest.web.slowdown is 1.5, expected < 1.3",
    ]
