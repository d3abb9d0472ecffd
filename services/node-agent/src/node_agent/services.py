"""Services and their backends as entries of the `frontends`, `services` and `backends` maps. Pure."""

from collections.abc import Iterable

from node_agent.choice import Place, Refusal, Selection, select
from node_agent.entries import PRESENT, Entries
from node_agent.frontends import LOCAL, Frontend, frontends, numbers, ranges
from node_agent.healthchecks import HealthCheck
from node_agent.table import Tables
from tidegate.records import Backend, BackendShard, Service, ServicePort
from tidegate.records.addresses import is_ipv4

Key = tuple[str, str]
Address = tuple[bytes, int]  # address, port


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
    """Services and their backends, seen from this node: `set_…` takes what is known, `settle` brings the tables up."""

    def __init__(self, node: str, tables: Tables, entries: Entries) -> None:
        self._place = Place(node)
        self._tables = tables
        self._entries = entries
        self._own: frozenset[bytes] = frozenset()
        self._services: dict[Key, Service] = {}
        self._shards: dict[Key, dict[int, BackendShard]] = {}
        self._frontends: dict[Key, dict[bytes, bytes]] = {}  # as programmed
        self._ranges: dict[Key, set[bytes]] = {}  # as programmed
        self.health: dict[int, HealthCheck] = {}  # healthCheckNodePort → what is to be answered there
        self._health_ports: dict[Key, int] = {}
        self._slots: dict[int, Slots] = {}  # by number of the selection
        self._affine: set[int] = set()  # selections whose backends' slots can be looked up
        self._numbers: dict[Key, set[int]] = {}  # selections as programmed
        self._claims: dict[bytes, dict[Key, bytes]] = {}  # frontend → who wants it with which value; the latest has it
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

    def set_zone(self, zone: str) -> None:
        """The zone of this node: what is near depends on it."""
        if zone != self._place.zone:
            self._place = Place(self._place.node, zone)
            self._dirty |= self._services.keys()

    def set_addresses(self, own: frozenset[bytes]) -> None:
        """The node's own addresses: NodePorts are served there."""
        if own != self._own:
            self._own = own
            self._dirty |= {
                key for key, service in self._services.items() if any(port.node_port for port in service.ports)
            }

    def set_service(self, key: Key, record: Service | None) -> None:
        if record is None:
            self._services.pop(key, None)
        else:
            self._services[key] = record
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
            service = self._services.get(key)
            self._program_backends(key, service)
            self._program_ranges(key, service)
            self._program_frontends(key, service)

    def _program_backends(self, key: Key, service: Service | None) -> None:
        # One address in two shards, as while they are spread anew, is one backend.
        backends = {b.address: b for shard in self._shards.get(key, {}).values() for b in shard.backends}
        known = [backend for backend in backends.values() if is_ipv4(backend.address)]
        needed: set[int] = set()
        for port in service.ports if service else ():
            found = select([backend for backend in known if port.name in backend.ports], self._place)
            for number in numbers(service, port) if service else ():
                needed.add(number)
                selection = found.local if number & LOCAL else found.cluster
                self._fill(number, port, selection, service.affinity_seconds if service else 0)
        self._check_health(key, service, known)
        for number in self._numbers.pop(key, set()) - needed:
            self._empty(number)
        if needed:
            self._numbers[key] = needed

    def _check_health(self, key: Key, service: Service | None, backends: list[Backend]) -> None:
        before = self._health_ports.pop(key, None)
        if before is not None:
            self.health.pop(before, None)
        if service is not None and service.health_port and service.external_local:
            here = {b.address for b in backends if b.node == self._place.node and b.ready}
            self._health_ports[key] = service.health_port
            self.health[service.health_port] = HealthCheck(*key, len(here))

    def _fill(self, number: int, port: ServicePort, selection: Selection, affinity: int) -> None:
        slots = self._slots.get(number)
        if slots is None:
            slots = self._slots[number] = Slots(self._stored.pop(number, ()))
            for index, (address, target) in enumerate(slots.addresses):
                self._slot(number, index, (address, target))
        wanted = {(backend.address, backend.ports[port.name]) for backend in selection.backends}
        gone = set(slots.addresses) - wanted
        changed = slots.replace(wanted)
        for index, content in changed.items():
            self._slot(number, index, content)
        self._find_slots(number, slots, changed, gone, affinity > 0)
        value = self._entries.service(len(slots.addresses), selection.refusal is Refusal.DROP, affinity)
        self._tables.want("services", self._entries.service_key(number), value)

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

    def _empty(self, number: int) -> None:
        slots = self._slots.pop(number)
        self._find_slots(number, slots, {}, set(), False)
        for index in range(len(slots.addresses)):
            self._slot(number, index, None)
        self._tables.want("services", self._entries.service_key(number), None)

    def _slot(self, number: int, index: int, content: Address | None) -> None:
        value = self._entries.backend(*content) if content else None
        self._tables.want("backends", self._entries.backend_key(number, index), value)

    def _program_ranges(self, key: Key, service: Service | None) -> None:
        wanted = {self._entries.source_range(*item) for item in ranges(service)} if service else set()
        before = self._ranges.pop(key, set())
        for entry in before - wanted:
            self._tables.want("source_ranges", entry, None)
        for entry in wanted - before:
            self._tables.want("source_ranges", entry, PRESENT)
        if wanted:
            self._ranges[key] = wanted

    def _program_frontends(self, key: Key, service: Service | None) -> None:
        wanted = dict(map(self._entry, frontends(service, self._own))) if service else {}
        before = self._frontends.pop(key, {})
        for frontend in before.keys() - wanted.keys():
            claims = self._claims[frontend]
            del claims[key]
            if not claims:
                del self._claims[frontend]
            self._publish(frontend)
        for frontend, value in wanted.items():
            if before.get(frontend) != value:
                self._claims.setdefault(frontend, {})[key] = value
                self._publish(frontend)
        if wanted:
            self._frontends[key] = wanted

    def _publish(self, frontend: bytes) -> None:
        claims = self._claims.get(frontend)
        self._tables.want("frontends", frontend, claims[next(reversed(claims))] if claims else None)

    def _entry(self, frontend: Frontend) -> tuple[bytes, bytes]:
        key = self._entries.frontend_key(frontend.address, frontend.port, frontend.protocol)
        return key, self._entries.frontend(frontend.service, frontend.outside, frontend.open, frontend.ranges)
