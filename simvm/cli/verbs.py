"""What each verb does: a call of the library, and its answer.

What a verb needs is imported when it runs, so that ``check`` works without the compiled core and
``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simvm.cli import output
from simvm.errors import EXIT_INVALID, ExpectationFailed, Interrupted, Mistake, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType


def scenario(args: argparse.Namespace) -> None:
    from simvm import scenario
    from simvm.core_check import load_core

    name = scenario.load(args.file, args.sets).scenario.name
    load_core()  # before anything is written
    out = args.out if args.out is not None else Path("runs") / name
    from simvm.report import comparison_table, write_report
    from simvm.runner import run_file

    with output.progress_bars(args) as progress:
        outcome = run_file(
            args.file, out=out, seed=args.seed, sets=args.sets, variant=args.variant,
            progress=progress,
        )  # fmt: skip
    page = write_report(outcome.directory)
    output.answer(args, outcome.summary, lambda: comparison_table(outcome.summary))
    output.tell(args, f"report: {page}")
    if outcome.partial:
        raise Interrupted(f"stopped early; what was done is in {outcome.directory}")
    if outcome.failed_expectations:
        raise ExpectationFailed(outcome.failed_expectations)


def check(args: argparse.Namespace) -> None:
    from simvm import scenario

    mistakes = scenario.check(args.file, args.sets)
    if args.format == "json":
        listed = [_as_dict(mistake) for mistake in mistakes]
        print(json.dumps({"file": args.file, "mistakes": listed}, indent=1, ensure_ascii=False))
    elif mistakes:
        output.complain(mistakes, sys.stdout)
    else:
        names = list(scenario.variants(args.file, args.sets))
        print(f"{args.file}: no mistakes in {', '.join(names)}")
    if mistakes:
        raise SystemExit(EXIT_INVALID)


def _as_dict(mistake: Mistake) -> dict[str, str]:
    names = ("file", "key", "value", "rule", "fix")
    return {name: getattr(mistake, name) for name in names}


def show(args: argparse.Namespace) -> None:
    from simvm import scenario

    if args.format == "toml":
        found = scenario.resolve(args.file, args.sets, args.variant)
        print(scenario.to_toml(found, Path()), end="")
        return
    rows = scenario.show(args.file, args.sets, args.variant)
    data = [{"key": key, "value": value, "origin": origin} for key, value, origin in rows]
    output.answer(args, data, lambda: output.table("", ("key", "value", "from"), rows))


def report(args: argparse.Namespace) -> None:
    from simvm.report import comparison_table, write_report
    from simvm.results import comparison, is_complete, load_runs

    page = write_report(args.directory, args.out)
    summary = comparison(load_runs(args.directory), complete=is_complete(args.directory))
    output.answer(args, summary, lambda: comparison_table(summary))
    output.tell(args, f"report: {page}")


def trace_import(args: argparse.Namespace) -> None:
    if args.usage:
        _usage_import(args)
        return
    from simvm.workload.trace import SUFFIX
    from simvm.workload.trace_import import import_trace

    stem = "trace" if args.source == "-" else Path(args.source).name
    out = args.out if args.out is not None else Path("runs") / f"{stem}{SUFFIX}"
    if args.out is None:
        out.parent.mkdir(exist_ok=True)
    with output.reading(args) as progress:
        header = import_trace(
            args.source, out, kind=args.kind or "lackey", instructions=args.instructions,
            program=args.program, command=args.command, skip=args.skip, limit=args.limit,
            progress=progress,
        )  # fmt: skip
    data = header.model_dump(mode="json", exclude={"segments"})
    data |= {"accesses": header.accesses, "region_bytes": header.region_bytes}
    output.answer(args, data, lambda: _facts(data))
    output.tell(args, f"trace: {out}")


def _usage_import(args: argparse.Namespace) -> None:
    from simvm.workload.usage_import import import_usage

    with output.reading(args, "rows") as progress:
        data = import_usage(
            args.source, args.out if args.out is not None else Path("runs"),
            kind=args.kind or "auto", time=args.time, gaps=args.gaps, duplicates=args.duplicates,
            progress=progress,
        )  # fmt: skip
    path = data.pop("path")
    output.answer(args, data, lambda: _facts(_readable(data)))
    output.tell(args, f"series: {path}")


def trace_info(args: argparse.Namespace) -> None:
    from simvm.scenario import BUILTIN_TRACE
    from simvm.workload.trace import builtin_trace
    from simvm.workload.trace_info import trace_info
    from simvm.workload.usage_import import is_usage, usage_info

    if is_usage(args.file):
        found = usage_info(args.file)
        output.answer(args, found, lambda: _facts(_readable(found)))
        return
    data = trace_info(builtin_trace() if args.file == BUILTIN_TRACE else args.file)
    output.answer(args, data, lambda: _facts(data))


def _readable(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and times as people write them."""
    from simvm.units import human_bytes, human_ns

    def shown(key: str, value: Any) -> Any:
        if isinstance(value, int) and key.endswith("_ns"):
            return human_ns(value)
        return human_bytes(value) if isinstance(value, int) and "_bytes" in key else value

    return {key: shown(key, value) for key, value in data.items()}


