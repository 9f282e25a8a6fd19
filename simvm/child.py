"""Runs a module in a process of its own, whose memory is then its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import simvm
from simvm.errors import SimulationFailed


def run_module(module: str, *arguments: str) -> Any:
    """What `python -m module` prints as JSON.

    Raises
    ------
    SimulationFailed
        It failed.
    """
    root = str(Path(simvm.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise SimulationFailed(f"the process of {module} failed: {child.stderr[-500:]}")
    return json.loads(child.stdout)
