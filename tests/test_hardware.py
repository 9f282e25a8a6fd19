"""Parameter sets: geometry, units, sources, and a user's own file."""

from pathlib import Path

import pytest

from simvm import hardware
from simvm.errors import InvalidInput
from simvm.hardware.costs import COST_FIELDS
from simvm.hardware.figures import CHOICE, TAGS, geometric_mean
from simvm.hardware.geometry import TableFormat, TlbArray
from simvm.hardware.load import is_path
from simvm.units import UnitError

NAMES = ["icelake_sp", "neoverse_n1", "sapphire_rapids", "skylake_sp", "zen2", "zen3", "zen4"]


def test_the_shipped_cpus() -> None:
    assert hardware.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_source_or_is_a_range(name: str) -> None:
    cpu = hardware.load_cpu(name)
    assert cpu.parameters
    for parameter in cpu.parameters.values():
        assert parameter.tag in TAGS
        assert parameter.source
        if parameter.tag == "range":
            assert parameter.lo is not None
            assert parameter.hi is not None
            assert parameter.lo <= int(parameter.value) <= parameter.hi
            assert parameter.why
        if parameter.tag == "assumed":  # a choice of shape; a number has a source or is a range
            assert parameter.unit == CHOICE
            assert parameter.why
    assert cpu.sources
    assert all(source.text for source in cpu.sources)


@pytest.mark.parametrize("name", NAMES)
def test_the_geometry_is_one_that_the_core_takes(name: str) -> None:
    geometry = hardware.load_cpu(name).geometry
    for arrays in (geometry.l1_load, geometry.l1_store or (), geometry.l2):
        for array in arrays:
            assert array.entries % array.ways == 0
    for cache in (geometry.cache_l2, geometry.cache_llc):
        assert cache.bytes > 0
        assert cache.bytes % (64 * cache.ways) == 0
    assert geometry.cache_l2.bytes < geometry.cache_llc.bytes
    assert geometry.style == ("amd" if name.startswith(("zen", "neoverse")) else "intel")
    assert geometry.nested_tlb.entries == (16 if geometry.style == "amd" else 0)


ALL = (0, 1, 2)
FIGURES: dict[str, tuple[list[TlbArray], list[TlbArray] | None, list[TlbArray], int, int]] = {
    "skylake_sp": (
        [TlbArray((0,), 64, 4), TlbArray((1,), 32, 4), TlbArray((2,), 4, 4)], None,
        [TlbArray((0, 1), 1536, 12), TlbArray((2,), 16, 4)], 9, 2,
    ),
    "icelake_sp": (
        [TlbArray((0,), 64, 4), TlbArray((1,), 32, 4), TlbArray((2,), 8, 8)],
        [TlbArray(ALL, 16, 16)], [TlbArray((0, 1), 1024, 8), TlbArray((0, 2), 1024, 8)], 7, 2,
    ),
    "sapphire_rapids": (
        [TlbArray((0,), 96, 6), TlbArray((1,), 32, 4), TlbArray((2,), 8, 8)],
        [TlbArray(ALL, 16, 16)], [TlbArray((0, 1), 1024, 8), TlbArray((0, 2), 1024, 8)], 7, 4,
    ),
    "zen2": (
        [TlbArray(ALL, 64, 64)], None, [TlbArray((0,), 2048, 8), TlbArray((1,), 2048, 4)], 6, 2,
    ),
    "zen3": (
        [TlbArray(ALL, 64, 64)], None,
        [TlbArray((0,), 2048, 8), TlbArray((1,), 2048, 4), TlbArray((2,), 64, 64)], 5, 6,
    ),
    "zen4": (
        [TlbArray(ALL, 72, 72)], None,
        [TlbArray((0,), 3072, 8), TlbArray((1,), 3072, 6), TlbArray((2,), 64, 64)], 5, 6,
    ),
    "neoverse_n1": (
        [TlbArray((0, 1, 2, 3), 48, 48)], None, [TlbArray((0, 1, 2, 3), 1280, 5)], 7, 4,
    ),
}  # fmt: skip
"""L1 for loads, for stores, L2, its penalty in cycles, and page walkers: as published."""

