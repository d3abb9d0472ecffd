"""Selections of backends and the frontends that lead to them, as entries of maps: who wants what. Pure."""

from collections.abc import Iterable

from node_agent.entries import Entries
from node_agent.frontends import Frontend
from node_agent.ring import Address, Ring
from node_agent.table import Tables

Owner = tuple[str, ...]


class Slots:
    """The backends of one service port, in the slots 0 … n-1 without a gap.

    >>> slots = Slots([(b"a", 1), (b"b", 1), (b"c", 1)])
    >>> sorted(slots.replace({(b"b", 1), (b"c", 1)}).items())
    [(0, (b'c', 1)), (2, None)]
    """

    def __init__(self, addresses: Iterable[Address] = ()) -> None:
        self.addresses = list(addresses)

    def replace(self, wanted: set[Address]) -> dict[int, Address | None]:
        """Changes as few slots as possible; returns what each changed slot holds now (None: nothing).

        A removed backend's slot is taken by a new one, else by the last.
        """
        known = set(self.addresses)
        new = sorted(wanted - known)
        changed: dict[int, Address | None] = {}
        for slot in reversed([i for i, address in enumerate(self.addresses) if address not in wanted]):
            if new:
                self.addresses[slot] = changed[slot] = new.pop()
                continue
            last = self.addresses.pop()
            changed[len(self.addresses)] = None
            if slot < len(self.addresses):
                self.addresses[slot] = changed[slot] = last
        for address in new:
            changed[len(self.addresses)] = address
            self.addresses.append(address)
        return changed


class SelectionTable:
    """The `services`, `backends`, `slots` and `ring` maps, by number of the selection."""

    def __init__(self, tables: Tables, entries: Entries) -> None:
        self._tables = tables
        self._entries = entries
        self._slots: dict[int, Slots] = {}
        self._affine: set[int] = set()  # selections whose backends' slots can be looked up
        self._rings: dict[int, Ring] = {}
        self._stored = self._read()

    def _read(self) -> dict[int, list[Address]]:
        """The slots that the maps hold, so that a restart moves no backend."""
        found: dict[int, dict[int, Address]] = {}
        for key, value in self._tables.have("backends").items():
            service, slot = self._entries.backend_slot(key)
            found.setdefault(service, {})[slot] = self._entries.backend_address(value)
        return {
            service: [slots[i] for i in range(len(slots))]
            for service, slots in found.items()
            if set(slots) == set(range(len(slots)))
        }

    def fill(
        self, number: int, wanted: set[Address], dropping: bool = False, affinity: int = 0, consistent: bool = False
    ) -> None:
        """The selection has these backends. `dropping`: without any its clients get no answer. `affinity`: seconds.

        `consistent`: clients outside the cluster get them by consistent hashing.
        """
        slots = self._slots.get(number)
        if slots is None:
            slots = self._slots[number] = Slots(self._stored.pop(number, ()))
            for index, (address, target) in enumerate(slots.addresses):
                self._slot(number, index, (address, target))
        gone = set(slots.addresses) - wanted
        changed = slots.replace(wanted)
        for index, content in changed.items():
            self._slot(number, index, content)
        self._find_slots(number, slots, changed, gone, affinity > 0)
        self._turn(number, slots, changed, consistent and len(wanted) > 1)
        ring = self._rings.get(number)
        value = self._entries.service(len(slots.addresses), dropping, affinity, ring.size if ring else 0)
        self._tables.want("services", self._entries.service_key(number), value)

    def empty(self, number: int) -> None:
        """There is no such selection any more. Another Service with the same number may have ended it already."""
        slots = self._slots.pop(number, None)
        if slots is None:
            return
        self._find_slots(number, slots, {}, set(), False)
        self._turn(number, slots, {}, False)
        for index in range(len(slots.addresses)):
            self._slot(number, index, None)
        self._tables.want("services", self._entries.service_key(number), None)

    def _find_slots(
        self, number: int, slots: Slots, changed: dict[int, Address | None], gone: set[Address], wanted: bool
    ) -> None:
        """Where a backend stands is looked up for clients that stay with theirs, and only then."""
        if not wanted:
            if number in self._affine:
                self._affine.discard(number)
                self._forget_slots(number, gone.union(slots.addresses))
            return
        placed = changed if number in self._affine else dict(enumerate(slots.addresses))
        self._affine.add(number)
        self._forget_slots(number, gone)
        for index, content in placed.items():
            if content is not None:
                self._tables.want("slots", *self._entries.slot(number, *content, index))

    def _forget_slots(self, number: int, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._tables.want("slots", self._entries.slot(number, *address, 0)[0], None)

    def _turn(self, number: int, slots: Slots, changed: dict[int, Address | None], wanted: bool) -> None:
        """The selection's ring, where it is to have one: who stands there, and in which slots those are."""
        ring = self._rings.setdefault(number, Ring()) if wanted else self._rings.pop(number, None)
        if ring is None:
            return
        moved = ring.replace(set(slots.addresses) if wanted else set())
        moved |= ring.find(backend for backend in changed.values() if backend is not None)
        placed = {backend: index for index, backend in enumerate(slots.addresses)} if moved else {}
        for at, backend in moved.items():
            entry = self._entries.ring(number, at, placed[backend] if backend else 0)
            self._tables.want("ring", entry[0], entry[1] if backend else None)

    def _slot(self, number: int, index: int, content: Address | None) -> None:
        value = self._entries.backend(*content) if content else None
        self._tables.want("backends", self._entries.backend_key(number, index), value)


class FrontendTable:
    """The `frontends` map. Where several want the same frontend the latest has it, and after it the one before."""

    def __init__(self, tables: Tables, entries: Entries) -> None:
        self._tables = tables
        self._entries = entries
        self._wanted: dict[Owner, dict[bytes, bytes]] = {}
        self._claims: dict[bytes, dict[Owner, bytes]] = {}

    def set(self, owner: Owner, frontends: Iterable[Frontend]) -> None:
        """These are the owner's frontends now."""
        self._set(owner, dict(map(self._entry, frontends)))

    def _set(self, owner: Owner, wanted: dict[bytes, bytes]) -> None:
        before = self._wanted.pop(owner, {})
        for frontend in before.keys() - wanted.keys():
            claims = self._claims[frontend]
            del claims[owner]
            if not claims:
                del self._claims[frontend]
            self._publish(frontend)
        for frontend, value in wanted.items():
            if before.get(frontend) != value:
                self._claims.setdefault(frontend, {})[owner] = value
                self._publish(frontend)
        if wanted:
            self._wanted[owner] = wanted

    def keep(self, owner: Owner, raw: dict[bytes, bytes]) -> None:
        """These entries are the owner's, as they were found in the map."""
        self._set(owner, raw)

    def _publish(self, frontend: bytes) -> None:
        claims = self._claims.get(frontend)
        self._tables.want("frontends", frontend, claims[next(reversed(claims))] if claims else None)

    def _entry(self, frontend: Frontend) -> tuple[bytes, bytes]:
        key = self._entries.frontend_key(frontend.address, frontend.port, frontend.protocol)
        value = self._entries.frontend(frontend.service, frontend.outside, frontend.open, frontend.ranges)
        return key, value
