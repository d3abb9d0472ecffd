"""Who has room in the maps of Services: what does not fit is refused whole, owner by owner. Pure.

An owner is a Service, or a pod with host ports. Its cost is counted before anything of it is wanted; what it takes
more than it holds must fit beside all that the kernel holds now, also what is about to go. So a map is never found full
while half of a Service has been written. (What endpoint-sync lets through fits into maps of the sizes that it counts
with: tidegate.records.capacity.)
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from node_agent.entries import Entries
from node_agent.table import Tables

Owner = tuple[str, ...]
Raw = dict[str, dict[bytes, bytes]]  # map → entries

MAPS = ("backends", "slots", "ring", "services", "source_ranges", "frontends")


class Room:
    def __init__(self, tables: Tables, entries: Entries, sizes: Mapping[str, int]) -> None:
        """`sizes`: map → entries; a map without has no bounds."""
        self._tables = tables
        self._entries = entries
        self._sizes = {name: sizes[name] for name in MAPS if name in sizes}
        self._held: dict[Owner, Counter[str]] = {}
        self._found: dict[int, list[tuple[str, bytes]]] | None = None
        self._tried = tables.removals
        self.refused: dict[Owner, str] = {}  # why

    def take(self, owner: Owner, cost: Counter[str], selections: Collection[int]) -> bool:
        """Whether the owner can have this; then it has. Until then everything of it is to stay as it is."""
        reason = self._lacking(owner, cost)
        if reason and owner not in self._held:
            # After a start: what stands in the maps for it is its own already.
            self._held[owner] = Counter({name: len(found) for name, found in self.stored(selections).items()})
            reason = self._lacking(owner, cost)
        if reason:
            self.refused[owner] = reason
            return False
        self.refused.pop(owner, None)
        self._held[owner] = cost
        if not cost:
            del self._held[owner]
        return True

    def held(self, owner: Owner) -> Counter[str]:
        """What it has: map → entries."""
        return Counter(self._held.get(owner))

    def _lacking(self, owner: Owner, cost: Counter[str]) -> str:
        held = self._held.get(owner, Counter())
        missing = []
        for name, size in self._sizes.items():
            more = cost[name] - held[name]
            if more > 0 and self._tables.occupied(name) + more > size:
                missing.append(f"map {name}: {cost[name]} entries where it has {held[name]}, and the map holds {size}")
        return "; ".join(missing)

    def retry(self) -> set[Owner]:
        """Those refused, where something has gone from the maps since this was last asked."""
        if self._tried == self._tables.removals:
            return set()
        self._tried = self._tables.removals
        return set(self.refused)

    def stored(self, selections: Iterable[int]) -> Raw:
        """What the maps held for these selections when the agent started."""
        if self._found is None:
            self._found = {}
            for name in MAPS:
                for key, value in self._tables.have(name).items():
                    for number in self._entries.selections(name, key, value):
                        self._found.setdefault(number, []).append((name, key))
        raw: Raw = {name: {} for name in MAPS}
        for number in selections:
            for name, key in self._found.get(number, ()):
                self._keep(raw, name, key)
                if name == "frontends":
                    self._keep(raw, name, self._entries.address_alone(key))
        return raw

    def _keep(self, raw: Raw, name: str, key: bytes) -> None:
        value = self._tables.have(name).get(key)
        if value is not None:
            raw[name][key] = value
