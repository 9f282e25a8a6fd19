"""`sampled` against `exact`: the measures by hand, the comparison at a reduced size and in full."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from scenario_runs import refresh

from simvm import cli
from simvm.errors import UsageError
from simvm.report import fidelity as chart
from simvm.scenario import Scenario
from simvm.units import MIB, MS
from simvm.validation import fidelity, scenarios

SHORT = ("scenario.duration=60ms", "scenario.sample_interval=1ms")
REACH = 1536 * 4096


@cache
def in_full() -> dict[str, Any]:
    """The comparison as the command runs it: some minutes, once in a session."""
    return fidelity.run(jobs=2)


def side(curve: list[list[float]], total: list[list[float]]) -> fidelity.Side:
    """A side whose gauges all have one curve, and whose totals are all the same."""
    return {
        name: np.array(curve if name in fidelity.GAUGES else total) for name in fidelity.TOLERANCES
    }


def row_of(rows: list[dict[str, Any]], figure: str) -> dict[str, Any]:
    (found,) = (row for row in rows if row["figure"] == figure)
    return found


def test_figures_of_a_comparison_by_hand() -> None:
    """Two seeds and three points: mean curves 10, 20, 30 and 10, 21, 29, a mean of 20.

    They are apart by 0, 1, -1: on average 2/3 of 20 without the sign, and nothing with it. The
    single seeds are apart by 4, 1, -1 and -4, 1, -1: 12/6 of 20 on average; with the sign by 4/3
    and -4/3, so the standard error is 4/3 of 20. What chance would do: variances are 2, 0, 0 and
    50, 0, 0, so √(2/π · 52/2) / 3 of 20.
    """
    exact = side([[9, 20, 30], [11, 20, 30]], [[1.0], [3.0]])
    other = side([[13, 21, 29], [7, 21, 29]], [[1.1], [3.1]])
    other["backed_bytes"] = np.array([[15, 21, 29], [5, 21, 29]])
    exact["backed_bytes"] = np.array([[11, 20, 30], [9, 20, 30]])
    rows = list(fidelity.compare(exact, other))
    backed = row_of(rows, "backed_bytes")
    assert backed["exact"] == backed["sampled"] == 20
    assert backed["error"] == pytest.approx(2 / 3 / 20)
    assert not backed["within"]             # 3.3 % of 2 %
    assert backed["bias"] == pytest.approx(0)
    assert backed["seed_error"] == pytest.approx(12 / 6 / 20)
    assert backed["standard_error"] == pytest.approx(4 / 3 / 20)
    assert backed["noise"] == pytest.approx((2 / np.pi * 52 / 2) ** 0.5 / 3 / 20)
    slowdown = row_of(rows, "slowdown")
    assert (slowdown["error"], slowdown["bias"]) == (pytest.approx(0.05), pytest.approx(0.05))
    assert slowdown["standard_error"] == pytest.approx(0)
    assert row_of(rows, "overhead")["within"] is None


def test_one_seed_has_no_standard_error_and_zero_against_zero_is_left_out() -> None:
    none = side([[0, 0]], [[2.0]])
    rows = list(fidelity.compare(none, none))
    assert {row["figure"] for row in rows} == {"slowdown", "slat_faults", "swap_ins", "overhead"}
    assert all(row["standard_error"] is row["noise"] is None for row in rows)
    swaps = side([[0, 0]], [[2.0]]) | {"swapped_bytes": np.array([[5.0, 5.0]])}
    assert row_of(list(fidelity.compare(none, swaps)), "swapped_bytes")["within"] is False


@pytest.mark.parametrize("name", fidelity.SCENARIOS)
def test_scenarios_are_what_they_are_said_to_be(name: str) -> None:
    """Three guests of two busy vCPUs, four times what the TLB reaches, fifty samples or more."""
    scenario: Scenario = scenarios.scenario(name, folder=fidelity.FOLDER)
    (guest,) = scenario.guests.values()
    assert (guest.count, guest.vcpus) == (3, 2)
    assert sum(phase.threads for phase in guest.workload) == 2
    sizes = [phase.allocate or 18_243 * 4096 for phase in guest.workload]     # of the trace
    assert all(size >= 4 * REACH for size in sizes)
    duration = scenario.scenario.duration
    assert isinstance(duration, int)
    assert duration >= 50 * scenario.scenario.sample_interval
    assert scenario.host.page_size == 4096
    assert scenario.host.cpu == "skylake_sp"


@pytest.mark.long
def test_sampled_agrees_with_exact(full_size: bool) -> None:
    """Full size: every figure within its tolerance over ten seeds. Else two scenarios, reduced:
    one in which memory fills and walks cost, one with a fifth of the footprint on swap."""
    if full_size:
        found = [in_full()]
    else:
        found = [
            fidelity.run(["zipf_in_memory"], seeds=2, sets=SHORT),
            fidelity.run(["zipf_reclaim"], seeds=2, sets=["scenario.duration=600ms"]),
        ]
    rows = [row for data in found for row in data["rows"]]
    assert len(rows) == (29 if full_size else 12)
    for described in (each for data in found for each in data["scenarios"]):
        if described["name"] in ("zipf_reclaim", "drift"):
            swapped = described["curves"]["swapped_bytes"]["exact"]["mean"][-1]
            assert 0.18 < swapped / (3 * 24 * MIB) < 0.23, described["name"]
    missed = [
        f"{row['scenario']} {row['figure']}: {row['error']:.2%}"
        for row in rows
        if row["within"] is False
    ]
    assert missed == []


def without_roundoff(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures to nine digits, and what is zero but for roundoff as zero."""
    return [
        {key: float(f"{round(x, 12):.9g}") if isinstance(x, float) else x for key, x in row.items()}
        for row in rows
    ]


