"""How guests come and go: when they arrive, boot or migrate in, run, and depart.

A member's arrival and lifetime are drawn from the scenario's seed under its own name, so
they depend neither on the other members nor on what happens in the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from simvm import _core
from simvm.hardware.geometry import ORDER_BYTES, PAGE
from simvm.model.accounts import Stopwatch
from simvm.model.host import STRUCT_PAGE_BYTES
from simvm.model.kernel_threads import until_killed
from simvm.model.migration import Sender, Transfer, receive
from simvm.model.queues import Process
from simvm.model.spaces import new_table
from simvm.model.vcpu import GuestKilled
from simvm.scenario.lifecycle import PoissonArrivals, ReplacementArrivals
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm.model.clock import Clock
    from simvm.model.guest import Guest
    from simvm.model.tasks import Task
    from simvm.scenario import Scenario


def draw_ns(seed: int, label: str, mean: int) -> int:
    """An exponential time of so many ns in the mean, at least 1 ns, from a stable label."""
    random = np.random.Generator(random_bits(seed, label))
    return max(1, round(random.exponential(mean)))


class Population:
    """When the members of a class arrive."""

    def __init__(self, env: Clock, scenario: Scenario, class_: str) -> None:
        self._env = env
        self._config = config = scenario.guests[class_]
        self._waiting: deque[simpy.Event] = deque()
        self._at: list[int] = []    # when those arrive that wait for nobody
        arrivals, seed = config.arrivals, scenario.scenario.seed
        if isinstance(arrivals, PoissonArrivals):
            gaps = (
                draw_ns(seed, f"{class_}.{index}/arrival", arrivals.mean_interval)
                for index in range(config.count)
            )
            self._at = [config.start + offset for offset in accumulate(gaps)]
        else:
            first = config.count
            if isinstance(arrivals, ReplacementArrivals):
                first = arrivals.population
            self._at = [config.start + index * config.stagger for index in range(first)]

    def turn(self, life: Life, index: int) -> Process:
        """Wait until a member is to arrive; False when it never will: its class has stopped."""
        life.gone.callbacks.append(self._departed)
        if index < len(self._at):
            life.due_ns = self._at[index]
            yield self._env.timeout(life.due_ns)
        else:
            vacancy = self._env.event()
            self._waiting.append(vacancy)
            yield vacancy
            life.due_ns = self._env.now
        return self.open

    @property
    def open(self) -> bool:
        """Whether members may still arrive."""
        return self._config.stop is None or self._env.now < self._config.stop

    def _departed(self, _: simpy.Event) -> None:
        """A member has gone: whoever waits takes its place."""
        if self._waiting:
            self._waiting.popleft().succeed()


class Life:
    """One guest's: when it arrived and departed, and the processes that take it there."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._env = guest.host.env
        self.due_ns: int | None = None      # when it is to arrive, once that is known
        self.arrived_ns: int | None = None
        self.departed_ns: int | None = None
        self.gone = self._env.event()
        self.migrated_in: Transfer | None = None
        self.migrated_out: Transfer | None = None
        self._leaving: simpy.Process | None = None
        self._sender: Sender | None = None

    def may_exist(self, now: int) -> bool:
        """Whether it has come by now, or comes at this moment."""
        return self.due_ns is not None and self.due_ns <= now

    # --- what it holds ------------------------------------------------------------------

    def begin(self) -> None:
        """Make what the guest needs before it runs: what backs it, and its physical memory."""
        guest, host = self._guest, self._guest.host
        settings, memory = host.settings, guest.memory
        slat = host.cpu.host_format(settings.table_levels, contiguous=settings.contiguous)
        shape = slat if guest.is_vm else guest.table_format
        table = new_table(shape, host.memory.frames, mirrored=guest.nested)
        guest.cgroup = host.reclaimer.join(guest)
        guest.backing = _core.Backing(
            host.memory, table, guest.owner, ORDER_BYTES.index(settings.page_size), memory.size,
            deposits=settings.backing == "anon", from_pool=settings.backing == "hugetlb",
            shadow=guest.shadow, group=guest.cgroup.lists.group,
        )  # fmt: skip
        guest.backing.set_limit(guest.cgroup.limit)
        guest.slat = table
        guest.kernel_space = _core.AddressSpace(0, table, None, guest.owner)
        guest.alive = True
        self.arrived_ns = self._env.now
        host.guests[guest.owner] = guest
        guest.note_backed()
        if guest.is_vm:
            config = guest.config
            size = config.boot + config.memory // PAGE * STRUCT_PAGE_BYTES
            guest.kernel_bytes = -(-size // PAGE) * PAGE
            guest.kernel_start = guest.mm.reserve(guest.kernel_bytes)
            memory.vacate(config.memory, config.memory_max - config.memory, [])
            guest.mm.boot()

    def halt(self) -> None:
        """Interrupt all that the guest does, but for who asks for it."""
        active = self._env.active_process
        for activity in self._guest.activities:
            if activity.is_alive and activity is not active:
                activity.interrupt(self._guest.failure)

    def end(self) -> None:
        """Stop the guest and give everything back."""
        guest, host = self._guest, self._guest.host
        guest.note_backed()
        self.halt()
        host.swap.free_slots([int(slot) for slot in guest.backing.destroy()])
        for page in guest.vmm_pages + guest.reverse_map_pages:
            host.memory.frames.free_4k(page)
        guest.vmm_pages.clear()
        guest.reverse_map_pages.clear()
        guest.regions.clear()
        guest.alive = False
        del host.guests[guest.owner]
        host.reclaimer.leave(guest)
        for mmu in guest.mmus.values():
            mmu.forget(guest.owner)
        for vcpu in guest.all_vcpus:
            host.cores.forget(vcpu)
        guest.note_backed()
        self.departed_ns = self._env.now
        self.gone.succeed()

    # --- from arrival to departure ------------------------------------------------------

    def run(self, population: Population, tasks: list[Task]) -> Process:
        """All of it, to the end of the guest's work and of a departure that has begun."""
        guest, env = self._guest, self._env
        comes = yield from population.turn(self, guest.index)
        if comes and guest.config.migrate_in is not None:
            with guest.host.migration.turns.request() as turn:
                yield turn
                comes = population.open and (yield from self._come(self._migrate_in()))
        elif comes:
            comes = yield from self._come(self._boot())
        if not comes:
            self.gone.succeed()
        elif guest.alive:
            beside = env.process(until_killed(guest.channel.serve(guest)))
            guest.activities.append(beside)
            guest.activities += [env.process(until_killed(each)) for each in guest.mm.activities()]
            work = [env.process(task.run()) for task in tasks]
            guest.activities += work
            yield env.all_of(work)
            if self._leaving is not None:
                yield self._leaving

    def _come(self, start: Process) -> Process:
        """Begin, and get ready to run; False when the host has no memory for that."""
        guest = self._guest
        try:
            self.begin()
        except MemoryError:
            guest.failure = "the host has no memory to start it"
            return False
        self._env.process(self._depart_in_time())
        starting = self._env.process(start)
        guest.activities.append(starting)
        yield starting
        guest.activities.remove(starting)
        return True

    def _migrate_in(self) -> Process:
        self.migrated_in = Transfer(self._env.now)
        yield from until_killed(receive(self._guest, self.migrated_in))

    def _boot(self) -> Process:
        """Start the VMM; back boot footprint and struct pages: the guest's kernel writes them."""
        guest, first = self._guest, self._guest.vcpus[0]
        try:
            if guest.is_vm:
                watch = Stopwatch(first.account, self._env.now)
                yield from first.populate(guest.vmm_pages, guest.config.vmm_overhead)
                yield from first.populate(guest.reverse_map_pages, guest.reverse_map_bytes)
                yield from first.boot(guest.kernel_start, guest.kernel_bytes)
                for page in guest.mm.written_at_boot:
                    yield from first.write_by_kernel(page, PAGE)
                watch.stop(self._env.now, f"{guest.name}: boot")
        except (simpy.Interrupt, GuestKilled):
            pass
        finally:
            first.rest()

    def _departure(self) -> int | None:
        """When the guest is to depart: after its lifetime, or when its class stops."""
        config, times = self._guest.config, []
        if config.stop is not None:
            times.append(config.stop)
        if config.lifetime is not None:
            stays = config.lifetime.mean
            if config.lifetime.distribution == "exponential":
                seed = self._guest.scenario.scenario.seed
                stays = draw_ns(seed, f"{self._guest.name}/lifetime", stays)
            times.append(self._env.now + stays)
        return min(times, default=None)

    def _depart_in_time(self) -> Process:
        at = self._departure()
        if at is None:
            return
        yield self._env.timeout(at - self._env.now)
        guest = self._guest
        arriving = self.migrated_in is not None and self.migrated_in.end_ns is None
        if guest.alive and guest.config.migrate_out is not None and not arriving:
            self._leaving = self._env.process(until_killed(self._migrate_out()))
            guest.activities.append(self._leaving)
        elif guest.alive:
            guest.kill(None)

    def _migrate_out(self) -> Process:
        guest, settings = self._guest, self._guest.config.migrate_out
        assert settings is not None
        with guest.host.migration.turns.request() as turn:
            yield turn
            self.migrated_out = Transfer(self._env.now)
            self._sender = Sender(guest, settings, self.migrated_out)
            yield from self._sender.run()
        guest.kill(None)

    def note_cleared(self, address: int, size: int) -> None:
        """Somebody is about to clear D of a range: a migration must send what was written."""
        if self._sender is not None:
            self._sender.note(address, size)

    def note_written(self, pages: Iterable[int]) -> None:
        """Somebody has cleared D of these pages, which had it."""
        if self._sender is not None:
            self._sender.noted.update(pages)

    def summary(self) -> dict[str, Any]:
        """For the summary of a guest: times in ns, null where there is none."""
        return {
            "arrived_ns": self.arrived_ns,
            "departed_ns": self.departed_ns,
            "migrated_in": self.migrated_in.as_dict() if self.migrated_in else None,
            "migrated_out": self.migrated_out.as_dict() if self.migrated_out else None,
        }
