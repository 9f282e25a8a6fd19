"""What is drawn in `sampled` fidelity has the distribution that running every access has.

Sets that follow from a known order are compared access by access. Numbers of pages that are
drawn at random are compared with their expectation, which the tests calculate: a page with the
share p of the accesses is touched by k of them with the chance 1 - exp(-p k).
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from loops import ENDLESS, REGION, SIZE, World

from simvm import _core
from simvm.hardware import load_cpu
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.workload.patterns import (
    make_stream,
    random_bits,
    scatter_multiplier,
    zipf_shares,
    zipf_slots,
)

PAGES = SIZE // PAGE
GEOMETRY = load_cpu("skylake_sp").geometry
ORDERS = [(0, 0), (1, 0), (0, 1), (1, 1)]


class Drawn(World):
    """A world with one stream of its own, whose accesses are run, drawn or played."""

    def __init__(
        self, kind: str, writes: float = 0.0, orders: tuple[int, int] = (0, 0), seed: int = 1,
        **keys: object,
    ) -> None:  # fmt: skip
        super().__init__(GEOMETRY, True, False, *orders)
        defaults = {
            "kind": kind, "exponent": 0.99, "granule": PAGE, "scatter": True, "stride": 64,
            "hot_fraction": 0.1, "hot_share": 0.9, "drift": 40, "file": "builtin",
        }  # fmt: skip
        self.pattern = SimpleNamespace(**(defaults | keys))
        self.stream, _ = make_stream(
            self.pattern, SIZE, writes, random_bits(seed, "accesses"), 0, 1
        )
        shares, inverse = None, 1
        if kind == "zipf":
            nodes = SIZE // self.pattern.granule
            shares = zipf_shares(nodes, self.pattern.exponent)
            inverse = pow(scatter_multiplier(nodes), -1, nodes)
        self.touches = _core.Touches(
            self.stream, self.region, random_bits(seed, "drawn"), shares, inverse
        )

    def touch_all(self, write: bool = True) -> None:
        """Every page of the region, once, by another stream."""
        other = World.__new__(World)
        other.__dict__ |= self.__dict__
        other.stream = _core.Stream.trace(np.random.PCG64(9), SIZE)
        firsts = np.arange(PAGES, dtype=np.uint64) * np.uint64(2 * PAGE) + np.uint64(write)
        other.run(firsts, ENDLESS)

    def draw(self, accesses: int) -> list[tuple[int, int, bool]]:
        drawn, events = self.touches.draw(self.space, self.backing, accesses)
        assert drawn == accesses or self.pattern.kind == "strided"
        return events

    def play(self, accesses: int) -> None:
        end = self.vcpu.done + accesses
        while (left := end - self.vcpu.done) > 0:
            reason = self.vcpu.play(
                self.space, self.backing, self.memory, self.region, self.touches, left, ENDLESS,
                left, ENDLESS, ENDLESS,
            )  # fmt: skip
            assert reason in (_core.RUN_BUDGET, _core.RUN_DEADLINE)

    def is_touched(self, offset: int) -> bool:
        """Whether a page was: it is mapped then, by a leaf of 4 KiB in the guest."""
        return self.tables[1].lookup(REGION + offset) is not None

    def age(self, offsets: range) -> None:
        """Clear A of the host's leaves there."""
        for offset in offsets:
            leaf = self.tables[1].lookup(REGION + offset)
            self.tables[0].clear_accessed(leaf.target + REGION + offset - leaf.base)


def shares_of(world: Drawn) -> np.ndarray:
    """The share of accesses that go to each page, from the pattern's own definition."""
    pattern = world.pattern
    if pattern.kind == "uniform":
        return np.full(PAGES, 1 / PAGES)
    if pattern.kind == "hot_cold":
        hot = round(PAGES * pattern.hot_fraction)
        share = np.full(PAGES, (1 - pattern.hot_share) / (PAGES - hot))
        share[:hot] = pattern.hot_share / hot
        return share
    weight = np.arange(1, PAGES + 1) ** -pattern.exponent
    share = np.empty(PAGES)
    share[np.arange(PAGES) * scatter_multiplier(PAGES) % PAGES] = weight / weight.sum()
    return share


