"""Results: a run, its timeline, and the directory they live in.

A run directory holds one full run per variant, ``base`` first::

    DIR/summary.json            compares the variants
    DIR/base/manifest.json      where the run came from
    DIR/base/scenario.toml      the resolved scenario; running it again gives the same bytes
    DIR/base/timeline.parquet   every sample
    DIR/base/summary.json       totals, peaks, means, percentiles, phases
    DIR/thp/...                 the same for each variant

It is built beside its place and renamed, so a reader sees all of it or nothing.
Summaries are canonical JSON: the same result gives the same bytes.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simvm.columns import CLASS, COLUMN, GUEST, HOST
from simvm.errors import EXIT_INVALID, SimvmError
from simvm.recorder import TIMELINE_FILE, TIMELINE_VERSION, timeline_version

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION: Final = 1
BASE: Final = "base"
MANIFEST_FILE: Final = "manifest.json"
SCENARIO_FILE: Final = "scenario.toml"
SUMMARY_FILE: Final = "summary.json"
REPORT_FILE: Final = "report.html"
CHARTS_DIRECTORY: Final = "charts"

HEADLINE: Final[tuple[str, ...]] = (
    "virtualization",
    "guest_page_size",
    "host_page_size",
    "zeroing",
    "channel",
    "peak_backed_bytes",
    "mean_backed_bytes",
    "peak_touched_bytes",
    "committed_bytes",
    "peak_tables_bytes",
    "peak_deposited_tables_bytes",
    "loads_per_walk",
    "cycles_per_walk",
    "tlb_misses_per_kaccess",
    "slat_faults",
    "guest_faults",
    "fault_stall_ns",
    "psi_some",
    "returned_share",
    "first_gib_back_ns",
    "last_back_ns",
    "swap_ins",
    "swap_outs",
    "oom_kills",
    "slowdown",
)
"""What a variant's row in the comparison holds."""

_RUN_FILES: Final = frozenset({MANIFEST_FILE, SCENARIO_FILE, SUMMARY_FILE, TIMELINE_FILE})
_VARIANT_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class ResultError(SimvmError, ValueError):
    """A directory that is not a run, or not one that this version reads or may replace."""

    exit_code = EXIT_INVALID


# --- canonical JSON ---------------------------------------------------------------------


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a summary")


def canonical_json(value: object) -> str:
    """`value` as JSON text with sorted keys, integers exact, floats by repr, a last newline.

    Raises
    ------
    ValueError
        A float is infinite or not a number.
    """
    return (
        json.dumps(
            value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False, default=_plain
        )
        + "\n"
    )


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8, newlines as they are) beside `path` and rename it there."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(text.encode())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file whose ``schema_version`` this version reads.

    Raises
    ------
    ResultError
        The file is missing, is not JSON, or has another ``schema_version``.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ResultError(f"{path.parent} is no run directory: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise ResultError(f"{path}: schema_version is {version!r}, must be {SCHEMA_VERSION}")
    assert isinstance(value, dict)
    return value


def percentiles(
    values: Sequence[float] | np.ndarray[Any, Any], which: Sequence[float] = (50, 95, 99)
) -> dict[str, int | float] | None:
    """Percentiles by nearest rank, so that each is a value that occurred.

    Parameters
    ----------
    values
        Integers stay integers. Not-a-number is refused.

    Returns
    -------
    ``{"p50": ..., "p95": ..., "p99": ...}``, or None when there are no values.
    """
    ordered = np.sort(np.asarray(values))
    if ordered.size == 0:
        return None
    if ordered.dtype.kind == "f" and math.isnan(ordered[-1]):
        raise ValueError("percentiles of not-a-number")

    def value(percent: float) -> int | float:
        rank = max(1, math.ceil(percent * ordered.size / 100))
        found: int | float = ordered[rank - 1].item()
        return found

    return {f"p{percent:g}": value(percent) for percent in which}


# --- a run ------------------------------------------------------------------------------


class Timeline:
    """The samples of a run, or those of one host, class or guest of it."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def read(cls, path: Path) -> Timeline:
        """The timeline in a Parquet file.

        Raises
        ------
        ResultError
            The file is missing, broken, no timeline, or one of another version.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise ResultError(f"{path} cannot be read: {error}") from None
        version = timeline_version(table.schema)
        if version != TIMELINE_VERSION:
            raise ResultError(f"{path}: timeline version is {version}, must be {TIMELINE_VERSION}")
        return cls(table)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._table.column_names)

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table."""
        return self._table

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas frame; a counter with nulls becomes a nullable integer.

        Raises
        ------
        ImportError
            pandas is not installed; ``to_arrow`` needs none.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ImportError(
                "to_pandas needs pandas, which is not installed: pip install pandas, "
                "or use to_arrow()"
            ) from None
        frame: pd.DataFrame = self._table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        return frame.astype({"time_ns": "int64", "guest": "int64"})

    def host(self) -> Timeline:
        """The rows of the host."""
        return self._where(HOST, "", -1)

    def guest_class(self, name: str) -> Timeline:
        """The rows of a class of guests, each the sum over its guests."""
        return self._where(CLASS, name, -1)

    def guest(self, class_: str, index: int) -> Timeline:
        """The rows of one guest."""
        return self._where(GUEST, class_, index)

    def guests(self) -> list[tuple[str, int]]:
        """Class and number of every guest, in order of appearance."""
        rows = self._table.filter(pc.equal(self._table["scope"], GUEST))
        pairs = zip(rows["class"].to_pylist(), rows["guest"].to_pylist(), strict=True)
        return list(dict.fromkeys(pairs))

    def values(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One column as floats, null as not-a-number (exact up to 2^53).

        Raises
        ------
        KeyError
            There is no such column.
        """
        if name not in COLUMN:
            raise KeyError(name)
        floats: np.ndarray[Any, np.dtype[np.float64]] = (
            self._table[name].cast(pa.float64(), safe=False).to_numpy()
        )
        return floats

    def _where(self, scope: str, class_: str, guest: int) -> Timeline:
        table = self._table
        mask = pc.and_(
            pc.equal(table["scope"], scope),
            pc.and_(pc.equal(table["class"], class_), pc.equal(table["guest"], guest)),
        )
        found = table.filter(mask)
        if found.num_rows == 0 and table.num_rows:
            what = scope if scope == HOST else f"{scope} {class_}"
            raise KeyError(f"{what}.{guest}" if scope == GUEST else what)
        return Timeline(found)


