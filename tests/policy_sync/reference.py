"""NetworkPolicy as its API documentation words it (networking.k8s.io/v1), without any cleverness; and the records, as
the kernel reads them. The tests compare both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.endpoint_sync.world import Object, World

from tidegate.records import ANY_SET, PeerShard, Protocol, Rules, Subject

NUMBERS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}


@dataclass(frozen=True)
class Packet:
    """From pod to pod (namespace/name), to a port; ICMP echo has none."""

    source: str
    target: str
    protocol: str  # TCP, UDP, SCTP, ICMP
    port: int = 0


class Documentation:
    """What the objects allow, by the book."""

    def __init__(self, namespaces: Sequence[Object], pods: Sequence[Object], policies: Sequence[Object]) -> None:
        self._namespaces = {
            n["metadata"]["name"]: {"kubernetes.io/metadata.name": n["metadata"]["name"], **n["metadata"]["labels"]}
            for n in namespaces
        }
        self._pods = {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p for p in pods}
        self._policies = policies

    def allows(self, packet: Packet) -> bool:
        if packet.source == packet.target:
            return True
        return self._direction("Egress", packet) and self._direction("Ingress", packet)

    def _direction(self, direction: str, packet: Packet) -> bool:
        """By default a pod is not isolated; once isolated, the union of what its policies' rules allow."""
        ingress = direction == "Ingress"
        subject = self._pods[packet.target if ingress else packet.source]
        peer = self._pods[packet.source if ingress else packet.target]
        isolating = [p for p in self._policies if direction in types(p["spec"]) and self._is_for(p, subject)]
        if not isolating:
            return True
        rules = [(p, rule) for p in isolating for rule in p["spec"].get(direction.lower()) or ()]
        return any(
            self._peers(rule.get("from" if ingress else "to"), p, peer) and self._ports(rule.get("ports"), packet)
            for p, rule in rules
        )

    def _is_for(self, policy: Object, pod: Object) -> bool:
        same = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
        return same and selects(policy["spec"]["podSelector"], pod["metadata"]["labels"])

    def _peers(self, peers: Sequence[Object] | None, policy: Object, pod: Object) -> bool:
        return not peers or any(self._peer(peer, policy, pod) for peer in peers)

    def _peer(self, peer: Object, policy: Object, pod: Object) -> bool:
        home = pod["metadata"]["namespace"]
        if "namespaceSelector" in peer:
            if not selects(peer["namespaceSelector"], self._namespaces[home]):
                return False
        elif home != policy["metadata"]["namespace"]:
            return False
        return selects(peer.get("podSelector", {}), pod["metadata"]["labels"])

    def _ports(self, ports: Sequence[Object] | None, packet: Packet) -> bool:
        return not ports or any(self._port(port, packet) for port in ports)

    def _port(self, port: Object, packet: Packet) -> bool:
        if port.get("protocol", "TCP") != packet.protocol:
            return False
        wanted: Any = port.get("port")
        if wanted is None:
            return True
        if isinstance(wanted, str):
            listed = self._pods[packet.target]["spec"]["containers"][0]["ports"]
            return any(
                (p["name"], p["protocol"], p["containerPort"]) == (wanted, packet.protocol, packet.port) for p in listed
            )
        return bool(wanted <= packet.port <= port.get("endPort", wanted))


def types(spec: Object) -> Sequence[str]:
    """Defaulting: Ingress always, Egress if there are egress rules."""
    given: Sequence[str] = spec.get("policyTypes") or (("Ingress", "Egress") if spec.get("egress") else ("Ingress",))
    return given


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    expressions = selector.get("matchExpressions") or ()
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(e, labels) for e in expressions
    )


def _holds(expression: Any, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", ())
    match expression["operator"]:
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise AssertionError(expression)


class Compiled:
    """What the records in the store allow, read as the kernel reads its maps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rules = {int(number): record for (number,), record in world.records(Rules).items()}
        self._subjects = {int(number): record.policy for (number,), record in world.records(Subject).items()}
        self._members: dict[int, set[int]] = {}
        for (number, _), shard in world.records(PeerShard).items():
            self._members.setdefault(int(number), set()).update(shard.members)

    def allows(self, packet: Packet) -> bool:
        if packet.source == packet.target:
            return True
        source, target = (self._world.identity_of(*pod.split("/")) for pod in (packet.source, packet.target))
        return self._direction(1, source, target, packet) and self._direction(0, target, source, packet)

    def _direction(self, direction: int, subject: int, peer: int, packet: Packet) -> bool:
        rules = self._rules[self._subjects[subject]]
        if not (rules.egress_isolated if direction else rules.ingress_isolated):
            return True
        covering = [
            rule
            for rule in rules.rules
            if rule.direction == direction and covers(rule.protocol, rule.port, rule.prefix, packet)
        ]
        return any(group == ANY_SET or peer in self._members.get(group, ()) for rule in covering for group in rule.sets)


def covers(protocol: int, port: int, prefix: int, packet: Packet) -> bool:
    if protocol == Protocol.ANY:
        return True
    return NUMBERS.get(packet.protocol) == protocol and packet.port >> (16 - prefix) == port >> (16 - prefix)
