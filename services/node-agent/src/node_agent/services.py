"""Services and their backends as entries of the `frontends`, `services` and `backends` maps. Pure."""

from collections.abc import Iterable

from node_agent.entries import Entries
from node_agent.table import Tables
from tidegate.records import Backend, BackendShard, Service
from tidegate.records.addresses import is_ipv4

Key = tuple[str, str]
Address = tuple[bytes, int]  # address, port


def eligible(backends: Iterable[Backend]) -> list[Backend]:
    """Ready ones; if there is none, those that still serve while they end (KEP-1669)."""
    known = list(backends)
    return [b for b in known if b.ready] or [b for b in known if b.serving and b.terminating]


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


class ServiceView:
    def __init__(self, tables: Tables, entries: Entries) -> None:
        self._tables = tables
        self._entries = entries
        self._services: dict[Key, Service] = {}
        self._shards: dict[Key, dict[int, BackendShard]] = {}
        self._slots: dict[int, Slots] = {}
        self._owner: dict[bytes, Key] = {}  # frontend key → Service; an address passes from one to the next
        self._dirty: set[Key] = set()
        self._stored = self._read_slots()

    def _read_slots(self) -> dict[int, list[Address]]:
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

    @property
    def services(self) -> dict[Key, Service]:
        return self._services

    def set_service(self, key: Key, record: Service | None) -> None:
        before = self._services.pop(key, None)
        if record is not None:
            self._services[key] = record
        if before is not None:
            self._withdraw(key, before, record)
        self._dirty.add(key)

    def set_shard(self, key: Key, shard: int, record: BackendShard | None) -> None:
        shards = self._shards.setdefault(key, {})
        if record is None:
            shards.pop(shard, None)
        else:
            shards[shard] = record
        if not shards:
            del self._shards[key]
        self._dirty.add(key)

    def settle(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            if key in self._services:
                self._program(key, self._services[key])

    def _program(self, key: Key, service: Service) -> None:
        # One address in two shards, as while they are spread anew, is one backend.
        backends = {b.address: b for shard in self._shards.get(key, {}).values() for b in shard.backends}
        chosen = [b for b in eligible(backends.values()) if is_ipv4(b.address)]
        for port in service.ports:
            self._fill(port.id, {(b.address, b.ports[port.name]) for b in chosen if port.name in b.ports})
        for frontend, value in self._frontends(service).items():
            self._owner[frontend] = key
            self._tables.want("frontends", frontend, value)

    def _fill(self, number: int, wanted: set[Address]) -> None:
        slots = self._slots.get(number)
        if slots is None:
            slots = self._slots[number] = Slots(self._stored.pop(number, ()))
            for index, (address, port) in enumerate(slots.addresses):
                self._slot(number, index, (address, port))
        for index, content in slots.replace(wanted).items():
            self._slot(number, index, content)
        self._tables.want("services", self._entries.service_key(number), self._entries.service(len(slots.addresses)))

    def _slot(self, number: int, index: int, content: Address | None) -> None:
        value = self._entries.backend(*content) if content else None
        self._tables.want("backends", self._entries.backend_key(number, index), value)

    def _frontends(self, service: Service) -> dict[bytes, bytes]:
        found = {}
        for address in service.cluster_ips:
            if not is_ipv4(address):
                continue
            # Marks the address as a Service's, so that its other ports are refused.
            found[self._entries.frontend_key(address, 0, 0)] = self._entries.frontend(0)
            for port in service.ports:
                key = self._entries.frontend_key(address, port.port, port.protocol)
                found[key] = self._entries.frontend(port.id)
        return found

    def _withdraw(self, key: Key, before: Service, after: Service | None) -> None:
        kept = self._frontends(after) if after else {}
        for frontend in self._frontends(before):
            if frontend not in kept and self._owner.get(frontend) == key:
                del self._owner[frontend]
                self._tables.want("frontends", frontend, None)
        numbers = {port.id for port in after.ports} if after else set()
        for port in before.ports:
            if port.id not in numbers and port.id in self._slots:
                for index in range(len(self._slots.pop(port.id).addresses)):
                    self._slot(port.id, index, None)
                self._tables.want("services", self._entries.service_key(port.id), None)
