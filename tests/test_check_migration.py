"""Migrations that cannot be, and what is taken where a scenario says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenarios_small as small
from scenarios_small import MIB, MS

HEAD = """
schema = 1
[scenario]
name = "a"
[host]
cpu = "zen4"
cores = 4
memory = "16GiB"
{host}
[guest.g]
memory = "4GiB"
boot = "448MiB"
{guest}
[[guest.g.workload]]
region = "heap"
allocate = "1GiB"
pattern = {{ kind = "uniform" }}
accesses = 1000
"""
POOL = 'backing = "hugetlb"\npage_size = "2MiB"\nhugetlb = { page_size = "2MiB", size = "8GiB" }'


@pytest.mark.parametrize(
    ("keys", "key", "rule", "pool"),
    [
        ('virtualization = "none"\nmigrate_in = { resident = "1GiB" }', "migrate_in",
         "containers do not migrate", ""),
        ('virtualization = "none"\nlifetime = "1s"\nmigrate_out = {}', "migrate_out",
         "containers do not migrate", ""),
        ('virtualization = "shadow"\nmigrate_in = { resident = "1GiB" }', "migrate_in",
         "not modelled", ""),
        ("migrate_out = {}", "migrate_out", "never depart", ""),
        ('lifetime = "1s"\nmigrate_out = {}', "migrate_out", "not modelled", POOL),
        ('migrate_in = { resident = "511MiB" }', "migrate_in.resident", "512 MiB", ""),
        ('migrate_in = { resident = "1540MiB" }', "migrate_in.resident", "1.50 GiB", ""),
        ("migrate_in = {}", "migrate_in.resident", "required", ""),
        ('lifetime = "1s"\nmigrate_out = { downtime = "0s" }', "migrate_out.downtime",
         "more than 0", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    tmp_path: Path, keys: str, key: str, rule: str, pool: str
) -> None:
    path = tmp_path / "a.toml"
    path.write_text(HEAD.format(guest=keys, host=pool))
    (mistake,) = small.check(path)
    assert mistake.key == f"guest.g.{key}"
    assert rule in mistake.rule
    assert mistake.fix


def test_the_defaults_are_those_of_qemu_and_nova(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(HEAD.format(guest='lifetime = "1h"\nmigrate_out = {}', host=""))
    of = small.load(path)
    assert (of.host.migration.bandwidth, of.host.migration.parallel) == (128 * MIB, 1)
    assert of.guests["g"].migrate_out is not None
    assert of.guests["g"].migrate_out.downtime == 300 * MS
    path.write_text(HEAD.format(guest='migrate_in = { resident = "1536MiB" }', host=""))
    assert small.check(path) == []