@dataclass(frozen=True)
class RunResult:
    """One run: its summary, timeline and manifest, and where they are stored, if they are."""

    summary: dict[str, Any]
    timeline: Timeline
    manifest: dict[str, Any]
    directory: Path | None = None

    @classmethod
    def load(cls, directory: Path | str) -> RunResult:
        """The run in `directory`; of a directory that compares variants, the base.

        Raises
        ------
        ResultError
            There is no run, or not one that this version reads.
        """
        directory = Path(directory)
        if not (directory / MANIFEST_FILE).exists() and (directory / BASE).is_dir():
            directory = directory / BASE
        return cls(
            manifest=read_json(directory / MANIFEST_FILE),
            summary=read_json(directory / SUMMARY_FILE),
            timeline=Timeline.read(directory / TIMELINE_FILE),
            directory=directory,
        )

    @property
    def partial(self) -> bool:
        """Whether the run was cut short."""
        return bool(self.manifest["partial"])

    def _repr_html_(self) -> str:
        scenario = self.summary["scenario"]
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in headline(self.summary).items()
            if value is not None
        )
        cut = " (cut short)" if self.partial else ""
        title = html.escape(f"{scenario['name']} · {self.manifest['variant']}{cut}")
        return f"<table><caption>{title}</caption>{rows}</table>"


def load_runs(directory: Path | str) -> dict[str, RunResult]:
    """Every run of a run directory by its variant, the base first.

    Raises
    ------
    ResultError
        There is no run, or one that this version does not read.
    """
    directory = Path(directory)
    if (directory / MANIFEST_FILE).exists():
        run = RunResult.load(directory)
        return {str(run.manifest["variant"]): run}
    stated = read_json(directory / SUMMARY_FILE).get("variant_order", [])
    present = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST_FILE}"))
    order = [name for name in stated if name in present]
    order += [name for name in present if name not in order]
    if not order:
        raise ResultError(f"{directory} holds no run")
    return {name: RunResult.load(directory / name) for name in order}


# --- comparing variants -----------------------------------------------------------------


def _setting(summary: Mapping[str, Any], key: str) -> str | None:
    """A setting of the classes of guests, in order; None where it applies to none of them."""
    found: list[str] = []
    for settings in summary["classes"].values():
        value = settings.get(key)
        applies = key == "virtualization" or settings.get("virtualization") != "none"
        if value is not None and applies and value not in found:
            found.append(str(value))
    return ", ".join(found) or None


def headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run in the comparison: :data:`HEADLINE`; None is n/a or not recorded."""
    host = summary["host"]
    peaks, totals = host["peaks"], host["totals"]
    row: dict[str, Any] = {
        "virtualization": _setting(summary, "virtualization"),
        "guest_page_size": _setting(summary, "page_size"),
        "host_page_size": host.get("page_size"),
        "zeroing": _setting(summary, "zeroing"),
        "channel": _setting(summary, "channel"),
        "mean_backed_bytes": host["means"].get("backed_bytes"),
        "committed_bytes": peaks.get("committed_bytes"),
    }
    for name in HEADLINE:
        if name.startswith("peak_"):
            row[name] = peaks.get(name.removeprefix("peak_"))
        elif name not in row:
            row[name] = host[name] if name in host else totals.get(name)
    return {name: row[name] for name in HEADLINE}


def comparison(runs: Mapping[str, RunResult]) -> dict[str, Any]:
    """The summary that compares the runs of one scenario, one row per variant.

    Parameters
    ----------
    runs
        By variant, in the order in which a table shows them.
    """
    summaries = {name: run.summary for name, run in runs.items()}
    return _compared(summaries)


def _compared(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if not summaries:
        raise ValueError("nothing to compare")
    scenario = next(iter(summaries.values()))["scenario"]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": scenario["name"],
        "question": scenario["question"],
        "partial": any(summary["scenario"]["partial"] for summary in summaries.values()),
        "variant_order": list(summaries),
        "variants": {name: headline(summary) for name, summary in summaries.items()},
    }


# --- the run directory ------------------------------------------------------------------


def check_destination(directory: Path) -> None:
    """Hold that `directory` is free, empty, or a run directory with nothing foreign in it.

    Raises
    ------
    ResultError
        Replacing it would lose something that simvm did not write.
    """
    if not directory.exists() and not directory.is_symlink():
        return
    if directory.is_symlink() or not directory.is_dir():
        raise ResultError(f"{directory} is not a directory; choose another place for the run")
    for entry in sorted(directory.iterdir()):
        if not _of_a_run(entry):
            raise ResultError(
                f"{directory} holds {entry.name}, which is not of a run: nothing is overwritten; "
                "choose another place for the run"
            )


def _of_a_run(entry: Path) -> bool:
    """Whether an entry of a run directory is one that simvm wrote, with nothing else in it."""
    if not entry.is_dir():
        return entry.name in {SUMMARY_FILE, REPORT_FILE}
    within = list(entry.iterdir())
    if entry.name == CHARTS_DIRECTORY:
        return all(path.suffix in {".svg", ".png"} for path in within)
    names = {path.name for path in within}
    return MANIFEST_FILE in names and names <= _RUN_FILES


class RunWriter:
    """Builds a run directory beside its place; :meth:`publish` puts it there.

    As a context manager it leaves nothing behind unless it was published.

    Parameters
    ----------
    directory
        Where the run goes. A run that is there already is replaced.

    Raises
    ------
    ResultError
        Something else is there.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        check_destination(self.directory)
        self._staging = self._beside("partial")
        self.discard()  # of a process that had this number and was killed
        self._summaries: dict[str, Mapping[str, Any]] = {}

    def variant(self, name: str) -> Path:
        """Make the directory of a variant and return it; its timeline is recorded there.

        Raises
        ------
        ResultError
            The name cannot be that of a directory, or is taken.
        """
        if not _VARIANT_NAME.fullmatch(name) or name == CHARTS_DIRECTORY:
            raise ResultError(f"variant {name!r}: not a name for a directory of results")
        path = self._staging / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise ResultError(f"variant {name!r} appears twice") from None
        return path

    def finish(
        self,
        name: str,
        *,
        summary: Mapping[str, Any],
        manifest: Mapping[str, Any],
        scenario_toml: str,
    ) -> None:
        """Write a variant's summary, manifest and resolved scenario beside its timeline."""
        path = self._staging / name
        write_text(path / SCENARIO_FILE, scenario_toml)
        write_text(path / SUMMARY_FILE, canonical_json(summary))
        write_text(path / MANIFEST_FILE, canonical_json(manifest))
        self._summaries[name] = summary

    def publish(self) -> dict[str, Any]:
        """Put the finished variants in place and return their comparison.

        A variant that was begun and not finished is dropped. An older run in the same
        place goes once the new one is complete.
        """
        compared = _compared(self._summaries)
        for path in self._staging.iterdir():
            if path.name not in self._summaries:
                shutil.rmtree(path)
        write_text(self._staging / SUMMARY_FILE, canonical_json(compared))
        check_destination(self.directory)
        if self.directory.exists():
            old = self._beside("old")
            os.rename(self.directory, old)
            os.rename(self._staging, self.directory)
            shutil.rmtree(old)
        else:
            os.rename(self._staging, self.directory)
        return compared

    def discard(self) -> None:
        """Remove what was built and not published."""
        if self._staging.exists():
            shutil.rmtree(self._staging)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _beside(self, what: str) -> Path:
        name = self.directory.resolve().name
        return self.directory.resolve().parent / f".{name}.{what}-{os.getpid()}"
