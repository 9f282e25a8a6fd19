"""Which way of a set goes when a place is needed, and arrays of such sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Value = TypeVar("Value")
Key = tuple[int, ...]


class Replacement(Protocol):
    """The order of one set's ways."""

    def hit(self, way: int) -> None:
        """What the way holds was found."""

    def fill(self, way: int) -> None:
        """The way has got something new to hold."""

    def victim(self) -> int:
        """The way that goes next, of a set that is full. Asked once for each that goes."""


class Lru:
    """True least recently used: a list of the ways, the oldest first."""

    def __init__(self, ways: int) -> None:
        self._order = list(range(ways))

    def hit(self, way: int) -> None:
        self.fill(way)

    def fill(self, way: int) -> None:
        self._order.remove(way)
        self._order.append(way)

    def victim(self) -> int:
        return self._order[0]


class Fifo(Lru):
    """First in, first out: being found makes nothing younger."""

    def hit(self, way: int) -> None:
        pass


class TreePlru:
    """One bit per inner node of a binary tree over one set's ways: 0 says left is next.

    Node 1 is the root, node n has the children 2n and 2n + 1, the leaves are the ways
    in order, and the rightmost of them may not exist.
    """

    def __init__(self, ways: int) -> None:
        self._ways = ways
        self._width = 1 << (ways - 1).bit_length()
        self._bits = [0] * self._width

    def hit(self, way: int) -> None:
        self.fill(way)

    def fill(self, way: int) -> None:
        node = self._width + way
        while node > 1:
            parent, is_right = divmod(node, 2)
            self._bits[parent] = 1 - is_right
            node = parent

    def victim(self) -> int:
        node, leaves = 1, self._width
        while leaves > 1:
            node, leaves = 2 * node + self._bits[node], leaves // 2
            first_way = node * leaves - self._width
            if first_way >= self._ways:
                node -= 1
        return node - self._width


class Random:
    """Any way: a linear congruential generator (Knuth's MMIX), one for all sets of an array."""

    def __init__(self, ways: int) -> None:
        self._ways = ways
        self._state = 0x9E37_79B9_7F4A_7C15

    def hit(self, way: int) -> None:
        pass

    def fill(self, way: int) -> None:
        pass

    def victim(self) -> int:
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return ((self._state >> 33) * self._ways) >> 31


def replacement(policy: str, sets: int, ways: int) -> list[Replacement]:
    """One for each set; under `random` they are one and the same."""
    if policy == "random":
        return [Random(ways)] * sets
    kinds: dict[str, Callable[[int], Replacement]] = {"lru": Lru, "plru": TreePlru, "fifo": Fifo}
    return [kinds[policy](ways) for _ in range(sets)]


class SetAssociative(Generic[Value]):
    """Sets of ways that hold values by key. The last part of a key selects the set."""

    def __init__(self, entries: int, ways: int, policy: str = "lru") -> None:
        if ways < 1 or entries < ways or entries % ways:
            raise ValueError(f"entries (={entries}) must be a multiple of ways (={ways})")
        self.sets = entries // ways
        empty: tuple[Key, Value] | None = None
        self._places = [[empty] * ways for _ in range(self.sets)]
        self._replacement = replacement(policy, self.sets, ways)

    def probe(self, key: Key) -> Value | None:
        """The value held for the key: a hit, of which the replacement policy learns."""
        number = key[-1] % self.sets
        for way, place in enumerate(self._places[number]):
            if place is not None and place[0] == key:
                self._replacement[number].hit(way)
                return place[1]
        return None

    def insert(self, key: Key, value: Value) -> None:
        """Enter a key that is not held: in the first free place, else in the victim's."""
        number = key[-1] % self.sets
        places, order = self._places[number], self._replacement[number]
        way = places.index(None) if None in places else order.victim()
        places[way] = (key, value)
        order.fill(way)

    def drop(self, doomed: Callable[[Key, Value], bool]) -> None:
        """Free the places of all that is `doomed`."""
        for places in self._places:
            for way, place in enumerate(places):
                if place is not None and doomed(*place):
                    places[way] = None
