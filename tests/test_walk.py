"""`simvm walk`: the loads of one walk, their number and their very addresses.

Published numbers: R. Bhargava, B. Serebrin, F. Spadini, S. Manne, "Accelerating
Two-Dimensional Page Walks for Virtualized Systems", ASPLOS 2008: n·m + n + m loads for n
guest levels and m host levels, 24 with 4 KiB pages on both sides.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from simvm.core_check import load_core
from simvm.errors import InvalidInput, UsageError
from simvm.hardware.formats import FORMATS, leaf_bytes, root_bytes, root_tables
from simvm.hardware.geometry import TableFormat
from simvm.units import format_bytes, parse_bytes
from simvm.walk import accessed_address, walk

KIB4, MIB2, GIB1 = 1 << 12, 1 << 21, 1 << 30
SIZES = {"4KiB": KIB4, "2MiB": MIB2, "1GiB": GIB1}

NESTED = {
    ("4KiB", "4KiB"): 24, ("4KiB", "2MiB"): 19, ("4KiB", "1GiB"): 14,
    ("2MiB", "4KiB"): 19, ("2MiB", "2MiB"): 15, ("2MiB", "1GiB"): 11,
    ("1GiB", "4KiB"): 14, ("1GiB", "2MiB"): 11, ("1GiB", "1GiB"): 8,
}  # fmt: skip
NATIVE = {"4KiB": 4, "2MiB": 3, "1GiB": 2}

# The layout by hand. Table pages are taken one after another from where a table begins:
# the root, then whatever the first mapping needs from the top down.
HOST = 32 * GIB1
GUEST_GPA = GIB1
OFFSET = 64 * GIB1
DATA_GPA = 3 * GIB1 + 4 * MIB2 + 5 * KIB4  # indices 3, 4, 5 of levels 3, 2, 1


def down(table_pages: list[int], indices: list[int]) -> list[int]:
    return [page + 8 * index for page, index in zip(table_pages, indices, strict=True)]


@pytest.mark.parametrize(("guest", "host"), NESTED)
def test_nested_loads_are_the_published_ones(guest: str, host: str) -> None:
    answer = walk(guest=guest, host=host)
    assert answer["loads"] == len(answer["addresses"]) == NESTED[guest, host]


@pytest.mark.parametrize("host", NATIVE)
def test_native_loads_are_the_published_ones(host: str) -> None:
    answer = walk(guest=None, host=host, virtualization="none")
    assert (answer["loads"], answer["tlb_entry"]) == (NATIVE[host], host)
    assert answer["addresses"] == down([HOST, HOST + KIB4, HOST + 2 * KIB4, HOST + 3 * KIB4],
                                       [2, 3, 4, 5])[: NATIVE[host]]  # fmt: skip
    assert "guest" not in answer


def test_five_levels_on_both_sides() -> None:
    assert walk(guest="4KiB", host="4KiB", guest_levels=5, host_levels=5)["loads"] == 35
    five = walk(guest=None, host="4KiB", host_levels=5, virtualization="none")
    assert five["addresses"] == down([HOST + k * KIB4 for k in range(5)], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(("guest_levels", "host_levels"), [*product((3, 4, 5), repeat=2)])
@pytest.mark.parametrize(("guest", "host"), NESTED)
def test_any_number_of_levels(guest: str, host: str, guest_levels: int, host_levels: int) -> None:
    n = guest_levels - list(SIZES).index(guest)
    m = host_levels - list(SIZES).index(host)
    answer = walk(guest=guest, host=host, guest_levels=guest_levels, host_levels=host_levels)
    assert answer["loads"] == n * m + n + m


@pytest.mark.parametrize(("guest", "host"), NESTED)
def test_tlb_entry_is_the_smaller_leaf(guest: str, host: str) -> None:
    smaller = min(guest, host, key=SIZES.__getitem__)
    assert walk(guest=guest, host=host)["tlb_entry"] == smaller


def test_every_address_of_a_4k_walk() -> None:
    """Guest tables lie at gPA 1 GiB + 0, 4, 8, 12 KiB: indices 1, 0, 0..3 of levels 3, 2, 1."""
    root, level3, level2, level1 = (HOST + k * KIB4 for k in range(4))
    data_level2, data_level1 = HOST + 4 * KIB4, HOST + 5 * KIB4
    expected = []
    for table, guest_index in enumerate((2, 3, 4, 5)):
        expected += down([root, level3, level2, level1], [0, 1, 0, table])
        expected += [OFFSET + GUEST_GPA + table * KIB4 + 8 * guest_index]
    expected += down([root, level3, data_level2, data_level1], [0, 3, 4, 5])
    assert walk(guest="4KiB", host="4KiB")["addresses"] == expected


def test_every_address_of_a_1g_walk_over_2m() -> None:
    root, level3, level2, data_level2 = (HOST + k * KIB4 for k in range(4))
    expected = []
    for table, guest_index in enumerate((2, 3)):
        expected += down([root, level3, level2], [0, 1, 0])  # one 2 MiB leaf holds both
        expected += [OFFSET + GUEST_GPA + table * KIB4 + 8 * guest_index]
    expected += down([root, level3, data_level2], [0, 3, 4])
    assert walk(guest="1GiB", host="2MiB")["addresses"] == expected


@pytest.mark.parametrize(("guest", "host"), NESTED)
@pytest.mark.parametrize("table_host", SIZES)
def test_addresses_follow_the_tables(guest: str, host: str, table_host: str) -> None:
    """Each host load lies at 8 × the index of the gPA translated, each guest load at the
    host's address of the guest's table page + 8 × the index of the VA; a table is loaded
    from the page that the load before it pointed to, which is the same page each time.
    """
    answer = walk(guest=guest, host=host, guest_table_host=table_host)
    n = 4 - list(SIZES).index(guest)
    m = {"tables": 4 - list(SIZES).index(table_host), "data": 4 - list(SIZES).index(host)}
    assert answer["loads"] == n * (m["tables"] + 1) + m["data"]
    assert answer["guest_table_host"] == table_host
    va = accessed_address(TableFormat())
    left = list(answer["addresses"])
    pages: dict[tuple[int, int], int] = {}

    def take(page_of: tuple[int, int], address: int) -> None:
        load = left.pop(0)
        level = page_of[0]
        assert load % KIB4 == 8 * ((address >> (12 + 9 * (level - 1))) & 511)
        assert pages.setdefault(page_of, load - load % KIB4) == load - load % KIB4

    def host_walk(gpa: int, loads: int) -> None:
        for level in range(4, 4 - loads, -1):
            take((level, gpa >> (12 + 9 * level)), gpa)

    for table in range(n):
        table_gpa = GUEST_GPA + table * KIB4
        host_walk(table_gpa, m["tables"])
        load = left.pop(0)
        assert load == table_gpa + OFFSET + 8 * ((va >> (12 + 9 * (3 - table))) & 511)
    host_walk(DATA_GPA, m["data"])
    assert left == []
    host_pages = sorted(pages.values())
    assert host_pages == [HOST + k * KIB4 for k in range(len(pages))]  # each page once, no other


@pytest.mark.parametrize(
    ("guest", "host", "table_host", "loads"),
    [
        ("4KiB", "2MiB", "4KiB", 4 * 5 + 3),
        ("2MiB", "2MiB", "4KiB", 3 * 5 + 3),
        ("1GiB", "2MiB", "4KiB", 2 * 5 + 3),
        ("1GiB", "4KiB", "2MiB", 2 * 4 + 4),
        ("1GiB", "1GiB", "4KiB", 2 * 5 + 2),
    ],
)
def test_other_leaves_under_guest_tables(
    guest: str, host: str, table_host: str, loads: int
) -> None:
    answer = walk(guest=guest, host=host, guest_table_host=table_host)
    assert answer["loads"] == loads
    assert answer["tlb_entry"] == min(guest, host, key=SIZES.__getitem__)


def test_steps_say_whose_table_each_address_lies_in() -> None:
    answer = walk(guest="1GiB", host="2MiB", guest_table_host="4KiB")
    steps = answer["steps"]
    assert [step["address"] for step in steps] == answer["addresses"]
    assert [(step["table"], step["level"]) for step in steps] == [
        *[("host", level) for level in (4, 3, 2, 1)], ("guest", 4),
        *[("host", level) for level in (4, 3, 2, 1)], ("guest", 3),
        *[("host", level) for level in (4, 3, 2)],
    ]  # fmt: skip
    purposes = [step["translates"] for step in steps if step["table"] == "host"]
    assert purposes == (
        ["guest table of level 4"] * 4 + ["guest table of level 3"] * 4 + ["data"] * 3
    )
    assert [step["index"] for step in steps if step["table"] == "guest"] == [2, 3]


def test_the_answer_is_json_and_always_the_same() -> None:
    text = json.dumps(walk(guest="2MiB", host="4KiB"))
    assert text == json.dumps(walk(guest="2MiB", host="4KiB"))
    assert json.loads(text)["host"] == "4KiB"


# --- other formats of tables ------------------------------------------------------------

STAGE1, STAGE2 = ([name for name in FORMATS if stage in FORMATS[name].stages] for stage in (1, 2))


def leaves_of(name: str) -> list[str]:
    form = FORMATS[name].form
    return [format_bytes(size) for size in leaf_bytes(form.granule_shift, form.levels)]


def test_formats_are_those_of_the_manuals() -> None:
    """Bits of address, and bytes of the root: by the name of the format, and by hand."""
    bits = {name: named.form.address_bits for name, named in FORMATS.items()}
    for name in bits:
        if "bit" in name:
            assert f"{bits[name]}bit" == name.rpartition("-")[2]
        assert len(FORMATS[name].source) > 20
        form, core = FORMATS[name].form, load_core()
        shape = {"granule_shift": form.granule_shift, "root_bits": form.root_bits}
        root = core.PageTable(form.levels, core.BlockAllocator(MIB2), **shape)
        assert root.table_pages * KIB4 == root_bytes(form)
    assert {name: bits[name] for name in bits if "bit" not in name} == {
        "x86-4": 48, "x86-5": 57, "sv39": 39, "sv48": 48, "sv57": 57, "sv39x4": 41, "sv48x4": 50,
    }  # fmt: skip
    # Roots of RISC-V's G-stage have 16 KiB; those of Arm's stage 2 up to 16 tables.
    concatenated = {name: root_tables(FORMATS[name].form) for name in STAGE2}
    assert {name: count for name, count in concatenated.items() if count > 1} == {
        "arm-stage2-4k-40bit": 2, "arm-stage2-4k-52bit": 16, "arm-stage2-16k-40bit": 16,
        "arm-stage2-16k-48bit": 2, "sv39x4": 4, "sv48x4": 4,
    }  # fmt: skip


@pytest.mark.parametrize(("guest_format", "host_format"), [*product(STAGE1, STAGE2)])
def test_any_two_formats(guest_format: str, host_format: str) -> None:
    """n and m are levels less order of leaf; each load lies where the indices say."""
    guest_form, host_form = FORMATS[guest_format].form, FORMATS[host_format].form
    sizes = product(enumerate(leaves_of(guest_format)), *[[*enumerate(leaves_of(host_format))]] * 2)
    for (order, guest), (host_order, host), (table_order, table_host) in sizes:
        answer = walk(guest=guest, host=host, guest_table_host=table_host,
                      guest_format=guest_format, host_format=host_format)  # fmt: skip
        n = guest_form.levels - order
        m_tables, m_data = host_form.levels - table_order, host_form.levels - host_order
        assert answer["loads"] == n * (m_tables + 1) + m_data
        assert answer["tlb_entry"] == min(guest, host, key=parse_bytes)
        assert answer["host_format"]["address_bits"] == host_form.address_bits
        steps = iter(answer["steps"])
        for level in range(guest_form.levels, guest_form.levels - n, -1):
            wanted = f"guest table of level {level}"
            check_host_walk(host_form, [next(steps) for _ in range(m_tables)], wanted)
            step = next(steps)
            assert (step["table"], step["level"]) == ("guest", level)
            assert step["index"] == index_of(guest_form, accessed_address(guest_form), level)
        check_host_walk(host_form, [next(steps) for _ in range(m_data)], "data")
        assert next(steps, None) is None


def check_host_walk(form: TableFormat, steps: list[dict[str, Any]], translates: str) -> None:
    """From the root down a level each, within the tables that were made, one after another."""
    assert {step["table"] for step in steps} == {"host"}
    assert [step["level"] for step in steps] == list(
        range(form.levels, form.levels - len(steps), -1)
    )
    assert {step["translates"] for step in steps} == {translates}
    assert HOST <= steps[0]["address"] < HOST + (root_tables(form) << form.granule_shift)
    for step in steps:
        table = step["address"] - 8 * step["index"]
        assert table % (1 << form.granule_shift) == 0
        assert (table == HOST) == (step["level"] == form.levels)
        assert step["index"] < root_tables(form) << (form.granule_shift - 3)
    if translates == "data" and root_tables(form) > 1:
        one = 1 << (form.granule_shift - 3)
        assert steps[0]["index"] // one == root_tables(form) - 1  # in the last table of the root


def index_of(form: TableFormat, address: int, level: int) -> int:
    width = form.granule_shift - 3
    bits = form.root_bits or width if level == form.levels else width
    return (address >> (form.granule_shift + width * (level - 1))) % (1 << bits)


def test_every_address_of_a_walk_over_a_root_of_16k() -> None:
    """The guest's tables are in the first 4 KiB of the root, its data in the last."""
    root, level2, level1 = HOST, HOST + 4 * KIB4, HOST + 5 * KIB4
    data2, data1 = HOST + 6 * KIB4, HOST + 7 * KIB4
    expected = []
    for table, guest_index in enumerate((3, 4, 5)):
        expected += down([root, level2, level1], [1, 0, table])
        expected += [OFFSET + GUEST_GPA + table * KIB4 + 8 * guest_index]
    expected += down([root, data2, data1], [3 * 512 + 3, 4, 5])
    answer = walk(guest="4KiB", host="4KiB", guest_format="sv39", host_format="sv39x4")
    assert answer["addresses"] == expected
    assert answer["steps"][-3]["index"] == 1539


