"""The command line: verbs to calls, and exceptions to exit codes.

Data goes to stdout, messages and progress to stderr; bars appear on a terminal only.
What a verb needs is imported when the verb runs, so that ``check`` works without the
compiled core and ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import shtab

from simvm import __version__
from simvm.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    ExpectationFailed,
    Interrupted,
    InvalidInput,
    Mistake,
    SimvmError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from simvm.runner import Progress

EXIT_SIGPIPE: Final = 141
"""What a shell reports of a program that SIGPIPE ended."""

_WIDTH: Final = 120
"""Columns of a table that does not go to a terminal."""

_LONG: Final = ("source", "value", "target")
"""Columns whose texts may go on in another line."""

Verb = Callable[[argparse.Namespace], None]


# --- the parser -------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(
        prog="simvm",
        description="Simulates a host with many virtual machines: what each way of mapping guest "
        "memory costs the host, and what it does to the guests.",
    )
    top.add_argument("--version", action="version", version=f"simvm {__version__}")
    shtab.add_argument_to(top, ["--print-completion"], help="print the completion of a shell")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_scenario(verbs)
    _add_check(verbs)
    _add_show(verbs)
    _add_report(verbs)
    _add_trace(verbs)
    _add_hardware(verbs)
    _add_walk(verbs)
    _add_validate(verbs)
    _add_bench(verbs)
    return top


def _verb(verbs: Any, name: str, run: Verb, help_: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(name, help=help_, description=help_)
    made.set_defaults(run=run)
    return made


def _file(made: argparse.ArgumentParser, name: str, help_: str) -> None:
    made.add_argument(name, metavar=name.upper(), help=help_).complete = shtab.FILE  # type: ignore[attr-defined]


def _format(made: argparse.ArgumentParser, *formats: str) -> None:
    choices = formats or ("table", "json")
    made.add_argument("--format", choices=choices, default=choices[0], help="of the answer")


def _quiet(made: argparse.ArgumentParser) -> None:
    made.add_argument("--quiet", action="store_true", help="no messages, no progress")


def _sets(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="PATH=VALUE",
        help="replace a value of the file, such as guest.web.page_size=1GiB; repeatable",
    )  # fmt: skip


def _add_scenario(verbs: Any) -> None:
    made = _verb(verbs, "scenario", _scenario, "run a scenario and its variants, and compare them")
    _file(made, "file", "a scenario")
    made.add_argument("--out", type=Path, help="the run directory (default: runs/NAME)")
    made.add_argument("--seed", type=_seed, help="instead of the scenario's own")
    made.add_argument("--variant", metavar="NAME", help="run this one only (base: none of them)")
    _sets(made)
    _format(made)
    _quiet(made)


def _add_check(verbs: Any) -> None:
    made = _verb(verbs, "check", _check, "list all mistakes of a scenario, each with its fix")
    _file(made, "file", "a scenario")
    _sets(made)
    _format(made)


def _add_show(verbs: Any) -> None:
    made = _verb(verbs, "show", _show, "print the resolved scenario, and where each value is from")
    _file(made, "file", "a scenario")
    made.add_argument("--variant", metavar="NAME", help="of this variant")
    _sets(made)
    _format(made, "table", "json", "toml")


def _add_report(verbs: Any) -> None:
    made = _verb(verbs, "report", _report, "write report.html and charts of a run directory")
    _file(made, "directory", "a run directory")
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="where the page goes (default: the run directory)"
    )
    _format(made)
    _quiet(made)


def _add_trace(verbs: Any) -> None:
    made: argparse.ArgumentParser = verbs.add_parser("trace", help="recorded memory traces")
    below = made.add_subparsers(dest="subverb", required=True, metavar="VERB")
    take = _verb(below, "import", _trace_import, "turn a recording of a program into a trace")
    _file(take, "source", "the recording; - is standard input")
    take.add_argument("--out", type=Path, help="the trace (default: runs/SOURCE.simvm-trace)")
    take.add_argument("--kind", default="lackey", help="what wrote it (default: %(default)s)")
    take.add_argument("--instructions", action="store_true", help="keep instruction fetches")
    take.add_argument("--program", help="its name, for the header")
    take.add_argument("--command", help="how it was recorded, for the header")
    take.add_argument("--skip", type=_count, default=0, help="leave out this many accesses first")
    take.add_argument("--limit", type=_count, help="keep this many accesses")
    _format(take)
    _quiet(take)
    info = _verb(below, "info", _trace_info, "describe a trace")
    _file(info, "file", 'a trace, or "builtin"')
    _format(info)


def _add_hardware(verbs: Any) -> None:
    made: argparse.ArgumentParser = verbs.add_parser("hardware", help="CPU and cost parameters")
    below = made.add_subparsers(dest="subverb", required=True, metavar="VERB")
    listed = _verb(below, "list", _hardware_list, "list the CPUs")
    _format(listed)
    shown = _verb(below, "show", _hardware_show, "every figure of a CPU with its source")
    _file(shown, "name", 'a CPU, the path of one, or "costs"')
    _format(shown)
    cited = _verb(below, "cite", _hardware_cite, "where every figure is from, as BibTeX")
    cited.add_argument(
        "names", nargs="*", metavar="NAME", help='CPUs, paths, or "costs" (default: all of them)'
    ).complete = shtab.FILE  # type: ignore[attr-defined]
    _format(cited, "bibtex", "json")


def _add_walk(verbs: Any) -> None:
    made = _verb(verbs, "walk", _walk, "what one page walk loads, with every cache off")
    made.add_argument("--guest", metavar="SIZE", help="the guest's leaf: 4KiB, 2MiB or 1GiB")
    made.add_argument("--host", metavar="SIZE", required=True, help="the host's leaf")
    for side in ("guest", "host"):
        made.add_argument(f"--{side}-levels", type=int, help="2 to 5 (default: 4; 3 above 4KiB)")
        made.add_argument(f"--{side}-granule", metavar="SIZE", help="4KiB, 16KiB or 64KiB")
        made.add_argument(f"--{side}-format", metavar="NAME", help="such as x86-5, sv48, sv39x4")
    made.add_argument("--host-root-tables", type=int, help="in a row: 1, 2, 4, 8 or 16 (stage 2)")
    made.add_argument(
        "--contiguous", nargs="?", const="both", choices=("guest", "host", "both"),
        help="the side whose 4KiB page bears the contiguous hint (default: both)",
    )  # fmt: skip
    made.add_argument(
        "--guest-table-host", metavar="SIZE", help="the host's leaf under guest table pages"
    )
    made.add_argument(
        "--virtualization", choices=("nested", "none"), default="nested",
        help="none: --host alone (default: %(default)s)",
    )  # fmt: skip
    _format(made)


def _add_validate(verbs: Any) -> None:
    made = _verb(verbs, "validate", _validate, "compare the simulator with published figures")
    _format(made)


def _add_bench(verbs: Any) -> None:
    made = _verb(verbs, "bench", _bench, "measure how fast the simulator is")
    made.add_argument("--only", choices=("core", "scale", "memory"), help="this part alone")
    made.add_argument(
        "--case", dest="cases", action="append", default=[], metavar="NAME",
        help="this case alone; repeatable",
    )  # fmt: skip
    _format(made)


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError("a seed is 0 to 2^63 - 1")
    return value


def _count(text: str) -> int:
    from simvm.units import UnitError, parse_count

    try:
        return parse_count(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# --- output -----------------------------------------------------------------------------


def _console() -> Console:
    """Where tables go: stdout, at a width of its own where that is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH, soft_wrap=False)