def _facts(data: Mapping[str, Any]) -> RenderableType:
    """Facts by name, and what is a list of them as a table of its own."""
    from rich.console import Group

    plain = [(key, value) for key, value in data.items() if not isinstance(value, list)]
    parts = [output.table("", ("fact", "value"), plain)]
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            parts.append(output.table(key, list(value[0]), [list(row.values()) for row in value]))
    return Group(*parts)


def hardware_list(args: argparse.Namespace) -> None:
    from simvm import hardware

    data = hardware.overview()
    output.answer(
        args, data, lambda: output.table("", hardware.HEADS, [hardware.row(cpu) for cpu in data])
    )


def hardware_show(args: argparse.Namespace) -> None:
    from simvm import hardware

    if args.name == "costs":
        title, parameters = "", hardware.load_costs().parameters
    else:
        cpu = hardware.load_cpu(args.name)
        title, parameters = cpu.part, cpu.parameters
    names = ("name", "value", "unit", "lo", "hi", "tag", "source", "why", "what", "cites")
    data = [{name: getattr(found, name) for name in names} for found in parameters.values()]
    heads = ("name", "value", "unit", "range", "tag", "source")
    rows = [
        (p.name, p.value, p.unit, "" if p.lo is None else f"{p.lo} to {p.hi}", p.tag, p.source)
        for p in parameters.values()
    ]
    output.answer(args, data, lambda: output.table(title, heads, rows))


def hardware_cite(args: argparse.Namespace) -> None:
    from simvm import hardware

    found = hardware.cite(args.names)
    if args.format == "bibtex":
        print(hardware.to_bibtex(found), end="")
    else:
        output.answer(args, hardware.to_json(found), lambda: "")


def walk(args: argparse.Namespace) -> None:
    from inspect import signature

    from simvm.walk import walk

    data = walk(**{name: getattr(args, name) for name in signature(walk).parameters})
    title = f"{data['loads']} loads; the TLB entry covers {data['tlb_entry']}"

    def table() -> RenderableType:
        steps = [{"number": i, **step} for i, step in enumerate(data["steps"], 1)]
        rows = [[_hexadecimal(key, step[key]) for key in step] for step in steps]
        return output.table(title, list(steps[0]), rows)

    output.answer(args, data, table)


def _hexadecimal(key: str, value: Any) -> Any:
    return f"{value:#x}" if key == "address" else value


def validate(args: argparse.Namespace) -> None:
    from simvm import validation

    if args.fidelity:
        _compare_fidelities(args)
        return
    own = {"seeds": args.seeds, "jobs": args.jobs, "scenario": args.scenarios, "out": args.out}
    for option, value in own.items():
        if value is not None:
            raise UsageError(f"--{option} goes with --fidelity")
    with output.steps_done(args) as progress:
        rows = validation.run(progress=progress)
    headline = validation.headline(rows)
    data = {"headline": headline, "counts": validation.counts(rows), "rows": rows}
    output.answer(args, data, lambda: _validation_table(headline, rows))