def test_every_address_of_a_walk_of_64k_tables_over_4k() -> None:
    """A guest's table of 64 KiB lies in 16 pages of the host; an entry in one of them."""
    root, level3, level2, level1 = (HOST + k * KIB4 for k in range(4))
    data2, data1 = HOST + 4 * KIB4, HOST + 5 * KIB4
    expected = []
    for table, guest_index in enumerate((3, 4, 5)):
        expected += down([root, level3, level2, level1], [0, 1, 0, 16 * table])
        expected += [OFFSET + GUEST_GPA + table * 16 * KIB4 + 8 * guest_index]
    expected += down([root, level3, data2, data1], [0, 3, 0, 16 * 5])  # data: page 5 of 64 KiB
    answer = walk(guest="64KiB", host="4KiB", guest_granule="64KiB")
    assert answer["addresses"] == expected
    assert answer["tlb_entry"] == "4KiB"


@pytest.mark.parametrize(("tables", "levels"), [(1, 3), (2, 3), (4, 3), (8, 3), (16, 3), (16, 2)])
def test_tables_in_a_row_as_the_root(tables: int, levels: int) -> None:
    answer = walk(guest="2MiB", host="4KiB", host_levels=levels, host_root_tables=tables)
    assert answer["loads"] == 3 * levels + 3 + levels
    assert answer["host_format"]["root_tables"] == tables
    assert answer["steps"][-levels]["index"] // 512 == tables - 1
    below = {step["address"] // KIB4 for step in answer["steps"] if step["level"] == levels - 1
             and step["table"] == "host"}  # fmt: skip
    assert min(below) * KIB4 >= HOST + tables * KIB4