def _answer(args: argparse.Namespace, data: Any, table: Callable[[], RenderableType]) -> None:
    """The answer of a verb, in the format that was asked for."""
    if args.format == "json":
        print(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        console = _console()
        with console.capture() as text:  # on a closed pipe rich itself would exit with 1
            console.print(table())
        print(text.get(), end="")


def _rows(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head not in _LONG)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _tell(args: argparse.Namespace, text: str) -> None:
    """A message, unless --quiet."""
    if not args.quiet:
        print(text, file=sys.stderr)


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Progress | None]:
    """A bar for each variant with rate and time left; on a terminal only."""
    if args.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from simvm.units import human_count, human_ns

    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}

    def show(variant: str, now: int, done: int, total: int | None) -> None:
        if variant not in tasks:
            for task in tasks.values():
                bars.update(task, completed=bars.tasks[task].total or 1, total=None)
                bars.stop_task(task)
            tasks[variant] = bars.add_task(variant, total=total, done="")
        task = tasks[variant]
        speed = bars.tasks[task].speed
        rate = f", {human_count(round(speed))}/s" if speed else ""
        text = f"{human_count(done)} accesses{rate}, at {human_ns(now)}"
        bars.update(task, completed=done, total=total, done=text)

    with bars:
        yield show


@contextmanager
def _steps(args: argparse.Namespace) -> Iterator[Callable[[str, int, int], None] | None]:
    """How many steps of a list are done, and which is under way; on a terminal only."""
    if getattr(args, "quiet", False) or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda name, done, total: status.update(f"{done} of {total}: {name}")