@pytest.mark.long
def test_figures_of_the_docs_are_those_of_the_command(full_size: bool) -> None:
    """All of them at full size; else `sweep_free`, where no seed changes anything: one will do.

    `python -m simvm validate --fidelity --jobs 2 --out docs/fidelity.json` writes them anew, and
    `python -m docs.refresh --tables` puts them into the page.
    """
    shown = json.loads(refresh().FIDELITIES.read_text("utf-8"))["rows"]
    if full_size:
        found = in_full()["rows"]
        assert without_roundoff(shown) == without_roundoff(found)
        return
    shown = [row for row in shown if row["scenario"] == "sweep_free"]
    found = fidelity.run(["sweep_free"], seeds=1)["rows"]
    for one, two in zip(without_roundoff(shown), without_roundoff(found), strict=True):
        assert one["standard_error"] == 0
        for key in ("figure", "exact", "sampled", "error", "bias"):
            assert one[key] == two[key], (one["figure"], key)


def test_a_side_that_differs_is_outside_its_tolerance() -> None:
    """A tenth fewer pages to touch, and half of the compute time of an access."""
    other = ("guest.vm.workload.heap.allocate=22MiB", "guest.vm.workload.heap.cycles_per_access=25")
    data = fidelity.run(["zipf_in_memory"], seeds=1, sets=SHORT, other=other)
    outside = {row["figure"] for row in data["rows"] if row["within"] is False}
    assert outside == {"backed_bytes", "touched_bytes", "slowdown", "slat_faults"}
    assert fidelity.headline(data["rows"]).startswith("0 of 4 figures")


def test_processes_side_by_side_find_the_same() -> None:
    sets = ("scenario.duration=5ms", "scenario.sample_interval=1ms")
    alone, beside = (
        fidelity.run(["zipf_in_memory"], seeds=2, sets=sets, jobs=jobs) for jobs in (1, 2)
    )
    assert alone["rows"] == beside["rows"]
    assert alone["scenarios"][0]["curves"] == beside["scenarios"][0]["curves"]
    assert alone["scenarios"][0]["time_ns"] == [n * MS for n in range(6)]


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = fidelity.run

    def short(*args: Any, **options: Any) -> dict[str, Any]:
        return whole(*args, **options, sets=SHORT)

    monkeypatch.setattr(fidelity, "run", short)
    argv = ["validate", "--fidelity", "--scenario", "sweep_free", "--seeds", "1"]
    assert cli.main([*argv, "--format", "json", "--out", "found.json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "found.json").read_text())
    assert answer == kept
    assert kept["headline"] == "4 of 4 figures of `sampled` are within their tolerance"
    assert {row["scenario"] for row in kept["rows"]} == {"sweep_free"}
    picture = chart.svg(kept)
    assert "sweep_free: sampled less exact" in picture
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    assert "CPU time of a run" in shown
    assert "touched_bytes" in shown


def test_mistakes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="did you mean 'trace'"):
        fidelity.run(["trance"])
    assert cli.main(["validate", "--jobs", "2"]) == 2
    assert "--jobs goes with --fidelity" in capsys.readouterr().err
    assert cli.main(["validate", "--fidelity", "--seeds", "0"]) == 2
    assert "1 or more" in capsys.readouterr().err
