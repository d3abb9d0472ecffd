"""Who has which address: pods of the cluster, nodes, and this node's own addresses. Pure."""

from collections.abc import Iterable, KeysView, Mapping
from itertools import filterfalse
from sys import intern

import msgspec

from node_agent.entries import Entries
from node_agent.policy import PolicyView
from node_agent.table import Tables
from tidegate.records import Endpoint, Node
from tidegate.records.addresses import is_ipv4

Key = str  # namespace/name of a pod

UID_MASK = (1 << 30) - 1  # what fits into one digit of a number: it takes 16 bytes less


class Group(msgspec.Struct, gc=False):
    """What the pods whose records name the identity have in common."""

    identity: int
    entry: bytes  # of a pod elsewhere that is judged by it
    concerned: dict[Key, None]  # by its rules: those of this node, and those that are not judged by it yet
    count: int = 0  # of all pods


class Pod(msgspec.Struct, gc=False):
    """What is kept of an Endpoint record. There are as many as pods in the cluster, so what several have in common is
    one object for all of them, and nothing here is the garbage collector's matter."""

    group: Group
    node: str
    workload_kind: str
    workload_name: str
    uid: int  # a hash of it, of 30 bits: it is compared with that of the next record of the name
    packed: bytes  # its addresses, one behind the other: where it is one, the very key of the map

    @property
    def addresses(self) -> tuple[bytes, ...]:
        packed = self.packed
        return (packed,) if len(packed) == 16 else tuple(packed[at : at + 16] for at in range(0, len(packed), 16))


