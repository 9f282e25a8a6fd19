"""Patterns: each stream against the law it claims to follow."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scenarios_small import MIB, PAGE

from simvm.scenario.models import Pattern
from simvm.workload.patterns import (
    EXACT_RANKS,
    make_stream,
    random_bits,
    scatter_multiplier,
    taken_from,
    zipf_slots,
)
from simvm.workload.trace import builtin_trace, open_trace

SIZE = 4 * MIB
N = SIZE // PAGE
PATTERN: TypeAdapter[Any] = TypeAdapter(Pattern)
KINDS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "zipf": {"exponent": 0.99},
    "sequential": {},
    "strided": {"stride": 3 * PAGE},
    "pointer_chase": {},
    "hot_cold": {"hot_fraction": 0.1, "hot_share": 0.9},
    "drifting": {"hot_fraction": 0.1, "hot_share": 0.9, "drift": 50},
}


def accesses(
    n: int, kind: str, *, size: int = SIZE, writes: float = 0.0, number: int = 0,
    threads: int = 1, label: str = "test", **values: Any
) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], np.ndarray[Any, np.dtype[np.uint64]]]:
    """Byte offsets of `n` accesses, and whether each writes."""
    pattern = PATTERN.validate_python({"kind": kind, **(values or KINDS[kind])})
    stream, _ = make_stream(pattern, size, writes, random_bits(1, label), number, threads)
    drawn = stream.take(n)
    return drawn >> np.uint64(1), drawn & np.uint64(1)


def pages(n: int, kind: str, **values: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return accesses(n, kind, **values)[0] // np.uint64(PAGE)


# --- what all have in common ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_accesses_lie_within_the_region_and_repeat(kind: str) -> None:
    first, _ = accesses(5_000, kind)
    assert first.max() < SIZE
    again, _ = accesses(5_000, kind)
    assert (first == again).all()


@pytest.mark.parametrize("kind", ["uniform", "zipf", "pointer_chase", "hot_cold", "drifting"])
def test_another_label_draws_other_accesses(kind: str) -> None:
    assert (accesses(1_000, kind)[0] != accesses(1_000, kind, label="other")[0]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writes", [0.0, 0.3, 1.0])
def test_the_share_of_writes(kind: str, writes: float) -> None:
    n = 20_000
    _, written = accesses(n, kind, writes=writes)
    assert abs(int(written.sum()) - n * writes) <= 4 * sqrt(n * writes * (1 - writes))


def test_writes_do_not_depend_on_where() -> None:
    """Bits of one draw give place and kind; they are others."""
    where, written = accesses(200_000, "uniform", writes=0.5)
    for bit in (6, 8, 11, 12, 16, 21):
        chosen = written[(where >> np.uint64(bit)) & np.uint64(1) == 1]
        assert abs(chosen.mean() - 0.5) < 4 * 0.5 / sqrt(len(chosen))


@given(st.integers(0, 2**40), st.text(max_size=20), st.text(max_size=20))
def test_labels_and_seeds_keep_generators_apart(seed: int, one: str, other: str) -> None:
    first = random_bits(seed, one).random_raw()
    assert first == random_bits(seed, one).random_raw()
    assert (first == random_bits(seed, other).random_raw()) == (one == other)
    assert first != random_bits(seed + 1, one).random_raw()


# --- each by itself ---------------------------------------------------------------------


def test_uniform_is_uniform() -> None:
    """Chi-square over 1024 pages, and every line of a page is used."""
    n = 200_000
    counts = np.bincount(pages(n, "uniform").astype(np.int64), minlength=N)
    chi_square = ((counts - n / N) ** 2 / (n / N)).sum()
    assert abs(chi_square - (N - 1)) < 5 * sqrt(2 * N)
    lines = accesses(n, "uniform")[0] % np.uint64(PAGE) // np.uint64(64)
    assert (np.bincount(lines.astype(np.int64), minlength=64) > 0.8 * n / 64).all()


@pytest.mark.parametrize("exponent", [0.5, 0.99, 1.3])
def test_zipf_ranks_have_their_probabilities(exponent: float) -> None:
    n = 200_000
    drawn = pages(n, "zipf", exponent=exponent, scatter=False).astype(np.int64)
    counts = np.bincount(drawn, minlength=N)
    weights = np.arange(1, N + 1) ** -exponent
    expected = n * weights / weights.sum()
    sigma = np.sqrt(expected)
    assert (np.abs(counts - expected)[:20] < 4.5 * sigma[:20]).all()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - (N - 1)) < 5 * sqrt(2 * N)


def test_scattered_ranks_are_the_same_ranks_elsewhere() -> None:
    plain = pages(20_000, "zipf", exponent=0.99, scatter=False).astype(np.int64)
    scattered = pages(20_000, "zipf", exponent=0.99, scatter=True).astype(np.int64)
    step = scatter_multiplier(N)
    assert (scattered == plain * step % N).all()
    hottest = np.bincount(plain, minlength=N).argsort()[-16:] * step % N
    assert np.diff(np.sort(hottest)).min() > 16  # spread over the region


@given(st.integers(1, 1 << 24))
def test_scatter_is_a_permutation(count: int) -> None:
    assert np.gcd(scatter_multiplier(count), count) == 1


@pytest.mark.parametrize(
    ("count", "exponent"), [(1, 1.0), (2, 0.5), (1_000, 0.99), (EXACT_RANKS, 0.8), (1 << 20, 0.99)]
)
def test_the_alias_table_holds_the_law(count: int, exponent: float) -> None:
    """The probability of each slot, summed over thresholds and aliases, is that of its ranks."""
    slots = zipf_slots(count, exponent).astype(np.int64)
    threshold, alias, first, width = slots.T
    share = threshold / 2**32
    share[alias == np.arange(len(slots))] = 1.0
    probability = np.bincount(
        np.concatenate([np.arange(len(slots)), alias]), np.concatenate([share, 1 - share])
    ) / len(slots)  # fmt: skip
    ranks = np.arange(1, count + 1) ** -exponent
    expected = np.add.reduceat(ranks, first) / ranks.sum()
    assert np.allclose(probability, expected, rtol=3e-4, atol=1e-9)
    assert first[0] == 0
    assert (first + width == np.append(first[1:], count)).all()
    # Ranks that share a slot differ little.
    wide = width > 1
    last = first + width
    assert (((last[wide] / (first[wide] + 1)) ** exponent - 1) < exponent / 3000).all()


def test_sequential_threads_share_the_region_out() -> None:
    parts = [accesses(SIZE // 64, "sequential", number=i, threads=3)[0] for i in range(3)]
    assert parts[0][:3].tolist() == [0, 64, 128]
    starts = [int(part[0]) for part in parts]
    assert starts == [0, N // 3 * PAGE, 2 * (N // 3) * PAGE]
    covered = np.unique(np.concatenate([part // np.uint64(PAGE) for part in parts]))
    assert len(covered) == N
    for part, end in zip(parts, [*starts[1:], SIZE], strict=True):
        assert part.max() < end


def test_strided_wraps_around() -> None:
    first = accesses(8, "strided", stride=MIB + PAGE, size=SIZE)[0].tolist()
    assert first == [
        0, MIB + PAGE, 2 * MIB + 2 * PAGE, 3 * MIB + 3 * PAGE,
        4 * PAGE, MIB + 5 * PAGE, 2 * MIB + 6 * PAGE, 3 * MIB + 7 * PAGE,
    ]  # fmt: skip


@pytest.mark.parametrize("nodes", [1, 2, 3, 1_000, 1_024, 1_025])
@pytest.mark.parametrize("granule", [64, PAGE])
def test_a_pointer_chase_is_one_cycle_through_all_nodes(nodes: int, granule: int) -> None:
    size = max(PAGE, -(-nodes * granule // PAGE) * PAGE)
    nodes = size // granule
    drawn, _ = accesses(3 * nodes, "pointer_chase", size=size, granule=granule)
    laps = drawn.reshape(3, nodes)
    assert (np.sort(laps[0]) == np.arange(nodes) * granule).all()
    assert (laps[0] == laps[1]).all()
    assert (laps[1] == laps[2]).all()
    if nodes > 1_000:  # random: the next one is rarely the neighbour
        assert (np.diff(laps[0].astype(np.int64)) == granule).mean() < 0.02


def test_hot_pages_take_their_share() -> None:
    n = 100_000
    drawn = pages(n, "hot_cold", hot_fraction=0.25, hot_share=0.8)
    hot = int((drawn < N // 4).sum())
    assert abs(hot - 0.8 * n) < 4 * sqrt(n * 0.8 * 0.2)
    counts = np.bincount(drawn.astype(np.int64), minlength=N)
    for part, share in ((counts[: N // 4], 0.8), (counts[N // 4 :], 0.2)):
        expected = n * share / len(part)
        chi_square = ((part - expected) ** 2 / expected).sum()
        assert abs(chi_square - len(part)) < 6 * sqrt(2 * len(part))


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_the_hot_part_is_never_all_or_nothing(fraction: float) -> None:
    drawn = pages(2_000, "hot_cold", size=4 * PAGE, hot_fraction=fraction, hot_share=0.5)
    assert set(drawn.tolist()) == {0, 1, 2, 3}


def test_the_hot_part_drifts() -> None:
    """50 pages in 1000 accesses: after 10,000 it begins 500 pages further on."""
    drawn = pages(11_000, "drifting", hot_fraction=0.05, hot_share=1 - 1e-9, drift=50)
    hot = round(N * 0.05)
    for at in (0, 5_000, 10_000):
        window = drawn[at : at + 20].astype(np.int64)
        assert ((window - at * 50 // 1_000) % N < hot + 1).all()


# --- shared and recorded ----------------------------------------------------------------


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_streams_that_take_turns_take_the_same_accesses(turns: list[int]) -> None:
    pattern = PATTERN.validate_python({"kind": "uniform"})
    source, _ = make_stream(pattern, SIZE, 0.5, random_bits(1, "shared"), 0, 1)
    whole, _ = make_stream(pattern, SIZE, 0.5, random_bits(1, "shared"), 0, 1)
    takers = [taken_from(source, SIZE, 7) for _ in range(3)]
    got = []
    for turn in turns:
        stream, chunks = takers[turn]
        stream.feed(next(chunks))
        got += stream.take(7).tolist()
    assert got == whole.take(7 * len(turns)).tolist()
    assert source.digest == whole.digest


def test_a_trace_is_replayed_in_order_and_over_and_over() -> None:
    trace = open_trace(builtin_trace())
    pattern = PATTERN.validate_python({"kind": "trace", "file": "builtin"})
    stream, chunks = make_stream(pattern, trace.region_bytes, 0.0, random_bits(1, "t"), 0, 1)
    recorded = trace.chunks()
    for _ in range(2):
        chunk = next(chunks)
        assert (chunk == next(recorded)).all()
        stream.feed(chunk)
        assert (stream.take(len(chunk) + 1) == chunk).all()