def _validation_table(headline: str, rows: Sequence[dict[str, Any]]) -> RenderableType:
    """What it comes to, the rows, and below them what they depend on and notes, each once."""
    from rich.console import Group
    from rich.text import Text

    texts = [(", ".join(row["inputs"]), row["note"]) for row in rows]
    inputs, notes = ([*dict.fromkeys(filter(None, column))] for column in zip(*texts, strict=True))
    table = [
        [
            row["target"], row["class"], row["published"], row["simulated"], _error(row),
            _tolerance(row), row["within"], f"i{inputs.index(depends) + 1}",
            f"n{notes.index(note) + 1}" if note else None,
        ]
        for row, (depends, note) in zip(rows, texts, strict=True)
    ]  # fmt: skip
    below = [f"i{number}: {text}" for number, text in enumerate(inputs, 1)]
    below += [f"n{number}: {text}" for number, text in enumerate(notes, 1)]
    heads = (
        "target", "class", "published", "simulated", "error", "tolerance", "within", "on", "note",
    )  # fmt: skip
    whole = output.table("", heads, table)
    return Group(Text(headline), whole, *map(Text, below))


def _compare_fidelities(args: argparse.Namespace) -> None:
    from simvm.results import canonical_json, write_text
    from simvm.validation import fidelity

    with output.steps_done(args) as progress:
        data = fidelity.run(
            args.scenarios, progress, seeds=args.seeds or fidelity.SEEDS, jobs=args.jobs or 1
        )
    data = {"headline": fidelity.headline(data["rows"]), **data}
    if args.out is not None:
        write_text(args.out, canonical_json(data))
    output.answer(args, data, lambda: _fidelity_tables(data))


def _fidelity_tables(data: Mapping[str, Any]) -> RenderableType:
    """What it comes to, the figures, and what a run of each fidelity took."""
    from rich.console import Group
    from rich.text import Text

    heads = ("scenario", "figure", "exact", "sampled", "error", "tolerance", "within", "noise")
    figures = [
        [
            row["scenario"], row["figure"], row["exact"], row["sampled"],
            *(None if row[key] is None else f"{row[key]:.2%}" for key in ("error", "tolerance")),
            row["within"], None if row["noise"] is None else f"{row['noise']:.2%}",
            _bias(row),
        ]
        for row in data["rows"]
    ]  # fmt: skip
    times = [
        [each["name"], *each["cpu_s"].values(), each["cpu_s"]["exact"] / each["cpu_s"]["sampled"]]
        for each in data["scenarios"]
    ]
    return Group(
        Text(f"{data['headline']}; means of {data['seeds']} seeds"),
        output.table("", (*heads, "bias"), figures),
        output.table(
            "CPU time of a run, s", ("scenario", "exact", "sampled", "times faster"), times
        ),
    )


def _bias(row: Mapping[str, Any]) -> str:
    deviation = row["standard_error"]
    return f"{row['bias']:+.2%}" + ("" if deviation is None else f" ± {deviation:.2%}")


def _error(row: Mapping[str, Any]) -> str:
    if row["measure"] == "relative":
        return f"{row['error']:+.2%}" if row["error"] else "0"
    return f"{row['error']:g}{' pairs' if row['measure'] == 'pairs' else ''}"


def _tolerance(row: Mapping[str, Any]) -> str:
    if row["measure"] == "relative":
        return f"{row['tolerance']:.2%}" if row["tolerance"] else "exact"
    return f"{row['tolerance']}"


def bench(args: argparse.Namespace) -> None:
    from simvm import bench

    with output.steps_done(args) as progress:
        data = bench.run(only=args.only, cases=args.cases, progress=progress)
    output.answer(args, data, lambda: bench.tables(data))
