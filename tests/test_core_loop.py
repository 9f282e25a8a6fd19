"""What vCPUs run is the MMU that `access` shows, on every CPU."""

from __future__ import annotations

import pytest
from conftest import LONG
from loops import compare_loop

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
