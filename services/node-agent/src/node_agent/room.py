"""Who has room in the maps of Services: what does not fit is refused whole, owner by owner. Pure.

An owner is a Service, or a pod with host ports. Its cost is counted before anything of it is wanted; what it takes
more than it holds must fit beside all that the kernel holds now, also what is about to go. So a map is never found full
while half of a Service has been written. (What endpoint-sync lets through fits into maps of the sizes that it counts
with: tidegate.records.capacity.)
"""

from collections.abc import Collection, Iterable, Mapping

from node_agent.entries import Entries
from node_agent.table import Tables

Owner = tuple[str, ...]
Raw = dict[str, dict[bytes, bytes]]  # map → entries

MAPS = ("backends", "slots", "ring", "services", "source_ranges", "frontends")

Amounts = tuple[int, ...]  # entries of each of MAPS
NOTHING: Amounts = (0,) * len(MAPS)


class Room:
    def __init__(self, tables: Tables, entries: Entries, sizes: Mapping[str, int]) -> None:
        """`sizes`: map → entries; a map without has no bounds."""
        self._tables = tables
        self._entries = entries
        self._sizes = {name: sizes[name] for name in MAPS if name in sizes}
        self._held: dict[Owner, Amounts] = {}
        self._found: dict[int, list[tuple[str, bytes]]] | None = None
        self._tried = tables.removals
        self.refused: dict[Owner, str] = {}  # why

    def take(self, owner: Owner, cost: Mapping[str, int], selections: Collection[int]) -> bool:
        """Whether the owner can have this; then it has. Until then everything of it is to stay as it is."""
        return self._take(owner, tuple(cost.get(name, 0) for name in MAPS), selections)

    def take_more(self, owner: Owner, more: Mapping[str, int]) -> bool:
        """The same for so many entries more than it has, or less."""
        held = self._held.get(owner, NOTHING)
        return self._take(owner, tuple(has + more.get(name, 0) for name, has in zip(MAPS, held, strict=True)), ())

    def _take(self, owner: Owner, wanted: Amounts, selections: Collection[int]) -> bool:
        reason = self._lacking(self._held.get(owner, NOTHING), wanted)
        if reason and owner not in self._held:
            # After a start: what stands in the maps for it is its own already.
            self._held[owner] = tuple(map(len, self.stored(selections).values()))
            reason = self._lacking(self._held[owner], wanted)
        if reason:
            self.refused[owner] = reason
            return False
        self.refused.pop(owner, None)
        if any(wanted):
            self._held[owner] = wanted
        else:
            self._held.pop(owner, None)
        return True

    def _lacking(self, held: Amounts, wanted: Amounts) -> str:
        missing = []
        for name, has, wants in zip(MAPS, held, wanted, strict=True):
            size = self._sizes.get(name)
            if wants > has and size is not None and self._tables.occupied(name) + wants - has > size:
                missing.append(f"map {name}: {wants} entries where it has {has}, and the map holds {size}")
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