MACHINES = {
    "skylake_sp": (2_100_000, 1024, 36608), "icelake_sp": (2_300_000, 1280, 61440),
    "sapphire_rapids": (2_000_000, 2048, 107520), "zen2": (2_250_000, 512, 16384),
    "zen3": (2_450_000, 512, 32768), "zen4": (2_400_000, 1024, 32768),
    "neoverse_n1": (3_000_000, 1024, 16384),
}  # fmt: skip
"""kHz, and KiB of L2 and of the LLC that one core reaches, of the vendor's specification."""


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_the_shipped_cpus(name: str) -> None:
    load, store, l2, penalty, walkers = FIGURES[name]
    cpu = hardware.load_cpu(name)
    geometry = cpu.geometry
    assert geometry.l1_load == tuple(load)
    assert geometry.l1_store == (tuple(store) if store else None)
    assert geometry.l2 == tuple(l2)
    assert geometry.l2_penalty == penalty
    assert geometry.walkers == walkers
    assert geometry.smash == (name == "zen2")
    khz, l2_kib, llc_kib = MACHINES[name]
    assert cpu.frequency_khz == khz
    assert geometry.cache_l2.bytes == l2_kib << 10
    llc = cpu.parameters["cache_llc.bytes"]
    assert llc.lo is not None
    assert llc.hi == llc_kib << 10  # the share of one vCPU is a range up to all of it
    assert llc.value == geometric_mean(llc.lo, llc.hi)


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_the_shipped_cpus(name: str) -> None:
    cpu = hardware.load_cpu(name)
    arm = name == "neoverse_n1"
    assert cpu.guest_format() == TableFormat(4)
    assert cpu.host_format() == (TableFormat(3, root_bits=10) if arm else TableFormat(4))
    assert cpu.host_format().address_bits == (40 if arm else 48)
    assert cpu.host_format(5, contiguous=True) == TableFormat(5, contiguous=True)
    assert cpu.contiguous == arm
    assert cpu.tagging == ("VMID" if arm else "ASID" if name.startswith("zen") else "VPID")


def test_a_large_root_belongs_to_the_levels_of_the_cpu() -> None:
    cpu = hardware.load_cpu("neoverse_n1")
    assert cpu.host_format(3, contiguous=True) == TableFormat(3, root_bits=10, contiguous=True)
    assert cpu.host_format(4) == TableFormat(4)


def test_the_range_of_the_penalty_has_its_geometric_mean_as_nominal_value() -> None:
    assert hardware.load_cpu("icelake_sp").geometry.l2_penalty == 7  # 5 to 9


@pytest.mark.parametrize(("low", "high", "mean"), [(3000, 15000, 6708), (2, 8, 4), (1, 1, 1),
                                                   (0, 9, 0), (5, 9, 7)])  # fmt: skip
def test_geometric_mean(low: int, high: int, mean: int) -> None:
    assert geometric_mean(low, high) == mean


def test_an_unknown_cpu_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'sapphire_rapids'"):
        hardware.load_cpu("saphire_rapids")
    with pytest.raises(InvalidInput, match="one of icelake_sp"):
        hardware.load_cpu("x")


def test_what_is_a_path() -> None:
    assert is_path("mine.toml")
    assert is_path("./zen3")
    assert not is_path("zen3")
    assert not is_path("zen33")


# --- a user's file ----------------------------------------------------------------------

OWN = """
inherits = "zen4"
part = "a machine of mine"
frequency = { v = 3_000_000, unit = "kHz", tag = "text", source = "me" }
[cache_l2]
bytes = { v = 4096, unit = "B", tag = "range", lo = 1, hi = 2, why = "x" }
[source.me]
text = "measured here"
"""


