"""Services, their EndpointSlices, and the nodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import structs

from endpoint_sync.backends import Backends, read_backends
from endpoint_sync.capacity import Ledger
from endpoint_sync.normalise import (
    ObjectError,
    ServiceFacts,
    node_record,
    service_facts,
    slice_backends,
    slice_owner,
)
from tidegate.kube import objects
from tidegate.kube.events import Events, Notice
from tidegate.kube.track import Key
from tidegate.kube.watch import Invalid
from tidegate.records import Backend, Service, ServicePort
from tidegate.records.capacity import NOTHING, Amount, cost, cost_of_shapes
from tidegate.records.ids import Numbering, service_port_content
from tidegate.store.publisher import Publisher


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
    """One Service: whether it has frontends, and its backends."""

    record: Service | None = None
    uid: str = ""
    understood: bool = True
    kept: bool = False  # not understood since the start: its stored record stands for it
    cost: Amount = NOTHING
    refusal: str = ""  # why what is wanted is not published
    backends: Backends = field(default_factory=Backends)


# Stands for the slices whose backends are only known from the store.
STORED = ""
# Reasons of Events.
EXCEEDED, AVAILABLE = "TidegateCapacityExceeded", "TidegateCapacityAvailable"


@dataclass(frozen=True, slots=True)
class Published:
    """What the store holds of a Service."""

    record: Service | None
    cost: Amount
    shards: tuple[int, ...]


def published(key: Key, record: Service | None, shards: Mapping[int, bytes]) -> Published:
    return Published(record, cost(record, read_backends(key, shards).values()), tuple(shards))


class Services:
    """Handler of Service events, and by `slices` of EndpointSlice events. A changed slice costs its own size.

    What is known becomes what is published in `settle`, Service by Service: one that does not fit into the capacity
    keeps what is published of it.
    """

    KIND = "Service"

    def __init__(self, publisher: Publisher, numbering: Numbering, limit: Amount, events: Events) -> None:
        self._publisher = publisher
        self._numbering = numbering
        self._events = events
        self._ledger = Ledger(limit)
        self._states: dict[Key, _State] = {}
        self._dirty: set[Key] = set()
        self._refused: set[Key] = set()
        self._stored: dict[Key, Published] = {}  # when we began to lead, of those not published by us since
        self._unsettled: set[Key] = set()  # about which nothing was decided since then
        self.slices = Slices(publisher, self)

    def changed(self, item: objects.Service) -> None:
        state = self._state(item.key)
        try:
            facts = service_facts(item)
        except ObjectError as error:
            self._refuse(item.key, str(error))
            return
        record = self._record(item.key, facts) if facts else None
        if not state.understood:
            state.understood = True
            self._publisher.problem(self.KIND, *item.key, state.refusal or None, held_back=bool(state.refusal))
        if (state.record is None) != (record is None) or state.kept:
            state.backends.touch_all()
        state.record, state.uid, state.kept = record, item.metadata.uid, False

    def deleted(self, key: Key) -> None:
        state = self._state(key)
        self._publisher.problem(self.KIND, *key, None)
        self._events.forget(*key)
        state.record, state.kept, state.understood, state.refusal = None, False, True, ""
        state.backends.touch_all()

    def invalid(self, item: Invalid) -> None:
        self._refuse((item.namespace, item.name), item.reason)

    def _refuse(self, key: Key, reason: str) -> None:
        state = self._state(key)
        state.understood = False
        self._publisher.problem(self.KIND, *key, reason)
        if state.record is None and not state.kept:
            state.kept = True
            state.backends.touch_all()

    def _state(self, key: Key) -> _State:
        """Whoever asks for it changes it."""
        self._dirty.add(key)
        return self._states.setdefault(key, _State())

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

    def replace(self, key: Key, source: str, after: Mapping[bytes, Backend]) -> None:
        """A slice (`source`) of the Service has these backends now."""
        self._state(key).backends.replace(source, after)

    def take_over(self, stored: Mapping[Key, Published]) -> None:
        """This is published; from now on `settle` decides about everything that changes, and first about all."""
        self._stored = dict(stored)
        self._unsettled = self._states.keys() | stored.keys()
        self._ledger.reset({key: known.cost for key, known in stored.items()})
        self._refused.clear()
        self._events.forget_all()
        for key in self._unsettled:
            known = stored.get(key)
            self._state(key).backends.touch_all(max(known.shards, default=-1) + 1 if known else 0)

    def settle(self) -> None:
        """Publishes what fits: first what needs no more than it has, then what grows, in the order of the names."""
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            self._states[key].cost = self._cost(key)
        growing = {key for key in dirty if self._ledger.grows(key, self._states[key].cost)}
        for key in sorted(dirty - growing):
            self._publish(key)
        if self._ledger.freed:
            growing |= self._refused
            self._ledger.freed = False
        for key in sorted(growing):
            reason = self._ledger.lacking(key, self._states[key].cost)
            if reason:
                self._hold(key, f"does not fit: {reason}. Its last published state stays")
            else:
                self._publish(key)

    def _cost(self, key: Key) -> Amount:
        state = self._states[key]
        record = state.record
        if state.kept and key in self._stored:
            record = self._stored[key].record
        return cost_of_shapes(record, state.backends.shapes)

    def _hold(self, key: Key, reason: str) -> None:
        state = self._states[key]
        self._refused.add(key)
        if key in self._unsettled:
            self._unsettled.discard(key)
            self._restore(key)
        if state.refusal != reason:
            if not state.refusal:
                self._events.tell(Notice(*key, state.uid, EXCEEDED, reason))
            state.refusal = reason
            if state.understood:
                self._publisher.problem(self.KIND, *key, reason, held_back=True)

    def _restore(self, key: Key) -> None:
        """What the store holds of the Service is to stay; we may have led before, and wanted something else."""
        keys, known = self._publisher.keys, self._stored.get(key)
        stored = {keys.backends(*key, index) for index in known.shards} if known else set()
        for each in (
            keys.service(*key),
            *(keys.backends(*key, index) for index in sorted(self._states[key].backends.touched)),
        ):
            self._publisher.put(each, None)
        for each in (keys.service(*key), *sorted(stored)):
            self._publisher.keep(each)

    def _publish(self, key: Key) -> None:
        state = self._states[key]
        self._ledger.take(key, state.cost)
        self._refused.discard(key)
        self._unsettled.discard(key)
        if state.refusal:
            state.refusal = ""
            if state.record is not None:
                self._events.tell(Notice(*key, state.uid, AVAILABLE, "fits again, and is published", warning=False))
            if state.understood:
                self._publisher.problem(self.KIND, *key, None)
        where = self._publisher.keys.service(*key)
        if state.kept:
            self._publisher.keep(where)
        else:
            self._publisher.put(where, state.record)
            self._stored.pop(key, None)
        wanted = state.record is not None or state.kept
        for index, record in state.backends.touched_shards(wanted):
            self._publisher.put(self._publisher.keys.backends(*key, index), record)
        if not wanted and not state.backends.slices:
            del self._states[key]


class Slices:
    """Handler of EndpointSlice events."""

    KIND = "EndpointSlice"

    def __init__(self, publisher: Publisher, services: Services) -> None:
        self._publisher = publisher
        self._services = services
        self._known: dict[Key, str] = {}  # slice → Service
        self._stored: Mapping[Key, Mapping[int, bytes]] = {}  # Service → shards that the store had at the start
        self._standing_in: dict[Key, str] = {}  # slice not understood since the start → Service

    def load(self, stored: Mapping[Key, Mapping[int, bytes]]) -> None:
        """What the store holds, for slices that cannot be understood from the start on."""
        self._stored = stored

    def changed(self, item: objects.EndpointSlice) -> None:
        service = slice_owner(item.labels)
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
        self._refuse((item.namespace, item.name), slice_owner(item.labels), item.reason)

    def _refuse(self, key: Key, service: str, reason: str) -> None:
        self._publisher.problem(self.KIND, *key, reason)
        if key not in self._known:
            self._stand_in(key, service)

    def _set(self, key: Key, service: str, backends: dict[bytes, Backend]) -> None:
        before = self._known.pop(key, "")
        if service:
            self._known[key] = service
        if before and before != service:
            self._services.replace((key[0], before), key[1], {})
        if service:
            self._services.replace((key[0], service), key[1], backends)

    def _stand_in(self, key: Key, service: str) -> None:
        """Lets the stored backends of `service` stand in for the slice `key`; an empty service ends that."""
        before = self._standing_in.pop(key, "")
        if service:
            self._standing_in[key] = service
        for name in {before, service} - {""}:
            owner = key[0], name
            needed = any(k[0] == key[0] and s == name for k, s in self._standing_in.items())
            self._services.replace(owner, STORED, read_backends(owner, self._stored.get(owner, {})) if needed else {})
