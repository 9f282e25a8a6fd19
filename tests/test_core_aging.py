"""The core's looks at many accessed bits at once, and lists by groups of owners."""

from __future__ import annotations

import numpy as np
import pytest
from scenarios_small import BLOCK, MIB, PAGE

from simvm import _core
from simvm.hardware.geometry import MmuGeometry

WARM, COLD = 2, 1


class Guest:
    """A guest of 64 MiB, backed in 4 KiB or 2 MiB by its kernel's writes."""

    def __init__(self, host: _core.HostMemory, owner: int, order: int, group: int = 0) -> None:
        self.table = _core.PageTable(4, host.frames, mirrored=True)
        self.backing = _core.Backing(host, self.table, owner, order, 64 * MIB, group=group)
        self.space = _core.AddressSpace(0, self.table, None)
        self.vcpu = _core.Vcpu(_core.Mmu(MmuGeometry.bare()))
        self.vcpu.set_costs((1, 1, 1), 0, 0)

    def write(self, start: int, size: int) -> None:
        self.vcpu.queue_write(start, size)
        self.vcpu.kernel_write(self.space, self.backing, 1 << 30, 1 << 40)


def addresses(*found: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(found, dtype=np.uint64)


def owned(host: _core.HostMemory, which: int, group: int = 0) -> list[tuple[int, int]]:
    """(owner, address) of what lies on a list, from its old end."""
    return [host.owner_of(folio) for folio, _ in host.scan(which, 1 << 20, group)]


@pytest.mark.parametrize("order", [0, 1])
def test_a_walk_finds_what_was_accessed_since_the_last(order: int) -> None:
    """4 MiB are written, then one page of it. By 4 KiB that is a root, three tables below it and
    1024 leaves; by 2 MiB there is no table of level 1 and two leaves."""
    host = _core.HostMemory(128 * MIB)
    guest = Guest(host, 7, order)
    guest.write(0, 4 * MIB)
    leaves, tables = (1024, 5) if order == 0 else (2, 3)
    assert guest.backing.age(WARM) == (tables, leaves, leaves)
    assert host.list_bytes(WARM) == 4 * MIB
    host.move([folio for folio, _ in host.scan(WARM, 1024)], COLD)
    assert guest.backing.age(WARM) == (tables, leaves, 0)
    guest.write(3 * MIB, PAGE)
    assert guest.backing.age(WARM) == (tables, leaves, 1)
    assert owned(host, WARM) == [(7, 3 * MIB if order == 0 else BLOCK)]
    assert host.list_bytes(WARM) + host.list_bytes(COLD) == 4 * MIB


@pytest.mark.parametrize(("page", "first"), [(100, 68), (3, 0), (510, 448)])
def test_a_look_around_ages_64_neighbours_in_one_table(page: int, first: int) -> None:
    host = _core.HostMemory(128 * MIB)
    guest = Guest(host, 7, 0)
    guest.write(0, 2 * BLOCK)
    folios = {host.owner_of(folio)[1] // PAGE: folio for folio, _ in host.scan(COLD, 1 << 20)}
    guest.write((first - 1) * PAGE if first else 64 * PAGE, PAGE)  # just outside the window
    for inside in (first, first + 63):
        guest.write(inside * PAGE, PAGE)
    assert host.look_around(folios[page], WARM) == (64, 2)
    assert owned(host, WARM) == [(7, first * PAGE), (7, (first + 63) * PAGE)]


def test_a_huge_folio_has_no_neighbours_to_look_at() -> None:
    host = _core.HostMemory(128 * MIB)
    guest = Guest(host, 7, 1)
    guest.write(0, BLOCK)
    ((folio, _),) = host.scan(COLD, 512)
    assert host.look_around(folio, WARM) == (0, 0)


def test_what_one_reader_clears_the_others_still_see() -> None:
    """DAMON clears A to see whether it is set again; a scan must not take that for idleness."""
    host = _core.HostMemory(128 * MIB)
    guest = Guest(host, 7, 0)
    guest.write(0, 3 * PAGE)
    pages = addresses(0, PAGE, 2 * PAGE, 50 * MIB)  # the last one is not backed
    assert guest.backing.note_old(pages).tolist() == [True, True, True, False]
    guest.write(PAGE, PAGE)
    assert guest.backing.was_accessed(pages).tolist() == [False, True, False, False]
    assert [young for _, young in host.scan(COLD, 3)] == [True] * 3
    assert [young for _, young in host.scan(COLD, 3)] == [False] * 3
    assert not guest.backing.note_old(pages).any()


def test_groups_have_lists_of_their_own() -> None:
    """Two guests that share group 0, and one alone: each list holds what its group owns."""
    host = _core.HostMemory(256 * MIB)
    alone = host.add_group()
    host.set_new_list(3, alone)
    guests = [Guest(host, 1, 0), Guest(host, 2, 0), Guest(host, 9, 0, alone)]
    for guest in guests:
        guest.write(0, 2 * PAGE)
    assert {owner for owner, _ in owned(host, COLD)} == {1, 2}
    assert {owner for owner, _ in owned(host, 3, alone)} == {9}
    assert (host.list_bytes(COLD), host.list_bytes(3, alone)) == (4 * PAGE, 2 * PAGE)
    assert host.list_bytes(COLD, alone) == host.list_bytes(3) == 0
    # Moves stay within the group, but for the lists that are common to all.
    (own, _), _ = host.scan(3, 2, alone)
    (other, _), *_ = host.scan(COLD, 2)
    host.move([own, other], 5)
    assert (host.list_bytes(5), host.list_bytes(5, alone)) == (PAGE, PAGE)
    host.move([own, other], 14)
    assert host.list_bytes(14) == 2 * PAGE
    assert host.list_bytes(5) == host.list_bytes(5, alone) == 0
    for guest in guests:
        guest.backing.destroy()
    assert not any(host.list_bytes(which, group) for which in (1, 3, 5, 14) for group in (0, alone))
    with pytest.raises(ValueError, match="no group 2"):
        host.scan(1, 1, 2)


def test_a_stream_shows_what_comes_next_without_doing_it() -> None:
    stream = _core.Stream.uniform(np.random.PCG64(1), 64 * MIB)
    assert stream.ahead().size == 0  # nothing is drawn yet
    stream.take(500)
    before = stream.digest
    ahead = stream.ahead()
    assert stream.digest == before
    assert ahead.size == 12          # of 512
    assert (stream.take(12) >> np.uint64(1)).tolist() == ahead.tolist()
    region = _core.Region(1 << 30, 64 * MIB, 0)
    table = _core.PageTable(4, _core.BlockAllocator(MIB << 1))
    table.map((1 << 30) + PAGE, 7 * PAGE, 0)
    offsets = addresses(PAGE + 5, 9 * PAGE)
    assert region.locate(offsets, table).tolist() == [7 * PAGE + 5]
    assert region.locate(offsets).tolist() == [(1 << 30) + PAGE + 5, (1 << 30) + 9 * PAGE]