def test_a_format_by_name_and_by_its_parts_is_the_same() -> None:
    parts = walk(guest="4KiB", host="4KiB", host_levels=3, host_root_tables=2)
    named = walk(guest="4KiB", host="4KiB", host_format="arm-stage2-4k-40bit")
    assert parts["steps"] == named["steps"]
    assert parts["host_format"] | {"name": 0, "source": 0} == named["host_format"] | {
        "name": 0, "source": 0,
    }  # fmt: skip
    assert "DDI 0487" in named["host_format"]["source"]


@pytest.mark.parametrize(
    ("guest", "host", "side", "entry"),
    [
        ("4KiB", "4KiB", "both", "64KiB"), ("4KiB", "4KiB", "guest", "4KiB"),
        ("4KiB", "4KiB", "host", "4KiB"), ("4KiB", "2MiB", "guest", "64KiB"),
        ("4KiB", "2MiB", "both", "64KiB"), ("4KiB", "1GiB", "guest", "64KiB"),
        ("2MiB", "4KiB", "host", "64KiB"), ("2MiB", "4KiB", "both", "64KiB"),
        ("1GiB", "4KiB", "host", "64KiB"),
    ],
)  # fmt: skip
def test_sixteen_contiguous_pages_are_one_entry(
    guest: str, host: str, side: str, entry: str
) -> None:
    """Where the other side allows it. The loads stay."""
    answer = walk(guest=guest, host=host, contiguous=side)
    assert answer["tlb_entry"] == entry
    assert answer["addresses"] == walk(guest=guest, host=host)["addresses"]
    flags = {name: answer[f"{name}_format"]["contiguous"] for name in ("guest", "host")}
    sizes = {"guest": guest, "host": host}
    assert flags == {name: side in (name, "both") and sizes[name] == "4KiB" for name in flags}