def assert_as_expected(counts: np.ndarray, chances: np.ndarray, draws: int, what: str) -> None:
    """Counts of binomial draws against their chances: each, and all together."""
    expected, deviation = draws * chances, np.sqrt(draws * chances * (1 - chances) + 1e-9)
    total = np.sqrt((deviation**2).sum())
    assert abs(counts.sum() - expected.sum()) < 4 * total + 1e-6, what
    # Among 6,144 pages the largest of normal deviates is below 4.5; small counts have longer
    # tails, so that 8 more are allowed.
    assert (np.abs(counts - expected) < 4.5 * deviation + 8).all(), what


@pytest.mark.parametrize("kind", ["uniform", "zipf", "hot_cold"])
@pytest.mark.parametrize("accesses", [300, 20_000])
def test_first_touches_come_as_often_as_by_running(kind: str, accesses: int) -> None:
    """Each page with the chance 1 - exp(-p k), at a time within the quantum, in order."""
    world, draws = Drawn(kind), 200
    counts, share = np.zeros(PAGES), shares_of(world)
    early = 0
    for _ in range(draws):
        events = world.draw(accesses)
        times = [at for at, _, _ in events]
        assert times == sorted(times)
        assert all(0 <= at < accesses for at in times)
        early += sum(at < accesses // 2 for at in times)
        pages = [page for _, page, _ in events]
        assert len(set(pages)) == len(pages)
        counts[pages] += 1
    assert_as_expected(counts, 1 - np.exp(-share * accesses), draws, "touched")
    half = draws * (1 - np.exp(-share * accesses / 2))
    assert abs(early - half.sum()) < 5 * np.sqrt(half.sum())


@pytest.mark.parametrize("kind", ["uniform", "zipf", "hot_cold"])
def test_a_page_is_dirtied_as_often_as_by_running(kind: str) -> None:
    """P(dirty | touched) = (1 - e^(-pwk)) / (1 - e^(-pk))."""
    world, draws, writes, accesses = Drawn(kind, 0.3), 200, 0.3, 8_000
    counts, share = np.zeros(PAGES), shares_of(world)
    for _ in range(draws):
        for _, page, write in world.draw(accesses):
            counts[page] += write
    assert_as_expected(counts, 1 - np.exp(-share * writes * accesses), draws, "dirty")


@pytest.mark.parametrize("orders", ORDERS)
def test_what_is_settled_brings_no_event_and_what_was_aged_does(orders: tuple[int, int]) -> None:
    world = Drawn("uniform", 0.5, orders)
    world.touch_all()
    assert world.draw(1 << 40) == []
    aged = range(5 * BLOCK, 6 * BLOCK, PAGE)
    world.age(aged)
    pages = {page for _, page, _ in world.draw(1 << 30)}
    # A leaf of 2 MiB in both dimensions is one thing that can change; else each page is.
    if orders == (1, 1):
        assert pages == {5 * 512}
    else:
        assert pages == set(range(5 * 512, 6 * 512))
    world.play(10_000_000)
    assert world.draw(1 << 30) == []


@pytest.mark.parametrize("orders", ORDERS)
def test_a_clean_page_is_open_to_writes_alone(orders: tuple[int, int]) -> None:
    for writes in (0.0, 0.25):
        world = Drawn("uniform", writes, orders)
        world.touch_all(write=False)
        events = world.draw(100_000)
        assert all(write for _, _, write in events)
        if writes == 0.0:
            assert events == []
    leaves = SIZE // BLOCK if orders == (1, 1) else PAGES
    share = writes / leaves
    expected = leaves * (1 - np.exp(-share * 100_000))
    assert abs(len(events) - expected) < 5 * np.sqrt(expected) + 1


@pytest.mark.parametrize("shootdowns", [0.0, 0.001])
def test_a_page_that_the_tlb_keeps_is_seldom_filled_again(shootdowns: float) -> None:
    """After aging a page is filled by p exp(-p T) of the accesses, T the residence.

    With f shootdowns an access its stay ends at a rate of p exp(-p T) + f. In the share of f in
    that it then takes 1/p more accesses, so a fill comes after (1 + f/p) / (p exp(-p T) + f).
    """
    world, accesses, draws = Drawn("hot_cold"), 2_000, 100
    world.touch_all()
    world.age(range(0, SIZE, PAGE))
    share, residence = shares_of(world), 3_000.0
    world.touches.set_estimate(1, 0, np.zeros_like(world.vcpu.counts()), residence, shootdowns)
    counts = np.zeros(PAGES)
    for _ in range(draws):
        for _, page, _ in world.draw(accesses):
            counts[page] += 1
    rate = (share * np.exp(-share * residence) + shootdowns) / (1 + shootdowns / share)
    assert_as_expected(counts, 1 - np.exp(-rate * accesses), draws, "filled")


@pytest.mark.parametrize("stride", [64, 4096, 12_288, 5_000])
@pytest.mark.parametrize("accesses", [1, 700, 3_000])
def test_a_sweep_touches_what_it_passes_when_it_passes_it(stride: int, accesses: int) -> None:
    world = Drawn("strided", stride=stride)
    for start in (0, 1_000):
        if start:
            world.play(start)
        copy, _ = make_stream(world.pattern, SIZE, 0.0, random_bits(1, "accesses"), 0, 1)
        copy.take(world.stream.drawn)
        touched = np.zeros(PAGES, dtype=bool)
        touched[[o // PAGE for o in range(0, SIZE, PAGE) if world.is_touched(o)]] = True
        first: dict[int, int] = {}
        for at, word in enumerate(copy.take(accesses).tolist()):
            if not touched[word >> 13]:
                first.setdefault(word >> 13, at)
        drawn, events = world.touches.draw(world.space, world.backing, accesses)
        assert drawn == min(accesses, SIZE // stride // 8 + 1)      # an eighth of a pass at a time
        drawn_first: dict[int, int] = {}
        for at, page, _ in events:
            drawn_first.setdefault(page, at)
        assert drawn_first == {
            page: at for page, at in first.items() if at < drawn
        }


def test_a_pointer_chase_comes_back_when_it_does() -> None:
    """The walk backwards through the cycle: to within the nodes that are left out of it."""
    for granule in (PAGE, 256):
        world = Drawn("pointer_chase", granule=granule)
        copy, _ = make_stream(world.pattern, SIZE, 0.0, random_bits(1, "accesses"), 0, 1)
        accesses = 4 * PAGES
        first: dict[int, int] = {}
        for at, word in enumerate(copy.take(accesses).tolist()):
            first.setdefault(word >> 13, at)
        events = {page: at for at, page, _ in world.draw(accesses)}
        both = sorted(set(events) & set(first))
        assert len(both) > 0.97 * max(len(first), len(events))
        apart = np.array([events[page] - first[page] for page in both])
        assert np.abs(apart).max() < 0.03 * accesses


def test_a_drifting_window_is_followed() -> None:
    """Touched by 60,000 accesses drawn in quanta, against ten streams that were run."""
    accesses = 60_000
    ran = []
    for seed in range(10):
        world = Drawn("drifting", seed=seed)
        words = world.stream.take(accesses)
        ran.append(np.bincount(np.unique(words >> 13) // 64, minlength=PAGES // 64))
    drawn = []
    for seed in range(10):
        world = Drawn("drifting", seed=seed)
        world.play(accesses)
        pages = [page for page in range(PAGES) if world.is_touched(page * PAGE)]
        drawn.append(np.bincount(np.array(pages) // 64, minlength=PAGES // 64))
    a, b = np.mean(ran, axis=0), np.mean(drawn, axis=0)
    assert abs(a.sum() - b.sum()) < 0.01 * a.sum()
    assert np.abs(a - b).max() < 6


@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize("kind", ["uniform", "zipf", "drifting", "strided", "pointer_chase"])
def test_playing_maps_what_running_maps(kind: str, orders: tuple[int, int]) -> None:
    """Faults and touched bytes of so many accesses: within what ten streams differ by."""
    ran, drawn = [], []
    for seed in range(10):
        one, other = Drawn(kind, 0.2, orders, seed), Drawn(kind, 0.2, orders, seed)
        for start in range(0, 40_000, 4_000):
            one.vcpu.run(one.space, one.backing, one.memory, one.region, one.stream, 4_000,
                         ENDLESS, ENDLESS, ENDLESS)  # fmt: skip
            other.play(4_000)
            assert other.vcpu.done == one.vcpu.done == start + 4_000
        for world, out in ((one, ran), (other, drawn)):
            out.append((sum(world.vcpu.slat_faults), sum(world.vcpu.guest_faults),
                        world.region.touched_bytes // PAGE))  # fmt: skip
    a, b = np.array(ran), np.array(drawn)
    error = np.sqrt((a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / 10)
    assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) <= 4 * error + 0.004 * a.mean(axis=0)).all()


def test_a_trace_is_played_access_by_access() -> None:
    """The same pages mapped and touched, whether its accesses are run or played."""
    rng = np.random.default_rng(5)
    words = (rng.integers(0, PAGES, 5_000) * PAGE * 2 + (rng.random(5_000) < 0.2)).astype(np.uint64)
    ran, played = (Drawn("uniform") for _ in range(2))
    for world in (ran, played):
        world.stream = _core.Stream.trace(np.random.PCG64(1), SIZE)
        world.touches = _core.Touches(world.stream, world.region, np.random.PCG64(2))
    ran.run(words, ENDLESS)
    played.stream.feed(words)
    played.play(len(words))
    assert played.vcpu.slat_faults == ran.vcpu.slat_faults
    assert played.region.touched_bytes == ran.region.touched_bytes
    assert played.leaves() == ran.leaves()


def test_events_of_a_trace_are_first_accesses_and_first_writes() -> None:
    """Pages that were only read: another read changes nothing, the first write of each sets D.

    The accesses go to and fro between two pieces of 2 MiB, as a merge of two runs does. Beside
    the writes, the first access to each piece is played: it may find the guest's table idle.
    """
    world = Drawn("uniform")
    world.stream = _core.Stream.trace(np.random.PCG64(1), SIZE)
    world.touches = _core.Touches(world.stream, world.region, np.random.PCG64(2))
    pages = np.array([n // 2 + BLOCK // PAGE * (n % 2) for n in range(200)], dtype=np.uint64)
    reads = pages * np.uint64(2 * PAGE)
    world.stream.feed(reads)
    assert [(at, page) for at, page, _ in world.draw(200)] == list(enumerate(pages.tolist()))
    world.play(200)
    world.stream.feed(np.concatenate([reads, reads + np.uint64(1), reads + np.uint64(1)]))
    events = world.draw(600)
    writes = [(at, page) for at, page, write in events if write]
    assert writes == [(200 + n, page) for n, page in enumerate(pages.tolist())]
    assert [at for at, _, write in events if not write] == [0, 1]


def test_what_lies_between_events_takes_what_the_windows_took() -> None:
    """7 cycles for 3 accesses, over slices that do not divide by 3: no residue is lost."""
    world = Drawn("uniform")
    world.touch_all()
    before, cycles, done = world.vcpu.counts(), world.vcpu.raw_cycles, world.vcpu.done
    counts = np.arange(len(before), dtype=np.uint64)
    counts[0] = 3
    world.touches.set_estimate(3, 7, counts, 0.0)
    for accesses in (1, 10, 100, 1_000, 1_889):
        world.play(accesses)
    assert world.vcpu.done - done == 3_000
    assert (world.vcpu.counts() - before == counts * 1_000).all()
    # In 1/65536 of a cycle an access.
    assert world.vcpu.raw_cycles - cycles == 3_000 * ((7 << 16) // 3) >> 16


def test_shares_of_ranks_are_those_of_the_stream() -> None:
    for nodes in (1, 2, 300, 511, 512, 70_000, 1_000_003):
        slots, shares = zipf_slots(nodes, 0.8), zipf_shares(nodes, 0.8)
        ranks = np.arange(nodes)
        octave = np.maximum(np.floor(np.log2(ranks + 1)).astype(int) - 8, 0)
        of_rank = shares[(octave << 8) + ((ranks + 1) >> octave)]
        assert abs(of_rank.sum() - 1) < 1e-4
        exact = (ranks + 1.0) ** -0.8
        exact /= exact.sum()
        assert np.abs(of_rank / exact - 1).max() < 0.005
        assert slots[-1, 2] + slots[-1, 3] == nodes


def test_mistakes_are_refused() -> None:
    world = Drawn("uniform")
    with pytest.raises(ValueError, match="beyond"):
        _core.Touches(world.stream, _core.Region(REGION, SIZE // 2, 0), np.random.PCG64(1))
    zipf = Drawn("zipf")
    with pytest.raises(ValueError, match="shares"):
        _core.Touches(zipf.stream, zipf.region, np.random.PCG64(1))
    with pytest.raises(ValueError, match="last rank"):
        _core.Touches(zipf.stream, zipf.region, np.random.PCG64(1), zipf_shares(10, 0.99))
    with pytest.raises(ValueError, match="estimate"):
        world.touches.set_estimate(0, 1, world.vcpu.counts(), 1.0)
    other = Drawn("uniform")
    with pytest.raises(ValueError, match="another region"):
        world.vcpu.play(world.space, world.backing, world.memory, world.region, other.touches,
                        1, 1, 1, 1, 1)  # fmt: skip
