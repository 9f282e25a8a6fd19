"""What a scenario must not say about a guest's own memory."""

from pathlib import Path

import pytest
from test_scenario_check import PHASE, mistakes, only, phase

SWAP = 'swap = { device = "nvme", size = "2GiB" }'


@pytest.mark.parametrize(("guest", "key", "rule"), [
    ('swap = { device = "nvme" }', "swap.size", "needs a size"),
    ("khugepaged = {}", "khugepaged", "pages of 2 MiB"),
    ("fragmentation = { movable = 0.7, unmovable = 0.6 }", "fragmentation.movable", "exceed 1"),
    ('hugetlb = { size_2m = "5MiB" }', "hugetlb.size_2m", "whole pages"),
    ('hugetlb = { size_2m = "4GiB" }', "hugetlb", "left for the pools"),
    ('hugetlb = { size_1g = "4GiB" }\nboot = "4KiB"', "hugetlb", "left for the pools"),
    ('reclaim = { swappiness = 201 }', "reclaim.swappiness", "200"),
    ('page_cache = { files = "1GiB" }', "page_cache.read_rate", "required"),
    ('swap = { device = "zram", size = "1GiB" }', "swap.device", "one of none, nvme"),
])  # fmt: skip
def test_each_rule_names_its_key(tmp_path: Path, guest: str, key: str, rule: str) -> None:
    found = [m for m in mistakes(tmp_path, guest=guest, phases=phase('allocate = "64MiB"'))
             if m.key == f"guest.g.{key}"]  # fmt: skip
    assert found, "no such mistake"
    assert rule in found[0].rule
    assert found[0].fix


@pytest.mark.parametrize("key", [
    'page_cache = { files = "1GiB", read_rate = "1MiB" }', "reclaim = {}", SWAP,
    "khugepaged = {}", 'hugetlb = { size_2m = "64MiB" }', "fragmentation = { movable = 0.1 }",
])  # fmt: skip
def test_a_container_has_no_kernel_of_its_own(tmp_path: Path, key: str) -> None:
    mistake = only(mistakes(tmp_path, guest=f'virtualization = "none"\n{key}'))
    assert mistake.key == f"guest.g.{key.split()[0]}"


def test_regions_may_take_the_guests_swap_and_not_its_pools(tmp_path: Path) -> None:
    large = phase('allocate = "5GiB"')
    assert "are left for them" in only(mistakes(tmp_path, phases=large)).rule
    assert not mistakes(tmp_path, guest=SWAP, phases=large)
    pool = 'hugetlb = { size_2m = "3584MiB" }'
    assert "are left for them" in only(mistakes(tmp_path, guest=pool, phases=PHASE)).rule
    assert not mistakes(tmp_path, guest=pool, phases=phase('hugetlb = "2MiB"'))


def test_a_phase_takes_from_a_pool_that_there_is(tmp_path: Path) -> None:
    mistake = only(mistakes(tmp_path, phases=phase('hugetlb = "1GiB"')))
    assert (mistake.key, mistake.rule) == (
        "guest.g.workload.heap.hugetlb", "the guest has no pool of 1GiB pages"
    )  # fmt: skip
    again = PHASE + phase('name = "again"\nallocate = ""\nhugetlb = "2MiB"').replace(
        'allocate = ""\n', ""
    )
    mistake = only(mistakes(tmp_path, guest='hugetlb = { size_2m = "64MiB" }', phases=again))
    assert "allocates" in mistake.rule
