"""Results: a run, its timeline, and the directory they live in.

A run directory holds one full run per variant, ``base`` first::

    DIR/summary.json            compares the variants
    DIR/base/manifest.json      where the run came from
    DIR/base/scenario.toml      the resolved scenario; running it again gives the same bytes
    DIR/base/timeline.parquet   every sample
    DIR/base/summary.json       totals, peaks, means, percentiles, phases
    DIR/thp/...                 the same for each variant

Each file is written beside its place and renamed. A run that goes on, or was killed, has the
same files: summary and manifest say that they are partial, and ``timeline.parquet`` is a
directory of Parquet files, one for each time that rows were written. Summaries are canonical
JSON: the same result gives the same bytes.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from simvm.errors import ResultError
from simvm.timeline import TIMELINE_FILE, Timeline, is_temporary, temporary
from simvm.units import human_ns

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
    temporary(path).write_bytes(text.encode())
    os.replace(temporary(path), path)


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
        """Whether the run was cut short, or has not come to its end."""
        return bool(self.manifest["partial"])

    @property
    def up_to_ns(self) -> int:
        """The simulated time that the summary covers."""
        return int(self.summary["scenario"]["simulated_ns"])

    def _repr_html_(self) -> str:
        scenario = self.summary["scenario"]
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in headline(self.summary).items()
            if value is not None
        )
        cut = f" (partial: up to {human_ns(self.up_to_ns)})" if self.partial else ""
        title = html.escape(f"{scenario['name']} · {self.manifest['variant']}{cut}")
        return f"<table><caption>{title}</caption>{rows}</table>"


def load_runs(directory: Path | str) -> dict[str, RunResult]:
    """Every run of a run directory by its variant, the base first.

    Also of one that is being written, or was killed: what there is so far.

    Raises
    ------
    ResultError
        There is no run, or one that this version does not read.
    """
    directory = Path(directory)
    if (directory / MANIFEST_FILE).exists():
        run = RunResult.load(directory)
        return {str(run.manifest["variant"]): run}
    present = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST_FILE}"))
    stated: list[str] = []
    if not present or (directory / SUMMARY_FILE).exists():
        stated = read_json(directory / SUMMARY_FILE).get("variant_order", [])
    order = [name for name in stated if name in present]
    order += [name for name in present if name not in order]
    if not order:
        raise ResultError(f"{directory} holds no run")
    return {name: RunResult.load(directory / name) for name in order}


def is_complete(directory: Path | str) -> bool:
    """Whether the run in a directory came to its end: every variant that was to be run."""
    directory = Path(directory)
    if (directory / MANIFEST_FILE).exists():
        return not RunResult.load(directory).partial
    try:
        return not read_json(directory / SUMMARY_FILE)["partial"]
    except (ResultError, KeyError):
        return False


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


def comparison(runs: Mapping[str, RunResult], *, complete: bool = True) -> dict[str, Any]:
    """The summary that compares the runs of one scenario, one row per variant.

    Parameters
    ----------
    runs
        By variant, in the order in which a table shows them.
    complete
        Whether these are all that were to be run (:func:`is_complete`).
    """
    compared = _compared({name: run.summary for name, run in runs.items()})
    return compared | {"partial": compared["partial"] or not complete}


def _compared(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if not summaries:
        raise ValueError("nothing to compare")
    scenario = next(iter(summaries.values()))["scenario"]
    each = {name: summary["scenario"] for name, summary in summaries.items()}
    up_to = {name: of["simulated_ns"] for name, of in each.items() if of["partial"]}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": scenario["name"],
        "question": scenario["question"],
        "partial": bool(up_to),
        "up_to_ns": up_to,
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
        return entry.name in {SUMMARY_FILE, REPORT_FILE} or is_temporary(entry.name)
    within = [path for path in entry.iterdir() if not is_temporary(path.name)]
    if entry.name == CHARTS_DIRECTORY:
        return all(path.suffix in {".svg", ".png"} for path in within)
    return all(path.name in _RUN_FILES for path in within)


class RunWriter:
    """Writes a run directory in its place: readers find there what there is so far.

    Until :meth:`publish` the comparison says that it is partial, and so does each variant
    that is not finished. As a context manager it takes everything back when there was an
    exception, but keeps it after Ctrl-C.

    Parameters
    ----------
    directory
        Where the run goes. A run that is there already is set aside when the new one begins,
        comes back if that fails, and goes once it is complete.

    Raises
    ------
    ResultError
        Something else is there.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        check_destination(self.directory)
        place = self.directory.resolve()
        self._aside = place.with_name(f".{place.name}.old")
        self._lock: int | None = None
        self._begun: list[Path] = []
        self._made = False      # the directory was not there before
        self._summaries: dict[str, Mapping[str, Any]] = {}
        self._published = False

    def variant(self, name: str) -> Path:
        """Make the directory of a variant and return it; its timeline is recorded there.

        Raises
        ------
        ResultError
            The name cannot be that of a directory, or is taken; or another process is
            writing a run to the same place.
        """
        if not _VARIANT_NAME.fullmatch(name) or name == CHARTS_DIRECTORY:
            raise ResultError(f"variant {name!r}: not a name for a directory of results")
        if not self._begun:
            self._begin()
        path = self.directory / name
        if path in self._begun:
            raise ResultError(f"variant {name!r} appears twice")
        self._begun.append(path)
        path.mkdir()
        return path

    def write(
        self,
        name: str,
        *,
        summary: Mapping[str, Any],
        manifest: Mapping[str, Any],
        scenario_toml: str,
    ) -> None:
        """Write a variant's resolved scenario, summary and manifest beside its timeline.

        Once when it is finished; before, as often as one likes, with a summary and a
        manifest that say that they are partial.
        """
        path = self.directory / name
        write_text(path / SCENARIO_FILE, scenario_toml)
        write_text(path / SUMMARY_FILE, canonical_json(summary))
        write_text(path / MANIFEST_FILE, canonical_json(manifest))
        self._summaries[name] = summary
        compared = _compared(self._summaries) | {"partial": True}
        write_text(self.directory / SUMMARY_FILE, canonical_json(compared))

    def publish(self) -> dict[str, Any]:
        """Call the run complete and return the comparison of its variants.

        A variant of which nothing was written is dropped, and an older run in the same place
        goes.
        """
        compared = _compared(self._summaries)
        for path in self._begun:
            if path.name not in self._summaries:
                shutil.rmtree(path)
        write_text(self.directory / SUMMARY_FILE, canonical_json(compared))
        self._published = True
        self._end()
        return compared

    def discard(self) -> None:
        """Remove what was written, and put back what was there before."""
        if not self._begun:
            return
        for path in self._begun:
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.directory / SUMMARY_FILE, temporary(self.directory / SUMMARY_FILE)):
            path.unlink(missing_ok=True)
        if self._made or self._aside.exists():
            with suppress(OSError):     # somebody has put something there
                self.directory.rmdir()
                if self._aside.exists():
                    os.rename(self._aside, self.directory)
        self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._published:
            return
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self._summaries:
            self._end()
        else:
            self.discard()

    def _begin(self) -> None:
        """Take the place."""
        check_destination(self.directory)
        self._made = not self.directory.exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        if any(self.directory.iterdir()):
            if self._aside.exists():
                # A process was killed here. Of two runs that it left the whole one is kept.
                shutil.rmtree(self._aside if is_complete(self.directory) else self.directory)
            if self.directory.exists():
                os.rename(self.directory, self._aside)
            self._unlock()
            self.directory.mkdir()
            self._lock = self._locked()

    def _end(self) -> None:
        """Leave the place to what was written."""
        if self._aside.exists():
            shutil.rmtree(self._aside)
        self._unlock()

    def _locked(self) -> int | None:
        """Hold the directory against other processes, as long as this one lives."""
        if sys.platform == "win32":
            return None
        import fcntl

        lock = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ResultError(
                f"another process is writing a run to {self.directory}; choose another place"
            ) from None
        except OSError:     # a file system without locks
            pass
        return lock

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


