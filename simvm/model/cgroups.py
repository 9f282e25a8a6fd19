"""Guests that are reclaimed from together: a policy and its lists.

All guests share one group but those with a memory cgroup of their own (`guest.NAME.memcg`).
Reclaim for the host goes round the groups, each as often as it is large, as Linux goes round
memory cgroups (`shrink_node_memcgs`, mm/vmscan.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.model.policies import POLICIES, Lists

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.model.policies import Policy
    from simvm.model.queues import Process
    from simvm.model.vcpu import VirtualCpu


class Cgroup:
    """One group: `lists` in the core, the `policy` that chooses from them, living `guests`."""

    def __init__(self, host: Host, group: int) -> None:
        self._memory = host.memory
        settings = host.settings.reclaim
        self.lists = Lists(host.env, host.memory, group)
        self.policy: Policy | None = None
        if settings.policy in POLICIES:
            self.policy = POLICIES[settings.policy](settings)
            host.memory.set_new_list(self.policy.new_list, group)
        self.guests: dict[int, Guest] = {}
        self.credit = 0

    @property
    def limit(self) -> int:
        """What the core holds faults to, in bytes; 0: nothing."""
        return 0

    def is_protected(self, strictly: bool) -> bool:
        """Whether reclaim for the host leaves the group alone; strictly: whatever happens."""
        return False

    def is_full(self) -> bool:
        """Whether room must be made within the group before it may have a page more."""
        return False

    def make_room(self, vcpu: VirtualCpu) -> Process:
        """Reclaim within the group on a vCPU's time; whether it may now have a page."""
        yield from ()
        return True

    def after_faults(self, vcpu: VirtualCpu, pages: int) -> Process:
        """A vCPU has taken so many pages of 4 KiB: hold it up if that is too much."""
        yield from ()

    @property
    def list_bytes(self) -> int:
        """Bytes on all lists of the group."""
        return self._memory.group_bytes(self.lists.group)


def in_turn(groups: list[Cgroup]) -> list[Cgroup]:
    """The group whose turn it is, then, should it have nothing to give, the others.

    In the long run each is first as often as its share of all that is on lists.
    """
    if len(groups) == 1:
        return groups
    sizes = {group: group.list_bytes for group in groups}
    for group, size in sizes.items():
        group.credit += size
    ranked = sorted((group for group in groups if sizes[group]), key=lambda each: -each.credit)
    if ranked:
        ranked[0].credit -= sum(sizes.values())
    return ranked
