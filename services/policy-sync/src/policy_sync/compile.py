"""A NetworkPolicy (networking.k8s.io/v1) in the form that rules are made of. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from policy_sync.ipblocks import Block, ip_block
from policy_sync.portblocks import blocks
from policy_sync.selectors import PeerSelector, PolicyError, Selector, selector
from tidegate.kube import objects
from tidegate.records import Protocol

PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}

ALL = Selector()

# Blocks of ports in one policy: a node's map holds 65,536 rules (MAPS in bpf/include/maps.h), a record about 20,000.
MAX_BLOCKS = 8192
# CIDRs in one policy, exceptions included: they stand in one node's map beside those of others, and in one record.
MAX_CIDRS = 8192


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports low … high of a protocol, or the port of a name (then low and high are 0)."""

    protocol: int
    low: int = 0
    high: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """Pods of `peers` and addresses of `blocks`; `peers` None: everybody. `ports` None: everything, also what has no
    ports."""

    peers: tuple[PeerSelector, ...] | None
    ports: tuple[Ports, ...] | None
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What a NetworkPolicy says. A direction that it does not isolate is None."""

    namespace: str
    name: str
    pods: Selector
    ingress: tuple[PolicyRule, ...] | None
    egress: tuple[PolicyRule, ...] | None

    @property
    def rules(self) -> tuple[PolicyRule, ...]:
        return (*(self.ingress or ()), *(self.egress or ()))

    @property
    def label_keys(self) -> frozenset[str]:
        """Keys of pod labels that it selects on."""
        keys = self.pods.keys
        for rule in self.rules:
            for peer in rule.peers or ():
                keys |= peer.keys
        return keys

    @property
    def port_names(self) -> frozenset[str]:
        return frozenset(port.name for rule in self.rules for port in rule.ports or () if port.name)

    def selects(self, namespace: str, labels: dict[str, str]) -> bool:
        return namespace == self.namespace and self.pods.matches(labels)


def compile_policy(source: objects.NetworkPolicy) -> Policy:
    """Raises PolicyError for what the API server should have refused."""
    spec = source.spec
    types = spec.policy_types
    if not types:
        # API documentation: without policyTypes, Ingress always, Egress if there are egress rules.
        types = ("Ingress", "Egress") if spec.egress else ("Ingress",)
    for kind in types:
        if kind not in ("Ingress", "Egress"):
            raise PolicyError(f"spec.policyTypes: unknown type {kind!r}")
    namespace = source.metadata.namespace
    ingress = [
        _rule(rule.from_, namespace, f"ingress[{i}].from", _ports(rule.ports, f"ingress[{i}]"))
        for i, rule in enumerate(spec.ingress or ())
    ]
    egress = [
        _rule(rule.to, namespace, f"egress[{i}].to", _ports(rule.ports, f"egress[{i}]"))
        for i, rule in enumerate(spec.egress or ())
    ]
    _check_size((*ingress, *egress))
    return Policy(
        namespace=namespace,
        name=source.metadata.name,
        pods=selector(spec.pod_selector, "spec.podSelector"),
        ingress=tuple(ingress) if "Ingress" in types else None,
        egress=tuple(egress) if "Egress" in types else None,
    )


def _check_size(rules: Sequence[PolicyRule]) -> None:
    count = sum(len(blocks(port.low, port.high)) for rule in rules for port in rule.ports or ())
    if count > MAX_BLOCKS:
        raise PolicyError(f"spec: its ports make {count} blocks, at most {MAX_BLOCKS} are possible: use fewer ranges")
    cidrs = sum(1 + len(block.excepts) for rule in rules for block in rule.blocks)
    if cidrs > MAX_CIDRS:
        raise PolicyError(f"spec: it has {cidrs} CIDRs, at most {MAX_CIDRS} are possible: use larger ones")


def closed_policy(source: objects.NetworkPolicy) -> Policy | None:
    """What stands for a policy that was never understood: it isolates its pods and allows nothing.

    None where not even its podSelector can be understood.
    """
    try:
        pods = selector(source.spec.pod_selector, "spec.podSelector")
    except PolicyError:
        return None
    types = source.spec.policy_types or (("Ingress", "Egress") if source.spec.egress else ("Ingress",))
    if not {"Ingress", "Egress"}.issuperset(types):
        types = ("Ingress", "Egress")
    return Policy(
        namespace=source.metadata.namespace,
        name=source.metadata.name,
        pods=pods,
        ingress=() if "Ingress" in types else None,
        egress=() if "Egress" in types else None,
    )


def _rule(
    peers: tuple[objects.PolicyPeer, ...] | None, namespace: str, field: str, ports: tuple[Ports, ...] | None
) -> PolicyRule:
    if not peers:
        return PolicyRule(None, ports)  # "empty or missing: this rule matches all sources"
    found, addresses = set(), set()
    for index, peer in enumerate(peers):
        where = f"{field}[{index}]"
        if peer.ip_block is not None:
            if peer.pod_selector is not None or peer.namespace_selector is not None:
                raise PolicyError(f"{where}: ipBlock stands alone in a peer")
            addresses.add(ip_block(peer.ip_block, f"{where}.ipBlock"))
            continue
        if peer.pod_selector is None and peer.namespace_selector is None:
            raise PolicyError(f"{where}: names no podSelector, no namespaceSelector and no ipBlock")
        pods = selector(peer.pod_selector, f"{where}.podSelector") if peer.pod_selector else ALL
        if peer.namespace_selector is None:
            found.add(PeerSelector(namespace, ALL, pods))
        else:
            found.add(PeerSelector("", selector(peer.namespace_selector, f"{where}.namespaceSelector"), pods))
    return PolicyRule(tuple(sorted(found)), ports, tuple(sorted(addresses)))


def _ports(ports: tuple[objects.PolicyPort, ...] | None, field: str) -> tuple[Ports, ...] | None:
    if not ports:
        return None
    return tuple(_port(port, f"{field}.ports[{index}]") for index, port in enumerate(ports))


def _port(port: objects.PolicyPort, field: str) -> Ports:
    protocol = PROTOCOLS.get(port.protocol or "TCP")
    if protocol is None:
        raise PolicyError(f"{field}: protocol {port.protocol!r} is none of TCP, UDP, SCTP")
    if port.port is None:
        if port.end_port is not None:
            raise PolicyError(f"{field}: endPort needs port")
        return Ports(protocol, 0, 65535)
    if isinstance(port.port, str):
        if port.end_port is not None:
            raise PolicyError(f"{field}: endPort cannot go with the port name {port.port!r}")
        if not port.port:
            raise PolicyError(f"{field}: the port name is empty")
        return Ports(protocol, name=port.port)
    high = port.port if port.end_port is None else port.end_port
    if not 1 <= port.port <= high <= 65535:
        raise PolicyError(f"{field}: {port.port}–{high} is no range of ports (1–65535)")
    return Ports(protocol, port.port, high)
