"""Compares the two fidelities: `sampled` against `exact`, on scenarios small enough for both.

Each scenario of data/fidelity is run in both fidelities with the same seeds. What is compared is
a curve over time, the mean over seeds, at the scenario's own sample times (all runs have the
same); a total of the whole run is a curve of one point. Figures are relative to the mean of
`exact`:

* `error`: mean over time of the absolute difference of the two mean curves. It is what a
  tolerance applies to. Deviations that take turns do not cancel in it, and so noise stays in it.
* `bias`: mean over time of the difference, with its sign, and `standard_error`, that of the bias,
  from the differences of the single seeds.
* `noise`: what `error` would be on average if both fidelities had one expectation and differed by
  chance alone: for each point √(2/π) times the standard error of the difference of two means. It
  takes runs for independent; those of one seed share their draws in part, so it errs high.
* `seed_error`: the mean over seeds of the absolute difference of two runs of one seed.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from simvm.errors import UsageError, did_you_mean
from simvm.runner import run as run_scenario
from simvm.scenario import Scenario
from simvm.validation import scenarios

FOLDER: Final = "fidelity"
SCENARIOS: Final = ("zipf_in_memory", "zipf_reclaim", "drift", "sweep_free", "trace")
SEEDS: Final = 10
"""Seeds are 1, 2, 3 and so on, fixed before anything was run."""

EXACT: Final[tuple[str, ...]] = ("scenario.fidelity=exact",)
SAMPLED: Final[tuple[str, ...]] = ("scenario.fidelity=sampled",)

GAUGES: Final = ("backed_bytes", "touched_bytes", "swapped_bytes")
TOLERANCES: Final[Mapping[str, float | None]] = {
    **dict.fromkeys(GAUGES, 0.02),
    "slowdown": 0.05,
    "slat_faults": 0.05,
    "swap_ins": 0.05,
    "overhead": None,
}
"""By figure. `overhead` is slowdown less one: what translation, faults and waiting add. It has no
tolerance of its own and is shown because a slowdown near one hides it."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Side = dict[str, Floats]
"""By figure, a row for each seed and a column for each point in time."""


@dataclass(frozen=True)
class Observed:
    """What is compared of one run."""

    time_ns: list[int]
    figures: dict[str, list[float]]
    accesses: int
    cpu_s: float
    """CPU time of the run, which another load of the machine hardly changes."""


def run(
    only: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    seeds: int = SEEDS,
    jobs: int = 1,
    sets: Sequence[str] = (),
    other: Sequence[str] = SAMPLED,
) -> dict[str, Any]:
    """Run the comparison.

    Parameters
    ----------
    only
        Names of scenarios, of `SCENARIOS`.
    progress
        Told after each run: the scenario, runs done, runs in all.
    seeds
        How many seeds, from 1 on.
    jobs
        Processes that run simulations side by side.
    sets
        Settings of both sides, as after `--set`.
    other
        Settings of the side that is held against `exact`.

    Returns
    -------
    dict
        ``seeds``; ``rows``, one for each scenario and figure, with what the module describes and
        ``exact``, ``sampled`` (means over time and seeds), ``tolerance``, ``within`` (None where
        there is no tolerance); ``scenarios`` with the curves and the CPU time of a run.

    Raises
    ------
    UsageError
        There is no such scenario.
    InvalidInput
        A setting is wrong.
    SimulationFailed
        An invariant did not hold in a run.
    """
    names = list(SCENARIOS) if only is None else list(dict.fromkeys(only))
    for name in names:
        if name not in SCENARIOS:
            raise UsageError(f"there is no scenario {name[:80]!r}: {did_you_mean(name, SCENARIOS)}")
    sides = {"exact": (*sets, *EXACT), "sampled": (*sets, *other)}
    loaded = {
        (name, side): scenarios.scenario(name, None, own, FOLDER)
        for name in names
        for side, own in sides.items()
    }
    wanted = [(name, side, seed) for name, side in loaded for seed in range(1, seeds + 1)]
    found: dict[tuple[str, str, int], Observed] = {}
    for key, observed in _observe_all({key: loaded[key[:2]] for key in wanted}, jobs):
        found[key] = observed
        if progress is not None:
            progress(key[0], len(found), len(wanted))
    rows: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    for name in names:
        runs = {side: [found[name, side, n] for n in range(1, seeds + 1)] for side in sides}
        exact, sampled = (_side(runs[side]) for side in ("exact", "sampled"))
        rows += [{"scenario": name, **row} for row in compare(exact, sampled)]
        described.append(_described(name, loaded[name, "exact"], runs, exact, sampled))
    return {"seeds": seeds, "rows": rows, "scenarios": described}