PENALTY = 'inherits = "zen4"\nl2_penalty ='
STYLE = 'inherits = "zen4"\nstyle ='
LEVELS = """inherits = "zen4"
[tables]
guest_levels = {{ v = {}, unit = "{}", tag = "assumed", why = "w" }}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


def test_a_file_that_inherits_changes_only_what_it_says(tmp_path: Path) -> None:
    text = OWN.replace('v = 4096, unit = "B", tag = "range", lo = 1, hi = 2, why = "x"',
                       'v = 4_194_304, unit = "B", tag = "text", source = "me"')  # fmt: skip
    cpu = hardware.load_cpu(write(tmp_path, text))
    zen4 = hardware.load_cpu("zen4")
    assert (cpu.name, cpu.part, cpu.frequency_khz) == ("own", "a machine of mine", 3_000_000)
    assert cpu.geometry.cache_l2.bytes == 4 << 20
    assert cpu.geometry.cache_l2.latency == zen4.geometry.cache_l2.latency
    assert cpu.geometry.l2 == zen4.geometry.l2
    assert cpu.parameters["frequency"].source == "measured here"


@pytest.mark.parametrize(
    ("text", "key", "rule"),
    [
        (OWN, "cache_l2.bytes", "a range has lo and hi and no v"),
        ('inherits = "zen5"', "inherits", "must name a shipped"),
        ('inherits = "zen4"\nspeed = 3', "speed", "no such key"),
        ('inherits = "zen4"\nstyle = "intel"', "style", "a choice with its source"),
        (STYLE + ' { v = "arm", tag = "text", source = "zen4_tlb" }', "style.v", "must be one of"),
        (STYLE + ' { v = "amd", tag = "assumed" }', "style", "says why"),
        (STYLE + ' { v = "amd", tag = "text", source = "me" }', "style.source", "must name a"),
        (STYLE + ' { v = "amd", tag = "assumed", why = "w", unit = "x" }', "style.unit",
         "no such key in a choice"),
        ('inherits = "zen4"\npolicy = { v = "mru", tag = "assumed", why = "w" }', "policy.v",
         "lru, plru, fifo, random"),
        ('inherits = "zen4"\nsmash = { v = true, tag = "assumed", why = "w" }', "smash",
         "2MiB but not 1GiB in L2"),
        ('inherits = "zen2"\nsmash = { v = 1, tag = "assumed", why = "w" }', "smash.v",
         "false, true"),
        (LEVELS.format(6, "levels"), "tables.guest_levels", "must be 3 to 5"),
        (LEVELS.format(2, "levels"), "tables.guest_levels.v", "must be 3 to"),
        ('inherits = "zen4"\n[tables]\nhost_granule = "16KiB"', "tables.host_granule",
         "the 4KiB granule alone"),
        ('inherits = "neoverse_n1"\n[tables]\ngranule = { v = 16_384, unit = "B" }',
         "tables.granule", "the 4KiB granule alone"),
        ('inherits = "neoverse_n1"\n[tables]\n'
         'host_levels = { v = 5, unit = "levels", tag = "assumed", why = "w" }',
         "tables.host_root_bits", "57 bits at most"),
        (LEVELS.format(4, "bits"), "tables.guest_levels.unit", "must be levels"),
        ('inherits = "zen4"\n[tables]\nlevels = 4', "tables.levels", "no such key"),
        ('inherits = "zen4"\n[tables]\ncontiguous = { v = true, tag = "assumed", why = "w" }',
         "tables.contiguous", "entries of 64KiB"),
        ('inherits = "zen4"\n[tables]\ntagging = { v = "PCID", tag = "assumed", why = "w" }',
         "tables.tagging.v", "VPID, ASID, VMID"),
        ('inherits = "zen4"\n[source."a b"]\ntext = "t"', "source.a b", "a key is letters"),
        ('inherits = "zen4"\n[source.me]\ntext = "t"\ntype = "my kind"', "source.me.type",
         "BibTeX entry"),
        ('inherits = "zen4"\n[source.me]\ntext = "t"\nauthors = ["a"]', "source.me.authors",
         "BibTeX field"),
        ('inherits = "zen4"\nl2_penalty = 7', "l2_penalty", "figure with unit and source"),
        (PENALTY + ' { v = 7, unit = "ns", tag = "text", source = "zen4_tlb" }',
         "l2_penalty.unit", "must be cycles"),
        (PENALTY + ' { v = 7, unit = "cycles", tag = "text" }',
         "l2_penalty.source", "a value without one is a range"),
        (PENALTY + ' { v = 7, unit = "cycles", tag = "guess" }',
         "l2_penalty.tag", "what kind"),
        (PENALTY + ' { v = -7, unit = "cycles", tag = "text", source = "zen4_tlb" }',
         "l2_penalty.v", "must be 0 to"),
        (PENALTY + ' { v = 0.5, unit = "cycles", tag = "text", source = "zen4_tlb" }',
         "l2_penalty.v", "must be an integer"),
        (PENALTY + ' { unit = "cycles", tag = "text", source = "zen4_tlb" }',
         "l2_penalty", "a value or a range"),
        (PENALTY + ' { lo = 9, hi = 5, unit = "cycles", tag = "range", why = "w" }',
         "l2_penalty", "lo <= value <= hi"),
        (PENALTY + ' { lo = 5, hi = 9, unit = "cycles", tag = "range" }',
         "l2_penalty", "says why"),
        ('inherits = "zen4"\nl2 = 3', "l2", "must be tables"),
        ('inherits = "zen4"\n[[l2]]\norders = ["3KiB"]', "l2.orders", "page sizes"),
        ('inherits = "zen4"\n[[l2]]\norders = ["4KiB"]', "l2.4KiB.entries", "figure"),
        ('inherits = "zen4"\n[[guest_walk_cache]]\nlevel = 9', "guest_walk_cache.level", "level"),
        ('inherits = "zen4"\n[source.me]\nyear = 1', "source.me", "needs its text"),
        ("style = ", "", "must be TOML"),
        ("a = 1", "frequency", "is required"),
    ],
)  # fmt: skip
def test_mistakes_of_a_file(tmp_path: Path, text: str, key: str, rule: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        hardware.load_cpu(write(tmp_path, text))
    found = [mistake for mistake in caught.value.mistakes if mistake.key == key]
    assert any(rule in mistake.rule for mistake in found), caught.value
    assert all(mistake.fix for mistake in caught.value.mistakes)


def test_mistakes_come_all_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, 'inherits = "zen4"\nspeed = 3\nstyle = "arm"\nl2_penalty = 7\n')
    with pytest.raises(InvalidInput) as caught:
        hardware.load_cpu(path)
    assert {mistake.key for mistake in caught.value.mistakes} == {"speed", "style", "l2_penalty"}


def test_a_missing_policy_is_one_mistake(tmp_path: Path) -> None:
    array = """
