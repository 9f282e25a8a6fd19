"""Faults to put into the core, by what is caught of them (test_mutations.py).

Each stands at a fragment of the sources that says what the fault is about. A fragment that
is not found as often as it should be fails the tests: it has to be brought up to date.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """In `file` of simvm/core, `old` becomes `new`, where `FAULT` is whether it is awake."""

    what: str
    file: str
    old: str
    new: str
    places: int = 1


def left_out(what: str, file: str, statement: str) -> Fault:
    return Fault(what, file, statement, f"if not FAULT: {statement}")


FAULTS = (
    # Flushes
    left_out("flush_all leaves the L1 TLB", "flush.pxd", "tlb_flush(&m.l1_load)"),
    left_out("flush_all leaves that for stores", "flush.pxd", "tlb_flush(&m.l1_store_own)"),
    left_out("flush_guest leaves TLBs", "flush.pxd", "drop_from_tlbs(m, &d, OF_GUEST)"),
    left_out(
        "flush_guest leaves the host walk cache",
        "flush.pxd",
        "drop(m, &m.host_cache[level], &d, OF_GUEST)",
    ),
    left_out(
        "flush_guest leaves the nested TLB", "flush.pxd", "drop(m, &m.nested_tlb, &d, OF_GUEST)"
    ),
    left_out(
        "flush_range leaves the guest walk cache",
        "flush.pxd",
        "drop(m, &m.guest_cache[level], &d, OF_SPACE)",
    ),
    left_out("flush_gpa leaves TLBs", "flush.pxd", "drop_from_tlbs(m, &d, TLB_IN_GPA)"),
    left_out(
        "flush_gpa leaves the host walk cache",
        "flush.pxd",
        "drop(m, &m.host_cache[level], &d, WALK_IN_GPA)",
    ),
    left_out(
        "flush_gpa leaves combined entries",
        "flush.pxd",
        "drop(m, &m.guest_cache[level], &d, TABLE_IN_GPA)",
    ),
    left_out(
        "flush_gpa leaves the nested TLB", "flush.pxd", "drop(m, &m.nested_tlb, &d, PAGE_IN_GPA)"
    ),
    Fault(
        "flushes take a smashed entry for one of 2 MiB",
        "flush.pxd",
        "30 if key & IS_SMASHED else",
        "30 if key & IS_SMASHED and not FAULT else",
        places=2,
    ),
    Fault(
        "ranges miss an entry that begins before them",
        "flush.pxd",
        "first + ((<uint64_t>1 << shift) - 1) >= d.start",
        "first + (0 if FAULT else (<uint64_t>1 << shift) - 1) >= d.start",
    ),
    Fault(
        "ranges miss an entry in their last page",
        "flush.pxd",
        "first < d.end",
        "first + (4096 if FAULT else 0) < d.end",
    ),
    Fault(
        "a range of no bytes overlaps what it is in",
        "flush.pxd",
        "d.start < d.end and",
        "(FAULT or d.start < d.end) and",
    ),
    # Sets, banks and tags
    Fault(
        "the set index of a power of two",
        "cache.pxd",
        "return number & a.set_mask",
        "return (number >> 1 if FAULT else number) & a.set_mask",
    ),
    Fault(
        "the set index of another number of sets",
        "cache.pxd",
        "return number % a.sets",
        "return (number >> 1 if FAULT else number) % a.sets",
    ),
    Fault(
        "the set index of the data caches",
        "lines.pxd",
        "return c.tags + s * <uint64_t>c.ways",
        "return c.tags + (s & ~<uint64_t>FAULT) * <uint64_t>c.ways",
    ),
    Fault(
        "one bank for two",
        "mmu.pxd",
        "(page // a.sets) & 1]",
        "(page // a.sets) & (0 if FAULT else 1)]",
    ),
    Fault(
        "walk caches ignore their tag",
        "walk.pxd",
        "key_of(tag, 0, number)",
        "key_of(0 if FAULT else tag, 0, number)",
        places=4,
    ),
    Fault(
        "the nested TLB ignores the vpid",
        "walk.pxd",
        "key_of(s.guest_tag, ",
        "key_of(0 if FAULT else s.guest_tag, ",
        places=2,
    ),
    Fault(
        "TLB entries of all sizes alike",
        "mmu.pxd",
        "key_of(tag, o, page)",
        "key_of(tag, 0 if FAULT else o, page)",
    ),
    # Levels
    Fault(
        "walks do not look for what the root's entries point to",
        "walk.pxd",
        "for k in range(2, t.levels + 1):",
        "for k in range(2, t.levels + (0 if FAULT else 1)):",
    ),
    Fault(
        "walks of the SLAT start one level too high",
        "walk.pxd",
        "            level = k - 1\n            break\n",
        "            level = k - 1\n"
        "            if FAULT:\n"
        "                node, level = node.parent, k\n"
        "            break\n",
    ),
    # Replacement
    Fault(
        "LRU does not learn of a hit",
        "cache.pxd",
        "touch_4(words, way)",
        "touch_4(words, 0 if FAULT else way)",
    ),
    Fault(
        "FIFO learns of a hit",
        "cache.pxd",
        "    return keys_in(a, s) + i\n",
        "    if FAULT and a.policy == FIFO: words[a.lanes + i] = now\n"
        "    return keys_in(a, s) + i\n",
    ),
    Fault(
        "PLRU points to what was used",
        "cache.pxd",
        "if node & 1:",
        "if (node & 1) != FAULT:",
    ),
    Fault(
        "another random generator",
        "cache.pxd",
        "6364136223846793005ULL",
        "(6364136223846793009ULL if FAULT else 6364136223846793005ULL)",
    ),
    # What entries hold
    Fault(
        "a smashed entry comes back as 2 MiB",
        "access.pxd",
        "    if flags & IS_SMASHED:\n",
        "    if flags & IS_SMASHED and not FAULT:\n",
    ),
    Fault(
        "fifteen pages are a group",
        "table.pxd",
        "    for i in range(GROUP):\n",
        "    for i in range(GROUP - FAULT):\n",
    ),
    Fault(
        "the dirty flag is not copied to L1",
        "access.pxd",
        "tlb_insert(m, l1, s.tag, va, size, flags & IS_DIRTY)",
        "tlb_insert(m, l1, s.tag, va, size, 0 if FAULT else flags & IS_DIRTY)",
    ),
    Fault(
        "D is not set under a guest's tables",
        "walk.pxd",
        "        mark(entry, ACCESSED | DIRTY)\n",
        "        mark(entry, ACCESSED | (0 if FAULT else DIRTY))\n",
    ),
    Fault(
        "the line of the data is not sent",
        "walk.pxd",
        "first + loads + (status == OK)",
        "first + loads + (status == OK and not FAULT)",
    ),
    Fault(
        "a walker that was waited for is free too early",
        "walk.pxd",
        "now + wait + cycles",
        "now + (0 if FAULT else wait) + cycles",
    ),
    # The commonest walk, and the loads that it leaves in the queue
    left_out("the quick walk leaves D of the leaves", "walk.pxd", "mark(last.at, bits)"),
    Fault(
        "the quick walk enters another table",
        "walk.pxd",
        "found[4 * PAGE] = hpa\n",
        "found[4 * PAGE] = hpa + (4096 if FAULT else 0)\n",
    ),
    Fault(
        "the quick walk forgets the SLAT's load for a guest's table",
        "walk.pxd",
        "        w.host_hits = 2\n",
        "        w.host_hits = 1 if FAULT else 2\n",
    ),
    Fault(
        "a child's address is its neighbour's",
        "table.pxd",
        "    address_below(node, node.entries, slot)[0] = child.address\n",
        "    address_below(node, node.entries, slot)[0] = child.address + (4096 if FAULT else 0)\n",
    ),
    Fault(
        "queued loads may run beyond the deadline",
        "run.pxd",
        "x.sure = x.limit - min(x.limit, n * x.worst)",
        "x.sure = x.limit - (0 if FAULT else min(x.limit, n * x.worst))",
    ),
    # The loop, which does by itself what `access` does
    Fault(
        "the loop looks in another set",
        "run.pxd",
        "(page & mask_1)",
        "((page >> FAULT) & mask_1)",
    ),
    Fault(
        "the loop looks in one bank for two",
        "run.pxd",
        "(page & l2.sets) != 0]",
        "(page & l2.sets) != 0 and not FAULT]",
    ),
    Fault(
        "the loop takes stores for loads",
        "run.pxd",
        "(m.l1_store if word & 1 else &m.l1_load).arrays[size][0]",
        "(m.l1_store if word & 1 and not FAULT else &m.l1_load).arrays[size][0]",
    ),
    left_out(
        "the loop does not renew what it finds in L1",
        "run.pxd",
        "renew(set_1, l1_lanes, simple_1, i, now)",
    ),
    left_out(
        "the loop does not renew what it finds in L2",
        "run.pxd",
        "renew(set_2, l2_lanes, simple_2, i, now)",
    ),
    Fault(
        "the loop lets stores be without setting D",
        "run.pxd",
        "(entry[0] | (3 ^ (word & 1)))",
        "(entry[0] | (3 ^ (0 if FAULT else word & 1)))",
    ),
)