@contextmanager
def _reading(args: argparse.Namespace) -> Iterator[Callable[[int, int], None] | None]:
    """How far an import has come; on a terminal only."""
    if args.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    from simvm.units import human_bytes, human_count

    with Console(stderr=True).status("reading") as status:
        yield lambda read, kept: status.update(
            f"{human_bytes(read)} read, {human_count(kept)} accesses kept"
        )


def _complain(mistakes: Sequence[Mistake], stream: Any) -> None:
    """All mistakes, grouped by file."""
    for file in dict.fromkeys(mistake.file for mistake in mistakes):
        those = [mistake for mistake in mistakes if mistake.file == file]
        number = "1 mistake" if len(those) == 1 else f"{len(those)} mistakes"
        print(f"{file or 'input'}: {number}", file=stream)
        for mistake in those:
            value = f" = {mistake.value}" if mistake.value else ""
            if mistake.key or value:
                print(f"  {mistake.key or 'found'}{value}", file=stream)
            print(f"    rule: {mistake.rule}", file=stream)
            print(f"    fix:  {mistake.fix}", file=stream)


# --- verbs ------------------------------------------------------------------------------


def _scenario(args: argparse.Namespace) -> None:
    from simvm import scenario
    from simvm.core_check import load_core

    name = scenario.load(args.file, args.sets).scenario.name
    load_core()  # before anything is written
    out = args.out if args.out is not None else Path("runs") / name
    from simvm.report import comparison_table, write_report
    from simvm.runner import run_file

    with _progress(args) as progress:
        outcome = run_file(
            args.file, out=out, seed=args.seed, sets=args.sets, variant=args.variant,
            progress=progress,
        )  # fmt: skip
    page = write_report(outcome.directory)
    _answer(args, outcome.summary, lambda: comparison_table(outcome.summary))
    _tell(args, f"report: {page}")
    if outcome.partial:
        raise Interrupted(f"stopped early; what was done is in {outcome.directory}")
    if outcome.failed_expectations:
        raise ExpectationFailed(outcome.failed_expectations)


def _check(args: argparse.Namespace) -> None:
    from simvm import scenario

    mistakes = scenario.check(args.file, args.sets)
    if args.format == "json":
        listed = [_as_dict(mistake) for mistake in mistakes]
        print(json.dumps({"file": args.file, "mistakes": listed}, indent=1, ensure_ascii=False))
    elif mistakes:
        _complain(mistakes, sys.stdout)
    else:
        names = list(scenario.variants(args.file, args.sets))
        print(f"{args.file}: no mistakes in {', '.join(names)}")
    if mistakes:
        raise SystemExit(EXIT_INVALID)


def _as_dict(mistake: Mistake) -> dict[str, str]:
    names = ("file", "key", "value", "rule", "fix")
    return {name: getattr(mistake, name) for name in names}


def _show(args: argparse.Namespace) -> None:
    from simvm import scenario

    if args.format == "toml":
        found = scenario.resolve(args.file, args.sets, args.variant)
        print(scenario.to_toml(found, Path()), end="")
        return
    rows = scenario.show(args.file, args.sets, args.variant)
    data = [{"key": key, "value": value, "origin": origin} for key, value, origin in rows]
    _answer(args, data, lambda: _rows("", ("key", "value", "from"), rows))


def _report(args: argparse.Namespace) -> None:
    from simvm.report import comparison_table, write_report
    from simvm.results import comparison, load_runs

    page = write_report(args.directory, args.out)
    summary = comparison(load_runs(args.directory))
    _answer(args, summary, lambda: comparison_table(summary))
    _tell(args, f"report: {page}")


def _trace_import(args: argparse.Namespace) -> None:
    from simvm.workload.trace import SUFFIX
    from simvm.workload.trace_import import import_trace

    stem = "trace" if args.source == "-" else Path(args.source).name
    out = args.out if args.out is not None else Path("runs") / f"{stem}{SUFFIX}"
    if args.out is None:
        out.parent.mkdir(exist_ok=True)
    with _reading(args) as progress:
        header = import_trace(
            args.source, out, kind=args.kind, instructions=args.instructions,
            program=args.program, command=args.command, skip=args.skip, limit=args.limit,
            progress=progress,
        )  # fmt: skip
    data = header.model_dump(mode="json", exclude={"segments"})
    data |= {"accesses": header.accesses, "region_bytes": header.region_bytes}
    _answer(args, data, lambda: _facts(data))
    _tell(args, f"trace: {out}")