def observe(scenario: Scenario, seed: int) -> Observed:
    """Run a scenario and keep what is compared."""
    started = time.process_time()
    result = run_scenario(scenario, seed)
    cpu_s = time.process_time() - started
    host, summary = result.timeline.host(), result.summary["host"]
    figures = {name: host.values(name).tolist() for name in GAUGES}
    figures |= {name: [float(summary["totals"][name])] for name in ("slat_faults", "swap_ins")}
    figures["slowdown"] = [summary["slowdown"]]
    figures["overhead"] = [summary["slowdown"] - 1]
    times = [int(moment) for moment in host.values("time_ns")]
    return Observed(times, figures, summary["totals"]["accesses"], cpu_s)


def compare(exact: Side, other: Side) -> Iterator[dict[str, Any]]:
    """A row for each figure; none for what stays zero on both sides, as swap without reclaim."""
    for figure, tolerance in TOLERANCES.items():
        one, two = exact[figure], other[figure]
        scale = float(one.mean()) or float(two.mean())
        if not scale:
            continue
        seeds, difference = len(one), (two - one) / scale
        error = float(np.abs(difference.mean(axis=0)).mean())
        deviation = noise = None
        if seeds > 1:
            deviation = float(difference.mean(axis=1).std(ddof=1)) / seeds**0.5
            spread = (one.var(axis=0, ddof=1) + two.var(axis=0, ddof=1)) / seeds
            noise = float((2 / np.pi) ** 0.5 * np.sqrt(spread).mean()) / abs(scale)
        yield {
            "figure": figure,
            "exact": float(one.mean()),
            "sampled": float(two.mean()),
            "error": error,
            "tolerance": tolerance,
            "within": None if tolerance is None else error <= tolerance,
            "bias": float(difference.mean()),
            "standard_error": deviation,
            "noise": noise,
            "seed_error": float(np.abs(difference).mean()),
        }


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the comparison comes to."""
    judged = [row["within"] for row in rows if row["within"] is not None]
    return f"{sum(judged)} of {len(judged)} figures of `sampled` are within their tolerance"


def _observe_all(
    wanted: Mapping[tuple[str, str, int], Scenario], jobs: int
) -> Iterator[tuple[tuple[str, str, int], Observed]]:
    """Each run with its key, as it is done."""
    if jobs == 1:
        for key, scenario in wanted.items():
            yield key, observe(scenario, key[2])
        return
    # A fresh interpreter for each worker: a copy of this one might hold locks of its threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    try:
        keys = {pool.submit(observe, scenario, key[2]): key for key, scenario in wanted.items()}
        for done in as_completed(keys):
            yield keys[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _side(runs: Sequence[Observed]) -> Side:
    """The runs of one side as arrays; all of them have the same sample times."""
    return {name: np.array([each.figures[name] for each in runs]) for name in TOLERANCES}


def _described(
    name: str, scenario: Scenario, runs: Mapping[str, Sequence[Observed]], exact: Side, other: Side
) -> dict[str, Any]:
    sides = {"exact": exact, "sampled": other}
    return {
        "name": name,
        "question": scenario.scenario.question,
        "cpu_s": {
            side: float(np.mean([each.cpu_s for each in those])) for side, those in runs.items()
        },
        "accesses": {
            side: round(float(np.mean([each.accesses for each in those])))
            for side, those in runs.items()
        },
        "time_ns": runs["exact"][0].time_ns,
        "curves": {
            gauge: {side: _curve(values[gauge]) for side, values in sides.items()}
            for gauge in GAUGES
            if exact[gauge].any() or other[gauge].any()
        },
    }


def _curve(values: Floats) -> dict[str, list[int]]:
    """The mean over seeds at each time, and the least and the most of one seed."""
    parts = {
        "mean": values.mean(axis=0), "least": values.min(axis=0), "most": values.max(axis=0),
    }  # fmt: skip
    return {name: np.rint(part).astype(int).tolist() for name, part in parts.items()}
