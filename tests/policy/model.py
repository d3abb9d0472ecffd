"""NetworkPolicy as its API documentation words it (networking.k8s.io/v1), without any cleverness: the model that the
records and the programs are compared with. It knows objects as the API has them, and nothing of ours but audit."""

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Packet:
    """The first of a connection, on its way after Services have been resolved. Source and target are pods
    (`namespace/name`), nodes (`name`) or addresses; ICMP echo has no port."""

    source: str
    target: str
    protocol: str  # TCP, UDP, SCTP, ICMP
    port: int = 0
    family: int = 4


class Documentation:
    """What the objects allow, by the book."""

    def __init__(
        self,
        namespaces: Sequence[Object],
        pods: Sequence[Object],
        policies: Sequence[Object],
        nodes: Sequence[Object] = (),
        audited_nodes: Collection[str] = (),
    ) -> None:
        # "Every namespace has the label kubernetes.io/metadata.name."
        self._namespaces = {
            n["metadata"]["name"]: {"kubernetes.io/metadata.name": n["metadata"]["name"], **n["metadata"]["labels"]}
            for n in namespaces
        }
        self._pods = {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p for p in pods}
        self._nodes = {n["metadata"]["name"]: n for n in nodes}
        self._audited_nodes = audited_nodes
        self.audited = {
            n["metadata"]["name"]
            for n in namespaces
            if n["metadata"].get("annotations", {}).get("policy.tidegate.dev/audit") == "true"
        }
        self._policies = policies

    def allows(self, packet: Packet) -> bool:
        # "A pod cannot block access to itself."
        if packet.source == packet.target:
            return True
        return self.direction("Egress", packet) and self.direction("Ingress", packet)

    def passes(self, packet: Packet) -> bool:
        """Whether it is delivered, or leaves: allowed, or denied by ends in audit alone."""
        if packet.source == packet.target:
            return True
        return all(self.direction(each, packet) or self.audits(each, packet) for each in ("Egress", "Ingress"))

    def audits(self, direction: str, packet: Packet) -> bool:
        """Whether what policies deny passes at that end."""
        subject = self._pods.get(packet.target if direction == "Ingress" else packet.source)
        if subject is None:
            return False
        return subject["metadata"]["namespace"] in self.audited or subject["spec"]["nodeName"] in self._audited_nodes

    def allowing(self, direction: str, packet: Packet) -> set[str]:
        """The policies, as namespace/name, of which some rule allows it at that end."""
        ingress = direction == "Ingress"
        name, peer = (packet.target, packet.source) if ingress else (packet.source, packet.target)
        subject = self._pods.get(name)
        return {
            f"{p['metadata']['namespace']}/{p['metadata']['name']}"
            for p in (self._isolating(direction, subject) if subject else ())
            for rule in p["spec"].get(direction.lower()) or ()
            if self._peers(rule.get("from" if ingress else "to"), p, peer, packet.family)
            and self._ports(rule.get("ports"), packet)
        }

    def kind(self, packet: Packet) -> tuple[bool, ...]:
        """What is said of it at each end: whether that is isolated, whether some rule is for the peer, and some for the
        port, whether by name, and the verdict."""
        return (*self._kind("Egress", packet), *self._kind("Ingress", packet))

    def _kind(self, direction: str, packet: Packet) -> tuple[bool, ...]:
        ingress = direction == "Ingress"
        name, peer = (packet.target, packet.source) if ingress else (packet.source, packet.target)
        subject = self._pods.get(name)
        isolating = self._isolating(direction, subject) if subject else []
        rules = [(p, rule) for p in isolating for rule in p["spec"].get(direction.lower()) or ()]
        met = [rule for p, rule in rules if self._peers(rule.get("from" if ingress else "to"), p, peer, packet.family)]
        ports = [rule for _, rule in rules if self._ports(rule.get("ports"), packet)]
        named = any(isinstance(port.get("port"), str) for rule in met for port in rule.get("ports") or ())
        return bool(isolating), bool(met), bool(ports), named, self.direction(direction, packet)

    def _isolating(self, direction: str, subject: Object) -> list[Object]:
        return [p for p in self._policies if direction in types(p["spec"]) and self._is_for(p, subject)]

    def address(self, name: str, family: int) -> Address:
        if name in self._pods:
            listed = [entry["ip"] for entry in self._pods[name]["status"]["podIPs"]]
        elif name in self._nodes:
            listed = [entry["address"] for entry in self._nodes[name]["status"]["addresses"]]
        else:
            listed = [name]
        return next(found for found in map(ipaddress.ip_address, listed) if found.version == family)

    def direction(self, direction: str, packet: Packet) -> bool:
        """By default a pod is not isolated; once isolated, the union of what its policies' rules allow."""
        ingress = direction == "Ingress"
        name, peer = (packet.target, packet.source) if ingress else (packet.source, packet.target)
        subject = self._pods.get(name)
        if subject is None:
            return True  # policies select pods
        # "Traffic to and from the node where a Pod is running is always allowed": from it, as implementations have it,
        # so that probes work; the pod's own traffic to the node is egress like any other.
        if ingress and peer == subject["spec"]["nodeName"]:
            return True
        isolating = self._isolating(direction, subject)
        if not isolating:
            return True
        rules = [(p, rule) for p in isolating for rule in p["spec"].get(direction.lower()) or ()]
        return any(
            self._peers(rule.get("from" if ingress else "to"), p, peer, packet.family)
            and self._ports(rule.get("ports"), packet)
            for p, rule in rules
        )

    def _is_for(self, policy: Object, pod: Object) -> bool:
        same = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
        return same and selects(policy["spec"]["podSelector"], pod["metadata"].get("labels", {}))

    def _peers(self, peers: Sequence[Object] | None, policy: Object, name: str, family: int) -> bool:
        return not peers or any(self._peer(peer, policy, name, family) for peer in peers)

    def _peer(self, peer: Object, policy: Object, name: str, family: int) -> bool:
        if "ipBlock" in peer:
            return in_block(self.address(name, family), peer["ipBlock"])
        pod = self._pods.get(name)
        if pod is None:
            return False
        home = pod["metadata"]["namespace"]
        if "namespaceSelector" in peer:
            if not selects(peer["namespaceSelector"], self._namespaces[home]):
                return False
        elif home != policy["metadata"]["namespace"]:
            return False
        return selects(peer.get("podSelector", {}), pod["metadata"].get("labels", {}))

    def _ports(self, ports: Sequence[Object] | None, packet: Packet) -> bool:
        return not ports or any(self._port(port, packet) for port in ports)

    def _port(self, port: Object, packet: Packet) -> bool:
        if port.get("protocol", "TCP") != packet.protocol:
            return False
        wanted: Any = port.get("port")
        if wanted is None:
            return True
        if isinstance(wanted, str):
            # "A numerical or named port on a pod": of the pod that receives, in both directions.
            target = self._pods.get(packet.target)
            listed = target["spec"]["containers"][0]["ports"] if target else ()
            return any(
                (p["name"], p["protocol"], p["containerPort"]) == (wanted, packet.protocol, packet.port) for p in listed
            )
        return bool(wanted <= packet.port <= port.get("endPort", wanted))


def in_block(address: Address, block: Object) -> bool:
    """`except` values are taken out of the cidr; host bits mean nothing."""

    def holds(cidr: str) -> bool:
        return address in ipaddress.ip_network(cidr, strict=False)

    return holds(block["cidr"]) and not any(map(holds, block.get("except") or ()))


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