[[{}]]
orders = ["4KiB"]
entries = {{ v = 64, unit = "entries", tag = "assumed", why = "w" }}
ways = {{ v = 4, unit = "ways", tag = "assumed", why = "w" }}
"""
    with pytest.raises(InvalidInput) as caught:
        hardware.load_cpu(write(tmp_path, array.format("l1_load") + array.format("l2")))
    assert [each.key for each in caught.value.mistakes].count("policy") == 1


def test_a_structure_may_have_a_policy_of_its_own(tmp_path: Path) -> None:
    text = """
inherits = "zen4"
policy = { v = "fifo", tag = "assumed", why = "a study" }
[[l2]]
orders = ["16KiB", "512MiB"]
entries = { v = 64, unit = "entries", tag = "text", source = "intel_sdm" }
ways = { v = "full", unit = "ways", tag = "text", source = "intel_sdm" }
policy = { v = "random", tag = "sec", source = "me" }
[nested_tlb]
policy = { v = "plru", tag = "sec", source = "me" }
[source.me]
text = "measured here"
"""
    cpu = hardware.load_cpu(write(tmp_path, text))
    assert cpu.geometry.l2 == (TlbArray((4, 6), 64, 64, "random"),)
    assert cpu.geometry.l1_load[0].policy == "fifo"
    assert cpu.geometry.nested_tlb.policy == "plru"
    assert cpu.parameters["l2.16KiB+512MiB.policy"].source == "measured here"
    assert cpu.parameters["l1_load.4KiB+2MiB+1GiB.policy"].why == "a study"
    assert {source.key for source in cpu.sources} > {"intel_sdm", "me"}


def test_two_banks_of_the_same_sizes_keep_their_figures_apart(tmp_path: Path) -> None:
    bank = """
