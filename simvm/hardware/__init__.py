"""CPU and cost parameter sets: each value with its unit and its source, or as a range."""

from simvm.hardware.costs import Costs, cost_names, format_cost, load_costs, parse_cost
from simvm.hardware.figures import Parameter, Source
from simvm.hardware.load import Cpu, load_cpu, names

__all__ = [
    "Costs",
    "Cpu",
    "Parameter",
    "Source",
    "cost_names",
    "format_cost",
    "load_costs",
    "load_cpu",
    "names",
    "parse_cost",
]
