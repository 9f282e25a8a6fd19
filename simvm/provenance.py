"""Where a result came from: the manifest of a run.

Everything that the bytes of a result depend on (versions, the digest of the
resolved scenario, the seed) and, apart from it, what the wall clock saw. The
manifest is the only file of a run that differs between two runs of the same
scenario. It names the kind of machine, never the machine: no host name, no user,
no path.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import simvm

MANIFEST_VERSION: Final = 1

_LIBRARIES: Final = ("numpy", "pyarrow", "simpy", "cython")


def digest(text: str | bytes) -> str:
    """SHA-256 of `text` (UTF-8) in hexadecimal."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def versions() -> dict[str, str | None]:
    """Versions of simvm, Python and the libraries a result depends on; None if not installed.

    Cython is needed to build simvm, not to run it, and may be missing.
    """
    found: dict[str, str | None] = {
        "simvm": simvm.__version__,
        "python": platform.python_version(),
    }
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def peak_rss_bytes() -> int | None:
    """The most memory this process has had resident, in bytes; None where it is not told.

    What Linux tells through `getrusage` begins with the memory of the process that started
    this one, so it is asked for that of the program that runs now.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # BSD: KiB


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """The wall clock of one run, started when it is made."""

    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall seconds since the start."""
        return time.perf_counter() - self._start


def manifest(
    *,
    scenario_digest: str,
    seed: int,
    variant: str,
    watch: Stopwatch,
    accesses: int,
    events: int,
    simulated_ns: int,
    partial: bool = False,
    exit_reason: str = "done",
) -> dict[str, Any]:
    """The manifest of a run that ends now.

    Parameters
    ----------
    scenario_digest
        :func:`digest` of the resolved scenario as it stands in ``scenario.toml``.
    watch
        Started with the program, so that ``accesses_per_s`` covers all of it.
    accesses
        Accesses that all guests made.
    events
        Events of the simulation.
    partial, exit_reason
        Whether the run was cut short, and why it ended.
    """
    wall = watch.seconds
    return {
        "schema_version": MANIFEST_VERSION,
        "program": "simvm",
        "versions": versions(),
        "scenario_digest": scenario_digest,
        "seed": seed,
        "variant": variant,
        "platform": {
            "machine": platform.machine(),
            "system": platform.system(),
            "python": platform.python_implementation(),
        },
        "partial": partial,
        "exit_reason": exit_reason,
        "wall": {
            "started_at": watch.started_at.isoformat(timespec="seconds"),
            "seconds": round(wall, 3),
            "accesses": accesses,
            "accesses_per_s": round(accesses / wall) if wall > 0 else None,
            "events": events,
            "events_per_s": round(events / wall) if wall > 0 else None,
            "simulated_s_per_s": round(simulated_ns / 1e9 / wall, 6) if wall > 0 else None,
            "peak_rss_bytes": peak_rss_bytes(),
        },
    }


def whole_program(watch: Stopwatch, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the wall clock saw of all variants together, reading and writing included."""
    accesses = sum(each["wall"]["accesses"] for each in manifests)
    wall = watch.seconds
    return {
        "seconds": round(wall, 3),
        "accesses": accesses,
        "accesses_per_s": round(accesses / wall) if wall > 0 else None,
    }