[[l2]]
orders = ["4KiB", "2MiB"]
entries = { v = 64, unit = "entries", tag = "text", source = "zen4_tlb" }
ways = { v = 8, unit = "ways", tag = "text", source = "zen4_tlb" }
"""
    cpu = hardware.load_cpu(write(tmp_path, 'inherits = "zen4"' + bank + bank))
    assert {name for name in cpu.parameters if name.startswith("l2.")} == {
        f"l2.4KiB+2MiB{bank}.{key}" for bank in ("", "#2") for key in ("entries", "ways", "policy")
    }


def test_two_banks_must_be_alike(tmp_path: Path) -> None:
    bank = """
[[l2]]
orders = ["4KiB", "{}"]
entries = {{ v = {}, unit = "entries", tag = "text", source = "zen4_tlb" }}
ways = {{ v = 8, unit = "ways", tag = "text", source = "zen4_tlb" }}
"""
    path = write(tmp_path, 'inherits = "zen4"' + bank.format("2MiB", 64) + bank.format("1GiB", 128))
    with pytest.raises(InvalidInput, match="two of the same shape"):
        hardware.load_cpu(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="must be a readable file"):
        hardware.load_cpu(tmp_path / "none.toml")


# --- costs ------------------------------------------------------------------------------


def test_costs_have_a_field_for_each_parameter() -> None:
    costs = hardware.load_costs()
    assert len(COST_FIELDS) == len(hardware.cost_names()) == len(costs.parameters)
    assert costs.slat_fault_4k_ns == 3710 - 661
    assert costs.slat_fault_2m_ns == 6708
    assert costs.zap_2m_ns == 5300
    for parameter in costs.parameters.values():
        assert parameter.source
        assert parameter.what


def test_costs_can_be_replaced_by_name() -> None:
    costs = hardware.load_costs({"slat_fault_2m": 5000, "nvme_bandwidth": 1 << 30})
    assert costs.slat_fault_2m_ns == 5000
    assert costs.nvme_bandwidth_bytes_per_s == 1 << 30
    assert costs.zap_2m_ns == 5300


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("zap_2m", "6us", 6000), ("nvme_parallelism", 32, 32), ("nvme_parallelism", "1k", 1000),
     ("nvme_bandwidth", "2GiB", 2 << 30)],
)  # fmt: skip
def test_a_cost_is_read_in_its_unit(name: str, text: object, value: int) -> None:
    assert hardware.parse_cost(name, text) == value
    assert hardware.parse_cost(name, hardware.format_cost(name, value)) == value


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [("zap_2mm", "6us", "did you mean 'zap_2m'"), ("zap_2m", 6, "has no unit"),
     ("zap_2m", "6GiB", "unit"), ("zap_2m", True, "type bool"),
     ("nvme_parallelism", 0, "1 or more"), ("zap_2m", "9" * 40 + "s", "2^60")],
)  # fmt: skip
def test_a_cost_that_is_none(name: str, text: object, why: str) -> None:
    with pytest.raises(UnitError) as caught:
        hardware.parse_cost(name, text)
    assert why in str(caught.value)
