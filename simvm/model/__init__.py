"""The simulation: SimPy processes for guests and host around the compiled core.

What happens on a SLAT fault is in `faults`, what happens when memory runs short in
`reclaim`, what a guest does in `guest` and `tasks`, and what is asserted in `ledger`.
Only this package imports SimPy.
"""

from simvm.core_check import load_core

load_core()
