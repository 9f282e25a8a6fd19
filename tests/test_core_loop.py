"""What vCPUs run is the MMU that `access` shows, on every CPU."""

from __future__ import annotations

import pytest
from conftest import LONG
from loops import MIB, compare_loop, compare_walks

from simvm import hardware


@pytest.mark.parametrize("orders", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("targets", [True, False], ids=["targets", "none"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "native"])
@pytest.mark.parametrize("name", hardware.names())
def test_the_loop_is_the_mmu(
    name: str, nested: bool, targets: bool, orders: tuple[int, int]
) -> None:
    geometry = hardware.load_cpu(name).geometry
    compare_loop(geometry, nested, targets, orders, events=60 if LONG else 15)


@pytest.mark.parametrize("name", ["skylake_sp", "sapphire_rapids", "zen4"])
def test_walks_in_a_row_cost_what_they_do_one_by_one(name: str) -> None:
    """The first of these has the shape whose walks are one function with its misses."""
    compare_walks(hardware.load_cpu(name).geometry, 160 * MIB, (1, 700, 5_000, 40_000, 1 << 40))
