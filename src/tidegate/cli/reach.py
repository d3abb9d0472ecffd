"""Who reaches whom by what policies say, and what is otherwise in another state of the cluster. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tidegate.cli.cluster import Cluster
from tidegate.cli.portsets import EVERYTHING, PortSet, of_rules
from tidegate.cli.verdicts import Peer, is_in, is_isolated, sets_of
from tidegate.records import IDENTITY_REMOTE_NODE, IDENTITY_WORLD, Direction, Endpoint, Node, PeerShard
from tidegate.records.addresses import is_ipv4, unpack_cidr

# What an address of no pod, no node and no block stands for (RFC 5737, RFC 3849).
ELSEWHERE = (bytes(10) + b"\xff\xff" + bytes((198, 51, 100, 1)), bytes.fromhex("20010db8fffe") + bytes(9) + b"\x01")

IPV6 = " (IPv6)"  # ends the names of parties by their IPv6 addresses


@dataclass(frozen=True, slots=True)
class Party:
    """Who may be one end: `pod` is set for pods, in the states in which they are there."""

    name: str
    address: bytes
    pod: Endpoint | None = None
    node: str = ""  # of a node, its name; of a pod, its node's
    namespace: str = ""  # of a pod


@dataclass(frozen=True, slots=True)
class Change:
    source: str
    target: str
    opened: PortSet
    closed: PortSet
    audited: PortSet  # what policies deny now, and did not before, and passes because of audit
    policies: tuple[str, ...]  # that isolate either end afterwards

    @property
    def is_ipv6(self) -> bool:
        return self.source.endswith(IPV6) and self.target.endswith(IPV6)

    @property
    def by_ipv4(self) -> "Change":
        """The same by the other addresses of both."""
        return replace(self, source=self.source.removesuffix(IPV6), target=self.target.removesuffix(IPV6))


def parties(clusters: Iterable[Cluster]) -> dict[str, list[Party]]:
    """Name → how it appears in each state, in both families; who is not in all of them is left out."""
    states = list(clusters)
    found = [dict(_inside(cluster)) for cluster in states]
    names = [name for name in found[0] if all(name in each for each in found)]
    inside = {name: [each[name] for each in found] for name in names}
    held = {party.address for each in found for party in each.values()}
    outside = {party.name: [party] * len(states) for party in _outside(states) if party.address not in held}
    return {**inside, **outside}


def _inside(cluster: Cluster) -> Iterable[tuple[str, Party]]:
    for name, pod in sorted(cluster.all(Endpoint).items()):
        for address in _one_of_each_family(pod.addresses):
            text = f"{'/'.join(name)}{'' if is_ipv4(address) else IPV6}"
            yield text, Party(text, address, pod, pod.node, name[0])
    for (label,), node in sorted(cluster.all(Node).items()):
        for address in _one_of_each_family(node.addresses):
            text = f"node {label}{'' if is_ipv4(address) else IPV6}"
            yield text, Party(text, address, None, label)


def _one_of_each_family(addresses: Iterable[bytes]) -> list[bytes]:
    return list({is_ipv4(address): address for address in reversed(list(addresses))}.values())


def _outside(clusters: Iterable[Cluster]) -> Iterable[Party]:
    """One address of each prefix in a set of blocks, and one of none."""
    prefixes = {
        (address, prefix)
        for cluster in clusters
        for shard in cluster.all(PeerShard).values()
        for address, prefix, _ in shard.blocks
    }
    for address, prefix in sorted(prefixes):
        # The last address: inner prefixes are mostly at the beginning.
        last = (int.from_bytes(address, "big") | ((1 << 128 - prefix) - 1)).to_bytes(16, "big")
        for each in {last, address}:
            yield Party(f"outside, in {unpack_cidr(address, prefix)}", each)
    for each in ELSEWHERE:
        yield Party(f"outside, elsewhere{'' if is_ipv4(each) else IPV6}", each)


class Reach:
    """What policies allow in one state, kept for all who look the same to them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[tuple[int, int, Peer], PortSet] = {}

    def ports(self, source: Party, target: Party, audit: bool = True) -> PortSet:
        """On which ports the source may open connections to the target; without `audit`, as if nobody were in it."""
        allowed = EVERYTHING
        if source.pod is not None and not (audit and self._is_audited(source, source.pod)):
            allowed &= self._said(source.pod.identity, self._peer(target), Direction.EGRESS)
        own = source.pod is None and source.node == target.node
        if target.pod is not None and not own and not (audit and self._is_audited(target, target.pod)):
            allowed &= self._said(target.pod.identity, self._peer(source), Direction.INGRESS)
        return allowed

    def _is_audited(self, party: Party, pod: Endpoint) -> bool:
        """A pod without rules is closed nevertheless."""
        return party.namespace in self._cluster.audited and self._cluster.rules_of(pod.identity) is not None

    def policies(self, source: Party, target: Party) -> tuple[str, ...]:
        """Those that isolate the ends in the connection's direction."""
        found: set[str] = set()
        for party, direction in ((source, Direction.EGRESS), (target, Direction.INGRESS)):
            rules = self._cluster.rules_of(party.pod.identity) if party.pod else None
            if rules is not None and is_isolated(rules, direction):
                found.update(rules.policies)
        return tuple(sorted(found))

    def _peer(self, party: Party) -> Peer:
        identity = party.pod.identity if party.pod else IDENTITY_REMOTE_NODE if party.node else IDENTITY_WORLD
        return Peer(identity, party.address)

    def _said(self, subject: int, peer: Peer, direction: Direction) -> PortSet:
        key = subject, int(direction), peer
        if key not in self._known:
            self._known[key] = self._ask(subject, peer, direction)
        return self._known[key]

    def _ask(self, subject: int, peer: Peer, direction: Direction) -> PortSet:
        rules = self._cluster.rules_of(subject)
        if rules is None:
            return PortSet()
        if not is_isolated(rules, direction):
            return EVERYTHING
        return of_rules(
            rule
            for rule in rules.rules
            if rule.direction == direction and any(is_in(self._cluster, group, peer) for group in sets_of(rule))
        )


def changes(before: Cluster, after: Cluster, progress: Callable[[int], None] = lambda _: None) -> list[Change]:
    """Every pair of which one is a pod, and which reach each other otherwise afterwards."""
    known: Mapping[str, list[Party]] = parties((before, after))
    reach = Reach(before), Reach(after)
    found = []
    for count, (source, sources) in enumerate(known.items()):
        progress(count)
        for target, targets in known.items():
            if source == target or not _meet(sources[0], targets[0]):
                continue
            was, is_ = (each.ports(a, b) for each, a, b in zip(reach, sources, targets, strict=True))
            said = [each.ports(a, b, audit=False) for each, a, b in zip(reach, sources, targets, strict=True)]
            audited = (said[0] - said[1]) & is_
            if was != is_ or audited:
                policies = reach[1].policies(sources[1], targets[1])
                found.append(Change(source, target, is_ - was, was - is_, audited, policies))
    told = set(found)
    return [each for each in found if not each.is_ipv6 or each.by_ipv4 not in told]


def _meet(source: Party, target: Party) -> bool:
    return is_ipv4(source.address) == is_ipv4(target.address) and (source.pod or target.pod) is not None