class EndpointView:
    """Endpoint and Node records, and the host's routes, as entries of the `endpoints` map.

    A pod whose new identity has no rules yet keeps the identity that it has in the map; a new pod of this node is
    closed, a new pod elsewhere is left out (it counts as the world) until its rules stand.
    """

    def __init__(self, own: str, tables: Tables, entries: Entries, policy: PolicyView) -> None:
        self._own = own
        self._tables = tables
        self._entries = entries
        self._policy = policy
        self._pods: dict[Key, Pod] = {}
        self._ours: dict[Key, Endpoint] = {}  # those on this node
        self._holders: dict[bytes, Key] = {}  # of those who say that an address is theirs, the latest
        self._earlier: dict[bytes, list[Key]] = {}  # the others, where there are any
        self._judged: dict[Key, int | None] = {}  # by which the pod is judged now, if not by its record's identity
        self._groups: dict[int, Group] = {}
        self._held: dict[Key, int] = {}  # identity of which this pod of ours has a share in the policy view
        self._nodes: dict[str, Node] = {}
        self.node_changes = 0  # so often has a node been another
        self._nodes_at: dict[bytes, dict[str, None]] = {}  # address → nodes that have it
        self._devices: dict[bytes, int] = {}
        self._addresses: frozenset[bytes] = frozenset()
        self._recalling = bool(len(tables.have("endpoints")))

    @property
    def local(self) -> Iterable[tuple[Key, Endpoint]]:
        return self._ours.items()

    @property
    def keys(self) -> KeysView[Key]:
        return self._pods.keys()

    def set_endpoint(self, key: Key, record: Endpoint | None) -> Pod | None:
        """Returns what was known of the pod before."""
        before = self._pods.get(key)
        if record is None:
            if before is not None:
                self._remove(key, before)
            return before
        uid, packed, judged = hash(record.uid) & UID_MASK, b"".join(record.addresses), None
        if before is not None:
            if before.uid == uid:  # another pod of that name is a new one
                judged = self._identity(key, before)
            self._unindex(key, before, packed)
        group = self._groups.get(record.identity)
        if group is None:
            entry = self._entries.pod(record.identity, 0)
            group = self._groups[record.identity] = Group(record.identity, entry, {})
        kind, name = intern(record.workload_kind), intern(record.workload_name)
        pod = self._pods[key] = Pod(group, intern(record.node), kind, name, uid, packed)
        group.count += 1
        if record.node == self._own:
            self._ours[key] = record
        for address in record.addresses:
            holder = self._holders.setdefault(address, key)
            if holder is not key:
                self._claim(address, key, holder)
        if judged is None and self._recalling:
            judged = self._recall(pod)
        if judged == record.identity:
            self._judged.pop(key, None)
        else:
            self._judged[key] = judged
        self._refresh(key, pod)
        return before

    def _remove(self, key: Key, pod: Pod) -> None:
        del self._pods[key]
        self._unindex(key, pod, b"")
        self._judged.pop(key, None)
        self._hold(key, None)

    def _claim(self, address: bytes, key: Key, holder: Key) -> None:
        if holder == key or key in self._earlier.get(address, ()):
            return
        self._earlier.setdefault(address, []).append(holder)
        self._holders[address] = key

    def _unclaim(self, address: bytes, key: Key) -> None:
        earlier = self._earlier.get(address, [])
        if key in earlier:
            earlier.remove(key)
        elif earlier:
            self._holders[address] = earlier.pop()
        else:
            self._holders.pop(address, None)
        if not earlier:
            self._earlier.pop(address, None)

    def _unindex(self, key: Key, pod: Pod, packed: bytes) -> None:
        """`packed`: the addresses that it has from now on."""
        self._ours.pop(key, None)
        pod.group.concerned.pop(key, None)
        pod.group.count -= 1
        if not pod.group.count:
            del self._groups[pod.group.identity]
            self._policy.refused.pop(pod.group.identity, None)
        if pod.packed == packed:
            return
        kept = {packed[at : at + 16] for at in range(0, len(packed), 16)}
        for address in set(pod.addresses) - kept:  # a record may name one twice
            self._unclaim(address, key)
            self._publish(address)

    def recall_no_more(self) -> None:
        """From now on an address in the map says nothing of a pod that is new: it may have been another's."""
        self._recalling = False

    def _recall(self, pod: Pod) -> int | None:
        """After a restart: the identity that the map gives this pod, if it has the same device as then."""
        found = None
        for address in pod.addresses:
            value = self._tables.have("endpoints").get(address)
            known = self._entries.pod_of(value) if value is not None else None
            device = self._devices.get(address, 0) if pod.node == self._own else 0
            if known is not None and known[1] == device:
                found = known[0]
        return found

    def _identity(self, key: Key, pod: Pod) -> int | None:
        """By which it is judged now."""
        return self._judged.get(key, pod.group.identity)

    def _refresh(self, key: Key, pod: Pod) -> None:
        local, identity = key in self._ours, pod.group.identity
        if self._policy.admit(identity, _namespace(key)) if local else self._policy.judged(identity):
            self._judged.pop(key, None)
        if local or key in self._judged:
            pod.group.concerned[key] = None
        else:
            pod.group.concerned.pop(key, None)
        if local or key in self._held:
            self._hold(key, self._identity(key, pod) if local else None)
        for address in pod.addresses:
            if self._holders[address] == key:
                self._tables.want("endpoints", address, self._pod(key, pod, address))

    def judged(self, identity: int) -> None:
        """The rules of the identity may stand now."""
        group = self._groups.get(identity)
        for key in [*group.concerned] if group is not None else ():
            self._refresh(key, self._pods[key])

    def _hold(self, key: Key, identity: int | None) -> None:
        before = self._held.get(key)
        if before == identity:
            return
        if identity is not None:
            self._policy.take(identity, _namespace(key))
            self._held[key] = identity
        else:
            del self._held[key]
        if before is not None:
            self._policy.release(before)

    def set_node(self, name: str, record: Node | None) -> None:
        self.node_changes += 1
        before = self._nodes.pop(name, None)
        for address in before.addresses if before else ():
            self._leave(address, name)
        if record is not None:
            self._nodes[name] = record
            for address in record.addresses:
                self._nodes_at.setdefault(address, {})[name] = None
        for address in {*(before.addresses if before else ()), *(record.addresses if record else ())}:
            self._publish(address)

    def _leave(self, address: bytes, name: str) -> None:
        there = self._nodes_at.get(address, {})
        there.pop(name, None)  # a record may name an address twice
        if not there:
            self._nodes_at.pop(address, None)

    def owner(self, address: bytes) -> tuple[Key, Pod] | None:
        """The pod that has the address."""
        key = self._holders.get(address)
        return (key, self._pods[key]) if key is not None else None

    def node_of(self, address: bytes) -> str | None:
        """The node that has the address."""
        if address in self._addresses or address in self._own_reported():
            return self._own
        return next(iter(self._nodes_at.get(address, ())), None)

    def pods_of(self, identity: int) -> list[Key]:
        """Pods of this node that have, or should have, the identity."""
        group = self._groups.get(identity)
        return sorted(key for key in group.concerned if key in self._ours) if group is not None else []

    def is_held(self, address: bytes) -> bool:
        """Whether a pod or a node has the address."""
        return address in self._holders or address in self._addresses or address in self._nodes_at

    def is_for_pods(self, address: bytes) -> bool:
        """Whether the address lies in some node's range for pods."""
        number = int.from_bytes(address, "big")
        ranges = (pod_cidr for node in self._nodes.values() for pod_cidr in node.pod_cidrs)
        return any((number ^ int.from_bytes(start, "big")) >> (128 - prefix) == 0 for start, prefix in ranges)

    @property
    def nodes(self) -> Mapping[str, Node]:
        return self._nodes

    @property
    def own_addresses(self) -> tuple[bytes, bytes]:
        """This node's first address of each family, as the API knows it; zeroes where it knows none."""
        reported = self._own_reported()
        ipv4 = next(filter(is_ipv4, reported), bytes(16))
        return ipv4, next(filterfalse(is_ipv4, reported), bytes(16))

    def set_host(self, devices: Mapping[bytes, int], addresses: frozenset[bytes]) -> None:
        """The node's host routes (address → ifindex of a pod's device) and own addresses."""
        if (devices, addresses) == (self._devices, self._addresses):
            return
        changed = {a for a in self._devices.keys() | devices.keys() if self._devices.get(a) != devices.get(a)}
        changed |= self._addresses ^ addresses
        self._devices, self._addresses = dict(devices), addresses
        for address in changed:
            self._publish(address)

    def _publish(self, address: bytes) -> None:
        self._tables.want("endpoints", address, self._value(address))

    def _value(self, address: bytes) -> bytes | None:
        key = self._holders.get(address)
        if key is not None:
            return self._pod(key, self._pods[key], address)
        if address in self._addresses or address in self._own_reported():
            return self._entries.node(own=True)
        # Who is at our own reported addresses alone has been told above.
        return self._entries.node(own=False) if address in self._nodes_at else None

    def _pod(self, key: Key, pod: Pod, address: bytes) -> bytes | None:
        if key not in self._ours and key not in self._judged:
            return pod.group.entry
        identity = self._identity(key, pod)
        if key in self._ours:
            return self._entries.pod(identity, self._devices.get(address, 0))
        return self._entries.pod(identity, 0) if identity is not None else None

    def _own_reported(self) -> tuple[bytes, ...]:
        own = self._nodes.get(self._own)
        return own.addresses if own else ()


def _namespace(key: Key) -> str:
    return key.partition("/")[0]
