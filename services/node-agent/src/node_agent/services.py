"""Services and their backends, as this node sees them. Pure."""

from collections.abc import Iterator
from typing import Any

from node_agent.choice import Place, Refusal, select, why_not
from node_agent.entries import PRESENT, Entries
from node_agent.frontends import LOCAL, frontends, numbers, ranges
from node_agent.healthchecks import HealthCheck
from node_agent.selections import FrontendTable, SelectionTable
from node_agent.table import Tables
from tidegate.records import Backend, BackendShard, Service
from tidegate.records.addresses import is_ipv4, unpack_address

Key = tuple[str, str]


class ServiceView:
    """`set_…` takes what is known, `settle` brings the tables up to it."""

    def __init__(
        self, node: str, tables: Tables, entries: Entries, selections: SelectionTable, leading: FrontendTable
    ) -> None:
        self._place = Place(node)
        self._tables = tables
        self._entries = entries
        self._selections = selections
        self._leading = leading
        self._own: frozenset[bytes] = frozenset()
        self._services: dict[Key, Service] = {}
        self._shards: dict[Key, dict[int, BackendShard]] = {}
        self._numbers: dict[Key, set[int]] = {}  # selections as programmed
        self._ranges: dict[Key, set[bytes]] = {}  # as programmed
        self._health_ports: dict[Key, int] = {}
        self.health: dict[int, HealthCheck] = {}  # healthCheckNodePort → what is to be answered there
        self._dirty: set[Key] = set()

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
            self._leading.set(key, frontends(service, self._own) if service else ())

    def _program_backends(self, key: Key, service: Service | None) -> None:
        known = self._known(key)
        needed: set[int] = set()
        for port in service.ports if service else ():
            found = select([backend for backend in known if port.name in backend.ports], self._place)
            for number in numbers(service, port) if service else ():
                needed.add(number)
                selection = found.local if number & LOCAL else found.cluster
                addresses = {(backend.address, backend.ports[port.name]) for backend in selection.backends}
                affinity = service.affinity_seconds if service else 0
                self._selections.fill(number, addresses, selection.refusal is Refusal.DROP, affinity)
        self._check_health(key, service, known)
        for number in self._numbers.pop(key, set()) - needed:
            self._selections.empty(number)
        if needed:
            self._numbers[key] = needed

    def _known(self, key: Key) -> list[Backend]:
        # One address in two shards, as while they are spread anew, is one backend.
        backends = {b.address: b for shard in self._shards.get(key, {}).values() for b in shard.backends}
        return [backend for backend in backends.values() if is_ipv4(backend.address)]

    def explain(self) -> Iterator[dict[str, Any]]:
        """For people: each selection of each Service's ports, who gets it, and why a backend is not in it."""
        for key, service in sorted(self._services.items()):
            for port in service.ports:
                known = [backend for backend in self._known(key) if port.name in backend.ports]
                found = select(known, self._place)
                for number in sorted(numbers(service, port)):
                    local = bool(number & LOCAL)
                    selection = found.local if local else found.cluster
                    chosen, left_out = [], {}
                    for backend in sorted(known, key=lambda backend: backend.address):
                        text = f"{unpack_address(backend.address)}:{backend.ports[port.name]}"
                        reason = why_not(backend, selection, self._place, local)
                        if reason:
                            left_out[text] = reason
                        else:
                            chosen.append(text)
                    yield {
                        "namespace": key[0],
                        "name": key[1],
                        "port": port.port,
                        "protocol": port.protocol,
                        "traffic_policy": "Local" if local else "Cluster",
                        "frontends": self._leading_to(service, port.port, port.node_port, number),
                        "backends": chosen,
                        "left_out": left_out,
                        "refusal": selection.refusal.value if selection.refusal else "",
                    }

    def _leading_to(self, service: Service, port: int, node_port: int, number: int) -> list[str]:
        """Frontends of the port behind which some clients get this selection, and which clients."""
        found = []
        for frontend in frontends(service, self._own):
            if frontend.port and frontend.port in (port, node_port) and number in (frontend.service, frontend.outside):
                inside, outside = frontend.service == number, frontend.outside == number
                whom = "" if inside and outside else " (in the cluster)" if inside else " (outside)"
                found.append(f"{unpack_address(frontend.address)}:{frontend.port}{whom}")
        return found

    def _check_health(self, key: Key, service: Service | None, backends: list[Backend]) -> None:
        before = self._health_ports.pop(key, None)
        if before is not None:
            self.health.pop(before, None)
        if service is not None and service.health_port and service.external_local:
            here = {b.address for b in backends if b.node == self._place.node and b.ready}
            self._health_ports[key] = service.health_port
            self.health[service.health_port] = HealthCheck(*key, len(here))

    def _program_ranges(self, key: Key, service: Service | None) -> None:
        wanted = {self._entries.source_range(*item) for item in ranges(service)} if service else set()
        before = self._ranges.pop(key, set())
        for entry in before - wanted:
            self._tables.want("source_ranges", entry, None)
        for entry in wanted - before:
            self._tables.want("source_ranges", entry, PRESENT)
        if wanted:
            self._ranges[key] = wanted
