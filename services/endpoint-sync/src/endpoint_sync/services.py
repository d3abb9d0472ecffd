"""Services, their EndpointSlices, and the nodes."""

from dataclasses import dataclass, field

from msgspec import structs

from endpoint_sync.normalise import (
    SERVICE_NAME,
    ObjectError,
    ServiceFacts,
    merge,
    node_record,
    service_facts,
    slice_backends,
)
from tidegate.kube import objects
from tidegate.kube.track import Key
from tidegate.kube.watch import Invalid
from tidegate.records import Backend, BackendShard, Service, ServicePort
from tidegate.records.ids import Numbering, candidate, service_port_content
from tidegate.records.shards import shard_count
from tidegate.store.publisher import Publisher

SHARD = 16  # backends: about 1 KB sent to each node when one of them changes


class Nodes:
    """Handler of node events."""

    KIND = "Node"

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._good: set[str] = set()

    def changed(self, item: objects.Node) -> None:
        name = item.metadata.name
        try:
            record = node_record(item)
        except ObjectError as error:
            self._refuse(name, str(error))
            return
        self._good.add(name)
        self._publisher.problem(self.KIND, "", name, None)
        self._publisher.put(self._publisher.keys.node(name), record)

    def deleted(self, key: Key) -> None:
        self._good.discard(key[1])
        self._publisher.problem(self.KIND, "", key[1], None)
        self._publisher.put(self._publisher.keys.node(key[1]), None)

    def invalid(self, item: Invalid) -> None:
        self._refuse(item.name, item.reason)

    def _refuse(self, name: str, reason: str) -> None:
        self._publisher.problem(self.KIND, "", name, reason)
        if name not in self._good:
            self._publisher.keep(self._publisher.keys.node(name))


@dataclass
class _State:
    """One Service: whether it has frontends, and its backends by address, slice and shard."""

    facts: ServiceFacts | None = None
    kept: bool = False  # not understood since the start: its stored records stand for it
    sources: dict[bytes, dict[str, Backend]] = field(default_factory=dict)  # address → slice → backend
    shards: list[dict[bytes, Backend]] = field(default_factory=lambda: [{}])

    @property
    def size(self) -> int:
        return len(self.sources)


# Stands for the slices whose backends are only known from the store.
STORED = ""


class Services:
    """Handler of Service events, and by `slices` of EndpointSlice events. A changed slice costs its own size."""

    KIND = "Service"

    def __init__(self, publisher: Publisher, numbering: Numbering) -> None:
        self._publisher = publisher
        self._numbering = numbering
        self._states: dict[Key, _State] = {}
        self.slices = Slices(publisher, self)

    def changed(self, item: objects.Service) -> None:
        try:
            facts = service_facts(item)
        except ObjectError as error:
            self._refuse(item.key, str(error))
            return
        self._publisher.problem(self.KIND, *item.key, None)
        state = self._states.setdefault(item.key, _State())
        had, has = state.facts is not None, facts is not None
        state.facts, state.kept = facts, False
        record = self._record(item.key, facts) if facts else None
        self._publisher.put(self._publisher.keys.service(*item.key), record)
        if had != has:
            self._publish(item.key, range(len(state.shards)))
        self._drop_if_empty(item.key)

    def deleted(self, key: Key) -> None:
        self._publisher.problem(self.KIND, *key, None)
        self._publisher.put(self._publisher.keys.service(*key), None)
        state = self._states.get(key)
        if state:
            state.facts, state.kept = None, False
            self._publish(key, range(len(state.shards)))
            self._drop_if_empty(key)

    def invalid(self, item: Invalid) -> None:
        self._refuse((item.namespace, item.name), item.reason)

    def _refuse(self, key: Key, reason: str) -> None:
        self._publisher.problem(self.KIND, *key, reason)
        state = self._states.setdefault(key, _State())
        if state.facts is None and not state.kept:
            state.kept = True
            self._publisher.keep(self._publisher.keys.service(*key))
            self._publish(key, range(len(state.shards)))

    def _drop_if_empty(self, key: Key) -> None:
        state = self._states[key]
        if state.facts is None and not state.kept and not state.sources:
            del self._states[key]

    def _record(self, key: Key, facts: ServiceFacts) -> Service:
        ports = tuple(
            ServicePort(
                id=self._numbering.take(service_port_content(*key, item.name)),
                name=item.name,
                protocol=item.protocol,
                port=item.port,
                node_port=item.node_port,
            )
            for item in facts.ports
        )
        return structs.replace(facts.record, ports=ports)

    def replace(self, key: Key, source: str, before: dict[bytes, Backend], after: dict[bytes, Backend]) -> None:
        """A slice (`source`) of the Service has other backends than before."""
        state = self._states.setdefault(key, _State())
        changed = {a for a in before.keys() | after.keys() if before.get(a) != after.get(a)}
        for address in changed:
            by_slice = state.sources.setdefault(address, {})
            if address in after:
                by_slice[source] = after[address]
            else:
                by_slice.pop(source, None)
            if not by_slice:
                del state.sources[address]
        self._reshard(key, state, changed)
        self._drop_if_empty(key)

    def _reshard(self, key: Key, state: _State, changed: set[bytes]) -> None:
        count = shard_count(state.size, SHARD, len(state.shards))
        if count != len(state.shards):
            before = len(state.shards)
            state.shards = [{} for _ in range(count)]
            changed = set(state.sources)
            self._place(state, changed)
            self._publish(key, range(max(before, count)))
            return
        self._publish(key, self._place(state, changed))

    def _place(self, state: _State, addresses: set[bytes]) -> set[int]:
        touched = set()
        for address in addresses:
            index = shard_of(address, len(state.shards))
            by_slice = state.sources.get(address)
            backend = merge([by_slice[name] for name in sorted(by_slice)]) if by_slice else None
            if state.shards[index].get(address) == backend:
                continue
            touched.add(index)
            if backend is None:
                del state.shards[index][address]
            else:
                state.shards[index][address] = backend
        return touched

    def _publish(self, key: Key, indices: range | set[int]) -> None:
        state = self._states[key]
        wanted = state.facts is not None or state.kept
        for index in indices:
            members = state.shards[index] if wanted and index < len(state.shards) else {}
            backends = tuple(members[address] for address in sorted(members))
            record = BackendShard(backends=backends) if backends else None
            self._publisher.put(self._publisher.keys.backends(*key, index), record)


