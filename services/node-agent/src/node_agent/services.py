"""Services and their backends, as this node sees them. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from node_agent.choice import Place, Refusal, Selection, select, why_not
from node_agent.entries import PRESENT, Entries
from node_agent.frontends import (
    IPV6,
    LOCAL,
    external,
    families,
    family,
    frontends,
    is_external,
    numbers,
    ranges,
)
from node_agent.healthchecks import HealthCheck
from node_agent.selections import FrontendTable, SelectionTable
from node_agent.table import Tables
from tidegate.records import Backend, BackendShard, Service, ServicePort
from tidegate.records.addresses import write_end

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A selection that a Service needs: of the backends `among` those of `selection`, under the number."""

    port: ServicePort
    number: int
    selection: Selection
    among: list[Backend]
    outside: bool  # for clients outside the cluster, too


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
        needed: set[int] = set()
        for wanted in self._wanted(key, service) if service else ():
            needed.add(wanted.number)
            backends = {(backend.address, backend.ports[wanted.port.name]) for backend in wanted.selection.backends}
            dropping = wanted.selection.refusal is Refusal.DROP
            affinity = service.affinity_seconds if service else 0
            self._selections.fill(wanted.number, backends, dropping, affinity, wanted.outside)
        self._check_health(key, service)
        for number in self._numbers.pop(key, set()) - needed:
            self._selections.empty(number)
        if needed:
            self._numbers[key] = needed

    def _wanted(self, key: Key, service: Service) -> Iterator[Wanted]:
        """The selections of all ports, each in each family of the Service."""
        known = self._known(key)
        for port in service.ports:
            for bit in families(service):
                of_port = [b for b in known if port.name in b.ports and family(b.address) == bit]
                found = select(of_port, self._place)
                for number in numbers(service, port):
                    selection = found.local if number & LOCAL else found.cluster
                    outside = is_external(service) and number == external(service, port)
                    yield Wanted(port, number | bit, selection, of_port, outside)

    def _known(self, key: Key) -> list[Backend]:
        # One address in two shards, as while they are spread anew, is one backend.
        shards = self._shards.get(key, {}).values()
        return list({backend.address: backend for shard in shards for backend in shard.backends}.values())

    def explain(self) -> Iterator[dict[str, Any]]:
        """For people: each selection of each Service's ports, who gets it, and why a backend is not in it."""
        for key, service in sorted(self._services.items()):
            order = {port.id: index for index, port in enumerate(service.ports)}
            found = list(self._wanted(key, service))
            for wanted in sorted(found, key=lambda w: (order[w.port.id], w.number & IPV6, w.number & LOCAL)):
                port, selection, local = wanted.port, wanted.selection, bool(wanted.number & LOCAL)
                chosen, left_out = [], {}
                for backend in sorted(wanted.among, key=lambda backend: backend.address):
                    text = write_end(backend.address, backend.ports[port.name])
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
                    "family": "IPv6" if wanted.number & IPV6 else "IPv4",
                    "traffic_policy": "Local" if local else "Cluster",
                    "frontends": self._leading_to(service, port.port, port.node_port, wanted.number),
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
                found.append(f"{write_end(frontend.address, frontend.port)}{whom}")
        return found

    def _check_health(self, key: Key, service: Service | None) -> None:
        before = self._health_ports.pop(key, None)
        if before is not None:
            self.health.pop(before, None)
        if service is not None and service.health_port and service.external_local:
            here = [b.address for b in self._known(key) if b.node == self._place.node and b.ready]
            # A pod has an address in each of the families, and counts once.
            local = max(sum(family(address) == bit for address in here) for bit in families(service) or {0})
            self._health_ports[key] = service.health_port
            self.health[service.health_port] = HealthCheck(*key, local)

    def _program_ranges(self, key: Key, service: Service | None) -> None:
        wanted = {self._entries.source_range(*item) for item in ranges(service)} if service else set()
        before = self._ranges.pop(key, set())
        for entry in before - wanted:
            self._tables.want("source_ranges", entry, None)
        for entry in wanted - before:
            self._tables.want("source_ranges", entry, PRESENT)
        if wanted:
            self._ranges[key] = wanted
