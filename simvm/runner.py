"""From a scenario to results: one run, or a file with all its variants.

The same scenario and seed give the same summary and timeline; what the wall clock says
goes to the manifest alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from simvm import provenance
from simvm.recorder import Recorder
from simvm.results import RunResult, RunWriter
from simvm.scenario import (
    BASE,
    Scenario,
    digest,
    failures,
    resolve,
    to_toml,
    variants,
    with_values,
)
from simvm.timeline import TIMELINE_FILE, Timeline

Progress = Callable[[str, int, int, int | None], None]
"""Told as a run goes on: variant, simulated ns, accesses done, accesses in all or None."""


@dataclass(frozen=True)
class ScenarioOutcome:
    """What running a file came to."""

    directory: Path
    summary: dict[str, Any]
    """The comparison of the variants."""
    failed_expectations: list[str]
    partial: bool


def run(scenario: Scenario, seed: int | None = None) -> RunResult:
    """Run one scenario in memory, its timeline included: some 1.2 KB for each row of it.

    `run_file` writes the timeline as it goes; so should a long run of many guests.

    Parameters
    ----------
    scenario
        As `simvm.load` returns it. Its variants are not run.
    seed
        None: the scenario's own.

    Raises
    ------
    SimulationFailed
        An invariant did not hold.
    """
    if seed is not None:
        scenario = with_values(scenario, {"scenario.seed": seed})
    return _run(scenario, BASE, None, None)


def run_file(
    path: Path | str,
    *,
    out: Path | str,
    seed: int | None = None,
    sets: Sequence[str] = (),
    variant: str | None = None,
    progress: Progress | None = None,
) -> ScenarioOutcome:
    """Run the base and every variant of a file (or one of them) into a run directory.

    What there is so far stands in the directory as the run goes on, marked as partial, and
    stays there when the process is killed. Ctrl-C ends the run early and keeps what was done.

    Raises
    ------
    InvalidInput
        The file has mistakes. Nothing is written.
    SimulationFailed
        An invariant did not hold. Nothing is left, and what was there before is there again.
    """
    if seed is not None:
        sets = [*sets, f"scenario.seed={seed}"]
    chosen = (
        variants(path, sets) if variant is None else {variant: resolve(path, sets, variant)}
    )
    failed: list[str] = []
    watch = provenance.Stopwatch()
    results: dict[str, RunResult] = {}
    places: dict[str, _Place] = {}
    cut = False
    with RunWriter(out) as writer:
        for name, scenario in chosen.items():
            places[name] = place = _Place(writer, name, scenario)
            results[name] = result = _run(scenario, name, place, progress)
            cut = result.partial
            if cut:
                break
            failed += [
                f"{name}: {text}"
                for text in failures(result.summary, scenario.expect.get(BASE, {}))
            ]
        whole = provenance.whole_program(watch, [each.manifest for each in results.values()])
        for name, result in results.items():
            places[name].write(result.summary, result.manifest | {"program_wall": whole})
        summary = writer.publish()
    return ScenarioOutcome(Path(out), summary, failed, cut)


class _Place:
    """Where a variant's files go."""

    def __init__(self, writer: RunWriter, name: str, scenario: Scenario) -> None:
        self.directory = writer.variant(name)
        self.timeline = self.directory / TIMELINE_FILE
        self._write = partial(
            writer.write, name, scenario_toml=to_toml(scenario, self.directory)
        )

    def write(self, summary: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Write what the run has come to, beside its timeline."""
        self._write(summary=summary, manifest=manifest)


LEAST_S: float = 2.0
SHARE_OF_TIME: float = 1 / 50


class Pace:
    """When to write what a killed run would miss.

    At once, then every `LEAST_S` seconds, and less often as time goes by: after a hundredth
    of the time so far, and so that it takes no more than `SHARE_OF_TIME`.
    """

    def __init__(self) -> None:
        self._start = self._next = perf_counter()

    def keep(self, write: Callable[[], None]) -> None:
        """Write, if it is time to."""
        began = perf_counter()
        if began < self._next:
            return
        write()
        ended = perf_counter()
        self._next = ended + max(
            LEAST_S, (ended - self._start) / 100, (ended - began) / SHARE_OF_TIME
        )


def _run(
    scenario: Scenario, variant: str, place: _Place | None, progress: Progress | None
) -> RunResult:
    """One run, into its place or (None) into memory."""
    from simvm.model.engine import Simulation, thorough

    watch = provenance.Stopwatch()
    code = digest(scenario)

    def summary_and_manifest(reason: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return simulation.summary(code), provenance.manifest(
            scenario_digest=code, seed=scenario.scenario.seed, variant=variant, watch=watch,
            accesses=simulation.accesses, events=simulation.env.events,
            simulated_ns=simulation.env.now, partial=simulation.partial, exit_reason=reason,
        )  # fmt: skip

    def figures_so_far() -> None:
        assert place is not None
        recorder.flush()    # a summary may be behind the timeline, never ahead of it
        place.write(*summary_and_manifest("unfinished"))

    def at_sample(now: int, done: int, total: int | None) -> None:
        if progress is not None:
            progress(variant, now, done, total)
        if place is not None:
            rows.keep(recorder.flush)
            figures.keep(figures_so_far)

    recorder = Recorder(place.timeline if place is not None else None, thorough=thorough())
    rows, figures = Pace(), Pace()
    with recorder:
        simulation = Simulation(scenario, recorder, at_sample)
        simulation.run()
        table = recorder.close(simulation.partial)
    summary, manifest = summary_and_manifest("interrupted" if simulation.partial else "done")
    if place is None:
        assert table is not None
        return RunResult(summary, Timeline(table), manifest)
    place.write(summary, manifest)
    timeline = Timeline.written(place.timeline, simulation.partial)
    return RunResult(summary, timeline, manifest, place.directory)
