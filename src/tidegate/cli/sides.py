"""What the policies on both sides of a connection say to it, as the programs judge it. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from tidegate.cli.cluster import Cluster, Name
from tidegate.cli.ends import Client, node_with
from tidegate.cli.verdicts import Ground, Peer, judge
from tidegate.records import IDENTITY_NODE, IDENTITY_REMOTE_NODE, IDENTITY_WORLD, Direction, Endpoint, Node
from tidegate.records.addresses import is_ipv4, unpack_address

REASONS = {Direction.EGRESS: "POLICY_EGRESS", Direction.INGRESS: "POLICY_INGRESS"}


@dataclass(frozen=True, slots=True)
class Side:
    """What the rules of one end say; `reason` is that of the drop, one of reasons.h, where they deny and it does not
    pass; `audit` says why it does."""

    rules: str
    allowed: bool
    reason: str
    why: str
    grounds: tuple[Ground, ...] = ()
    audit: str = ""

    @property
    def passes(self) -> bool:
        return self.allowed or bool(self.audit)

    @property
    def text(self) -> str:
        if self.audit:
            return f"{self.rules}: denied, but passes: {self.audit}; {self.why}"
        return f"{self.rules}: {'allowed' if self.allowed else 'denied'}: {self.why}"


class Sides:
    def __init__(
        self, cluster: Cluster, client: Client, source: bytes, protocol: int, audited_nodes: Collection[str] = ()
    ) -> None:
        """`audited_nodes`: of which their agents say that the whole node is in audit."""
        self._audited_nodes = audited_nodes
        self._cluster = cluster
        self._client = client
        self._source = source
        self._protocol = protocol

    def judge(self, address: bytes, port: int, node: str, masqueraded: bool) -> list[Side]:
        """For a connection to `address` that meets our programs at `node`; `masqueraded`: with its address."""
        if address == self._source:
            return []
        found = []
        if self._client.kind == "pod" and node == self._client.node:
            found += self.egress(address, port)
        pod = self.pod_with(address)
        return found + ([self._ingress(*pod, port, node, masqueraded)] if pod else [])

    def who(self, address: bytes) -> str:
        return self._cluster.addresses().get(address, unpack_address(address))

    def pod_with(self, address: bytes) -> tuple[Name, Endpoint] | None:
        pods = self._cluster.all(Endpoint).items()
        return next(((name, pod) for name, pod in pods if address in pod.addresses), None)

    def egress(self, address: bytes, port: int) -> list[Side]:
        pod = self.pod_with(self._source)
        if pod is None:
            return []
        return [self._side(*pod, self._peer(address, pod[1].node), Direction.EGRESS, port)]

    def _ingress(self, name: Name, pod: Endpoint, port: int, node: str, masqueraded: bool) -> Side:
        if self._client.kind == "node" and pod.node == self._client.node and not masqueraded:
            return Side(f"ingress of {'/'.join(name)}", True, "", "its own node always reaches it")
        peer = self._masquerading(node) if masqueraded else self._peer(self._source, pod.node)
        found = self._side(name, pod, peer, Direction.INGRESS, port)
        seen = f"{found.rules}, as a connection of {node}" if masqueraded else found.rules
        return replace(found, rules=seen)

    def _masquerading(self, node: str) -> Peer:
        """A client that is known by that node's address."""
        own = self._cluster.all(Node).get((node,), Node())
        address = next((one for one in own.addresses if is_ipv4(one) == is_ipv4(self._source)), self._source)
        return Peer(IDENTITY_REMOTE_NODE, address)

    def _side(self, name: Name, pod: Endpoint, peer: Peer, direction: Direction, port: int) -> Side:
        verdict = judge(self._cluster, pod.identity, peer, direction, self._protocol, port)
        rules = f"{'ingress' if direction == Direction.INGRESS else 'egress'} of {'/'.join(name)}"
        # Without policies that isolate it, a pod that is denied something is closed still.
        audit = self._audit(name[0], pod.node) if not verdict.allowed and verdict.policies else ""
        reason = "" if verdict.allowed or audit else REASONS[direction]
        return Side(rules, verdict.allowed, reason, verdict.why, verdict.grounds, audit)

    def _audit(self, namespace: str, node: str) -> str:
        if namespace in self._cluster.audited:
            return f"namespace {namespace} is in audit"
        return f"node {node} is in audit" if node in self._audited_nodes else ""

    def _peer(self, address: bytes, seen_by: str) -> Peer:
        pod = self.pod_with(address)
        if pod is not None:
            return Peer(pod[1].identity, address)
        owner = node_with(self._cluster, address)
        if owner is None:
            return Peer(IDENTITY_WORLD, address)
        return Peer(IDENTITY_NODE if owner == seen_by else IDENTITY_REMOTE_NODE, address)