def test_the_hint_beside_other_granules_and_without_a_guest() -> None:
    wide = {"guest_granule": "64KiB", "contiguous": "host"}
    assert walk(guest="64KiB", host="4KiB", **wide)["tlb_entry"] == "64KiB"
    assert walk(guest="512MiB", host="4KiB", **wide)["tlb_entry"] == "64KiB"
    wide["guest_granule"] = "16KiB"
    assert walk(guest="16KiB", host="4KiB", **wide)["tlb_entry"] == "16KiB"
    native = walk(guest=None, host="4KiB", virtualization="none", contiguous="both")
    assert (native["tlb_entry"], native["loads"]) == ("64KiB", 4)


@pytest.mark.parametrize(
    "question",
    [
        {"guest": "2MiB", "host": "2MiB"},
        {"guest": "2MiB", "host": "4KiB", "contiguous": "guest"},
        {"guest": "16KiB", "host": "16KiB", "guest_granule": "16KiB", "host_granule": "16KiB"},
        {"guest": "4KiB", "host": "4KiB", "guest_format": "x86-4", "host_format": "x86-5"},
        {"guest": "4KiB", "host": "4KiB", "contiguous": "gues"},
    ],
)
def test_a_hint_that_nothing_can_bear(question: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        walk(**{"contiguous": "both", **question})
    (mistake,) = caught.value.mistakes
    assert mistake.key == "--contiguous"
    assert mistake.fix


@pytest.mark.parametrize(
    ("question", "keys"),
    [
        ({"guest": "2MiB", "host": "1GiB", "guest_granule": "64KiB", "host_granule": "16KiB"},
         ["--guest", "--host"]),
        ({"guest": "4KiB", "host": "4KiB", "guest_granule": "8KiB", "host_root_tables": 3},
         ["--guest-granule", "--host-root-tables"]),
        ({"guest": "4KiB", "host": "4KiB", "guest_format": "sv39x4", "host_format": "sv39",
          "host_levels": 3}, ["--guest-format", "--host-levels", "--host-format"]),
        ({"guest": "4KiB", "host": "4KiB", "host_format": "sv39x5", "guest_granule": "4 potatoes"},
         ["--guest-granule", "--host-format"]),
        ({"guest": "4KiB", "host": "4KiB", "host_granule": "64KiB", "host_levels": 4},
         ["--host", "--host-levels"]),
        ({"guest": "4KiB", "host": "4KiB", "host_levels": 5, "host_root_tables": 2},
         ["--host-levels"]),
        ({"guest": "1GiB", "host": "1GiB", "host_levels": 2, "host_root_tables": 8}, ["--host"]),
        ({"guest": None, "host": "4KiB", "virtualization": "none", "host_root_tables": 2},
         ["--host-root-tables"]),
        ({"guest": None, "host": "4KiB", "virtualization": "none", "host_format": "sv48x4"},
         ["--host-format"]),
    ],
)  # fmt: skip
def test_every_mistake_about_formats_at_once(question: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        walk(**question)
    assert [mistake.key for mistake in caught.value.mistakes] == keys
    assert all(mistake.fix for mistake in caught.value.mistakes)


def test_every_bad_size_and_level_is_reported_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        walk(guest="1GB", host="3MiB", guest_levels=6, host_levels=2, guest_table_host="-4KiB")
    keys = [mistake.key for mistake in caught.value.mistakes]
    assert keys == ["--guest", "--host", "--guest-table-host", "--guest-levels", "--host-levels"]
    assert all(mistake.fix for mistake in caught.value.mistakes)


@pytest.mark.parametrize(
    "question",
    [
        {"guest": None, "host": "4KiB"},
        {"guest": "4KiB", "host": "4KiB", "virtualization": "none"},
        {"guest": None, "host": "4KiB", "virtualization": "none", "guest_table_host": "4KiB"},
        {"guest": None, "host": "4KiB", "virtualization": "none", "guest_levels": 5},
        {"guest": None, "host": "4KiB", "virtualization": "none", "guest_format": "sv39"},
        {"guest": None, "host": "4KiB", "virtualization": "none", "contiguous": "guest"},
        {"guest": "4KiB", "host": "4KiB", "virtualization": "shadow"},
    ],
)
def test_questions_that_make_no_sense(question: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        walk(**question)