def shard_of(address: bytes, count: int) -> int:
    return candidate(address, 0) & (count - 1)


class Slices:
    """Handler of EndpointSlice events."""

    KIND = "EndpointSlice"

    def __init__(self, publisher: Publisher, services: Services) -> None:
        self._publisher = publisher
        self._services = services
        self._known: dict[Key, tuple[str, dict[bytes, Backend]]] = {}  # slice → Service, backends
        self._stored: dict[Key, dict[bytes, Backend]] = {}  # Service → backends that the store had at the start
        self._standing_in: dict[Key, str] = {}  # slice not understood since the start → Service

    def load(self, stored: dict[Key, dict[bytes, Backend]]) -> None:
        """What the store holds, for slices that cannot be understood from the start on."""
        self._stored = stored

    def changed(self, item: objects.EndpointSlice) -> None:
        service = item.labels.get(SERVICE_NAME, "")
        try:
            backends = slice_backends(item)
        except ObjectError as error:
            self._refuse(item.key, service, str(error))
            return
        self._publisher.problem(self.KIND, *item.key, None)
        self._set(item.key, service, backends)
        self._stand_in(item.key, "")

    def deleted(self, key: Key) -> None:
        self._publisher.problem(self.KIND, *key, None)
        self._set(key, "", {})
        self._stand_in(key, "")

    def invalid(self, item: Invalid) -> None:
        self._refuse((item.namespace, item.name), item.labels.get(SERVICE_NAME, ""), item.reason)

    def _refuse(self, key: Key, service: str, reason: str) -> None:
        self._publisher.problem(self.KIND, *key, reason)
        if key not in self._known:
            self._stand_in(key, service)

    def _set(self, key: Key, service: str, backends: dict[bytes, Backend]) -> None:
        old_service, before = self._known.pop(key, ("", {}))
        if service:
            self._known[key] = service, backends
        if old_service and old_service != service:
            self._services.replace((key[0], old_service), key[1], before, {})
            before = {}
        if service:
            self._services.replace((key[0], service), key[1], before, backends)

    def _stand_in(self, key: Key, service: str) -> None:
        """Lets the stored backends of `service` stand in for the slice `key`; an empty service ends that."""
        before = self._standing_in.pop(key, "")
        if service:
            self._standing_in[key] = service
        for name in {before, service} - {""}:
            owner = key[0], name
            stored = self._stored.get(owner, {})
            needed = any(k[0] == key[0] and s == name for k, s in self._standing_in.items())
            self._services.replace(owner, STORED, stored if not needed else {}, stored if needed else {})
