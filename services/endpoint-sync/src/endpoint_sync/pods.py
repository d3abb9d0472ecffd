"""Pods: their identities and endpoint records."""

import time
from collections.abc import Callable
from functools import lru_cache

from endpoint_sync.identities import Identities
from endpoint_sync.normalise import Labels, NamedPorts, ObjectError, PodFacts, identity_of, pod_facts
from tidegate.kube import objects
from tidegate.kube.track import Key
from tidegate.kube.watch import Invalid
from tidegate.records import Endpoint, Identity, IdentityKeys, RecordError, decode
from tidegate.records.ids import identity_content
from tidegate.store.publisher import Publisher

KIND = "Pod"


@lru_cache(1 << 14)
def _identity(
    namespace: str, labels: Labels, ports: NamedPorts, label_keys: frozenset[str], port_names: frozenset[str]
) -> tuple[Identity, bytes]:
    """And its content; made once for pods that are alike."""
    identity = identity_of(namespace, labels, ports, label_keys, port_names)
    return identity, identity_content(identity)


class Pods:
    """Handler of pod events. A pod has its identity from its creation on, its endpoint from its first address on."""

    def __init__(
        self, publisher: Publisher, identities: Identities, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._publisher = publisher
        self._identities = identities
        self._clock = clock
        self._label_keys: frozenset[str] = frozenset()
        self._port_names: frozenset[str] = frozenset()
        self._facts: dict[Key, PodFacts] = {}
        self._numbers: dict[Key, int] = {}
        self._kept: dict[Key, int] = {}  # not understood since the start → identity of its stored endpoint
        self._by_address: dict[bytes, tuple[Key, ...]] = {}  # most often one

    def changed(self, item: objects.Pod) -> None:
        try:
            facts = pod_facts(item)
        except ObjectError as error:
            self._refuse(item.key, str(error))
            return
        self._publisher.problem(KIND, *item.key, None)
        if facts is None:
            self._forget(item.key)
        elif facts != self._facts.get(item.key):
            self._apply(item.key, facts)

    def deleted(self, key: Key) -> None:
        self._publisher.problem(KIND, *key, None)
        self._forget(key)

    def invalid(self, item: Invalid) -> None:
        self._refuse((item.namespace, item.name), item.reason)

    def follow_keys(self, keys: IdentityKeys) -> None:
        """Re-identifies where policies ask for other labels or port names. Costs a look at every pod."""
        wanted = frozenset(keys.label_keys), frozenset(keys.port_names)
        if wanted == (self._label_keys, self._port_names):
            return
        self._label_keys, self._port_names = wanted
        for key, facts in self._facts.items():
            if self._identify(key, facts):
                self._publish(key)

    def _refuse(self, key: Key, reason: str) -> None:
        self._publisher.problem(KIND, *key, reason)
        if key not in self._facts:  # nothing good was seen since the start: what the store has is the last good state
            self._publisher.keep(self._publisher.keys.endpoint(*key))
            self._keep_identity(key, reason)

    def _keep_identity(self, key: Key, reason: str) -> None:
        """The identity of a stored endpoint has a user as long as that endpoint stands."""
        if key in self._kept:
            return
        stored, keys = self._publisher.writer.stored, self._publisher.keys
        endpoint = stored.get(keys.endpoint(*key))
        if endpoint is None:
            return
        try:
            identity = stored.get(keys.identity(decode(Endpoint, endpoint).identity))
            if identity is not None:
                kept = decode(Identity, identity)
                self._kept[key] = self._identities.take(kept, identity_content(kept))
        except RecordError as error:
            self._publisher.problem(KIND, *key, f"{reason}; nor can its stored records be read: {error}")

    def _let_go(self, key: Key) -> None:
        number = self._kept.pop(key, None)
        if number is not None:
            self._identities.release(number, self._clock())

    def _apply(self, key: Key, facts: PodFacts) -> None:
        before = self._facts.get(key)
        self._facts[key] = facts
        self._identify(key, facts)
        self._let_go(key)
        affected = {key}
        old = before.addresses if before else ()
        for address in old:
            if address not in facts.addresses:
                affected.update(self._leave(address, key))
        for address in facts.addresses:
            sharing = self._by_address.get(address, ())
            if key not in sharing:
                self._by_address[address] = (*sharing, key)
            affected.update(sharing)
        for other in affected:
            self._publish(other)

    def _forget(self, key: Key) -> None:
        facts = self._facts.pop(key, None)
        self._let_go(key)
        self._publisher.put(self._publisher.keys.endpoint(*key), None)
        if facts is None:
            return
        self._identities.release(self._numbers.pop(key), self._clock())
        for address in facts.addresses:
            for other in self._leave(address, key):
                self._publish(other)

    def _leave(self, address: bytes, key: Key) -> tuple[Key, ...]:
        """Who else has the address."""
        rest = tuple(other for other in self._by_address[address] if other != key)
        if rest:
            self._by_address[address] = rest
        else:
            del self._by_address[address]
        return rest

    def _identify(self, key: Key, facts: PodFacts) -> bool:
        """Whether the pod has another identity now."""
        before = self._numbers.get(key)
        made = _identity(key[0], facts.labels, facts.ports, self._label_keys, self._port_names)
        after = self._identities.take(*made)
        self._numbers[key] = after
        if before is not None:
            self._identities.release(before, self._clock())
        return before != after

    def _publish(self, key: Key) -> None:
        facts = self._facts[key]
        addresses = tuple(address for address in facts.addresses if self._owner(address) == key)
        record = Endpoint(
            node=facts.node,
            identity=self._numbers[key],
            addresses=addresses,
            ports=dict(facts.ports),
            host_ports=facts.host_ports,
            workload_kind=facts.workload[0],
            workload_name=facts.workload[1],
            uid=facts.uid,
        )
        self._publisher.put(self._publisher.keys.endpoint(*key), record if addresses else None)

    def _owner(self, address: bytes) -> Key:
        """Who has the address: while a pod goes, a newer one may have it already."""

        def standing(key: Key) -> tuple[bool, str, Key]:
            facts = self._facts[key]
            return not facts.terminating, facts.created, key

        sharing = self._by_address[address]
        return sharing[0] if len(sharing) == 1 else max(sharing, key=standing)
