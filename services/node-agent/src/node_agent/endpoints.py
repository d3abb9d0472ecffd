"""Who has which address: pods of the cluster, nodes, and this node's own addresses. Pure."""

from collections.abc import Iterable, KeysView, Mapping
from itertools import filterfalse

from node_agent.entries import Entries
from node_agent.packed import Packed
from node_agent.policy import PolicyView
from node_agent.table import Tables
from tidegate.records import Endpoint, Node
from tidegate.records.addresses import is_ipv4

Key = tuple[str, str]


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
        self._endpoints: Packed[Key, Endpoint] = Packed(Endpoint)
        self._ours: dict[Key, Endpoint] = {}  # those on this node
        self._holders: dict[bytes, Key] = {}  # of those who say that an address is theirs, the latest
        self._earlier: dict[bytes, list[Key]] = {}  # the others, where there are any
        self._identity: dict[Key, int] = {}  # by which the pod is judged now
        self._by_identity: dict[int, set[Key]] = {}  # record's identity → pods
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
        return self._endpoints.keys()

    def set_endpoint(self, key: Key, record: Endpoint | None, value: bytes | None) -> Endpoint | None:
        """`value`: the record as it lies in etcd. Returns what was known of the pod before."""
        before = self._endpoints.get(key)
        self._endpoints.set(key, value)
        self._ours.pop(key, None)
        if before is not None:
            self._unindex(key, before, record)
        if record is None or (before is not None and before.uid != record.uid):
            self._identity.pop(key, None)  # another pod of that name is a new one
        if record is None:
            self._hold(key, None)
            return before
        if record.node == self._own:
            self._ours[key] = record
        self._by_identity.setdefault(record.identity, set()).add(key)
        for address in record.addresses:
            self._claim(address, key)
        if key not in self._identity and self._recalling:
            self._recall(key, record)
        self._refresh(key, record)
        return before

    def _claim(self, address: bytes, key: Key) -> None:
        holder = self._holders.get(address)
        if holder == key or key in self._earlier.get(address, ()):
            return
        if holder is not None:
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

    def _unindex(self, key: Key, before: Endpoint, after: Endpoint | None) -> None:
        members = self._by_identity[before.identity]
        members.discard(key)
        if not members:
            del self._by_identity[before.identity]
            self._policy.refused.pop(before.identity, None)
        for address in set(before.addresses):  # a record may name one twice
            if after is not None and address in after.addresses:
                continue
            self._unclaim(address, key)
            self._publish(address)

    def recall_no_more(self) -> None:
        """From now on an address in the map says nothing of a pod that is new: it may have been another's."""
        self._recalling = False

    def _recall(self, key: Key, record: Endpoint) -> None:
        """After a restart: the identity that the map gives this pod, if it has the same device as then."""
        for address in record.addresses:
            value = self._tables.have("endpoints").get(address)
            pod = self._entries.pod_of(value) if value is not None else None
            device = self._devices.get(address, 0) if record.node == self._own else 0
            if pod is not None and pod[1] == device:
                self._identity[key] = pod[0]

    def _refresh(self, key: Key, record: Endpoint) -> None:
        local, identity = record.node == self._own, record.identity
        if self._policy.admit(identity, key[0]) if local else self._policy.judged(identity):
            self._identity[key] = identity
        self._hold(key, self._identity.get(key) if local else None)
        for address in record.addresses:
            self._publish(address)

    def judged(self, identity: int) -> None:
        """The rules of the identity may stand now."""
        for key in self._by_identity.get(identity, ()):
            self._refresh(key, self._endpoints[key])

    def _hold(self, key: Key, identity: int | None) -> None:
        before = self._held.get(key)
        if before == identity:
            return
        if identity is not None:
            self._policy.take(identity, key[0])
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

    def endpoint(self, key: Key) -> Endpoint | None:
        return self._endpoints.get(key)

    def owner(self, address: bytes) -> tuple[Key, Endpoint] | None:
        """The pod that has the address."""
        key = self._holders.get(address)
        return (key, self._endpoints[key]) if key is not None else None

    def node_of(self, address: bytes) -> str | None:
        """The node that has the address."""
        if address in self._addresses or address in self._own_reported():
            return self._own
        return next(iter(self._nodes_at.get(address, ())), None)

    def pods_of(self, identity: int) -> list[Key]:
        """Pods of this node that have, or should have, the identity."""
        return sorted(key for key in self._by_identity.get(identity, ()) if key in self._ours)

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
            identity = self._identity.get(key)
            local = key in self._ours
            if identity is None and not local:
                return None
            return self._entries.pod(identity, self._devices.get(address, 0) if local else 0)
        if address in self._addresses or address in self._own_reported():
            return self._entries.node(own=True)
        # Who is at our own reported addresses alone has been told above.
        return self._entries.node(own=False) if address in self._nodes_at else None

    def _own_reported(self) -> tuple[bytes, ...]:
        own = self._nodes.get(self._own)
        return own.addresses if own else ()
