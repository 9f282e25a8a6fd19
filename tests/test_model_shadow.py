"""Shadow paging in a scenario: short walks, traps on page-table writes, memory charged."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE
from test_model_guest import SEQUENTIAL, table_bytes

from simvm.errors import SimulationFailed
from simvm.model import ledger
from simvm.results import RunResult
from simvm.runner import run


def reverse_map(memory: int) -> int:
    """A word for a guest page of each size, two bytes for 4 KiB; in whole pages."""
    words = memory // PAGE + memory // BLOCK + -(-memory // GIB)
    return -(-(8 * words + 2 * (memory // PAGE)) // PAGE) * PAGE


def both(*phases: dict[str, Any], host: dict[str, Any] | None = None, **values: Any) -> list[Any]:
    """The same guest nested and under shadow paging."""
    return [
        small.result({"vm": small.guest(*phases, virtualization=kind, **values)}, host=host)
        for kind in ("nested", "shadow")
    ]


@pytest.fixture(scope="module")
def dense() -> list[RunResult]:
    """64 MiB written page by page, at 4 KiB."""
    return both(
        small.phase(accesses=16_384, pattern=SEQUENTIAL), page_size=PAGE, host={"page_size": PAGE}
    )


def test_each_entry_that_a_fault_writes_traps(dense: list[RunResult]) -> None:
    nested, shadow = (small.one(each)["totals"] for each in dense)
    assert shadow["guest_faults"] == shadow["shadow_fills"] == 64 * MIB // PAGE
    assert shadow["guest_faults"] == nested["guest_faults"]
    assert shadow["slat_faults"] == nested["slat_faults"]  # the host backs the same
    tables = 64 * MIB // BLOCK + 2
    assert shadow["page_table_writes"] == shadow["guest_faults"] + tables
    assert nested["page_table_writes"] == nested["shadow_fills"] == 0


def test_traps_cost_what_the_parameters_say(dense: list[RunResult]) -> None:
    """A write each; and an exit for each fill and for each fault passed on to the guest."""
    nested, shadow = (small.one(each)["totals"] for each in dense)
    costs = small.simulation(small.scenario()).host.costs
    exits = shadow["shadow_fills"] + shadow["guest_faults"]
    assert shadow["page_table_trap_ns"] == (
        shadow["page_table_writes"] * costs.page_table_write_ns + exits * costs.shadow_fill_ns
    )
    assert shadow["guest_fault_ns"] == nested["guest_fault_ns"]
    assert nested["page_table_trap_ns"] == 0
    dear = small.result(
        {"vm": small.guest(
            small.phase(accesses=16_384, pattern=SEQUENTIAL), page_size=PAGE,
            virtualization="shadow",
        )},
        host={"page_size": PAGE, "costs": {"page_table_write": 50_000, "shadow_fill": 0}},
    )  # fmt: skip
    totals = small.one(dear)["totals"]
    assert totals["page_table_trap_ns"] == totals["page_table_writes"] * 50_000


def test_tables_are_the_guests_the_vmms_and_the_shadows(dense: list[RunResult]) -> None:
    nested, shadow = (small.one(each)["final"] for each in dense)
    assert shadow["slat_tables_bytes"] == 0
    assert shadow["guest_tables_bytes"] == nested["guest_tables_bytes"]
    assert shadow["host_tables_bytes"] == nested["host_tables_bytes"] > 0
    # Beside each shadow page is one that names guest pages.
    tables = 2 * table_bytes(64 * MIB, PAGE)
    assert shadow["shadow_tables_bytes"] == tables + reverse_map(512 * MIB)
    assert shadow["tables_bytes"] == (
        shadow["shadow_tables_bytes"] + shadow["host_tables_bytes"] + shadow["guest_tables_bytes"]
    )
    assert small.one(dense[1])["peaks"]["tables_bytes"] == shadow["tables_bytes"]
    assert nested["shadow_tables_bytes"] == 0


def test_freeing_writes_as_many_entries_as_were_made() -> None:
    made = small.simulate(small.scenario({"vm": small.guest(
        small.phase(accesses=4_096, allocate=16 * MIB, pattern=SEQUENTIAL, free="all"),
        page_size=PAGE, virtualization="shadow",
    )}))  # fmt: skip
    (guest,) = made.guests
    assert guest.shadow is not None
    # 16 MiB of leaves, and the tables below the root: made once, unmade once.
    assert guest.shadow.writes == 2 * (4_096 + 8 + 2)
    assert guest.shadow.leaves == (0, 0, 0)
    assert guest.shadow.table_pages == 2
    paid = guest.vcpus[0].account.page_table_trap_ns  # type: ignore[attr-defined]
    costs = made.host.costs
    assert paid == (
        guest.shadow.writes * costs.page_table_write_ns + 2 * 4_096 * costs.shadow_fill_ns
    )


def test_a_guest_that_stops_leaves_nothing() -> None:
    of = small.scenario(
        {"vm": small.guest(virtualization="shadow", stop=2 * MS, vmm_overhead=MIB)},
        duration=5 * MS,
    )  # fmt: skip
    made = small.simulation(of)
    before = made.host.free_bytes
    made.run()
    assert small.summary_of(made)["host"]["peaks"]["tables_bytes"] > reverse_map(512 * MIB)
    assert small.summary_of(made)["host"]["final"]["shadow_tables_bytes"] == 0
    assert made.host.free_bytes == before
    ledger.audit(made.host)


def served(kind: str, **values: Any) -> dict[str, Any]:
    """Uniform accesses to 3 GiB, populated before: beyond the reach of TLBs and walk caches."""
    populate = small.phase(
        allocate=3 * GIB, accesses=3 * GIB // BLOCK, measure=False, name="populate",
        pattern={"kind": "strided", "stride": BLOCK},
    )  # fmt: skip
    serve = small.phase(allocate=None, accesses=50_000, name="serve", cycles_per_access=20)
    result = small.result(
        {"vm": small.guest(populate, serve, memory=4 * GIB, virtualization=kind, **values)},
        host={"memory": 8 * GIB},
    )
    return small.one(result)


def test_walks_are_those_of_a_container() -> None:
    nested, shadow, container = (served(kind) for kind in ("nested", "shadow", "none"))
    assert shadow["loads_per_walk"] == pytest.approx(container["loads_per_walk"], rel=1e-3)
    assert nested["loads_per_walk"] > 1.4 * shadow["loads_per_walk"]
    assert nested["cycles_per_walk"] > 1.1 * shadow["cycles_per_walk"]


def test_shadow_paging_wins_where_walks_are_many_and_loses_where_faults_are() -> None:
    assert served("shadow")["slowdown"] < served("nested")["slowdown"]
    churn = small.phase(accesses=2_048, allocate=8 * MIB, pattern=SEQUENTIAL, free="all", repeat=4)
    nested, shadow = (
        small.one(each) for each in both(churn, page_size=PAGE, host={"page_size": BLOCK})
    )
    assert shadow["slowdown"] > 1.2 * nested["slowdown"]
    # Both did the same, and nothing but traps and translation differs.
    for few, many in zip(nested["phases"], shadow["phases"], strict=True):
        changed = {part for part, ns in many["parts"].items() if ns != few["parts"][part]}
        assert changed == {"page_table_trap_ns", "translation_ns"}
        assert many["parts"]["page_table_trap_ns"] > few["parts"]["translation_ns"]


@pytest.mark.parametrize("page", [PAGE, BLOCK])
@pytest.mark.parametrize("channel", ["none", "passthrough"])
def test_reclaim_leaves_no_stale_shadow_entry(
    page: int, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample is audited: shadow tables agree, no frame has two owners, all adds up."""
    monkeypatch.setenv("SIMVM_DEBUG", "1")
    work = [
        small.phase(allocate=64 * MIB, cycles_per_access=2_000, name="first", process="one"),
        small.phase(allocate=32 * MIB, cycles_per_access=2_000, free="8MiB", name="second",
                    region="other"),
        small.phase(allocate=None, accesses=10_000, name="again", process="one"),
    ]  # fmt: skip
    made = small.simulate(small.scenario(
        {"vm": small.guest(
            *work, count=2, memory=128 * MIB, page_size=page, virtualization="shadow",
            channel={"kind": channel},
        )},
        host={"memory": 128 * MIB, "swap": {"device": "nvme", "size": 512 * MIB}},
        sample_interval=MS,
    ))  # fmt: skip
    totals = small.summary_of(made)["host"]["totals"]
    assert totals["swap_outs"] > 1_000
    assert totals["swap_ins"] > 1_000
    assert totals["shadow_fills"] > totals["swap_ins"]
    assert totals["host_splits"] > 0
    assert all(guest.backing.shadow_agrees() for guest in made.guests)


