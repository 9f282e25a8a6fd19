"""The verbs of the command line and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shtab

from simvm import __version__
from simvm.cli import verbs

Verb = Callable[[argparse.Namespace], None]


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(
        prog="simvm",
        description="Simulates a host with many virtual machines: what each way of mapping guest "
        "memory costs the host, and what it does to the guests.",
    )
    top.add_argument("--version", action="version", version=f"simvm {__version__}")
    shtab.add_argument_to(top, ["--print-completion"], help="print the completion of a shell")
    among = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_scenario(among)
    _add_check(among)
    _add_show(among)
    _add_report(among)
    _add_trace(among)
    _add_hardware(among)
    _add_walk(among)
    _add_validate(among)
    _add_bench(among)
    return top


def _verb(among: Any, name: str, run: Verb, help_: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = among.add_parser(name, help=help_, description=help_)
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


def _add_scenario(among: Any) -> None:
    made = _verb(
        among, "scenario", verbs.scenario, "run a scenario and its variants, and compare them"
    )
    _file(made, "file", "a scenario")
    made.add_argument("--out", type=Path, help="the run directory (default: runs/NAME)")
    made.add_argument("--seed", type=_seed, help="instead of the scenario's own")
    made.add_argument("--variant", metavar="NAME", help="run this one only (base: none of them)")
    _sets(made)
    _format(made)
    _quiet(made)


def _add_check(among: Any) -> None:
    made = _verb(among, "check", verbs.check, "list all mistakes of a scenario, each with its fix")
    _file(made, "file", "a scenario")
    _sets(made)
    _format(made)


def _add_show(among: Any) -> None:
    made = _verb(
        among, "show", verbs.show, "print the resolved scenario, and where each value is from"
    )
    _file(made, "file", "a scenario")
    made.add_argument("--variant", metavar="NAME", help="of this variant")
    _sets(made)
    _format(made, "table", "json", "toml")


def _add_report(among: Any) -> None:
    made = _verb(among, "report", verbs.report, "write report.html and charts of a run directory")
    _file(made, "directory", "a run directory")
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="where the page goes (default: the run directory)"
    )
    _format(made)
    _quiet(made)


def _add_trace(among: Any) -> None:
    made: argparse.ArgumentParser = among.add_parser(
        "trace", help="recorded memory traces, and memory use over time"
    )
    below = made.add_subparsers(dest="subverb", required=True, metavar="VERB")
    take = _verb(
        below, "import", verbs.trace_import,
        "turn a recording of a program into a trace, or an export of memory use into a series",
    )  # fmt: skip
    _file(take, "source", "the recording, or the export; - is standard input")
    take.add_argument(
        "--out", type=Path,
        help="the trace (default: runs/SOURCE.simvm-trace), or the folder of the series (runs)",
    )  # fmt: skip
    take.add_argument(
        "--kind", help="what wrote it: lackey, the default; with --usage csv, parquet, "
        "node_exporter or libvirt (default: by what it looks like)",
    )  # fmt: skip
    usage = take.add_argument_group("memory use over time")
    usage.add_argument("--usage", action="store_true", help="read an export of memory use")
    usage.add_argument(
        "--time", default="auto", help="unit of its times: s, ms, us or ns (default: by the "
        "format, else by the size of the first one)",
    )  # fmt: skip
    usage.add_argument(
        "--gaps", choices=("error", "hold"), default="error",
        help="where rows are missing: refuse, or let the last value hold (default: %(default)s)",
    )  # fmt: skip
    usage.add_argument(
        "--duplicates", choices=("error", "first", "last"), default="error",
        help="which of several rows of one time to keep (default: %(default)s)",
    )  # fmt: skip
    take.add_argument("--instructions", action="store_true", help="keep instruction fetches")
    take.add_argument("--program", help="its name, for the header")
    take.add_argument("--command", help="how it was recorded, for the header")
    take.add_argument("--skip", type=_count, default=0, help="leave out this many accesses first")
    take.add_argument("--limit", type=_count, help="keep this many accesses")
    _format(take)
    _quiet(take)
    info = _verb(below, "info", verbs.trace_info, "describe a trace, or a series of memory use")
    _file(info, "file", 'a trace, a usage file, or "builtin"')
    _format(info)


def _add_hardware(among: Any) -> None:
    made: argparse.ArgumentParser = among.add_parser("hardware", help="CPU and cost parameters")
    below = made.add_subparsers(dest="subverb", required=True, metavar="VERB")
    listed = _verb(below, "list", verbs.hardware_list, "list the CPUs")
    _format(listed)
    shown = _verb(below, "show", verbs.hardware_show, "every figure of a CPU with its source")
    _file(shown, "name", 'a CPU, the path of one, or "costs"')
    _format(shown)
    cited = _verb(below, "cite", verbs.hardware_cite, "where every figure is from, as BibTeX")
    cited.add_argument(
        "names", nargs="*", metavar="NAME", help='CPUs, paths, or "costs" (default: all of them)'
    ).complete = shtab.FILE  # type: ignore[attr-defined]
    _format(cited, "bibtex", "json")


def _add_walk(among: Any) -> None:
    made = _verb(among, "walk", verbs.walk, "what one page walk loads, with every cache off")
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


def _add_validate(among: Any) -> None:
    made = _verb(among, "validate", verbs.validate, "compare the simulator with published figures")
    _format(made)
    one = made.add_argument_group("--fidelity: compare `sampled` with `exact` instead")
    one.add_argument("--fidelity", action="store_true", help="on scenarios small enough for both")
    one.add_argument("--seeds", type=_positive, metavar="N", help="1 to N (default: 10)")
    one.add_argument("--jobs", type=_positive, metavar="N", help="processes (default: 1)")
    one.add_argument(
        "--scenario", dest="scenarios", action="append", metavar="NAME",
        help="this one alone; repeatable",
    )  # fmt: skip
    one.add_argument("--out", type=Path, help="write the answer, as JSON, into this file too")


def _add_bench(among: Any) -> None:
    made = _verb(among, "bench", verbs.bench, "measure how fast the simulator is")
    made.add_argument("--only", choices=("core", "scale", "memory"), help="this part alone")
    made.add_argument(
        "--case", dest="cases", action="append", default=[], metavar="NAME",
        help="this case of core or scale alone; repeatable",
    )  # fmt: skip
    _format(made)


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError("a seed is 0 to 2^63 - 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("1 or more")
    return value


def _count(text: str) -> int:
    from simvm.units import UnitError, parse_count

    try:
        return parse_count(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
