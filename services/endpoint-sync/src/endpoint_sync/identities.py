"""Which identities exist, and who uses them."""

from collections.abc import Callable, Mapping

from tidegate.records import Identity
from tidegate.records.ids import Numbering, identity_content

Put = Callable[[int, Identity | None], None]


class Identities:
    """Counts the pods of each identity. One that nobody uses stays for `grace` seconds: its pods may come back, and

    agents that still see packets of it find it. `put` is told which identities are to exist.
    """

    def __init__(self, put: Put, grace: float) -> None:
        self._put = put
        self._grace = grace
        self._numbering = Numbering()
        self._users: dict[int, int] = {}
        self._unused: dict[int, float] = {}  # since when

    def load(self, known: Mapping[int, Identity], now: float) -> None:
        """Takes over the numbers that the store has; all of them are unused until pods take them."""
        self._numbering = Numbering({number: identity_content(identity) for number, identity in known.items()})
        for number, identity in known.items():
            self._users[number] = 0
            self._unused[number] = now
            self._put(number, identity)

    def take(self, identity: Identity, content: bytes) -> int:
        """`content` is the identity's (records.ids)."""
        number = self._numbering.take(content)
        if number not in self._users:
            self._put(number, identity)
        self._users[number] = self._users.get(number, 0) + 1
        self._unused.pop(number, None)
        return number

    def release(self, number: int, now: float) -> None:
        self._users[number] -= 1
        if not self._users[number]:
            self._unused[number] = now

    def collect(self, now: float) -> float | None:
        """Removes what has been unused for the grace time; returns the seconds until there is more to remove."""
        for number, since in list(self._unused.items()):
            if now - since >= self._grace:
                del self._unused[number], self._users[number]
                self._numbering.release(number)
                self._put(number, None)
        return min(self._unused.values()) + self._grace - now if self._unused else None

    def __len__(self) -> int:
        return len(self._users)
