"""The manifest: what it says, and what it must not."""

from __future__ import annotations

import getpass
import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import simvm
from simvm import provenance
from simvm.provenance import Stopwatch, digest, manifest, peak_rss_bytes, versions


def made(**keywords: object) -> dict[str, object]:
    return manifest(
        scenario_digest=digest("schema = 1\n"), seed=7, variant="thp", watch=Stopwatch(),
        accesses=1000, events=100, simulated_ns=5_000_000, **keywords,  # type: ignore[arg-type]
    )  # fmt: skip


def test_digest_is_sha256_of_utf8() -> None:
    # FIPS 180-2, appendix B.1.
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest("é") == digest("é".encode())


def test_manifest_states_what_the_bytes_depend_on() -> None:
    manifest = made()
    assert manifest["seed"] == 7
    assert manifest["variant"] == "thp"
    assert manifest["scenario_digest"] == digest("schema = 1\n")
    assert manifest["partial"] is False
    found = manifest["versions"]
    assert isinstance(found, dict)
    assert found["simvm"] == simvm.__version__
    assert found["numpy"] == np.__version__
    assert found["python"] == platform.python_version()
    assert found.keys() == {"simvm", "python", "numpy", "pyarrow", "simpy", "cython"}


def test_manifest_names_no_machine_user_or_path() -> None:
    text = json.dumps(made())
    for private in (socket.gethostname(), platform.node(), str(Path.home()), str(Path.cwd())):
        assert len(private) < 3 or private not in text
    if getpass.getuser() != "root":
        assert getpass.getuser() not in text


def test_wall_clock_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.time, "perf_counter", lambda: 102.0)
    watch = Stopwatch(_start=100.0)
    wall = manifest(
        scenario_digest="", seed=1, variant="base", watch=watch, accesses=9_000_001,
        events=50_001, simulated_ns=1_000_000_000, partial=True, exit_reason="interrupted",
    )["wall"]  # fmt: skip
    assert wall["seconds"] == 2.0
    assert wall["accesses_per_s"] == 4_500_000
    assert wall["events_per_s"] == 25_000
    assert wall["simulated_s_per_s"] == 0.5
    assert wall["started_at"].endswith("+00:00")


def test_peak_memory_is_in_bytes() -> None:
    peak = peak_rss_bytes()
    assert peak is not None
    assert 2**23 < peak < 2**37


def test_peak_memory_is_not_that_of_who_started_the_process() -> None:
    held = np.ones(1 << 25)  # 256 MiB
    code = "from simvm.provenance import peak_rss_bytes; print(peak_rss_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) < held.nbytes
    assert (peak_rss_bytes() or 0) > held.nbytes


def test_a_missing_library_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_LIBRARIES", ("simvm-needs-no-such-library",))
    assert versions()["simvm-needs-no-such-library"] is None
