"""CPU and cost parameter sets: each value with its unit and its source, or as a range."""

from simvm.hardware.cite import Citations, cite, to_bibtex, to_json
from simvm.hardware.costs import Costs, cost_names, format_cost, load_costs, parse_cost
from simvm.hardware.figures import Parameter, Source
from simvm.hardware.load import Cpu, load_cpu, names
from simvm.hardware.overview import HEADS, overview, row

__all__ = [
    "HEADS",
    "Citations",
    "Costs",
    "Cpu",
    "Parameter",
    "Source",
    "cite",
    "cost_names",
    "format_cost",
    "load_costs",
    "load_cpu",
    "names",
    "overview",
    "parse_cost",
    "row",
    "to_bibtex",
    "to_json",
]
