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

from simvm.errors import InvalidInput, UsageError
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
    va = accessed_address(4)
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
        {"guest": "4KiB", "host": "4KiB", "virtualization": "shadow"},
    ],
)
def test_questions_that_make_no_sense(question: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        walk(**question)
