"""Runs a module in a process of its own, whose memory is then its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import simvm
from simvm.errors import SimulationFailed

NEWS: Final = "# "
"""A line that begins with this tells how far the child has come."""


def run_module(module: str, *arguments: str, told: Callable[[str], None] | None = None) -> Any:
    """What `python -m module` prints last, as JSON; `told` of what it says until then.

    Raises
    ------
    SimulationFailed
        It failed.
    """
    root = str(Path(simvm.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    answer = ""
    with TemporaryFile("w+", encoding="utf-8") as errors, subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if not line.startswith(NEWS):
                    answer += line
                elif told is not None:
                    told(line.removeprefix(NEWS).strip())
        except BaseException:
            child.kill()
            raise
        if child.wait():
            errors.seek(0)
            raise SimulationFailed(f"the process of {module} failed: {errors.read()[-500:]}")
    return json.loads(answer)
