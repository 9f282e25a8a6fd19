"""What guests do: recorded memory traces of real programs, and their importers."""

from simvm.workload.trace import TraceFile, TraceHeader, builtin_trace, open_trace, read_header
from simvm.workload.trace_import import import_trace
from simvm.workload.trace_info import trace_info

__all__ = [
    "TraceFile",
    "TraceHeader",
    "builtin_trace",
    "import_trace",
    "open_trace",
    "read_header",
    "trace_info",
]
