"""Queues of the host against brute force and against SimPy's own resources."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import simpy
from hypothesis import example, given
from hypothesis import strategies as st

from simvm.model.clock import Clock
from simvm.model.queues import Channels, Cores, FaultThreads, Process, Train

REQUESTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=60)
"""(ns since the request before, ns of service)"""


def waits_of_a_resource(requests: Sequence[tuple[int, int]], servers: int) -> list[int]:
    """The wait of each request at a SimPy resource."""
    env = simpy.Environment()
    resource = simpy.Resource(env, servers)
    waits = [0] * len(requests)

    def one(number: int, at: int, service: int) -> Process:
        yield env.timeout(at)
        with resource.request() as turn:
            yield turn
            waits[number] = int(env.now) - at
            yield env.timeout(service)

    at = 0
    for number, (gap, service) in enumerate(requests):
        at += gap
        env.process(one(number, at, service))
    env.run()
    return waits


@given(REQUESTS, st.integers(1, 4))
def test_channels_are_a_first_come_first_served_queue(
    requests: list[tuple[int, int]], servers: int
) -> None:
    channels, now, waits = Channels(servers), 0, []
    for gap, service in requests:
        now += gap
        expected = channels.wait(now)
        waits.append(channels.reserve(now, service))
        assert waits[-1] == expected
    assert waits == waits_of_a_resource(requests, servers)


def test_channels_need_a_server() -> None:
    with pytest.raises(ValueError, match=r"n\(=0\)"):
        Channels(0)


# --- cores ------------------------------------------------------------------------------


def test_cores_are_handed_over_in_the_order_of_asking() -> None:
    env = Clock()
    cores = Cores(env, 2)
    order: list[tuple[int, int]] = []

    def run(number: int) -> Process:
        yield env.timeout(number)
        core = yield from cores.acquire()
        order.append((number, env.now))
        yield env.timeout(100)
        cores.release(core)

    for number in range(6):
        env.process(run(number))
    env.run(50)
    assert cores.contended
    env.run()
    assert order == [(0, 0), (1, 1), (2, 100), (3, 101), (4, 200), (5, 201)]
    assert not cores.contended


def take(cores: Cores, who: str | None = None) -> int:
    """The number of a core that is free."""
    with pytest.raises(StopIteration) as done:
        next(cores.acquire(who))
    return int(done.value.value)


def test_a_vcpu_comes_back_to_its_core() -> None:
    cores = Cores(Clock(), 4)
    assert [take(cores, who) for who in "abc"] == [0, 1, 2]
    for core in (1, 2, 0):
        cores.release(core)
    assert take(cores, "c") == 2
    assert take(cores, "d") == 3      # nobody's, though others are free
    assert take(cores) == 1           # left longest ago
    assert take(cores, "b") == 0      # away from home
    cores.release(1)
    cores.release(0)
    assert take(cores, "b") == 0      # now its home
    assert take(cores, "e") == 1


def test_the_core_of_who_will_not_come_back_is_nobodys() -> None:
    cores = Cores(Clock(), 2)
    assert [take(cores, who) for who in "ab"] == [0, 1]
    cores.release(0)
    cores.release(1)
    cores.forget("b")
    cores.forget("b")
    assert take(cores, "c") == 1


def shared(homes: str, cores: int, slices: int) -> list[tuple[str, int]]:
    """Named users that each run for 10 ns again and again: (who, core) in order."""
    env = Clock()
    of = Cores(env, cores)
    ran: list[tuple[str, int]] = []

    def run(who: str) -> Process:
        for _ in range(slices):
            core = yield from of.acquire(who)
            ran.append((who, core))
            yield env.timeout(10)
            of.release(core)

    for who in homes:
        env.process(run(who))
    env.run()
    return ran


def test_vcpus_that_share_cores_evenly_stay_where_they_are() -> None:
    ran = shared("abcd", cores=2, slices=50)
    assert {who: {core for each, core in ran if each == who} for who in "abcd"} == {
        "a": {0}, "b": {1}, "c": {0}, "d": {1},
    }  # fmt: skip


@pytest.mark.parametrize(("users", "cores"), [("abc", 2), ("abcdefg", 3), ("ab", 1)])
def test_vcpus_that_share_cores_all_have_their_turn(users: str, cores: int) -> None:
    """Nobody is passed by more often than there are others, also with uneven shares."""
    ran = [who for who, _ in shared(users, cores, slices=60)]
    for who in users:
        turns = [place for place, each in enumerate(ran) if each == who]
        assert len(turns) == 60
        gaps = [after - before for before, after in pairwise(turns)]
        assert max(gaps) <= 2 * len(users)


def test_who_has_no_home_does_not_starve() -> None:
    """Two vCPUs of one core hand it to each other; a kernel thread comes in its turn."""
    env = Clock()
    cores = Cores(env, 1)
    served: list[int] = []

    def run(who: str) -> Process:
        for _ in range(20):
            core = yield from cores.acquire(who)
            yield env.timeout(10)
            cores.release(core)

    def thread() -> Process:
        yield env.timeout(45)
        core = yield from cores.acquire()
        served.append(env.now)
        cores.release(core)

    for each in (run("a"), run("b"), thread()):
        env.process(each)
    env.run()
    assert served == [60]     # b waited already


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 10), st.integers(0, 40),
                  st.sampled_from([None, "a", "b", "c", "d"])),
        min_size=1, max_size=25, unique_by=lambda plan: plan[3] or object(),
    ),
    st.integers(1, 3),
)  # fmt: skip
def test_interrupted_waits_lose_no_core(
    plans: list[tuple[int, int, int, str | None]], n: int
) -> None:
    """Also when the interrupt comes at the moment at which the core is granted."""
    env = Clock()
    cores = Cores(env, n)
    holding: list[int] = []

    def run(start: int, hold: int, who: str | None) -> Process:
        core = None
        try:
            yield env.timeout(start)
            core = yield from cores.acquire(who)
            assert core not in holding
            assert 0 <= core < n
            holding.append(core)
            yield env.timeout(hold)
        except simpy.Interrupt:
            pass
        finally:
            if core is not None:
                holding.remove(core)
                cores.release(core)

    def stop(victim: simpy.Process, at: int) -> Process:
        yield env.timeout(at)
        if victim.is_alive:
            victim.interrupt()

    for start, hold, at, who in plans:
        env.process(stop(env.process(run(start, hold, who)), at))
    env.run()
    assert holding == []
    assert not cores.contended
    # Every core is free again: taking them waits for nothing.
    assert sorted(take(cores) for _ in range(n)) == list(range(n))
    waiting = cores.acquire()
    next(waiting)
    assert cores.contended


# --- fault threads ----------------------------------------------------------------------


def served(trains: Sequence[tuple[int, int, int]], workers: int, cores: int) -> list[
    tuple[int, Train]
]:  # fmt: skip
    """Submit (at, faults, service) each; when each was done, and its train."""
    env = Clock()
    threads = FaultThreads(env, Cores(env, cores), workers)
    ends: list[tuple[int, Train]] = []

    def one(at: int, faults: int, service: int) -> Process:
        yield env.timeout(at)
        train = threads.submit(faults, service)
        yield train.done
        ends.append((env.now, train))

    for each in trains:
        env.process(one(*each))
    env.run()
    return sorted(ends, key=lambda end: (end[1].arrived, end[0]))


def test_a_train_alone_is_served_in_one_piece() -> None:
    ((end, train),) = served([(5, 64, 64_003)], workers=2, cores=2)
    assert (end, train.served_ns, train.faults) == (64_008, 64_003, 0)


def test_a_train_ends_after_the_fault_in_service_when_another_waits() -> None:
    long, short = served([(0, 10, 10_000), (2_500, 1, 300)], workers=1, cores=1)
    assert short[0] == 3_300          # after the third fault of the train
    assert long[0] == 10_300
    assert long[1].served_ns == 10_000
    assert short[1].served_ns == 300


def test_a_train_is_not_cut_while_a_worker_is_idle() -> None:
    long, short = served([(0, 10, 10_000), (2_500, 1, 300)], workers=2, cores=2)
    assert (long[0], short[0]) == (10_000, 2_800)


def test_two_trains_take_turns_fault_by_fault() -> None:
    first, second = served([(0, 3, 3_000), (0, 3, 3_000)], workers=1, cores=1)
    assert (first[0], second[0]) == (5_000, 6_000)


def test_workers_need_a_core() -> None:
    ends = served([(0, 1, 100)] * 4, workers=4, cores=1)
    assert [end for end, _ in ends] == [100, 200, 300, 400]


@given(
    st.lists(
        st.tuples(st.integers(0, 5_000), st.integers(1, 64), st.integers(0, 9_999)),
        min_size=1, max_size=20,
    ),
    st.integers(1, 3),
)  # fmt: skip
@example([(0, 1, 44), (0, 1, 44), (43, 3, 2), (44, 1, 0)], 3)  # cut between faults of no length
def test_served_time_adds_up_and_no_worker_idles(
    trains: list[tuple[int, int, int]], workers: int
) -> None:
    ends = served(trains, workers, cores=workers)
    assert len(ends) == len(trains)
    for (_, _, service), (end, train) in zip(
        sorted(trains, key=lambda each: each[0]), sorted(ends, key=lambda each: each[1].arrived),
        strict=True,
    ):  # fmt: skip
        assert train.served_ns <= end - train.arrived
        assert service >= 0
    assert sum(train.served_ns for _, train in ends) == sum(service for _, _, service in trains)
    if workers == 1:  # work is conserved: the last end is that of one server
        free = 0
        for at, _, service in sorted(trains):
            free = max(free, at) + service
        assert max(end for end, _ in ends) == free


def test_many_single_faults_are_first_come_first_served() -> None:
    random = np.random.Generator(np.random.PCG64(3))
    gaps = random.integers(0, 300, size=400)
    at = np.cumsum(gaps).tolist()
    ends = served([(when, 1, 250) for when in at], workers=2, cores=2)
    expected = waits_of_a_resource([(int(gap), 250) for gap in gaps], 2)
    assert sorted(end for end, _ in ends) == sorted(
        when + wait + 250 for when, wait in zip(at, expected, strict=True)
    )
