"""A part of the shipped day of a fleet: five guests, the busiest hour, a host as much too small."""

from __future__ import annotations

from pathlib import Path

from simvm.results import RunResult
from simvm.runner import run_file

FILE = Path(__file__).parents[1] / "scenarios" / "fleet_day.toml"
SETS = (
    "scenario.duration=70m", "scenario.warmup=10m", "guest.office.count=3", "guest.batch.count=2",
    "host.cores=10", "host.memory=51GiB", "host.swap.size=64GiB",
    "guest.office.workload.heap.usage.peak_at=40m", "guest.batch.workload.heap.usage.peak_at=40m",
)  # fmt: skip


def test_a_part_of_the_day_in_both_variants(tmp_path: Path) -> None:
    """A guest holds what it uses, in both: the host has less than the peaks come to, and swaps what
    is not accessed. A balloon leaves a guest 512 MiB more than it uses, so more is swapped for it.
    """
    host = {}
    for variant in ("base", "thp_balloon"):
        run_file(FILE, out=tmp_path / variant, sets=SETS, variant=variant)
        host[variant] = RunResult.load(tmp_path / variant / variant).summary["host"]
    passthrough, balloon = host["base"]["totals"], host["thp_balloon"]["totals"]
    assert balloon["swap_outs"] > passthrough["swap_outs"] > 100_000
    assert host["thp_balloon"]["slowdown"] > host["base"]["slowdown"] > 1.04
    for totals in (passthrough, balloon):
        assert 0 < totals["translation_error_ns"] < 0.01 * totals["translation_ns"]
        assert totals["oom_kills"] == 0
