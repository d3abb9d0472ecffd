"""Records of the policy log, in the form of GKE Dataplane V2's ("Use network policy logging", log format). Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from node_agent.view import View
from tidegate.records import Direction, Protocol
from tidegate.records.addresses import unpack_address

Row = dict[str, Any]

PROTOCOLS = {int(protocol): protocol.name.lower() for protocol in Protocol}
DIRECTIONS = ("ingress", "egress")
SECOND = 10**9  # ns


def write_time(nanoseconds: int) -> str:
    """RFC 3339, of a Unix time.

    >>> write_time(1592277037_993712906)
    '2020-06-16T03:10:37.993712906Z'
    """
    seconds, rest = divmod(nanoseconds, SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


class LogRecords:
    def __init__(self, node: str, view: View) -> None:
        self._node = node
        self._view = view

    def allowed(self, event: Mapping[str, Any], time: int) -> Row:
        """A connection that policies of one of its ends allow; `event` as struct event has it, `time` in Unix ns."""
        source, destination, protocol = event["source"], event["destination"], event["protocol"]
        identities = event["source_identity"], event["destination_identity"]
        direction = Direction(event["direction"])
        peer = (identities[1], destination) if direction == Direction.EGRESS else (identities[0], source)
        names = self._policies(event["policy"], direction, peer, protocol, event["destination_port"])
        connection = {
            "src_ip": unpack_address(source),
            "src_port": event["source_port"],
            "dest_ip": unpack_address(destination),
            "dest_port": event["destination_port"],
            "protocol": PROTOCOLS.get(protocol, str(protocol)),
            "direction": DIRECTIONS[direction],
        }
        policies = [
            {"kind": "NetworkPolicy", "name": name, "namespace": namespace}
            for namespace, _, name in (text.partition("/") for text in names)
        ]
        ends = {"src": self._end(source), "dest": self._end(destination)}
        return self._record(connection, "allow", {"policies": policies, **ends}, 1, time)

    def denied(self, key: Mapping[str, Any], count: int, time: int) -> Row:
        """Packets that policies of one end deny, and which pass in audit; `key` as struct denied_key has it."""
        source, destination, protocol = key["initiator"], key["responder"], key["protocol"]
        connection = {
            "src_ip": unpack_address(source),
            "dest_ip": unpack_address(destination),
            "dest_port": key["responder_port"],
            "protocol": PROTOCOLS.get(protocol, str(protocol)),
            "direction": DIRECTIONS[key["direction"]],
        }
        ends = {"src": self._end(source), "dest": self._end(destination)}
        return self._record(connection, "audit" if key["audited"] else "deny", ends, count, time)

    def lost(self, numbers: Mapping[str, int], time: int) -> Row:
        """What is not in the log: `allow` connections, `deny` and `audit` packets, records that were `unwritten`."""
        return {"lost": dict(numbers), "node_name": self._node, "timestamp": write_time(time)}

    def _record(self, connection: Row, disposition: str, more: Row, count: int, time: int) -> Row:
        return {
            "connection": connection,
            "disposition": disposition,
            **more,
            "count": count,
            "node_name": self._node,
            "timestamp": write_time(time),
        }

    def _policies(
        self, policy: int, direction: Direction, peer: tuple[int, bytes], protocol: int, port: int
    ) -> list[str]:
        """Those that allow the peer; none where its rules have gone since."""
        rules = self._view.policy.rules_of(policy)
        found: set[str] = set()
        for rule in rules.rules if rules else ():
            if rules and rule.direction == direction and rule.covers(protocol, port):
                for group, names in rules.by_policies(rule):
                    if not found.issuperset(names) and self._view.policy.is_in(group, *peer):
                        found.update(names)
        return sorted(found)

    def _end(self, address: bytes) -> Row:
        """Who has the address: a pod, a node, or somebody outside the cluster."""
        owner = self._view.endpoints.owner(address)
        if owner is not None:
            key, pod = owner
            namespace, _, name = key.partition("/")
            row = {"pod_name": name, "pod_namespace": namespace, "namespace": namespace}
            if pod.workload_kind:
                row |= {"workload_kind": pod.workload_kind, "workload_name": pod.workload_name}
            return row
        node = self._view.endpoints.node_of(address)
        return {"node_name": node} if node else {"instance": unpack_address(address)}
