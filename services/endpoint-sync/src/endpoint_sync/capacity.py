"""Who has how much of the room that the nodes' maps have for Services. Pure."""

from collections.abc import Mapping

from tidegate.kube.track import Key
from tidegate.records.capacity import NOTHING, Amount, grows, lacking


class Ledger:
    """What is published keeps its place: a Service may grow only into what nobody has."""

    def __init__(self, limit: Amount) -> None:
        self.limit = limit
        self.used = NOTHING
        self.freed = False  # somebody needs less than before, since this was last set back
        self._held: dict[Key, Amount] = {}

    def reset(self, held: Mapping[Key, Amount]) -> None:
        """These are published, also where they are more than the limit."""
        self._held = {key: amount for key, amount in held.items() if amount != NOTHING}
        self.used = sum(self._held.values(), NOTHING)

    def held(self, key: Key) -> Amount:
        return self._held.get(key, NOTHING)

    def lacking(self, key: Key, wanted: Amount) -> str:
        """Why the Service cannot have this; empty where it can."""
        return lacking(self.limit, self.used, self.held(key), wanted)

    def grows(self, key: Key, wanted: Amount) -> bool:
        return grows(self.held(key), wanted)

    def take(self, key: Key, amount: Amount) -> None:
        self.freed |= grows(amount, self.held(key))
        self.used = self.used - self._held.pop(key, NOTHING) + amount
        if amount != NOTHING:
            self._held[key] = amount
