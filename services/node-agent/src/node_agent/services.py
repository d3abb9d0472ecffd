"""Services and their backends, as this node sees them. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from node_agent.choice import Place, Refusal, Selection, select
from node_agent.entries import PRESENT, Entries
from node_agent.exchange import ShardChanges, differing, exchanges, is_simple
from node_agent.frontends import (
    IPV6,
    LOCAL,
    Frontend,
    external,
    families,
    family,
    frontends,
    is_external,
    numbers,
    ranges,
)
from node_agent.healthchecks import HealthCheck
from node_agent.room import Owner, Raw, Room
from node_agent.selections import FrontendTable, SelectionTable
from node_agent.table import Tables
from tidegate.records import Backend, BackendShard, Service, ServicePort, decode

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
        self,
        node: str,
        tables: Tables,
        entries: Entries,
        selections: SelectionTable,
        leading: FrontendTable,
        room: Room,
    ) -> None:
        self._place = Place(node)
        self._tables = tables
        self._entries = entries
        self._selections = selections
        self._leading = leading
        self._room = room
        self._kept: dict[Key, Raw] = {}  # of Services refused since the start: as it was found in the maps
        self._own: frozenset[bytes] = frozenset()
        self._services: dict[Key, Service] = {}
        self._shards: dict[Key, dict[int, bytes]] = {}  # as they lie in etcd: there are so many
        self._fresh: dict[tuple[Key, int], BackendShard] = {}  # those that have come since the last `settle`
        self._numbers: dict[Key, tuple[int, ...]] = {}  # selections as programmed
        self._ranges: dict[Key, set[bytes]] = {}  # as programmed
        self._health_ports: dict[Key, int] = {}
        self.health: dict[int, HealthCheck] = {}  # healthCheckNodePort → what is to be answered there
        self._dirty: set[Key] = set()
        # Programmed with exactly their ready backends: what a backend becomes is a matter of that backend alone.
        self._plain: set[Key] = set()
        self._changes: dict[Key, ShardChanges] = {}  # of plain Services

    @property
    def services(self) -> dict[Key, Service]:
        return self._services

    @property
    def place(self) -> Place:
        return self._place

    @property
    def own(self) -> frozenset[bytes]:
        """The node's own addresses."""
        return self._own

    def owner(self, selection: int) -> Key | None:
        """The Service to which a selection belongs."""
        return next((key for key, numbers in self._numbers.items() if selection in numbers), None)

    def shard(self, key: Key, shard: int) -> BackendShard | None:
        value = self._shards.get(key, {}).get(shard)
        return self._record(key, shard, value) if value is not None else None

    def _record(self, key: Key, shard: int, value: bytes) -> BackendShard:
        fresh = self._fresh.get((key, shard))
        return fresh if fresh is not None else decode(BackendShard, value)

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

    def set_shard(self, key: Key, shard: int, record: BackendShard | None, value: bytes | None) -> BackendShard | None:
        """`value`: the record as it lies in etcd. Returns what was known of the shard before."""
        before = self.shard(key, shard)
        shards = self._shards.setdefault(key, {})
        if record is None or value is None:
            shards.pop(shard, None)
            self._fresh.pop((key, shard), None)
        else:
            shards[shard] = value
            self._fresh[key, shard] = record
        if not shards:
            del self._shards[key]
        if key in self._plain:
            changes = self._changes.setdefault(key, {})
            changes[shard] = changes[shard][0] if shard in changes else before, record
        else:
            self._dirty.add(key)
        return before

    def has_ready(self, key: Key) -> bool:
        """Whether the Service is known to have had a backend that is ready, and serves, when it was settled last."""
        return key in self._plain

    def again(self, owners: Iterable[Owner]) -> None:
        """Those of these that are ours found no room before; there may be some now."""
        self._dirty |= {(owner[0], owner[1]) for owner in owners if len(owner) == 2}

    def settle(self) -> None:
        """A Service that finds no room keeps what is programmed of it. Where room is short, the names decide."""
        dirty, self._dirty = self._dirty, set()
        changes, self._changes = self._changes, {}
        dirty |= {key for key, shards in changes.items() if key not in dirty and not self._exchange(key, shards)}
        for key in sorted(dirty):
            service = self._services.get(key)
            known, once = self._known(key)
            wanted = list(self._wanted(service, known)) if service else []
            self._plain.discard(key)
            leading = list(frontends(service, self._own)) if service else []
            self._check_health(key, service)
            if not self._room.take(key, self._cost(service, wanted, leading), _selections(service)):
                self._keep(key, service)
                continue
            self._let_go(key)
            self._program_backends(key, service, wanted)
            self._program_ranges(key, service)
            self._leading.set(key, leading)
            if once and service and _is_plain(service, wanted) and all(map(is_simple, known)):
                self._plain.add(key)
        self._fresh = {}

    def _exchange(self, key: Key, shards: ShardChanges) -> bool:
        """Programs backends of a plain Service that have come, gone or changed; False, and nothing is done, where
        all of it has to be looked at."""
        service, changed = self._services[key], differing(shards.values())
        if changed is None or not all(after is None or is_simple(after) for _, after in changed.values()):
            return False
        due = list(exchanges(service, changed))
        more: Counter[str] = Counter()
        for each in due:
            before = self._selections.count(each.number)
            count = before - len(each.gone) + len(each.come)
            there = self._selections.has(each.number, each.gone), self._selections.has(each.number, each.come)
            if count < 1 or there != (len(each.gone), 0):
                return False
            more.update(_cost_of_backends(service, count, each.outside))
            more.subtract(_cost_of_backends(service, before, each.outside))
        if not self._room.take_more(key, more):
            return False
        for each in due:
            self._selections.exchange(each.number, each.gone, each.come, service.affinity_seconds, each.outside)
        return True

    @staticmethod
    def _cost(service: Service | None, wanted: list[Wanted], leading: list[Frontend]) -> Counter[str]:
        """Map → entries."""
        cost: Counter[str] = Counter()
        if service is None:
            return cost
        cost["frontends"] = len({(f.address, f.port, f.protocol) for f in leading})
        cost["source_ranges"] = len(set(ranges(service)))
        cost["services"] = len(wanted)
        for each in wanted:
            cost.update(_cost_of_backends(service, len(each.selection.backends), each.outside))
        return cost

    def _keep(self, key: Key, service: Service | None) -> None:
        """What an earlier agent wrote for it stays, where this one has not written anything yet."""
        if key in self._numbers or key in self._kept:
            return
        self._kept[key] = raw = self._room.stored(_selections(service))
        self._leading.keep(key, raw["frontends"])
        for name, found in raw.items():
            if name != "frontends":
                for entry, value in found.items():
                    self._tables.want(name, entry, value)

    def _let_go(self, key: Key) -> None:
        for name, found in self._kept.pop(key, {}).items():
            if name != "frontends":
                for entry in found:
                    self._tables.want(name, entry, None)

    def _program_backends(self, key: Key, service: Service | None, selections: list[Wanted]) -> None:
        needed: set[int] = set()
        for wanted in selections:
            needed.add(wanted.number)
            backends = {(backend.address, backend.ports[wanted.port.name]) for backend in wanted.selection.backends}
            dropping = wanted.selection.refusal is Refusal.DROP
            affinity = service.affinity_seconds if service else 0
            self._selections.fill(wanted.number, backends, dropping, affinity, wanted.outside)
        for number in {*self._numbers.pop(key, ())} - needed:
            self._selections.empty(number)
        if needed:
            self._numbers[key] = tuple(needed)

    def wanted(self, key: Key, service: Service) -> Iterator[Wanted]:
        """The selections of all ports, each in each family of the Service."""
        yield from self._wanted(service, self.backends(key))

    def _wanted(self, service: Service, known: list[Backend]) -> Iterator[Wanted]:
        for port in service.ports:
            for bit in families(service):
                of_port = [b for b in known if port.name in b.ports and family(b.address) == bit]
                found = select(of_port, self._place)
                for number in numbers(service, port):
                    selection = found.local if number & LOCAL else found.cluster
                    outside = is_external(service) and number == external(service, port)
                    yield Wanted(port, number | bit, selection, of_port, outside)

    def backends(self, key: Key) -> list[Backend]:
        """All that are known, whoever may use them."""
        return self._known(key)[0]

    def _known(self, key: Key) -> tuple[list[Backend], bool]:
        """The same, and whether each stands in one shard only."""
        shards = (self._record(key, *each) for each in self._shards.get(key, {}).items())
        found = [backend for shard in shards for backend in shard.backends]
        # One address in two shards, as while they are spread anew, is one backend.
        known = {backend.address: backend for backend in found}
        return list(known.values()), len(known) == len(found)

    def _check_health(self, key: Key, service: Service | None) -> None:
        before = self._health_ports.pop(key, None)
        if before is not None:
            self.health.pop(before, None)
        if service is not None and service.health_port and service.external_local:
            here = [b.address for b in self.backends(key) if b.node == self._place.node and b.ready]
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


def _cost_of_backends(service: Service, count: int, outside: bool) -> dict[str, int]:
    """What a selection of so many backends takes: map → entries."""
    affine, turning = bool(service.affinity_seconds), outside and count > 1
    return {"backends": count, "slots": count * affine, "ring": count * turning}


def _is_plain(service: Service, wanted: list[Wanted]) -> bool:
    """Whether it has ready backends everywhere, and the same ones for everybody."""
    local = service.internal_local or service.external_local or service.health_port
    chosen = [each.selection.backends for each in wanted]
    return bool(chosen) and not local and all(backends and backends[0].ready for backends in chosen)


def _selections(service: Service | None) -> set[int]:
    """All that the Service's ports may have, in the past too."""
    ports = service.ports if service else ()
    return {port.id | local | bit for port in ports for local in (0, LOCAL) for bit in (0, IPV6)}