def test_reclaim_sees_the_accessed_bits_of_shadow_entries() -> None:
    """A hot tenth that the host could not see would be evicted as often as the rest."""
    work = small.phase(
        allocate=96 * MIB, accesses=60_000, cycles_per_access=2_000,
        pattern={"kind": "hot_cold", "hot_fraction": 0.1, "hot_share": 0.9},
    )  # fmt: skip
    swapped = [
        small.result(
            {"vm": small.guest(work, count=2, memory=128 * MIB, page_size=PAGE,
                               virtualization=kind)},
            host={"memory": 128 * MIB, "page_size": PAGE,
                  "swap": {"device": "nvme", "size": 512 * MIB}},
        ).summary["host"]["totals"]["swap_ins"]
        for kind in ("nested", "shadow")
    ]  # fmt: skip
    assert swapped[1] == pytest.approx(swapped[0], rel=0.25)


def test_a_stale_shadow_entry_fails_a_thorough_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMVM_DEBUG", "1")
    made = small.simulation(small.scenario({"vm": small.guest(
        small.phase(accesses=20_000), small.phase(accesses=20_000, name="b"),
        virtualization="shadow",
    )}))  # fmt: skip

    def meddle() -> Any:
        yield made.env.timeout(3 * MS)
        (guest,) = made.guests
        guest_table, _ = guest.shadow.tables[0]  # type: ignore[union-attr]
        (region,) = guest.regions.values()
        pages = range(region.core.base, region.core.base + region.core.size, BLOCK)
        guest_table.unmap(next(va for va in pages if guest_table.lookup(va)))

    made.env.process(meddle())
    with pytest.raises(SimulationFailed, match="a shadow table maps what is not mapped"):
        made.run()


def test_the_same_scenario_gives_the_same_bytes() -> None:
    of = small.pressed(virtualization="shadow", page_size=PAGE)
    first, second = (run(of) for _ in range(2))
    assert first.summary == second.summary
    assert first.timeline.to_arrow().equals(second.timeline.to_arrow())


def test_settings_of_a_virtual_machine_apply() -> None:
    """Page size, zeroing, channel and hugetlb: what a container's summary calls n/a."""
    result = small.result(
        {"vm": small.guest(
            small.phase(free="all"), virtualization="shadow", zeroing="guest",
            channel={"kind": "passthrough"},
        )},
        host={"backing": "hugetlb", "hugetlb": {"page_size": BLOCK, "size": GIB}},
    )  # fmt: skip
    shown = result.summary["classes"]["vm"]
    assert shown["virtualization"] == "shadow"
    assert (shown["page_size"], shown["zeroing"], shown["channel"]) == (
        "2MiB", "guest", "passthrough",
    )  # fmt: skip
    assert shown["totals"]["hint_calls"] > 1
    assert shown["totals"]["slat_faults_2m"] == shown["totals"]["slat_faults"] > 0
