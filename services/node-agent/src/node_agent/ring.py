"""Consistent hashing: which backends clients outside the cluster get, alike on all nodes. Pure.

A ring has more positions than backends, and each backend stands at one of them. The programs draw positions from a
hash of the connection until they come upon a backend: so each backend gets the same share, and one that comes or goes
moves that share alone. Where backends stand follows from who they are, never from the order in which they came, so
that a connection that reaches another node, or one that has lost what was known of it, finds the same backend.

This is Maglev's purpose with one entry a backend instead of a table a hundred times as long; drawing among positions
of which some are empty is what DxHash does (Dong and Wang, 2021).
"""

from collections.abc import Iterable, Set
from hashlib import blake2b

Address = tuple[bytes, int]  # address, port

SMALLEST = 16
# A ring grows by this factor when half of it is taken: so 1/8 to 1/2 of it is, but for the smallest.
GROWTH = 4


def positions(backends: int) -> int:
    """How many positions a ring of that many backends has: a power of two.

    >>> [positions(n) for n in (0, 1, 8, 9, 32, 33)]
    [16, 16, 16, 64, 64, 256]
    """
    size = SMALLEST
    while backends * 2 > size:
        size *= GROWTH
    return size


def rank(backend: Address) -> int:
    """A number for good: where the backend belongs (lower bits), and before whom it goes (all of them)."""
    address, port = backend
    return int.from_bytes(blake2b(address + port.to_bytes(2, "big"), digest_size=8).digest(), "big")


class Ring:
    """A hash table with open addressing in which the highest rank stands first: one layout for one set of backends.

    (Amble and Knuth, "Ordered hash tables", 1974.)
    """

    def __init__(self) -> None:
        self.size = SMALLEST
        self._at: dict[int, Address] = {}
        self._ranks: dict[Address, int] = {}

    def replace(self, wanted: set[Address]) -> dict[int, Address | None]:
        """Brings the ring to these backends; returns who stands at each changed position now (None: nobody)."""
        return self.exchange(self._ranks.keys() - wanted, wanted - self._ranks.keys())

    def exchange(self, gone: Set[Address], come: Set[Address]) -> dict[int, Address | None]:
        """The same, where it is known who goes, of those that are there, and who comes, of the others."""
        before: dict[int, Address | None] = {}
        size = positions(len(self._ranks) - len(gone) + len(come))
        if size != self.size:
            before |= self._at
            gone, come = set(), (self._ranks.keys() - gone) | come
            self._at, self._ranks, self.size = {}, {}, size
        for backend in gone:
            self._remove(backend, before)
        for backend in come:
            self._add(backend, before)
        return {at: self._at.get(at) for at, who in before.items() if self._at.get(at) != who}

    def find(self, backends: Iterable[Address]) -> dict[int, Address]:
        """Where these stand, of those that are in the ring."""
        found = {}
        for backend in backends:
            if backend in self._ranks:
                at = self._ranks[backend] % self.size
                while self._at[at] != backend:
                    at = (at + 1) % self.size
                found[at] = backend
        return found

    def _put(self, at: int, backend: Address | None, before: dict[int, Address | None]) -> None:
        before.setdefault(at, self._at.get(at))
        if backend is None:
            del self._at[at]
        else:
            self._at[at] = backend

    def _add(self, backend: Address, before: dict[int, Address | None]) -> None:
        self._ranks[backend] = rank(backend)
        at = self._ranks[backend] % self.size
        while (there := self._at.get(at)) is not None:
            if self._ranks[backend] > self._ranks[there]:
                self._put(at, backend, before)
                backend = there
            at = (at + 1) % self.size
        self._put(at, backend, before)

    def _remove(self, backend: Address, before: dict[int, Address | None]) -> None:
        (hole,) = self.find([backend])
        del self._ranks[backend]
        at = (hole + 1) % self.size
        # Who has passed the hole on the way to its place takes it; the first of them has the highest rank.
        while (there := self._at.get(at)) is not None:
            if (at - self._ranks[there]) % self.size >= (at - hole) % self.size:
                self._put(hole, there, before)
                hole = at
            at = (at + 1) % self.size
        self._put(hole, None, before)
