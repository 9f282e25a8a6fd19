"""Host VMAs: split by what changes a part of one, merged when alike, limited in number."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios_small import GIB, PAGE

from simvm.model.vmas import Flags, TooManyVmas, Vmas

SIZE = 64 * PAGE


def ranges(of: Vmas) -> list[tuple[int, int]]:
    """(start, end) of each, in pages."""
    return [(vma.start // PAGE, vma.end // PAGE) for vma in of]


def test_a_part_in_the_middle_makes_three_and_undoing_it_one() -> None:
    vmas = Vmas(SIZE, 100)
    assert vmas.change(8 * PAGE, 16 * PAGE, locked=True) == 1
    assert ranges(vmas) == [(0, 8), (8, 16), (16, 64)]
    assert vmas.locked_bytes == 8 * PAGE
    assert vmas.change(8 * PAGE, 16 * PAGE, locked=True) == 0  # it is so already
    assert vmas.change(8 * PAGE, 16 * PAGE, locked=False) == 1
    assert ranges(vmas) == [(0, 64)]


def test_a_neighbour_that_is_alike_takes_the_part_without_a_split() -> None:
    """At the limit of three a boundary can still move; a fourth VMA cannot be made."""
    vmas = Vmas(SIZE, 3)
    vmas.change(8 * PAGE, 16 * PAGE, mergeable=True)
    vmas.change(16 * PAGE, 20 * PAGE, mergeable=True)
    vmas.change(4 * PAGE, 8 * PAGE, mergeable=True)
    assert ranges(vmas) == [(0, 4), (4, 20), (20, 64)]
    assert vmas.mergeable() == [(4 * PAGE, 20 * PAGE)]
    with pytest.raises(TooManyVmas):
        vmas.change(30 * PAGE, 31 * PAGE, mergeable=True)
    assert len(vmas) == 3


def test_flags_are_independent_and_names_tell_vmas_apart() -> None:
    vmas = Vmas(SIZE, 100)
    vmas.change(0, 32 * PAGE, name="a")
    vmas.change(32 * PAGE, SIZE, name="b")
    vmas.change(16 * PAGE, 48 * PAGE, protection="r")
    assert ranges(vmas) == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert vmas.at(20 * PAGE).flags == Flags(name="a", protection="r")
    vmas.change(0, SIZE, protection="rw")
    assert ranges(vmas) == [(0, 32), (32, 64)]
    assert [vma.flags.name for vma in vmas.overlapping(31 * PAGE, 33 * PAGE)] == ["a", "b"]


def test_a_change_that_fails_keeps_what_came_before_it() -> None:
    """Room for one split: the first of two boundaries is made, the flags are not changed."""
    vmas = Vmas(SIZE, 2)
    with pytest.raises(TooManyVmas):
        vmas.change(8 * PAGE, 16 * PAGE, locked=True)
    assert ranges(vmas) == [(0, 8), (8, 64)]
    assert vmas.locked_bytes == 0


def test_every_second_page_reaches_the_limit_of_linux() -> None:
    """n parts that nothing joins make 2n + 1 VMAs: 32,764 are 65,529, one more would be 65,531."""
    vmas = Vmas(GIB, 65_530)
    for part in range(32_764):
        vmas.change((2 * part + 1) * PAGE, (2 * part + 2) * PAGE, locked=True)
    assert len(vmas) == 65_529
    with pytest.raises(TooManyVmas):
        vmas.change(GIB - 2 * PAGE, GIB - PAGE, locked=True)
    assert len(vmas) == 65_530


CHANGES = st.tuples(
    st.integers(0, 63), st.integers(1, 20),
    st.sampled_from([("name", None), ("name", "a"), ("locked", True), ("locked", False),
                     ("protection", "r"), ("protection", "rw")]),
)  # fmt: skip


@given(st.lists(CHANGES, max_size=30))
def test_vmas_say_of_each_page_what_was_said_last(
    changes: list[tuple[int, int, tuple[str, object]]]
) -> None:
    """Against a list of flags for each page; and no two neighbours are alike."""
    vmas, pages = Vmas(SIZE, 1000), [Flags()] * 64
    for first, length, (flag, value) in changes:
        last = min(first + length, 64)
        vmas.change(first * PAGE, last * PAGE, **{flag: value})
        for page in range(first, last):
            pages[page] = pages[page]._replace(**{flag: value})  # type: ignore[arg-type]
        found = list(vmas)
        assert found[0].start == 0
        assert found[-1].end == SIZE
        for low, high in itertools.pairwise(found):
            assert low.end == high.start
            assert low.flags != high.flags
    assert [vmas.at(page * PAGE).flags for page in range(64)] == pages
