"""From a scenario to results: one run, or a file with all its variants.

The same scenario and seed give the same summary and timeline; what the wall clock says
goes to the manifest alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simvm import provenance
from simvm.recorder import TIMELINE_FILE, Recorder
from simvm.results import RunResult, RunWriter, Timeline
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
    """Run one scenario in memory.

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

    Ctrl-C ends the run early: what was done so far is kept and marked as partial.

    Raises
    ------
    InvalidInput
        The file has mistakes. Nothing is written.
    SimulationFailed
        An invariant did not hold. Nothing is written.
    """
    if seed is not None:
        sets = [*sets, f"scenario.seed={seed}"]
    chosen = (
        variants(path, sets) if variant is None else {variant: resolve(path, sets, variant)}
    )
    failed: list[str] = []
    watch = provenance.Stopwatch()
    results: dict[str, RunResult] = {}
    partial = False
    with RunWriter(out) as writer:
        for name, scenario in chosen.items():
            results[name] = result = _run(scenario, name, writer.variant(name), progress)
            partial = result.partial
            if partial:
                break
            failed += [
                f"{name}: {text}"
                for text in failures(result.summary, scenario.expect.get(BASE, {}))
            ]
        whole = provenance.whole_program(watch, [each.manifest for each in results.values()])
        for name, result in results.items():
            writer.finish(
                name, summary=result.summary, manifest=result.manifest | {"program_wall": whole},
                scenario_toml=to_toml(chosen[name], Path(out) / name),
            )  # fmt: skip
        summary = writer.publish()
    return ScenarioOutcome(Path(out), summary, failed, partial)


def _run(
    scenario: Scenario, variant: str, directory: Path | None, progress: Progress | None
) -> RunResult:
    """One run, into `directory` or (None) into memory."""
    from simvm.model.engine import Simulation, thorough

    watch = provenance.Stopwatch()
    code = digest(scenario)
    recorder = Recorder(
        directory / TIMELINE_FILE if directory is not None else None, thorough=thorough()
    )
    with recorder:
        simulation = Simulation(
            scenario, recorder, None if progress is None else _watcher(progress, variant)
        )
        simulation.run()
        table = recorder.close(simulation.partial)
    summary = simulation.summary(code)
    manifest = provenance.manifest(
        scenario_digest=code, seed=scenario.scenario.seed, variant=variant, watch=watch,
        accesses=simulation.accesses, events=simulation.env.events,
        simulated_ns=simulation.env.now, partial=simulation.partial,
        exit_reason="interrupted" if simulation.partial else "done",
    )  # fmt: skip
    if directory is not None:
        return RunResult(summary, Timeline.read(directory / TIMELINE_FILE), manifest, directory)
    assert table is not None
    return RunResult(summary, Timeline(table), manifest)


def _watcher(progress: Progress, variant: str) -> Callable[[int, int, int | None], None]:
    def watch(now: int, done: int, total: int | None) -> None:
        progress(variant, now, done, total)

    return watch
