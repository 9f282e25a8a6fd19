"""Who serves a SLAT fault, and what the vCPU waits for: one path a file.

* `kernel`: KVM's own path; each vCPU thread serves its own fault.
* `userfaultfd`: threads behind one queue, whose lock is held longer the more faults wait.
* `exit_to_userspace`: the vCPU thread itself leaves to the VMM and installs the page.

Faults taken back to back travel as one train, a request whose service time is their sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.model.faults.base import FaultPath
from simvm.model.faults.exit_to_userspace import ExitToUserspacePath
from simvm.model.faults.kernel import KernelPath
from simvm.model.faults.userfaultfd import UserfaultfdPath

if TYPE_CHECKING:
    from simvm.model.host import Host

__all__ = ["FAULT_PATHS", "FaultPath", "make_fault_path"]

FAULT_PATHS: dict[str, type[FaultPath]] = {
    "kernel": KernelPath,
    "userfaultfd": UserfaultfdPath,
    "exit_to_userspace": ExitToUserspacePath,
}


def make_fault_path(host: Host) -> FaultPath:
    """The path that the scenario names."""
    return FAULT_PATHS[host.settings.fault_path](host)
