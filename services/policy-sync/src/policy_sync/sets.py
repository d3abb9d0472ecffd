"""Sets of identities and their members, kept up to date by the change of one identity or one namespace."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from policy_sync.selectors import PeerSelector, SetSpec, set_text
from tidegate.records import Identity, PeerSet, PeerShard
from tidegate.records.ids import Numbering, set_content
from tidegate.records.shards import shard_count, spread
from tidegate.store.publisher import Publisher

SHARD = 200  # members: about 1 KB

NAME_LABEL = "kubernetes.io/metadata.name"


class Directory:
    """The identities there are, and the labels of their namespaces."""

    def __init__(self) -> None:
        self.identities: dict[int, Identity] = {}
        self.by_namespace: dict[str, set[int]] = {}
        self._namespaces: dict[str, dict[str, str]] = {}

    def add(self, number: int, identity: Identity) -> None:
        self.identities[number] = identity
        self.by_namespace.setdefault(identity.namespace, set()).add(number)

    def remove(self, number: int) -> Identity:
        identity = self.identities.pop(number)
        members = self.by_namespace[identity.namespace]
        members.discard(number)
        if not members:
            del self.by_namespace[identity.namespace]
        return identity

    def label_namespace(self, name: str, labels: dict[str, str] | None) -> bool:
        """None: the namespace is gone. Whether its labels are others now."""
        before = self.namespace_labels(name)
        if labels is None:
            self._namespaces.pop(name, None)
        else:
            self._namespaces[name] = labels
        return before != self.namespace_labels(name)

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        # Every namespace has this label (API documentation); of one that we do not know yet it is all we know.
        return {**self._namespaces.get(name, {}), NAME_LABEL: name}

    def selects(self, peer: PeerSelector, identity: Identity) -> bool:
        return self.selects_namespace(peer, identity.namespace) and self._selects_pod(peer, identity)

    def selects_namespace(self, peer: PeerSelector, namespace: str) -> bool:
        if peer.namespace:
            return peer.namespace == namespace
        return peer.namespaces.matches(self.namespace_labels(namespace))

    def _selects_pod(self, peer: PeerSelector, identity: Identity) -> bool:
        if peer.port_name and identity.ports.get(peer.port_name) != peer.port:
            return False
        return peer.pods.matches(identity.labels)

    def select(self, spec: SetSpec) -> set[int]:
        found: set[int] = set()
        for peer in spec:
            namespaces: Iterable[str] = (peer.namespace,) if peer.namespace else tuple(self.by_namespace)
            for namespace in namespaces:
                if self.selects_namespace(peer, namespace):
                    found.update(
                        number
                        for number in self.by_namespace.get(namespace, ())
                        if self._selects_pod(peer, self.identities[number])
                    )
        return found


@dataclass
class _Set:
    spec: SetSpec
    users: int = 0
    members: set[int] = field(default_factory=set)
    shards: int = 1


class Sets:
    """The sets of identities that rules use. A set exists from the first `take` to the last `release`."""

    def __init__(self, publisher: Publisher, directory: Directory, numbering: Numbering) -> None:
        self._publisher = publisher
        self._directory = directory
        self._numbering = numbering
        self._sets: dict[int, _Set] = {}
        self._numbers: dict[SetSpec, int] = {}
        self._of_namespace: dict[str, set[int]] = {}  # sets with a selector of that one namespace
        self._of_namespaces: set[int] = set()  # sets with a selector of namespaces by label

    def number(self, spec: SetSpec) -> int:
        """The number that the set has, or would have."""
        known = self._numbers.get(spec)
        return known if known is not None else self._numbering.take(set_content(set_text(spec)))

    def size(self, spec: SetSpec) -> int:
        """How many members it has, or would have."""
        number = self._numbers.get(spec)
        return len(self._sets[number].members) if number is not None else len(self._directory.select(spec))

    def take(self, spec: SetSpec) -> int:
        number = self.number(spec)
        if number not in self._sets:
            self._create(number, spec)
        self._sets[number].users += 1
        return number

    def release(self, number: int) -> None:
        state = self._sets[number]
        state.users -= 1
        if state.users:
            return
        del self._sets[number], self._numbers[state.spec]
        self._numbering.release(number)
        for peer in state.spec:
            self._index(peer).discard(number)
        for shard in range(state.shards):
            self._publisher.put(self._publisher.keys.peers(number, shard), None)
        self._publisher.put(self._publisher.keys.peer_set(number), None)

    def _create(self, number: int, spec: SetSpec) -> None:
        state = self._sets[number] = _Set(spec, members=self._directory.select(spec))
        self._numbers[spec] = number
        for peer in spec:
            self._index(peer).add(number)
        self._publisher.put(self._publisher.keys.peer_set(number), PeerSet(text=set_text(spec)))
        state.shards = shard_count(len(state.members), SHARD)
        self._publish(number, range(state.shards))

    def _index(self, peer: PeerSelector) -> set[int]:
        return self._of_namespace.setdefault(peer.namespace, set()) if peer.namespace else self._of_namespaces

    def _candidates(self, namespace: str) -> set[int]:
        return self._of_namespace.get(namespace, set()) | self._of_namespaces

    def identity_added(self, number: int, identity: Identity) -> None:
        for name in self._candidates(identity.namespace):
            state = self._sets[name]
            if any(self._directory.selects(peer, identity) for peer in state.spec):
                self._update(name, {number}, set())

    def identity_removed(self, number: int, identity: Identity) -> None:
        for name in self._candidates(identity.namespace):
            if number in self._sets[name].members:
                self._update(name, set(), {number})

    def namespace_changed(self, namespace: str) -> None:
        """Its labels are others now: its identities enter and leave the sets that select namespaces by label."""
        local = self._directory.by_namespace.get(namespace, set())
        if not local:
            return
        for name in list(self._of_namespaces):
            state = self._sets[name]
            now = {
                number
                for number in local
                if any(self._directory.selects(peer, self._directory.identities[number]) for peer in state.spec)
            }
            before = state.members & local
            if now != before:
                self._update(name, now - before, before - now)

    def _update(self, name: int, added: set[int], removed: set[int]) -> None:
        state = self._sets[name]
        state.members |= added
        state.members -= removed
        before = state.shards
        state.shards = shard_count(len(state.members), SHARD, before)
        if state.shards != before:
            self._publish(name, range(max(before, state.shards)))
        else:
            self._publish(name, {number & (before - 1) for number in added | removed})

    def _publish(self, name: int, shards: Iterable[int]) -> None:
        state = self._sets[name]
        wanted = set(shards)
        affected = (number for number in state.members if number & (state.shards - 1) in wanted)
        spreaded = spread(affected, state.shards, lambda number: number)
        for shard in wanted:
            members = tuple(sorted(spreaded.get(shard, ()))) if shard < state.shards else ()
            record = PeerShard(members=members) if members else None
            self._publisher.put(self._publisher.keys.peers(name, shard), record)