def _trace_info(args: argparse.Namespace) -> None:
    from simvm.scenario import BUILTIN_TRACE
    from simvm.workload.trace import builtin_trace
    from simvm.workload.trace_info import trace_info

    data = trace_info(builtin_trace() if args.file == BUILTIN_TRACE else args.file)
    _answer(args, data, lambda: _facts(data))


def _facts(data: Mapping[str, Any]) -> RenderableType:
    """Facts by name, and what is a list of them as a table of its own."""
    from rich.console import Group

    plain = [(key, value) for key, value in data.items() if not isinstance(value, list)]
    parts = [_rows("", ("fact", "value"), plain)]
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            parts.append(_rows(key, list(value[0]), [list(row.values()) for row in value]))
    return Group(*parts)


def _hardware_list(args: argparse.Namespace) -> None:
    from simvm import hardware

    data = hardware.overview()
    _answer(args, data, lambda: _rows("", hardware.HEADS, [hardware.row(cpu) for cpu in data]))


def _hardware_show(args: argparse.Namespace) -> None:
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
    _answer(args, data, lambda: _rows(title, heads, rows))


def _hardware_cite(args: argparse.Namespace) -> None:
    from simvm import hardware

    found = hardware.cite(args.names)
    if args.format == "bibtex":
        print(hardware.to_bibtex(found), end="")
    else:
        _answer(args, hardware.to_json(found), lambda: "")


def _walk(args: argparse.Namespace) -> None:
    from inspect import signature

    from simvm.walk import walk

    data = walk(**{name: getattr(args, name) for name in signature(walk).parameters})
    title = f"{data['loads']} loads; the TLB entry covers {data['tlb_entry']}"

    def table() -> RenderableType:
        steps = [{"number": i, **step} for i, step in enumerate(data["steps"], 1)]
        rows = [[_hexadecimal(key, step[key]) for key in step] for step in steps]
        return _rows(title, list(steps[0]), rows)

    _answer(args, data, table)


def _hexadecimal(key: str, value: Any) -> Any:
    return f"{value:#x}" if key == "address" else value


def _validate(args: argparse.Namespace) -> None:
    from simvm import validation

    with _steps(args) as progress:
        rows = validation.run(progress=progress)
    _answer(args, {"rows": rows}, lambda: _validation_table(rows))


def _validation_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """The rows, and below them the notes, each once."""
    from rich.console import Group
    from rich.text import Text

    heads = ("target", "class", "published", "simulated", "error", "tolerance", "measure", "within")
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    table = [
        [*(row[head] for head in heads), notes.index(row["note"]) + 1 if row["note"] else None]
        for row in rows
    ]
    below = (Text(f"{number}: {note}") for number, note in enumerate(notes, 1))
    return Group(_rows("", (*heads, "note"), table), *below)


def _bench(args: argparse.Namespace) -> None:
    from simvm import bench

    with _steps(args) as progress:
        data = bench.run(only=args.only, cases=args.cases, progress=progress)
    _answer(args, data, lambda: bench.tables(data))


# --- the program ------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Parameters
    ----------
    argv
        Arguments without the program's name; by default those of the process.
    """
    try:
        try:
            args = parser().parse_args(argv)
            args.run(args)
        finally:
            sys.stdout.flush()
        return EXIT_DONE
    except SystemExit as stop:  # of argparse, after its message
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    except BrokenPipeError:
        # Nobody reads any more. Python would complain once again when it closes stdout.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return EXIT_SIGPIPE
    except KeyboardInterrupt:
        print("simvm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except InvalidInput as error:
        _complain(error.mistakes, sys.stderr)
        return error.exit_code
    except SimvmError as error:
        print(f"simvm: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """What is no exception of simvm's own: a bad directory, a full disk, or a defect."""
    from simvm.results import ResultError

    if isinstance(error, ResultError):
        print(f"simvm: {error}", file=sys.stderr)
        return EXIT_INVALID
    if isinstance(error, OSError):
        print(f"simvm: {error}", file=sys.stderr)
        return EXIT_FAILED
    traceback.print_exception(error)
    print("simvm: this is a defect of simvm", file=sys.stderr)
    return EXIT_FAILED
